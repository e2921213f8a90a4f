"""What a bundle proves its engines with: a few frames, and PyTorch's answers for them."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.files.arrays import read_npz
from glmd_runtime.manifest import GraphSpec
from glmd_runtime.postprocess import RAW_OUTPUTS, RawOutputs, split_outputs
from glmd_runtime.preprocess import is_frame


@dataclass(frozen=True, eq=False)
class Reference:
    """A few frames with the network's inputs and PyTorch's raw outputs for them: what an engine is checked against.

    frames    N camera arrays as `preprocess` takes them
    images    (N, C, H, W) float32 and valid_hw (N, 2) float32, the graph's inputs
    boxes     (N, R, K, 4) float32, scores (N, R, K) float32, valid (N, R) bool, the raw outputs
    features  (N, R, D) float32, of a graph that gives them; else None
    """

    frames: tuple[NDArray[Any], ...]
    images: NDArray[np.float32]
    valid_hw: NDArray[np.float32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    valid: NDArray[np.bool_]
    features: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def raw_outputs(self) -> list[RawOutputs]:
        return split_outputs({name: getattr(self, name) for name in RAW_OUTPUTS})

    def check(self, graph: GraphSpec) -> None:
        """Raises: ValueError unless images and answers are those of the graph, and there is a frame for each."""
        images, answers = ({n: (len(self), *s[1:]) for n, s in side.items()} for side in (graph.inputs, graph.outputs))
        expected = {name: (shape, "|b1" if name == "valid" else "<f4") for name, shape in (images | answers).items()}
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "frames"}
        came = {name: (array.shape, array.dtype.str) for name, array in arrays.items() if array is not None}
        if came != expected or not self.frames:
            raise ValueError(f"a frame or more and {expected} were expected; got {len(self.frames)} and {came}")
        if wrong := [f"frame{i}" for i, frame in enumerate(self.frames) if not is_frame(frame)]:
            raise ValueError(f"{wrong[0]} is no frame of a camera")
        if not ((self.valid_hw >= 1) & (self.valid_hw <= self.images.shape[2:])).all():
            raise ValueError(f"valid_hw is outside of the images; got {self.valid_hw.tolist()}")

    def to_bytes(self) -> bytes:
        """The content of reference.npz."""
        arrays: dict[str, Any] = {
            f.name: array for f in fields(self) if f.name != "frames" and (array := getattr(self, f.name)) is not None
        }
        arrays |= {f"frame{i}": frame for i, frame in enumerate(self.frames)}  # frames may differ in size
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, graph: GraphSpec) -> Reference:
        """Raises: ValueError, KeyError or TypeError for another content than `to_bytes` gives, or of another graph."""
        arrays = read_npz(content)
        frames = tuple(arrays[f"frame{i}"] for i in range(len(arrays["images"])))
        reference = cls(frames, **{f.name: arrays[f.name] for f in fields(cls) if f.name in arrays})
        reference.check(graph)
        return reference
