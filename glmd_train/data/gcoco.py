"""GCOCO, the base training data: COCO's pictures in grey, without the classes that a thermal set shares with it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glmd_runtime.errors import DatasetError, SourceError, UsageError
from glmd_runtime.files.scratch import whole_file
from glmd_runtime.video.sources import read_picture
from glmd_train.data.coco import picture_folder, read_coco, with_image_folder

# COCO's person, bicycle, car, motorcycle, bus, truck, boat, dog: these IFSOD has too, as novel classes.
REMOVED_IDS = frozenset({1, 2, 3, 4, 6, 8, 9, 18})
GCOCO_CLASSES = (
    "airplane", "train", "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie",
    "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
JPEG_QUALITY = 95  # of the published pictures
JPEG_BEGIN, JPEG_END = b"\xff\xd8", b"\xff\xd9"


Progress = Callable[[str, int, int], None]  # annotation file, pictures done, pictures in it


@dataclass(frozen=True)
class Picture:
    """One picture to turn grey: from, to, and its (height, width) in pixels as the annotation file has it."""

    source: Path
    target: Path
    hw: tuple[int, int]


def to_grey(frame: NDArray[Any]) -> NDArray[Any]:
    """(H, W, 3) uint8 BGR -> (H, W) uint8 luminance (ITU-R BT.601); a grey frame (H, W) is returned as it is."""
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), np.uint8) if frame.ndim == 3 else frame


def gcoco_content(content: dict[str, Any]) -> dict[str, Any]:
    """A COCO file's content without the removed classes.

    Boxes and pictures are those of the published build: no box of a removed class, every picture, those without a
    box left as background. Two things differ. The published file goes on declaring all 80 categories; this one
    declares the 72 that can have a box, so that no class seems to be there without an example. And outlines
    (`segmentation`), which a detector does not read, are left out, as they are most of the file.

    Raises: DatasetError if the categories are not COCO's.
    """
    categories = [c for c in content["categories"] if c["id"] not in REMOVED_IDS]
    if foreign := sorted({c["name"] for c in categories} - set(GCOCO_CLASSES)):
        raise DatasetError(f"GCOCO is made of COCO alone, with its categories and their ids; got {foreign[:5]}.")
    kept = [a for a in content["annotations"] if a["category_id"] not in REMOVED_IDS]
    boxes = [{key: value for key, value in a.items() if key != "segmentation"} for a in kept]
    return content | {"annotations": boxes, "categories": categories}


def build(coco: Path, out: Path, workers: int, progress: Progress) -> dict[str, dict[str, int]]:
    """Write GCOCO: the layout of `coco` below `out`, grey JPEG pictures and their annotation files.

    A picture that is there and whole is not made again, so that a stopped build can be continued; an annotation file
    is written after all its pictures.

    Args:
        coco: a folder with `annotations/instances_*.json` and `train2017`, `val2017`, or `instances.json` and `images`.
        out: another folder.
        workers: processes.
        progress: called after every picture.
    Returns: for each annotation file the numbers of its `pictures`, its `background` pictures (no box), its `boxes`,
        and the `removed` boxes.
    Raises: UsageError for `out` in `coco` itself; DatasetError for a folder or file that is not COCO's, and for a
        picture that is missing, damaged or of another size.
    """
    if out.resolve() == coco.resolve():
        raise UsageError(f"The grey pictures must go to another folder than COCO's own; both are {out}. Change --out.")
    files = sorted([*coco.glob("annotations/instances_*.json"), *coco.glob("instances.json")])
    if not files:
        raise DatasetError(
            f"COCO's folder must hold annotations/instances_train2017.json (and train2017 with its pictures) or "
            f"instances.json (and images); {coco} has neither. Download and unpack COCO 2017, or correct --coco."
        )
    return {str(file.relative_to(coco)): _build_part(file, coco, out, workers, progress) for file in files}


def _build_part(file: Path, coco: Path, out: Path, workers: int, progress: Progress) -> dict[str, int]:
    """One annotation file of COCO and its pictures."""
    content = read_coco(file)
    folder = picture_folder(content, file)
    target, annotations = out / os.path.relpath(folder, coco), out / file.relative_to(coco)
    try:
        grey = gcoco_content(content)
        sizes = {image["file_name"]: (image["height"], image["width"]) for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{file} has a record that is not of COCO's form: {error!r}.") from error
    except DatasetError as error:
        raise DatasetError(f"{file}: {error}.") from error
    pictures = [Picture(folder / name, target / name, hw) for name, hw in sizes.items()]
    _make_all(pictures, workers, lambda done: progress(annotations.name, done, len(pictures)))
    with whole_file(annotations) as partial:
        partial.write_text(json.dumps(with_image_folder(grey, target, annotations)))
    used = {a["image_id"] for a in grey["annotations"]}
    return {
        "pictures": len(pictures),
        "background": len(pictures) - len(used),
        "boxes": len(grey["annotations"]),
        "removed": len(content["annotations"]) - len(grey["annotations"]),
    }


def _make_all(pictures: list[Picture], workers: int, progress: Callable[[int], None]) -> None:
    """`make_grey` in processes; after an error or an interrupt each ends the picture that it is at."""
    # Fresh processes: OpenCV's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker)
    try:
        for done, _ in enumerate(pool.map(make_grey, pictures, chunksize=16), start=1):
            progress(done)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    cv2.setNumThreads(1)


def make_grey(picture: Picture) -> None:
    """Write the grey JPEG of one picture, whole or not at all, unless it is there.

    Raises: DatasetError if the picture is missing, unreadable, of another size or no JPEG file.
    """
    if _is_whole(picture.target):
        return
    try:
        grey = to_grey(read_picture(picture.source))
        if not _is_whole(picture.source):  # OpenCV fills what is missing of a file with grey
            Image.open(picture.source).load()
    except (SourceError, OSError) as error:
        raise DatasetError(
            f"{picture.source} is missing or damaged. Download it again; pictures made so far are kept."
        ) from error
    if grey.shape != picture.hw:
        raise DatasetError(
            f"{picture.source} is {grey.shape} (height, width) but its annotation file says {picture.hw}. Is it "
            "COCO's? Download it again; pictures made so far are kept."
        )
    if picture.source.suffix.lower() not in (".jpg", ".jpeg"):
        raise DatasetError(f"GCOCO is made of COCO's JPEG pictures; got {picture.source}.")
    _, content = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    with whole_file(picture.target) as partial:
        partial.write_bytes(content.tobytes())


def _is_whole(path: Path) -> bool:
    """Whether a JPEG file is there from its first marker to its last."""
    if not path.is_file() or path.stat().st_size < 4:
        return False
    with path.open("rb") as file:
        begin = file.read(2)
        file.seek(-2, os.SEEK_END)
        return begin == JPEG_BEGIN and file.read(2) == JPEG_END
