"""Files of torch.save, read without executing anything."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any

import torch

from glmd_runtime.errors import CheckpointError

SAVE = "Write the weights alone: torch.save(model.state_dict(), 'model.pth')"


def read_torch(path: Path) -> Any:
    """Tensors and plain values, as they were saved, on the CPU.

    Raises: CheckpointError if the file is damaged, or holds objects that loading would execute.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        if not is_zip and tarfile.is_tarfile(path):  # of 2017; torch would unpack it, links included
            raise ValueError("an archive of tar")
        return torch.load(path, map_location="cpu", weights_only=True)
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
