"""The recipes of few-shot fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.checkpoint import Checkpoint
from glmd_train.config import DatasetConfig, ModelConfig
from glmd_train.model.detector import build_model
from glmd_train.recipes import fine_tuning, recipe_names


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    config = ModelConfig(class_names=("person",))
    spec = PreprocessSpec((128, 160), (127.0,), (128.0,))
    return Checkpoint(build_model(config), config, spec, PostprocessSpec((0.3,)), {})


@pytest.mark.parametrize("recipe", recipe_names())
def test_fewer_boxes_are_trained_on_for_fewer_iterations(recipe: str, base: Checkpoint, tmp_path: Path) -> None:
    counts = []
    for shots in (0.5, 1, 5, 10, 30):
        train = [DatasetConfig(annotations=tmp_path / "a.json")]
        config = fine_tuning(recipe, base, tmp_path / "base.safetensors", ("fox",), train, tmp_path, shots=shots)
        counts.append(config.iterations)
    assert counts[0] == counts[1] < counts[2] < counts[3] == counts[4] == 400


def test_a_change_of_the_network_keeps_its_other_keys(base: Checkpoint, tmp_path: Path) -> None:
    train = [DatasetConfig(annotations=tmp_path / "a.json")]
    config = fine_tuning(
        "glmdnet", base, tmp_path / "base.safetensors", ("fox",), train, tmp_path, shots=10, iterations=7,
        model={"roi_loss": "ce"},
    )
    assert (config.iterations, config.model.roi_loss, config.model.rpn_loss) == (7, "ce", "ca")
    assert config.model.class_names == ("fox",)
