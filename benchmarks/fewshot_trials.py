"""Trials for the default recipe: one draw that the benchmark does not use, scored on train pictures only.

    python -m benchmarks.fewshot_trials --name calm --change learning_rate=0.001 \\
        'augment={crop_hw: [384, 480], scale: [0.8, 1.25]}'

Appends a line to results/fewshot_trials.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.common import RESULTS, conditions
from benchmarks.fewshot import detect, draw, values
from benchmarks.fewshot_bases import COMMITTED
from benchmarks.fewshot_runs import NOVEL
from glmd_train.checkpoint import load_checkpoint
from glmd_train.classifier import load_classifier
from glmd_train.config import DatasetConfig
from glmd_train.data.coco import load_coco, load_coco_files
from glmd_train.evaluate import in_order
from glmd_train.loop import fit
from glmd_train.prototypes import add_pcb
from glmd_train.recipes import DEFAULT, fine_tuning, recipe_names

AIR_STEP = 3  # every third of air's pictures: they are frames of few clips


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--name", required=True)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    options.add_argument("--recipe", choices=recipe_names(), default=DEFAULT)
    options.add_argument("--change", nargs="*", default=[], metavar="KEY=YAML", help="whole keys of the configuration")
    options.add_argument("--sets", nargs="+", choices=list(NOVEL), default=list(NOVEL), help="sets that are taught")
    options.add_argument("--shots", type=int, default=10)
    options.add_argument("--seed", type=int, default=100)
    given = options.parse_args()
    changes = {key: yaml.safe_load(value) for key, value in (change.split("=", 1) for change in given.change)}
    base = COMMITTED["glmd"]
    with tempfile.TemporaryDirectory(prefix="thermal-fs.") as scratch:
        folder = Path(scratch)
        splits = draw(given.data, folder / "splits", given.seed, [given.shots])
        splits, classes = {name: splits[name] for name in given.sets}, classes_of(given.sets)
        files = [split / f"full_box_{given.shots}shot_*_trainval.json" for split in splits.values()]
        train = [DatasetConfig(annotations=file) for file in files]
        model = load_checkpoint(base)
        changed = {"shots": given.shots, "seed": given.seed, **changes}
        config = fine_tuning(given.recipe, model, base, classes, train, folder / "run", **changed)
        began = time.monotonic()
        checkpoint = load_checkpoint(fit(config))
        seconds = time.monotonic() - began
        checkpoint = add_pcb(checkpoint, load_classifier(), load_coco_files(files, classes))
        records = []
        for name, split in splits.items():
            records += in_order(load_coco(split / "test.json", classes))[:: AIR_STEP if name == "air" else 1]
        found = detect(checkpoint, records, folder)
    row = {
        "name": given.name, "recipe": given.recipe, "changes": changes, "sets": given.sets,
        "shots": given.shots, "seed": given.seed,
        "seconds": round(seconds), "pictures": len(records),
        **{f"pcb_{state}": values(records, [one[state] for one in found], classes) for state in ("off", "on")},
        **conditions(f"python -m benchmarks.fewshot_trials {shlex.join(sys.argv[1:])}"),
    }
    with (RESULTS / "fewshot_trials.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


def classes_of(sets: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for one in sets for name in NOVEL[one])


if __name__ == "__main__":
    main()
