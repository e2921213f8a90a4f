"""`--view`: a page with the live picture of each stream, its boxes, numbers and state.

    GET  /                               the page (glmd_runtime/page); `?token=...` once, then a cookie
    GET  /api/state                      what `_Handler._state` says
    GET  /api/streams/0/picture?after=7  one JSON line and a JPEG, when there is a picture after number 7; else 204
    GET  /api/streams/0/snapshot.png     the picture as `draw` draws it
    POST /api/threshold                  {"value": 0.4}, or null for the model's own

A browser asks for the next picture when it has shown the last: a slow one sees fewer, and the detection, which only
leaves its newest result here, never waits for it.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import BoundedSemaphore, Condition, Lock, Thread
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import cv2
import numpy as np

from glmd_runtime.detector import Detector
from glmd_runtime.draw import COLOURS, draw
from glmd_runtime.errors import UsageError
from glmd_runtime.listen import Address, is_ip, is_local
from glmd_runtime.pipeline import Result, Stream
from glmd_runtime.thermal import Intensity

PORT = 8080
PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
TOKEN_VARIABLE = "GLMD_VIEW_TOKEN"
TOKEN_LENGTH = 16  # characters, at least
LONGEST_SIDE = 1280  # pixels of a picture on the page
JPEG_QUALITY = 85
PATIENCE = 1.0  # seconds that a request waits for a new picture
VANISHED = 10.0  # seconds after which a browser that takes nothing is given up
CONNECTIONS = 64
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class View:
    """Serves the page from threads of its own until `close`.

    Args:
        streams: of a Pipeline; give its results to `publish`.
        detector: whose threshold the page sets.
        address: where to listen. An address that others can reach needs a token.
        token: None takes GLMD_VIEW_TOKEN from the environment, or makes one.
    Raises: UsageError for an address that cannot be had, and for a short token.
    """

    def __init__(
        self, streams: Sequence[Stream], detector: Detector, address: Address, token: str | None = None
    ) -> None:
        self._screens = [_Screen(stream) for stream in streams]
        self._by_name = {screen.stream.name: screen for screen in self._screens}
        given = token or os.environ.get(TOKEN_VARIABLE)
        self.token = None if address.local else given or secrets.token_urlsafe(TOKEN_LENGTH)
        if self.token is not None and len(self.token) < TOKEN_LENGTH:
            raise UsageError(f"A token must have at least {TOKEN_LENGTH} characters; got {len(self.token)}.")
        try:
            self._server = _Server(address, self._screens, detector, self.token)
        except OSError as error:
            raise UsageError(f"The page needs a free address; {address}: {error.strerror}. Choose another.") from error
        self.port: int = self._server.server_port
        shown = "" if self.token is None or self.token == given else f"?token={self.token}"
        self.url = f"http://{Address(_reachable(address.host), self.port)}/{shown}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="page", daemon=True)
        self._thread.start()

    def publish(self, result: Result) -> None:
        """Show a result. Only remembers it, so that it takes no time."""
        self._by_name[result.stream].show(result)

    def close(self) -> None:
        """Stop serving; calling it again does nothing."""
        for screen in self._screens:
            screen.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Screen:
    """The newest result of one stream, and those who wait for the next."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._result: Result | None = None
        self._number = 0
        self._shown = Condition()
        self._closed = False
        self._encoding = Lock()
        self._encoded: tuple[int, bytes] = (0, b"")

    def show(self, result: Result) -> None:
        with self._shown:
            self._result = result
            self._number += 1
            self._shown.notify_all()

    def close(self) -> None:
        with self._shown:
            self._closed = True
            self._shown.notify_all()

    def newest(self) -> Result | None:
        with self._shown:
            return self._result

    def picture(self, after: int) -> bytes | None:
        """What the page shows of the first result with a number above `after`; None if there is none in time."""
        with self._shown:
            self._shown.wait_for(lambda: self._number > after or self._closed, PATIENCE)
            number, result = self._number, self._result
        if result is None or number <= after:
            return None
        with self._encoding:  # several browsers, one encoding
            if self._encoded[0] < number:
                self._encoded = number, _encode(number, result)
            return self._encoded[1]


