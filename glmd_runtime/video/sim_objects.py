"""What the simulator draws: bodies made of three-dimensional parts, and the pixels they cover.

A body is a function of time that returns parts in metres: x forward, y to the side, z up, origin on the ground (or in
the middle, for what flies). Heat is in sensor counts above the temperature of the air.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Point = tuple[float, float, float]
Rng = np.random.Generator

SUPERSAMPLING = 4  # sub-pixels a side: an edge has 16 levels of coverage
SOLID = 0.3  # coverage from which a pixel counts as part of an object
_FRACTION_BITS = 4  # of OpenCV's fixed-point polygon corners
_CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 16, endpoint=False)) for f in (np.cos, np.sin)], axis=1)


@dataclass(frozen=True)
class View:
    """An orthographic camera: metres to pixels. `tilt` in radians: pi/2 looks straight down, negative looks up."""

    pixels_per_metre: float
    tilt: float

    def project(self, points: Array) -> Array:
        """(..., 3) metres, x right, y towards the camera, z up -> (..., 2) pixels."""
        v = points[..., 1] * math.sin(self.tilt) - points[..., 2] * math.cos(self.tilt)
        return np.stack([points[..., 0], v], axis=-1) * self.pixels_per_metre


@dataclass(frozen=True)
class Limb:
    """A rod with round ends; a ball where both ends are the same point."""

    start: Point
    end: Point
    radius: float
    heat: float

    def outlines(self, view: View, turn: Array) -> list[tuple[Array, float]]:
        ends = view.project(np.array([self.start, self.end], np.float32) @ turn)  # (2, 2)
        circle = _CIRCLE * self.radius * view.pixels_per_metre
        if self.start == self.end:
            return [(ends[0] + circle, self.heat)]
        return [(_hull((ends[:, None] + circle).reshape(-1, 2)), self.heat)]


@dataclass(frozen=True)
class Slab:
    """A convex plan (K, 2) standing from `bottom` to `top`, the roof shrunk by `taper`; flat where they are equal."""

    plan: Array
    bottom: float
    top: float
    side: float
    roof: float
    taper: float = 1.0

    def outlines(self, view: View, turn: Array) -> list[tuple[Array, float]]:
        middle = self.plan.mean(0)
        base = view.project(_lift(self.plan, self.bottom) @ turn)  # (K, 2)
        roof = view.project(_lift(middle + (self.plan - middle) * self.taper, self.top) @ turn)
        return [(_hull(np.concatenate([base, roof])), self.side), (_hull(roof), self.roof)]


Part = Limb | Slab
Body = Callable[[float], list[Part]]


@dataclass(frozen=True, eq=False)
class Sprite:
    """Pixels (h, w) whose top left corner is at (x, y) of the picture.

    alpha  (h, w) float32 coverage in 0..1
    heat   (h, w) float32 counts, already multiplied by alpha
    """

    x: int
    y: int
    alpha: Array
    heat: Array

    def windows(self, hw: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the sprite lies in a picture of `hw`, and which of its pixels lie there; both may be empty."""
        h, w = self.alpha.shape
        top, left = np.clip(self.y, 0, hw[0]), np.clip(self.x, 0, hw[1])
        bottom, right = np.clip(self.y + h, 0, hw[0]), np.clip(self.x + w, 0, hw[1])
        inside = slice(top - self.y, bottom - self.y), slice(left - self.x, right - self.x)
        return (slice(top, bottom), slice(left, right)), inside


def rasterize(parts: list[Part], view: View, heading: float, at: Array) -> Sprite:
    """Draw parts in their order, later over earlier.

    Args: heading radians, 0 to the right, clockwise in the picture; at (2,) pixels, where the body's origin falls.
    """
    c, s = math.cos(heading), math.sin(heading)
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32)
    outlines = [outline for part in parts for outline in part.outlines(view, turn)]
    corners = np.concatenate([polygon for polygon, _ in outlines]) + at
    x, y = (int(v) - 1 for v in np.floor(corners.min(0)))
    w, h = (int(v) + 1 for v in np.ceil(corners.max(0)) - (x, y))
    fine = np.zeros((h * SUPERSAMPLING, w * SUPERSAMPLING, 2), np.float32)  # heat, coverage
    offset = np.asarray(at) - (x, y)
    for polygon, heat in outlines:
        pixels = ((polygon + offset) * SUPERSAMPLING - 0.5) * 2**_FRACTION_BITS
        cv2.fillConvexPoly(fine, np.rint(pixels).astype(np.int32), (heat, 1.0), shift=_FRACTION_BITS)
    layers = np.asarray(cv2.resize(fine, (w, h), interpolation=cv2.INTER_AREA), np.float32)  # (h, w, 2)
    return Sprite(x, y, layers[..., 1], layers[..., 0])


def _hull(points: Array) -> Array:
    return np.asarray(cv2.convexHull(points.astype(np.float32))[:, 0], np.float32)


def _lift(plan: Array, z: float) -> Array:
    return np.column_stack([plan, np.full(len(plan), z, np.float32)]).astype(np.float32)


