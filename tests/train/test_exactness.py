"""What a run gives follows from its configuration: after a kill, over two processes, in parts, twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glmd_runtime.errors import GlmdError
from glmd_train.config import load_config
from glmd_train.data.loaders import Slots, TrainingSet
from glmd_train.loop import fit
from glmd_train.training.dry_run import dry_run
from tests.train.squares import draw_squares, glmd_train, write_config

SHORT = ("val=[]", "iterations=12", "checkpoint_minutes=0.0001")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(draw_squares(tmp_path_factory.mktemp("squares")))


def weights(run: Path) -> dict[str, Tensor]:
    return torch.load(run / "last.pt", weights_only=True)["model"]


def trained(config: Path, run: Path, *changes: str) -> dict[str, Tensor]:
    fit(load_config(config, [f"output={run}", *SHORT, *changes]))
    return weights(run)


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of a run that nothing disturbed."""
    return trained(config, tmp_path_factory.mktemp("whole") / "run")


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def test_a_run_repeats_bit_for_bit(config: Path, whole: dict[str, Tensor], tmp_path: Path) -> None:
    assert_same(trained(config, tmp_path / "run"), whole)


def test_another_seed_gives_other_weights(config: Path, whole: dict[str, Tensor], tmp_path: Path) -> None:
    other = trained(config, tmp_path / "run", "seed=1")
    assert not all(torch.equal(other[name], whole[name]) for name in whole)


@pytest.mark.parametrize("after", [3, 8])
def test_a_killed_run_resumes_to_the_same_weights(
    config: Path, whole: dict[str, Tensor], tmp_path: Path, after: int
) -> None:
    """SIGKILL at whatever it is doing once `after` iterations are stored, then --resume."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "glmd_train.cli", "fit", "--config", str(config), "--resume"]
    process = subprocess.Popen([*command, "--set", f"output={run}", *SHORT], stderr=subprocess.DEVNULL)
    while process.poll() is None and stored(run) < after:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert after <= stored(run) < 12, "the run was over before it could be killed"
    subprocess.run([*command, "--set", f"output={run}", *SHORT], check=True, capture_output=True)
    assert_same(weights(run), whole)
    rows = [json.loads(line)["iteration"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))  # nothing is told twice


def stored(run: Path) -> int:
    last = run / "last.pt"
    return torch.load(last, weights_only=True)["iteration"] if last.exists() else 0


def test_two_processes_give_what_one_gives(config: Path, tmp_path: Path) -> None:
    """Losses are normalised over the rows of both; without dropout, whose masks are each process's own."""
    changes = ("model.neck_dropout=0", "batch_size=4", "optimizer=sgd", "learning_rate=0.02", "clip_norm=1.0")
    one = trained(config, tmp_path / "one", *changes)
    run = tmp_path / "two"
    glmd_train(
        "fit", "--config", config, "--devices", 2, "--set", f"output={run}", "accelerator=cpu", *SHORT, *changes
    )
    assert_same(weights(run), one, tolerance=1e-4)


def test_torchrun_starts_the_processes_as_well(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "glmd_train.cli", "fit"]
    changes = (f"output={run}", "accelerator=cpu", "val=[]", "iterations=2")
    result = subprocess.run(
        [*command, "--config", str(config), "--devices", "2", "--set", *changes], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (run / "model.safetensors").exists()


def test_parts_of_an_iteration_add_up(config: Path, tmp_path: Path) -> None:
    """Exact where every picture fills its share of ROI samples, as each part is normalised by its own rows."""
    changes = ("model.neck_dropout=0", "batch_size=4", "optimizer=sgd", "learning_rate=0.02", "clip_norm=1.0")
    whole = trained(config, tmp_path / "whole", *changes)
    assert_same(trained(config, tmp_path / "parts", "accumulate=2", *changes), whole, tolerance=1e-4)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_pictures_are_shared_out_once(processes: int, accumulate: int) -> None:
    shares = [
        list(Slots(3, 5, part=8 // processes // accumulate, accumulate=accumulate, rank=rank, processes=processes))
        for rank in range(processes)
    ]
    assert all(len(share) == 2 * accumulate for share in shares)
    first = [number for share in shares for part in share[:accumulate] for number in part]
    assert first == list(range(24, 32))
    assert sorted(n for share in shares for part in share for n in part) == list(range(24, 40))


def test_every_picture_comes_once_in_an_epoch(config: Path) -> None:
    values = load_config(config)
    pictures = TrainingSet(values.train, ("square",), values.preprocess.spec(), values.augment, seed=4)
    epochs = [[pictures.pick(8 * epoch + i) for i in range(8)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs) and epochs[0] != epochs[1]


@pytest.mark.parametrize("changes", [("learning_rate=1e30", "clip_norm=null"), ("learning_rate=1e4",)])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_and_names_the_pictures(
    config: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(GlmdError, match=r"not finite at iteration \d+: .*roi_class.*image ids.*\d, \d"):
        fit(load_config(config, [f"output={run}", *SHORT, "optimizer=sgd", "warmup=0", *changes]))
    for tensor in weights(run).values() if (run / "last.pt").exists() else ():
        assert tensor.isfinite().all()


def test_a_dry_run_tells_and_writes_nothing(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = glmd_train("fit", "--config", config, "--dry-run", "--set", f"output={run}", "freeze=[backbone]")
    assert not run.exists()
    for said in ("proposals: 10", "[1, 1, 64, 80]", "[1, 40, 8, 10]", "activations", "rpn_box"):
        assert said in result.stdout
    told = dry_run(load_config(config, ["freeze=[backbone]"]))
    assert told.parameters["backbone"][1] == 0 < told.parameters["neck"][1]
    assert told.memory["sum"] > told.memory["activations"] > 0
    assert dry_run(load_config(config, ["batch_size=4"])).memory["activations"] > told.memory["activations"]


PARTS = ("backbone", "neck", "rpn", "roi_heads.res5", "roi_heads.predictor", "affine_rpn", "affine_rcnn")


def changed_parts(config: Path, run: Path, start: Path, *changes: str) -> set[str]:
    """Parts of which a parameter differs from the start weights after one step."""
    same = ("optimizer=sgd", "val=[]", "weight_decay=0", "iterations=1", "warmup=0", "learning_rate=0.1")
    fit(load_config(config, [f"output={run}", f"weights={start}", *same, *changes]))
    before, after = weights(start.parent), weights(run)
    names = {name for name in after if not torch.equal(after[name], before[name].half().float())}
    return {part for part in PARTS if any(name.startswith(f"{part}.") for name in names)}


@pytest.mark.parametrize(
    ("changes", "still"),
    [
        ((), set()),
        (("freeze=[res5]",), {"roi_heads.res5"}),
        (("freeze=[backbone, neck]",), {"backbone", "neck"}),
        (("freeze=[rpn]",), {"rpn"}),
        (("freeze_at=5", "freeze=[backbone]"), {"backbone"}),
        (("model.rpn_gradient=0", "model.roi_gradient=0"), {"backbone", "neck"}),
        (("model.rpn_gradient=0",), set()),
    ],
)
def test_freezing_and_decoupling_keep_what_they_should_and_no_more(
    config: Path, whole: dict[str, Tensor], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
    changes: tuple[str, ...], still: set[str],
) -> None:
    start = next(tmp_path_factory.getbasetemp().glob("whole*/run")) / "model.safetensors"
    assert changed_parts(config, tmp_path / "run", start, *changes) == set(PARTS) - still


def one_step(config: Path, run: Path, *changes: str) -> dict[str, Tensor]:
    """Two classes, each picture shows one of them; clipping would join all parts by their common norm."""
    labels = json.loads((config.parent / "labels.json").read_text())
    labels["categories"].append({"id": 2, "name": "circle"})
    labels["annotations"][7]["category_id"] = 2
    (config.parent / "two.json").write_text(json.dumps(labels))
    same = (
        "model.class_names=[square, circle]", f"train=[{{annotations: {config.parent / 'two.json'}}}]",
        "optimizer=sgd", "iterations=1", "warmup=0", "clip_norm=null", "learning_rate=0.1",
    )
    return trained(config, run, *same, *changes)


@pytest.mark.parametrize(
    ("change", "untouched"),
    [
        # The ROI head's class loss has no part in what refines boxes, nor in the RPN.
        ("model.roi_loss=ca", ("roi_heads.predictor.bbox_pred", "roi_heads.predictor.box_gate", "rpn.", "affine_rpn")),
        # The RPN's has none in its own box branch, nor in the ROI head.
        ("model.rpn_loss=ca", ("rpn.deltas", "roi_heads.", "affine_rcnn")),
    ],
)
def test_a_confusion_aware_loss_changes_what_it_should_and_nothing_else(
    config: Path, tmp_path: Path, change: str, untouched: tuple[str, ...]
) -> None:
    usual, aware = one_step(config, tmp_path / "usual"), one_step(config, tmp_path / "aware", change)
    same = {name for name in usual if torch.equal(usual[name], aware[name])}
    assert same == {name for name in usual if name.startswith(untouched)}


@pytest.mark.parametrize(("predictor", "kept"), [("by_name", True), ("reset", False)])
def test_start_weights_keep_their_predictor_or_begin_it_anew(
    config: Path, whole: dict[str, Tensor], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, predictor: str,
    kept: bool,
) -> None:
    start = next(tmp_path_factory.getbasetemp().glob("whole*/run")) / "model.safetensors"
    # A step of next to no rate: the weights after it are those before it.
    after = trained(config, tmp_path / "run", f"weights={start}", f"predictor={predictor}", "iterations=1",
                    "learning_rate=1e-30", "weight_decay=0")
    same = {n for n in whole if torch.allclose(after[n], whole[n].half().float(), rtol=0, atol=1e-20)}
    layers = [n for n in whole if "predictor.cls_score" in n or "predictor.bbox_pred" in n]
    assert same >= set(whole) - set(layers)
    assert same.issuperset(layers) if kept else same.isdisjoint(n for n in layers if n.endswith("weight"))
