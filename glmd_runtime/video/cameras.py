"""Cameras that a live source reads: RTSP and UDP streams, V4L2 devices, the simulator by the clock."""

from __future__ import annotations

import errno
from collections.abc import Generator
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from glmd_runtime.errors import SourceError, UnsupportedError
from glmd_runtime.video.decoding import CONTAINERS, import_av, to_array
from glmd_runtime.video.live import TIMEOUT, Shot
from glmd_runtime.video.simulator import Scene, SceneSpec

if TYPE_CHECKING:
    import av

FPS = 25.0  # until a camera says


class NetworkCamera:
    """`rtsp://` and `udp://`, through FFmpeg.

    Args:
        url: with user and password; `name` is what is shown of it.
        transport: "tcp" loses nothing on the way; "udp" is for cameras that give nothing else. Of RTSP only.
        timeout: seconds that connecting, and each packet, may take.
    """

    def __init__(self, url: str, name: str, *, transport: str = "tcp", timeout: float = TIMEOUT) -> None:
        self.name, self.fps = name, FPS
        self._url, self._timeout = url, timeout
        # A sound track would only make FFmpeg shift the pictures' times to fit it.
        rtsp = {"rtsp_transport": transport, "allowed_media_types": "video", "protocol_whitelist": "rtsp,rtp,udp,tcp"}
        udp = {"protocol_whitelist": "udp", "format_whitelist": CONTAINERS}  # whatever it is that is sent
        self._options = {"fflags": "nobuffer", "analyzeduration": "500000", **(rtsp if url.startswith("rtsp") else udp)}
        self._av = import_av()
        # Some cameras break the rules in what is no picture, and would be refused for ever.
        self._strict, self._seen = True, False  # until a connection gave nothing whole; whether one ever did

    def shots(self) -> Generator[Shot | None, None, None]:
        """Raises: SourceError when it cannot be reached, or is lost."""
        container = None
        try:
            container = self._av.open(self._url, options=self._options, timeout=(self._timeout, self._timeout))
            if not container.streams.video:
                raise SourceError("it sends no video")
            yield from self._read(container)
        except self._av.error.ExitError:
            raise SourceError(f"nothing came for {self._timeout:g} s") from None
        except (self._av.error.FFmpegError, ValueError) as error:  # whose own text holds the URL, password included
            raise SourceError(_reason(error)) from None
        finally:
            if container is not None:
                container.close()
        raise SourceError("the camera ended the stream")

    def _read(self, container: av.container.InputContainer) -> Generator[Shot | None, None, None]:
        stream = container.streams.video[0]
        self._prepare(stream)
        damaged = whole = False  # whole: whether the pictures that the next one builds upon are there
        try:
            for packet in container.demux(stream):
                if not packet.size:  # the end
                    return
                pictures = self._decode(packet)
                if not pictures:  # a decoder may wait for a key frame, or for ever
                    yield None
                for picture in pictures:
                    damaged = damaged or picture is None
                    whole = picture is not None and (whole or bool(picture.key_frame))
                    self._seen = self._seen or whole
                    yield Shot(to_array(picture), picture.time) if picture is not None and whole else Shot(None)
        finally:
            self._strict = self._strict and (self._seen or not damaged)

    def _prepare(self, stream: av.video.stream.VideoStream) -> None:
        stream.thread_type = "SLICE"  # frame by frame would hold back as many frames as there are threads
        stream.codec_context.flags |= self._av.codec.context.Flags.low_delay
        if self._strict:  # FFmpeg would fill what is missing with grey, black or the picture before, and not say so
            stream.codec_context.options = {"err_detect": "explode"}
        self.fps = float(stream.average_rate or stream.guessed_rate or FPS)

    def _decode(self, packet: av.Packet[Any]) -> list[av.VideoFrame | None]:
        """The pictures of a packet, None for one that is damaged."""
        try:
            pictures: Any = [None] if packet.is_corrupt else packet.decode()
        except self._av.error.FFmpegError:
            return [None]
        return [None if picture is None or picture.is_corrupt else picture for picture in pictures]


