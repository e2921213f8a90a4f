"""GStreamer's RTSP server as a camera on loopback; run by the system's python3, which has its bindings.

Usage: python3 rtsp_server.py PORT WIDTHxHEIGHT [USER:PASSWORD]     rtsp://127.0.0.1:PORT/camera
It prints "ready", and takes a new size WIDTHxHEIGHT from each line of its input. The picture is bright everywhere, so
that a black one was not sent.
"""

from __future__ import annotations

import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 (the versions come first)

PIPELINE = (
    "( videotestsrc is-live=true pattern=ball background-color=0xff808080 foreground-color=0xffffffff "
    "! videoscale ! capsfilter name=size caps=video/x-raw,format=I420,width={},height={},framerate=20/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=20 threads=1 "
    "! h264parse config-interval=-1 ! rtph264pay name=pay0 pt=96 )"
)


def main() -> None:
    port, size, *credentials = sys.argv[1:]
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PIPELINE.format(*size.split("x")))
    factory.set_shared(True)
    factory.connect("media-configure", configure)
    if credentials:
        protect(server, factory, *credentials[0].split(":"))
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    threading.Thread(target=follow_input, daemon=True).start()
    print("ready", flush=True)
    GLib.MainLoop().run()


MEDIA: list[Gst.Element] = []


def configure(_: object, media: GstRtspServer.RTSPMedia) -> None:
    MEDIA[:] = [media.get_element()]


def protect(server: GstRtspServer.RTSPServer, factory: GstRtspServer.RTSPMediaFactory, user: str, word: str) -> None:
    auth, token, roles = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken(), GstRtspServer.RTSPPermissions()
    token.set_string("media.factory.role", "viewer")
    roles.add_role("viewer")
    roles.add_permission_for_role("viewer", "media.factory.access", True)
    roles.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(roles)
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, word), token)
    server.set_auth(auth)


def follow_input() -> None:
    for line in sys.stdin:
        width, height = line.strip().split("x")
        for element in MEDIA:
            caps = Gst.Caps.from_string(f"video/x-raw,format=I420,width={width},height={height},framerate=20/1")
            element.get_by_name("size").set_property("caps", caps)


if __name__ == "__main__":
    main()
