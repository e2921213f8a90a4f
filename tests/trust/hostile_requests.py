"""Requests that no browser makes, to servers on this machine."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from time import monotonic

HOST = "127.0.0.1"
PATIENCE = 10.0  # seconds; a server that says nothing for longer hangs
DRIP = 0.05  # seconds between two bytes of a request that never comes to its end
SECRET_FILES = ("etc/passwd", "proc/self/environ", "view.py", "server.py", "page/view.js", "../page/index.html")

# What may be asked for, and is answered with 200 when the request is a sound one.
KNOWN = {
    "/", "/index.html", "/view.css", "/view.js", "/icon.svg", "/api/state", "/api/streams/0/picture",
    "/api/streams/0/snapshot.png", "/metrics",
}
REFUSALS = (100, 204, 303, 400, 403, 404, 414, 431, 501, 505)
_BEGINNINGS = (b'{"run": ', b'{"number": ', b"\x89PNG", b"# HELP glmd")  # state, picture, snapshot, numbers


def is_known(body: bytes, pages: Mapping[str, bytes]) -> bool:
    return body in pages.values() or body.startswith(_BEGINNINGS)


def path(rng: random.Random) -> str:
    """A path that must not be found, or one that is, spelt otherwise."""
    up = rng.choice(["../", "..\\", "%2e%2e/", "..%2f", "%252e%252e/", "....//", "..;/", "/", "./", "\u2025/"])
    ways: list[Callable[[], str]] = [
        lambda: "/" + up * rng.randint(1, 12) + rng.choice(SECRET_FILES),
        lambda: "//" + rng.choice(SECRET_FILES),
        lambda: f"/{rng.choice(SECRET_FILES)}\0.css",
        lambda: f"/api/streams/{up}{rng.choice(SECRET_FILES)}/snapshot.png",
        lambda: f"/api/streams/{rng.choice(['-1', '1e9', '0x0', '٣', '9' * 5000, 'NaN'])}/picture",
        lambda: f"/api/streams/0/picture?after={rng.choice(['-1', 'x', '9' * 5000, '%00', '²'])}",
        lambda: "/" + "a" * rng.choice([100, 5000, 70_000]),
        lambda: f"file:///{rng.choice(SECRET_FILES)}",
        lambda: f"http://{rng.choice(['evil.example', '[', '127.0.0.1:1'])}/{rng.choice(SECRET_FILES)}",
        lambda: "/?token=" + rng.choice(["", "x" * 3000, "%00", "%ff", "a&token=b"]),
        lambda: "/" + "".join(chr(rng.randrange(1, 256)) for _ in range(rng.randrange(200))),
        lambda: rng.choice(sorted(KNOWN)) + rng.choice(["/", "/..", "%00", ";x", "#", "/.", "~", ".bak", "\\"]),
        lambda: rng.choice(sorted(KNOWN)).upper(),
    ]
    return rng.choice(ways)()


def headers(rng: random.Random, port: int) -> list[str]:
    """Mostly with a Host that is right, so that more than it is tried."""
    own = f"Host: {HOST}:{port}"
    host = own if rng.random() < 0.8 else rng.choice(["", "Host:", "Host: evil.example", "Host: [", own + "\r\n" + own])
    ways: list[Callable[[], list[str]]] = [
        *[list] * 6,
        lambda: [f"X-{i}: {'y' * rng.randrange(50)}" for i in range(rng.choice([5, 99, 101, 3000]))],
        lambda: ["X: " + "y" * rng.choice([1000, 20_000, 70_000])],
        lambda: ["Content-Length: " + rng.choice(["-1", "5", "999999999999", "1e3", "٣", "0x10", "9" * 5000])],
        lambda: ["Content-Length: 3", "Content-Length: 30"],
        lambda: ["Transfer-Encoding: " + rng.choice(["chunked", "gzip, chunked", "\x0bchunked"])],
        lambda: ["Cookie: " + "; ".join(["glmd_view=x"] * 300)],
        lambda: ["Authorization: " + rng.choice(["Bearer", "Bearer x", "Basic eDp4", "bearer " + "z" * 9000])],
        lambda: ["Content-Type: application/json", "Origin: null", "Sec-Fetch-Site: cross-site"],
        lambda: ["Expect: 100-continue", "Upgrade: websocket", "Connection: upgrade"],
        lambda: ["Accept: " + rng.choice(["*", "application/openmetrics-text;version=" + "9" * 900, ",;q=x"])],
        lambda: [" folded", "no colon", ": no name", "a b: c", "nul\0: x", "X: \xff\xfe"],
    ]
    return [line for line in [host, *rng.choice(ways)()] if line]


def request(rng: random.Random, port: int) -> tuple[str, bytes]:
    """(what is asked for, the bytes of one request or of what is none)."""
    if rng.random() < 0.1:
        return "", rng.randbytes(rng.randrange(400)) + rng.choice([b"", b"\r\n\r\n"])
    target = path(rng) if rng.random() < 0.8 else rng.choice(sorted(KNOWN))
    others = ["POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "\0", ""]
    method = rng.choice(["GET"] * 20 + others)
    versions = ["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.1.1", "HTTP/" + "9" * 500, ""]
    version = rng.choice(["HTTP/1.1"] * 30 + versions)
    end = rng.choice(["\r\n"] * 12 + ["\n", "\r"])
    head = end.join([f"{method} {target} {version}", *headers(rng, port), "", ""])
    body = rng.choice([b"", b"", b"[" * 900, b'{"value": 0.5}', b"GET /metrics HTTP/1.1\r\n\r\n"])
    whole = head.encode("latin1", "replace") + body
    return target, whole[: rng.randrange(len(whole))] if rng.random() < 0.05 else whole


def answers(port: int, content: bytes) -> list[tuple[int, bytes]]:
    """(status, body) of each answer on a connection on which nothing more is sent; status 0: it had no head (HTTP/0.9).

    Raises: TimeoutError for a server that hangs.
    """
    said = b""
    with socket.create_connection((HOST, port), timeout=PATIENCE) as connection:
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while block := connection.recv(1 << 16):
                said += block
        except TimeoutError:
            raise
        except OSError:  # a request that was not read to its end
            pass
    return list(_split(said))


def dripped(host: str, port: int, beginning: bytes) -> bytes:
    """What comes of a request that goes on a byte at a time, for as long as it is let.

    Raises: TimeoutError for a server that lets it.
    """
    until = monotonic() + PATIENCE
    with socket.create_connection((host, port), timeout=DRIP) as connection:
        try:
            connection.sendall(beginning)
            while monotonic() < until:
                with suppress(TimeoutError):
                    return connection.recv(1 << 16)
                connection.sendall(b" ")
        except OSError:  # ended while a byte was on its way
            return b""
    raise TimeoutError(f"a request that drips was not given up in {PATIENCE:g} s")


def _split(said: bytes) -> Iterator[tuple[int, bytes]]:
    while found := re.match(rb"HTTP/1\.1 (\d{3}) .*?\r\n\r\n", said, re.DOTALL):
        length = re.search(rb"\r\nContent-Length: (\d+)\r\n", found[0])
        end = found.end() + (int(length[1]) if length else 0)
        yield int(found[1]), said[found.end() : end]
        said = said[end:]
    if said:
        yield 0, said
