"""What is doubtful in data sets, all of it: labels, bit depth, colours, polarity, pictures that are in two sets."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.boxes import xywh_to_xyxy
from glmd_runtime.camera.looks import CLEAR, COLOURFUL, WARM_BLOODED, wilson
from glmd_runtime.errors import DatasetError, SourceError
from glmd_train.data.coco import check_annotation, expand, picture_folder, read_coco, require_file
from glmd_train.data.measures import Measures, measure

Severity = Literal["error", "warning", "note"]
Progress = Callable[[str, int, int], None]  # annotation file, pictures done, pictures in it

SHOWN = 5  # places of a finding that are printed
TINY = 3.0  # pixels; a box with a shorter side holds hardly a feature
MIN_VOTES = 10  # pictures; fewer say nothing either
MINORITY = 0.1  # a set is of mixed polarity if surely more than this part of it is of the rarer one
# Unlike pictures differ in about half of the 256 bits. Both bounds must hold: a thumbnail of plain sky proves little.
NEAR_BITS, NEAR_CORRELATION = 40, 0.95
ID, NUMBER = (int, str), (int, float)
FORMS: dict[str, dict[str, Any]] = {  # what a record must have to be used
    "categories": {"id": ID, "name": str},
    "images": {"id": ID, "file_name": str, "width": NUMBER, "height": NUMBER},
    "annotations": {"image_id": ID, "category_id": ID, "bbox": list},
}


@dataclass(frozen=True)
class Finding:
    """One kind of thing found in one annotation file (`file`; empty for pictures that are in no file).

    error   training or evaluation would stop or be wrong
    where   each place: a picture, an annotation, a pair of pictures
    """

    severity: Severity
    check: str
    file: str
    text: str
    where: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """What it is, and the first places, indented."""
        more = [f"and {len(self.where) - SHOWN} more; --json lists all"] if len(self.where) > SHOWN else []
        head = ": ".join(filter(None, (self.severity, self.check, self.file, self.text)))
        return [head, *(f"    {place}" for place in (*self.where[:SHOWN], *more))]


@dataclass
class LabelledSet:
    """One annotation file as far as it can be used. All dictionaries but `names` (of categories) are by image id."""

    file: Path
    folder: Path = Path()
    names: dict[Any, str] = field(default_factory=dict)
    sizes: dict[Any, tuple[int, int]] = field(default_factory=dict)
    pictures: dict[Any, str] = field(default_factory=dict)
    boxes: dict[Any, list[dict[str, Any]]] = field(default_factory=dict)
    measures: dict[Any, Measures] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, check: str, text: str, where: Sequence[str] = ()) -> None:
        self.findings.append(Finding(severity, check, str(self.file), text, tuple(where)))

    def add_places(self, severity: Severity, check: str, places: Sequence[str], text: str) -> None:
        """A finding that begins with the number of its places; none, where there is no place."""
        if places:
            self.add(severity, check, f"{len(places)} {text}", places)

    def objects(self, i: Any) -> list[dict[str, Any]]:
        """The boxes of a picture that are no ignore regions."""
        return [a for a in self.boxes[i] if not a.get("iscrowd")]


def lint(data: Sequence[Path], support: Sequence[Path] = (), progress: Progress = lambda *_: None) -> list[Finding]:
    """Examine COCO files, each path may hold wildcards, and compare them.

    Args:
        data: files to train or test on.
        support: files of few-shot examples (or a training set) that `data` must not share pictures with.
        progress: called after every picture.
    Returns: the findings, errors first. Unlike `load_coco` it goes on after the first error.
    Raises: DatasetError, before anything is read, for a file that does not exist and wildcards that nothing matches.
    """
    files = [[file for path in paths for file in expand(path)] for paths in (data, support)]
    for file in (*files[0], *files[1]):
        require_file(file)
    data_sets, support_sets = ([_examine(file, progress) for file in some] for some in files)
    sets = [*data_sets, *support_sets]
    for together in (*([one] for one in data_sets), support_sets):
        _check_classes(together)
    polarities = {str(one.file): polarity_of(one) for one in sets}
    found = [finding for one in sets for finding in one.findings]
    found += [*_between(sets, polarities), *(f for one in data_sets for f in _shared(one, support_sets))]
    return errors_first(found)


def errors_first(findings: Sequence[Finding]) -> list[Finding]:
    order: tuple[Severity, ...] = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _examine(file: Path, progress: Progress) -> LabelledSet:
    one = LabelledSet(file)
    try:
        content = read_coco(file)
    except DatasetError as error:
        one.add("error", "file", str(error).removeprefix(f"{file} "))
        return one
    _read_records(one, content)
    if not content["images"]:
        one.add("error", "file", "lists no picture; expected at least one in `images`")
    images = [{"file_name": name} for name in one.pictures.values()]
    one.folder = picture_folder({"info": content.get("info"), "images": images}, file)
    _check_boxes(one)
    measure_all(one, progress)
    check_pictures(one)
    return one


# Labels


def _read_records(one: LabelledSet, content: dict[str, Any]) -> None:
    """Fill names, sizes and boxes with the records that can be used; the others are findings."""
    odd: list[str] = []
    records = {kind: _formed(content[kind], kind, odd) for kind in FORMS}
    one.names = {category["id"]: category["name"] for category in records["categories"]}
    for image in records["images"]:
        i = image["id"]
        one.sizes[i], one.pictures[i], one.boxes[i] = (image["height"], image["width"]), image["file_name"], []
    for annotation in records["annotations"]:
        i, who = annotation["image_id"], f"annotation {annotation.get('id')}"
        if i not in one.sizes:
            odd.append(f"{who} names image id {i}, which `images` lacks")
            continue
        try:
            check_annotation(annotation, one.names, one.sizes[i], one.file)
            one.boxes[i].append(annotation)
        except DatasetError as error:
            odd.append(str(error).removeprefix(f"{one.file}: "))
        except TypeError:
            odd.append(f"{who} has bbox {annotation['bbox']}, expected x, y, width, height")
    one.add_places("error", "records", odd, "records cannot be used")
    ids = Counter((kind, str(r["id"])) for kind in FORMS for r in records[kind] if "id" in r)
    one.add_places("error", "ids", [f"{kind}: {i}" for (kind, i), n in ids.items() if n > 1], "ids are there twice")


def _check_classes(sets: list[LabelledSet]) -> None:
    """Files that are one set together, as few-shot splits are a file a class, need not have every class each."""
    used = {one.names[a["category_id"]] for one in sets for i in one.boxes for a in one.objects(i)}
    for one in sets[:1]:
        empty = sorted({name for each in sets for name in each.names.values()} - used)
        one.add_places("warning", "empty class", empty, "classes are declared and have no object")


def _formed(records: Any, kind: str, odd: list[str]) -> list[dict[str, Any]]:
    """The records that have what they must; what the others are goes to `odd`."""
    formed = []
    for place, record in enumerate(records if isinstance(records, list) else [records]):
        values = record if isinstance(record, dict) else {}
        wrong = [key for key, type_ in FORMS[kind].items() if not isinstance(values.get(key), type_)]
        if wrong:
            odd.append(f"number {place} of `{kind}` lacks {', '.join(wrong)}, or has something else there")
        else:
            formed.append(values)
    return formed


def _check_boxes(one: LabelledSet) -> None:
    boxes = [(i, a) for i, annotations in one.boxes.items() for a in annotations]
    tiny = [f"{one.pictures[i]}: annotation {a.get('id')} {a['bbox']}" for i, a in boxes if min(a["bbox"][2:]) < TINY]
    one.add_places("warning", "tiny box", tiny, f"boxes have a side under {TINY:g} pixels")
    counts = Counter((one.pictures[i], one.names[a["category_id"]], tuple(a["bbox"])) for i, a in boxes)
    twice = [f"{picture}: {name} {list(box)}" for (picture, name, box), n in counts.items() if n > 1]
    one.add_places("warning", "same box", twice, "boxes are there twice")
    if background := sum(not annotations for annotations in one.boxes.values()):
        one.add("note", "background", f"{background} of {len(one.boxes)} pictures have no box")


# Pictures


def measure_all(one: LabelledSet, progress: Progress = lambda *_: None) -> None:
    """Read every picture; those that cannot be read are findings."""
    unreadable: list[str] = []
    sizes: list[str] = []

    def read(i: Any) -> Measures | str:
        xywh = np.asarray([a["bbox"] for a in one.objects(i)], np.float32)
        try:
            return measure(one.folder / one.pictures[i], xywh_to_xyxy(xywh))
        except SourceError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (i, result) in enumerate(zip(one.sizes, pool.map(read, one.sizes), strict=True), start=1):
            progress(f"{one.file.parent.name}/{one.file.name}", done, len(one.sizes))
            if isinstance(result, str):
                unreadable.append(result)
                continue
            one.measures[i] = result
            if result.hw != one.sizes[i]:
                sizes.append(f"{one.pictures[i]} is {result.hw} (height, width), the file says {one.sizes[i]}")
    one.add_places("error", "picture", unreadable, "pictures are missing or unreadable")
    one.add_places("error", "size", sizes, "pictures have another size, as stored, than the file says")


def check_pictures(one: LabelledSet) -> None:
    total = len(one.measures)
    measures = [(one.pictures[i], m) for i, m in one.measures.items()]
    deep = [name for name, m in measures if m.bits == 16]
    if len(deep) < total:
        one.add_places("warning", "bit depth", deep, f"of {total} pictures have 16 bits, the others 8")
    shallow = [name for name, m in measures if m.bits == 16 and m.largest < 256]
    one.add_places("warning", "bit depth", shallow, "pictures of 16 bits hold 8-bit values: they are no raw counts")
    coloured = [name for name, m in measures if m.colourful > COLOURFUL]
    one.add_places(
        "warning", "colour", coloured, f"of {total} pictures are coloured: a palette over thermal values, or visible "
        "light. Export thermal pictures as white-hot grey",
    )
    by_pixels = defaultdict(list)
    for name, m in measures:
        by_pixels[m.pixels].append(name)
    same = [" = ".join(names) for names in by_pixels.values() if len(names) > 1]
    one.add_places("warning", "same picture", same, "pictures are there more than once, pixel for pixel")


# Polarity


@dataclass(frozen=True)
class Polarity:
    """Pictures in which objects are clearly brighter and clearly darker than what surrounds them."""

    bright: int
    dark: int
    sure: bool  # whether these are of warm-blooded classes

    @property
    def name(self) -> str | None:
        """white-hot or black-hot, where the 95% interval lies on one side of a half."""
        low, high = wilson(self.bright, self.bright + self.dark)
        return "white-hot" if low > 0.5 else "black-hot" if high < 0.5 else None


def polarity_of(one: LabelledSet) -> Polarity:
    """Count, and say what follows.

    A picture has one polarity, so its objects have one vote. Where there are enough of them only people and animals
    vote, as they are warmer than nearly all that is around them. Coloured pictures have no polarity.
    """
    if sum(m.colourful > COLOURFUL for m in one.measures.values()) >= len(one.measures) / 2:
        return Polarity(0, 0, False)
    warm = {i for i, name in one.names.items() if name.lower() in WARM_BLOODED}
    votes = votes_of(one, warm)
    sure = len(votes) >= MIN_VOTES
    votes = votes if sure else votes_of(one, set(one.names))
    polarity = Polarity(sum(v > 0 for v in votes), sum(v < 0 for v in votes), sure)
    if len(votes) < MIN_VOTES:
        one.add("note", "polarity", f"only {len(votes)} pictures have objects of clear contrast: it cannot be told")
        return Polarity(0, 0, False)
    low, high = wilson(polarity.bright, len(votes))
    measured = (
        f"{'people and animals' if sure else 'objects'} are brighter than what surrounds them in {polarity.bright} and "
        f"darker in {polarity.dark} pictures ({100 * low:.0f} to {100 * high:.0f}% bright, 95% interval)"
    )
    weak = "" if sure else ". Weak evidence: no people or animals, and other objects may be colder than what is around"
    if min(low, 1 - high) > MINORITY:
        one.add("warning", "polarity", f"white-hot and black-hot pictures may be mixed: {measured}{weak}")
    else:
        one.add("note", "polarity", f"{polarity.name}: {measured}{weak}")
    return polarity


def votes_of(one: LabelledSet, classes: set[int]) -> list[float]:
    """For each picture with clear objects of these classes: positive where more of them are bright, negative dark."""
    votes = []
    for i, m in one.measures.items():
        kinds = [a["category_id"] for a in one.objects(i)]
        clear = [np.sign(c) for c, k in zip(m.contrasts, kinds, strict=True) if k in classes and abs(c) > CLEAR]
        if m.colourful <= COLOURFUL and sum(clear):
            votes.append(float(sum(clear)))
    return votes


# Between files


def _between(sets: list[LabelledSet], polarities: dict[str, Polarity]) -> Iterator[Finding]:
    """Bit depth and polarity of one file against another's."""
    for a, b in combinations(sets, 2):
        kinds = [{m.bits for m in one.measures.values()} for one in (a, b)]
        if len(kinds[0]) == len(kinds[1]) == 1 and kinds[0] != kinds[1]:
            text = f"has {min(kinds[0])}-bit pictures, {b.file} {min(kinds[1])}-bit ones"
            yield Finding("warning", "bit depth", str(a.file), text)
        names = [polarities[str(one.file)].name for one in (a, b)]
        if None not in names and names[0] != names[1]:
            yield Finding("warning", "polarity", str(a.file), f"is {names[0]}, {b.file} is {names[1]}. Invert one")


