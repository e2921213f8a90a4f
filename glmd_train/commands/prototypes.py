"""glmd-train prototypes: add prototypical calibration (PCB) to a checkpoint, from its support pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmd_runtime.commands.command import loading_libraries

if TYPE_CHECKING:
    from glmd_train.checkpoint import Checkpoint
    from glmd_train.data.coco import Record


def add_parser(commands: Any) -> None:
    one = commands.add_parser(
        "prototypes", help="add prototypical calibration (PCB) of scores to a checkpoint",
        description="Add prototypical calibration (PCB) of scores to a checkpoint.",
        example="glmd-train prototypes --checkpoint model.safetensors --support shots/seed0/10shot.json "
        "-o pcb.safetensors",
    )
    add = one.add_argument
    add("--checkpoint", "--ckpt", type=Path, required=True, metavar="FILE", help=".safetensors file of glmd-train")
    add("--support", type=Path, nargs="+", required=True, metavar="JSON",
        help="COCO files of the support pictures; wildcards may be quoted")
    add("--pcb-model", default="lite0", metavar="NAME",
        help="lite0 (default: EfficientNet-Lite0 with its own weights), torchvision:NAME or timm:NAME")
    add("--pcb-weights", type=Path, metavar="FILE", help="weights of a torchvision or timm model (.pth, .safetensors)")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the new checkpoint (.safetensors)")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from glmd_train.data.coco import load_coco_files
    from glmd_train.given import check_checkpoint, check_data, check_new_file

    check_new_file(options.checkpoint, options.output)
    check_checkpoint(options.checkpoint)
    check_data(options.support)
    with loading_libraries():
        from glmd_train.checkpoint import load_checkpoint, save_checkpoint, stored_dtype
        from glmd_train.classifier import load_classifier
        from glmd_train.prototypes import add_pcb

    checkpoint = load_checkpoint(options.checkpoint)
    classifier = load_classifier(options.pcb_model, options.pcb_weights)
    support = load_coco_files(options.support, checkpoint.class_names)
    calibrated = add_pcb(checkpoint, classifier, support)
    record = {"support": [path.name for path in options.support], "boxes": _boxes(checkpoint, support)}
    provenance = {**checkpoint.provenance, "pcb": record}
    save_checkpoint(options.output, replace(calibrated, provenance=provenance), stored_dtype(options.checkpoint))
    _print(calibrated, support)
    print(f"Written: {options.output}")


def _boxes(checkpoint: Checkpoint, support: list[Record]) -> dict[str, int]:
    counts = {name: 0 for name in checkpoint.class_names}
    for record in support:
        for label in record.labels:
            counts[checkpoint.class_names[label]] += 1
    return counts


def _print(checkpoint: Checkpoint, support: list[Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    assert checkpoint.pcb
    thresholds = checkpoint.pcb.calibration.spec.score_thresholds
    table = Table("class", "support boxes", "threshold", "threshold with PCB", title=checkpoint.pcb.classifier.name)
    counts = _boxes(checkpoint, support)
    for name, own, new in zip(checkpoint.class_names, checkpoint.postprocess.score_thresholds, thresholds, strict=True):
        said = f"{new:.2f}" if counts[name] else "not calibrated"
        table.add_row(name, str(counts[name]), f"{own:.2f}", said)
    Console().print(table)
