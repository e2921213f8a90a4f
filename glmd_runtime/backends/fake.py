"""A backend that answers from a script: for tests of programs that use a Detector, with no inference library."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from glmd_runtime.backends.base import Tensors
from glmd_runtime.manifest import GraphSpec

Row = tuple[Sequence[float], int, float]  # xyxy in network pixels, class_id, score


class FakeBackend:
    """Answers the n-th image with the n-th list of rows, and begins again after the last.

    >>> two_frames = [[((10, 10, 50, 90), 0, 0.9)], []]
    >>> Detector("model.glmd", backend=FakeBackend(graph, two_frames))  # doctest: +SKIP
    """

    device = "cpu"

    def __init__(self, graph: GraphSpec, script: Sequence[Sequence[Row]]) -> None:
        self._graph = graph
        self._script = cycle(script)

    def run(self, inputs: Tensors) -> Tensors:
        outputs = {name: np.zeros(shape, np.float32) for name, shape in self._graph.outputs.items()}
        valid = np.zeros(self._graph.outputs["valid"], bool)
        for image in range(len(inputs["images"])):
            for proposal, (xyxy, class_id, score) in enumerate(next(self._script)):
                outputs["boxes"][image, proposal, class_id] = xyxy
                outputs["scores"][image, proposal, class_id] = score
                valid[image, proposal] = True
        return {**outputs, "valid": valid}

    def close(self) -> None:
        """Nothing to give back."""
