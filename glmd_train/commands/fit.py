"""glmd-train fit: base training and fine-tuning, as a YAML configuration says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmd_runtime.commands.command import loading_libraries

if TYPE_CHECKING:
    from glmd_train.config import TrainConfig


def add_parser(commands: Any) -> None:
    one = commands.add_parser(
        "fit", help="train as a YAML configuration says, base classes or a few shots",
        description="Train as a YAML configuration says: base classes, or a few shots.",
        example="glmd-train fit --config glmd_train/configs/lite0.yaml --set seed=1 --dry-run",
    )
    add = one.add_argument
    add("--config", type=Path, required=True, metavar="YAML", help="YAML file, see glmd_train/configs")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change single values of it")
    add("--devices", metavar="N", help="GPUs, or processes on a CPU, of each node (default: the configuration's)")
    add("--nodes", metavar="N", help="machines; start the command on each of them, with torchrun")
    add("--resume", action="store_true", help="continue the run in the output folder, if there is one")
    add("--dry-run", action="store_true", help="show configuration, shapes, parameters and memory, and train nothing")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from glmd_train.config import load_config

    given = {"devices": options.devices, "nodes": options.nodes}
    changes = [*options.set, *(f"{key}={value}" for key, value in given.items() if value is not None)]
    config = load_config(options.config, changes)
    if options.dry_run:
        _print_dry_run(config)
        return
    with loading_libraries():
        from glmd_train.loop import fit

    fit(config, options.resume)


def _print_dry_run(config: TrainConfig) -> None:
    """The configuration as YAML that could be run, then tables."""
    import yaml
    from rich.console import Console
    from rich.table import Table

    from glmd_runtime.files.documents import parse_json

    with loading_libraries():
        from glmd_train.training.dry_run import dry_run

    result = dry_run(config, config.nodes * (1 if config.devices == "auto" else config.devices))
    print(yaml.safe_dump(parse_json(json.dumps(result.configuration)), sort_keys=False))
    tables = {
        "first picture": ({"pictures in the set": result.pictures} | result.shapes, ("tensor", "shape")),
        "objects": (result.objects, ("class", "in the training set")),
        "parameters": ({k: f"{a:,} ({t:,} train)" for k, (a, t) in result.parameters.items()}, ("part", "number")),
        "memory of a device": (result.memory, ("use", "MiB, about")),
        "losses of the first picture": ({k: f"{v:.4f}" for k, v in result.losses.items()}, ("loss", "value")),
    }
    for title, (rows, columns) in tables.items():
        table = Table(*columns, title=title)
        for name, value in rows.items():
            table.add_row(name, str(value))
        Console().print(table)
