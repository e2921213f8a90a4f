"""What a thermal stream remembers: damping, the shutter, temperatures, drift."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from glmd_runtime import Camera, Detections, Detector, FrontEnd, Intensity, Radiometry
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.camera.looks import Looks, Statistics
from glmd_runtime.camera.shutter import LONGEST, ShutterEvent, ShutterWatch
from glmd_runtime.errors import FrameError, UsageError
from glmd_runtime.preprocess import PreprocessSpec
from glmd_runtime.thermal import Mode, Polarity
from glmd_runtime.video.frame import Frame
from tests import reference, tiny

FPS = 30.0
SPEC = PreprocessSpec((64, 80), (127.0,), (128.0,))
NAMES = ("person", "car")


def scene(index: int, hot: bool = False, offset: int = 0) -> np.ndarray:
    """(96, 128) uint16: a slope of 300 counts with noise of 5, and perhaps a hot object over a tenth of the picture."""
    rng = np.random.default_rng(index)
    counts = 7000 + offset + np.linspace(0, 300, 128) + rng.normal(0, 5, (96, 128))
    if hot:
        counts[20:60, 30:62] = 9000 + offset
    return counts.astype(np.uint16)


def shutter(index: int) -> np.ndarray:
    """What a closed shutter looks like: its temperature, and noise."""
    return (7600 + np.random.default_rng(1000 + index).normal(0, 5, (96, 128))).astype(np.uint16)


def pictures_of(frames: list[np.ndarray], spec: PreprocessSpec, camera: Camera | None = None) -> list[np.ndarray]:
    front_end = FrontEnd(spec, NAMES, camera)
    prepared = [front_end.prepare(Frame(image, i, i / FPS)) for i, image in enumerate(frames)]
    return [one.picture for one in prepared if one.picture is not None]


# Damping


@pytest.mark.parametrize("mode", ["percentile", "plateau"])
@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_a_hot_object_does_not_make_the_picture_flicker(mode: Mode, seconds: float) -> None:
    frames = [scene(i, hot=20 <= i < 40) for i in range(60)]
    spec = replace(SPEC, intensity=Intensity(mode))
    bound = math.ceil(255 * (1 - math.exp(-1 / FPS / seconds)))  # and one of the rounding
    damped, own = (reference.flicker(pictures_of(frames, spec, Camera(damping=s)), frames) for s in (seconds, 0.0))
    assert damped <= bound + 1 and damped < own
    assert own > 100 or mode == "plateau"  # a plateau keeps one object from taking all contrast


def test_clahe_flickers_less_when_damped() -> None:
    frames = [scene(i, hot=20 <= i < 40) for i in range(60)]
    spec = replace(SPEC, intensity=Intensity("clahe"))
    damped = reference.flicker(pictures_of(frames, spec, Camera(damping=1.0)), frames)
    assert damped < reference.flicker(pictures_of(frames, spec), frames)


def test_a_damped_picture_arrives_at_the_undamped_one() -> None:
    frames = [scene(0, hot=i >= 2) + np.uint16(i % 2) for i in range(150)]
    damped, own = (pictures_of(frames, SPEC, Camera(damping=seconds))[-1] for seconds in (0.5, 0.0))
    assert np.abs(damped.astype(int) - own).max() <= 2


def test_time_is_the_frames_own() -> None:
    """After one time constant 63% of the way, in however many frames."""
    for count in (1, 5, 50):
        front_end = FrontEnd(SPEC, NAMES, Camera(damping=1.0))
        front_end.prepare(Frame(scene(0), 0, 0.0))
        for i in range(1, count + 1):
            last = front_end.prepare(Frame(scene(0, hot=True) + np.uint16(i % 2), i, i / count))
        start, end = (int(Intensity()(scene(0, hot=hot))[90, 120]) for hot in (False, True))
        assert last.picture is not None
        assert abs(last.picture[90, 120] - (start + (1 - math.exp(-1)) * (end - start))) <= 3


def test_another_scene_is_seen_at_once() -> None:
    """The camera turns to what is colder than all that was there, and of more contrast."""
    frames = [scene(0), scene(1), ((scene(2)[:, ::-1] - 6900) * 10).astype(np.uint16)]
    damped = pictures_of(frames, SPEC, Camera(damping=5.0))[-1]
    np.testing.assert_array_equal(damped, Intensity()(frames[-1]))


def test_without_damping_a_stream_sees_what_run_sees() -> None:
    frames = [scene(i, hot=i == 2) for i in range(4)]
    for picture, frame in zip(pictures_of(frames, SPEC), frames, strict=True):
        np.testing.assert_array_equal(picture, SPEC.intensity(frame))


def test_a_stream_that_begins_again_begins_anew() -> None:
    front_end = FrontEnd(SPEC, NAMES, Camera(damping=5.0))
    front_end.prepare(Frame(scene(0), 0, 4.0))
    again = front_end.prepare(Frame(scene(1, hot=True), 0, 0.0))
    np.testing.assert_array_equal(again.picture, Intensity()(scene(1, hot=True)))


# The shutter


def test_a_shutter_that_shows_itself() -> None:
    watch = ShutterWatch()
    frames = [scene(0), scene(1), shutter(2), shutter(3), scene(4)]
    assert [watch(f, i / FPS).held for i, f in enumerate(frames)] == [None, None, "uniform", "uniform", None]


def sky(index: int, side: int, above: int) -> np.ndarray:
    """A clear sky over a scene's camera: a faint slope, noise of 8 counts, a square of so many counts above it."""
    counts = 6500 + np.linspace(0, 20, 512)[:, None] + np.random.default_rng(index).normal(0, 8, (512, 640))
    counts[200 : 200 + side, 300 : 300 + side] += above
    return counts.astype(np.uint16)


