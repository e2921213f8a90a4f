"""The places of the simulator: terrain seen from a drone, and sky seen from the ground; both grow from a seed.

Heat is in counts above the temperature of the air, as in `sim_objects`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.video.sim_objects import Array, Limb, Part, Rng, Slab, Sprite, View, box_plan, rasterize

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Material:
    """A surface: its heat and how far that varies by place, its grain, and its wear along the road."""

    heat: float
    spread: float
    grain: float
    streaks: float
    width: tuple[float, float]  # metres
    trees: float = 0.0  # a metre of strip


MATERIALS = {
    "asphalt": Material(32, 14, 1.5, 5, (6, 15)),
    "lot": Material(20, 14, 1.5, 6, (18, 40)),
    "paving": Material(12, 14, 3.5, 2, (2, 6)),
    "grass": Material(-28, 18, 6, 0, (3, 14), 0.15),
    "field": Material(0, 12, 2.5, 1, (25, 60)),
    "hedge": Material(-38, 14, 10, 0, (2, 5), 0.55),
}
NEIGHBOURS = {
    "asphalt": ("paving", "grass", "hedge"),
    "lot": ("paving", "hedge", "grass"),
    "paving": ("grass", "asphalt", "field", "lot", "hedge"),
    "grass": ("paving", "asphalt", "field", "lot"),
    "field": ("paving", "grass", "hedge"),
    "hedge": ("paving", "asphalt", "lot", "field"),
}


@dataclass(frozen=True, eq=False)
class World:
    """What does not move.

    heat   (H, W) float32 counts
    cover  (H, W) float32 in 0..1, how far a pixel hides what is behind it
    """

    heat: Array
    cover: Array


@dataclass(frozen=True, eq=False)
class Terrain(World):
    """A world of parallel strips; `angle` is their direction on the ground in radians.

    strips  (H, W) uint8, index into MATERIALS
    """

    view: View
    angle: float
    strips: NDArray[np.uint8]


def fractal(rng: Rng, hw: Size, cell: float, octaves: int = 4, stretch: float = 1.0, decay: float = 0.5) -> Array:
    """(H, W) noise of unit deviation; its largest features are `cell` pixels high and `stretch` times as wide."""
    total = np.zeros(hw, np.float32)
    for octave in range(octaves):
        size = max(cell / 2**octave, 1.0)
        side = min(int(math.hypot(*hw) / size / min(stretch, 1)) + 4, 1024)
        grid = rng.standard_normal((side, side), np.float32)
        turn = rng.uniform(0, math.pi) if stretch == 1 else 0.0  # hides the lattice
        c, s = math.cos(turn) / size, math.sin(turn) / size
        lattice = np.array([[c / stretch, -s / stretch, rng.random() * side], [s, c, rng.random() * side]])
        flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_CUBIC if size > 12 else cv2.INTER_LINEAR)
        total += decay**octave * cv2.warpAffine(grid, lattice, hw[::-1], flags=flags, borderMode=cv2.BORDER_WRAP)
    return np.asarray(total / max(float(total.std()), 1e-6), np.float32)


def soft(distance: Array, pixels: float = 1.0) -> Array:
    """Signed distance in pixels -> coverage 0..1 of an edge `pixels` wide; positive is inside."""
    return np.asarray(np.clip(distance / pixels + 0.5, 0, 1), np.float32)


def terrain(rng: Rng, hw: Size) -> Terrain:
    """Roads, parking lots, fields, trees and buildings, seen obliquely from the air."""
    view = View(float(np.exp(rng.uniform(math.log(9.5), math.log(22)))), math.radians(rng.uniform(28, 80)))
    angle = rng.uniform(0, math.pi)
    along, across = _road_coordinates(view, angle, hw)
    heat, strips = _strips(rng, along, across, view)
    heat += rng.uniform(4, 14) * fractal(rng, hw, rng.uniform(120, 400), 3)
    heat += _texture(rng, strips, along, across, view) - _shade(rng, hw)
    world = Terrain(heat, np.zeros(hw, np.float32), view, angle, strips)
    _raise_clutter(rng, world)
    return world


def _road_coordinates(view: View, angle: float, hw: Size) -> tuple[Array, Array]:
    """Metres along and across the roads of each pixel, (H, W) each, from the middle of the picture."""
    v, u = np.mgrid[: hw[0], : hw[1]].astype(np.float32)
    x = (u - hw[1] / 2) / view.pixels_per_metre
    y = (v - hw[0] / 2) / (view.pixels_per_metre * math.sin(view.tilt))
    c, s = math.cos(angle), math.sin(angle)
    return x * c + y * s, y * c - x * s


def _strips(rng: Rng, along: Array, across: Array, view: View) -> tuple[Array, NDArray[np.uint8]]:
    """Lay materials side by side until the picture is full: heat (H, W) and index into MATERIALS (H, W)."""
    names = list(MATERIALS)
    name = str(rng.choice(names[:5]))
    edge, end = float(across.min()) - rng.uniform(0, 20), float(across.max())
    heat, strips = np.zeros_like(across), np.zeros(across.shape, np.uint8)
    wobble = 0.35 * fractal(rng, across.shape, 200, 3)
    while edge < end:
        material, width = MATERIALS[name], rng.uniform(*MATERIALS[name].width)
        distance = (across + (wobble if material.trees else 0) - edge) * view.pixels_per_metre
        inside = soft(distance, rng.uniform(1, 2.5))
        heat += inside * (material.heat + rng.normal(0, material.spread) - heat)
        heat += rng.normal(0, 14) * np.exp(-((distance / rng.uniform(1, 2.5)) ** 2))  # the kerb
        strips[inside > 0.5] = names.index(name)
        heat += _markings(rng, name, along, across - edge, width, view)
        edge, name = edge + width, str(rng.choice(NEIGHBOURS[name]))
    return heat, strips


def _markings(rng: Rng, name: str, along: Array, across: Array, width: float, view: View) -> Array | float:
    """Painted lines, and the cold patches that parked cars leave behind; `across` counts from the strip's edge."""
    paint, ppm = rng.uniform(-10, 16), view.pixels_per_metre
    inside = (across > 0) & (across < width)
    if name == "asphalt":
        line = soft((0.1 - abs(across - width / 2)) * ppm) * ((along % 6) < 3)
        stripes = soft((0.25 - abs(across % 1 - 0.5)) * ppm) * (abs(along - rng.normal(0, 40)) < 2)
        return paint * np.maximum(line, stripes * inside)
    if name == "field":
        lines = abs(across - width / 2), abs(along - rng.normal(0, 20))
        return paint * inside * (soft((0.15 - lines[0]) * ppm) + soft((0.15 - lines[1]) * ppm))
    if name == "lot":
        spots = soft(1.2 - abs(along % rng.choice([8, 5.5]) - 2.5), 1) * soft(2.2 - abs(across % 11 - 3), 1)
        left = (fractal(rng, along.shape, 60, 1) > 0.6) * inside
        return -rng.uniform(5, 25) * spots * cv2.GaussianBlur(left.astype(np.float32), (0, 0), 6)
    return 0.0


