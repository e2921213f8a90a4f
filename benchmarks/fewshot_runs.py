"""What is compared on thermal-fs, and the runs that are there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

RUNS = RESULTS / "fewshot_runs.jsonl"
NOVEL = {"air": ("uav", "airplane", "helicopter", "bird"), "dogs_people": ("dog",), "cheetah": ("cheetah",)}
CLASSES = tuple(name for names in NOVEL.values() for name in names)
SHOTS = (1, 5, 10)
MAIN, WITHOUT = "main", "without"  # the tables
# Each switch of the network needs a base that was trained without it.
SWITCHES = ("cm", "lr", "mdf", "crd")


@dataclass(frozen=True)
class Method:
    """One row of a table.

    recipe   of glmd_train/configs/recipes, with `changes` of single keys of the model
    base     "glmd" and "plain" are whole base trainings, others short ones: see `fewshot_bases`
    pcb      whether it is scored with prototypical calibration; both scores are in its runs
    """

    name: str
    recipe: str
    base: str
    pcb: bool
    changes: tuple[tuple[str, Any], ...] = ()


METHODS = {
    MAIN: (
        Method("TFA", "tfa", "plain", False),
        Method("DeFRCN", "defrcn", "plain", True),
        Method("GLMDNet", "glmdnet", "glmd", True),
        Method("default", "default", "glmd", True),
    ),
    WITHOUT: (
        Method("GLMDNet, short base", "glmdnet", "short", True),
        *(Method(f"without {s.upper()}", "glmdnet", f"short_no_{s}", True) for s in SWITCHES),
        Method("without CA", "glmdnet", "short", True, (("rpn_loss", "ce"), ("roi_loss", "ce"))),
    ),
}
SEEDS = {MAIN: tuple(range(10)), WITHOUT: (0, 1, 2)}
TABLE_SHOTS = {MAIN: SHOTS, WITHOUT: (10,)}


@dataclass(frozen=True)
class Key:
    """One run of a table."""

    table: str
    method: str
    shots: int
    seed: int


def keys(tables: Sequence[str], shots: Sequence[int], seeds: Sequence[int], names: Sequence[str]) -> Iterator[Key]:
    """Every run that is asked for (nothing given: all), whole draws first, so that a stop leaves pairs at every K."""
    for table in tables:
        for seed in SEEDS[table]:
            for number in reversed(TABLE_SHOTS[table]):
                for method in METHODS[table]:
                    asked = zip((number, seed, method.name), (shots, seeds, names), strict=True)
                    if all(not some or one in some for one, some in asked):
                        yield Key(table, method.name, number, seed)


def method_of(key: Key) -> Method:
    return next(method for method in METHODS[key.table] if method.name == key.method)


def read_runs(path: Path = RUNS) -> dict[Key, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {Key(row["table"], row["method"], row["shots"], row["seed"]): row for row in rows}


def add_run(row: dict[str, Any], path: Path = RUNS) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
