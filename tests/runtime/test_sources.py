"""Every source yields the frames that are there, or one clear error."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from glmd_runtime.errors import SourceError, UsageError
from glmd_runtime.video.decoding import import_av
from glmd_runtime.video.sources import open_source

needs_av = pytest.mark.usefixtures("pyav")
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
COUNTS = RNG.integers(7000, 9000, (6, 8), dtype=np.uint16)
COLOUR = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def save(path: Path, picture: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), picture)
    return path


def write_video(path: Path, pictures: list[np.ndarray], codec: str, pix_fmt: str, rate: int = 10) -> Path:
    av = import_av()
    formats = {(2, "uint8"): "gray", (2, "uint16"): "gray16le", (3, "uint8"): "bgr24"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.pix_fmt = pix_fmt
        stream.height, stream.width = pictures[0].shape[:2]
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format=formats[picture.ndim, str(picture.dtype)])
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "picture"), [("a.png", GREY), ("a.tiff", COUNTS), ("a.PNG", COUNTS), ("a.bmp", COLOUR)]
)
def test_a_picture(name: str, picture: np.ndarray, tmp_path: Path) -> None:
    with open_source(save(tmp_path / name, picture)) as source:
        assert (source.name, source.frames) == (name, 1)
        [frame] = source
    np.testing.assert_array_equal(frame.image, picture)
    assert (frame.image.dtype, frame.index, frame.time, frame.truth) == (picture.dtype, 0, 0.0, None)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    bgra = np.concatenate([COLOUR, GREY[:, :, None]], axis=2)
    [frame] = open_source(save(tmp_path / "a.png", bgra))
    np.testing.assert_array_equal(frame.image, COLOUR)


def test_a_directory_is_a_clip_in_name_order(tmp_path: Path) -> None:
    for name, value in [("b.png", 2), ("a.png", 1), ("c.tif", 3)]:
        save(tmp_path / name, np.full((4, 4), value, np.uint16))
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "._a.png").write_text("left behind by a file manager")
    with open_source(tmp_path) as source:
        assert source.frames == 3
        frames = list(source)
    assert [f.image[0, 0] for f in frames] == [1, 2, 3]
    assert [f.index for f in frames] == [0, 1, 2]
    np.testing.assert_allclose([f.time * source.fps for f in frames], [0, 1, 2])


@needs_av
@pytest.mark.parametrize(
    ("pictures", "codec", "pix_fmt"),
    [
        ([np.full((16, 16), v, np.uint8) for v in (10, 200, 90)], "ffv1", "gray"),
        ([np.full((16, 16), v, np.uint16) for v in (7000, 8000, 65535)], "ffv1", "gray16le"),
        ([np.full((16, 16, 3), v, np.uint8) for v in (10, 200, 90)], "ffv1", "bgr0"),
    ],
)
def test_a_video_keeps_its_kind_of_frame(pictures: list[np.ndarray], codec: str, pix_fmt: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", pictures, codec, pix_fmt)
    with open_source(str(path)) as source:
        assert (source.name, source.fps) == ("clip.mkv", 10.0)
        frames = list(source)
    assert [f.index for f in frames] == [0, 1, 2]
    np.testing.assert_allclose([f.time for f in frames], [0, 0.1, 0.2], atol=1e-3)
    for frame, picture in zip(frames, pictures, strict=True):
        np.testing.assert_array_equal(frame.image, picture)


@needs_av
def test_a_compressed_video_becomes_bgr(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", [np.full((16, 16, 3), 128, np.uint8)] * 5, "libx264", "yuv420p")
    with open_source(path) as source:
        assert source.frames == 5
        frames = list(source)
    assert len(frames) == 5 and frames[0].image.shape == (16, 16, 3)
    np.testing.assert_allclose(frames[2].image.astype(int), 128, atol=8)


def test_the_simulator() -> None:
    with open_source("sim://air?seed=3&frames=2&fps=20&size=80x64") as source:
        assert (source.fps, source.frames) == (20.0, 2)
        frames = list(source)
    assert [f.image.shape for f in frames] == [(64, 80)] * 2 and frames[0].truth is not None
    assert open_source("sim://air?frames=0").frames is None


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.mp4 does not exist"):
        open_source(tmp_path / "nothing.mp4")


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("sim://moon", UsageError),
        ("sim://air?sed=3", UsageError),
        ("http://host/clip.mp4", SourceError),
    ],
)
def test_an_unknown_uri(uri: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="got"):
        open_source(uri)


@needs_av
@pytest.mark.parametrize("name", ["notes.txt", "clip.mp4", "clip.avi", "README"])
def test_what_is_no_video(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("Dear diary,\n" * 200)
    with pytest.raises(SourceError, match=f"{name} cannot be read as a video"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_damaged_picture(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.png cannot be read as a picture"):
        open_source(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "picture"),
    [("a.png", COLOUR.astype(np.uint16)), ("a.tiff", GREY.astype(np.float32))],
)
def test_a_picture_of_another_kind(name: str, picture: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="8 or 16 bits"):
        open_source(save(tmp_path / name, picture))


def test_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SourceError, match="holds none"):
        open_source(tmp_path)


@pytest.mark.parametrize("second", [GREY[:4], COUNTS, COLOUR])
def test_a_directory_of_unlike_pictures(second: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "a.png", GREY)
    save(tmp_path / "b.png", second)
    frames = iter(open_source(tmp_path))
    next(frames)
    with pytest.raises(SourceError, match=r"a\.png is \(6, 8\) uint8, .*b\.png is"):
        next(frames)


def test_a_directory_with_a_damaged_picture(tmp_path: Path) -> None:
    save(tmp_path / "a.png", GREY)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:30])
    with pytest.raises(SourceError, match=r"b\.png cannot be read"):
        list(open_source(tmp_path))


@needs_av
def test_a_truncated_video(tmp_path: Path) -> None:
    pictures = [RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(30)]
    path = write_video(tmp_path / "clip.mp4", pictures, "libx264", "yuv420p")
    os.truncate(path, path.stat().st_size // 2)  # the index at its end is gone
    with pytest.raises(SourceError, match=r"clip\.mp4 cannot be read"):
        open_source(path)


@needs_av
def test_an_air_clip_gives_the_pixels_that_training_sees(data: Path) -> None:
    with open_source(data / "air" / "clips" / "IR_DRONE_011.mp4") as source:
        assert 29 < source.fps < 31 and source.frames
        frame = next(frame for frame in source if frame.index == 15)
    picture = cv2.imread(str(data / "air" / "images" / "IR_DRONE_011_0015.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(frame.image, np.repeat(picture[:, :, None], 3, axis=2))


def test_raw_counts(data: Path) -> None:
    for folder in {path.parent for path in (data / "raw16").rglob("*.png")}:
        with open_source(folder) as source:
            frame = next(iter(source))
        assert frame.image.dtype == np.uint16 and frame.image.ndim == 2
