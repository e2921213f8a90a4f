"""glmd-train prepare: data sets made, drawn, converted and checked."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glmd_runtime.errors import UsageError


def add_parser(commands: Any) -> None:
    one = commands.add_parser("prepare", help="make, draw, convert and check data sets")
    kinds = one.add_subparsers(required=True, metavar="KIND")
    for add in (_add_gcoco,):
        add(kinds)


def _add_gcoco(kinds: Any) -> None:
    one = kinds.add_parser("gcoco", help="COCO in grey, without the classes that thermal sets share with it")
    one.add_argument("--coco", type=Path, required=True, help="COCO's folder: annotations, train2017, val2017")
    one.add_argument("--out", type=Path, required=True, help="folder to write; a stopped build is continued")
    one.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a CPU)")
    one.set_defaults(run=_run_gcoco)


def _run_gcoco(options: argparse.Namespace) -> None:
    if options.workers < 1:
        raise UsageError(f"--workers must be 1 or more; got {options.workers}.")
    from glmd_train.data.gcoco import build

    with _progress() as progress:
        written = build(options.coco, options.out, options.workers, progress)
    for file, counts in written.items():
        print(f"{options.out / file}: {', '.join(f'{number} {name}' for name, number in counts.items())}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each name that what it yields is called with, with the number done and of all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], completed=done, total=total)

        yield progress
