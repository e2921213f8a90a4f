"""Sources that lie on a disk: videos, recordings, pictures, directories, patterns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.errors import SourceError, UsageError
from glmd_runtime.files.plain import is_no_file
from glmd_runtime.files.values import in_utf8
from glmd_runtime.thermal import Radiometry
from glmd_runtime.video.address import parse_address, redacted
from glmd_runtime.video.decoding import CONTAINERS, check_counts, import_av, to_array
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.recording import Note, read_notes, side_file
from glmd_runtime.video.source import Source

if TYPE_CHECKING:
    import av

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm")
PICTURES_FPS = 10.0  # pictures have no clock; at this rate a clip of them can be followed by eye
VIDEO_FPS = 25.0  # for the few videos that do not say
KINDS = "a video, a picture, a directory, a pattern like 'frames/*.tiff', or an address (sim, rtsp, udp, v4l2)://..."


def open_files(uri: str) -> Source:
    """A video, a recording, a picture, a directory or a pattern, with `?celsius=GAIN,OFFSET` and, of pictures, `fps`.

    Raises: SourceError when there is nothing there, or nothing readable; UsageError for a wrong key or value.
    """
    if os.path.exists(uri):  # unlike Path.exists, also False for a name that can be none
        return _open(uri, PICTURES_FPS, None)
    address = parse_address(uri, ("celsius", "fps"))
    if not address.location.strip():  # which would be the current directory
        raise UsageError(f"A source is {KINDS}; got {uri!r}.")
    return _open(address.location, address.values.get("fps", PICTURES_FPS), address.values.get("celsius"))


def files_of(uri: str) -> list[Path]:
    """The files and directories that a source on the disk is read from, those that exist; none for a URL."""
    if not uri or "://" in uri:
        return []
    location = uri if os.path.exists(uri) else parse_address(uri, ("celsius", "fps")).location
    paths = [Path(location)] if os.path.exists(location) else [Path(name) for name in glob(location, recursive=True)]
    sides = [side_file(path) for path in paths if path.is_file()]
    return [*paths, *(side for side in sides if side.is_file())]


def _open(location: str, fps: float, radiometry: Radiometry | None) -> Source:
    path = Path(location)
    if os.path.isdir(path):
        return _clip(path.name, _directory(path), fps, radiometry)
    if has_magic(location) and not os.path.exists(path):
        return _clip(location, _pattern(location), fps, radiometry)
    if os.path.exists(path) and path.is_char_device():
        raise SourceError(f"A source is {KINDS}; {path} is a device. A camera is v4l2://{path.absolute()}.")
    if not os.path.isfile(path):
        what = "is neither a file nor a directory" if os.path.exists(path) else "does not exist"
        raise SourceError(f"A source is {KINDS}; {redacted(location)} {what}.")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return _clip(path.name, [path], fps, radiometry)
    return _video(path, radiometry)


def _directory(path: Path) -> list[Path]:
    files = sorted(p for p in path.iterdir() if _is_picture(p))
    if not files:
        raise SourceError(f"A directory must hold pictures ({', '.join(PICTURE_SUFFIXES)}); {path} holds none.")
    return files


def _pattern(pattern: str) -> list[Path]:
    files = sorted(p for p in map(Path, glob(pattern, recursive=True)) if _is_picture(p))
    if not files:
        shown = redacted(pattern)
        raise SourceError(f"A pattern must match pictures ({', '.join(PICTURE_SUFFIXES)}); {shown} matches none.")
    return files


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and not is_no_file(path)


def _clip(name: str, files: list[Path], fps: float, radiometry: Radiometry | None) -> Source:
    """Pictures as one clip; a TIFF of several pages is several pictures."""
    pages = [(file, page) for file in files for page in range(_pages(file))]
    # The first is read now, so that what is no picture is said when it is opened.
    return Source(name, fps, len(pages), _pictures(pages, read_picture(files[0]), fps, radiometry))


def _pages(path: Path) -> int:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 1
    with _opencv(path):
        return max(1, cv2.imcount(_name(path), cv2.IMREAD_UNCHANGED))


def read_picture(path: Path, page: int = 0) -> NDArray[Any]:
    """One picture file as a camera array: (H, W) uint8 or uint16, or (H, W, 3) uint8 BGR; alpha is dropped.

    Raises: SourceError for what is no file, no picture, or one of another kind or too large.
    """
    if is_no_file(path):
        raise SourceError(f"A picture must be a file; {path} is a folder, a pipe or a device. Name a file.")
    with _opencv(path):
        picture = _decoded(path, page)
    if picture is None:
        raise SourceError(f"{path} cannot be read as a picture. Is it damaged, or named like one by mistake?")
    if _is_cut_jpeg(path.read_bytes()):
        raise SourceError(f"{path} ends before its picture does, whose rest would be grey. Copy it again.")
    if picture.ndim == 3 and picture.shape[2] == 4:
        picture = picture[:, :, :3]
    if picture.dtype == np.uint8 or (picture.dtype == np.uint16 and picture.ndim == 2):
        return np.ascontiguousarray(picture)
    raise SourceError(
        f"A picture must be grey with 8 or 16 bits, or colour with 8; {path} is {picture.shape} {picture.dtype}. "
        "Convert it, raw thermal counts to 16-bit grey."
    )


def _decoded(path: Path, page: int) -> NDArray[Any] | None:
    if page:
        return next(iter(cv2.imreadmulti(_name(path), start=page, count=1, flags=cv2.IMREAD_UNCHANGED)[1]), None)
    return cv2.imread(_name(path), cv2.IMREAD_UNCHANGED)


def _is_cut_jpeg(content: bytes) -> bool:
    """Whether a JPEG's end marker is missing, which OpenCV only warns of; other formats it refuses itself when cut.

    Segments are passed over by their lengths, as a thumbnail in one has an end marker of its own (ITU T.81, annex B).
    """
    if not content.startswith(b"\xff\xd8"):
        return False
    place = 2
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != b"\xda":
        fill = content[place + 1 : place + 2] == b"\xff"
        place += 1 if fill else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return content.find(b"\xff\xd9", place) < 0


def _name(path: Path) -> str:
    """As OpenCV takes it. Raises: SourceError for one of which it dies."""
    if not in_utf8(str(path)):
        raise SourceError(f"A picture's name must be UTF-8; got {str(path)!r}. Rename it.")
    return str(path)


@contextmanager
def _opencv(path: Path) -> Iterator[None]:
    """What OpenCV raises instead of giving no picture, as an error of ours: above all for sizes that are claimed."""
    try:
        yield
    except cv2.error as error:
        raise SourceError(
            f"A picture must have at most 2**20 pixels a side and 2**30 in all, and fit into memory; of {path}, OpenCV "
            f"says {error.err or error.func!r}. Is it damaged? Else make it smaller."
        ) from error


def _pictures(
    pages: list[tuple[Path, int]], first: NDArray[Any], fps: float, radiometry: Radiometry | None
) -> Iterator[Frame]:
    for index, (file, page) in enumerate(pages):
        image = read_picture(file, page)
        if (image.shape, image.dtype) != (first.shape, first.dtype):
            raise SourceError(
                f"The pictures of a directory are one clip and must be alike: {pages[0][0].name} is {first.shape} "
                f"{first.dtype}, {file} is {image.shape} {image.dtype}. Put other kinds into other directories."
            )
        check_counts(image, radiometry, str(file))
        yield Frame(image, index, index / fps, radiometry=radiometry)


def _video(path: Path, radiometry: Radiometry | None) -> Source:
    av = import_av()
    not_video = SourceError(f"{path} cannot be read as a video. Is it damaged, or no video at all?")
    notes = read_notes(path) if side_file(path).is_file() else None
    try:
        # With its protocol, as a name like "concat:a|b" would be taken for one.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS})
    except (av.error.FFmpegError, ValueError) as error:
        raise not_video from error
    if not container.streams.video:
        container.close()
        raise not_video
    stream = container.streams.video[0]
    stream.thread_type = "SLICE"  # by frames, a damaged recording (FFV1) makes FFmpeg 8.1 write where it may not
    fps = float(stream.average_rate or stream.guessed_rate or VIDEO_FPS)
    frames = _decode(container, path, fps, radiometry)
    if notes is not None:
        frames = _replay(frames, notes, radiometry)
    return Source(path.name, fps, stream.frames or (len(notes) if notes else None), frames, container.close)


def _decode(
    container: av.container.InputContainer, path: Path, fps: float, radiometry: Radiometry | None
) -> Iterator[Frame]:
    import av

    start, index = None, 0
    try:
        for picture in container.decode(video=0):
            time = picture.time if picture.time is not None else index / fps
            start = time if start is None else start
            image = to_array(picture)
            check_counts(image, radiometry, path.name)
            yield Frame(image, index, time - start, radiometry=radiometry)
            index += 1
    except av.error.FFmpegError as error:
        raise SourceError(f"{path} cannot be decoded after frame {index}: {error}. Is the file complete?") from error
    if index == 0:
        raise SourceError(f"{path} must hold at least one frame; none could be decoded. Is the file complete?")


def _replay(frames: Iterator[Frame], notes: list[Note], radiometry: Radiometry | None) -> Iterator[Frame]:
    """The frames as they were; after a crash the picture or the note of the last ones may be missing."""
    for frame, note in zip(frames, notes, strict=False):
        yield Frame(frame.image, note.index, note.time, radiometry=radiometry or note.radiometry)