@pytest.mark.parametrize(
    ("side", "above", "held"), [(6, 150, None), (3, 150, None), (6, 0, "uniform"), (1, 3000, "uniform")]
)
def test_a_clear_sky_with_something_in_it_is_no_shutter(side: int, above: int, held: str | None) -> None:
    """But one with nothing in it, or with a bad pixel, cannot be told from a shutter."""
    ground = np.kron(np.random.default_rng(0).integers(0, 60, (64, 80)) * 10, np.ones((8, 8))).astype(np.uint16) + 7000
    watch = ShutterWatch()
    assert watch(ground, 0.0).held is None
    assert [watch(sky(i, side, above), i / FPS).held for i in (1, 2, 3)] == [held] * 3


def test_a_camera_that_repeats_its_picture() -> None:
    watch = ShutterWatch()
    frames = [scene(0), scene(0), scene(0), scene(1)]
    assert [watch(f, i / FPS).held for i, f in enumerate(frames)] == [None, "frozen", "frozen", None]


def test_memory_that_is_filled_again_is_no_frozen_picture() -> None:
    watch, memory = ShutterWatch(), scene(0)
    assert watch(memory, 0.0) == ShutterEvent()
    memory[:] = scene(1)
    assert watch(memory, 0.1) == ShutterEvent()


@pytest.mark.parametrize("offset", [400, -400])
def test_offsets_that_jump_leave_the_damped_picture_as_it_was(offset: int) -> None:
    frames = [scene(0), scene(1), shutter(2), scene(3, offset=offset)]
    before, _, after = pictures_of(frames, SPEC, Camera(damping=5.0))
    assert np.abs(after.astype(int) - before).mean() < 6  # what noise of 5 in 300 counts makes


@pytest.mark.parametrize("change", ["moves", "warms", "object"])
def test_what_is_no_jump(change: str) -> None:
    watch = ShutterWatch()
    after = {"moves": np.roll(scene(1), 40, axis=1), "warms": scene(1, offset=5), "object": scene(1, hot=True)}
    watch(scene(0), 0.0)
    assert watch(after[change], 0.1) == ShutterEvent()


