"""Every source yields the frames that are there, or one clear error."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_runtime.errors import GlmdError, SourceError, UsageError
from glmd_runtime.thermal import Radiometry
from glmd_runtime.video.address import redacted
from glmd_runtime.video.decoding import import_av
from glmd_runtime.video.files import files_of
from glmd_runtime.video.sources import open_source, read_picture
from glmd_runtime.video.status import Status
from tests.runtime.test_live import wait_until

needs_av = pytest.mark.usefixtures("pyav")
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
COUNTS = RNG.integers(7000, 9000, (6, 8), dtype=np.uint16)
COLOUR = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def save(path: Path, picture: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), picture)
    return path


def write_video(
    path: Path, pictures: list[np.ndarray], codec: str, pix_fmt: str, rate: int = 10, convert: bool = True
) -> Path:
    """`convert=False`: the pictures hold values of `pix_fmt` already."""
    av = import_av()
    formats = {(2, "uint8"): "gray", (2, "uint16"): "gray16le", (3, "uint8"): "bgr24"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.pix_fmt = pix_fmt
        stream.height, stream.width = pictures[0].shape[:2]
        for picture in pictures:
            kind = formats[picture.ndim, str(picture.dtype)] if convert else pix_fmt
            frame = av.VideoFrame.from_ndarray(picture, format=kind)
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
def test_a_damaged_video_is_not_decoded_by_frame_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With them FFmpeg 8.1 corrupts its memory, now and then: the fuzzer's finding in recordings."""
    import av

    path = write_video(tmp_path / "clip.mkv", [np.full((16, 16), v, np.uint8) for v in range(40)], "ffv1", "gray")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 60] = b"\xff" * 60
    path.write_bytes(content)
    opened: list[av.container.InputContainer] = []
    monkeypatch.setattr(av, "open", lambda *args, real=av.open, **kw: opened.append(real(*args, **kw)) or opened[-1])
    with open_source(path) as source:
        assert opened[0].streams.video[0].codec_context.thread_type.name == "SLICE"
        with pytest.raises(SourceError, match=r"cannot be decoded after frame \d+"):
            list(source)


@needs_av
def test_a_compressed_video_becomes_bgr(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", [np.full((16, 16, 3), 128, np.uint8)] * 5, "libx264", "yuv420p")
    with open_source(path) as source:
        assert source.frames == 5
        frames = list(source)
    assert len(frames) == 5 and frames[0].image.shape == (16, 16, 3)
    np.testing.assert_allclose(frames[2].image.astype(int), 128, atol=8)


def test_a_pattern_is_a_clip_in_name_order(tmp_path: Path) -> None:
    for name, value in [("b7.png", 2), ("a3.png", 1), ("a4.tif", 3)]:
        save(tmp_path / name, np.full((4, 4), value, np.uint16))
    with open_source(f"{tmp_path}/*[37].png") as source:
        assert source.frames == 2
        assert [f.image[0, 0] for f in source] == [1, 2]
    assert [f.image[0, 0] for f in open_source(f"{tmp_path}/a?.*?fps=9")] == [1, 3]


def test_a_name_that_looks_like_a_pattern_or_a_query(tmp_path: Path) -> None:
    for name in ("a[1].png", "what?fps=9.png"):
        save(tmp_path / name, COUNTS)
        [frame] = open_source(tmp_path / name)
        np.testing.assert_array_equal(frame.image, COUNTS)


def test_a_tiff_of_several_pages_is_a_clip(tmp_path: Path) -> None:
    pages = [COUNTS + i for i in range(3)]
    assert cv2.imwritemulti(str(tmp_path / "clip.tiff"), pages)
    with open_source(tmp_path / "clip.tiff") as source:
        assert source.frames == 3
        np.testing.assert_array_equal([f.image for f in source], pages)


def claiming(path: Path, side: int) -> Path:
    """A picture of COUNTS whose header says that it is square and so large."""
    content = bytearray(save(path, COUNTS).read_bytes())
    if path.suffix == ".png":
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    else:  # the tags of a TIFF's width and height
        for tag in (256, 257):
            place = next(p for kind in (3, 4) if (p := content.find(struct.pack("<HHI", tag, kind, 1))) > 0)
            content[place : place + 12] = struct.pack("<HHII", tag, 4, 1, side)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("name", "side"), [("a.png", 60_000), ("a.tif", 2_000_000)])
