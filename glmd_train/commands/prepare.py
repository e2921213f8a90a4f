"""glmd-train prepare: data sets made, drawn, converted and checked."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glmd_runtime.errors import DatasetError, UsageError


def add_parser(commands: Any) -> None:
    one = commands.add_parser(
        "prepare", help="make, draw, convert and check data sets",
        description="Make, draw, convert and check data sets.",
        example="glmd-train prepare lint --data labels.json",
    )
    kinds = one.add_subparsers(required=True, metavar="KIND")
    for add in (_add_gcoco, _add_fewshot, _add_coco, _add_lint):
        add(kinds)


def _add_gcoco(kinds: Any) -> None:
    one = kinds.add_parser(
        "gcoco", help="COCO in grey, without the classes that thermal sets share with it",
        description="Make GCOCO: COCO in grey, without the classes that thermal sets share with it.",
        example="glmd-train prepare gcoco --coco coco/ --out gcoco/",
    )
    add = one.add_argument
    add("--coco", type=Path, required=True, metavar="DIR", help="COCO's folder: annotations, train2017, val2017")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write; a stopped build is continued")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one a CPU)")
    one.set_defaults(run=_run_gcoco)


def _run_gcoco(options: argparse.Namespace) -> None:
    if options.workers < 1:
        raise UsageError(f"--workers must be 1 or more; got {options.workers}.")
    from glmd_train.data.gcoco import build

    with _progress() as progress:
        written = build(options.coco, options.out, options.workers, progress)
    for file, counts in written.items():
        print(f"{options.out / file}: {', '.join(f'{number} {name}' for name, number in counts.items())}")


def _add_fewshot(kinds: Any) -> None:
    one = kinds.add_parser(
        "fewshot", help="draw K labelled boxes of each class, for each seed",
        description="Draw K labelled boxes of each class, for each seed, and write the lists to train and test with.",
        example="glmd-train prepare fewshot --annotations all.json --shots 1 10 --seeds 0 1 2 "
        "--protocol strict --out shots/",
    )
    add = one.add_argument
    add("--annotations", type=Path, required=True, metavar="FILE", help="COCO file to draw from")
    add("--images", type=Path, metavar="DIR", help="folder that its file names start at, where it cannot be found")
    add("--shots", type=int, nargs="+", required=True, metavar="K", help="boxes of each class")
    add("--seeds", type=int, nargs="+", required=True, metavar="SEED", help="one draw each")
    add("--protocol", choices=("paper", "strict"), required=True,
        help="paper: the published draw; strict: support pictures are taken out of the test list")
    add("--classes", nargs="+", default=[], metavar="NAME", help="draw these alone (default: all)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write seed<S> folders into")
    one.set_defaults(run=_run_fewshot)


def _run_fewshot(options: argparse.Namespace) -> None:
    from glmd_train.data.fewshot import write_splits

    folders = write_splits(
        options.annotations, options.out, options.protocol, options.shots, options.seeds, options.classes,
        options.images,
    )
    for folder in folders:
        print(f"{folder}: {len(list(folder.glob('*shot*.json')))} files of shots")


def _add_coco(kinds: Any) -> None:
    one = kinds.add_parser(
        "coco", help="a YOLO, Pascal VOC, LabelMe, COCO or IFSOD data set as one COCO file",
        description="Write a YOLO, Pascal VOC, LabelMe, COCO or IFSOD data set as one COCO file.",
        example="glmd-train prepare coco --from my_yolo_set/ --out all.json",
    )
    add = one.add_argument
    add("--from", type=Path, required=True, dest="source", metavar="PATH", help="the set's folder, or its file")
    add("--out", type=Path, required=True, metavar="FILE.json", help="file to write; pictures stay where they are")
    add("--format", choices=("yolo", "voc", "labelme", "coco", "ifsod"), help="where it is not seen from the files")
    add("--split", metavar="NAME", help="train, val or test, of a set that is divided")
    one.set_defaults(run=_run_coco)


def _run_coco(options: argparse.Namespace) -> None:
    from glmd_train.data.formats import convert

    content = convert(options.source, options.out, options.format, options.split)
    names = ", ".join(category["name"] for category in content["categories"])
    print(f"{options.out}: {len(content['images'])} pictures, {len(content['annotations'])} boxes of {names}")


def _add_lint(kinds: Any) -> None:
    one = kinds.add_parser(
        "lint", help="what is doubtful in data sets: labels, pictures, polarity, duplicates",
        description="Say what is doubtful in data sets: labels, pictures, polarity, duplicates.",
        example="glmd-train prepare lint --data labels.json",
    )
    one.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="COCO files to examine")
    one.add_argument("--support", type=Path, nargs="+", default=[], metavar="FILE",
                     help="COCO files, few-shot splits or a training set, that share no picture with --data")
    one.add_argument("--json", action="store_true", help="print all findings as JSON")
    one.set_defaults(run=_run_lint)


def _run_lint(options: argparse.Namespace) -> None:
    from glmd_train.data.lint import lint

    with _progress() as progress:
        findings = lint(options.data, options.support, progress)
    if options.json:
        print(json.dumps({"findings": [finding.to_dict() for finding in findings]}, indent=1))
    else:
        print("\n".join(line for finding in findings for line in finding.lines()))
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        what = "1 error in the data; correct it" if errors == 1 else f"{errors} errors in the data; correct them"
        raise DatasetError(f"{what} before training on it.")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each name that what it yields is called with, with the number done and of all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, Any] = {}

    def progress(name: str, done: int, total: int) -> None:
        if not tasks:
            bars.start()  # not before: an error at once is the only line
        if name not in tasks:
            tasks[name] = bars.add_task(name)
        bars.update(tasks[name], completed=done, total=total)

    try:
        yield progress
    finally:
        if tasks:
            bars.stop()