@pytest.mark.parametrize("picture", ["uniform", "frozen"])
def test_what_lasts_longer_than_a_shutter_is_looked_at(picture: str, caplog: pytest.LogCaptureFixture) -> None:
    watch = ShutterWatch()
    watch(scene(0), 0.0)
    frames = {i: shutter(i) if picture == "uniform" else scene(0) for i in range(1, 91)}
    with caplog.at_level(logging.WARNING):
        held = [watch(frame, i / FPS).held for i, frame in frames.items()]
    assert held[: int(LONGEST * FPS) - 1] == [picture] * (int(LONGEST * FPS) - 1) and held[-1] is None
    assert len(caplog.records) == 1 and picture in caplog.text


def test_another_size_is_another_stream() -> None:
    watch = ShutterWatch()
    watch(scene(0), 0.0)
    assert watch(np.full((10, 10), 7000, np.uint16), 0.1) == ShutterEvent()


def test_eight_bits_are_never_held() -> None:
    """A coded video repeats pictures, and fades to black, without a shutter."""
    frames = [np.zeros((8, 8), np.uint8)] * 3
    assert len(pictures_of(frames, SPEC)) == 3


# What the detector makes of it


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[Detector]:
    person = [((10, 10, 20, 40), 0, 0.9)]
    bundle = tiny.bundle(tmp_path / "tiny.glmd")
    with Detector(bundle.path, backend=FakeBackend(tiny.graph_spec(), [person, []])) as made:
        yield made


def test_a_stream_yields_every_frame_and_detects_in_those_that_show_something(detector: Detector) -> None:
    images = [scene(0), scene(0), shutter(1), scene(2), scene(2)]
    frames = [Frame(image, i, i / FPS) for i, image in enumerate(images)]
    rows = [(frame.index, frame.held, found.names) for frame, found in detector.stream(frames)]
    # The script says a person, then nothing: a held frame has what the frame before it had.
    assert rows == [
        (0, None, ["person"]), (1, "frozen", ["person"]), (2, "uniform", ["person"]), (3, None, []), (4, "frozen", []),
    ]


@pytest.mark.parametrize("radiometry", [Radiometry(), None])
def test_temperatures_where_the_camera_measures_them(detector: Detector, radiometry: Radiometry | None) -> None:
    image = np.full((64, 80), 29315, np.uint16)  # 20 degrees
    image[20, 15] = 30815
    ((_, found),) = detector.stream([Frame(image, 0, 0.0, radiometry=radiometry)])
    if radiometry is None:
        assert len(found) == 1 and found.temperatures is None
    else:
        expected = reference.temperatures(image, found.xyxy[0], 0.01, -273.15)
        np.testing.assert_allclose(found.temperatures, [expected], atol=1e-3)
        assert expected[2] == pytest.approx(35.0)


def test_temperatures_of_colour_there_are_none(detector: Detector) -> None:
    frame = Frame(np.zeros((64, 80, 3), np.uint8), 0, 0.0, radiometry=Radiometry())
    ((_, found),) = detector.stream([frame])
    assert len(found) == 1 and found.temperatures is None


def test_bad_pixels_are_neither_seen_nor_measured(detector: Detector) -> None:
    image, mask = scene(0)[:64, :80].copy(), np.zeros((64, 80), bool)
    image[20, 15], mask[20, 15] = 65535, True
    frame = Frame(image, 0, 0.0, radiometry=Radiometry())
    ((_, found),) = detector.stream([frame], camera=Camera(bad_pixels=mask))
    assert found.temperatures is not None and found.temperatures[0, 2] < -195  # 7000 counts are -203 degrees
    with pytest.raises(FrameError, match="mask of bad pixels has its camera's size, "):
        next(detector.stream([Frame(scene(0), 0, 0.0)], camera=Camera(bad_pixels=mask)))


@pytest.mark.parametrize("polarity", ["white-hot", "black-hot", None])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_cameras_polarity(polarity: str | None, bits: int) -> None:
    hot_is_high = scene(0, hot=True) if bits == 16 else Intensity()(scene(0, hot=True))
    delivered = hot_is_high if polarity != "black-hot" else np.iinfo(hot_is_high.dtype).max - hot_is_high
    front_end = FrontEnd(SPEC, NAMES, Camera(polarity=polarity))  # type: ignore[arg-type]
    picture = front_end.prepare(Frame(delivered, 0, 0.0)).picture
    assert picture is not None and picture[40, 40] > 250 and picture[90, 0] < 20


