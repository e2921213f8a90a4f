"""Frame to network image, and boxes back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_runtime.errors import FrameError
from glmd_runtime.preprocess import (
    Geometry,
    PreprocessSpec,
    letterbox_size,
    normalise,
    pillow_resize,
    preprocess,
    published_size,
)
from glmd_runtime.thermal import Intensity
from tests import reference
from tests.conftest import golden

GREY = PreprocessSpec((64, 80), mean=(100.0,), std=(50.0,))
COLOUR = PreprocessSpec((64, 80), mean=(100.0, 110.0, 120.0), std=(50.0, 55.0, 60.0))
sides = st.integers(1, 2000)


@given(sides, sides, sides, sides)
def test_letterbox_keeps_the_aspect_ratio_and_fills_one_side(h: int, w: int, canvas_h: int, canvas_w: int) -> None:
    valid_h, valid_w = letterbox_size((h, w), (canvas_h, canvas_w))
    assert 1 <= valid_h <= canvas_h and 1 <= valid_w <= canvas_w
    assert valid_h == canvas_h or valid_w == canvas_w
    scale = min(canvas_h / h, canvas_w / w)
    assert abs(valid_h - h * scale) <= max(0.5, 1 - h * scale) + 1e-6
    assert abs(valid_w - w * scale) <= max(0.5, 1 - w * scale) + 1e-6


@given(sides, sides, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_come_back_to_the_frame(h: int, w: int, parts: list[float]) -> None:
    geometry = Geometry((h, w), letterbox_size((h, w), (512, 640)))
    box = np.array([[parts[0] * w, parts[1] * h, parts[2] * w, parts[3] * h]], np.float32)
    np.testing.assert_allclose(geometry.to_frame(geometry.to_image(box)), box, atol=1e-3, rtol=1e-6)


def test_boxes_beyond_the_picture_are_cut() -> None:
    geometry = Geometry((100, 200), (50, 100))
    np.testing.assert_array_equal(geometry.to_frame(np.array([[-5, 10, 120, 60]], np.float32)), [[0, 20, 200, 100]])
    assert geometry.to_frame(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_pixels_are_normalised_and_padding_is_the_mean() -> None:
    frame = np.full((32, 80), 150, np.uint8)
    image, geometry = preprocess(frame, GREY)
    assert image.shape == (1, 64, 80) and image.dtype == np.float32 and image.flags.c_contiguous
    assert geometry == Geometry((32, 80), (32, 80))
    np.testing.assert_array_equal(image[:, :32], 1.0)
    np.testing.assert_array_equal(image[:, 32:], 0.0)


FLOATS = st.floats(1, 250, width=32)
LAYOUTS = {
    "as it is": lambda a: a,
    "upside down": lambda a: a[::-1],
    "every other column": lambda a: a[:, ::2],
    "a part": lambda a: a[1:, 1:],
    "column by column": np.asfortranarray,
    "one row again and again": lambda a: np.broadcast_to(a[:1], a.shape),
}


@given(
    hw=st.tuples(st.integers(2, 40), st.integers(2, 40)), shape=st.sampled_from([(), (3,)]),
    mean=st.tuples(FLOATS, FLOATS, FLOATS), std=st.tuples(FLOATS, FLOATS, FLOATS),
    layout=st.sampled_from(list(LAYOUTS)),
)
def test_pixels_are_those_of_the_formula_to_the_bit(
    hw: tuple[int, int], shape: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...], layout: str
) -> None:
    picture = LAYOUTS[layout](np.random.default_rng(0).integers(0, 256, (*hw, *shape), dtype=np.uint8))
    picture.flags.writeable = False  # as other libraries' arrays may be
    for channels in (1, 3) if picture.ndim == 2 else (3,):
        spec = PreprocessSpec((40, 40), mean[:channels], std[:channels])
        image = np.full((channels, 50, 50), 7, np.float32)
        h, w = picture.shape[:2]
        normalise(picture, spec, image[:, :h, :w])
        np.testing.assert_array_equal(image[:, :h, :w], reference.normalise(picture, spec.mean, spec.std))
        assert (image[:, h:] == 7).all() and (image[:, :, w:] == 7).all()


def test_channels_follow_the_spec() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (64, 80), dtype=np.uint8)
    bgr = np.repeat(grey[:, :, None], 3, axis=2)
    for spec in (GREY, COLOUR):
        np.testing.assert_array_equal(preprocess(grey, spec)[0], preprocess(bgr, spec)[0])
    bgr[:, :, 0] = 0  # blue is the first channel of the image too
    np.testing.assert_allclose(preprocess(bgr, COLOUR)[0][0], -2.0)


def test_counts_become_what_their_intensities_would() -> None:
    counts = np.random.default_rng(0).integers(7000, 9000, (100, 90), dtype=np.uint16)
    image, geometry = preprocess(counts, GREY)
    again, same = preprocess(Intensity()(counts), GREY)
    np.testing.assert_array_equal(image, again)
    assert geometry == same


def test_shrinking_keeps_a_hot_pixel() -> None:
    frame = np.zeros((640, 800), np.uint8)
    frame[301, 401] = 255
    image, _ = preprocess(frame, GREY)
    assert image.max() > image.min()


@pytest.fixture
def pillow() -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")


@pytest.mark.usefixtures("pillow")
@pytest.mark.parametrize("i", range(3))
def test_published_pixels(i: int) -> None:
    arrays = golden("h_resize")
    picture, expected = arrays[f"pix{i}/image"], arrays[f"pix{i}/resized"]
    size = published_size(picture.shape[:2], int(arrays[f"pix{i}/min_size"]), 96)
    assert size == expected.shape[:2]
    np.testing.assert_array_equal(pillow_resize(picture, size), expected)


def test_published_sizes() -> None:
    for h, w, new_h, new_w in golden("h_resize")["sizes_800_1333"]:
        assert published_size((h, w), 800, 1333) == (new_h, new_w)


@pytest.mark.usefixtures("pillow")
def test_published_resize_has_no_padding() -> None:
    spec = PreprocessSpec((20, 40), (0.0,), (1.0,), resize="published")
    image, geometry = preprocess(np.full((10, 15), 7, np.uint8), spec)
    assert image.shape == (1, 20, 30) and geometry.valid_hw == (20, 30)
    np.testing.assert_array_equal(image, 7.0)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "got NoneType"),
        ([[1, 2]], "got list"),
        (np.zeros((4, 4), np.float32), "got shape \\(4, 4\\) float32"),
        (np.zeros((4, 4), np.int16), "got shape \\(4, 4\\) int16"),
        (np.zeros((4, 4, 3), np.uint16), "got shape \\(4, 4, 3\\) uint16"),
        (np.zeros((4, 4, 4), np.uint8), "got shape \\(4, 4, 4\\) uint8"),
        (np.zeros((3, 4, 4, 3), np.uint8), "got shape"),
        (np.zeros((4,), np.uint8), "got shape \\(4,\\) uint8"),
        (np.zeros((0, 4), np.uint8), "at least one pixel; got shape \\(0, 4\\)"),
    ],
)
def test_wrong_frames_are_named(frame: object, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        preprocess(frame, GREY)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (1.0, 2.0)}, "1 or 3 values"),
        ({"std": (1.0, 1.0, 1.0)}, "1 or 3 values"),
        ({"std": (0.0,)}, "must be positive"),
        ({"size_hw": (0, 5)}, "must be positive"),
        ({"resize": "stretch"}, "'letterbox' or 'published'; got 'stretch'"),
    ],
)
def test_wrong_specs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(FrameError, match=message):
        PreprocessSpec(**{"size_hw": (4, 4), "mean": (1.0,), "std": (1.0,), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["percentile", "linear", "plateau", "clahe"])
def test_a_frame_whose_rows_are_one_and_the_same(mode: str) -> None:
    """OpenCV takes a stride of 0 for none that is given, and reads on behind the array."""
    spec = PreprocessSpec((20, 40), (0.0,), (1.0,), Intensity(mode, 1, 99))  # type: ignore[arg-type]
    frame = np.broadcast_to(np.array([[140]], np.uint16), (129, 1))
    np.testing.assert_array_equal(preprocess(frame, spec)[0], preprocess(frame.copy(), spec)[0])


@pytest.mark.usefixtures("pillow")
def test_a_frame_of_one_line_keeps_a_pixel() -> None:
    """Its other edge would be shorter than half a pixel."""
    spec = PreprocessSpec((20, 40), (0.0,), (1.0,), resize="published")
    image, geometry = preprocess(np.zeros((1, 129), np.uint8), spec)
    assert image.shape == (1, 1, 40) and geometry.valid_hw == (1, 40)


@pytest.mark.parametrize("spec", [GREY, COLOUR, PreprocessSpec((800, 1333), (0.0,), (1.0,), Intensity("linear", 1, 9))])
def test_spec_survives_json(spec: PreprocessSpec) -> None:
    assert PreprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