def _texture(rng: Rng, strips: NDArray[np.uint8], along: Array, across: Array, view: View) -> Array:
    """Grain by material, and wear along the roads."""
    grain = np.array([m.grain for m in MATERIALS.values()], np.float32)[strips]
    streaks = np.array([m.streaks for m in MATERIALS.values()], np.float32)[strips]
    wear = fractal(rng, (512, 512), 48, 4, stretch=8)
    # To and fro over the texture, so that it shows no seam where it repeats.
    u, v = (abs((metres * view.pixels_per_metre) % 1022 - 511) for metres in (along, across))
    worn = cv2.remap(wear, u, v, cv2.INTER_LINEAR)
    return grain * fractal(rng, strips.shape, 16, 4, decay=0.75) + streaks * worn


def _shade(rng: Rng, hw: Size) -> Array:
    """Ground that lay in the shadow of something large stays cold, with soft edges."""
    cold = 1 / (1 + np.exp(-4 * (fractal(rng, hw, 300, 4) - rng.uniform(0.5, 3))))
    return np.asarray(rng.uniform(15, 60) * cold, np.float32)


def _raise_clutter(rng: Rng, world: Terrain) -> None:
    """Stand trees, buildings, poles and boxes on the ground, the farthest first."""
    hw, ppm = world.heat.shape, world.view.pixels_per_metre
    metres = hw[0] * hw[1] / (ppm**2 * math.sin(world.view.tilt))
    spots = rng.random((int(metres * 0.12), 2)) * hw
    leaves = fractal(rng, hw, 5, 2)
    makers = (_tree, _bare_tree) if rng.random() < 0.3 else (_tree,)
    for row, col in spots[np.argsort(spots[:, 0])]:
        material = list(MATERIALS.values())[world.strips[int(row), int(col)]]
        if rng.random() < material.trees:
            parts = makers[rng.integers(len(makers))](rng)
            _stand(world, rasterize(parts, world.view, world.angle, np.array([col, row])), 13 * leaves, 0.4)
        elif rng.random() < 0.012:
            parts = CLUTTER[rng.integers(len(CLUTTER))](rng)
            _stand(world, rasterize(parts, world.view, world.angle, np.array([col, row])), 3 * leaves)
    if rng.random() < 0.25:
        corner = np.where(rng.random(2) < 0.5, 0.0, hw[::-1])
        _stand(world, rasterize(_building(rng), world.view, world.angle, corner), 4 * leaves)


