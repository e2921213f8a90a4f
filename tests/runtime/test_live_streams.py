"""A live source against GStreamer's RTSP server behind a proxy that spoils what it carries."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmd_runtime.errors import GlmdError
from glmd_runtime.video.decoding import import_av
from glmd_runtime.video.source import Source
from glmd_runtime.video.sources import open_source
from glmd_runtime.video.status import Status
from tests.conftest import skip_unless
from tests.streams.proxy import Proxy, proxy_to

pytestmark = pytest.mark.usefixtures("pyav")
SERVER = Path(__file__).parents[1] / "streams" / "rtsp_server.py"
PYTHON = "/usr/bin/python3"  # the one that Debian's bindings are for
BINDINGS = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
BLACK = 110  # the server's picture is 126 or brighter everywhere; what a decoder makes up is darker somewhere


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Server:
    """GStreamer's server in a process of its own."""

    def __init__(self, *credentials: str, port: int | None = None) -> None:
        self.port = port or free_port()
        command = [PYTHON, str(SERVER), str(self.port), "320x240", *credentials]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def resize(self, size: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size}\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def has_server() -> None:
    present = shutil.which(PYTHON) and not subprocess.run([PYTHON, "-c", BINDINGS], capture_output=True).returncode
    skip_unless(bool(present), "gstreamer", "GStreamer's RTSP server is not installed (.ci/run names its packages)")


@pytest.fixture(scope="module")
def server(has_server: None) -> Iterator[Server]:
    started = Server()
    yield started
    started.stop()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxy_to(server.port) as opened:
        yield opened