def test_a_header_that_claims_more_pixels_than_there_can_be(name: str, side: int, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"at most 2\*\*20 pixels a side.*a\.\w+, OpenCV says.*Is it damaged\?"):
        open_source(claiming(tmp_path / name, side))


def jpeg_of_a_camera() -> bytes:
    """With a thumbnail, fill bytes before a marker, and raw counts behind the picture that look like a start of one."""
    pictures = [np.resize(COUNTS, (side, side)).astype(np.uint8) for side in (8, 64)]
    thumbnail, picture = (cv2.imencode(".jpg", one)[1].tobytes() for one in pictures)
    segment = b"\xff\xff\xff\xe1" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    return picture[:2] + segment + picture[2:] + b"\xff\xda raw counts"


def test_a_whole_jpeg_is_read_with_a_thumbnail_and_counts_behind_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_of_a_camera())
    assert read_picture(tmp_path / "a.jpg").shape == (64, 64)


@pytest.mark.parametrize("kept", [0.6, 0.8, 0.95])
def test_a_jpeg_that_was_cut(kept: float, tmp_path: Path) -> None:
    content = jpeg_of_a_camera()
    start, end = content.rfind(b"\xff\xda", 0, -20), content.rfind(b"\xff\xd9")
    (tmp_path / "a.jpg").write_bytes(content[: start + int(kept * (end - start))])
    assert cv2.imread(str(tmp_path / "a.jpg")) is not None, "OpenCV refuses it itself"
    with pytest.raises(SourceError, match=r"a\.jpg ends before its picture does.*Copy it again"):
        read_picture(tmp_path / "a.jpg")


