"""Full disks and lost rights: one clear error, nothing half written, and what was there before as it was."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import resource
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from glmd_runtime.bundle import PROTOTYPES, VERIFY, write_bundle
from glmd_runtime.commands.command import run_command
from glmd_runtime.files.scratch import whole_file
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.recording import Recorder
from glmd_runtime.video.sources import open_source
from tests import tiny
from tests.trust.parts import Figures, Form, Part, require
from tests.trust.processes import ROOT, ended, fork, import_all, warm

DISK = 240 << 20  # bytes of the disk that is made full
NOBODY = 65534
Work = Callable[[Path], object]  # writes or reads something in a folder
FRAMES = 40
CLIP = f"sim://ground?seed=5&frames={FRAMES}&size=80x64"


IMPORTED = (
    "av", "onnxruntime", "openvino", "glmd_runtime.commands.run", "glmd_runtime.video.simulator", "glmd_train.loop",
    "tests.runtime.test_enroll", "tests.fakes.models", "tests.export.conftest",
)


@dataclass(frozen=True)
class Writer:
    """Something that writes. `grows`: endings of files that are kept as far as they came, and nothing else is."""

    name: str
    work: Work
    grows: tuple[str, ...] = ()


# What writes


def _bundle(folder: Path) -> None:
    files = {"model.onnx": tiny.model(), VERIFY: b"{}", PROTOTYPES: os.urandom(3 << 20)}
    write_bundle(folder / "a.glmd", tiny.manifest(), files, overwrite=True)


def _report(folder: Path) -> None:
    with whole_file(folder / "report.json") as partial:
        partial.write_bytes(os.urandom(200_000))


def record(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with Recorder(folder / "a.mkv", 30.0) as recorder:
        for index in range(60):
            recorder.write(Frame(rng.integers(0, 65536, (48, 64), dtype=np.uint16), index, index / 30))


def _run(folder: Path) -> None:
    """glmd-run with every output, of a clip."""
    from glmd_runtime.commands.run import run, run_parser

    bundle = folder.parent / "tiny.glmd"
    outputs = {"save": "a.mp4", "json": "a.jsonl", "picture": "a.png", "record": "a.mkv"}
    words = [word for name, file in outputs.items() for word in (f"--{name}", str(folder / file))]
    run(run_parser().parse_args(["--engine", str(bundle), "--source", CLIP, "--threads", "1", *words]))


def _enrol(folder: Path) -> None:
    from glmd_runtime import Detector
    from tests.runtime.test_enroll import Eye, spec, taught  # the smallest network that has features

    with tempfile.TemporaryDirectory() as scratch:
        manifest = replace(tiny.manifest(), graph=spec())
        bundle = write_bundle(Path(scratch) / "eye.glmd", manifest, {"model.onnx": tiny.model()})
        taught(Detector(bundle.path, backend=Eye())).save(folder / "taught.glmd", overwrite=True)


def _engine(folder: Path) -> None:
    from glmd_runtime.engines import open_engine
    from tests.fakes import models
    from tests.fakes.gpu import fake_gpu

    with tempfile.TemporaryDirectory() as scratch, fake_gpu(folder):
        bundle = models.half_bundle(Path(scratch) / "t.glmd")
        open_engine(bundle, models.HALF, "tensorrt").close()


def _checkpoint(folder: Path) -> None:
    from glmd_train.checkpoint import save_checkpoint
    from tests.export.conftest import draw_checkpoint

    save_checkpoint(folder / "a.safetensors", draw_checkpoint())


def _training(folder: Path) -> None:
    from glmd_train.config import load_config
    from glmd_train.loop import fit
    from tests.train.squares import draw_squares, write_config

    with tempfile.TemporaryDirectory() as scratch:
        config = write_config(draw_squares(Path(scratch)))
        fit(load_config(config, [f"output={folder / 'run'}", "iterations=2", "val=[]", "checkpoint_minutes=1e-9"]))


LIGHT = (
    Writer("bundle", _bundle),
    Writer("report", _report),
    Writer("recording", record, (".mkv", ".mkv.jsonl")),
    Writer("glmd-run", _run, (".mkv", ".mkv.jsonl")),
    Writer("enrolment", _enrol),
    Writer("engine", _engine, (".log", ".lock", ".txt", ".timings", ".onnxruntime")),
)
HEAVY = (
    Writer("checkpoint", _checkpoint),
    Writer("training", _training, ("log.jsonl", "config.json", "tensorboard")),
)


# Full disks


def disk_full(form: Form) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        return dict(warm("tests.trust.faults_files", "full_disks", folder, 12 if form == "long" else 1, form == "long"))


def full_disks(folder: str, times: int, heavy: bool) -> Figures:
    """Every writer on a disk that has room for a part of what it writes, `times` parts."""
    import_all(*IMPORTED)
    place, mounted = _disk(Path(folder))
    try:
        tiny.bundle(place / "tiny.glmd")
        figures = {w.name: _fill(w, place, times, mounted) for w in (*LIGHT, *(HEAVY if heavy else HEAVY[:1]))}
    finally:
        if mounted:
            subprocess.run(["umount", place], check=True)
    errors = sum(figures.values())
    disk = "tmpfs" if mounted else "limit of file sizes"
    return {"errors, each clear": errors, "writers": len(figures), "disk": disk}


def _disk(folder: Path) -> tuple[Path, bool]:
    """A disk of its own where the system gives one, else a folder; the limit is then that of files' sizes."""
    place = folder / "disk"
    place.mkdir()
    asked = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    return place, subprocess.run(asked, capture_output=True).returncode == 0


