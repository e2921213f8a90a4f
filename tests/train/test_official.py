"""Published checkpoints: every name placed, read and written back, and one clear error for each wrong file."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glmd_runtime.errors import CheckpointError, UsageError
from glmd_train.checkpoint import load_checkpoint
from glmd_train.cli import main
from glmd_train.config import DatasetConfig, ModelConfig, PreprocessConfig, TrainConfig
from glmd_train.loop import _start_from, start_model
from glmd_train.model.detector import build_model
from glmd_train.official.names import our_name, published_name
from glmd_train.official.weights import from_official, load_start_weights, to_official, write_official
from glmd_train.state_dict import Architecture
from tests.conftest import GOLDEN, golden

PUBLISHED = json.loads((GOLDEN / "published_parameters.json").read_text())
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
TINY = {"stem_channels": 8, "width_per_group": 4, "res2_channels": 16}
PLAIN = {"cm": False, "lr": False, "crd": False}


def config(**changes: Any) -> ModelConfig:
    values = {"class_names": ("person", "car"), "backbone": "resnet50", "resnet": TINY, "in_channels": 3, **changes}
    return ModelConfig(anchor_sizes=(32, 64, 128, 256, 512), bins=7, **values)


def drawn(**changes: Any) -> dict[str, Tensor]:
    """Our parameters, none of them at a value that it begins with."""
    return dict(_drawn(config(**changes).model_dump_json()))


@cache
def _drawn(json_text: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate_json(json_text))
    return {key: torch.rand_like(value) for key, value in model.state_dict().items()}


def names_file(folder: Path, number: int = 2) -> Path:
    path = folder / "names.txt"
    path.write_text("\n".join(f"class {i}" for i in range(number)))
    return path


def saved(folder: Path, weights: dict[str, Tensor], **beside: Any) -> Path:
    torch.save({"model": weights, **beside}, folder / "model_final.pth")
    return folder / "model_final.pth"


@pytest.mark.parametrize(("stage", "classes"), [("base", 72), ("novel", 11)])
def test_every_published_parameter_is_placed(stage: str, classes: int) -> None:
    shapes = {**PUBLISHED["base"], **PUBLISHED[stage]}
    assert len(shapes) == 567
    names = tuple(map(str, range(classes)))
    with torch.device("meta"):
        theirs = {key: torch.empty(shape) for key, shape in (shapes | PUBLISHED["detectron2_0.3"]).items()}
        own = build_model(config(class_names=names, backbone="resnet101", resnet={})).state_dict()
    placed = from_official(theirs)
    assert {k: v.shape for k, v in placed.items()} == {k: v.shape for k, v in own.items()}
    assert all(published_name(our_name(key)) == key for key in shapes)
    found = Architecture.of_weights(placed, Path("model.pth"))
    assert found == Architecture.of_config(config(class_names=names, backbone="resnet101", resnet={}))


@pytest.mark.parametrize(
    "changes",
    [{}, {"crd": False}, {"cm": False}, {"lr": False}, PLAIN, {"resnet": {**TINY, "groups": 4, "width_per_group": 2}}],
    ids=str,
)
def test_there_and_back(changes: dict[str, Any]) -> None:
    ours = drawn(**changes)
    theirs = to_official(ours, config(**changes))
    assert same(from_official(theirs), ours)
    assert same(to_official(from_official(theirs), config(**changes)), theirs)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_the_goldens_weights_there_and_back() -> None:
    theirs = {key: torch.from_numpy(value) for key, value in golden("weights_small_novel").items()}
    assert same(to_official(from_official(theirs), config()), theirs)


def detectron2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in to_official(weights, config(**PLAIN)).items() if "affine" not in key}


def test_detectron2_s_own_detector_has_no_affine_layers_and_its_own_settings(tmp_path: Path) -> None:
    theirs = detectron2(drawn(**PLAIN))
    loaded = load_checkpoint(saved(tmp_path, theirs), classes=names_file(tmp_path))
    assert (loaded.model.affine_rpn.weight == 1).all() and (loaded.model.affine_rcnn.bias == 0).all()
    assert loaded.config.bins == 14 and loaded.preprocess.mean == (103.53, 116.28, 123.675)
    assert same(to_official(loaded.model.state_dict(), loaded.config), theirs)


@pytest.mark.parametrize(
    ("changes", "classes", "mean"),
    [
        ({}, 72, (112.8373,) * 3),
        ({}, 11, (93.5781,) * 3),
        ({"cm": False}, 11, (93.5781,) * 3),
        (PLAIN, 20, (103.53, 116.28, 123.675)),  # DeFRCN
    ],
)
def test_names_alone_give_the_published_test_settings(
    changes: dict[str, Any], classes: int, mean: tuple[float, ...], tmp_path: Path
) -> None:
    names = tuple(map(str, range(classes)))
    theirs = to_official(drawn(class_names=names, **changes), config(class_names=names, **changes))
    loaded = load_checkpoint(saved(tmp_path, theirs, iteration=7), classes=names_file(tmp_path, classes))
    spec, told = loaded.preprocess, loaded.config
    assert (spec.mean, spec.std, spec.size_hw, spec.resize) == (mean, (1.0,) * 3, (800, 1333), "published")
    assert (told.proposals, told.pre_nms_topk, told.bins) == (1000, 6000, 7)
    assert told.anchor_sizes == (32, 64, 128, 256, 512)
    assert same(loaded.model.state_dict(), from_official(theirs))


def test_what_older_files_tell_beside_the_parameters_must_fit(tmp_path: Path) -> None:
    theirs = detectron2(drawn(**PLAIN))
    told = {
        ANCHORS: build_model(config()).rpn.anchors.cell, "pixel_std": torch.ones(3, 1, 1),
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675])[:, None, None],
    }
    names = names_file(tmp_path)
    load_checkpoint(saved(tmp_path, theirs | told), classes=names)
    others = ((ANCHORS, told[ANCHORS] * 2), ("pixel_mean", told["pixel_mean"].flip(0)), (ANCHORS, torch.ones(3)))
    for key, other in others:
        with pytest.raises(UsageError, match=re.escape(f"trained with other settings: its {key}")):
            load_checkpoint(saved(tmp_path, theirs | told | {key: other}), classes=names)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"glmd_network.dconv2.weight": torch.zeros(2)}, "unknown ['glmd_network.dconv2.weight'] (1)"),
        ({"roi_heads.res5.0.conv1.norm.bias": None}, "missing ['roi_heads.res5.0.conv1.norm.bias'] (1)"),
        ({"affine_rpn.bias": None}, "missing ['affine_rpn.bias'] (1)"),
        ({"backbone.res3.1.conv2.weight": torch.zeros(3)}, "shape ['backbone.res3.1.conv2.weight (3,), expected (8,"),
        ({"roi_heads.box_predictor.cls_score.weight": None}, "(or roi_heads.box_predictor.cls_score.weight)"),
        ({"backbone.res4.6.conv1.weight": torch.zeros(3)}, "a ResNet of (3, 4, 7) blocks; expected one of [(3, 4, 6)"),
        ({"proposal_generator.rpn_head.objectness_logits.weight": torch.zeros(6, 1)}, "anchors 15 against 6"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_parameters_are_named_as_the_file_names_them(
    change: dict[str, Tensor | None], says: str, tmp_path: Path
) -> None:
    theirs = to_official(drawn(), config()) | change
    path = saved(tmp_path, {key: value for key, value in theirs.items() if value is not None})
    with pytest.raises((CheckpointError, UsageError), match=re.escape(says)):
        load_checkpoint(path, classes=names_file(tmp_path))


def test_models_that_the_published_code_cannot_build_are_not_written() -> None:
    light = ModelConfig(class_names=("person",))
    with pytest.raises(UsageError, match="lite0 has none"):
        to_official(build_model(light).state_dict(), light)
    with pytest.raises(UsageError, match="no CM and LR without MDF"):
        to_official(drawn(mdf=False), config(mdf=False))


def test_a_start_from_a_published_detector(tmp_path: Path) -> None:
    """The predictor comes along where the classes are as many, and stays fresh after surgery or for other classes."""
    theirs = to_official(drawn(), config())
    removed = {key: value for key, value in theirs.items() if "box_predictor" not in key}
    three = config(class_names=("a", "b", "c"))
    for weights, model, keeps in ((theirs, config(), True), (removed, config(), False), (theirs, three, False)):
        started = build_model(model)
        fresh = started.roi_heads.predictor.cls_score.weight.clone()
        load_start_weights(saved(tmp_path, weights), started)
        state = to_official(started.state_dict(), model)
        assert all(torch.equal(state[key], value) for key, value in removed.items())
        assert torch.equal(started.roi_heads.predictor.cls_score.weight, fresh) != keeps


def test_a_start_from_our_own_weights_file(tmp_path: Path) -> None:
    ours = drawn()
    model = build_model(config())
    load_start_weights(saved(tmp_path, ours), model)
    assert same(model.state_dict(), ours)


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, to_official(drawn(**PLAIN), config(**PLAIN)))
    with pytest.raises(CheckpointError, match=r"missing \['glmd_network\."):
        load_start_weights(path, build_model(config()))
    with pytest.raises(UsageError, match="lite0 begins with weights: imagenet"):
        load_start_weights(path, build_model(ModelConfig(class_names=("person",))))


def test_the_mean_of_classes_wants_classes_with_names(tmp_path: Path) -> None:
    path = saved(tmp_path, to_official(drawn(**PLAIN), config(**PLAIN)))
    run = TrainConfig(
        model=config(**PLAIN), output=tmp_path, train=[DatasetConfig(annotations=path)], iterations=1, weights=path,
        predictor="mean", preprocess=PreprocessConfig(mean=(127.0,) * 3, std=(128.0,) * 3),
    )
    with pytest.raises(UsageError, match="mean needs start weights with class names"):
        _start_from(path, build_model(run.model), run)
    with pytest.raises(UsageError, match="'random' has none"):
        start_model(run.model_copy(update={"weights": "random"}), None)


def test_convert_reads_and_writes_published_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_model(config())
    theirs = write_official(tmp_path / "model_final.pth", model, config())
    assert set(torch.load(theirs, weights_only=True)) == {"model"}
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    arguments = ["--checkpoint", str(theirs), "--classes", str(names_file(tmp_path)), "-o", str(ours)]
    assert main(["convert", *arguments]) == 0
    assert load_checkpoint(ours).preprocess.resize == "published"
    assert main(["convert", "--checkpoint", str(ours), "-o", str(back)]) == 0
    assert same(*(torch.load(path, weights_only=True)["model"] for path in (theirs, back)))
    assert capsys.readouterr().out.splitlines() == [f"Written: {ours}", f"Written: {back}"]
    for wrong in (["--checkpoint", str(ours), "-o", "x.onnx"], ["-o", "x.yaml"], ["--classes", "x.txt", "-o", "x.pth"]):
        assert main(["convert", *wrong]) == 2
        assert "do not go together" in capsys.readouterr().err
