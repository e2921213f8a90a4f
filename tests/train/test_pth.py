"""Files of torch.save: read by their names and shapes, never executed, and one clear error for each wrong one."""

from __future__ import annotations

import json
import os
import pickle
import re
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from glmd_runtime.errors import CheckpointError, GlmdError, UsageError
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.checkpoint import load_checkpoint, save_checkpoint
from glmd_train.cli import main
from glmd_train.config import ModelConfig
from glmd_train.model.detector import build_model
from glmd_train.state_dict import Architecture, describe, read_state_dict
from glmd_train.training.run_folder import RunFolder
from tests.train.test_checkpoint import checkpoint

NAMES = ("person", "car")
PTH = Path("model.pth")


@cache
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return build_model(ModelConfig(class_names=NAMES)).state_dict()


def shapes(**changes: Any) -> dict[str, torch.Tensor]:
    """Parameters without content: enough to be described, and quick to make."""
    with torch.device("meta"):
        return build_model(ModelConfig(class_names=NAMES, **changes)).state_dict()


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    torch.save(weights(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.fixture
def names(tmp_path: Path) -> Path:
    (tmp_path / "names.txt").write_text("person\ncar\n")
    return tmp_path / "names.txt"


def yaml_file(folder: Path, **changes: Any) -> Path:
    """The network's part of a configuration, none of which is a default."""
    model = {"class_names": list(NAMES), "proposals": 20, "bins": 7, **changes}
    preprocess = {"size_hw": [64, 80], "mean": [93.5], "std": [64.0]}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"model": model, "preprocess": preprocess}))
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"model": w, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "iteration": 7},
        lambda w: {"state_dict": w, "scheduler": {"last_epoch": 3}},
        lambda w: {f"module.{k}": v for k, v in w.items()},
        lambda w: {"model": {f"module._orig_mod.{k}": v for k, v in w.items()}},
        lambda w: {k: v.half() for k, v in w.items()},
    ],
    ids=["plain", "under model", "under state_dict", "DDP", "DDP and compile", "half"],
)
def test_each_way_to_save_weights_is_read(wrap: Callable[[dict], dict], tmp_path: Path, names: Path) -> None:
    torch.save(wrap(weights()), tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt", classes=names)
    assert loaded.class_names == NAMES and not loaded.model.training
    for key, value in loaded.model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, weights()[key], atol=1e-3, rtol=1e-3)


def test_answers_are_those_of_the_same_weights_in_safetensors(tmp_path: Path) -> None:
    original = checkpoint()
    torch.save(original.model.state_dict(), tmp_path / "a.pth")
    config = yaml_file(tmp_path, proposals=10, bins=8)
    one = load_checkpoint(save_checkpoint(tmp_path / "a.safetensors", original, torch.float32))
    other = load_checkpoint(tmp_path / "a.pth", config=config)
    images, valid_hw = torch.randn(1, 1, 64, 80), torch.tensor([[64.0, 80.0]])
    with torch.inference_mode():
        assert torch.equal(one.model(images, valid_hw).scores, other.model(images, valid_hw).scores)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"stride": 16}, {"in_channels": 3}, {"cm": False}, {"lr": False}, {"mdf": False}, {"crd": False},
        {"cm": False, "lr": False, "mdf": False, "crd": False}, {"anchor_sizes": (8.0, 32.0)},
    ],
    ids=str,
)
def test_names_and_shapes_tell_the_architecture(changes: dict[str, Any], tmp_path: Path) -> None:
    config = ModelConfig(class_names=NAMES, **changes)
    assert Architecture.of_weights(shapes(**changes), PTH) == Architecture.of_config(config)
    if "anchor_sizes" not in changes:
        (tmp_path / "names.txt").write_text("\n".join(NAMES))
        told = describe(shapes(**changes), PTH, None, tmp_path / "names.txt").model
        assert Architecture.of_config(told) == Architecture.of_config(config)


def test_a_configuration_tells_what_weights_cannot(pth: Path) -> None:
    loaded = load_checkpoint(pth, config=yaml_file(pth.parent))
    assert (loaded.config.bins, loaded.config.proposals) == (7, 20)
    assert loaded.preprocess == PreprocessSpec((64, 80), (93.5,), (64.0,))
    assert loaded.postprocess.score_thresholds == (0.3, 0.3)
    assert loaded.provenance == {"described_by": "config.yaml"}


