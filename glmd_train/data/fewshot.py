"""K-shot splits: which K labelled boxes of each class a detector is fine-tuned on, as COCO files.

Two protocols. `paper` repeats the published draw, number by number; what it draws from is also what it is tested on.
`strict` is the one to quote: a picture of the support set is in no test list.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.files.scratch import scratch_folder, writing
from glmd_train.data.coco import parse_coco, picture_folder, read_coco, with_image_folder

Protocol = Literal["paper", "strict"]
Annotation = dict[str, Any]
# The published script draws these one after the other with one generator: a draw depends on those before it.
PAPER_SHOTS = (1, 2, 3, 5, 10)


@dataclass(frozen=True)
class Support:
    """What one class got for one number of shots: its pictures' ids and the annotations for its file, in order.

    shots  ids of the K annotations that are its examples
    """

    image_ids: tuple[int, ...]
    annotations: tuple[Annotation, ...]
    shots: tuple[int, ...]


Split = dict[str, dict[int, Support]]  # by class name, in the order of category ids; by K


def write_splits(
    annotations: Path, out: Path, protocol: Protocol, shots: Sequence[int], seeds: Sequence[int],
    class_names: Sequence[str] = (), images: Path | None = None,
) -> list[Path]:
    """Draw a K-shot split for each seed and write them all, or nothing.

    Each `out`/seed<S> holds `full_box_{K}shot_{class}_trainval.json` for every class and K, `split.json` (protocol,
    seed, shots, SHA-256 of `annotations`, ids) and, with `strict`, `test.json`: `annotations` without the pictures of
    this seed's files. File names in them are unchanged; `info.image_folder` leads to the pictures.

    Args:
        annotations: a COCO file; its `iscrowd` boxes are never drawn.
        protocol: see `draw_paper` and `draw_strict`.
        shots: values of K; of `PAPER_SHOTS` for the paper.
        class_names: those to draw; empty for all that the file declares.
        images: the folder that file names start at; None is the one that `picture_folder` finds.
    Returns: the folders.
    Raises: UsageError for shots that cannot be asked for, a class that is not declared, a folder that exists already;
        DatasetError for a wrong file, or a class from which no split can be drawn.
    """
    shots, seeds = sorted(set(shots)), sorted(set(seeds))
    folders = _check_request(out, protocol, shots, seeds)
    content = read_coco(annotations)
    names = _names(content, annotations, class_names, images)
    draw = draw_paper if protocol == "paper" else draw_strict
    splits = [draw(content, names, shots, seed) for seed in seeds]
    source = {"file": annotations.name, "sha256": hashlib.sha256(annotations.read_bytes()).hexdigest()}
    pictures = images or picture_folder(content, annotations)
    base = with_image_folder(content, pictures, folders[0] / "split.json")  # every seed is as far from them
    out.mkdir(parents=True, exist_ok=True)
    with writing(out), scratch_folder(out / "splits") as partial:
        for folder, split, seed in zip(folders, splits, seeds, strict=True):
            head = {"protocol": protocol, "seed": seed, "shots": shots, "source": source}
            _write_split(partial / folder.name, base, split, head)
        for folder in folders:
            (partial / folder.name).rename(folder)
    return folders


def _check_request(out: Path, protocol: Protocol, shots: Sequence[int], seeds: Sequence[int]) -> list[Path]:
    """The folders to write, one a seed."""
    if protocol == "paper" and not set(shots) <= set(PAPER_SHOTS):
        raise UsageError(f"The paper's shots are {list(PAPER_SHOTS)}; got {list(shots)}. Use --protocol strict.")
    if min(shots) < 1:
        raise UsageError(f"Shots must be 1 or more; got {list(shots)}.")
    if min(seeds) < 0:
        raise UsageError(f"Seeds must be 0 or more; got {list(seeds)}.")
    folders = [out / f"seed{seed}" for seed in seeds]
    if there := [str(folder) for folder in folders if folder.exists()]:
        raise UsageError(f"{', '.join(there)} exists already, and is not overwritten. Choose another --out or seed.")
    return folders


def _names(content: dict[str, Any], source: Path, wanted: Sequence[str], images: Path | None) -> dict[int, str]:
    """Category id -> name of the classes to draw, by ascending id, of a file that holds what it should."""
    try:
        declared = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        ids = {a["id"] for a in content["annotations"]}
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{source} has a record that is not of COCO's form: {error!r}.") from error
    if len(ids) < len(content["annotations"]) or len(set(declared.values())) < len(content["categories"]):
        raise DatasetError(f"{source} has an annotation id or a category name twice. Make each of them unique.")
    if unknown := sorted(set(wanted) - set(declared.values())):
        raise UsageError(f"{source} has no class {unknown}; it declares {list(declared.values())}. Correct --classes.")
    parse_coco(content, tuple(declared.values()), images, source)
    return {i: name for i, name in declared.items() if not wanted or name in wanted}


def draw_paper(content: dict[str, Any], names: dict[int, str], shots: Sequence[int], seed: int) -> Split:
    """The draw of the published `prepare_ifsod_few_shot.py`: for the same seed the same annotations in the same order.

    One generator runs over the classes by ascending category id, and for each over 1, 2, 3, 5 and 10 shots, whichever
    of them are asked for. Pictures are sampled; one is added with all its boxes of the class when these still fit.
    A larger K goes on from the smaller one. Boxes of other classes in a picture are not in the class's file, so they
    are unlabelled there.

    Raises: DatasetError where the published script would stop with a ValueError, or never: a class with fewer
        pictures than shots, or in which nothing that is left fits.
    """
    rng = random.Random(seed)
    return {name: _draw_paper_class(_by_image(content, i), name, shots, rng) for i, name in names.items()}


def _draw_paper_class(
    by_image: dict[int, list[Annotation]], name: str, shots: Sequence[int], rng: random.Random
) -> dict[int, Support]:
    drawn: dict[int, list[Annotation]] = {}  # picture -> its boxes; a dictionary keeps the order
    supports = {}
    for number in PAPER_SHOTS:
        if len(by_image) < number:
            raise DatasetError(
                f"Class {name!r} is in {len(by_image)} pictures, too few for {number} shots: the paper's protocol "
                f"draws {PAPER_SHOTS} shots, whichever of them are asked for. Label more, name the other classes with "
                "--classes, or use --protocol strict."
            )
        while (missing := number - sum(map(len, drawn.values()))) > 0:
            if not any(len(boxes) <= missing for i, boxes in by_image.items() if i not in drawn):
                raise DatasetError(
                    f"Class {name!r} cannot get {number} shots by the paper's protocol with this seed: it lacks "
                    f"{missing} boxes, and every picture that is left has more of them. Use another seed or "
                    "--protocol strict."
                )
            for i in rng.sample(list(by_image), number):
                if i not in drawn and len(by_image[i]) + sum(map(len, drawn.values())) <= number:
                    drawn[i] = by_image[i]
        boxes = tuple(a for one in drawn.values() for a in one)
        supports[number] = Support(tuple(drawn), boxes, tuple(a["id"] for a in boxes))
    return {number: supports[number] for number in shots}


def draw_strict(content: dict[str, Any], names: dict[int, str], shots: Sequence[int], seed: int) -> Split:
    """K shots are one box in each of K pictures; every picture with the class is equally likely.

    Each seed and class has its own generator, so that neither other classes, nor other shots, nor the order in the
    file change a draw; the shots of a smaller K are the first ones of a larger K. All that is drawn of the drawn
    classes counts exactly K boxes a class, in whichever file it stands: other boxes of these classes in a picture
    become ignore regions (`iscrowd` 1). To drop them would teach that real objects are background; to count them would
    give classes that come in crowds more than K shots. Boxes of classes that are not drawn stay as they are, so
    that they remain background or objects as the detector knows these classes or not.

    Raises: DatasetError that lists the classes in fewer pictures than the largest K.
    """
    most = max(shots)
    pictures = {name: _by_image(content, i) for i, name in names.items()}
    if few := {name: len(by_image) for name, by_image in pictures.items() if len(by_image) < most}:
        raise DatasetError(
            f"{most} shots need {most} pictures of each class; too few have {few}. Label more, ask for fewer "
            "shots, or name the other classes with --classes."
        )
    everything = defaultdict(list)
    for annotation in content["annotations"]:
        everything[annotation["image_id"]].append(annotation)
    split: Split = {}
    for name, by_image in pictures.items():
        drawn = _draw_strict_class(by_image, most, random.Random(f"{seed} {name}"))
        split[name] = {number: _strict_support(drawn[:number], everything, set(names)) for number in shots}
    return split


def _draw_strict_class(by_image: dict[int, list[Annotation]], number: int, rng: random.Random) -> list[Annotation]:
    order = sorted(by_image)
    rng.shuffle(order)
    return [rng.choice(sorted(by_image[i], key=lambda a: a["id"])) for i in order[:number]]


def _strict_support(
    drawn: list[Annotation], everything: dict[int, list[Annotation]], class_ids: set[int]
) -> Support:
    shots = tuple(a["id"] for a in drawn)
    image_ids = tuple(a["image_id"] for a in drawn)
    boxes = (
        a | {"iscrowd": 1} if a["category_id"] in class_ids and a["id"] not in shots else a
        for i in image_ids for a in everything[i]
    )
    return Support(image_ids, tuple(boxes), shots)


def _by_image(content: dict[str, Any], category_id: int) -> dict[int, list[Annotation]]:
    """The boxes of one class by picture, pictures in the order in which the annotations first name them."""
    by_image: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["category_id"] == category_id and not annotation.get("iscrowd"):
            by_image[annotation["image_id"]].append(annotation)
    return dict(by_image)


def _write_split(folder: Path, base: dict[str, Any], split: Split, head: dict[str, Any]) -> None:
    """One seed's files; `base` is the source's content, `split.json` begins with `head`."""
    folder.mkdir(parents=True)
    pictures = {image["id"]: image for image in base["images"]}
    for name, supports in split.items():
        for number, support in supports.items():
            chosen = {"images": [pictures[i] for i in support.image_ids], "annotations": list(support.annotations)}
            file = folder / f"full_box_{number}shot_{name.replace('/', '_')}_trainval.json"
            file.write_text(json.dumps(base | chosen))
    ids = {
        name: {n: {"annotation_ids": s.shots, "image_ids": s.image_ids} for n, s in supports.items()}
        for name, supports in split.items()
    }
    (folder / "split.json").write_text(json.dumps(head | {"classes": ids}, indent=1))
    if head["protocol"] == "strict":
        (folder / "test.json").write_text(json.dumps(_without(base, split)))


def _without(content: dict[str, Any], split: Split) -> dict[str, Any]:
    """A COCO file's content without the pictures of a split."""
    used = {i for supports in split.values() for support in supports.values() for i in support.image_ids}
    return content | {
        "images": [image for image in content["images"] if image["id"] not in used],
        "annotations": [a for a in content["annotations"] if a["image_id"] not in used],
    }
