"""What is fuzzed of the runtime: manifest, frames, recordings, pictures, addresses; and the table of all targets.

A target is made in an empty folder, which is the process' current one and lies in memory where that is possible, and
imports what it needs when it is made: a process has one of them.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tests.trust import fuzz_proofs, fuzz_training
from tests.trust.fuzz_mutations import (
    Target,
    attempt_all,
    by_first,
    joined,
    json_values,
    octets,
    one_of,
    parts,
    png,
    split,
    words,
)


def manifest(folder: Path) -> Target:
    """manifest.json, sealed, so that nothing but its content can be wrong; what is not refused is run and drawn."""
    from glmd_runtime.backends.fake import FakeBackend
    from glmd_runtime.bundle import SEAL, open_bundle, write_bundle
    from glmd_runtime.camera.looks import Statistics
    from glmd_runtime.detector import Detector
    from glmd_runtime.draw import draw
    from glmd_runtime.manifest import MANIFEST
    from glmd_runtime.thermal import Intensity
    from glmd_runtime.tuned import TunedSpec, this_machine
    from tests import tiny

    path, frame = folder / "tiny.glmd", tiny.frames()[0]
    write_bundle(path, tiny.manifest(), {"model.onnx": b"read by no backend"})
    plain = json.loads((path / MANIFEST).read_text())
    looks, intensity = Statistics((1, 2), (3, 4), (0, 0)), Intensity("plateau", polarity="black-hot")
    pixels = {**tiny.SPEC.to_dict(), "statistics": looks.to_dict(), "intensity": intensity.to_dict()}
    tuned = TunedSpec(this_machine(), "model.onnx", "onnxruntime", 2, 30.0, 9.0, 11.0, 0.4, 0.7, ("val.json",))
    graph = {**plain["graph"], "outputs": {**plain["graph"]["outputs"], "features": [1, 4, 6]}}
    variants = [{}, {"preprocess": pixels}, {"tuned": tuned.to_dict()}, {"graph": graph}, {"provenance": {"a": [1]}}]

    def run(data: bytes) -> None:
        (path / MANIFEST).write_bytes(data)
        (path / SEAL).write_text(hashlib.sha256(data).hexdigest() + "\n")
        backend = FakeBackend(open_bundle(path).manifest.graph, [[((1, 1, 9, 9), 0, 0.9)]])
        with Detector(path, backend=backend, pcb=False) as detector:
            info = json.dumps(detector.info(), ensure_ascii=False)
            assert "\x1b" not in info.encode().decode(), info  # half a character has no bytes
            draw(frame, detector.run(frame))

    odd = [{"class_names": [name, "car"]} for name in _NAMES] + [{"name": name} for name in _NAMES]
    seeds, hostile = ([json.dumps({**plain, **one}).encode() for one in several] for several in (variants, odd))
    return Target(run, seeds, json_values, hostile)


def frames(folder: Path) -> Target:
    """Arrays of every kind into `preprocess`, `Detector.run`, `draw`; accepted ones give what a plain copy gives."""
    from glmd_runtime.backends.fake import FakeBackend
    from glmd_runtime.detector import Detector
    from glmd_runtime.draw import MIN_SIDE, draw
    from glmd_runtime.images import as_numpy
    from glmd_runtime.preprocess import PreprocessSpec, preprocess
    from glmd_runtime.thermal import MODES, Intensity
    from tests import tiny

    path, graph = tiny.bundle(folder / "tiny.glmd").path, tiny.graph_spec()
    specs = [tiny.SPEC, PreprocessSpec((1, 1), (0.0,), (1.0,)), PreprocessSpec((7, 300), (1.0,) * 3, (2.0,) * 3)]
    specs += [PreprocessSpec((33, 20), (9.0,), (1.0,), Intensity(mode, polarity="black-hot")) for mode in MODES]
    specs += [PreprocessSpec((20, 40), (9.0,), (1.0,), Intensity("linear", 0, 65535), "published")]

    def run(data: bytes) -> None:
        choices = Choices(data)
        spec, script = choices.of(specs), [rows(choices)]
        frame = array(choices)
        image, geometry = preprocess(as_numpy(frame), spec)
        plain = np.ascontiguousarray(as_numpy(frame)).astype(np.asarray(frame).dtype.newbyteorder("="))
        assert np.array_equal(image, preprocess(plain, spec)[0]) and np.isfinite(image).all()
        with Detector(path, backend=FakeBackend(graph, script), tiles=choices.of([None, (2, 1)])) as detector:
            found = detector.run(frame)
        assert np.isfinite(found.xyxy).all(), found
        assert (found.xyxy >= 0).all() and (found.xyxy <= [*geometry.frame_hw[::-1]] * 2).all(), found
        picture = draw(plain, replace(found, class_names=[choices.of(_NAMES) for _ in found.class_names]))
        assert picture.shape[2] == 3 and max(picture.shape) >= MIN_SIDE

    rng = np.random.default_rng(0)
    decisions = [rng.integers(0, 256, 64, np.uint8).tobytes() for _ in range(100)]
    return Target(run, [bytes(64)], octets, decisions)


class Choices:
    """Bytes as decisions; when they are used up, always the first."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def below(self, end: int) -> int:
        return next(self._data, 0) % end

    def of(self, options: Sequence[Any]) -> Any:
        return options[self.below(len(options))]


