"""Folders in which a file or a bundle is made before it gets its name; and the error of a file that cannot be written.

    .model.glmd.k3v9x0ab/       beside model.glmd, which is being made
    .model.glmd.k3v9x0ab/held   locked for as long as its maker lives

Who is killed cannot remove its folder. The next process that makes something beside it does, as nobody holds it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from glmd_runtime.errors import OutputError, UsageError

_HELD, _OLD = "held", "old"
_SCRATCH = re.compile(r"\..+\.[a-z0-9_]{8}")  # as tempfile names them
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`, whose own folder exists, to make it in; removed at the end of the block."""
    _remove_abandoned(path.parent.absolute())
    folder, held = _new_folder(path)
    try:
        yield folder
    finally:
        _remove(folder, held)


def _new_folder(path: Path) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        held = FileLock(folder / _HELD, thread_local=False)
        try:
            held.acquire()
        except (FileNotFoundError, FileExistsError):
            continue  # another process took it for abandoned, before it was held
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if (folder / _HELD).exists():
            return folder, held
        held.release()


def _remove(folder: Path, held: FileLock) -> None:
    """What is in it goes first, so that who is killed meanwhile leaves what the next finds abandoned."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _HELD:
                entry.unlink(missing_ok=True)
    held.release()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A place for a file, in a folder beside `path`; renamed to it when the block ends well, removed when it does not.

    Raises: UsageError when there can be no file, OutputError when the disk is full.
    """
    path = Path(path)
    with writing(path), ExitStack() as stack:
        try:
            if path.is_dir():
                raise UsageError(f"An output must be a file; {path} is a directory. Choose another path.")
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = stack.enter_context(scratch_folder(path)) / path.name
        except OSError as error:
            if is_full(error):
                raise
            raise UsageError(
                f"An output's folder must exist, or be possible to make, and be writable; {path}: {error.strerror}. "
                "Choose another path."
            ) from error
        yield partial
        partial.replace(path)


def check_place(path: Path) -> None:
    """Whether there can be an output at `path`, worth asking before long work. Raises: UsageError."""
    # lexists: a broken link is in the way too, and what may not be looked at is no place.
    folder = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), path)
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        why = "cannot be written to" if os.path.isdir(folder) else "is no folder"
        raise UsageError(f"An output needs a folder that can be written to; {folder} {why}. Choose another path.")


@contextmanager
def work_folder(name: str) -> Iterator[Path]:
    """A folder for what is on the way, where the system has room for that. Raises: OutputError when there is none."""
    place = Path(tempfile.gettempdir()) / name
    with writing(place), scratch_folder(place) as folder:
        yield folder


@cache  # once a process: to make many files in a folder must not take longer with each of them
def _remove_abandoned(where: Path) -> None:
    with suppress(OSError):  # what is not ours to read or remove stays
        for folder in where.iterdir():
            if _SCRATCH.fullmatch(folder.name) and folder.is_dir():
                with suppress(Timeout, OSError):
                    _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    """Raises: OSError for a folder that is not empty and was never held: it is none of ours; Timeout."""
    if not (folder / _HELD).is_file():
        folder.rmdir()
        return
    held = FileLock(folder / _HELD, timeout=0)
    held.acquire()
    _give_back(folder)
    _remove(folder, held)


def _give_back(folder: Path) -> None:
    """What `put_in_place` took away, where it was killed before it put anything in its place."""
    path = folder.with_name(folder.name[1:].rpartition(".")[0])
    if (folder / _OLD).exists() and not path.exists():
        (folder / _OLD).rename(path)


def put_in_place(new: Path, path: Path, *, overwrite: bool) -> None:
    """Give a folder, made in a scratch folder, the name `path`; another one there goes into the scratch folder.

    Whoever looks at `path` finds the one or the other, wholly. Where the system cannot exchange two names there is none
    for a moment, and who is killed in that moment leaves it to the next that makes something here to give it back.
    Raises: OSError when there is something and `overwrite` is False.
    """
    try:
        new.rename(path)  # the system refuses it where there is a folder that is not empty
    except OSError:
        if not (overwrite and path.is_dir()):
            raise
        if not _exchanged(new, path):
            _replace(new, path)


def _replace(new: Path, path: Path) -> None:
    path.rename(old := new.with_name(_OLD))
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        renameat2 = ctypes.CDLL(None).renameat2  # of Linux, which Python does not have
    except (AttributeError, OSError, TypeError):
        return False
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Raises: OutputError for what a full disk says in the meantime; other errors pass."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise full_disk(path, error) from error


def full_disk(path: str | Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} could not be written to its end: {error.strerror}. Make room on its disk, or choose another path."
    )


def is_full(error: OSError) -> bool:
    """Whether the disk has no room, or fails, rather than that the place is wrong."""
    return error.errno in _NO_ROOM
