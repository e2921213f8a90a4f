"""The sim:// source: deterministic, honest about what is in the picture, strict about its URI."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmd_runtime.boxes import clip
from glmd_runtime.errors import UsageError
from glmd_runtime.video.sim_actors import PAN, Actor
from glmd_runtime.video.sim_objects import SOLID, Limb, Part
from glmd_runtime.video.simulator import CLASS_NAMES, SCENE_SIZES, Scene, SceneSpec, parse_sim_uri, simulate, snapshot

SMALL = (128, 160)
scenes = pytest.mark.parametrize("scene", SCENE_SIZES)


@pytest.mark.parametrize(
    ("uri", "spec"),
    [
        ("sim://ground", SceneSpec("ground", (512, 640))),
        ("sim://air", SceneSpec("air", (256, 320))),
        ("sim://air?objects=0", SceneSpec("air", (256, 320), objects=0)),
        ("sim://ground?seed=7&frames=90&size=320x256&fps=9", SceneSpec("ground", (256, 320), 7, 90, 9.0)),
        ("sim://air?frames=0&fps=8.7", SceneSpec("air", (256, 320), frames=0, fps=8.7)),
    ],
)
def test_a_uri_says_the_scene(uri: str, spec: SceneSpec) -> None:
    assert parse_sim_uri(uri) == spec


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sim://moon", "Expected sim://ground or sim://air; got 'sim://moon'"),
        ("sim://", "Expected sim://ground"),
        ("file://ground", "Expected sim://ground"),
        ("sim://ground/7", "Expected sim://ground"),
        ("sim://ground?sed=7", "Expected the keys seed, frames, size, fps, objects, live; got 'sed'"),
        ("sim://ground?seed=x", "Expected seed like seed=7; got seed=x"),
        ("sim://ground?seed=", "Expected seed like"),
        ("sim://ground?seed=-1", "a seed of 0 or more"),
        ("sim://ground?size=640", "Expected size like size=640x512; got size=640"),
        ("sim://ground?size=8x8", "a size from 64x64"),
        ("sim://ground?frames=-1", "frames of 0"),
        ("sim://ground?fps=0", "an fps above 0"),
        ("sim://ground?fps=nan", "an fps above 0"),
        ("sim://ground?objects=501", "from 0 to 500 objects"),
    ],
)
def test_a_wrong_uri_says_what_was_expected(uri: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_sim_uri(uri)
    assert message in str(error.value)


@scenes
def test_the_same_spec_gives_the_same_bytes(scene: str) -> None:
    spec = SceneSpec(scene, SMALL, seed=3, frames=3)
    first, second = list(simulate(spec)), list(simulate(spec))
    assert [f.image.tobytes() for f in first] == [f.image.tobytes() for f in second]
    assert all(np.array_equal(a.truth.xyxy, b.truth.xyxy) for a, b in zip(first, second, strict=True))
    assert Scene(spec).frame(2).image.tobytes() == first[2].image.tobytes()  # in any order
    assert first[0].image.tobytes() != first[1].image.tobytes()


@scenes
def test_frames_are_counted_and_timed(scene: str) -> None:
    frames = list(simulate(SceneSpec(scene, SMALL, frames=3, fps=10)))
    assert [f.index for f in frames] == [0, 1, 2]
    assert [f.time for f in frames] == pytest.approx([0, 0.1, 0.2])


def test_a_stream_of_zero_frames_never_ends() -> None:
    stream = simulate(SceneSpec("air", SMALL, frames=0))
    assert [next(stream).index for _ in range(5)] == [0, 1, 2, 3, 4]


@scenes
def test_an_empty_scene_has_an_empty_truth(scene: str) -> None:
    frame = next(simulate(SceneSpec(scene, SMALL, seed=1, objects=0)))
    assert frame.truth.xyxy.shape == (0, 4)
    assert frame.image.std() > 0


@given(seed=st.integers(0, 2**32), scene=st.sampled_from(list(SCENE_SIZES)))
@settings(max_examples=40)
def test_any_seed_gives_a_picture_and_boxes_inside_it(seed: int, scene: str) -> None:
    frame = snapshot(scene, seed, SMALL)
    assert frame.image.shape == SMALL
    assert frame.image.dtype == np.uint16
    assert 5000 < frame.image.min() < frame.image.max() < 2**14 - 1  # neither flat nor saturated
    boxes = frame.truth.xyxy
    assert np.array_equal(boxes, clip(boxes, SMALL))
    assert (boxes[:, 2:] - boxes[:, :2] >= 3).all()
    assert frame.truth.class_names == CLASS_NAMES
    assert (frame.truth.scores == 1).all()


GLOW = 1e5  # counts; next to it the world is black, so that a difference reads as coverage


def glowing(actor: Actor) -> Actor:
    """The same shape with every part at the same heat."""

    def body(time: float) -> list[Part]:
        return [
            replace(part, heat=GLOW) if isinstance(part, Limb) else replace(part, side=GLOW, roof=GLOW)
            for part in actor.body(time)
        ]

    return replace(actor, body=body, transmission=1.0)


@scenes
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("time", [0.0, 1.37])
def test_a_box_spans_the_pixels_that_its_object_covers(scene: str, seed: int, time: float) -> None:
    """Oracle: each object alone, rendered before optics and noise, less the empty scene."""
    world = Scene(SceneSpec(scene, (192, 256), seed, objects=8))
    world.world.cover[:] = 0  # half-transparent twigs have no clear extent
    world.pan_rates[:] = 0  # nor has a picture between two pixels
    empty, nothing = world.render(time, [])
    assert len(nothing) == 0
    for actor in map(glowing, world.actors):
        alone, truth = world.render(time, [actor])
        covered = np.argwhere((alone - empty) / GLOW > SOLID)
        if len(truth):
            extent = np.array([*covered.min(0)[::-1], *covered.max(0)[::-1] + 1])
            assert truth.names == [actor.name]
            assert np.array_equal(truth.xyxy[0], extent)
        else:
            whole = np.count_nonzero(actor.sprite(time, world.world.heat.shape).alpha > SOLID)
            assert len(covered) < 0.35 * whole or min(np.ptp(covered, axis=0)) < 4


@scenes
def test_boxes_move_with_the_camera(scene: str) -> None:
    swaying, still = (Scene(SceneSpec(scene, (256, 320), 5, objects=6)) for _ in range(2))
    still.pan_rates[:] = 0
    x, y = PAN * np.sin(swaying.pan_rates * 0.4)
    (_, moved), (_, fixed) = swaying.render(0.4), still.render(0.4)
    whole = [box - np.float32([x, y, x, y]) for box in fixed.xyxy if np.array_equal(box, np.clip(box, 16, 240))]
    assert whole
    for box in whole:
        assert np.abs(moved.xyxy - box).max(1).min() < 1e-3


def test_an_unknown_scene_is_named() -> None:
    with pytest.raises(UsageError, match="one of the scenes ground, air; got"):
        snapshot("moon", 1)


def test_what_stands_behind_another_object_is_not_in_the_truth() -> None:
    world = Scene(SceneSpec("air", (192, 256), 0, objects=1))
    front = replace(world.actors[0], anchor=np.array([120.0, 90.0]), sway=0.0)
    hidden = replace(front, anchor=np.array([120.0, 89.9]))
    assert [len(world.render(0.0, cast)[1]) for cast in ([front], [hidden], [hidden, front])] == [1, 1, 1]


@scenes
def test_objects_move(scene: str) -> None:
    world = Scene(SceneSpec(scene, SMALL, seed=4))
    assert any(not np.array_equal(a.sprite(0, SMALL).alpha, a.sprite(0.5, SMALL).alpha) for a in world.actors)
