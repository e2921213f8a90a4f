"""Senders that want us to open something else: lists over UDP, and an RTSP server that names other places.

What they name is a port and a file of our own, which notice that they are called. Where FFmpeg would do it, it is shown
to, without what NetworkCamera tells it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from glmd_runtime.errors import SourceError
from glmd_runtime.video.cameras import NetworkCamera
from glmd_runtime.video.decoding import import_av

pytestmark = pytest.mark.usefixtures("pyav")
TIMEOUT = 2.0  # seconds that FFmpeg waits for more
HOST = "127.0.0.1"
SDP = (
    "v=0\r\no=- 0 0 IN IP4 {host}\r\ns=x\r\nc=IN IP4 {host}\r\nt=0 0\r\n{more}"
    "m=video {port} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
)


class Trap:
    """A port of TCP, one of UDP that is free, and a file (a pipe, whose reader waits); `touched` says which were.

    calls: the first words of whoever called the port.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "secret.ts"
        os.mkfifo(self.file)
        self._listening = socket.create_server((HOST, 0))
        self._listening.settimeout(0.02)
        self.port = self._listening.getsockname()[1]
        self.udp = free_port()
        self.touched: set[str] = set()
        self.calls: list[bytes] = []
        self._over = Event()
        self._thread = Thread(target=self._watch)
        self._thread.start()

    def close(self) -> set[str]:
        """Returns: `touched`, with what was called at the last moment."""
        self._over.set()
        self._thread.join()
        self._look()
        self._listening.close()
        return self.touched

    def _watch(self) -> None:
        while not self._over.is_set():
            self._look()

    def _look(self) -> None:
        with suppress(TimeoutError):
            caller, _ = self._listening.accept()
            self.touched.add("port")
            with caller, suppress(OSError):
                caller.settimeout(TIMEOUT)
                self.calls.append(caller.recv(1 << 10))
        with suppress(OSError):  # nobody reads it
            os.close(os.open(self.file, os.O_WRONLY | os.O_NONBLOCK))
            self.touched.add("file")
        if f":{self.udp:04X} " in Path("/proc/net/udp").read_text():
            self.touched.add("udp")


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    one = Trap(tmp_path)
    yield one
    if not one._over.is_set():
        one.close()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((HOST, 0))
        return int(taken.getsockname()[1])


def opened_by_us(url: str) -> None:
    """Raises: SourceError."""
    next(NetworkCamera(url, "camera", timeout=TIMEOUT).shots())


def opened_by_ffmpeg(url: str, **options: str) -> None:
    """As it is when nobody forbids it anything."""
    av = import_av()
    with suppress(av.error.FFmpegError, ValueError):
        av.open(url, options=options, timeout=(2 * TIMEOUT, 2 * TIMEOUT)).close()


# UDP


@contextmanager
def sent(text: str) -> Iterator[str]:
    """The address to which a text is sent again and again, until somebody had it forty times."""
    port, over = free_port(), Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((HOST, port))
            count = 0
            while count < 40 and not over.wait(0.01):
                try:
                    sender.send(text.encode().ljust(1400, b"\n"))
                    count += 1
                except ConnectionRefusedError:  # of the one before: nobody listened yet
                    count = 0

    thread = Thread(target=send)
    thread.start()
    try:
        # The ending is what FFmpeg knows a playlist by; after 0.3 s of silence it takes it for whole.
        yield f"udp://{HOST}:{port}/list.m3u8?timeout=300000"
    finally:
        over.set()
        thread.join()


def lists(trap: Trap) -> dict[str, str]:
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
    return {
        "playlist of a port": f"{head}http://{HOST}:{trap.port}/a.ts\n#EXT-X-ENDLIST\n",
        "playlist of a file": f"{head}file://{trap.file}\n#EXT-X-ENDLIST\n",
        "sdp": SDP.format(host=HOST, port=trap.udp, more=""),
        "ffconcat": f"ffconcat version 1.0\nfile {trap.file}\nfile http://{HOST}:{trap.port}/a.ts\n",
    }


@pytest.mark.parametrize("name", ["playlist of a port", "playlist of a file", "sdp", "ffconcat"])
def test_a_list_that_comes_by_udp_is_not_followed(name: str, trap: Trap) -> None:
    with sent(lists(trap)[name]) as url, pytest.raises(SourceError):
        opened_by_us(url)
    assert trap.close() == set()


@pytest.mark.parametrize("touched", ["port", "file"])
def test_ffmpeg_alone_follows_a_playlist(touched: str, trap: Trap) -> None:
    """The control."""
    with sent(lists(trap)[f"playlist of a {touched}"]) as url:
        opened_by_ffmpeg(url)
    assert touched in trap.close()


