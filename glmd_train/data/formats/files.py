"""Label files as tools leave them: suffixes in capitals, a byte order mark, hidden copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.files.documents import parse_json, read_bytes
from glmd_runtime.files.plain import is_no_file
from glmd_train.data.coco import MOST_BYTES


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Its files with a suffix (in small letters), in order; hidden ones, as macOS' `._a.xml`, are left out."""
    return sorted(file for file in folder.iterdir() if _is_label_file(file, suffix))


def files_below(folder: Path, suffix: str) -> list[Path]:
    """As `files_in`, at any depth."""
    return sorted(file for file in folder.rglob("*") if _is_label_file(file, suffix))


def _is_label_file(file: Path, suffix: str) -> bool:
    return file.suffix.lower() == suffix and not file.name.startswith(".") and not is_no_file(file)


def is_small(file: Path) -> bool:
    """Whether a file may be the label of one picture, and is worth reading to find out what it is."""
    return file.stat().st_size < 64 << 20


def text_of(file: Path, most: int = MOST_BYTES) -> str:
    """Raises: DatasetError as `bytes_of`, and for what is no text."""
    try:
        return bytes_of(file, most).decode("utf-8-sig")  # without the mark that Windows' editors begin with
    except ValueError as error:
        raise DatasetError(f"{file} is not a text file: {error}.") from error


def bytes_of(file: Path, most: int) -> bytes:
    """Raises: DatasetError for what is no file, or one of more than `most` bytes."""
    if is_no_file(file):
        raise DatasetError(f"{file} must be a file; it is a folder, a pipe or a device. Remove it, or copy a file.")
    try:
        return read_bytes(file, most)
    except (ValueError, OSError) as error:
        raise DatasetError(f"{file} cannot be read as a label: {error}.") from error


def lines_of(file: Path) -> list[str]:
    return text_of(file).splitlines()


def json_of(file: Path) -> Any:
    try:
        return parse_json(text_of(file))
    except ValueError as error:
        raise DatasetError(f"{file} is not JSON: {error}.") from error


def json_kind(file: Path) -> Literal["coco", "labelme"] | None:
    """What a JSON file is by its keys; None for any other and for a damaged one."""
    try:
        content = json_of(file)
    except DatasetError:
        return None
    keys = set(content) if isinstance(content, dict) else set()
    if "shapes" in keys:
        return "labelme"
    return "coco" if keys & {"images", "annotations"} else None


def not_divided(path: Path, split: str | None) -> None:
    if split:
        raise UsageError(f"{path} is not divided into train, val and test. Leave out --split.")
