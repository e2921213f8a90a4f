"""Who lives in a simulated world: where the bodies stand, which way they go, and how they group."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from glmd_runtime.video import sim_objects as objects
from glmd_runtime.video.sim_objects import Array, Body, Rng, Sprite, View, rasterize
from glmd_runtime.video.sim_worlds import MATERIALS, Size, Terrain, World

PAN = 24  # pixels of world beyond each side of the picture, over which the camera sways


@dataclass(frozen=True, eq=False)
class Actor:
    """A body that goes to and fro on a straight line through the world, out of sight where it turns.

    anchor        (2,) world pixels at time 0
    velocity      (2,) pixels a second
    heading       radians on the ground
    transmission  share of its heat that the air lets through, 0..1
    sway          pixels that it bobs up and down
    """

    name: str
    body: Body
    anchor: Array
    velocity: Array
    heading: float
    view: View
    transmission: float = 1.0
    sway: float = 0.0

    def sprite(self, time: float, world_hw: Size) -> Sprite:
        """The actor in world pixels; it leaves the world at one side and comes back at the other."""
        speed = float(np.hypot(*self.velocity))
        reach = math.hypot(*world_hw) + 150
        travelled = (speed * time + reach) % (2 * reach) - reach
        at = self.anchor + self.velocity / max(speed, 1e-6) * travelled
        at = at + np.array([0, self.sway * math.sin(1.7 * time + self.anchor[0])])
        return rasterize(self.body(time), self.view, self.heading, at)


def populate(rng: Rng, world: World, n: int | None) -> list[Actor]:
    """`n` actors that suit the world, or as many as chance wants; fewer where there is no room."""
    if isinstance(world, Terrain):
        return _people_and_cars(rng, world, int(rng.choice([2, 4, 7, 12, 20, 30])) if n is None else n)
    return [_flyer(rng, world) for _ in range(int(rng.integers(1, 5)) if n is None else n)]


@dataclass(frozen=True)
class Flyer:
    """A thing that flies: its size in metres, how large and how fast it looks in pixels, how much haze dims it."""

    body: Callable[[Rng], Body]
    metres: float
    pixels: tuple[float, float]
    speed: tuple[float, float]
    transmission: tuple[float, float]


FLYERS = {
    "uav": Flyer(objects.uav, 0.7, (10, 32), (4, 40), (0.5, 1)),
    "airplane": Flyer(objects.airplane, 36, (12, 32), (5, 30), (0.15, 0.8)),
    "helicopter": Flyer(objects.helicopter, 11, (11, 34), (8, 40), (0.15, 0.9)),
    "bird": Flyer(objects.bird, 1.2, (9, 18), (20, 90), (0.08, 0.4)),
}


def _flyer(rng: Rng, world: World) -> Actor:
    name = str(rng.choice(list(FLYERS)))
    kind, (h, w) = FLYERS[name], world.heat.shape
    across = math.exp(rng.uniform(*np.log(kind.pixels)))
    anchor = np.array([rng.uniform(PAN, w - PAN), rng.uniform(PAN + 8, h * 0.75)])
    heading = rng.choice([0, math.pi]) + rng.normal(0, 0.5)
    velocity = rng.uniform(*kind.speed) * np.array([math.cos(heading), rng.normal(0, 0.15)])
    view = View(across / kind.metres, rng.normal(-0.1, 0.2))
    haze = rng.uniform(*kind.transmission)
    return Actor(name, kind.body(rng), anchor, velocity, heading, view, haze, rng.uniform(0, 3))


def _people_and_cars(rng: Rng, world: Terrain, n: int) -> list[Actor]:
    actors: list[Actor] = []
    hw = np.array(world.heat.shape)
    for _ in range(20 * n):
        if len(actors) == n:
            break
        at = (PAN + rng.random(2) * (hw - 2 * PAN))[::-1]
        material = list(MATERIALS)[world.strips[int(at[1]), int(at[0])]]
        group = DWELLERS[material][rng.integers(len(DWELLERS[material]))]
        free = [a for a in group(rng, world, at) if all(_apart(a, other) for other in actors)]
        actors += free[: n - len(actors)]
    return actors


def _apart(a: Actor, b: Actor) -> bool:
    """Whether two actors of different groups start clear of each other on the ground."""
    dx, dy = (a.anchor - b.anchor) / a.view.pixels_per_metre
    return math.hypot(dx, dy / math.sin(a.view.tilt)) > ELBOW_ROOM[a.name] + ELBOW_ROOM[b.name]


ELBOW_ROOM = {"person": 0.3, "bicycle": 0.5, "car": 2.3}  # metres around the middle


def _ground(world: Terrain, angle: float, metres: float) -> Array:
    """(2,) pixels that `metres` on the ground in direction `angle` take up in the picture."""
    return world.view.project(np.array([math.cos(angle), math.sin(angle), 0], np.float32)) * metres


def _row(world: Terrain, at: Array, pitch: float, bodies: list[Body], name: str, heading: float) -> list[Actor]:
    """Bodies that stand side by side along the road, `pitch` metres apart."""
    step, still = _ground(world, world.angle, pitch), np.zeros(2, np.float32)
    return [Actor(name, body, at + i * step, still, heading, world.view) for i, body in enumerate(bodies)]


def _walkers(rng: Rng, world: Terrain, at: Array) -> list[Actor]:
    heading, spread = rng.uniform(0, 2 * math.pi), rng.uniform(0.7, 3)
    walking = rng.random() < 0.7
    people = []
    for _ in range(int(rng.choice([1, 1, 2, 3, 5, 8]))):
        spot = at + _ground(world, rng.uniform(0, 2 * math.pi), spread * rng.random())
        own = heading + rng.normal(0, 0.25 if walking else 2)
        velocity = _ground(world, own, rng.uniform(0.8, 1.6) * walking)
        people.append(Actor("person", objects.person(rng, walking), spot, velocity, own, world.view))
    return people


def _traffic(rng: Rng, world: Terrain, at: Array) -> list[Actor]:
    heading = world.angle + rng.choice([0, math.pi])
    velocity = _ground(world, heading, rng.uniform(2, 9))
    return [Actor("car", objects.car(rng, driven=True), at, velocity, heading, world.view)]


def _parked(rng: Rng, world: Terrain, at: Array) -> list[Actor]:
    cars = [objects.car(rng) for _ in range(rng.integers(1, 8))]
    heading = world.angle + rng.choice([-1, 1]) * math.pi / 2 + rng.normal(0, 0.05)
    return _row(world, at, rng.uniform(2.5, 3.1), cars, "car", heading)


def _kerbside(rng: Rng, world: Terrain, at: Array) -> list[Actor]:
    cars = [objects.car(rng) for _ in range(rng.integers(1, 4))]
    return _row(world, at, rng.uniform(5.3, 6.5), cars, "car", world.angle)


def _rack(rng: Rng, world: Terrain, at: Array) -> list[Actor]:
    bicycles = [objects.bicycle(rng, ridden=False) for _ in range(rng.integers(2, 9))]
    heading = world.angle + math.pi / 2 + rng.normal(0, 0.3)
    return _row(world, at, rng.uniform(0.6, 1.1), bicycles, "bicycle", heading)


def _rider(rng: Rng, world: Terrain, at: Array) -> list[Actor]:
    heading = world.angle + rng.choice([0, math.pi]) + rng.normal(0, 0.1)
    velocity = _ground(world, heading, rng.uniform(2, 5))
    return [Actor("bicycle", objects.bicycle(rng), at, velocity, heading, world.view)]


DWELLERS: dict[str, tuple[Callable[[Rng, Terrain, Array], list[Actor]], ...]] = {
    "asphalt": (_traffic, _traffic, _walkers, _rider, _kerbside),
    "lot": (_parked, _parked, _parked, _walkers, _rider, _rack),
    "paving": (_walkers, _walkers, _rack, _rack, _rider),
    "grass": (_walkers,),
    "field": (_walkers, _walkers, _walkers, _rider),
    "hedge": (_rack,),
}
