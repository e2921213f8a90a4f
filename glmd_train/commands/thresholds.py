"""glmd-train thresholds: choose each class's score threshold from labelled pictures that were not trained on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmd_runtime.commands.command import loading_libraries

if TYPE_CHECKING:
    from glmd_train.checkpoint import Checkpoint
    from glmd_train.lesson.thresholds import Choice


def add_parser(commands: Any) -> None:
    one = commands.add_parser(
        "thresholds", help="choose each class's score threshold from validation pictures",
        description="Choose each class's score threshold: the one with the best F1 in labelled pictures that the model "
        "was not trained on; with --background at least such that it is quiet there. Weights stay as they are.",
        example="glmd-train thresholds --checkpoint model.safetensors --data val.json -o calibrated.safetensors",
    )
    add = one.add_argument
    add("--checkpoint", "--ckpt", type=Path, required=True, metavar="FILE", help=".safetensors file of glmd-train")
    add("--data", type=Path, nargs="+", required=True, metavar="JSON",
        help="COCO annotation files; a class is looked for in those that have an object of it")
    add("--background", type=Path, metavar="DIR", help="pictures without any object, of the place where it will run")
    add("--false-alarms", type=float, default=10.0, metavar="N",
        help="of each class in 1000 pictures like the background, at most (default: %(default)g)")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the new checkpoint (.safetensors)")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from glmd_train.given import (
        background_pictures,
        check_checkpoint,
        check_data,
        check_false_alarms,
        check_new_file,
    )

    check_new_file(options.checkpoint, options.output)
    check_false_alarms(options.false_alarms)
    check_checkpoint(options.checkpoint)
    check_data(options.data)
    background = background_pictures(options.background) if options.background else []
    with loading_libraries():
        from glmd_train.checkpoint import load_checkpoint, save_checkpoint, stored_dtype
        from glmd_train.data.coco import load_coco_files
        from glmd_train.lesson.thresholds import choose_thresholds

    before = load_checkpoint(options.checkpoint)
    sets = [load_coco_files([path], before.class_names) for path in options.data]
    after, choices = choose_thresholds(before, sets, background, options.false_alarms)
    record = {"data": [f"{path.parent.name}/{path.name}" for path in options.data], "background": len(background)}
    after = replace(after, provenance={**before.provenance, "thresholds": record})
    save_checkpoint(options.output, after, stored_dtype(options.checkpoint))
    for pcb, chosen in choices.items():
        _print(_own(before, pcb), chosen, "with PCB" if pcb == "on" else "")
    print(f"Written: {options.output}")


def _own(checkpoint: Checkpoint, pcb: str) -> tuple[float, ...]:
    """The thresholds that a checkpoint has for its scores in one PCB state."""
    spec = checkpoint.postprocess
    if pcb == "on" and checkpoint.pcb:
        spec = checkpoint.pcb.calibration.spec.postprocess(spec)
    return spec.score_thresholds


def _print(before: tuple[float, ...], choices: Mapping[str, Choice], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from glmd_train.lesson.thresholds import BEST_F1

    console, rates = Console(highlight=False), ("found", "right")
    table = Table("class", "objects", "before", *rates, "chosen", *rates, title=title or None)
    for own, (name, choice) in zip(before, choices.items(), strict=True):
        cells = [cell for t in (own, choice.threshold) for cell in (f"{t:.2f}", *_rates(choice, t))]
        table.add_row(name, str(choice.rows.objects), *cells)
    console.print(table)
    for name, choice in choices.items():
        if choice.why != BEST_F1:
            console.print(f"{name}: {choice.why}", markup=False)


def _rates(choice: Choice, threshold: float) -> tuple[str, str]:
    """The part of the objects that is found, and the part of the detections that is right."""
    rows = choice.rows
    return (f"{rows.recall(threshold):.0%}", f"{rows.precision(threshold):.0%}") if rows.objects else ("", "")