def _stand(world: World, sprite: Sprite, texture: Array, holes: float = 0.0) -> None:
    """Draw what does not move into the world, with a texture (H, W) in counts, and holes where that is coldest."""
    window, inside = sprite.windows(world.heat.shape)
    opaque = np.clip(1 - holes + 0.1 * texture[window], 1 - holes, 1) if holes else 1.0
    alpha, heat = sprite.alpha[inside] * opaque, sprite.heat[inside] * opaque
    world.heat[window] = world.heat[window] * (1 - alpha) + heat + alpha * texture[window]
    world.cover[window] = np.maximum(world.cover[window], alpha)


def _tree(rng: Rng) -> list[Part]:
    """A crown of clumps of leaves, the upper ones warmer."""
    radius, heat = rng.uniform(0.7, 2.6), rng.normal(-60, 18)
    clumps = np.clip(rng.normal(0, 0.36, (int(30 + 25 * radius), 3)), -1, 1) * radius
    middle = (0.0, 0.0, 1.3 * radius)
    crown: list[Part] = [Limb(middle, middle, 0.6 * radius, heat - 8)]
    for x, y, z in clumps[np.argsort(clumps[:, 2])].tolist():
        middle = (x, y, 0.7 * z + 1.3 * radius)
        warmth = heat + 12 * z / radius + rng.normal(0, 10)
        crown.append(Limb(middle, middle, rng.uniform(0.1, 0.26) * radius**0.6, warmth))
    return crown


def _bare_tree(rng: Rng) -> list[Part]:
    height, heat = rng.uniform(3, 6), rng.uniform(-30, 25)
    branches: list[Part] = [Limb((0, 0, 0), (0, 0, height * 0.6), 0.14, heat)]
    for z in rng.uniform(0.2, 0.6, 22) * height:
        x, y = rng.normal(0, 0.25, 2) * height
        branches.append(Limb((0, 0, float(z)), (float(x), float(y), float(z + 0.35 * height)), 0.05, heat))
    return branches


def _pole(rng: Rng) -> list[Part]:
    height, heat = rng.uniform(4, 8), rng.uniform(-60, 0)
    return [Limb((0, 0, 0), (0, 0, height), 0.09, heat), Limb((0, -0.9, height), (0, 0.9, height), 0.13, heat - 10)]


def _crate(rng: Rng) -> list[Part]:
    side, heat = rng.uniform(0.3, 1.0), rng.normal(-30, 40)
    return [Slab(box_plan(-side, side, side * rng.uniform(0.8, 2)), 0, rng.uniform(0.1, 1), heat + 20, heat)]


def _manhole(rng: Rng) -> list[Part]:
    heat = rng.normal(20, 40)
    return [Slab(box_plan(-0.4, 0.4, 0.8, 0.25), 0, 0, heat, heat)]


def _building(rng: Rng) -> list[Part]:
    length, depth, height = rng.uniform(8, 25), rng.uniform(6, 14), rng.uniform(3, 9)
    wall, roof = rng.normal(30, 20), rng.normal(-30, 30)
    parts: list[Part] = [Slab(box_plan(-length, length, 2 * depth), 0, height, wall, roof + 25)]
    parts += [Slab(box_plan(-length + 0.5, length - 0.5, 2 * depth - 1), height, height, roof, roof)]
    for x in np.arange(-length + 3, length - 3, rng.uniform(3, 7)):
        parts.append(Slab(box_plan(float(x), float(x) + 1.5, 1.2), height, height + 1, roof + 50, roof + 70))
    return parts