class Watch:
    """Reads a source in a thread, and keeps of each frame what the tests ask: size, darkest value, age, index."""

    def __init__(self, uri: str, darkest: Callable[[np.ndarray], Any] = np.min, **options: Any) -> None:
        self.said: list[Status] = []
        self.frames: list[tuple[tuple[int, ...], float, float, int]] = []
        self._darkest = darkest
        self.source: Source = open_source(uri, on_status=self.said.append, **options)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for frame in self.source:
            seen = float(self._darkest(frame.image)), time.monotonic() - frame.captured
            self.frames.append((frame.image.shape, *seen, frame.index))

    def states(self) -> list[str]:
        return [status.state for status in self.said]

    def more(self, count: int = 10, seconds: float = 15) -> None:
        """Wait for so many frames from now."""
        target = len(self.frames) + count
        self.until(lambda: len(self.frames) >= target, seconds)

    def until(self, condition: Callable[[], bool], seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (len(self.frames), self.source.drops, self.said)
            time.sleep(0.02)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        began = time.monotonic()
        self.source.close()
        assert time.monotonic() - began < 1.0
        self._thread.join(1)
        assert not self._thread.is_alive() and self.said[-1].state == "ended"
        assert min((dark for _, dark, _, _ in self.frames), default=255) > BLACK, "no camera sent this frame"
        assert max((age for _, _, age, _ in self.frames), default=0.0) < 0.6, "an old frame was served"


def address(port: int, query: str = "?timeout=1.5") -> str:
    return f"rtsp://127.0.0.1:{port}/camera{query}"


def test_a_camera_that_works(proxy: Proxy) -> None:
    with Watch(address(proxy.port)) as watch:
        watch.more(30)
        assert watch.source.live and watch.source.fps == 20
        assert watch.frames[-1][0] == (240, 320, 3)
    assert watch.states() == ["connecting", "running", "ended"]


def test_a_cut_cable_and_its_return(proxy: Proxy) -> None:
    with Watch(address(proxy.port)) as watch:
        watch.more()
        proxy.refuses = True
        proxy.cut()
        watch.until(lambda: watch.states().count("lost") >= 3)
        before = len(watch.frames)
        proxy.refuses = False
        watch.more()
        assert watch.source.status.state == "running" and before < len(watch.frames)
    assert [index for *_, index in watch.frames] == sorted({index for *_, index in watch.frames})


def test_a_stall_is_found_by_its_silence_and_its_backlog_is_not_served(proxy: Proxy) -> None:
    with Watch(address(proxy.port)) as watch:
        watch.more()
        proxy.stalled = True
        watch.until(lambda: watch.source.status.state == "lost", 5)
        assert "came for" in watch.source.status.detail
        proxy.stalled = False
        watch.more()


def test_a_short_stall_costs_its_frames_only(proxy: Proxy) -> None:
    with Watch(address(proxy.port, "?timeout=10")) as watch:
        watch.more(20)
        proxy.stalled = True
        time.sleep(2)
        count = len(watch.frames)
        proxy.stalled = False
        watch.more(20)
        assert watch.source.drops["stale"] >= 15 and len(watch.frames) >= count + 20
    assert "lost" not in watch.states()


def test_another_size_in_the_middle(proxy: Proxy, server: Server) -> None:
    with Watch(address(proxy.port)) as watch:
        watch.more()
        try:
            server.resize("160x128")
            watch.until(lambda: watch.frames[-1][0] == (128, 160, 3))
            watch.more()
        finally:
            server.resize("320x240")
    assert any(status.detail == "160x128 uint8, before 320x240 uint8" for status in watch.said)


def test_garbage_is_counted_and_not_served(proxy: Proxy) -> None:
    """H.264 has no checksum: a wrong byte can decode to some dark pixels, but no picture is black as a whole."""
    with Watch(address(proxy.port), darkest=np.mean) as watch:
        watch.more()
        proxy.garbage = 0.1
        watch.until(lambda: watch.source.drops["corrupt"] > 5 or watch.states().count("lost") > 1)
        time.sleep(4)
        proxy.garbage = 0.0
        watch.more(20, 30)


def test_a_camera_that_comes_later_and_is_switched_off_and_on(has_server: None) -> None:
    port = free_port()
    with Watch(address(port)) as watch:
        watch.until(lambda: watch.source.status.state == "lost", 3)
        assert "refused" in watch.source.status.detail
        for _ in range(2):
            server = Server(port=port)
            try:
                watch.more()
            finally:
                server.stop()
            watch.until(lambda: watch.source.status.state == "lost", 5)


def test_passwords_are_seen_nowhere(has_server: None, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    server = Server("viewer:hunter2")
    try:
        secret = f"rtsp://viewer:hunter2@127.0.0.1:{server.port}/camera"
        with Watch(secret) as right, Watch(secret.replace("hunter2", "hunter3")) as wrong:
            right.more(3)
            wrong.until(lambda: "401" in wrong.source.status.detail)
            shown = f"{right.source.name} {right.source!r} {vars(right.source)} {wrong.said} {threading.enumerate()}"
    finally:
        server.stop()
    assert right.source.name == f"rtsp://127.0.0.1:{server.port}/camera"
    assert "hunter" not in shown + caplog.text + "".join(capfd.readouterr())


def test_every_frame_of_a_camera(proxy: Proxy) -> None:
    with Watch(address(proxy.port), policy="every") as watch:
        watch.more(20)
    indices = [index for *_, index in watch.frames]
    assert indices == list(range(indices[0], indices[0] + len(indices)))


@pytest.mark.parametrize("uri", ["rtsp://127.0.0.1:{port}/camera", "udp://127.0.0.1:{port}"])
def test_close_while_ffmpeg_waits(uri: str) -> None:
    """A server that accepts and says nothing; a port that nobody sends to."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = open_source(uri.format(port=silent.getsockname()[1]) + "?timeout=3")
        time.sleep(0.3)
        began = time.monotonic()
        source.close()
        assert time.monotonic() - began < 1.0 and list(source) == []


BROKEN_SEI = b"\0\0\0\1\x06\x05\xff\xff\x80"  # a message that says it is longer than it is


@pytest.mark.parametrize("prefix", [b"", BROKEN_SEI], ids=["correct", "broken"])
def test_a_stream_of_datagrams(prefix: bytes) -> None:
    """MPEG-TS over UDP, as encoders for the field send it; and one that breaks the rules where no picture is."""
    port, stop = free_port(), threading.Event()
    sender = threading.Thread(target=send_mpegts, args=(port, stop, prefix), daemon=True)
    sender.start()
    try:
        with Watch(f"udp://127.0.0.1:{port}?timeout=3") as watch:
            watch.more(10)
            assert watch.frames[-1][0] == (128, 160, 3)
    finally:
        stop.set()
        sender.join(5)


def send_mpegts(port: int, stop: threading.Event, prefix: bytes) -> None:
    av = import_av()
    with av.open(f"udp://127.0.0.1:{port}?pkt_size=1316", "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=Fraction(20), options={"tune": "zerolatency", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        picture = np.full((128, 160, 3), 160, np.uint8)
        while not stop.wait(0.05):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")):
                spoiled = av.Packet(prefix + bytes(packet))
                spoiled.stream, spoiled.time_base = stream, packet.time_base
                spoiled.pts, spoiled.dts, spoiled.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
                container.mux(spoiled)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("rtsp://", "Expected rtsp://user:password@host:554/path"),
        ("rtsp://user:pa/ss@camera/x", "no @ but the one before the host"),
        ("udp://camera", "udp://@:5000"),
        ("udp://camera:port", "udp://@:5000"),
        ("rtsp://camera/x?transport=sctp", "Expected transport like transport=tcp"),
        ("rtsp://camera/x?timeout=0", "Expected timeout like timeout=5"),
        ("rtsp://camera/x?celsius=0.01", "Expected celsius like celsius=0.01,-273.15"),
        ("v4l2://video0", "Expected v4l2:///dev/video0"),
        ("v4l2:///dev/video0?format=NV12", "Expected format like format=Y16"),
        ("v4l2:///dev/video0?size=640", "Expected size like size=640x512"),
    ],
)
def test_a_wrong_address(uri: str, expected: str) -> None:
    with pytest.raises(GlmdError, match=expected) as error:
        open_source(uri)
    assert "pa/ss" not in str(error.value)