@pytest.mark.parametrize(("name", "touched"), [("sdp", "udp"), ("ffconcat", "file")])
def test_ffmpeg_alone_follows_other_lists(name: str, touched: str, trap: Trap, tmp_path: Path) -> None:
    """The control, from a file: this FFmpeg waits for the end of such a list, which never comes by UDP."""
    path = tmp_path / "list"
    path.write_text(lists(trap)[name])
    opened_by_ffmpeg(f"file:{path}", protocol_whitelist="file,rtp,udp", safe="0")
    assert touched in trap.close()


# RTSP

Reply = tuple[str, str, str]  # status, headers, body


@contextmanager
def serving(answer: Callable[[str], Reply]) -> Iterator[tuple[str, list[str]]]:
    """(URL of an RTSP server, the first lines of what it was asked); `answer` takes the method."""
    asked: list[str] = []
    server = socket.create_server((HOST, 0))
    thread = Thread(target=_serve, args=(server, answer, asked), daemon=True)
    thread.start()
    try:
        yield f"rtsp://{HOST}:{server.getsockname()[1]}/camera", asked
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


def _serve(server: socket.socket, answer: Callable[[str], Reply], asked: list[str]) -> None:
    with suppress(OSError):  # it is shut down
        while True:
            caller, _ = server.accept()
            with caller, caller.makefile("rwb") as lines, suppress(OSError):
                _answer(lines, answer, asked)


def _answer(lines: Any, answer: Callable[[str], Reply], asked: list[str]) -> None:
    """What comes on one connection, to its end."""
    head = b""
    while line := lines.readline():
        head += line
        if line == b"\r\n":
            asked.append(head.split(b"\r\n")[0].decode())
            status, headers, body = answer(asked[-1].split()[0])
            number = re.search(rb"CSeq: (\d+)", head)[1].decode()  # type: ignore[index]
            said = f"RTSP/1.0 {status}\r\nCSeq: {number}\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}"
            lines.write(said.encode())
            lines.flush()
            head = b""


def camera(method: str, *, control: str = "track1") -> Reply:
    """A camera that takes every request, and never sends a picture."""
    headers = {"DESCRIBE": "Content-Type: application/sdp\r\n"}
    headers["SETUP"] = "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
    sdp = SDP.format(host=HOST, port=0, more=f"a=control:{control}\r\n") + f"a=control:{control}\r\n"
    return "200 OK", headers.get(method, ""), sdp if method == "DESCRIBE" else ""


def sending_on(place: str, when: str) -> Callable[[str], Reply]:
    return lambda method: ("302 Moved", f"Location: {place}\r\n", "") if method == when else camera(method)


@pytest.mark.parametrize("when", ["OPTIONS", "DESCRIBE", "SETUP"])
@pytest.mark.parametrize("place", ["rtsps://{host}:{port}/", "file://{file}", "concat:{file}", "udp://{host}:{udp}"])
def test_a_camera_sends_nobody_to_what_is_no_rtsp(place: str, when: str, trap: Trap) -> None:
    place = place.format(host=HOST, port=trap.port, file=trap.file, udp=trap.udp)
    with serving(sending_on(place, when)) as (url, asked), pytest.raises(SourceError):
        opened_by_us(url)
    assert asked[-1].split()[0] == when and trap.close() == set()


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_camera_may_send_to_another_address_where_only_rtsp_is_spoken(scheme: str, trap: Trap) -> None:
    """RTSP has it so, FFmpeg cannot be told otherwise, and SECURITY.md says it. Some of its versions refuse http."""
    place = f"{scheme}://{HOST}:{trap.port}/"
    with serving(sending_on(place, "DESCRIBE")) as (url, _), pytest.raises(SourceError):
        opened_by_us(url)
    assert trap.close() <= {"port"}
    assert trap.calls or scheme == "http"
    assert all(call.startswith(f"OPTIONS {place} RTSP/1.0\r\n".encode()) for call in trap.calls)


def test_ffmpeg_alone_goes_where_the_camera_says(trap: Trap) -> None:
    """The control: it would speak TLS."""
    with serving(sending_on(f"rtsps://{HOST}:{trap.port}/", "DESCRIBE")) as (url, _):
        opened_by_ffmpeg(url)
    assert "port" in trap.close() and not trap.calls[0].startswith(b"OPTIONS")


@pytest.mark.parametrize("place", ["http://{host}:{port}/a.ts", "file://{file}"])
def test_a_description_that_names_other_places_is_only_said_back(place: str, trap: Trap) -> None:
    place = place.format(host=HOST, port=trap.port, file=trap.file)
    with serving(lambda method: camera(method, control=place)) as (url, asked), pytest.raises(SourceError):
        opened_by_us(url)
    assert f"SETUP {place} RTSP/1.0" in asked and trap.close() == set()