def _fill(writer: Writer, place: Path, times: int, mounted: bool) -> int:
    """Returns: how often it failed, as it should."""
    folder = place / writer.name
    folder.mkdir()
    free = _free(place)
    code, said = as_command(lambda: writer.work(folder))
    require(code == 0, f"{writer.name} with room failed: {said}")
    need = free - _free(place) if mounted else max(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    errors = 0
    for part in np.linspace(0.02, 0.98, times) if times > 1 else [0.5]:
        _forget(folder, writer)
        before = _tree(folder)
        with _little_room(place, int(part * need), mounted) as limit:
            code, said = as_command(lambda: writer.work(folder), limit)
        require(code in (0, 1), f"{writer.name}, {part:.0%} of the room: {code}, {said}")
        if code == 1:
            errors += 1
            _check(writer, folder, before, said)
    return errors


def _check(writer: Writer, folder: Path, before: dict[str, str], said: str) -> None:
    lines = [line for line in said.splitlines() if "error: " in line]
    require(len(lines) == 1 and "Traceback" not in said, f"{writer.name}: one line must say it; got {said}")
    require("o space left" in said or "too large" in said, f"{writer.name}: it must say what is wrong; got {lines[0]}")
    after = _tree(folder)
    changed = {n for n in {*before, *after} if before.get(n) != after.get(n)}
    kept = {name for name in changed if any(end in name for end in writer.grows)}
    torn = [name for name in sorted(changed - kept) if not _is_whole(folder / name)]
    require(not torn, f"{writer.name}: it must leave everything as it was, or write it whole; changed {torn}")
    for name in kept:
        if name.endswith(".mkv") and _lines(folder / f"{name}.jsonl") > 20:
            with open_source(folder / name) as source:
                require(sum(1 for _ in source) > 0, f"{name} must be readable as far as it was written")


def _is_whole(path: Path) -> bool:
    """The output that comes last may have no room: those before are there."""
    if path.suffix == ".jsonl":
        return _lines(path) == FRAMES
    if path.suffix == ".safetensors":  # a training's model is written before its state
        return bool(load_file(path))
    if path.suffix == ".mp4":
        with open_source(path) as source:
            return sum(1 for _ in source) == FRAMES
    return False


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def _forget(folder: Path, writer: Writer) -> None:
    """What a writer would take for done is removed: a recording's name, an engine, a run."""
    subprocess.run(["rm", "-rf", *map(str, folder.iterdir())] if writer.grows else ["true"], check=True)


@contextmanager
def _little_room(place: Path, room: int, mounted: bool) -> Iterator[int | None]:
    """Until the end of the block; yields the limit of files' sizes where there is no disk of its own."""
    if not mounted:
        yield room
        return
    ballast = place / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, _free(place) - room))
    yield None
    ballast.unlink()


def _free(place: Path) -> int:
    state = os.statvfs(place)
    return state.f_bavail * state.f_frsize


def _tree(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def as_command(work: Callable[[], object], limit: int | None = None, *, rights: bool = True) -> tuple[int, str]:
    """Exit code and stderr of a command that does `work`."""

    def command() -> None:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if not rights:
            _drop_rights()
        os._exit(run_command(argparse.ArgumentParser("it"), lambda _: work() and None, []))

    with tempfile.TemporaryFile() as file:
        code = ended(fork(command))
        file.seek(0)
        return code, file.read().decode(errors="replace")


def _drop_rights() -> None:
    """Root with no capability has the rights of whoever owns root's files, and none to those of others."""
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)  # _LINUX_CAPABILITY_VERSION_3
    require(ctypes.CDLL(None).capset(header, none) == 0, "capabilities could not be dropped")


