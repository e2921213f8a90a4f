"""Inputs for one target, one after the other, in a process of its own: `python -m tests.trust.fuzz_engine TARGET ...`.

Guided by coverage where atheris (libFuzzer) is installed, else mutations of the seeds alone; both from a fixed seed.
What a target does with an input ends well or in a GlmdError. Anything else ends this process, by an exit code, a signal
or the timer, and the input that did it is in the `Diary`, whose file outlasts the process.
"""

from __future__ import annotations

import argparse
import faulthandler
import mmap
import os
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from tests.trust.fuzz_mutations import octets

FOUND = 77  # exit code: an error that is no GlmdError
UNFIT = 78  # exit code: an error of a mutation, on which libFuzzer would wait for ever
SECONDS, WAITING = 20, 600  # of computing, and in all, that one input may take
MEMORY = 3 << 30  # bytes of address space beyond what the imports and the seeds took
LARGEST = 1 << 18  # bytes of an input
OWN = {"work", "corpus", "diary", "log"}  # in the folder of a process; a target has `work`, and runs in it
SEED = 20260101


class Diary:
    """How many inputs were executed, how many of them refused, and which is being executed; in a file."""

    _HEAD = struct.Struct("<QQQ")

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(self._HEAD.size + LARGEST))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._executions = self._refused = 0

    def begin(self, data: bytes) -> None:
        self._map[: self._HEAD.size + len(data)] = self._head(len(data)) + data

    def end(self, refused: bool) -> None:
        self._executions += 1
        self._refused += refused
        self._map[: self._HEAD.size] = self._head(0)

    def _head(self, length: int) -> bytes:
        return self._HEAD.pack(self._executions, self._refused, length)

    @classmethod
    def read(cls, path: Path) -> tuple[int, int, bytes]:
        """(executions, refused, the input that did not end)"""
        content = path.read_bytes()
        executions, refused, length = cls._HEAD.unpack_from(content)
        return executions, refused, content[cls._HEAD.size :][:length]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("target")
    options.add_argument("folder", type=lambda text: Path(text).resolve(), help="an empty one; the diary is left there")
    options.add_argument("--runs", type=int, default=0)
    options.add_argument("--input", type=Path, help="a file to run the target on, once")
    given = options.parse_args()
    data = given.input.read_bytes() if given.input else None
    atheris = import_module("atheris") if find_spec("atheris") and data is None else None
    work = given.folder / "work"
    work.mkdir()
    os.chdir(work)
    with atheris.instrument_imports(["glmd_runtime", "glmd_train", "glmd_export"]) if atheris else nullcontext():
        from tests.trust.fuzz_targets import TARGETS

        target = TARGETS[given.target](work)  # a target imports what it is about
    for seed in target.seeds:
        target.run(seed)  # what refuses valid inputs would make all of this look well
    execute = guarded(target.run, Diary(given.folder / "diary"))
    bound_memory()
    if data is not None:
        execute(data)
    elif atheris:
        guided(atheris, execute, target, given.folder, given.runs)
    else:
        unguided(execute, target, given.runs)


def guarded(run: Callable[[bytes], object], diary: Diary) -> Callable[[bytes], None]:
    """`run`, its inputs in the diary, its time bounded; the process ends for an error that is no GlmdError."""
    from glmd_runtime.errors import GlmdError

    faulthandler.register(signal.SIGPROF, chain=True)  # says where it was, and then dies of it

    def execute(data: bytes) -> None:
        refused = False
        diary.begin(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            run(data)
        except GlmdError:
            refused = True
        except BaseException:
            end(FOUND)
        signal.setitimer(signal.ITIMER_PROF, 0)
        diary.end(refused)

    return execute


def end(code: int) -> NoReturn:
    """Without unwinding: libFuzzer's C++ has the frames below."""
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def guided(atheris: Any, execute: Callable[[bytes], None], target: Any, folder: Path, runs: int) -> None:
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.inputs):
        (corpus / f"seed{number:03d}").write_bytes(seed)

    def mutated(data: bytes, largest: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.2:
            return atheris.Mutate(data, largest)
        # Most of what is new is refused, and so is what comes of it; seeds lead to what lies behind the first checks.
        try:
            return target.mutate(rng.choice(target.inputs) if rng.random() < 0.4 else data, rng)[:largest]
        except BaseException:
            end(UNFIT)

    arguments = [f"-runs={runs}", f"-seed={SEED}", f"-max_len={LARGEST}", "-len_control=0", "-mutate_depth=2"]
    arguments += [f"-timeout={WAITING}", "-rss_limit_mb=0", "-malloc_limit_mb=0", f"-artifact_prefix={folder}/"]
    arguments.append(f"-report_slow_units={WAITING}")  # their files would be taken for the target's
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], execute, custom_mutator=mutated)
    atheris.Fuzz()


def unguided(execute: Callable[[bytes], None], target: Any, runs: int) -> None:
    rng = Random(SEED)
    for seed in target.inputs[:runs]:
        execute(seed)
    for _ in range(runs - len(target.inputs)):
        data = rng.choice(target.inputs)
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = (target.mutate if rng.random() < 0.7 else octets)(data, rng)
        execute(data[:LARGEST])


if __name__ == "__main__":
    main()
