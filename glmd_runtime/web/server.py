"""A small web server for one machine and those who have its token: who may ask, and what browsers may do.

It serves from threads of its own. Where a token is wanted, it comes once in the URL, then as a cookie, or from programs
as a bearer's. Sites of others cannot read along by pointing their name here (DNS rebinding), nor post. Nothing that is
asked for is looked up among files.
"""

from __future__ import annotations

import hmac
import io
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from glmd_runtime.errors import UsageError
from glmd_runtime.files.documents import parse_json
from glmd_runtime.web.listen import Address, is_ip, is_local, neighbourhood

KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
TOKEN_LENGTH = 16  # characters, at least
VANISHED = 10.0  # seconds that a request may take to come, since the last answer, and its answer to be taken
CONNECTIONS = 64  # at once; for one more, one goes that never asked for what it may have
LONGEST_HEAD = 16 << 10  # bytes of a request's first line and headers
LONGEST_BODY = 1000  # bytes of a POST
LONGEST_NUMBER = 18  # digits
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class RefusedError(Exception):
    """A request that gets a status and a sentence."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def whole(text: str) -> int | None:
    """A whole number as addresses and headers have it; None for what is none, and for one longer than any is."""
    return int(text) if text.isdecimal() and len(text) <= LONGEST_NUMBER else None


def given_token(token: str | None, variable: str) -> str | None:
    """`token`, or what the environment says; None where neither is there. Raises: UsageError for a short one."""
    token = token or os.environ.get(variable) or None
    if token is not None and len(token) < TOKEN_LENGTH:
        raise UsageError(f"A token must have at least {TOKEN_LENGTH} characters; got {len(token)}.")
    return token


class WebServer(ThreadingHTTPServer):
    """Serves until `close`.

    Args:
        address: where to listen.
        handler: a subclass of WebHandler.
        name: what is served, for errors.
        token: that is wanted of everyone; None for none.
    Raises: UsageError for an address that cannot be had.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, address: Address, handler: type[WebHandler], name: str, token: str | None) -> None:
        self.address, self.token, self.closed = address, token, False
        self._strangers: dict[socket.socket, str] = {}  # oldest first -> whose
        self._known: set[socket.socket] = set()  # they showed that they may ask
        self._counting = Lock()
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            super().__init__((address.host, address.port), handler)
        except OSError as error:
            raise UsageError(f"{name} needs a free address; {address}: {error.strerror}. Choose another.") from error
        self.url = f"http://{Address(_reachable(address.host), self.server_port)}/"
        self._thread = Thread(target=self.serve_forever, args=(0.1,), name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.closed = True
        self.shutdown()
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._admit(request, neighbourhood(client_address[0])):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _admit(self, connection: socket.socket, peer: str) -> bool:
        """Whether there is room; strangers must not be able to shut the page by holding connections."""
        with self._counting:
            if len(self._strangers) + len(self._known) >= CONNECTIONS:
                if not self._strangers:
                    return False
                self._send_one_away()
            self._strangers[connection] = peer
            return True

    def _send_one_away(self) -> None:
        """The oldest of the peer that has most: a crowd makes room for others, and among its own for the newest."""
        crowds = Counter(self._strangers.values())
        most = max(crowds.values())
        stranger = next(one for one, peer in self._strangers.items() if crowds[peer] == most)
        del self._strangers[stranger]
        with suppress(OSError):  # it may have gone by itself
            stranger.shutdown(socket.SHUT_RDWR)  # whereupon its thread ends

    def know(self, connection: socket.socket) -> None:
        """It may ask, and is not sent away for another."""
        with self._counting:
            if self._strangers.pop(connection, None) is not None:
                self._known.add(connection)

    def shutdown_request(self, request: Any) -> None:
        with self._counting:
            self._strangers.pop(request, None)
            self._known.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error of ours."""


class _Inlet(io.RawIOBase):
    """What comes from a connection, until its time is over: dripping gains none over saying nothing."""

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._connection, self._patience = connection, patience
        self.begin()

    def begin(self) -> None:
        """Of a request."""
        self._until = monotonic() + self._patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises: TimeoutError."""
        if (left := self._until - monotonic()) <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._patience)  # of the answer


class _Lines(io.BufferedReader):
    """What comes from a connection: lines up to the end of a request's head, which has an end; then a body."""

    raw: _Inlet
    left = LONGEST_HEAD

    def begin(self) -> None:
        """Of a request."""
        self.left = LONGEST_HEAD
        self.raw.begin()

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise HTTPException("a head without end")  # answered with 431, but for the first line's
        return line


