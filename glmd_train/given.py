"""What a command is given, looked at before PyTorch is loaded, which takes long; with the errors of the work itself."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from glmd_runtime.errors import CheckpointError, DatasetError, UsageError
from glmd_runtime.files.documents import read_bytes
from glmd_runtime.files.scratch import check_place
from glmd_runtime.video.sources import PICTURE_SUFFIXES
from glmd_train.config import load_network_config
from glmd_train.data.coco import expand, parse_coco, read_coco
from glmd_train.official.configuration import is_published_yaml, published_network

WEIGHTS_ALONE = (".pth", ".pt", ".pkl")
_NAMES_BYTES = 1 << 20  # of a file of class names


def check_checkpoint(path: Path, config: Path | None = None, classes: Path | None = None) -> None:
    """All of `checkpoint.load_checkpoint` that can be said without the weights. Raises: as it does."""
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"Checkpoint {path} {state}. Expected a .safetensors file of glmd-train, or a .pth file.")
    if path.suffix in WEIGHTS_ALONE:
        _check_description(config, classes)
    elif path.suffix != ".safetensors":
        raise CheckpointError(f"A checkpoint is a .safetensors file of glmd-train, or .pth, .pt or .pkl; got {path}.")
    elif config or classes:
        raise UsageError(
            f"{path} carries its own class names and configuration. Leave out --config and --classes; "
            "they are for files of weights alone."
        )


def _check_description(config: Path | None, classes: Path | None) -> None:
    published = config is not None and is_published_yaml(config)
    if config and classes and not published:
        raise UsageError("--config and --classes both name the classes; leave one of them out.")
    names = read_names(classes) if classes else None
    if config and published:
        published_network(config, names)
    elif config:
        load_network_config(config)


def check_new_file(checkpoint: Path, output: Path) -> None:
    """That a command which makes one checkpoint of another can do so. Raises: UsageError."""
    if checkpoint.suffix != ".safetensors":
        raise UsageError(f"--checkpoint expects a .safetensors file of glmd-train; got {checkpoint}.")
    if output.suffix != ".safetensors":
        raise UsageError(f"-o must end in .safetensors; got {output}.")
    check_place(output)
    if os.path.exists(output):
        raise UsageError(f"{output} exists already. Choose another path, or remove it.")


def check_background(folder: Path | None, false_alarms: float | None) -> list[Path]:
    """The pictures without objects, if any are given, and of 1000 of them how many may have a false alarm.

    Raises: UsageError, DatasetError.
    """
    if false_alarms is not None and not 0 <= false_alarms < math.inf:
        raise UsageError(f"--false-alarms must be 0 or more, and finite; got {false_alarms}.")
    if false_alarms is not None and folder is None:
        raise UsageError("--false-alarms are counted in pictures without objects: give --background DIR with some.")
    return background_pictures(folder) if folder else []


def read_names(classes: Path) -> tuple[str, ...]:
    """The class names of a file, one a line. Raises: UsageError if it cannot be read."""
    try:
        lines = read_bytes(classes, _NAMES_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"--classes expects a text file with one name a line; {classes}: {error}.") from error
    return tuple(line.strip() for line in lines if line.strip())


def check_data(patterns: Iterable[Path], images: Path | None = None) -> None:
    """All of `coco.load_coco_files` that can be said without the model's classes. Raises: as it does."""
    for file in (file for pattern in patterns for file in expand(pattern)):
        content = read_coco(file)
        names = tuple(one["name"] for one in content["categories"] if isinstance(one, dict) and "name" in one)
        if names or not content["images"]:
            parse_coco(content, names, images, file)


def background_pictures(folder: Path) -> list[Path]:
    """Raises: DatasetError if the folder holds no picture."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    pictures = [p for p in files if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith(".")]
    if not pictures:
        raise DatasetError(
            f"--background expects a folder with pictures ({', '.join(PICTURE_SUFFIXES)}); {folder} holds none."
        )
    return pictures
