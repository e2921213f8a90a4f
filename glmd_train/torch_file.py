"""Files of torch.save, read without executing anything."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch

from glmd_runtime.errors import CheckpointError

SAVE = "Write the weights alone: torch.save(model.state_dict(), 'model.pth')"


def read_torch(path: Path) -> Any:
    """Tensors and plain values, as they were saved, on the CPU.

    Raises: CheckpointError if the file is damaged, or holds objects that loading would execute.
    """
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it stumbles over
        # torch's own text advises to load the file unsafely; only what it names is passed on.
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise CheckpointError(
                f"{path} holds a Python object ({named[1]}); tensors alone are read, code is never executed. {SAVE}"
            ) from error
        raise CheckpointError(
            f"{path} is not a file of torch.save, or is damaged ({type(error).__name__}). Copy it again."
        ) from error


def _check_archive(path: Path) -> None:
    """No archive of tar, and none of zip that would be larger in memory than it is as a file."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\3\4"  # by which torch knows it
    if not is_zip:
        if tarfile.is_tarfile(path):  # of 2017; torch would unpack it, links included
            raise ValueError("an archive of tar")
        return
    with ZipFile(path) as archive:
        members = archive.infolist()
    is_stored = all(member.compress_type == ZIP_STORED for member in members)
    if not is_stored or sum(member.file_size for member in members) > path.stat().st_size:  # the second: one, twice
        raise CheckpointError(
            f"{path} is an archive of compressed or overlapping parts; expected them as torch.save writes them, each "
            f"as it is. {SAVE}"
        )