def test_pipes_among_pictures_are_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV would wait for somebody to write into one; a link that leads nowhere is said."""
    opened, read = [], cv2.imread
    files = lambda name, *how: opened.append(name) or (read(name, *how) if os.path.isfile(name) else None)  # noqa: E731
    monkeypatch.setattr(cv2, "imread", files)
    save(tmp_path / "b.png", COUNTS)
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "c.png").mkdir()
    for uri in (tmp_path, f"{tmp_path}/*.png"):
        with open_source(uri) as source:
            assert source.frames == 1 and len(list(source)) == 1
    for path in (tmp_path / "a.png", tmp_path / "c.png"):
        with pytest.raises(SourceError, match="must be a file"):
            read_picture(path)
    assert set(opened) == {str(tmp_path / "b.png")}
    (tmp_path / "d.png").symlink_to(tmp_path / "lost.png")
    with open_source(tmp_path) as source, pytest.raises(SourceError, match=r"d\.png cannot be read as a picture"):
        list(source)


def test_rate_and_temperatures_of_pictures(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.png", COUNTS)
    with open_source(f"{tmp_path}?fps=9&celsius=0.04,-273.15") as source:
        assert source.fps == 9
        frames = list(source)
    assert frames[1].time == pytest.approx(1 / 9) and frames[1].radiometry == Radiometry(0.04, -273.15)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("celsius=0.01", "celsius like celsius=0.01,-273.15; got celsius=0.01. Correct it."),
        ("celsius=a,b", "got celsius=a,b"),
        ("fps=0", "fps like fps=9; got fps=0"),
        ("colour=1", "the keys celsius, fps; got 'colour'"),
    ],
)
def test_a_wrong_key_or_value(query: str, expected: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png", COUNTS)
    with pytest.raises(UsageError, match=expected):
        open_source(f"{tmp_path}/a.png?{query}")


def test_temperatures_of_eight_bits(tmp_path: Path) -> None:
    save(tmp_path / "a.png", GREY)
    with pytest.raises(SourceError, match=r"needs 16-bit counts; .*a\.png gives \(6, 8\) uint8"):
        list(open_source(f"{tmp_path}/a.png?celsius=0.01,-273.15"))


@needs_av
def test_counts_of_fourteen_bits_are_not_scaled(tmp_path: Path) -> None:
    counts = np.full((16, 18), 12345, np.uint16)  # a width that FFmpeg pads
    path = write_video(tmp_path / "clip.mkv", [counts], "ffv1", "gray14le", convert=False)
    [frame] = open_source(f"{path}?celsius=0.01,-273.15")
    np.testing.assert_array_equal(frame.image, counts)
    assert frame.radiometry is not None


def test_the_states_of_a_file(tmp_path: Path) -> None:
    said: list[Status] = []
    with open_source(save(tmp_path / "a.png", COUNTS), on_status=said.append) as source:
        assert not source.live and source.status.state == "running" and source.drops == {}
        list(source)
    assert [status.state for status in said] == ["running", "ended"] and said[-1].detail == "no more frames"


def test_the_states_of_a_file_that_breaks_off(tmp_path: Path) -> None:
    save(tmp_path / "a.png", GREY)
    (tmp_path / "b.png").write_bytes(b"")
    source = open_source(tmp_path)
    with pytest.raises(SourceError):
        list(source)
    assert source.status.state == "ended" and "b.png cannot be read" in source.status.detail


@needs_av
def test_a_file_closed_by_another_thread_while_it_is_read(tmp_path: Path) -> None:
    pictures = [RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(100)]
    source = open_source(write_video(tmp_path / "clip.mp4", pictures, "libx264", "yuv420p"))
    stream = iter(source)
    next(stream)
    closer = threading.Thread(target=source.close)
    closer.start()
    assert sum(1 for _ in stream) < 100
    closer.join()
    assert list(source) == []


WORD = st.text("abcXYZ0189/?#@:%&=+!$", min_size=6, max_size=20).map(lambda word: f"Q7{word}Q7")


@given(st.sampled_from(["rtsp", "udp"]), WORD, st.sampled_from(["", ":554"]))
def test_a_password_is_never_shown(scheme: str, word: str, port: str) -> None:
    shown = redacted(f"{scheme}://admin:{word}@camera{port}/path?x=1")
    assert "Q7" not in shown and "admin" not in shown and shown.startswith(f"{scheme}://")


@given(WORD)
def test_a_password_is_in_no_error(word: str) -> None:
    with pytest.raises(UsageError) as error:
        open_source(f"rtsp://admin:{word}@camera/path?timeout=soon")
    assert "Q7" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    ["rtsp:/{}@10.0.0.7/s", "rtsp:{}@10.0.0.7/s", "rtsp//{}@10.0.0.7/s", "RTSP;//{}@h/s", "rtps:/{}@h/s", "{}@h/s",
     "rtsp:/10.0.0.7/{}", "rtsp:/h/s?sign={}", "rtps:/h/password={}", "rtps:/h/s?password={}", "rtps:/{}@h/s?x=1",
     "rtsp:/{}@h/*", "rtps:/{}@h/*", "rtps:/{}@h/s?fps=0"],
)  # fmt: skip
def test_a_password_in_what_is_no_address_is_in_no_error(uri: str) -> None:
    with pytest.raises(GlmdError) as error:
        open_source(uri.format("admin:Q7geheim"))
    assert "Q7" not in str(error.value)


@pytest.mark.parametrize("uri", ["", " ", "?fps=9", " ?fps=9"])
def test_nothing_is_not_the_current_directory(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", COUNTS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"A source is a video, .*; got '"):
        open_source(uri)
    assert open_source(".").frames == 1


@needs_av
def test_capital_letters_in_a_scheme_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def refuse(url: str, options: dict[str, str], **_: object) -> None:
        asked.append((url, options))
        raise ValueError

    monkeypatch.setattr(import_av(), "open", refuse)
    for uri in ("rtsp://camera/X", "RTSP://camera/X"):
        with open_source(uri) as source:
            wait_until(lambda source=source: source.status.state == "lost")  # type: ignore[misc]
        assert source.name == "rtsp://camera/X"
    assert asked[0] == asked[-1] and asked[0][1]["rtsp_transport"] == "tcp"
    assert open_source("SIM://air?frames=2").frames == 2


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://camera/path", "rtsp://camera/path"),
        ("rtsp://user:word@10.0.0.1:554/a/b?x=1", "rtsp://10.0.0.1:554/a/b"),
        ("rtsp://[::1]:554/a", "rtsp://[::1]:554/a"),
        ("rtsp://camera/user=admin&password=word&channel=1", "rtsp://camera/user=***&password=***&channel=1"),
        ("rtsp://camera/a?password=word", "rtsp://camera/a"),
        ("rtsp://user:w/ord@camera/a", "rtsp://***"),
        ("sim://ground?seed=7", "sim://ground?seed=7"),
        ("clip.mp4", "clip.mp4"),
        ("rtsp-test/clip.mp4", "rtsp-test/clip.mp4"),
        ("rtsp:/user:word@camera/a", "rtsp:***"),
        ("user:word@camera/a", "***@camera/a"),
    ],
)
def test_what_is_shown_of_an_address(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


def test_the_simulator() -> None:
    with open_source("sim://air?seed=3&frames=2&fps=20&size=80x64") as source:
        assert (source.fps, source.frames) == (20.0, 2)
        frames = list(source)
    assert [f.image.shape for f in frames] == [(64, 80)] * 2 and frames[0].truth is not None
    assert open_source("sim://air?frames=0").frames is None


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.mp4 does not exist"):
        open_source(tmp_path / "nothing.mp4")


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes are files on POSIX")
def test_what_is_there_but_no_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"/dev/null is a device\. A camera is v4l2:///dev/null\."):
        open_source("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe is neither a file nor a directory"):
        open_source(tmp_path / "pipe")


def test_files_that_a_source_is_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.mkv", "a.mkv.jsonl", "b.mkv"):
        Path(name).touch()
    here = [Path("."), Path("a.mkv"), Path("a.mkv.jsonl"), Path("b.mkv")]
    assert [files_of(uri) for uri in (".", "a.mkv", "b.mkv", "", "rtsp://host/a.mkv", "nothing", "/")] == [
        here[:1], here[1:3], here[3:], [], [], [], [Path("/")]
    ]
    assert sorted(files_of("*.mkv")) == here[1:]


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("sim://moon", UsageError),
        ("sim://air?sed=3", UsageError),
        ("http://host/clip.mp4", UsageError),
        ("sim://air]]", UsageError),
        ("clip\0.mp4", UsageError),
        ("**/\0/?.png", UsageError),
    ],
)
def test_an_unknown_uri(uri: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="got"):
        open_source(uri)


def test_a_name_that_is_too_long_is_of_no_file() -> None:
    assert files_of("a" * 300) == []
    with pytest.raises(SourceError, match="does not exist"):
        open_source("a" * 300)


@needs_av
@pytest.mark.parametrize("name", ["notes.txt", "clip.mp4", "clip.avi", "README"])
def test_what_is_no_video(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("Dear diary,\n" * 200)
    with pytest.raises(SourceError, match=f"{name} cannot be read as a video"):
        open_source(tmp_path / name)


@needs_av
def test_a_video_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A playlist, or a name that FFmpeg would take for a protocol and another file."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), np.uint8)
    write_video(Path("other.ts"), list(noise), "mpeg2video", "yuv420p")
    Path("list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")
    Path("list.ffconcat").write_text("ffconcat version 1.0\nfile other.ts\n")
    Path("concat:other.ts").write_text("no video")
    for name in ("list.m3u8", "list.ffconcat", "concat:other.ts"):
        with pytest.raises(SourceError, match=f"{name} cannot be read as a video"):
            open_source(name)
    Path("-i.ts").write_bytes(Path("other.ts").read_bytes())
    with open_source("-i.ts") as source:
        assert len(list(source)) == 5


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_damaged_picture(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.png cannot be read as a picture"):
        open_source(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["\udcff.png", "\udcff.tiff"])
def test_a_picture_whose_name_opencv_would_die_of(name: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png", GREY)
    (tmp_path / "a.png").rename(tmp_path / name)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(SourceError, match=r"name must be UTF-8; got .*udcff.*Rename it"):
            open_source(source)


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