@pytest.mark.parametrize(
    ("values", "message"),
    [({"polarity": "hot"}, "'white-hot' or 'black-hot'"), ({"damping": -1.0}, "0 or more seconds"),
     ({"damping": float("nan")}, "0 or more seconds")],
)
def test_a_cameras_wrong_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Camera(**values)  # type: ignore[arg-type]


# Drift

STATISTICS = Statistics((60.0, 160.0), (20.0, 80.0), (0.0, 0.0))


def watched(
    picture: Callable[[int], np.ndarray], found: Detections | None = None, spec: PreprocessSpec = SPEC,
    camera: Camera | None = None, seconds: int = 40,
) -> dict[str, str]:
    """The warnings after so many seconds of a picture each."""
    front_end = FrontEnd(spec, NAMES, camera)
    for i in range(seconds):
        prepared = front_end.prepare(Frame(picture(i), i, float(i)))
        front_end.finish(prepared, found or Detections.empty(NAMES))
    return front_end.warnings


def noise(index: int, mean: float = 110, spread: float = 40) -> np.ndarray:
    return np.random.default_rng(index).normal(mean, spread, (60, 80)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("picture", "kinds"),
    [
        (noise, set()),
        (lambda i: noise(i, mean=220), {"brightness"}),
        (lambda i: noise(i, spread=4), {"contrast"}),
        (lambda i: noise(i, spread=4) if i % 3 else noise(i), {"contrast"}),
        (lambda i: noise(i) if i % 3 else noise(i, spread=4), set()),
        (lambda i: cv2.applyColorMap(noise(i), cv2.COLORMAP_JET), {"palette"}),
        (lambda i: cv2.cvtColor(noise(i), cv2.COLOR_GRAY2BGR), set()),
    ],
)
def test_what_is_not_as_in_training(picture: Callable[[int], np.ndarray], kinds: set[str]) -> None:
    assert watched(picture, spec=replace(SPEC, statistics=STATISTICS)).keys() == kinds


def test_of_a_model_without_statistics_only_the_palette_is_said() -> None:
    assert watched(lambda i: noise(i, mean=220, spread=4)) == {}
    assert watched(lambda i: cv2.applyColorMap(noise(i), cv2.COLORMAP_JET)).keys() == {"palette"}


def test_colours_are_no_palette_for_a_model_of_colours() -> None:
    colour = PreprocessSpec((64, 80), (100.0,) * 3, (50.0,) * 3)
    assert watched(lambda i: cv2.applyColorMap(noise(i), cv2.COLORMAP_JET), spec=colour) == {}


def person_and_car(index: int) -> np.ndarray:
    """Black-hot: both are darker than what surrounds them."""
    picture = np.full((60, 80), 150, np.uint8)
    picture[10:30, 10:20] = picture[10:30, 50:70] = 60
    return picture


@pytest.mark.parametrize(
    ("row", "camera", "kinds"),
    [
        (0, None, {"polarity"}),
        (1, None, set()),  # a car may be cold
        (0, Camera(polarity="black-hot"), set()),  # the user knows, and the picture is inverted
    ],
)
def test_polarity_is_seen_in_the_warm_blooded(row: int, camera: Camera | None, kinds: set[str]) -> None:
    boxes = np.array([[10, 10, 20, 30], [50, 10, 70, 30]], np.float32)
    found = Detections(boxes, np.ones(2, np.float32), np.arange(2), NAMES)[row]
    assert watched(person_and_car, found, camera=camera).keys() == kinds


