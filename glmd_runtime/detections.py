"""Detections: the value that a detector returns for one frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.errors import GlmdError

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class Detections:
    """Parallel arrays, one row an object; indexes like an array: `found[found.scores > 0.5]`, `found[0]`.

    xyxy         (N, 4) float32, frame pixels, continuous edges
    scores       (N,) float32 in 0..1
    class_ids    (N,) int64, index into class_names
    class_names  the model's names, whether they occur here or not
    """

    xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.scores)
        shapes = (np.shape(self.xyxy), np.shape(self.scores), np.shape(self.class_ids))
        if shapes != ((n, 4), (n,), (n,)):
            raise GlmdError(f"Detections expects xyxy (N, 4), scores (N,), class_ids (N,); got {shapes}")
        object.__setattr__(self, "xyxy", np.asarray(self.xyxy, np.float32))
        object.__setattr__(self, "scores", np.asarray(self.scores, np.float32))
        object.__setattr__(self, "class_ids", np.asarray(self.class_ids, np.int64))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if n and (self.class_ids.min() < 0 or self.class_ids.max() >= len(self.class_names)):
            raise GlmdError(f"class_ids must index the {len(self.class_names)} class_names; got {self.class_ids}")

    @classmethod
    def empty(cls, class_names: tuple[str, ...]) -> Detections:
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), class_names)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Detections:
        rows = np.atleast_1d(np.arange(len(self))[index])
        return Detections(self.xyxy[rows], self.scores[rows], self.class_ids[rows], self.class_names)

    @property
    def names(self) -> list[str]:
        """The class name of each row."""
        return [self.class_names[i] for i in self.class_ids]

    def to_dict(self) -> list[dict[str, Any]]:
        """One plain dictionary a row, ready for JSON: `{"name", "class_id", "score", "xyxy"}`."""
        rows = zip(self.names, self.class_ids, self.scores, self.xyxy, strict=True)
        return [
            {"name": n, "class_id": int(c), "score": round(float(s), 4), "xyxy": [round(float(v), 2) for v in box]}
            for n, c, s, box in rows
        ]

    def to_supervision(self) -> supervision.Detections:
        """The same rows as `supervision.Detections`, with `data["class_name"]`; needs the `supervision` package."""
        import supervision

        return supervision.Detections(
            xyxy=self.xyxy, confidence=self.scores, class_id=self.class_ids, data={"class_name": np.array(self.names)}
        )