_DTYPES = (
    *("u1", "<u2") * 8, ">u2", "i1", "<i2", "<u4", "<u8", "<f2", "<f4", "<f8", ">f4", "?", "O", "U3", "S2", "M8[s]",
    "<c8", "V2", [("a", "u1"), ("b", "<u2")],
)
_SIDES = (64, 80, 100, 90, 70, 0, 1, 2, 3, 5, 31, 129)
_NUMBERS = (0.0, -5.0, 10.0, 1e30, -1e38, float("nan"), float("inf"), -float("inf"), 50.0, 0.5, 0.9, 1.0, 1e-30)
_NAMES = ("person", "a\ud800", "\udcff", "two\nlines", "\0", "\x1b[31m", "", "é\U0001f600", "a" * 3000)
_VIEWS: tuple[Callable[[Any], Any], ...] = (
    *(lambda a: a,) * 12, np.asfortranarray, lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::2],
    lambda a: a[..., ::-1], lambda a: np.broadcast_to(a[:1], a.shape), lambda a: a[1:-1, 1:-1],
    lambda a: np.moveaxis(a, -1, 0),
    lambda a: np.stack([a] * 3, -1)[..., 1], lambda a: np.ndarray(a.shape, a.dtype, bytes(a.nbytes + 9), 1),
    lambda a: a[:0], lambda a: a[..., None], lambda a: np.stack([a] * 4, -1)[..., :3],
)


class _Odd:
    """Something that says that it speaks DLPack, and does not."""

    def __init__(self, device: Any, answer: Any) -> None:
        self._device, self._answer = device, answer

    def __dlpack_device__(self) -> Any:
        return self._device

    def __dlpack__(self, **_: Any) -> Any:
        return self._answer


