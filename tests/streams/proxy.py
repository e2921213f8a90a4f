"""A TCP proxy on loopback that spoils what it carries: stalls, cuts, refuses, injects garbage."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Carries connections to `port`, in `Proxy.port`; its attributes may be changed at any time.

    stalled  nothing is carried, and connections stay open
    refuses  new connections are closed at once
    garbage  the share of the server's chunks in which bytes are flipped
    """

    def __init__(self, port: int) -> None:
        self.stalled, self.refuses, self.garbage = False, False, 0.0
        self.accepted = 0
        self._target = port
        self._random = random.Random(0)
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close all that is open."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self.refuses = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                if self.refuses:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(*ends, ends[0] is server), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, from_server: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(4096):
                while self.stalled:
                    threading.Event().wait(0.02)
                spoil = from_server and self._random.random() < self.garbage
                sink.sendall(self._spoiled(chunk) if spoil else chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _spoiled(self, chunk: bytes) -> bytes:
        content = bytearray(chunk)
        for place in self._random.sample(range(len(content)), k=max(1, len(content) // 40)):
            content[place] = self._random.randrange(256)
        return bytes(content)


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