def test_a_whole_training_configuration_will_do(tmp_path: Path) -> None:
    path = yaml_file(tmp_path)
    training = {"output": "runs/x", "iterations": 3, "train": [{"annotations": "elsewhere.json"}], "steps": [1]}
    path.write_text(path.read_text() + yaml.safe_dump(training))
    assert describe(weights(), PTH, path, None).model.bins == 7
    path.write_text(path.read_text() + "preproces: {}\n")
    with pytest.raises(UsageError, match=r"yaml: preproces: there is no such key; did you mean preprocess\?$"):
        describe(weights(), PTH, path, None)


@pytest.mark.parametrize("channels", [1, 3])
def test_names_alone_give_the_light_model_s_defaults(channels: int, names: Path) -> None:
    told = describe(shapes(in_channels=channels), PTH, None, names)
    assert told.model == ModelConfig(class_names=NAMES, in_channels=channels)
    assert told.preprocess.spec() == PreprocessSpec((512, 640), (127.0,) * channels, (128.0,) * channels)


def test_without_names_the_error_is_the_command_to_run(pth: Path, names: Path) -> None:
    command = rf"2 classes\. Add --classes, for example: glmd-export --ckpt {pth} --classes names\.txt with 2 lines"
    with pytest.raises(UsageError, match=command):
        load_checkpoint(pth)
    with pytest.raises(UsageError, match="leave one of them out"):
        load_checkpoint(pth, config=yaml_file(pth.parent), classes=names)


def test_the_state_of_a_training_is_read_with_the_configuration_beside_it(tmp_path: Path) -> None:
    model = build_model(ModelConfig(class_names=NAMES))
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    RunFolder(tmp_path).store(model, optimizer, 5)
    yaml_file(tmp_path).rename(tmp_path / "config.json")
    with pytest.raises(UsageError, match=r"glmd-export --ckpt \S+last\.pt --config (\S+config\.json)") as error:
        load_checkpoint(tmp_path / "last.pt")
    config = Path(str(error.value).split()[-1])
    assert load_checkpoint(tmp_path / "last.pt", config=config).config.bins == 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("person\n", r"names\.txt has 1 class names, .*model\.pth has 2 classes"),
        ("person\ncar\ndog\n", r"has 3 class names, .*model\.pth has 2 classes"),
        ("person\nperson\n", "must differ"),
        ("\n\n", "has 0 class names"),
    ],
)
def test_wrong_names_are_a_usage_error(text: str, says: str, pth: Path, names: Path) -> None:
    names.write_text(text)
    with pytest.raises(UsageError, match=says):
        load_checkpoint(pth, classes=names)


