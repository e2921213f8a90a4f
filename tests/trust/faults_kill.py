"""SIGKILL at random moments of export, recording and training: nothing corrupt stands under a final name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from glmd_runtime import backends
from glmd_runtime.bundle import PROTOTYPES, VERIFY, open_bundle, write_bundle
from glmd_runtime.errors import SourceError
from glmd_runtime.files.scratch import work_folder
from glmd_runtime.sinks import JsonlSink, Mp4Sink
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.recording import Recorder
from glmd_runtime.video.sources import open_source
from tests import tiny
from tests.trust.parts import Figures, Form, Part, require
from tests.trust.processes import killed, timed, warm

FPS = 30
OPEN = FPS // 2 + 2  # frames of half a second, which a recording may lose, and of the one that is being written


# Export


def kill_export(form: Form) -> Figures:
    """Writing a bundle is what an export does last and shortest, so it is killed by itself as well."""
    figures = _figures_of("write_bundle alone", "writes", 50 if form == "long" else 12)
    return figures | (_figures_of("whole exports", "exports", 50) if form == "long" else {})


def _figures_of(what: str, function: str, kills: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        figures = warm("tests.trust.faults_kill", function, folder, kills)
    return {f"{what}: {name}": number for name, number in figures.items()}


def writes(folder: str, kills: int) -> Figures:
    out = _places(folder)
    files = {"model.onnx": tiny.model(), "reference.npz": tiny.reference().to_bytes(), VERIFY: b"{}"}
    files[PROTOTYPES] = np.random.default_rng(0).bytes(20 << 20)  # as large as a real one

    def write(version: int, began: int) -> None:
        os.write(began, b".")
        write_bundle(out, replace(tiny.manifest(), provenance={"version": version}), files, overwrite=True)

    return _killed_over(out, write, kills)


def exports(folder: str, kills: int) -> Figures:
    import torch

    from glmd_export.exporter import Recipe, draft_bundle, export_bundle
    from glmd_train.checkpoint import load_checkpoint, save_checkpoint
    from tests.export.conftest import draw_checkpoint

    torch.set_num_threads(1)
    out = _places(folder)
    backends.available = lambda: ["onnxruntime"]  # half the time of two
    file = save_checkpoint(Path(folder) / "tiny.safetensors", draw_checkpoint())
    checkpoint, recipe = load_checkpoint(file), Recipe(engines=("onnxruntime",))
    with tempfile.TemporaryDirectory() as scratch:  # at first torch imports what takes longer than the rest
        draft_bundle(checkpoint, file, Path(scratch) / "tiny.glmd", recipe)

    def export(version: int, began: int) -> None:
        os.write(began, b".")
        export_bundle(replace(checkpoint, provenance={"version": version}), file, out, recipe, overwrite=True)

    return _killed_over(out, export, kills)


def _places(folder: str) -> Path:
    """Where bundles go; what is on the way goes into a folder beside."""
    tempfile.tempdir = f"{folder}/tmp"
    Path(tempfile.tempdir).mkdir()
    return Path(folder) / "out" / "tiny.glmd"


def _killed_over(out: Path, write: Callable[[int, int], None], kills: int) -> Figures:
    """Kill `write(version, began)`, that replaces the bundle `out` by one of a newer version, time and again."""
    read, began = os.pipe()
    seconds = timed(lambda: write(0, began))
    os.read(read, 1)
    hits = version = most = new = last = 0
    worst: list[str] = []
    while hits < kills:
        version += 1
        hits += killed(lambda: write(version, began), 1.1 * seconds, read)  # noqa: B023 (called at once)
        now = _version(out)
        require(now in (last, version), f"expected the bundle {last} or {version}, wholly; got {now}")
        new, last = new + (now != last), now
        worst = max(worst, _left(out), key=len)
        most = len(worst)
    require(most <= 4, f"what killed writers leave must not grow; found {most} folders at once: {worst}")
    timed(lambda: _next_run(lambda: write(version + 1, began)))
    require(not _left(out), f"the next run must remove what killed ones left; found {_left(out)}")
    return {"kills": hits, "new bundles nevertheless": new, "folders left behind at once": most}


def _version(out: Path) -> int:
    """Of a bundle whose every hash holds."""
    told = open_bundle(out).manifest.provenance
    return int(told.get("training", told)["version"])


def _left(out: Path) -> list[str]:
    """What lies beside the bundle, and where the system has room for what is on the way."""
    folders = (out.parent, Path(tempfile.gettempdir()))
    return [path.name for folder in folders for path in folder.iterdir() if path != out]


def _next_run(write: Callable[[], object]) -> None:
    with work_folder("glmd-export"):
        write()


# Recording


def kill_recording(form: Form) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        return dict(warm("tests.trust.faults_kill", "recordings", folder, 100 if form == "long" else 5))


def recordings(folder: str, kills: int) -> Figures:
    """Kill a program that records frames as fast as it can, with lines and a video as `glmd-run` writes them."""
    import av

    from tests.runtime.test_sinks import ONE

    assert av
    hits = frames = lost = 0
    for number in range(kills):
        path = Path(folder) / f"{number}.mkv"
        read, wrote = os.pipe()
        hits += killed(lambda: _record(path, wrote, ONE), 1.5, read)  # noqa: B023 (called at once)
        os.close(wrote)
        with os.fdopen(read, "rb") as pipe:
            given = len(pipe.read())
        came = _came(path)
        for frame in came:
            require(np.array_equal(frame.image, _picture(frame.index)), f"frame {frame.index} is not what was recorded")
        require(given - len(came) <= OPEN, f"of {given} frames {len(came)} can be read; {OPEN} may be lost")
        lines = path.with_suffix(".lines.jsonl").read_text().splitlines() if given else []
        require(len(lines) >= given, f"of {given} frames {len(lines)} lines can be read")
        frames, lost = frames + len(came), max(lost, given - len(came))
    return {"kills of recordings": hits, "frames read back": frames, "most lost": lost}


def _record(path: Path, wrote: int, found: Any) -> None:
    lines = JsonlSink(path.with_suffix(".lines.jsonl"), at_once=True)
    video = Mp4Sink(path.with_suffix(".mp4"), float(FPS), at_once=True)
    os.write(wrote, b".")
    with Recorder(path, float(FPS)) as record, lines, video:
        for index in range(10**6):
            frame = Frame(_picture(index), index, index / FPS)
            record.write(frame)
            lines.write(frame, found)
            video.write(np.zeros((64, 64, 3), np.uint8), frame.time)
            os.write(wrote, b".")


def _picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 65536, (48, 64), dtype=np.uint16)


def _came(path: Path) -> list[Frame]:
    """The frames of a recording: none where it was killed before its first half second was over."""
    frames: list[Frame] = []
    with suppress(SourceError), open_source(path) as source:
        frames += source
    return frames


# Training


def kill_training(form: Form) -> Figures:
    kills, iterations = (50, 12) if form == "long" else (2, 3)
    with tempfile.TemporaryDirectory() as folder:
        return dict(warm("tests.trust.faults_kill", "trainings", folder, kills, iterations))


def trainings(folder: str, kills: int, iterations: int) -> Figures:
    """Kill and resume trainings that save after every iteration, until each has come to its end."""
    import torch

    from glmd_train.checkpoint import load_checkpoint
    from glmd_train.config import load_config
    from glmd_train.loop import fit
    from glmd_train.training.run_folder import RunFolder
    from tests.train.squares import draw_squares, write_config

    torch.set_num_threads(1)
    here = draw_squares(Path(folder))
    config = write_config(here)
    read, began = os.pipe()

    def train(name: str, *, says: bool = False) -> None:
        store = RunFolder.store

        def told(*args: Any) -> None:
            RunFolder.store = store  # type: ignore[method-assign]
            os.write(began, b".")
            store(*args)

        RunFolder.store = told if says else store  # type: ignore[method-assign]
        said = [f"output={here / name}", f"iterations={iterations}", "val=[]", "checkpoint_minutes=1e-9"]
        fit(load_config(config, said), resume=True)

    seconds = timed(lambda: train("whole"))
    expected = (here / "whole" / "model.safetensors").read_bytes()
    hits = runs = states = 0
    while hits < kills:
        runs += 1
        while hits < kills:
            # Every other time while the state is saved, which is what could be torn, else at any time.
            says = hits % 2 == 0
            hit = killed(lambda: train(f"run{runs}", says=says), seconds / (1 + says), read if says else None)  # noqa: B023
            hits += hit
            states += _is_sound(here / f"run{runs}", load_checkpoint)
            if not hit:
                break
        else:
            timed(lambda: train(f"run{runs}"))  # noqa: B023
        came = (here / f"run{runs}" / "model.safetensors").read_bytes()
        require(came == expected, f"run {runs}, killed and resumed, must give the bytes of one that was not")
        left = [p.name for p in (here / f"run{runs}").iterdir() if p.name.startswith(".")]
        require(len(left) <= 1, f"what killed runs leave must be removed by the next; found {left}")
    return {"kills of trainings": hits, "runs, each with an uninterrupted one's bytes": runs, "states found": states}


def _is_sound(run: Path, load_checkpoint: Callable[[Path], object]) -> bool:
    """Whether a killed run had saved anything; what it had must be whole."""
    from glmd_train.torch_file import read_torch

    for name in ("last.pt", "model.safetensors"):
        if (run / name).exists():
            load_checkpoint(run / name) if name.startswith("model") else read_torch(run / name)
    return (run / "last.pt").exists()


PARTS = [
    Part(
        "faults.kill_export",
        "SIGKILL of `write_bundle` alone, with 20 MiB, and of whole exports of a tiny network (`export_bundle`, what "
        "`glmd-export` calls) leaves the old bundle or the new one, and the next run cleans up",
        kill_export,
    ),
    Part(
        "faults.kill_recording",
        "SIGKILL of a program that records, with lines and a video as `glmd-run` writes them, costs half a second of "
        "the recording at most; the rest is exact",
        kill_recording,
    ),
    Part(
        "faults.kill_training",
        "SIGKILL of a training of a tiny network that saves after every iteration costs nothing: resumed, the same "
        "bytes",
        kill_training,
    ),
]
