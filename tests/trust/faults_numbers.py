"""Numbers that are none, in frames, weights, labels, manifests and answers; and memory that runs out."""

from __future__ import annotations

import json
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from glmd_runtime.bundle import SEAL, open_bundle
from glmd_runtime.errors import GlmdError
from glmd_runtime.manifest import MANIFEST
from glmd_runtime.plans.plan import sha256
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry, preprocess
from glmd_runtime.thermal import MODES, Intensity
from tests import tiny
from tests.trust.faults_files import as_command
from tests.trust.parts import BrokenPromiseError, Figures, Form, Part, require
from tests.trust.processes import ended, fork, warm

NONE = (float("nan"), float("inf"), float("-inf"))
SOON = 120.0  # seconds


# Numbers


def nan(form: Form) -> Figures:
    figures: Figures = {"frames": _frames(), "answers": _answers(20_000 if form == "long" else 1_000)}
    with tempfile.TemporaryDirectory() as folder:
        figures["values of a manifest"] = _manifests(Path(folder))
        figures |= warm("tests.trust.faults_numbers", "weights_and_losses", folder, form == "long")
    return figures


def _frames() -> int:
    """Frames without contrast, and of the ends of the range: what the network sees are numbers."""
    ramp = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    flat = [np.full((48, 64), value, np.uint16) for value in (0, 1, 32768, 65534, 65535)]
    flat += [np.full((48, 64), value, np.uint8) for value in (0, 255)]
    ends = np.where(ramp % 2, np.uint16(0), np.uint16(65535))
    frames = [*flat, ramp, ends, ramp[:1], ramp[:, :1], ramp[:1, :1]]
    for frame in frames:
        for mode in MODES:
            image, _ = preprocess(frame, replace(tiny.SPEC, intensity=Intensity(mode)))
            require(bool(np.isfinite(image).all()), f"{mode} of {frame.shape} {frame.dtype} must give numbers")
    return len(frames) * len(MODES)


def _answers(times: int) -> int:
    """NaN and infinity anywhere in an engine's answer: the detections are those of the proposals without them."""
    rng, spec, geometry = np.random.default_rng(0), PostprocessSpec((0.3, 0.3)), Geometry((64, 80), (64, 80))
    for _ in range(times):
        corners = rng.uniform(0, 60, (12, 2, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(1, 30, (12, 2, 2))], axis=2).astype(np.float32)
        scores, valid = rng.uniform(0, 1, (12, 2)).astype(np.float32), rng.random(12) < 0.9
        clean_boxes, clean_scores = boxes.copy(), scores.copy()
        for row in rng.choice(12, 3, replace=False):
            target = (boxes[row] if rng.random() < 0.5 else scores[row]).reshape(2, -1)
            target[:, rng.integers(target.shape[1])] = rng.choice(NONE)
            clean_scores[row] = 0
        found = postprocess(RawOutputs(boxes, scores, valid), geometry, spec, tiny.CLASS_NAMES)
        wanted = postprocess(RawOutputs(clean_boxes, clean_scores, valid), geometry, spec, tiny.CLASS_NAMES)
        same = np.array_equal(found.xyxy, wanted.xyxy) and np.array_equal(found.scores, wanted.scores)
        require(same, f"expected the detections {wanted.to_dict()}; got {found.to_dict()}")
    return times


def _manifests(folder: Path) -> int:
    """Every number of a manifest, replaced: an error of ours, or nothing that is computed with."""
    bundle = tiny.bundle(folder / "tiny.glmd")
    values = json.loads((bundle.path / MANIFEST).read_text())
    tried = 0
    for holder, key in list(_numbers({k: values[k] for k in ("preprocess", "postprocess", "graph")})):
        kept = holder[key]
        for value in NONE:
            tried, holder[key] = tried + 1, value
            (bundle.path / MANIFEST).write_text(json.dumps(values))
            (bundle.path / SEAL).write_text(sha256(bundle.path / MANIFEST))
            _refused(lambda: open_bundle(bundle.path), f"a manifest with {key} {value}")
        holder[key] = kept
    return tried