class Gallery:
    """Pictures to look for near duplicates in."""

    def __init__(self, measures: Sequence[Measures]) -> None:
        self._hashes, self._thumbnails = (
            np.stack([getattr(m, key) for m in measures]) for key in ("bits_of_hash", "thumbnail")
        )

    def unlikeness(self, m: Measures) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """How many bits of the hash differ, infinite where the thumbnails do not correlate, and the correlation.

        Returns: two (S,), for the S pictures. Near duplicates are those with at most NEAR_BITS.
        """
        bits = (m.bits_of_hash.size - self._hashes @ m.bits_of_hash) / 2
        alike = self._thumbnails @ m.thumbnail
        bits[alike < NEAR_CORRELATION] = np.inf
        return bits, alike


def _shared(one: LabelledSet, support: list[LabelledSet]) -> Iterator[Finding]:
    """Pictures of a set that are in the support sets too, or nearly."""
    others = [(other.pictures[i], m) for other in support for i, m in other.measures.items()]
    if not others:
        return
    gallery = Gallery([m for _, m in others])
    by_pixels = {m.pixels: name for name, m in others}
    same, near = [], []
    for i, m in one.measures.items():
        if m.pixels in by_pixels:
            same.append(f"{one.pictures[i]} = {by_pixels[m.pixels]}")
            continue
        bits, alike = gallery.unlikeness(m)
        best = int(bits.argmin())
        if bits[best] <= NEAR_BITS:
            near.append(f"{one.pictures[i]} ~ {others[best][0]} ({bits[best]:.0f} bits, correlation {alike[best]:.2f})")
    total, files = len(one.measures), ", ".join(str(other.file) for other in support)
    if same:
        text = f"{len(same)} of {total} pictures are pixel for pixel in {files}"
        yield Finding("error", "leak", str(one.file), text, tuple(same))
    if near:
        rule = f"at most {NEAR_BITS} of 256 bits of the difference hash, correlation over {NEAR_CORRELATION}"
        text = f"{len(near)} of {total} pictures are nearly the same as some in {files} ({rule})"
        yield Finding("warning", "near duplicate", str(one.file), text, tuple(near))
