"""What is a file and what is not; those of a sealed directory: no links, no more is read than there should be."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from glmd_runtime.errors import BundleError

_BLOCK = 1 << 20  # bytes that are read at a time
_AGAIN = "Export or copy the bundle again."
# As far as the system has them: a link is refused, a pipe is not waited for, line ends stay.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def is_no_file(path: Path) -> bool:
    """Whether there is something else than a file: a folder, or a pipe or device, for which a reader could wait.

    False where there is nothing, a link that leads nowhere included: whoever opens it can say that it is lost.
    """
    return os.path.exists(path) and not os.path.isfile(path)  # unlike Path's, also for a name that can be none


def plain_files(folder: Path) -> dict[str, int]:
    """Name -> bytes of what is in a folder. Raises: BundleError for anything but files."""
    with os.scandir(folder) as entries:
        states = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    if other := sorted(name for name, state in states.items() if not stat.S_ISREG(state.st_mode)):
        raise BundleError(f"{folder} must hold plain files, no links, no folders; got {other}. Copy it: cp -rL OLD NEW")
    return {name: state.st_size for name, state in states.items()}


def blocks_of(path: Path, size: int) -> Iterator[bytes]:
    """The content of a plain file of this size, of which not a byte more is read. Raises: BundleError for another."""
    with _open(path) as file:
        came = os.fstat(file.fileno()).st_size
        if came != size:
            raise BundleError(f"{path} was altered: expected {size} bytes, got {came}. {_AGAIN}")
        while size > 0 and (block := file.read(min(size, _BLOCK))):
            size -= len(block)
            yield block


def sha256_of(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _open(path: Path) -> BinaryIO:
    """Open a file, and nothing that took its name since it was listed."""
    try:
        file = os.fdopen(os.open(path, _FLAGS), "rb")
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}. {_AGAIN}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BundleError(f"{path} must be a plain file. {_AGAIN}")
    return file