def _reason(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.EIO:  # FFmpeg's word for a name that nobody knows
        return "Input/output error (is the host's name right?)"
    return getattr(error, "strerror", None) or type(error).__name__


class DeviceCamera:
    """`v4l2:///dev/video0`, through OpenCV. Never run on a real device by this project: tests use a fake.

    A device that falls silent is lost after 10 s, which is OpenCV's own limit.

    Args:
        device: the path.
        format: "Y16" gives (H, W) uint16 counts, "GREY" (H, W) uint8; None leaves it to the camera and gives BGR.
        size_hw, fps: what the camera is asked for; it may give another.
    """

    def __init__(
        self,
        device: str,
        name: str,
        *,
        format: str | None = None,
        size_hw: tuple[int, int] | None = None,
        fps: float | None = None,
    ) -> None:
        self.name, self.fps = name, fps or FPS
        self._device, self._format = device, format
        self._wishes: list[tuple[int, float]] = []
        if format is not None:
            self._wishes += [(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*format.ljust(4)))]
        if size_hw is not None:
            self._wishes += [(cv2.CAP_PROP_FRAME_WIDTH, size_hw[1]), (cv2.CAP_PROP_FRAME_HEIGHT, size_hw[0])]
        if fps is not None:
            self._wishes += [(cv2.CAP_PROP_FPS, fps)]
        if format is not None:  # last, for the others start the device anew
            self._wishes += [(cv2.CAP_PROP_CONVERT_RGB, 0)]

    def shots(self) -> Generator[Shot, None, None]:
        """Raises: SourceError when it is not there, or is lost; UnsupportedError when it has no such format."""
        if not Path(self._device).exists():  # OpenCV would print a warning at each attempt
            raise SourceError(f"{self._device} is not there")
        device = cv2.VideoCapture(self._device, cv2.CAP_V4L2)
        try:
            if not device.isOpened():
                raise SourceError(f"{self._device} cannot be opened: is it busy, or not ours to open?")
            for wish in self._wishes:
                device.set(*wish)
            rate = device.get(cv2.CAP_PROP_FPS)
            self.fps = rate if rate > 0 else self.fps
            while True:
                there, image = device.read()
                if not there:
                    raise SourceError(f"{self._device} gives no more pictures")
                stamp = device.get(cv2.CAP_PROP_POS_MSEC) / 1000  # the driver's
                whole = image is not None and image.size > 0
                yield Shot(self._checked(image) if whole else None, stamp if stamp > 0 else None)
        finally:
            device.release()

    def _checked(self, image: Any) -> Any:
        expected = {"Y16": (2, np.uint16), "GREY": (2, np.uint8), None: (3, np.uint8)}[self._format]
        image = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if (image.ndim, image.dtype) == expected:
            return np.array(image)  # a copy, for the driver's buffer is used again
        raise UnsupportedError(
            f"{self._device} was asked for {self._format or 'colour'}; got {image.shape} {image.dtype}. See what it "
            f"has: v4l2-ctl --device {self._device} --list-formats-ext"
        )


class SimulatedCamera:
    """`sim://SCENE?live=1`: the scene as the clock shows it. A machine that is too slow sees fewer frames of it."""

    def __init__(self, spec: SceneSpec, name: str) -> None:
        self.name, self.fps = name, spec.fps
        self._spec = spec
        self._began: float | None = None  # a scene goes on while nobody looks

    def shots(self) -> Generator[Shot, None, None]:
        scene = Scene(self._spec)
        self._began = self._began or monotonic()
        index = int((monotonic() - self._began) * self.fps)
        while not self._spec.frames or index < self._spec.frames:
            sleep(max(0.0, self._began + index / self.fps - monotonic()))
            frame = scene.frame(index)
            yield Shot(frame.image, index / self.fps, frame.truth)
            index = max(index + 1, int((monotonic() - self._began) * self.fps))
