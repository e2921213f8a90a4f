"""`sim://`: a thermal camera that needs no hardware and knows the truth.

    sim://ground?seed=7&frames=90     people, cars and bicycles, seen from a drone
    sim://air?seed=3&size=640x512     drones, airplanes, helicopters and birds, seen from the ground

A scene grows from its seed: the same spec gives the same frames, byte for byte. Pictures are raw 16-bit counts;
`thermal.py` maps them to intensity as it does for a real sensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.boxes import clip
from glmd_runtime.detections import Detections
from glmd_runtime.errors import UsageError
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.sim_actors import PAN, Actor, populate
from glmd_runtime.video.sim_objects import SOLID, Array, Rng, Sprite
from glmd_runtime.video.sim_worlds import Size, fractal, sky, terrain

CLASS_NAMES = ("person", "car", "bicycle", "uav", "airplane", "helicopter", "bird")
SCENE_SIZES: dict[str, Size] = {"ground": (512, 640), "air": (256, 320)}  # height, width of the real sets
VISIBLE_SHARE = 0.3  # of its pixels an object must show to be in the truth
MIN_SIDE = 3  # pixels, of a box in the truth
NOISE_BANK = 8  # pre-drawn noise pictures; each frame uses one at a random offset


@dataclass(frozen=True)
class SceneSpec:
    """All that a simulated stream depends on.

    frames   how many; 0 never ends
    fps      frames a second of scene time
    objects  how many objects live in the scene; None lets the seed choose
    live     whether the clock asks for frames, as it does of a camera, or the one who reads them
    """

    scene: str = "ground"
    size_hw: Size = SCENE_SIZES["ground"]
    seed: int = 0
    frames: int = 300
    fps: float = 30.0
    objects: int | None = None
    live: bool = False

    def __post_init__(self) -> None:
        limits = {
            f"one of the scenes {', '.join(SCENE_SIZES)}": self.scene in SCENE_SIZES,
            "a size from 64x64 to 4096x4096": all(64 <= side <= 4096 for side in self.size_hw),
            "a seed of 0 or more": self.seed >= 0,
            "frames of 0 (never ends) or more": self.frames >= 0,
            "an fps above 0 and up to 1000": 0 < self.fps <= 1000,
            "from 0 to 500 objects": self.objects is None or 0 <= self.objects <= 500,
        }
        for expected, holds in limits.items():
            if not holds:
                raise UsageError(f"The simulator expects {expected}; got {self}. Change that value.")


def parse_sim_uri(uri: str) -> SceneSpec:
    """`sim://SCENE?seed=7&frames=90&size=WIDTHxHEIGHT&fps=30&objects=12&live=1`; each key may be left out."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # of brackets that hold no address
        parts = urlsplit("")
    if parts.scheme != "sim" or parts.netloc not in SCENE_SIZES or parts.path not in ("", "/"):
        raise UsageError(f"Expected sim://{' or sim://'.join(SCENE_SIZES)}; got {uri!r}. Try sim://ground?seed=7.")
    values: dict[str, Any] = {"scene": parts.netloc, "size_hw": SCENE_SIZES[parts.netloc]}
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _KEYS:
            raise UsageError(f"Expected the keys {', '.join(_KEYS)}; got {key!r} in {uri!r}. Correct or remove it.")
        field, read, example = _KEYS[key]
        try:
            values[field] = read(text)
        except ValueError:
            raise UsageError(f"Expected {key} like {key}={example}; got {key}={text} in {uri!r}. Correct it.") from None
    return SceneSpec(**values)


def _read_size(text: str) -> Size:
    width, height = text.lower().split("x")
    return int(height), int(width)


_KEYS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "seed": ("seed", int, "7"),
    "frames": ("frames", int, "90"),
    "size": ("size_hw", _read_size, "640x512"),
    "fps": ("fps", float, "30"),
    "objects": ("objects", int, "12"),
    "live": ("live", lambda text: bool(("0", "1").index(text)), "1"),
}


def simulate(spec: SceneSpec) -> Iterator[Frame]:
    """The frames of a scene: (H, W) uint16 raw counts with their truth."""
    scene = Scene(spec)
    return (scene.frame(index) for index in (range(spec.frames) if spec.frames else count()))


def snapshot(scene: str, seed: int, size_hw: Size | None = None) -> Frame:
    """One picture of a fresh scene, for training: seeds give unrelated places, weather, objects and cameras."""
    return next(simulate(SceneSpec(scene, size_hw or SCENE_SIZES.get(scene, (64, 64)), seed, frames=1)))