def _numbers(values: Any) -> Iterator[tuple[Any, Any]]:
    """Where numbers are in nested mappings and lists: (holder, key)."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield values, key


def _refused(work: Callable[[], object], what: str) -> None:
    try:
        work()
    except GlmdError:
        return
    raise BrokenPromiseError(f"{what} must be refused")


def weights_and_losses(folder: str, every: bool) -> Figures:
    """A number that is none in the tensors of a checkpoint, of each or of some; and in a loss."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from glmd_train.checkpoint import load_checkpoint, save_checkpoint
    from tests.export.conftest import draw_checkpoint

    torch.set_num_threads(1)
    sound, spoilt = (Path(folder) / name for name in ("sound.safetensors", "spoilt.safetensors"))
    save_checkpoint(sound, draw_checkpoint())
    tensors = load_file(sound)
    with safe_open(sound, "pt") as file:
        metadata = file.metadata()
    names = sorted(tensors) if every else sorted(tensors)[:: len(tensors) // 5]
    for number, name in enumerate(names):
        wrong = tensors[name].clone()
        wrong.view(-1)[-1] = NONE[number % 3]
        save_file({**tensors, name: wrong}, spoilt, metadata)
        _refused(lambda: load_checkpoint(spoilt), f"a checkpoint with {NONE[number % 3]} in {name}")
    return {"tensors of a checkpoint": len(names), "losses": _losses(Path(folder))}


def _losses(folder: Path) -> int:
    """A training whose loss is no number stops, and keeps what was saved before."""
    import torch

    from glmd_train.config import load_config
    from glmd_train.loop import fit
    from glmd_train.model.detector import GLMDNet
    from tests.train.squares import draw_squares, write_config

    config, sound = write_config(draw_squares(folder)), GLMDNet.losses
    said = [f"output={folder / 'run'}", "val=[]", "checkpoint_minutes=1e-9"]
    fit(load_config(config, [*said, "iterations=1"]))
    state = (folder / "run" / "last.pt").read_bytes()
    for value in NONE:
        spoilt = lambda *args, value=value: {n: loss * value for n, loss in sound(*args).items()}  # noqa: E731
        with patch.object(GLMDNet, "losses", spoilt):
            _refused(lambda: fit(load_config(config, [*said, "iterations=2"]), resume=True), f"a loss of {value}")
        require((folder / "run" / "last.pt").read_bytes() == state, "the state from before must stay")
    weights = torch.load(folder / "run" / "last.pt", weights_only=True)["model"].values()
    require(all(bool(one.isfinite().all()) for one in weights), "the state from before must be finite")
    return len(NONE)


# Memory


def out_of_memory(form: Form) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        return dict(warm("tests.trust.faults_numbers", "without_memory", folder, 10 if form == "long" else 1))


def without_memory(folder: str, times: int) -> Figures:
    """A reader of pictures and a builder of engines, killed as the system kills when memory runs out; and refusals."""
    import torch

    from tests.train.squares import draw_squares, write_config

    torch.set_num_threads(1)
    config = write_config(draw_squares(Path(folder)))
    for number in range(times):
        run = Path(folder) / f"run{number}"
        code, said = as_command(lambda: _with_child_killed(lambda: _train(config, run)))  # noqa: B023 (called at once)
        _is_clear("a reader that is killed", "reads pictures was ended", code, 1, said)
        code, said = as_command(lambda: _with_child_killed(lambda: _build(run)))  # noqa: B023
        _is_clear("a builder that is killed", "memory runs out", code, 5, said)
        code, said = as_command(lambda: _train(config, run, limit=300 << 20))  # noqa: B023
        _is_clear("memory that is refused", "memory ran out", code, 1, said)
    return {"readers killed": times, "builders killed": times, "refusals": times}


def _is_clear(what: str, words: str, code: int, expected: int, said: str) -> None:
    lines = [line for line in said.splitlines() if "error: " in line]
    clear = code == expected and len(lines) == 1 and words in lines[0] and "Traceback" not in said
    require(clear, f"{what}: expected code {expected} and one line with {words!r}; got {code}, {said[-1500:]}")


def _train(config: Path, run: Path, limit: int = 0) -> None:
    """Args: limit, bytes more than the process has now, for the memory that it may have; 0 for none."""
    from glmd_train.config import load_config
    from glmd_train.loop import fit

    if limit:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + limit, now + limit))
    size = "preprocess={size_hw: [4096, 4096]}" if limit else "workers=1"
    fit(load_config(config, [f"output={run}", "val=[]", "iterations=10000", size]), resume=True)


def _build(run: Path) -> None:
    from glmd_runtime.engines import open_engine
    from tests.fakes import models
    from tests.fakes.gpu import fake_gpu

    place = run.with_name(f"{run.name}.gpu")
    place.mkdir()
    with fake_gpu(place) as gpu:
        gpu.fault("hang")
        open_engine(models.half_bundle(place / "t.glmd"), models.HALF, "tensorrt").close()


def _with_child_killed(work: Callable[[], object]) -> None:
    """Do it, while the first process that it starts is killed after a moment."""

    def kill(parent: int) -> None:
        until = time.monotonic() + SOON
        while time.monotonic() < until:
            time.sleep(0.2)
            for child in _children(parent):
                if child != os.getpid():
                    time.sleep(2)
                    os.kill(child, signal.SIGKILL)
                    return

    here = os.getpid()
    killer = fork(lambda: kill(here))
    try:
        work()
    finally:
        os.kill(killer, signal.SIGKILL)
        ended(killer)


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


PARTS = [
    Part("faults.nan", "NaN and infinity are refused, or dropped from answers, never detected", nan),
    Part("faults.out_of_memory", "memory that runs out is one clear error, and no wait for ever", out_of_memory),
]