def box_plan(x1: float, x2: float, width: float, bevel: float = 0.0) -> Array:
    """The plan (8, 2) of a box from x1 to x2, `width` wide, with cut corners."""
    w, b = width / 2, bevel
    right = [(x2, b - w), (x2, w - b), (x2 - b, w), (x1 + b, w), (x1, w - b), (x1, b - w), (x1 + b, -w), (x2 - b, -w)]
    return np.array(right, np.float32)


def person(rng: Rng, walking: bool = True) -> Body:
    """A head warmer than the clothes, and legs that swing."""
    heat = rng.normal(78, 20)
    head, chest, sleeve, leg_l, leg_r = heat + rng.normal([15, 0, -12, -12, -12], [15, 15, 30, 28, 28])
    pace, phase = rng.uniform(5, 7), rng.uniform(0, 2 * np.pi)
    swing, reach = (rng.uniform(0.25, 0.45) if walking else 0.0), rng.uniform(0.3, 0.6)
    lean, build = rng.uniform(-0.1, 0.25), rng.uniform(0.15, 0.23)

    def body(time: float) -> list[Part]:
        step = swing * math.sin(pace * time + phase)
        return [
            Limb((0, -0.11, 0.9), (step, -0.15, 0.06), 0.1, leg_l),
            Limb((0, 0.11, 0.9), (-step, 0.15, 0.06), 0.1, leg_r),
            Limb((lean, -0.22, 1.38), (lean - step, -reach, 0.9), 0.07, sleeve),
            Limb((0, 0, 0.95), (lean, 0, 1.35), build, chest),
            Limb((lean, 0.22, 1.38), (lean + step, reach, 0.9), 0.07, sleeve + 10),
            Limb((lean * 1.3, 0, 1.6), (lean * 1.3, 0, 1.66), 0.13, head),
        ]

    return body


def car(rng: Rng, driven: bool = False) -> Body:
    """Parked: a cold roof that mirrors the sky. Driven: warm hood, wheels and exhaust. In either, cool windows."""
    length, width, cabin = rng.uniform(4.0, 5.0), rng.uniform(1.7, 1.95), rng.uniform(0.2, 0.4)
    paint = rng.normal(-40, 30) if rng.random() < 0.75 else rng.normal(55, 30)
    hood = paint + (rng.uniform(60, 150) if driven or rng.random() < 0.2 else rng.normal(5, 10))
    wheel, exhaust = (70.0, 140.0) if driven else (-10.0, paint)
    glass, roof, side = paint - rng.uniform(10, 45), paint - rng.uniform(-10, 40), paint + rng.uniform(10, 80)
    front, back = length / 2, -length / 2
    axles, track = (0.3 * length, -0.3 * length), (0.46 * width, -0.46 * width)
    parts: list[Part] = [Limb((x, y, 0.3), (x, y, 0.3), 0.31, wheel) for x in axles for y in track]
    parts += [
        Slab(box_plan(back, front, width, 0.3), 0.25, 0.85, side, paint),
        Slab(box_plan(0.22 * length, front - 0.12, width * 0.82, 0.2), 0.86, 0.86, hood, hood),
        Slab(box_plan(-cabin * length - 0.2, 0.2 * length, width * 0.9, 0.15), 0.85, 1.42, glass, roof, 0.72),
        Limb((back, 0.3 * width, 0.3), (back - 0.05, 0.3 * width, 0.3), 0.09, exhaust),
    ]
    return lambda time: parts


def bicycle(rng: Rng, ridden: bool = True) -> Body:
    """Two wheels and a frame; ridden, the rider is part of the object, as in HIT-UAV's labels."""
    metal, size = rng.normal(-45, 25), rng.uniform(0.95, 1.4)
    legs, torso, head = rng.normal(78, 20) + rng.normal([-10, 0, 15], 15)
    cadence, phase, bulk = rng.uniform(5, 8), rng.uniform(0, 2 * np.pi), rng.uniform(0.07, 0.2)
    bars = rng.uniform(0.25, 0.35)
    machine: list[Part] = [
        Limb((-0.8 * size, 0, 0.33), (-0.3 * size, 0, 0.33), 0.12, metal),
        Limb((0.3 * size, 0, 0.33), (0.8 * size, 0, 0.33), 0.12, metal),
        Limb((-0.5 * size, 0, 0.5), (0.4 * size, 0, 0.6), bulk, metal + 10),
        Limb((0.4 * size, -bars, 1.0), (0.4 * size, bars, 1.0), 0.05, metal),
        Limb((-0.3 * size, 0, 0.85), (-0.15 * size, 0, 0.85), 0.12, metal - 10),
    ]
    if not ridden:
        return lambda time: machine

    def body(time: float) -> list[Part]:
        pedal = 0.17 * math.sin(cadence * time + phase)
        return [
            *machine,
            Limb((-0.1, -0.12, 0.95), (0.15 + pedal, -0.14, 0.4), 0.09, legs),
            Limb((-0.1, 0.12, 0.95), (0.15 - pedal, 0.14, 0.4), 0.09, legs),
            Limb((-0.15, 0, 1.0), (0.12, 0, 1.4), 0.2, torso),
            Limb((0.12, -0.2, 1.35), (0.4, -bars, 1.0), 0.06, torso - 15),
            Limb((0.12, 0.2, 1.35), (0.4, bars, 1.0), 0.06, torso - 15),
            Limb((0.22, 0, 1.6), (0.22, 0, 1.65), 0.13, head),
        ]

    return body


