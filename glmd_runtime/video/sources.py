"""Where frames come from: a video, a picture, a directory of pictures, the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.errors import SourceError, UnsupportedError
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.simulator import parse_sim_uri, simulate
from glmd_runtime.video.status import Status

if TYPE_CHECKING:
    import av

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm")
PICTURES_FPS = 10.0  # pictures have no clock; at this rate a clip of them can be followed by eye
VIDEO_FPS = 25.0  # for the few videos that do not say


class Source:
    """Frames in order, read as they are asked for; iterate it once, inside `with`.

    name    for people
    fps     frames a second
    frames  how many, None when it is not known or never ends
    live    whether frames come when they come, and are lost when nobody takes them
    status  how it is doing
    drops   frames that were not yielded, counted by cause
    """

    live = False

    def __init__(
        self,
        name: str,
        fps: float,
        frames: int | None,
        stream: Iterator[Frame],
        release: Callable[[], object] = lambda: None,
    ) -> None:
        self.name, self.fps, self.frames = name, fps, frames
        self._stream, self._release = stream, release
        self.status, self.drops = Status("running"), dict[str, int]()

    def __iter__(self) -> Iterator[Frame]:
        yield from self._stream
        self.status = Status("ended")

    def close(self) -> None:
        self._release()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(
    uri: str | Path,
    *,
    policy: Literal["freshest", "every"] = "freshest",
    staleness: float = 0.5,
    on_status: Callable[[Status], object] | None = None,
) -> Source:
    """Open a video, a picture, a directory (one clip of its pictures, in name order) or `sim://SCENE?seed=7`.

    Raises: SourceError when there is nothing there, or nothing readable; UsageError for a wrong sim:// address. A
    picture or packet further on that cannot be read raises SourceError when its turn comes.
    """
    if str(uri).startswith("sim://"):
        return _simulation(str(uri))
    path = Path(uri)
    if "://" in str(uri):
        raise SourceError(f"A source is a video, a picture, a directory or sim://...; got {uri}.")
    if path.is_dir():
        return _directory(path)
    if not path.is_file():
        raise SourceError(f"A source is a video, a picture, a directory or sim://...; {path} does not exist.")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return Source(path.name, PICTURES_FPS, 1, iter([Frame(read_picture(path), 0, 0.0)]))
    return _video(path)


def read_picture(path: Path) -> NDArray[Any]:
    """One picture file as a camera array: (H, W) uint8 or uint16, or (H, W, 3) uint8 BGR; alpha is dropped."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise SourceError(f"{path} cannot be read as a picture. Is it damaged, or named like one by mistake?")
    if picture.ndim == 3 and picture.shape[2] == 4:
        picture = picture[:, :, :3]
    if picture.dtype == np.uint8 or (picture.dtype == np.uint16 and picture.ndim == 2):
        return np.ascontiguousarray(picture)
    raise SourceError(
        f"A picture must be grey with 8 or 16 bits, or colour with 8; {path} is {picture.shape} {picture.dtype}. "
        "Convert it, raw thermal counts to 16-bit grey."
    )


def _simulation(uri: str) -> Source:
    spec = parse_sim_uri(uri)
    return Source(uri, spec.fps, spec.frames or None, simulate(spec))


def _directory(path: Path) -> Source:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise SourceError(f"A directory must hold pictures ({', '.join(PICTURE_SUFFIXES)}); {path} holds none.")
    return Source(path.name, PICTURES_FPS, len(files), _pictures(files))


def _pictures(files: list[Path]) -> Iterator[Frame]:
    first: NDArray[Any] | None = None
    for index, file in enumerate(files):
        image = read_picture(file)
        first = image if first is None else first
        if (image.shape, image.dtype) != (first.shape, first.dtype):
            raise SourceError(
                f"The pictures of a directory are one clip and must be alike: {files[0].name} is {first.shape} "
                f"{first.dtype}, {file} is {image.shape} {image.dtype}. Put other kinds into other directories."
            )
        yield Frame(image, index, index / PICTURES_FPS)


def _video(path: Path) -> Source:
    av = import_av()
    not_video = SourceError(f"{path} cannot be read as a video. Is it damaged, or no video at all?")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, ValueError) as error:
        raise not_video from error
    # FFmpeg renders text files as if they were a terminal; nobody means that.
    if not container.streams.video or container.format.name == "tty":
        container.close()
        raise not_video
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    fps = float(stream.average_rate or stream.guessed_rate or VIDEO_FPS)
    return Source(path.name, fps, stream.frames or None, _decode(container, path, fps), container.close)


def _decode(container: av.container.InputContainer, path: Path, fps: float) -> Iterator[Frame]:
    import av

    start, index = None, 0
    try:
        for picture in container.decode(video=0):
            time = picture.time if picture.time is not None else index / fps
            start = time if start is None else start
            yield Frame(_to_array(picture), index, time - start)
            index += 1
    except av.error.FFmpegError as error:
        raise SourceError(f"{path} cannot be decoded after frame {index}: {error}. Is the file complete?") from error
    if index == 0:
        raise SourceError(f"{path} must hold at least one frame; none could be decoded. Is the file complete?")


def _to_array(picture: av.VideoFrame) -> NDArray[Any]:
    """Grey stays grey, 8 or 16 bits; everything else becomes (H, W, 3) uint8 BGR."""
    name = picture.format.name
    if name == "gray":
        return picture.to_ndarray(format="gray")
    return picture.to_ndarray(format="gray16le" if name.startswith("gray") else "bgr24")


def import_av() -> Any:
    """PyAV, or an error that says how to get it."""
    try:
        import av
    except ModuleNotFoundError as error:
        remedy = "pip install '.[video]' in the SDK's folder"
        raise UnsupportedError(f"Reading and writing video needs PyAV. Run: {remedy}") from error
    return av
