"""Whether a stream looks like what the model was trained on: palette, polarity, brightness and contrast."""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.camera.looks import CLEAR, COLOURFUL, WARM_BLOODED, Looks, contrast, wilson
from glmd_runtime.detections import Detections
from glmd_runtime.preprocess import PreprocessSpec
from glmd_runtime.thermal import POLARITIES, Polarity

_log = logging.getLogger(__name__)

EVERY = 1.0  # seconds between two looks
LOOKS = 30  # that are remembered; fewer than a third of them say nothing
VOTES = 30  # pictures with warm-blooded objects; fewer say nothing of the polarity
QUIET = 600.0  # seconds that a thing was as in training, after which it is said again; one at the limit comes and goes


class DriftWatch:
    """Looks at a stream's pictures every second and warns of each thing that is not as in training, once in a while.

    Brightness and contrast are compared with the model's `PreprocessSpec.statistics`; of a model without them nothing
    is said of these two. A palette is noticed where a model was trained on grey, and polarity where people or animals
    are found: they are warmer than what is around them nearly always.
    """

    def __init__(self, spec: PreprocessSpec, name: str = "The stream", polarity: Polarity | None = None) -> None:
        """Args: polarity, what the user said of the camera."""
        self._name = name
        self._spec = spec
        self._polarity_said = polarity
        self._raw = False
        self._looks: deque[Looks] = deque(maxlen=LOOKS)
        self._votes: deque[bool] = deque(maxlen=VOTES)  # whether the warm are the darker ones
        self._next = -math.inf
        self._warnings: dict[str, str] = {}
        self._last: dict[str, float] = {}  # kind -> when it was so last

    @property
    def warnings(self) -> dict[str, str]:
        """What is not as in training: "palette", "polarity", "brightness", "contrast" -> a sentence."""
        return dict(self._warnings)

    def __call__(self, picture: NDArray[np.uint8], found: Detections, time: float, raw: bool = False) -> None:
        """One picture as the network sees it, (H, W) or (H, W, 3) uint8, its detections, its time in the stream.

        Args: raw, whether it was made of raw counts.
        """
        if self._next - EVERY <= time < self._next:
            return
        self._next, self._raw = time + EVERY, raw
        self._looks.append(Looks.of(picture))
        self._vote(picture, found)
        now = dict(self._judge())
        for kind, sentence in now.items():
            if time - self._last.get(kind, -math.inf) > QUIET:
                _log.warning("%s is not what the model was trained on. %s", self._name, sentence)
            self._last[kind] = time
        self._warnings = now

    def _vote(self, picture: NDArray[np.uint8], found: Detections) -> None:
        """One picture has one vote, as it has one polarity."""
        warm = [box for box, name in zip(found.xyxy, found.names, strict=True) if name.lower() in WARM_BLOODED]
        if not warm or self._looks[-1].colour > COLOURFUL:
            return
        grey: Any = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) if picture.ndim == 3 else picture
        sides = sum(float(np.sign(c)) for box in warm if abs(c := contrast(grey, box)) > CLEAR)
        if sides:
            self._votes.append(sides < 0)

    def _judge(self) -> list[tuple[str, str]]:
        judged = []
        if 3 * len(self._looks) >= LOOKS:
            brightness, spread, colour = (
                float(np.median([getattr(looks, name) for looks in self._looks]))
                for name in ("brightness", "contrast", "colour")
            )
            judged += self._palette(colour)
            judged += self._range("brightness", brightness, "Its mean intensity")
            judged += self._range("contrast", spread, "The standard deviation of its intensities")
        return judged + self._polarity()

    def _palette(self, colour: float) -> list[tuple[str, str]]:
        known = self._spec.statistics.colour[1] if self._spec.statistics and self._spec.channels == 3 else 0.0
        if (self._spec.channels == 3 and not self._spec.statistics) or colour <= max(known, COLOURFUL):
            return []
        trained = "grey" if self._spec.channels == 1 else f"{100 * known:.0f}% at most"
        return [("palette", (
            f"{100 * colour:.0f}% of its pixels are coloured, in training it was {trained}: a palette over thermal "
            f"values, or visible light. Set the camera to {self._expected()} grey."
        ))]

    def _expected(self) -> Polarity:
        """What the camera is taken to deliver. Counts rise with the temperature where nothing else was said."""
        return self._polarity_said or ("white-hot" if self._raw else self._spec.intensity.polarity)

    def _range(self, name: str, value: float, words: str) -> list[tuple[str, str]]:
        if self._spec.statistics is None:
            return []
        low, high = getattr(self._spec.statistics, name)
        if low <= value <= high:
            return []
        return [(name, (
            f"{words} is {value:.0f}, in training {low:.0f} to {high:.0f}. Look at the camera's gain, and at whether "
            "the model's intensity mode suits it."
        ))]

    def _polarity(self) -> list[tuple[str, str]]:
        if len(self._votes) < VOTES:
            return []
        wrong = sum(self._votes) if self._spec.intensity.polarity == "white-hot" else VOTES - sum(self._votes)
        if wilson(wrong, VOTES)[0] <= 0.5:
            return []
        expected = self._expected()
        other = POLARITIES[1 - POLARITIES.index(expected)]
        said = f" instead of {self._polarity_said!r}" if self._polarity_said else ""
        return [("polarity", (
            f"People and animals are on the cold side of what surrounds them in {wrong} of {VOTES} pictures: it seems "
            f"{other}. Say polarity={other!r} for this camera{said}, or set the camera to {expected}."
        ))]
