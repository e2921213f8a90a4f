"""Golden files of single parts: their parameters under the names that they have in our module."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from glmd_train.official.names import our_name

# What stands before the names of a part's parameters in the whole network, theirs and ours.
CM = ("glmd_network.global_module.", "neck.context.")
LR = ("glmd_network.local_module.", "neck.local.")
NECK = ("glmd_network.", "neck.")
PREDICTOR = ("roi_heads.", "roi_heads.predictor.")


def renamed(key: str, part: tuple[str, str]) -> str:
    theirs, ours = part
    name = our_name(theirs + key)
    assert name is not None and name.startswith(ours), key
    return name.removeprefix(ours)


def state(arrays: dict[str, np.ndarray], part: tuple[str, str]) -> dict[str, Tensor]:
    """The arrays `w/<published key>` as a state dict of ours."""
    return {renamed(k[2:], part): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("w/")}