class WebHandler(BaseHTTPRequestHandler):
    """One connection; subclasses answer `get` and `post`, with `send` or by raising RefusedError."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # of what is no request: an answer without headers could be taken for a page
    server_version, sys_version = "glmd", ""
    timeout = VANISHED
    server: WebServer
    rfile: _Lines

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = _Lines(_Inlet(self.connection, self.timeout))

    def handle_one_request(self) -> None:
        self.rfile.begin()
        try:
            super().handle_one_request()
        except HTTPException:
            self.close_connection = True

    def get(self, path: str, query: dict[str, str]) -> None:
        """Answer a GET."""
        raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def post(self, path: str, value: Any) -> None:
        """Answer a POST of a JSON value."""
        raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def send(self, status: HTTPStatus, kind: str = "", body: bytes = b"", more: dict[str, str] | None = None) -> None:
        """One whole answer; `more` headers."""
        self.send_response(status)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        headers = {**({"Content-Type": kind} if kind else {}), **(more or {}), **SECURITY}
        for name, content in headers.items():
            self.send_header(name, content)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses by itself: with the headers of every answer, and the last of its connection."""
        self.close_connection = True
        status = HTTPStatus(code)
        self.send(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode())

    def send_page(self, pages: Mapping[str, bytes], path: str) -> None:
        """One of those that there are, by name."""
        name = path.removeprefix("/") or "index.html"
        if name not in pages:
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
        self.send(HTTPStatus.OK, KINDS[os.path.splitext(name)[1]], pages[name])

    def send_json(self, value: Any) -> None:
        self.send(HTTPStatus.OK, "application/json", json.dumps(value).encode())

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests come many times a second."""

    def _answer(self, act: Callable[[], None]) -> None:
        if self.server.closed:  # browsers keep connections, and would go on as if nothing had happened
            self.close_connection = True
            return
        try:
            self._check_framing()
            self._check_host()
            act()
        except RefusedError as refused:
            self.close_connection = True  # a body that was not read must not be taken for the next request
            self.send(refused.status, "text/plain; charset=utf-8", f"{refused}\n".encode())

    def _check_framing(self) -> None:
        """Where a request ends must be said once, or a proxy and this server may take it for different ones."""
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or len(lengths) > 1:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Expected a body of one Content-Length.")
        if lengths and self.command == "GET":
            self.close_connection = True  # its body is not read, and must not be taken for the next request

    def _get(self) -> None:
        try:
            url = urlsplit(self.path)
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Expected a path.") from error
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.server.token and "token" in query:
            self._log_in(query["token"])
            return
        self._check_token()
        self.get(url.path, query)

    def _post(self) -> None:
        self._check_token()
        # A form of another site can neither say this type nor hide where it comes from.
        if self.headers.get("Content-Type") != "application/json" or self._is_foreign():
            raise RefusedError(HTTPStatus.FORBIDDEN, "Only the page itself may change something.")
        length = whole(self.headers.get("Content-Length", ""))
        if length is None or not 0 < length <= LONGEST_BODY:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"Expected a body of 1 to {LONGEST_BODY} bytes.")
        try:
            value = parse_json(self.rfile.read(length))
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Expected JSON.") from error
        self.post(self.path, value)

    def _is_foreign(self) -> bool:
        """Whether the request comes from another site's page, by the word of the browser."""
        origin = self.headers.get("Origin", "")
        ours = origin.partition("://")[2] == self.headers.get("Host") if origin else True
        # Behind a proxy with TLS the Host may be another than the browser's, who then says this.
        return not ours and self.headers.get("Sec-Fetch-Site") != "same-origin"

    def _check_host(self) -> None:
        """The name that the browser knows this server by must be one that no one else can have given it."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1:  # which of two counts, a proxy may see otherwise
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Expected one Host.")
        host = _host_of(hosts[0])
        address = self.server.address
        if not (is_local(host) if address.local else is_ip(host) or host in _names(address)):
            raise RefusedError(HTTPStatus.FORBIDDEN, "Nothing is served under that name. Use the address.")

    def _log_in(self, token: str) -> None:
        """The token out of the address and into a cookie, where no history and no screenshot shows it."""
        self._compare(token, self.server.token or "")
        # Strict would not be sent on when the address was clicked in a mail or a chat. No GET changes anything.
        cookie = f"{self._cookie}={quote(token, safe='')}; HttpOnly; SameSite=Lax; Path=/"
        self.send(HTTPStatus.SEE_OTHER, more={"Location": "/", "Set-Cookie": cookie})

    def _check_token(self) -> None:
        scheme, _, bearer = self.headers.get("Authorization", "").partition(" ")
        if self.server.token is not None and scheme.lower() == "bearer":
            self._compare(bearer.strip(), self.server.token)
        elif self.server.token is not None:
            pairs = (pair.strip().partition("=") for pair in self.headers.get("Cookie", "").split(";"))
            came = next((value for name, _, value in pairs if name == self._cookie), "")
            self._compare(came, quote(self.server.token, safe=""))
        self.server.know(self.connection)

    def _compare(self, came: str, wanted: str) -> None:
        if not hmac.compare_digest(came.encode(), wanted.encode()):
            raise RefusedError(
                HTTPStatus.FORBIDDEN, "This page needs its token: open it once as /?token=... with the right one."
            )

    @property
    def _cookie(self) -> str:
        return f"glmd_view_{self.server.server_port}"  # browsers keep one jar for all ports of a host


def _host_of(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _names(address: Address) -> set[str]:
    return {"localhost", address.host.lower(), socket.gethostname().lower()}


def _reachable(host: str) -> str:
    """A name for the URL: one cannot browse to 0.0.0.0 from elsewhere."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host
