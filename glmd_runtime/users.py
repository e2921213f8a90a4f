"""What several share is closed by the last of them."""

from __future__ import annotations

from threading import Lock


class Users:
    """How many share a backend: detectors, and calls that it is at."""

    def __init__(self) -> None:
        self._count, self._lock = 1, Lock()

    def join(self) -> bool:
        """False when the last one has left before."""
        with self._lock:
            self._count += self._count > 0
            return self._count > 0

    def leave(self) -> bool:
        """Whether this was the last one."""
        with self._lock:
            self._count -= 1
            return self._count == 0