def test_files_of_names_from_windows_and_missing_ones(pth: Path, names: Path) -> None:
    names.write_bytes("\ufeffperson\r\n car \r\n\r\n".encode())
    assert describe(weights(), PTH, None, names).model.class_names == NAMES
    with pytest.raises(UsageError, match="--classes expects a text file"):
        load_checkpoint(pth, classes=names.with_name("none.txt"))
    with pytest.raises(UsageError, match="--classes expects a text file"):
        load_checkpoint(pth, classes=pth)  # not text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_names": ["a", "b", "c"]}, "classes 3 against 2"),
        ({"stride": 16}, "stride 16 against 8"),
        ({"crd": False}, "crd False against True"),
        ({"cm": False}, "cm False against True, mdf False against True"),
        ({"anchor_ratios": [1.0]}, "anchors 5 against 15"),
    ],
)
def test_a_configuration_that_contradicts_the_weights(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        describe(weights(), PTH, yaml_file(tmp_path, **changes), None)


def test_other_anchors_need_the_configuration(names: Path) -> None:
    with pytest.raises(UsageError, match=r"anchors 15 against 6 in the weights.*--config YAML"):
        describe(shapes(anchor_sizes=(8.0, 32.0)), PTH, None, names)


def test_a_safetensors_checkpoint_names_its_own_classes(tmp_path: Path, names: Path) -> None:
    saved = save_checkpoint(tmp_path / "a.safetensors", checkpoint())
    for told in ({"classes": names}, {"config": yaml_file(tmp_path)}):
        with pytest.raises(UsageError, match="carries its own class names"):
            load_checkpoint(saved, **told)


class Touch:
    """Unpickled without care, this runs a command of the file's author."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def pickled(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, pickled])
def test_a_malicious_file_runs_nothing(save: Callable[[Any, Path], None], tmp_path: Path, names: Path) -> None:
    save({"model": {}, "extra": Touch(tmp_path / "touched")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"Python object \(\w+\.system\).*never executed") as error:
        load_checkpoint(tmp_path / "evil.pth", classes=names)
    assert not (tmp_path / "touched").exists()
    assert "weights_only" not in str(error.value)  # torch's advice to load it unsafely is not passed on
    pickle.loads(pickle.dumps(Touch(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()  # so the file was a real danger


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (torch.nn.Linear(2, 2), "Python object (torch.nn.modules.linear.Linear)"),
        ({"model": {}, "args": Namespace(lr=1)}, "Python object (argparse.Namespace)"),
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({"epoch": 3}, "holds no weights, only ['epoch']"),
        ({"model": {}}, "holds no weights"),
        ({"conv1.weight": torch.zeros(3)}, "rpn.conv.weight (or proposal_generator.rpn_head.conv.weight), got ['conv1"),
        ({"rpn.conv.weight": torch.zeros(())}, "expected a parameter rpn.conv.weight"),
        ({"rpn.conv.weight": torch.zeros(64, 1, 1, 1)}, "trunk of 64 channels; expected 40 or 112"),
        ({"backbone.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}, "A trunk with ImageNet weights is what `weights`"),
    ],
)
def test_other_contents_are_one_clear_error(content: Any, says: str, tmp_path: Path, names: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=re.escape(says)):
        load_checkpoint(tmp_path / "a.pth", classes=names)


def test_a_parameter_too_few_or_too_many_is_named(pth: Path, names: Path) -> None:
    torch.save({k: v for k, v in weights().items() if k != "affine_rpn.bias"}, pth)
    with pytest.raises(CheckpointError, match=r"missing \['affine_rpn\.bias'\] \(1\)"):
        load_checkpoint(pth, classes=names)
    torch.save({**weights(), "roi_heads.predictor.bbox_pred.weight": torch.zeros(12, 320)}, pth)
    with pytest.raises(CheckpointError, match=r"bbox_pred\.weight \(12, 320\), expected \(8, 320\)"):
        load_checkpoint(pth, classes=names)


def test_damage_is_a_checkpoint_error_wherever_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.pth"
    for modern in (True, False):
        torch.save({"a": torch.zeros(10), "b": torch.ones(3)}, path, _use_new_zipfile_serialization=modern)
        whole = path.read_bytes()
        refused = 0
        for cut in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:cut])
            with pytest.raises(CheckpointError, match="damaged"):
                read_state_dict(path)
        for _ in range(60):
            altered = bytearray(whole)
            for place in rng.integers(0, len(whole), 3):
                altered[place] = rng.integers(256)
            path.write_bytes(altered)
            try:
                read_state_dict(path)
            except GlmdError as error:
                assert isinstance(error, CheckpointError)
                refused += 1
        assert refused > 20


@pytest.mark.parametrize("name", ["model.onnx", "model"])
def test_other_files_are_refused_by_their_suffix(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"\.safetensors file of glmd-train, or \.pth, \.pt or \.pkl"):
        load_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_glmd_train_eval_scores_a_pth_file_and_says_how_sure_it_is(
    pth: Path, names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), np.random.default_rng(0).integers(0, 255, (64, 80), dtype=np.uint8))
    labels = {
        "images": [{"id": 1, "file_name": "x.png", "width": 80, "height": 64}],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "boat"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": i, "bbox": [5, 5, 20, 20]} for i in (1, 2)],
    }
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    command = ["eval", "--checkpoint", str(pth), "--data", str(tmp_path / "labels.json")]
    assert main(command) == 2
    assert f"for example: glmd-export --ckpt {pth} --classes names.txt" in capsys.readouterr().err
    assert main([*command, "--classes", str(names)]) == 0
    said = capsys.readouterr().out
    assert "95% interval over the pictures" in said and "no such class: boat" in said
    assert main(["eval", "--engine", "x.glmd", "--data", "x.json", "--classes", str(names)]) == 2
    assert "A bundle names its own classes" in capsys.readouterr().err
