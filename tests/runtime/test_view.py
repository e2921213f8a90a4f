"""The page's server, as a browser and as an attacker would speak to it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from glmd_runtime import Detector
from glmd_runtime.draw import draw
from glmd_runtime.errors import UsageError
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.streams import Result
from glmd_runtime.view import View
from glmd_runtime.web.listen import Address, neighbourhood
from glmd_runtime.web.server import CONNECTIONS, VANISHED, WebHandler
from tests import tiny
from tests.runtime.streams import Camera, clip, detector
from tests.trust.hostile_requests import dripped

HERE, EVERYWHERE = Address("127.0.0.1", 0), Address("0.0.0.0", 0)
JSON = {"Content-Type": "application/json"}
TOKEN = "correct horse battery; staple"  # with what a cookie cannot hold as it is


class Site:
    """A view whose streams have ended: three frames of a clip, none of a camera."""

    def __init__(self, bundle: Path, address: Address = HERE, token: str | None = None) -> None:
        self.results: list[Result] = []
        self.camera = Camera("camera <b>")
        self.camera.end()
        self.detector: Detector = detector(bundle)
        self.pipeline = Pipeline([clip("clip", 3), self.camera], self.detector, on_result=self.results.append)
        self.pipeline.run()
        self.view = View(self.pipeline.streams, self.detector, address, token)

    def show(self) -> None:
        for result in self.results:
            self.view.publish(result)

    def ask(
        self, path: str, headers: dict[str, str] | None = None, *, post: Any = None, host: str | None = None
    ) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.view.port, timeout=20)
        headers = {"Host": host or f"127.0.0.1:{self.view.port}", **(headers or {})}
        body = None if post is None else post if isinstance(post, str) else json.dumps(post)
        connection.request("GET" if post is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer, answer.read()

    def close(self) -> None:
        self.view.close()
        self.pipeline.close()


@pytest.fixture
def site(tiny_bundle: Path) -> Iterator[Site]:
    one = Site(tiny_bundle)
    yield one
    one.close()


@pytest.fixture
def open_site(tiny_bundle: Path) -> Iterator[Site]:
    one = Site(tiny_bundle, EVERYWHERE, TOKEN)
    yield one
    one.close()


def test_the_page_brings_all_that_it_needs(site: Site) -> None:
    answer, page = site.ask("/")
    assert answer.status == 200 and answer.getheader("Content-Type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in (answer.getheader("Content-Security-Policy") or "")
    for name in ("view.css", "view.js", "icon.svg"):
        assert name.encode() in page and site.ask(f"/{name}")[0].status == 200
    everything = b"".join(site.ask(path)[1] for path in ("/", "/view.css", "/view.js"))
    assert b"//" not in everything.replace(b"// ", b"")  # nothing from elsewhere


@pytest.mark.parametrize(
    "path",
    ["/absent.html", "/../view.py", "/%2e%2e/view.py", "//etc/passwd", "/api", "/api/streams/0",
     "/api/streams/2/picture", "/api/streams/-1/picture", "/api/streams/x/snapshot.png", "/api/streams/0/picture/more"],
)
def test_there_is_nothing_else(path: str, site: Site) -> None:
    assert site.ask(path)[0].status == 404


def test_a_picture_with_its_detections(site: Site) -> None:
    site.show()
    answer, body = site.ask("/api/streams/0/picture?after=0")
    line, _, jpeg = body.partition(b"\n")
    about, result = json.loads(line), site.results[-1]
    assert answer.status == 200 and about["number"] == 3 and about["index"] == 2
    assert (about["height"], about["width"]) == tiny.SIZE_HW
    assert about["detections"] == result.detections.to_dict() and about["detections"][0]["celsius"]
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.abs(picture.astype(int) - result.picture).mean() < 10


def test_a_large_picture_is_sent_smaller_and_its_boxes_stay(tiny_bundle: Path, site: Site) -> None:
    result = site.results[0]
    large = np.tile(result.picture, (30, 30))  # 1920 x 2400
    site.view.publish(Result("clip", result.frame, result.detections, large, {}))
    line, _, jpeg = site.ask("/api/streams/0/picture?after=0")[1].partition(b"\n")
    assert (json.loads(line)["height"], json.loads(line)["width"]) == large.shape
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED).shape == (1024, 1280)


def test_a_picture_is_waited_for_and_204_says_that_there_was_none(site: Site) -> None:
    assert site.ask("/api/streams/1/picture")[0].status == 204
    asked: list[int] = []
    waiting = Thread(target=lambda: asked.append(site.ask("/api/streams/0/picture?after=0")[0].status))
    waiting.start()
    site.show()
    waiting.join(20)
    assert asked == [200]
    assert site.ask("/api/streams/0/picture?after=3")[0].status == 204
    assert site.ask("/api/streams/0/picture?after=x")[0].status == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/api/streams/{'1' * 4301}/picture", 404),  # more digits than int() takes
        (f"/api/streams/0/picture?after={'1' * 4301}", 400),
        (f"/{'a' * 4000}.html", 404),  # more letters than a file's name has
        ("http://[/api/state", 400),
    ],
)
def test_what_no_browser_asks_for_is_answered(path: str, status: int, site: Site) -> None:
    assert site.ask(path)[0].status == status


def test_a_number_of_another_run_is_none(site: Site) -> None:
    site.show()
    run = json.loads(site.ask("/api/state")[1])["run"]
    answer, _ = site.ask("/api/streams/0/picture?after=900&run=another")
    assert answer.status == 200 and answer.getheader("Glmd-Run") == run
    assert site.ask(f"/api/streams/0/picture?after=3&run={run}")[0].status == 204


def test_a_snapshot_is_what_draw_draws(site: Site) -> None:
    assert site.ask("/api/streams/0/snapshot.png")[0].status == 404
    site.show()
    answer, png = site.ask("/api/streams/0/snapshot.png")
    assert answer.getheader("Content-Disposition") == 'attachment; filename="clip-2.png"'
    result = site.results[-1]
    expected = draw(result.picture, result.detections)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED), expected)


def test_the_state_of_everything(site: Site) -> None:
    state = json.loads(site.ask("/api/state")[1])
    assert state["model"]["name"] == "tiny" and state["threshold"] is None
    assert state["thresholds"] == {"person": 0.2, "car": 0.1}
    assert state["colours"]["person"].startswith("#") and len(state["colours"]["person"]) == 7
    assert [(s["name"], s["state"], s["frames"], s["live"]) for s in state["streams"]] == [
        ("clip", "ended", 3, False), ("camera <b>", "ended", 0, True)
    ]


def test_the_threshold_acts_on_the_next_frame(site: Site) -> None:
    image = site.results[0].frame.image
    for value, count in [(0.6, 1), (0.95, 0), (None, 2), (0, 2)]:
        answer, body = site.ask("/api/threshold", JSON, post={"value": value})
        assert answer.status == 200 and json.loads(body) == {"threshold": value}
        assert len(site.detector.run(image)) == count


def test_the_page_is_told_of_another_detector(site: Site, tiny_bundle: Path) -> None:
    site.view.detector = other = detector(tiny_bundle)
    assert site.ask("/api/threshold", JSON, post={"value": 0.6})[0].status == 200
    assert (other.score_threshold, site.detector.score_threshold) == (0.6, None)
    assert json.loads(site.ask("/api/state")[1])["threshold"] == 0.6


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"value": 2}, JSON, 400),
        ({"value": "high"}, JSON, 400),
        ({"value": True}, JSON, 400),
        ({"value": 10**400}, JSON, 400),
        ("[" * 1000, JSON, 400),
        ({"value": 0.5}, {**JSON, "Content-Length": "1" * 4301}, 400),
        ({"value": float("nan")}, JSON, 400),
        ({}, JSON, 400),
        ([], JSON, 400),
        ("{", JSON, 400),
        ({"value": "x" * 2000}, JSON, 400),
        ({"value": 0.5}, {"Content-Type": "text/plain"}, 403),
        ({"value": 0.5}, {**JSON, "Origin": "http://evil.example"}, 403),
        ({"value": 0.5}, {**JSON, "Origin": "null"}, 403),
        ({"value": 0.5}, {**JSON, "Origin": "http://["}, 403),
    ],
)
def test_what_does_not_change_the_threshold(body: Any, headers: dict[str, str], status: int, site: Site) -> None:
    assert site.ask("/api/threshold", headers, post=body)[0].status == status
    assert site.detector.score_threshold is None
    assert site.ask("/api/else", JSON, post={})[0].status == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "192.168.1.5", "", "["])
def test_another_name_is_refused(host: str, site: Site) -> None:
    assert site.ask("/api/state", {"Host": host})[0].status == 403


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1", "[::1]:8080"])
def test_names_of_this_machine(host: str, site: Site) -> None:
    assert site.ask("/api/state", host=host)[0].status == 200


def test_elsewhere_a_token_is_wanted(open_site: Site) -> None:
    site = open_site
    for path in ("/", "/view.js", "/api/state", "/api/streams/0/picture", "/api/streams/0/snapshot.png"):
        assert site.ask(path)[0].status == 403
        assert site.ask(path, {"Cookie": f"glmd_view_{site.view.port}=wrong"})[0].status == 403
    assert site.ask("/api/threshold", JSON, post={"value": 0.5})[0].status == 403
    assert site.ask("/?token=wrong")[0].status == 403 and site.ask("/?token=%C3%A9")[0].status == 403
    answer, _ = site.ask("/?token=correct%20horse%20battery%3B%20staple")
    cookie = answer.getheader("Set-Cookie") or ""
    assert answer.status == 303 and answer.getheader("Location") == "/"
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    name_and_value = {"Cookie": f"other=1; {cookie.partition(';')[0]}"}
    assert site.ask("/api/state", name_and_value)[0].status == 200
    assert site.ask("/api/threshold", {**JSON, **name_and_value}, post={"value": 0.5})[0].status == 200
    assert site.ask("/api/state", name_and_value, host="evil.example")[0].status == 403
    for host in ("192.168.1.5:8080", socket.gethostname(), "localhost"):
        assert site.ask("/api/state", name_and_value, host=host)[0].status == 200


def test_tokens(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def url_and_token(address: Address) -> tuple[str, str | None]:
        with View([], detector(tiny_bundle), address) as view:
            return view.url, view.token

    monkeypatch.delenv("GLMD_VIEW_TOKEN", raising=False)
    (url, first), (_, second) = url_and_token(EVERYWHERE), url_and_token(EVERYWHERE)
    assert first and second and first != second and len(first) >= 16 and url.endswith(f"/?token={first}")
    monkeypatch.setenv("GLMD_VIEW_TOKEN", "of the environment")
    url, token = url_and_token(EVERYWHERE)
    assert token == "of the environment" and url.endswith("/")  # a secret that the user has is not printed
    assert url_and_token(HERE)[1] == "of the environment"  # who chooses one wants it asked for
    monkeypatch.setenv("GLMD_VIEW_TOKEN", "short")
    for address in (HERE, EVERYWHERE):
        with pytest.raises(UsageError, match="at least 16 characters; got 5"):
            url_and_token(address)
    monkeypatch.setenv("GLMD_VIEW_TOKEN", "")
    assert url_and_token(HERE)[1] is None


def test_a_proxy_before_this_machine_and_a_token(tiny_bundle: Path) -> None:
    """It says Host: localhost, as the page is on 127.0.0.1; the browser knows it by another name."""
    site = Site(tiny_bundle, HERE, TOKEN)
    try:
        assert site.ask("/api/state", host="localhost")[0].status == 403
        answer, _ = site.ask("/?token=correct%20horse%20battery%3B%20staple", host="localhost")
        cookie = {"Cookie": (answer.getheader("Set-Cookie") or "").partition(";")[0]}
        assert site.ask("/api/state", cookie, host="localhost")[0].status == 200
        post = {**JSON, **cookie, "Origin": "https://cameras.example"}
        for came_from, status in [("same-origin", 200), ("same-site", 403), ("cross-site", 403)]:
            headers = {**post, "Sec-Fetch-Site": came_from}
            assert site.ask("/api/threshold", headers, post={"value": 0.5}, host="localhost")[0].status == status
        assert site.ask("/api/threshold", post, post={"value": 0.5}, host="localhost")[0].status == 403
    finally:
        site.close()


def test_an_address_that_is_taken(site: Site) -> None:
    with pytest.raises(UsageError, match=r"free address; .*Choose another"):
        View([], site.detector, Address("127.0.0.1", site.view.port))


def test_a_browser_that_reads_nothing_holds_nobody_up(site: Site) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1280), np.uint8)  # no socket takes this JPEG at once
    result = Result("clip", site.results[0].frame, site.results[0].detections, noise, {})
    with socket.create_connection(("127.0.0.1", site.view.port)) as stuck:
        request = f"GET /api/streams/0/picture?after=0 HTTP/1.1\r\nHost: 127.0.0.1:{site.view.port}\r\n\r\n"
        stuck.sendall(request.encode() * 20)
        began = monotonic()
        for _ in range(1000):
            site.view.publish(result)
        assert site.ask("/api/streams/0/picture?after=0")[0].status == 200
        assert monotonic() - began < 8  # its connection is given up after 10


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 5000, b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 20_000, b"431"),
        (b"GET /" + b"y" * 20_000, b""),  # closed without an answer
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"501"),
        (b"POST /api/threshold HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),  # TLS
    ],
)
def test_a_request_that_is_none(request_: bytes, status: bytes, site: Site) -> None:
    answer = everything_said_to(site, request_)
    assert status in answer.partition(b"\r\n")[0] and b"Traceback" not in answer
    if answer:
        assert b"Content-Security-Policy: default-src 'none'" in answer and b"X-Content-Type-Options" in answer


def test_a_body_is_not_taken_for_the_next_request(site: Site) -> None:
    hidden = b"GET /view.css HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    answer = everything_said_to(site, head + hidden)
    assert answer.count(b"HTTP/1.1 ") == 1 and b"image/svg+xml" in answer


def everything_said_to(site: Site, request: bytes) -> bytes:
    """Up to where the server closes the connection."""
    with socket.create_connection(("127.0.0.1", site.view.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while block := connection.recv(1 << 16):
                answer += block
        except ConnectionResetError:  # of a request that was not read to its end
            pass
        return answer


@pytest.mark.parametrize(
    "beginning",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"POST /api/threshold HTTP/1.1\r\nHost: localhost\r\n"
     b"Content-Type: application/json\r\nContent-Length: 900\r\n\r\n"],
)
def test_a_request_that_drips_is_given_up(beginning: bytes, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is no silence; all of a request must have come in its time."""
    monkeypatch.setattr(WebHandler, "timeout", 0.5)
    assert dripped(HERE.host, site.view.port, beginning) == b""  # not refused, just ended


