"""glmd-train eval: AP and recall of a checkpoint or a bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmd_runtime.errors import UsageError

if TYPE_CHECKING:
    from glmd_train.evaluate import Predict, Score


def add_parser(commands: Any) -> None:
    one = commands.add_parser("eval", help="AP and recall of a checkpoint or a bundle on COCO-format data")
    model = one.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=Path, help=".safetensors (or .pth) file, run by PyTorch")
    model.add_argument("--engine", type=Path, help=".glmd bundle, run as on the device")
    told = one.add_mutually_exclusive_group()
    told.add_argument("--classes", type=Path, metavar="FILE", help="class names of a .pth file, one a line")
    told.add_argument("--config", type=Path, metavar="YAML", help="training configuration of a .pth file")
    one.add_argument("--data", type=Path, nargs="+", required=True, help="COCO annotation files")
    one.add_argument("--json", action="store_true", help="print the scores as JSON")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from glmd_train.data.coco import load_coco
    from glmd_train.evaluate import evaluate

    predict, class_names = open_model(options)
    sets = {str(path): load_coco(path, class_names) for path in options.data}
    scores = {name: evaluate(predict, records, class_names, interval=True) for name, records in sets.items()}
    if options.json:
        print(json.dumps({name: score.to_dict() for name, score in scores.items()}, indent=1))
    else:
        print_scores(scores)


def open_model(options: argparse.Namespace) -> tuple[Predict, tuple[str, ...]]:
    """The model behind --checkpoint or --engine as a function, and its class names."""
    from glmd_train.evaluate import EVAL_SCORE, torch_predict

    if options.engine:
        if options.config or options.classes:
            raise UsageError("A bundle names its own classes. Leave out --config and --classes.")
        from glmd_runtime import Detector

        detector = Detector(options.engine, score_threshold=EVAL_SCORE)
        return detector.run, detector.class_names
    from glmd_train.checkpoint import load_checkpoint

    if options.checkpoint.suffix == ".glmd":
        raise UsageError(f"{options.checkpoint} is a bundle: use --engine for it.")
    checkpoint = load_checkpoint(options.checkpoint, config=options.config, classes=options.classes)
    return torch_predict(checkpoint), checkpoint.class_names


def print_scores(scores: dict[str, Score]) -> None:
    """One table a data set."""
    from rich.console import Console
    from rich.table import Table

    for name, score in scores.items():
        table = Table("class", "objects", "AP", "AP50", "AP75", "recall at 0.3", title=name)
        for class_name, row in score.classes.items():
            table.add_row(class_name, str(row.objects), *_percent(vars(row)))
        table.add_row("mean", "", *_percent(score.to_dict()["mean"]))
        Console().print(table)
        if score.interval:
            low, high = (100 * bound for bound in (score.interval.low, score.interval.high))
            print(f"mean AP lies in {low:.1f} to {high:.1f} (95% interval over the pictures)")
        if score.left_out:
            print(f"left out, as the model has no such class: {', '.join(score.left_out)}")


def _percent(values: dict[str, Any]) -> list[str]:
    return [f"{100 * values[field]:.1f}" for field in ("ap", "ap50", "ap75", "recall")]
