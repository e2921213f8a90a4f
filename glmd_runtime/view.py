"""`--view`: a page with the live picture of each stream, its boxes, numbers and state.

    GET  /                               the page (glmd_runtime/page)
    GET  /api/state                      what `_Handler._state` says
    GET  /api/streams/0/picture?after=7  one JSON line and a JPEG, when there is a picture after number 7; else 204.
                                         Numbers are of one run of the server: with &run=, that of another is none
    GET  /api/streams/0/snapshot.png     the picture as `draw` draws it
    POST /api/threshold                  {"value": 0.4}, or null for the model's own

A browser asks for the next picture when it has shown the last: a slow one sees fewer, and the detection, which only
leaves its newest result here, never waits for it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from threading import Condition, Lock
from typing import Any

import cv2
import numpy as np

from glmd_runtime.detector import Detector
from glmd_runtime.draw import COLOURS, draw
from glmd_runtime.errors import UsageError
from glmd_runtime.streams import Result, Stream
from glmd_runtime.web.listen import Address
from glmd_runtime.web.server import KINDS, TOKEN_LENGTH, RefusedError, WebHandler, WebServer, given_token, whole

FOLDER = Path(__file__).parent / "web" / "page"
TOKEN_VARIABLE = "GLMD_VIEW_TOKEN"
PORT = 8080
LONGEST_SIDE = 1280  # pixels of a picture on the page
JPEG_QUALITY = 85
PATIENCE = 1.0  # seconds that a request waits for a new picture


class View:
    """Serves the page from threads of its own until `close`.

    Args:
        streams: of a Pipeline; give its results to `publish`.
        detector: whose threshold the page sets.
        address: where to listen.
        token: that is wanted; None takes GLMD_VIEW_TOKEN from the environment, or makes one for an address that others
            can reach, and puts it into `url`.
    Raises: UsageError for an address that cannot be had, and for a short token.
    """

    def __init__(
        self, streams: Sequence[Stream], detector: Detector, address: Address, token: str | None = None
    ) -> None:
        self._screens = {stream.name: _Screen(stream) for stream in streams}
        self.closed = False
        given = given_token(token, TOKEN_VARIABLE)
        self.token = given or (None if address.local else secrets.token_urlsafe(TOKEN_LENGTH))
        self._server = _Server(address, list(self._screens.values()), detector, self.token)
        self.port = self._server.server_port
        self.url = self._server.url if self.token == given else f"{self._server.url}?token={self.token}"

    @property
    def detector(self) -> Detector:
        """Whose threshold the page sets, and whose classes it has colours for; set it together with the pipeline's."""
        return self._server.detector

    @detector.setter
    def detector(self, detector: Detector) -> None:
        self._server.detector = detector

    def publish(self, result: Result) -> None:
        """Show a result. Only remembers it, so that it takes no time."""
        self._screens[result.stream].show(result)

    def close(self) -> None:
        """Stop serving."""
        self.closed = True
        for screen in self._screens.values():
            screen.close()
        self._server.close()

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
    frame, picture = result.frame, result.picture
    h, w = picture.shape[:2]
    if max(h, w) > LONGEST_SIDE:
        zoom = LONGEST_SIDE / max(h, w)
        picture = np.asarray(cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA), np.uint8)
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    about = {
        "number": number, "index": frame.index, "time": round(frame.time, 3), "width": w, "height": h,
        "held": frame.held, "detections": result.detections.to_dict(),
    }
    return json.dumps(about).encode() + b"\n" + jpeg.tobytes()


class _Server(WebServer):
    def __init__(self, address: Address, screens: list[_Screen], detector: Detector, token: str | None) -> None:
        self.screens, self.detector = screens, detector
        self.pages = {file.name: file.read_bytes() for file in FOLDER.iterdir() if file.suffix in KINDS}
        self.run = secrets.token_hex(4)  # a page that is still open tells by it that glmd-run was started again
        super().__init__(address, _Handler, "The page", token)


class _Handler(WebHandler):
    server: _Server

    def get(self, path: str, query: dict[str, str]) -> None:
        parts = path.strip("/").split("/")
        if path == "/api/state":
            self.send_json(self._state())
        elif parts[:2] == ["api", "streams"] and parts[3:] == ["picture"]:
            same = query.get("run", self.server.run) == self.server.run
            self._picture(self._screen(parts[2]), query.get("after", "0") if same else "0")
        elif parts[:2] == ["api", "streams"] and parts[3:] == ["snapshot.png"]:
            self._snapshot(self._screen(parts[2]))
        else:
            self.send_page(self.server.pages, path)

    def post(self, path: str, value: Any) -> None:
        if path != "/api/threshold":
            super().post(path, value)
        try:
            threshold = value["value"]
            if isinstance(threshold, bool):
                raise TypeError("a number is wanted")
            self.server.detector.score_threshold = None if threshold is None else float(threshold)
        except (ValueError, TypeError, KeyError, OverflowError, UsageError) as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, 'Expected {"value": 0..1 or null}.') from error
        self.send_json({"threshold": self.server.detector.score_threshold})

    def _screen(self, text: str) -> _Screen:
        number = whole(text)
        if number is not None and number < len(self.server.screens):
            return self.server.screens[number]
        raise RefusedError(HTTPStatus.NOT_FOUND, "There is no such stream.")

    def _picture(self, screen: _Screen, after: str) -> None:
        number = whole(after)
        if number is None:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "after must be a number of a picture.")
        picture = screen.picture(number)
        if picture is None:
            self.send(HTTPStatus.NO_CONTENT)
        else:
            self.send(HTTPStatus.OK, "application/octet-stream", picture, {"Glmd-Run": self.server.run})

    def _snapshot(self, screen: _Screen) -> None:
        result = screen.newest()
        if result is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is no picture yet.")
        _, png = cv2.imencode(".png", draw(result.picture, result.detections))
        kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in screen.stream.name).strip("-")
        disposition = f'attachment; filename="{kept or "stream"}-{result.frame.index}.png"'
        self.send(HTTPStatus.OK, "image/png", png.tobytes(), {"Content-Disposition": disposition})

    def _state(self) -> dict[str, Any]:
        """What the page says beside the pictures."""
        info = self.server.detector.info()
        return {
            "run": self.server.run,
            "model": {key: info[key] for key in ("name", "backend", "device", "precision")},
            "threshold": self.server.detector.score_threshold,
            "thresholds": info["score_thresholds"],
            "colours": {name: _colour(i) for i, name in enumerate(info["score_thresholds"])},
            "streams": [_stream_state(screen.stream) for screen in self.server.screens],
        }


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