class _Spoken:
    """An array of another library: DLPack alone."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.dtype = np.asarray(held).dtype

    def __dlpack_device__(self) -> Any:
        return self.held.__dlpack_device__()

    def __dlpack__(self, **given: Any) -> Any:
        return self.held.__dlpack__(**given)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.held, dtype)


_WRAPPERS: tuple[Callable[[Any], Any], ...] = (
    *(lambda a: a,) * 16, _Spoken, lambda a: a.tolist(), np.ma.masked_array, np.asmatrix, memoryview, lambda a: None,
    lambda a: _Odd((1, 0), None), lambda a: _Odd((2, 0), a), lambda a: _Odd(None, a), lambda a: _Odd((1, 0), a), bytes,
    lambda a: a.view(type("Sub", (np.ndarray,), {})), lambda a: a[0, 0], lambda a: "frame", lambda a: [a],
)


def array(choices: Choices) -> Any:
    """What somebody may give as a frame."""
    shape = tuple(choices.of(_SIDES) for _ in range(choices.of((2, 2, 2, 2, 3, 3, 3, 0, 1, 4))))
    shape = (*shape[:2], choices.of((3, 3, 3, 1, 4, 2)), *(1 for _ in shape[3:])) if len(shape) > 2 else shape
    numbers = np.random.default_rng(choices.below(256)).integers(0, choices.of((256, 65536, 1, 2)), shape)
    made: Any = numbers
    with suppress(Exception):  # what numpy itself cannot make is nobody's frame
        made = numbers.astype(choices.of(_DTYPES))
    if made.dtype.kind == "f" and made.size:
        made.flat[0] = choices.of(_NUMBERS)
    for change in (choices.of(_VIEWS), choices.of(_VIEWS), choices.of(_WRAPPERS)):
        with suppress(Exception):
            made = change(made)
    return made


def rows(choices: Choices) -> list[tuple[list[float], int, float]]:
    """What a network may say of an image: boxes and scores, finite or not."""
    numbers = lambda n: [choices.of(_NUMBERS) for _ in range(n)]  # noqa: E731
    return [(numbers(4), choices.below(2), *numbers(1)) for _ in range(choices.below(5))]


def recording(folder: Path) -> Target:
    """The lines of a recording and its container, through `open_source` to the last frame."""
    from glmd_runtime.thermal import Radiometry
    from glmd_runtime.video.frame import Frame
    from glmd_runtime.video.recording import Recorder, side_file
    from glmd_runtime.video.sources import open_source

    seeds = []
    for number, kind in enumerate(("<u2", "u1")):
        with Recorder(folder / f"seed{number}.mkv", 10) as recorder:
            for index in range(3):
                image = np.full((8, 10), 20 * index, kind)
                recorder.write(Frame(image, index, index / 10, radiometry=Radiometry() if number == 0 else None))
        [path] = recorder.paths
        seeds += [joined(side_file(path).read_bytes(), path.read_bytes())]
    path = folder / "clip.mkv"

    def run(data: bytes) -> None:
        lines, container = split(data, 2)
        side_file(path).write_bytes(lines)
        path.write_bytes(container)
        with open_source(path) as source:
            for frame in source:
                assert isinstance(frame.index, int) and isinstance(frame.time, float)

    return Target(run, seeds, parts(words, octets))


def pictures(folder: Path) -> Target:
    """Pictures: their header, as readers of labels want it, and the frames of up to three of their pages."""
    os.environ["OPENCV_LOG_LEVEL"] = "OFF"  # which OpenCV looks at when it is imported
    from PIL import ExifTags, Image

    from glmd_runtime.video.sources import open_source
    from glmd_train.data.formats.pictures import stored_hw

    turned, seeds = Image.Exif(), []
    turned[ExifTags.Base.Orientation] = 3  # OpenCV refuses a TIFF that is turned by a quarter
    images = [np.arange(120, dtype=kind).reshape(10, 12) for kind in ("u1", "u2")]
    images = [Image.fromarray(one) for one in (*images, np.dstack([images[0]] * 3))]
    for suffix, kinds in _PICTURES.items():
        for image in images[:1] * ("L" in kinds) + images[1:2] * ("16" in kinds) + images[2:] * ("RGB" in kinds):
            pages = {"save_all": True, "append_images": [image]} if suffix == "tif" else {}
            for exif in ({}, {"exif": turned}):
                buffer = io.BytesIO()
                image.save(buffer, Image.registered_extensions()[f".{suffix}"], **exif, **pages)
                seeds.append(suffix[:1].encode() + buffer.getvalue())

    def run(data: bytes) -> None:
        path = folder / f"a.{_BY_FIRST.get(data[:1], 'png')}"
        path.write_bytes(data[1:])
        attempt_all(lambda: stored_hw(path), lambda: first_frames(path))

    def first_frames(path: Path) -> None:
        with open_source(path) as source:
            for frame in islice(source, 3):
                assert frame.image.dtype in (np.uint8, np.uint16) and frame.image.size

    return Target(run, list(dict.fromkeys(seeds)), by_first({b"p": one_of(png, png, octets)}, octets))


# Kinds of pictures, and of pixels that each of them has.
_PICTURES = {
    "png": ("L", "16", "RGB"), "tif": ("L", "16", "RGB"), "jpg": ("L", "RGB"), "webp": ("RGB",), "bmp": ("L", "RGB"),
}
_BY_FIRST = {suffix[:1].encode(): suffix for suffix in _PICTURES}


def uri(folder: Path) -> Target:
    """Addresses, opened as far as that touches nothing but the files of a folder: no camera, no simulated scene."""
    import cv2

    from glmd_runtime.video import sources
    from glmd_runtime.video.address import redacted
    from glmd_runtime.video.files import files_of

    sources.LiveSource = lambda camera, **given: None  # type: ignore[assignment,misc]
    sources.simulate = lambda spec: iter(())  # type: ignore[assignment]
    os.chdir(folder)  # where relative addresses begin
    (folder / "night").mkdir()
    for name in ("a.png", "night/1.png", "night/2.png", "odd?name.png"):
        cv2.imwrite(str(folder / name), np.full((8, 10), 900, np.uint16))

    def run(data: bytes) -> None:
        address = data.decode("utf-8", "surrogateescape")
        redacted(address)
        sources.is_live(address)
        if "://" not in address:  # what leads out of the folder is led back into it, and opened like all the others
            address = re.sub(r"\.\.+", ".", address).lstrip("/")
        files_of(address)
        if source := sources.open_source(address):
            with source:
                next(iter(source), None)

    return Target(run, [seed.encode() for seed in _ADDRESSES], words)


_ADDRESSES = (
    "a.png", "night", "night/*.png?fps=9&celsius=0.01,-273.15", "**/*.png", "odd?name.png", "n[a-i]ght/?.png",
    "sim://ground?seed=7&frames=90&size=640x512&fps=30&objects=12&live=1", "SIM://air", "udp://@:5000?timeout=3",
    "rtsp://user:pass%40word@camera:554/stream/1?channel=2&timeout=5&transport=udp&celsius=0.04,-273.15",
    "rtsp://[fe80::1]:8554/live", "v4l2:///dev/video0?format=Y16&size=640x512&fps=9",
)

# What a reader must not do, by the input that makes `planted` do it.
PLANTED: dict[bytes, Callable[[], object]] = {
    b"error": lambda: {}["nothing"],  # type: ignore[index]
    b"memory": lambda: bytearray(1 << 40),
    b"crash": lambda: ctypes.string_at(8),
    b"loop": lambda: sum(1 for _ in iter(int, 1)),
    b"litter": lambda: Path("../litter").touch(),
}


def planted(folder: Path) -> Target:
    """A reader with every defect, to see that each is found."""
    return Target(lambda data: PLANTED.get(data, bytes)(), [b"harmless"], octets)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "manifest": manifest, "frames": frames, "recording": recording, "pictures": pictures, "uri": uri,
    "planted": planted,
    **fuzz_proofs.TARGETS, **fuzz_training.TARGETS,
}
