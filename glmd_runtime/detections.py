"""Detections: the value that a detector returns for one frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.errors import GlmdError, UnsupportedError
from glmd_runtime.install import install_command

if TYPE_CHECKING:
    import supervision


COLUMNS: dict[str, tuple[tuple[int, ...], Any]] = {  # name -> shape of a row, dtype
    "xyxy": ((4,), np.float32),
    "scores": ((), np.float32),
    "class_ids": ((), np.int64),
    "temperatures": ((3,), np.float32),
    "track_ids": ((), np.int64),
}
OPTIONAL = ("temperatures", "track_ids")  # what not every camera and pipeline gives


@dataclass(frozen=True, eq=False)
class Detections:
    """Parallel arrays, one row an object; indexes like an array: `found[found.scores > 0.5]`, `found[0]`.

    xyxy         (N, 4) float32, frame pixels, continuous edges
    scores       (N,) float32 in 0..1
    class_ids    (N,) int64, index into class_names
    class_names  the model's names, whether they occur here or not
    temperatures  (N, 3) float32, coldest, mean and hottest in each box, in degrees Celsius; None where the camera does
                 not measure temperatures
    track_ids    (N,) int64, the same number for the same object in every frame, from 0; -1 for one that is not followed
                 (yet); None where nobody tracks
    """

    xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    temperatures: NDArray[np.float32] | None = None
    track_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        for name, (width, dtype) in COLUMNS.items():
            column = getattr(self, name)
            if column is None and name in OPTIONAL:
                continue
            if np.shape(column) != (n, *width):
                raise GlmdError(
                    "Detections expects xyxy (N, 4), scores (N,), class_ids (N,), temperatures (N, 3) or None, "
                    f"track_ids (N,) or None; got {name} {np.shape(column)} with {n} scores."
                )
            object.__setattr__(self, name, np.asarray(column, dtype))
        if n and (self.class_ids.min() < 0 or self.class_ids.max() >= len(self.class_names)):
            raise GlmdError(f"class_ids must index the {len(self.class_names)} class_names; got {self.class_ids}.")

    @classmethod
    def empty(cls, class_names: tuple[str, ...]) -> Detections:
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), class_names)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Detections:
        rows = np.atleast_1d(np.arange(len(self))[index])
        columns: dict[str, Any] = {name: v[rows] for name in COLUMNS if (v := getattr(self, name)) is not None}
        return replace(self, **columns)

    @property
    def names(self) -> list[str]:
        """The class name of each row."""
        return [self.class_names[i] for i in self.class_ids]

    def to_dict(self) -> list[dict[str, Any]]:
        """One plain dictionary a row, ready for JSON: `{"name", "class_id", "score", "xyxy"}`.

        And `"celsius": {"min", "mean", "max"}` and `"track_id"` (None for -1) where there are these columns.
        """
        columns = zip(self.names, self.class_ids, self.scores, self.xyxy, strict=True)
        rows: list[dict[str, Any]] = [
            {"name": n, "class_id": int(c), "score": round(float(s), 4), "xyxy": [round(float(v), 2) for v in box]}
            for n, c, s, box in columns
        ]
        for i, row in enumerate(rows):
            if self.temperatures is not None:
                celsius = (round(float(value), 2) for value in self.temperatures[i])
                row["celsius"] = dict(zip(("min", "mean", "max"), celsius, strict=True))
            if self.track_ids is not None:
                row["track_id"] = int(self.track_ids[i]) if self.track_ids[i] >= 0 else None
        return rows

    def to_supervision(self) -> supervision.Detections:
        """The same rows as `supervision.Detections`. Raises: UnsupportedError when supervision is not installed.

        `data` has "class_name", and "celsius" (N, 3) where there are temperatures; `tracker_id` is `track_ids`.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise UnsupportedError(f"It needs supervision. Run: {install_command('track')}") from error
        celsius = {} if self.temperatures is None else {"celsius": self.temperatures}
        return supervision.Detections(
            xyxy=self.xyxy, confidence=self.scores, class_id=self.class_ids, tracker_id=self.track_ids,
            data={"class_name": np.array(self.names), **celsius},
        )