@pytest.mark.parametrize("said", ["white-hot", "black-hot", None])
@pytest.mark.parametrize("model", ["white-hot", "black-hot"])
@pytest.mark.parametrize("raw", [False, True])
def test_who_follows_the_advice_on_polarity_hears_no_more(raw: bool, model: Polarity, said: Polarity | None) -> None:
    spec = replace(SPEC, intensity=Intensity(polarity=model))
    found = Detections(np.array([[10, 10, 20, 30]]), np.ones(1), np.zeros(1), NAMES)

    def delivered(index: int, inverted: bool) -> np.ndarray:
        picture = 255 - person_and_car(index) if inverted else person_and_car(index)
        return picture.astype(np.uint16) * 10 + np.uint16(index % 5) if raw else picture

    warned = [watched(lambda i, x=x: delivered(i, x), found, spec, Camera(polarity=said)) for x in (False, True)]
    assert [set(one) for one in warned].count({"polarity"}) == 1  # one of both is wrong
    [(wrong, text)] = [(x, one["polarity"]) for x, one in zip((False, True), warned, strict=True) if one]
    advice = re.search(r"Say polarity='(.*?)' for this camera", text)
    assert advice and advice[1] != said and (f"instead of {said!r}" in text) == (said is not None)
    camera = Camera(polarity=advice[1])  # type: ignore[arg-type]
    assert watched(lambda i: delivered(i, wrong), found, spec, camera) == {}


@pytest.mark.parametrize("kinds", [set(), {"polarity"}])
@pytest.mark.parametrize(("score", "rounds"), [(0.3, 1), (None, 3)])
def test_inverted_pictures_of_dogs_and_people_are_noticed(
    data: Path, kinds: set[str], score: float | None, rounds: int
) -> None:
    """The shipped model finds enough either way; at its own thresholds in fewer pictures, so that it takes longer."""
    labels = json.loads((data / "dogs_people" / "val.json").read_text())
    names = [image["file_name"] for image in labels["images"]]
    pictures = [cv2.imread(str(data / "dogs_people" / name), cv2.IMREAD_GRAYSCALE) for name in names]
    pictures = [255 - picture for picture in pictures] if kinds else pictures
    bundle = Path(__file__).parents[2] / "models" / "thermal_lite0.glmd"
    with Detector(bundle, threads=1, score_threshold=score) as shipped:
        front_end = shipped.front_end()
        found = [shipped.run(picture) for picture in pictures]
    for i, (picture, detections) in enumerate(list(zip(pictures, found, strict=True)) * rounds):
        front_end.finish(front_end.prepare(Frame(picture, i, float(i))), detections)
    assert front_end.warnings.keys() == kinds


def test_a_warning_comes_once_and_goes(caplog: pytest.LogCaptureFixture) -> None:
    spec = replace(SPEC, statistics=STATISTICS)
    with caplog.at_level(logging.WARNING, "glmd_runtime"):
        assert watched(lambda i: noise(i, mean=220), spec=spec).keys() == {"brightness"}
    assert len(caplog.records) == 1 and "in training 60 to 160" in caplog.text
    assert watched(lambda i: noise(i, mean=220 if i < 40 else 110), spec=spec, seconds=80) == {}


def test_a_stream_at_the_limit_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    spec, changes = replace(SPEC, statistics=STATISTICS), list[bool]()
    front_end = FrontEnd(spec, NAMES)
    pictures = {bright: noise(0, mean=170 if bright else 150) for bright in (False, True)}

    def hour(begin: int, bright: Callable[[int], bool]) -> None:
        for second in range(begin, begin + 3600):
            prepared = front_end.prepare(Frame(pictures[bright(second)], second, float(second)))
            front_end.finish(prepared, Detections.empty(NAMES))
            changes.append("brightness" in front_end.warnings)

    with caplog.at_level(logging.WARNING, "glmd_runtime"):
        hour(0, lambda second: second // 40 % 2 == 0)
        assert sum(a != b for a, b in pairwise(changes)) > 60 and len(caplog.records) == 1
        hour(3600, lambda second: False)
        assert not changes[-1] and len(caplog.records) == 1
        hour(7200, lambda second: True)
        assert changes[-1] and len(caplog.records) == 2


def test_statistics_travel_with_the_model() -> None:
    looks = [Looks.of(noise(i, mean=100 + i)) for i in range(11)]
    spec = replace(SPEC, statistics=Statistics.of(looks))
    assert spec.statistics is not None and spec.statistics.brightness == pytest.approx((100, 110), abs=2)
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec
