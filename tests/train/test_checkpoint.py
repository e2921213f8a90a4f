"""Checkpoints: the round trip, the surgery between class lists, and one clear error for each wrong file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmd_runtime.errors import CheckpointError
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, transfer
from glmd_train.config import ModelConfig
from glmd_train.model.detector import build_model


def checkpoint(names: tuple[str, ...] = ("person", "car"), seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    config = ModelConfig(class_names=names, proposals=10)
    spec = PreprocessSpec((64, 80), (127.0,), (128.0,))
    return Checkpoint(build_model(config).eval(), config, spec, PostprocessSpec((0.3,) * len(names)), {"seed": seed})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "a.safetensors", checkpoint())


def test_round_trip_keeps_contract_and_answers(tmp_path: Path) -> None:
    original = checkpoint()
    loaded = load_checkpoint(save_checkpoint(tmp_path / "a.safetensors", original, dtype=torch.float32))
    assert (loaded.config, loaded.preprocess, loaded.postprocess) == (
        original.config, original.preprocess, original.postprocess,
    )
    assert loaded.provenance == {"seed": 0} and not loaded.model.training
    images, valid_hw = torch.randn(1, 1, 64, 80), torch.tensor([[64.0, 80.0]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images, valid_hw).scores, original.model(images, valid_hw).scores)


def test_weights_are_stored_in_half_and_small_enough_to_ship(saved: Path) -> None:
    assert {t.dtype for t in load_file(saved).values()} == {torch.float16}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    other = saved.parent / "other"
    other.touch()
    assert saved.stat().st_mode == other.stat().st_mode  # whoever may read other files here may read it


def rewrite(path: Path, saved: Path, weights: dict | None = None, **contract: object) -> Path:
    """A copy of the saved checkpoint with changed weights or contract."""
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        metadata = json.loads(file.metadata()["glmd"])
    tensors = load_file(saved) if weights is None else weights
    save_file(tensors, path, metadata={"glmd": json.dumps({**metadata, **contract})})
    return path


def test_wrong_files_are_one_clear_error(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"expected format 'glmd-checkpoint-1'.*got None"):
        load_checkpoint(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(rewrite(tmp_path / "later.safetensors", saved, model={"unheard_of": 1}))
    for text, came in (("2", "got 2"), ("[]", "got \\[\\]"), ("null", "got None"), ("{", "damaged")):
        save_file({"x": torch.zeros(2)}, tmp_path / "odd.safetensors", {"glmd": text})
        with pytest.raises(CheckpointError, match=came):
            load_checkpoint(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    "contract",
    [
        {"model": {"class_names": ["a"], "backbone": "resnet50", "resnet": {"groups": 10**30}}},
        {"model": {"class_names": ["a"], "backbone": "resnet50", "resnet": {"res2_channels": 2**40}}},
        {"model": {"class_names": ["a"], "anchor_ratios": [0.5, 0]}},
        {"model": {"class_names": ["a"], "anchor_sizes": [1e300]}},
        {"model": {"class_names": ["a"], "anchor_sizes": []}},
        {"preprocess": PreprocessSpec((64, 80), (127.0,) * 3, (128.0,) * 3).to_dict()},
        {"postprocess": PostprocessSpec((0.3,)).to_dict()},
    ],
)
def test_what_no_network_has(contract: dict[str, object], saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a contract this version cannot read"):
        load_checkpoint(rewrite(tmp_path / "odd.safetensors", saved, **contract))


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, as whoever can count bytes makes it."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def contract(value: str) -> bytes:
    return file_of({"__metadata__": {"glmd": value}})


TRAPS = {
    "a header of exabytes": file_of({}, length=1 << 63),
    "a header beyond the file": file_of({}, length=90 << 20),
    "tensors that overlap": file_of({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
    "one place for two": file_of({"a": tensor([2], 0, 8), "b": tensor([2], 0, 8)}, bytes(8)),
    "a tensor beyond the file": file_of({"a": tensor([1 << 38], 0, 1 << 40)}, bytes(8)),
    "a shape without its numbers": file_of({"a": tensor([1 << 40], 0, 8)}, bytes(8)),
    "a shape that overflows": file_of({"a": tensor([1 << 62, 1 << 62], 0, 8)}, bytes(8)),
    "a negative side": file_of({"a": tensor([-2], 0, 8)}, bytes(8)),
    "a type that is not computed with": file_of({"a": tensor([8], 0, 4, "F4")}, bytes(4)),
    "no object": contract("[]"),
    "a deep one": contract("[" * 100_000),
    "many digits": contract('{"format": ' + "1" * 5000 + "}"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_file_that_is_a_trap(trap: str, tmp_path: Path) -> None:
    (tmp_path / "trap.safetensors").write_bytes(TRAPS[trap])
    with pytest.raises(CheckpointError, match=r"is not a (safetensors checkpoint|checkpoint of this project)"):
        load_checkpoint(tmp_path / "trap.safetensors")


def test_a_network_larger_than_its_file_is_not_made(saved: Path, tmp_path: Path) -> None:
    """Its weights would have 10^10 numbers."""
    sizes = {"stem_channels": 1, "res2_channels": 4096}
    model = {"class_names": ["person", "car"], "backbone": "resnet50", "resnet": sizes}
    with pytest.raises(CheckpointError, match="is for another architecture"):
        load_checkpoint(rewrite(tmp_path / "large.safetensors", saved, model=model))


def test_another_architecture_is_named(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved)
    first = next(iter(weights))
    without = {k: v for k, v in weights.items() if k != first}
    with pytest.raises(CheckpointError, match=rf"another architecture: missing \['{first}'\] \(1\)"):
        load_checkpoint(rewrite(tmp_path / "a.safetensors", saved, without))
    other = {**weights, first: torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"wrong shape .*\(3,\), expected"):
        load_checkpoint(rewrite(tmp_path / "b.safetensors", saved, other))


def test_transfer_moves_the_predictor_s_rows_by_class_name() -> None:
    source = checkpoint(("person", "car"), seed=1)
    names = ("car", "dog", "person")
    model = checkpoint(names, seed=2).model
    fresh = model.roi_heads.predictor.cls_score.weight.detach().clone()
    transfer(source, model, names)
    old, new = source.model.roi_heads.predictor, model.roi_heads.predictor
    assert torch.equal(new.cls_score.weight[[0, 2, 3]], old.cls_score.weight[[1, 0, 2]])  # car, person, background
    assert torch.equal(new.cls_score.weight[1], fresh[1])
    assert torch.equal(new.bbox_pred.weight[8:12], old.bbox_pred.weight[0:4])
    assert torch.equal(model.rpn.conv.weight, source.model.rpn.conv.weight)


def test_an_unknown_class_may_begin_as_the_mean_of_the_known_ones() -> None:
    source = checkpoint(("person", "car"), seed=1)
    model = checkpoint(("dog", "car"), seed=2).model
    transfer(source, model, ("dog", "car"), "mean")
    old, new = source.model.roi_heads.predictor, model.roi_heads.predictor
    torch.testing.assert_close(new.cls_score.weight[0], (old.cls_score.weight[0] + old.cls_score.weight[1]) / 2)
    torch.testing.assert_close(new.bbox_pred.weight[:4], (old.bbox_pred.weight[:4] + old.bbox_pred.weight[4:]) / 2)
    assert torch.equal(new.cls_score.weight[1:], old.cls_score.weight[1:])  # car and background


def test_transfer_refuses_another_architecture() -> None:
    other = build_model(ModelConfig(class_names=("person",), stride=16))
    with pytest.raises(CheckpointError, match="another architecture"):
        transfer(checkpoint(), other, ("person",))


@pytest.mark.parametrize("none", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_neither_written_nor_read(none: float, saved: Path, tmp_path: Path) -> None:
    """Compared with itself such a model is always right, as nothing of it can be compared."""
    spoilt = checkpoint()
    with torch.no_grad():
        spoilt.model.rpn.objectness.weight[0, 0] = none
    with pytest.raises(CheckpointError, match=r"no numbers: .*rpn\.objectness\.weight, 1 of"):
        save_checkpoint(tmp_path / "a.safetensors", spoilt)
    assert list(tmp_path.iterdir()) == []
    weights = {**load_file(saved), "rpn.objectness.weight": spoilt.model.rpn.objectness.weight.detach()}
    with pytest.raises(CheckpointError, match=r"no numbers: .*rpn\.objectness\.weight, 1 of"):
        load_checkpoint(rewrite(tmp_path / "b.safetensors", saved, weights))


def test_weights_too_large_for_half_are_kept(tmp_path: Path) -> None:
    large = checkpoint()
    with torch.no_grad():
        large.model.rpn.objectness.weight[0, 0] = 1e5
    loaded = load_checkpoint(save_checkpoint(tmp_path / "a.safetensors", large))
    assert loaded.model.rpn.objectness.weight[0, 0].unique().item() == 1e5