def stdout_full(form: Form) -> Figures:
    """Standard output on /dev/full, of every command that has one."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(tiny.bundle(Path(folder) / "tiny.glmd").path)
        commands: dict[str, list[str]] = {
            "run": ["--engine", bundle, "--source", CLIP, "--json", "-"], "verify": [bundle], "doctor": [],
        }
        for name, words in commands.items():
            code = f"import sys; from glmd_runtime.cli import glmd_{name}_main as main; sys.argv[0] = '{name}'; main()"
            with open("/dev/full", "w") as full:
                asked = [sys.executable, "-c", code, *words]
                done = subprocess.run(asked, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
            require(done.returncode == 1 and "Traceback" not in done.stderr, f"{name}: {done.returncode} {done.stderr}")
    return {"commands": len(commands)}


# Lost rights


def permission(form: Form) -> Figures:
    if os.getuid():
        return {"not run": "files of others can be made by root only"}
    with tempfile.TemporaryDirectory() as folder:
        return dict(warm("tests.trust.faults_files", "lost_rights", folder, form == "long"))


def lost_rights(folder: str, heavy: bool) -> Figures:
    """Every writer in somebody else's folder; every reader of somebody else's files."""
    import_all(*IMPORTED)
    place = Path(folder)
    tiny.bundle(place / "tiny.glmd")
    writers = (*LIGHT, *(HEAVY if heavy else HEAVY[:1]))
    for writer in writers:
        own = place / writer.name
        own.mkdir()
        code, said = as_command(lambda: writer.work(own))  # noqa: B023 (called at once)
        require(code == 0, f"{writer.name} with its rights failed: {said}")
        _forget(own, writer)
        before = _tree(own)
        for path in (own, *own.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        code, said = as_command(lambda: writer.work(own), rights=False)  # noqa: B023
        _is_denied(writer.name, code, said)
        require(_tree(own) == before, f"{writer.name} changed what is not its own")
    for name, (files, work) in _readers(place).items():
        for file in files:
            mode = file.stat().st_mode
            os.chown(file, NOBODY, NOBODY)
            file.chmod(0o700 if file.is_dir() else 0o600)
            code, said = as_command(work, rights=False)
            _is_denied(f"{name} of {file.name}", code, said)
            os.chown(file, 0, 0)
            file.chmod(mode)
    return {"writers": len(writers), "readers": len(_readers(place))}


def _is_denied(who: str, code: int, said: str) -> None:
    lines = [line for line in said.splitlines() if "error: " in line]
    clear = len(lines) == 1 and "Traceback" not in said and code in (1, 2)
    named = clear and any(word in lines[0] for word in ("ermission denied", "cannot be written", "cannot be read"))
    require(named, f"{who}: one line must say that there is no right to it; got {code}, {said[-1500:]}")


def _readers(place: Path) -> dict[str, tuple[list[Path], Callable[[], Any]]]:
    """What reads, and the files that it needs."""
    import cv2

    from glmd_runtime.bundle import open_bundle
    from glmd_train.checkpoint import load_checkpoint
    from glmd_train.config import load_config
    from glmd_train.data.coco import load_coco
    from tests.train.squares import draw_squares, write_config

    squares = place / "squares"
    squares.mkdir(exist_ok=True)
    config = write_config(draw_squares(squares))
    picture, bundle, weights = place / "a.png", place / "tiny.glmd", place / "checkpoint" / "a.safetensors"
    cv2.imwrite(str(picture), np.zeros((8, 8), np.uint8))
    _record_once(place)
    return {
        "bundle": ([bundle, bundle / "manifest.json", bundle / "model.onnx"], lambda: open_bundle(bundle)),
        "picture": ([picture], lambda: list(open_source(picture))),
        "recording": ([place / "b.mkv", place / "b.mkv.jsonl"], lambda: list(open_source(place / "b.mkv"))),
        "labels": ([squares / "labels.json"], lambda: load_coco(squares / "labels.json", ("square",))),
        "configuration": ([config], lambda: load_config(config)),
        "checkpoint": ([weights], lambda: load_checkpoint(weights)),
    }


def _record_once(place: Path) -> None:
    if not (place / "b.mkv").exists():
        with Recorder(place / "b.mkv", 30.0) as recorder:
            recorder.write(Frame(np.zeros((8, 8), np.uint16), 0, 0.0))


PARTS = [
    Part("faults.disk_full", "a full disk is one clear error; nothing is half written or lost", disk_full),
    Part("faults.stdout_full", "standard output that takes nothing is one clear error", stdout_full),
    Part("faults.permission", "a lost right is one clear error; nothing is half written or lost", permission),
]
