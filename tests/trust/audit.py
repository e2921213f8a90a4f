"""What Python itself reports while something hostile is read: files opened, programs started, addresses called."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FILES = ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.")
PROGRAMS = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "subprocess.", "ctypes.dlopen",
    "socket.connect", "webbrowser.open", "pty.spawn", "shutil.", "os.remove", "os.rename", "os.mkdir", "os.rmdir",
)
_Listener = Callable[[str, tuple[Any, ...]], None]
_listeners: list[_Listener] = []
_hooked: list[bool] = []  # a hook cannot be taken away again, so there is one


@contextmanager
def audited(events: tuple[str, ...], *, thread: str = "") -> Iterator[Counter[str]]:
    """Counts events, with their subjects, whose names begin so, in threads whose names do."""
    seen: Counter[str] = Counter()

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(events) and threading.current_thread().name.startswith(thread):
            seen[f"{event} {str(arguments[:1])[:100]}"] += 1

    if not _hooked:
        sys.addaudithook(lambda event, arguments: [one(event, arguments) for one in list(_listeners)] and None)
        _hooked.append(True)
    _listeners.append(listen)
    try:
        yield seen
    finally:
        _listeners.remove(listen)
