"""Two processes at one path, and one who waits for another that is killed."""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from glmd_runtime.bundle import open_bundle
from glmd_runtime.commands.command import run_command
from glmd_runtime.video.sources import open_source
from tests import tiny
from tests.trust.faults_files import record
from tests.trust.parts import BrokenPromiseError, Figures, Form, Part, require
from tests.trust.processes import ended, fork, warm


def two_exporters(form: Form) -> Figures:
    rounds = 100 if form == "long" else 6
    with tempfile.TemporaryDirectory() as folder:
        return dict(warm("tests.trust.faults_two", "two_of_a_kind", folder, rounds))


def two_of_a_kind(folder: str, rounds: int) -> Figures:
    """Two processes write one bundle, with and without leave to replace it; two record to one path."""
    refused = 0
    for number in range(rounds):
        path = Path(folder) / f"{number}.glmd"
        codes = _both(lambda: tiny.bundle(path))  # noqa: B023 (called at once)
        require(sorted(codes) == [0, 2], f"one must write the bundle, the other must be refused; got {codes}")
        codes = _both(lambda: tiny.bundle(path, overwrite=True))  # noqa: B023
        require(codes == [0, 0], f"both may replace the bundle; got {codes}")
        open_bundle(path)
        refused += 1
        codes = _both(lambda: record(Path(folder) / f"r{number}"))  # noqa: B023
        require(codes == [0, 0], f"both must be recorded; got {codes}")
        for name in ("a.mkv", "a-2.mkv"):
            with open_source(Path(folder) / f"r{number}" / name) as source:
                require(sum(1 for _ in source) == 60, f"{name} must hold all that one of them recorded")
    require(not list(Path(folder).glob(".*")), "nothing may be left over")
    return {"rounds": rounds, "refused": refused}


def _both(work: Callable[[], object]) -> list[int]:
    """Exit codes of two commands that begin at the same time."""
    go, ready = os.pipe()

    def wait_and_work() -> None:
        os.close(ready)
        os.read(go, 1)  # until the last one who could write has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(run_command(argparse.ArgumentParser("it"), lambda _: work() and None, []))

    pids = [fork(wait_and_work) for _ in range(2)]
    os.close(ready)
    codes = [ended(pid) for pid in pids]
    os.close(go)
    return codes


def one_engine(form: Form) -> Figures:
    """With a stand-in for TensorRT: a builder is killed; of those who wait one builds, the other finds the engine."""
    rounds = 20 if form == "long" else 2
    with tempfile.TemporaryDirectory() as folder:
        return dict(warm("tests.trust.faults_two", "killed_builders", folder, rounds))


def killed_builders(folder: str, rounds: int) -> Figures:
    for number in range(rounds):
        place = Path(folder) / str(number)
        place.mkdir()
        first = fork(lambda: _build(place, "hang"))  # noqa: B023 (called at once)
        until = time.monotonic() + 60
        while not list(place.rglob("*.lock")):
            if time.monotonic() > until:
                raise BrokenPromiseError("the first builder never began")
            time.sleep(0.02)
        waiting = [fork(lambda: _build(place, "")) for _ in range(2)]  # noqa: B023
        time.sleep(random.uniform(0, 1.5))
        os.kill(first, signal.SIGKILL)
        ended(first)
        require([ended(pid) for pid in waiting] == [0, 0], "those who waited for a builder that was killed must go on")
        built = len((place / "builds.txt").read_text().splitlines())
        require(built <= 2, f"one of those who waited must build, the other find it; {built} built")
        left = [path.name for path in (place / "cache" / "glmdnet" / "engines").glob(".*")]
        require(not left, f"what the killed builder left must be removed by the next; found {left}")
    return {"killed builders": rounds}


def _build(place: Path, fault: str) -> None:
    from glmd_runtime.engines import open_engine
    from tests.fakes import models
    from tests.fakes.gpu import fake_gpu

    with tempfile.TemporaryDirectory() as scratch, fake_gpu(place) as gpu:
        gpu.fault(fault)
        bundle = models.half_bundle(Path(scratch) / "t.glmd")
        open_engine(bundle, models.HALF, "tensorrt").close()


PARTS = [
    Part("faults.two_exporters", "of two who write one path both are whole, or one is refused", two_exporters),
    Part("faults.killed_builder", "who waits for a builder of an engine that is killed goes on", one_engine),
]