def uav(rng: Rng) -> Body:
    """A quadcopter 0.8 m across: thin arms, four warm motors, a warm battery; it rocks."""
    motor, hull = rng.uniform(60, 160), rng.uniform(0, 80)
    pace, phase, legs = rng.uniform(1, 3), rng.uniform(0, 2 * np.pi), rng.uniform(-0.28, -0.12)
    corners = [(x, y) for x in (-0.28, 0.28) for y in (-0.28, 0.28)]

    def body(time: float) -> list[Part]:
        roll = 0.15 * math.sin(pace * time + phase)
        parts: list[Part] = [Limb((0, y / 3, 0), (x * 0.7, y, legs), 0.012, hull - 20) for x, y in corners]
        parts += [Limb((0, 0, 0.02), (x, y, y * roll + 0.05), 0.025, hull) for x, y in corners]
        parts += [Limb((x, y, y * roll + 0.03), (x, y, y * roll + 0.08), 0.035, motor) for x, y in corners]
        parts += [Slab(box_plan(-0.17, 0.17, 0.17, 0.04), -0.06, 0.08, hull + 30, hull + 15)]
        return [*parts, Limb((0.12, 0, -0.11), (0.12, 0, -0.11), 0.06, hull + 20)]

    return body


def airplane(rng: Rng) -> Body:
    """An airliner of 36 m, swept wings, with hot engines."""
    skin, engine = rng.uniform(-20, 60), rng.uniform(80, 200)
    sweep, span = rng.uniform(2, 7), rng.uniform(15, 18)
    parts: list[Part] = [Limb((x, y, -2), (x + 3, y, -2), 1.1, engine) for x, y in ((-1, -5.5), (-1, 5.5))]
    for tip in (-span, span):
        wing = np.array([(4, 0), (-3, 0), (-2 - sweep, tip), (-0.5 - sweep, tip)], np.float32)
        tail = np.array([(-13, 0), (-16.5, 0), (-17.5, tip / 3), (-16, tip / 3)], np.float32)
        parts += [Slab(wing, -0.9, -0.5, skin - 10, skin - 10), Slab(tail, 1, 1.3, skin, skin)]
    parts += [Limb((-16, 0, 0.8), (15.5, 0, 0), 1.9, skin + 15), Limb((-14.5, 0, 2), (-17, 0, 6.5), 0.9, skin)]
    return lambda time: parts


def helicopter(rng: Rng) -> Body:
    """A cabin with a hot turbine and exhaust, a tail boom, turning blades."""
    skin, turbine = rng.uniform(-10, 70), rng.uniform(90, 220)
    blades, rate, phase = int(rng.integers(2, 5)), rng.uniform(20, 45), rng.uniform(0, 2 * np.pi)
    frame: list[Part] = [
        Limb((-1, 0, 0.3), (-7, 0, 0.6), 0.35, skin),
        Limb((-6.8, 0, 0.2), (-7.6, 0, 1.9), 0.25, skin),
        Limb((-7.2, 0.2, 1.2), (-7.2, 0.2, 1.2), 0.8, skin - 30),
        Limb((0.9, 0, 0), (-0.9, 0, 0), 1.05, skin + 10),
        Limb((1.5, 0, -0.2), (1.5, 0, -0.2), 0.6, skin - 20),
        Limb((1.2, -0.8, -1.5), (-1.4, -0.8, -1.5), 0.1, skin),
        Limb((1.2, 0.8, -1.5), (-1.4, 0.8, -1.5), 0.1, skin),
        Limb((0.2, 0, 1.1), (-1.8, 0, 0.9), 0.45, turbine),
        Limb((0, 0, 1), (0, 0, 1.7), 0.15, turbine - 40),
    ]

    def body(time: float) -> list[Part]:
        turns = phase + rate * time + np.arange(blades) * 2 * np.pi / blades
        return [*frame, *(Limb((0, 0, 1.7), (5 * math.cos(a), 5 * math.sin(a), 1.8), 0.12, skin - 20) for a in turns)]

    return body


def bird(rng: Rng) -> Body:
    """A gull 1.2 m across: a warm body and wings that beat."""
    plumage, rate, phase = rng.uniform(10, 90), rng.uniform(8, 20), rng.uniform(0, 2 * np.pi)
    core = plumage + rng.uniform(10, 50)

    def body(time: float) -> list[Part]:
        lift = 0.3 * math.sin(rate * time + phase)
        parts: list[Part] = []
        for side in (-1, 1):
            elbow, tip = (0.05, 0.3 * side, lift), (-0.1, 0.6 * side, 0.7 * lift)
            parts += [Limb((0, 0, 0), elbow, 0.08, plumage), Limb(elbow, tip, 0.05, plumage)]
        return [*parts, Limb((-0.25, 0, 0), (0.2, 0, 0.02), 0.1, core)]

    return body