CLUTTER = (_pole, _crate, _crate, _manhole)


def sky(rng: Rng, hw: Size) -> World:
    """A cold sky with or without clouds, over trees, fields, a building, or nothing."""
    rows = np.arange(hw[0], dtype=np.float32)[:, None] / hw[0]
    heat = -rng.uniform(110, 260) + rng.uniform(5, 45) * rows**2 + _clouds(rng, hw)
    world = World(np.broadcast_to(heat, hw).astype(np.float32), np.zeros(hw, np.float32))
    horizon = hw[0] * rng.uniform(0.66, 0.98)
    if rng.random() < 0.75:
        _treeline(rng, world, horizon)
    if rng.random() < 0.2:
        _roofline(rng, world, horizon)
    # Cameras lift local contrast, which leaves the dark band that real pictures have above a warm horizon.
    around = cv2.GaussianBlur(world.heat, (0, 0), hw[0] * rng.uniform(0.05, 0.16), borderType=cv2.BORDER_REPLICATE)
    return World(world.heat + rng.uniform(0.2, 1.6) * (world.heat - around), world.cover)


def _clouds(rng: Rng, hw: Size) -> Array | float:
    if rng.random() < 0.5:
        return 0.0
    shape = fractal(rng, hw, rng.uniform(30, 90), 5, stretch=rng.uniform(1.5, 4), decay=0.55)
    return np.asarray(rng.uniform(5, 80) / (1 + np.exp(-2.5 * (shape - rng.uniform(-0.5, 1)))), np.float32)


def _treeline(rng: Rng, world: World, horizon: float) -> None:
    """Woods with stems and a frayed top, and a field in front of them."""
    hw = world.heat.shape
    rows = np.arange(hw[0], dtype=np.float32)[:, None]
    crowns = fractal(rng, hw, 8, 3, decay=0.7)
    height = hw[0] * rng.uniform(0.02, 0.16)
    top = horizon - height * (1 + 0.25 * fractal(rng, (1, hw[1]), 1, 1, stretch=60) + 0.1 * crowns[:1])
    woods = soft(rows - top + rng.uniform(0.5, 4) * crowns, 3)
    stems = fractal(rng, hw, 60, 3, stretch=0.05, decay=0.8)
    ripples = fractal(rng, hw, 6, 4, stretch=rng.uniform(4, 20), decay=0.8)
    foot = soft(rows - horizon - 1.5 * ripples[:1], 4)
    field = rng.normal(-60, 25) + 15 * (rows - horizon) / hw[0] + rng.uniform(2, 9) * ripples
    land = (1 - foot) * (rng.normal(-5, 15) + 14 * stems + 10 * crowns) + foot * field
    world.heat[:] += woods * (land - world.heat)
    world.cover[:] = np.maximum(world.cover, woods)


def _roofline(rng: Rng, world: World, horizon: float) -> None:
    """A building with windows, and a mast, in front of the sky."""
    hw = world.heat.shape
    view, heading = View(hw[0] / rng.uniform(14, 30), 0.08), rng.uniform(-0.4, 0.4)
    length, height, wall = rng.uniform(4, 14), rng.uniform(2, 6), rng.normal(5, 20)
    parts: list[Part] = [Slab(box_plan(-length, length, 6), -9, height, wall, wall)]
    for x in np.arange(0.8 - length, length - 2, 2.6):
        pane = box_plan(float(x), float(x) + 1.3, 0.1) + np.array([0, 3], np.float32)
        parts.append(Slab(pane, height * 0.3, height * 0.65, wall - 25, wall - 25))
    parts.append(Limb((length + 2, 0, -9), (length + 2, 0, rng.uniform(6, 14)), 0.12, wall + 20))
    stains = 5 * fractal(rng, hw, hw[0] / 4, 6, decay=0.7)
    _stand(world, rasterize(parts, view, heading, np.array([rng.uniform(0, hw[1]), horizon])), stains)
