"""What every backend is: tensors in, tensors out. Pre-processing, thresholds and NMS are not its business."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
Read = Callable[[Path], bytes]  # what gives a file's content: `Bundle.read`, or `Path.read_bytes`


class Backend(Protocol):
    """One loaded engine. `run` may be called from several threads at once.

    One that gains by several calls at once says how many in an attribute `calls`; see `load`.
    """

    def run(self, inputs: Tensors) -> Tensors:
        """Tensors by the graph's input names -> tensors by its output names, which belong to the caller."""

    def close(self) -> None:
        """Give back memory and threads; `run` may not be called afterwards."""


def run_padded(backend: Backend, batch: int, inputs: Tensors) -> Tensors:
    """Run N images through a graph whose batch is fixed: in groups of `batch`, the last one padded, padding cut off.

    Args: inputs, each (N, ...), N >= 1; if N is not `batch`, arrays that slices and integers can index.
    Returns: outputs, each (N, ...).
    """
    n = next(iter(inputs.values())).shape[0]
    if n == batch:
        return backend.run(inputs)
    groups = [
        backend.run({name: _padded(value[i : i + batch], batch) for name, value in inputs.items()})
        for i in range(0, n, batch)
    ]
    return {name: np.concatenate([group[name] for group in groups])[:n] for name in groups[0]}


def _padded(value: NDArray[Any], batch: int) -> NDArray[Any]:
    """(n, ...) -> (batch, ...): the last row repeated, so that padding is always a plausible image."""
    rows = np.minimum(np.arange(batch), len(value) - 1)
    return value if len(value) == batch else value[rows]
