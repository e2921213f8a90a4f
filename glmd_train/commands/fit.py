"""glmd-train fit: base training and fine-tuning, as a YAML configuration says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    one = commands.add_parser("fit", help="train as a YAML configuration says")
    one.add_argument("--config", type=Path, required=True, help="YAML file, see glmd_train/configs")
    one.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change single values of it")
    one.add_argument("--resume", action="store_true", help="continue the run in the configuration's output folder")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from glmd_train.config import load_config
    from glmd_train.loop import fit

    fit(load_config(options.config, options.set), options.resume)