def _encode(number: int, result: Result) -> bytes:
    """One line of JSON, then a JPEG; boxes are in pixels of the frame, whatever the size of the JPEG."""
    frame = result.frame
    h, w = frame.image.shape[:2]
    picture = result.picture if result.picture is not None else Intensity()(frame.image)
    if max(h, w) > LONGEST_SIDE:
        zoom = LONGEST_SIDE / max(h, w)
        picture = np.asarray(cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA), np.uint8)
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    about = {
        "number": number, "index": frame.index, "time": round(frame.time, 3), "width": w, "height": h,
        "detections": result.detections.to_dict(),
    }
    return json.dumps(about).encode() + b"\n" + jpeg.tobytes()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, address: Address, screens: list[_Screen], detector: Detector, token: str | None) -> None:
        self.screens, self.detector, self.token, self.address = screens, detector, token, address
        self._free = BoundedSemaphore(CONNECTIONS)
        if ":" in address.host:
            self.address_family = socket.AF_INET6
        super().__init__((address.host, address.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error of ours."""


class _RefusedError(Exception):
    """A request that gets a status and a sentence."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "glmd", ""
    timeout = VANISHED

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests come many times a second."""

    def _answer(self, act: Callable[[], None]) -> None:
        try:
            self._check_host()
            act()
        except _RefusedError as refused:
            self.close_connection = True  # a body that was not read must not be taken for the next request
            self._send(refused.status, "text/plain; charset=utf-8", f"{refused}\n".encode())

    def _check_host(self) -> None:
        """A site of others that lets its name point to this machine (DNS rebinding) must not read along."""
        host = _host_of(self.headers.get("Host", ""))
        address = self.server.address
        mine = is_local(host) if address.local else is_ip(host) or host in _names(address)
        if not mine:
            raise _RefusedError(HTTPStatus.FORBIDDEN, "This page is not served under that name. Use its address.")

    def _get(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if "token" in query and self.server.token:
            self._log_in(query["token"][0])
            return
        self._check_token()
        parts = url.path.strip("/").split("/")
        if url.path == "/api/state":
            self._send_json(self._state())
        elif parts[:2] == ["api", "streams"] and len(parts) == 4 and parts[3] == "picture":
            self._picture(self._screen(parts[2]), query)
        elif parts[:2] == ["api", "streams"] and len(parts) == 4 and parts[3] == "snapshot.png":
            self._snapshot(self._screen(parts[2]))
        else:
            self._file(parts[0] or "index.html", len(parts) == 1)

    def _post(self) -> None:
        self._check_token()
        if self.path != "/api/threshold":
            raise _RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
        # A form of another site can neither say this type nor hide where it comes from.
        origin = self.headers.get("Origin")
        if self.headers.get("Content-Type") != "application/json" or (
            origin and urlsplit(origin).netloc != self.headers.get("Host")
        ):
            raise _RefusedError(HTTPStatus.FORBIDDEN, "Only the page itself may change something.")
        try:
            length = int(self.headers.get("Content-Length", ""))
            value = json.loads(self.rfile.read(length))["value"] if 0 < length <= 1000 else ""
            self.server.detector.score_threshold = None if value is None else float(value)
        except (ValueError, TypeError, KeyError, UsageError) as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, 'Expected {"value": 0..1 or null}.') from error
        self._send_json({"threshold": self.server.detector.score_threshold})

    def _log_in(self, token: str) -> None:
        """The token out of the address and into a cookie."""
        self._compare(token)
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Set-Cookie", f"{self._cookie}={quote(token)}; HttpOnly; SameSite=Strict; Path=/")
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self._send_security()
        self.end_headers()

    @property
    def _cookie(self) -> str:
        return f"glmd_view_{self.server.server_port}"  # browsers keep one jar for all ports of a host

    def _check_token(self) -> None:
        if self.server.token is None:
            return
        pairs = (pair.strip().partition("=") for pair in self.headers.get("Cookie", "").split(";"))
        self._compare(next((value for name, _, value in pairs if name == self._cookie), ""), quote)

    def _compare(self, came: str, as_written: Callable[[str], str] = str) -> None:
        wanted = as_written(self.server.token or "")
        if not hmac.compare_digest(came.encode(), wanted.encode()):
            raise _RefusedError(
                HTTPStatus.FORBIDDEN, "This page needs its token: open it once as /?token=... with the right one."
            )

    def _screen(self, number: str) -> _Screen:
        if number.isdecimal() and int(number) < len(self.server.screens):
            return self.server.screens[int(number)]
        raise _RefusedError(HTTPStatus.NOT_FOUND, "There is no such stream.")

    def _picture(self, screen: _Screen, query: dict[str, list[str]]) -> None:
        after = query.get("after", ["0"])[0]
        if not after.isdecimal():
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "after must be a number of a picture.")
        picture = screen.picture(int(after))
        if picture is None:
            self._send(HTTPStatus.NO_CONTENT)
        else:
            self._send(HTTPStatus.OK, "application/octet-stream", picture)

    def _snapshot(self, screen: _Screen) -> None:
        result = screen.newest()
        if result is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "There is no picture yet.")
        _, png = cv2.imencode(".png", draw(result.frame.image, result.detections))
        kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in screen.stream.name).strip("-")
        name = f"{kept or 'stream'}-{result.frame.index}.png"
        self._send(HTTPStatus.OK, "image/png", png.tobytes(), {"Content-Disposition": f'attachment; filename="{name}"'})

    def _file(self, name: str, plain: bool) -> None:
        path = PAGE / name
        if not plain or path.parent != PAGE or path.suffix not in KINDS or not path.is_file():
            raise _RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
        self._send(HTTPStatus.OK, KINDS[path.suffix], path.read_bytes())

    def _state(self) -> dict[str, Any]:
        """What the page says beside the pictures."""
        detector = self.server.detector
        info = detector.info()
        return {
            "model": {key: info[key] for key in ("name", "backend", "device", "precision")},
            "threshold": detector.score_threshold,
            "thresholds": info["score_thresholds"],
            "colours": {name: _colour(i) for i, name in enumerate(info["score_thresholds"])},
            "streams": [_stream_state(screen.stream) for screen in self.server.screens],
        }

    def _send_json(self, value: Any) -> None:
        self._send(HTTPStatus.OK, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str = "", body: bytes = b"", more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self._send_security()
        self.end_headers()
        self.wfile.write(body)

    def _send_security(self) -> None:
        for name, value in SECURITY.items():
            self.send_header(name, value)


def _stream_state(stream: Stream) -> dict[str, Any]:
    status, latency = stream.status, stream.latency
    return {
        "name": stream.name,
        "live": stream.live,
        "state": stream.state,
        "detail": status.detail,
        "silence": round(stream.silence, 1),  # seconds without a result
        "failed": stream.error is not None,
        "frames": stream.frames,
        "rate": round(stream.rate, 1),  # results a second
        "latency": None if latency is None else round(latency * 1000, 1),  # milliseconds
        "drops": stream.drops,
        "held": sum(stream.held.values()),
        "warnings": list(stream.warnings.values()),
    }


def _colour(class_id: int) -> str:
    """The class's colour in `draw`, for CSS."""
    blue, green, red = COLOURS[class_id % len(COLOURS)]
    return f"#{red:02x}{green:02x}{blue:02x}"


def _host_of(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _names(address: Address) -> set[str]:
    return {"localhost", address.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}


def _reachable(host: str) -> str:
    """A name for the URL: one cannot browse to 0.0.0.0 from elsewhere."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host
