"""What every command does around its work: options, one line for an error, an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text

from glmd_runtime import __version__
from glmd_runtime.commands.completion import add_completion
from glmd_runtime.errors import GlmdError, UnsupportedError
from glmd_runtime.files.scratch import full_disk, is_full
from glmd_runtime.install import install_command

# Each library has its own error for it, and they share no base.
_OUT_OF_MEMORY = re.compile(r"MemoryError|out ?of ?memory|insufficient memory|can't allocate|bad alloc", re.IGNORECASE)


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
    *,
    extra: str = "cpu",
    stopped: str = "unfinished outputs were discarded",
) -> int:
    """Run a command; an error becomes one line on stderr.

    Args:
        parser: its options; its `prog` begins every line.
        command: the work, given the parsed options.
        arguments: None for those of this process.
        extra: of the SDK's extras, the one that brings the libraries that the command needs.
        stopped: what to say when the user interrupts.
    Returns: the exit code (glmd_runtime.errors has the table); 130 after an interrupt.
    """
    parser.add_argument("--version", action="version", version=f"{parser.prog} {__version__}")
    add_completion(parser)
    try:
        command(parser.parse_args(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; {stopped}", file=sys.stderr)
        return 130
    except (GlmdError, OSError) as error:
        return _fail(parser.prog, _remedied(error), getattr(error, "exit_code", GlmdError.exit_code))
    except ImportError as error:
        return _fail(parser.prog, _import_remedy(error, extra), UnsupportedError.exit_code)
    except Exception as error:
        if not _OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise  # our own bug
        said = f"memory ran out ({one_line(error) or type(error).__name__})"
        remedy = "End other programs, or ask for less: a smaller batch, fewer workers or threads, smaller pictures."
        return _fail(parser.prog, f"{said}. {remedy}", GlmdError.exit_code)
    return 0


@contextmanager
def imports_of(prog: str) -> Iterator[None]:
    """For a command's own imports: where numpy or OpenCV do not work, one line on stderr, and the end."""
    try:
        yield
    except ImportError as error:
        sys.exit(_fail(prog, _import_remedy(error, "cpu"), UnsupportedError.exit_code))


def _import_remedy(error: ImportError, extra: str) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed. Run: {install_command(extra)}"
    return f"A library is installed but cannot be imported: {one_line(error)}. Run: glmd-doctor"


def one_line(error: Exception) -> str:
    """The message on one line; of an error from a loader process, its last line, without that process's traceback."""
    text = str(error)
    if text.startswith("Caught "):  # the form of torch.utils.data
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def _remedied(error: Exception) -> str:
    if isinstance(error, OSError) and is_full(error):  # of a stream Python does not say which
        return str(full_disk(error.filename or "An output", error))
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: {error.strerror}. Ask its owner for the right to it, or choose another path."
    return one_line(error)


def _fail(prog: str, text: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # a full disk, or nobody reads it: Python's own end would fail on it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"{prog}: error: {text}", file=sys.stderr)
    return code


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Say on stderr, where somebody can see it, why nothing happens: PyTorch takes a minute on a busy machine."""
    with Console(stderr=True).status("loading the libraries"):
        yield


class _Loading(logging.Handler):
    """What building an engine has to say: the last of it beside a spinner, warnings on lines of their own."""

    def __init__(self, status: Status) -> None:
        super().__init__(logging.INFO)
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        text = Text(record.getMessage())
        if record.levelno >= logging.WARNING:
            self._status.console.print(text)
        else:
            self._status.update(text)


@contextmanager
def loading() -> Iterator[None]:
    """Show on stderr what the runtime logs in the meantime."""
    logger = logging.getLogger("glmd_runtime")
    with Console(stderr=True).status("loading the engine") as status:
        handler, level = _Loading(status), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
