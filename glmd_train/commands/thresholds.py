"""glmd-train thresholds: choose each class's score threshold from labelled pictures that were not trained on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmd_runtime.commands.command import loading_libraries
from glmd_train.commands.common import add_background, allowed_alarms, counting, on_device

if TYPE_CHECKING:
    from glmd_train.checkpoint import Checkpoint
    from glmd_train.lesson.thresholds import Chosen, HeldOut


def add_parser(commands: Any) -> None:
    one = commands.add_parser(
        "thresholds", help="choose each class's score threshold from validation pictures",
        description="Choose each class's score threshold in labelled pictures that the model was not trained on: where "
        "F1 is best, as far as they have many objects, else near what is usual; with --background at least such that "
        "it is quiet there. Weights stay as they are.",
        example="glmd-train thresholds --checkpoint model.safetensors --data val.json -o calibrated.safetensors",
    )
    add = one.add_argument
    add("--checkpoint", "--ckpt", type=Path, required=True, metavar="FILE", help=".safetensors file of glmd-train")
    add("--data", type=Path, nargs="+", required=True, metavar="JSON",
        help="COCO annotation files; a class is looked for in those that have an object of it")
    add_background(add)
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs (default: %(default)s)")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the new checkpoint (.safetensors)")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from glmd_train.given import check_background, check_checkpoint, check_data, check_new_file

    check_new_file(options.checkpoint, options.output)
    background = check_background(options.background, options.false_alarms)
    check_checkpoint(options.checkpoint)
    check_data(options.data)
    with loading_libraries():
        from glmd_train.checkpoint import load_checkpoint, save_checkpoint, stored_dtype
        from glmd_train.data.coco import expand, load_coco
        from glmd_train.lesson.thresholds import choose_thresholds

    before = on_device(load_checkpoint(options.checkpoint), options.device)
    files = [file for pattern in options.data for file in expand(pattern)]
    sets = [load_coco(file, before.class_names) for file in files]
    pictures = sum(map(len, sets)) + len(background)
    print(f"Looking for {', '.join(before.class_names)} in {pictures} pictures ...", file=sys.stderr)
    with counting(options.checkpoint.stem, pictures * (2 if before.pcb else 1)) as counted:
        after, chosen = choose_thresholds(before, sets, background, allowed_alarms(options), counted)
    record = {
        "data": [f"{file.resolve().parent.name}/{file.name}" for file in files], "background": len(background),
        **({"false_alarms": allowed_alarms(options)} if background else {}),
    }
    after = replace(after, provenance={**before.provenance, "thresholds": record})
    save_checkpoint(options.output, after, stored_dtype(options.checkpoint))
    for pcb, one in chosen.items():
        _print(_had(before, pcb), one, len(background), "with PCB" if pcb == "on" else None)
    print(f"Written: {options.output}")


def _had(checkpoint: Checkpoint, pcb: str) -> tuple[float, ...]:
    """The thresholds that a checkpoint has for its scores in one PCB state."""
    spec = checkpoint.postprocess
    if pcb == "on" and checkpoint.pcb:
        spec = checkpoint.pcb.calibration.spec.postprocess(spec)
    return spec.score_thresholds


def _print(had: tuple[float, ...], chosen: Chosen, frames: int, title: str | None) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from glmd_train.lesson.thresholds import MANY, USUAL

    console, rates = Console(highlight=False), ("found", "right", *(["alarms"] if frames else []))
    # Narrow, for all columns to have room on a terminal of 80.
    table = Table("class", "objects", "before", *rates, "chosen", *rates, title=title, padding=0, box=SIMPLE)
    for before, (name, choice) in zip(had, chosen.choices.items(), strict=True):
        table.add_row(name, str(choice.rows.objects), *(
            cell for threshold in (before, choice.threshold)
            for cell in (f"{threshold:.2f}", *_rates(choice.rows, threshold), *_alarms(chosen, name, threshold, frames))
        ))
    console.print(table)
    for name, choice in chosen.choices.items():
        console.print(f"{name}: {choice.why}", markup=False)
    if (objects := sum(choice.rows.objects for choice in chosen.choices.values())) < MANY:
        console.print(f"warning: {objects} objects in all say less than the usual {USUAL:g}; give {MANY} or more.")


def _rates(rows: HeldOut, threshold: float) -> tuple[str, str]:
    """The part of the objects that is found, and the part of the detections that is right."""
    right = rows.precision(threshold)
    return f"{rows.recall(threshold):.0%}" if rows.objects else "", "" if right is None else f"{right:.0%}"


def _alarms(chosen: Chosen, name: str, threshold: float, frames: int) -> tuple[str, ...]:
    """How many pictures without objects have a detection."""
    return (str(sum(score > threshold for score in chosen.quiet[name])),) if frames else ()
