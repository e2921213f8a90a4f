"""Recipes of few-shot fine-tuning: how a base model is trained on support pictures, whatever the classes.

A recipe is a YAML file in `configs/recipes` with keys of a training configuration. What the base model decides (its
network and pixels) and what a lesson decides (classes, pictures, folder) is filled in here.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glmd_train.config import DatasetConfig, TrainConfig, read_yaml, validated

if TYPE_CHECKING:
    from glmd_train.checkpoint import Checkpoint

FOLDER = Path(__file__).parent / "configs" / "recipes"
DEFAULT = "default"
FEW = (1, 10)  # boxes of each class for which a recipe says how long to train


def recipe_names() -> list[str]:
    """The recipes there are, `DEFAULT` first."""
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=lambda name: (name != DEFAULT, name))


def fine_tuning(
    recipe: str, base: Checkpoint, weights: Path, class_names: tuple[str, ...], train: list[DatasetConfig],
    output: Path, *, shots: float, **changes: Any,
) -> TrainConfig:
    """The configuration of one fine-tuning.

    Args: recipe, one of `recipe_names()`; base, what `weights` holds; shots, boxes of each class, on which the number
        of iterations depends; changes, of single keys: seed, iterations ...; of `model` only the keys that change.
    """
    path = FOLDER / f"{recipe}.yaml"
    values = read_yaml(path)
    spec = base.preprocess
    crop_hw = [max(32, edge * 3 // 4 // 32 * 32) for edge in spec.size_hw]  # more pictures a second than whole ones
    switches = {**values.pop("model", {}), **changes.pop("model", {})}
    network = {**base.config.model_dump(mode="json"), "class_names": class_names, **switches}
    own: dict[str, Any] = {
        "model": network,
        "preprocess": {
            "size_hw": spec.size_hw, "mean": spec.mean, "std": spec.std, "intensity": asdict(spec.intensity),
            "resize": spec.resize,
        },
        "augment": {"crop_hw": crop_hw, **values.pop("augment", {})},
        "weights": weights.resolve(),
        "train": train,
        "output": output,
        "iterations": round(float(np.interp(shots, FEW, values["iterations"]))),
    }
    return validated(TrainConfig, {**values, **own, **changes}, path)