def test_a_request_in_pieces_is_answered(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.view.port), timeout=20) as connection:
        for byte in b"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n":
            connection.sendall(bytes([byte]))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_an_answer_has_a_time_of_its_own(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a request left of its own would be too short for a browser on a slow line."""
    limits: list[float | None] = []

    def send_json(self: WebHandler, value: Any) -> None:
        limits.append(self.connection.gettimeout())
        self.send(HTTPStatus.OK)

    monkeypatch.setattr(WebHandler, "send_json", send_json)
    assert site.ask("/api/state")[0].status == 200 and limits == [VANISHED]


def ends(connection: socket.socket) -> bool:
    """Whether the server closes it; the test's limit of time says that it does not."""
    connection.settimeout(20)
    return connection.recv(1) == b""


def test_a_crowd_of_strangers_keeps_nobody_out(open_site: Site) -> None:
    site = open_site
    cookie = {"Cookie": f"glmd_view_{site.view.port}={quote(TOKEN, safe='')}"}
    friend = HTTPConnection("127.0.0.1", site.view.port, timeout=20)
    friend.request("GET", "/api/state", headers=cookie)
    assert friend.getresponse().read()
    crowd = [socket.create_connection(("127.0.0.1", site.view.port)) for _ in range(CONNECTIONS + 5)]
    began = monotonic()
    assert all(ends(one) for one in crowd[:6])  # the oldest went for the newest, and not the friend
    for _ in range(3):
        assert site.ask("/api/state", cookie)[0].status == 200
    friend.request("GET", "/api/state", headers=cookie)
    assert friend.getresponse().status == 200
    assert monotonic() - began < 8  # who says nothing is given up after 10
    for one in (friend, *crowd):
        one.close()


def test_a_crowd_makes_room_for_others_first(open_site: Site) -> None:
    """One who has just connected, and has not shown the token yet, does not go for the many of another address."""
    port = open_site.view.port
    newcomer = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=("127.0.0.2", 0))
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS + 5)]
    assert all(ends(one) for one in crowd[:6])
    newcomer.sendall(f"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
    assert newcomer.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    for one in (newcomer, *crowd):
        one.close()


@pytest.mark.parametrize(
    ("host", "whose"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),  # IPv4 on a socket of IPv6
        ("::1", "::/64"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_who_counts_as_one(host: str, whose: str) -> None:
    assert neighbourhood(host) == whose


def test_more_than_can_be_served_are_turned_away(site: Site) -> None:
    friends = [HTTPConnection("127.0.0.1", site.view.port, timeout=20) for _ in range(CONNECTIONS)]
    for friend in friends:
        friend.request("GET", "/api/state")
        assert friend.getresponse().read()
    with socket.create_connection(("127.0.0.1", site.view.port)) as one_more:
        assert ends(one_more)
    for friend in friends:
        friend.close()
    until = monotonic() + 20
    while monotonic() < until:
        try:
            assert site.ask("/api/state")[0].status == 200
            return
        except OSError:
            continue
    pytest.fail("no answer after the others had left")


def test_close_does_not_wait_for_those_who_wait(tiny_bundle: Path) -> None:
    site = Site(tiny_bundle)
    with socket.create_connection(("127.0.0.1", site.view.port), timeout=20) as waiting:
        waiting.sendall(f"GET /api/streams/1/picture HTTP/1.1\r\nHost: 127.0.0.1:{site.view.port}\r\n\r\n".encode())
        began = monotonic()
        site.close()
        assert monotonic() - began < 5