class Scene:
    """A world, its actors and a camera. `frame(i)` may be asked for in any order.

    pan_rates  (2,) radians a second, how fast the camera sways in x and y
    """

    def __init__(self, spec: SceneSpec) -> None:
        rng = np.random.default_rng((spec.seed, list(SCENE_SIZES).index(spec.scene)))
        self.spec = spec
        hw = spec.size_hw[0] + 2 * PAN, spec.size_hw[1] + 2 * PAN
        self.world = terrain(rng, hw) if spec.scene == "ground" else sky(rng, hw)
        self.actors = populate(rng, self.world, spec.objects)
        self._mottle = rng.uniform(4, 10) * fractal(rng, (256, 256), 6, 2)
        self.pan_rates = rng.uniform(0.1, 0.5, 2)
        self._camera = _Camera(rng, spec)

    def frame(self, index: int) -> Frame:
        """The camera's picture: (H, W) uint16 raw counts, with the truth."""
        time = index / self.spec.fps
        heat, truth = self.render(time)
        return Frame(self._camera.expose(heat, index, time), index, time, truth)

    def render(self, time: float, actors: Sequence[Actor] | None = None) -> tuple[Array, Detections]:
        """The scene with its own or other actors, before optics and noise: heat (H, W) float32, and truth."""
        hw = self.world.heat.shape
        canvas, owner = np.array(self.world.heat, np.float32), np.full(hw, -1, np.int16)
        cast = [(a, a.sprite(time, hw)) for a in (self.actors if actors is None else actors)]
        cast.sort(key=lambda pair: pair[1].y + len(pair[1].alpha))  # nearer ones lie lower, and in front
        for i, (actor, sprite) in enumerate(cast):
            window, inside = sprite.windows(hw)
            unhidden = 1 - self.world.cover[window]
            alpha = sprite.alpha[inside] * unhidden
            heat = sprite.heat[inside] * unhidden + alpha * self._mottle[inside]
            canvas[window] = canvas[window] + actor.transmission * (heat - alpha * canvas[window])
            owner[window][alpha > SOLID] = i
        corner = PAN * (1 + np.sin(self.pan_rates * time))  # (2,) x, y of the picture in the world
        h, w = self.spec.size_hw
        middle = float(corner[0]) + (w - 1) / 2, float(corner[1]) + (h - 1) / 2
        seen = np.asarray(cv2.getRectSubPix(canvas, (w, h), middle), np.float32)
        return seen, self._truth(cast, owner, corner)

    def _truth(self, cast: list[tuple[Actor, Sprite]], owner: NDArray[np.int16], corner: Array) -> Detections:
        """Boxes of the pixels that each actor owns in the picture."""
        h, w = self.spec.size_hw
        found: list[tuple[int, Array]] = []
        for i, (actor, sprite) in enumerate(cast):
            window, _ = sprite.windows(owner.shape)
            rows, cols = np.nonzero(owner[window] == i)
            x, y = cols + window[1].start - corner[0], rows + window[0].start - corner[1]  # left, top of each pixel
            seen = (x > -0.5) & (x < w - 0.5) & (y > -0.5) & (y < h - 0.5)
            if seen.sum() < max(VISIBLE_SHARE * np.count_nonzero(sprite.alpha > SOLID), 1):
                continue
            x, y = x[seen], y[seen]
            box = clip(np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float32), (h, w))
            if min(box[2:] - box[:2]) >= MIN_SIDE:
                found.append((CLASS_NAMES.index(actor.name), box))
        classes = np.array([c for c, _ in found], np.int64)
        boxes = np.array([box for _, box in found], np.float32).reshape(-1, 4)
        return Detections(boxes, np.ones(len(boxes), np.float32), classes, CLASS_NAMES)


class _Camera:
    """Optics, sharpening and the sensor: blur, fixed pattern, temporal noise, drift, 14-bit counts."""

    def __init__(self, rng: Rng, spec: SceneSpec) -> None:
        h, w = spec.size_hw
        self._seed = spec.seed
        self._blur, self._sharpen, self._gain = rng.uniform(0.7, 1.1), rng.uniform(0.2, 1.0), rng.uniform(0.9, 1.8)
        self._level, self._drift = rng.uniform(7500, 8300), rng.uniform(0, 12)
        columns, rows = 0.35 * rng.standard_normal((1, w)), 0.3 * rng.standard_normal((h, 1))
        radius = np.hypot(*np.meshgrid(np.linspace(-1, 1, w), np.linspace(-1, 1, h)))
        pattern = columns + rows + 0.4 * rng.standard_normal((h, w)) + rng.normal(0, 5) * radius**2
        self._pattern = pattern.astype(np.float32)
        pictures = min(NOISE_BANK, spec.frames or NOISE_BANK)
        self._noise = rng.uniform(0.5, 2.2) * rng.standard_normal((pictures, h + 32, w + 32), np.float32)

    def expose(self, heat: Array, index: int, time: float) -> NDArray[np.uint16]:
        """Heat (H, W) float32 -> raw counts (H, W) uint16."""
        h, w = heat.shape
        rng = np.random.default_rng((self._seed, index))
        image = np.asarray(cv2.GaussianBlur(heat, (0, 0), self._blur), np.float32)
        # Thermal cores sharpen before they put out counts: the halo around warm objects in real pictures.
        image += self._sharpen * (image - cv2.GaussianBlur(image, (0, 0), 2.5))
        bank, y, x = rng.integers(len(self._noise)), rng.integers(33), rng.integers(33)
        level = self._level + self._drift * math.sin(0.3 * time)
        image = image * self._gain + (self._noise[bank, y : y + h, x : x + w] + self._pattern + np.float32(level))
        return np.asarray(np.clip(np.rint(image), 0, 2**14 - 1), np.uint16)
