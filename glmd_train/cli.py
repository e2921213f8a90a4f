"""glmd-train: prepare data, fit a model, or score one. Each command has its own file in `commands`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from glmd_runtime.commands.command import run_command
from glmd_runtime.commands.parser import Parser
from glmd_train.commands import convert, evaluate, fit, prepare, prototypes, teach, thresholds


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (glmd_runtime.errors has the table)."""
    stopped = "a fit goes on with --resume, prepare gcoco by the same command"
    return run_command(parser(), lambda options: options.run(options), arguments, extra="train", stopped=stopped)


def parser() -> Parser:
    top = Parser(
        prog="glmd-train", description="Train and score thermal few-shot detectors.",
        example="glmd-train teach --images pictures/ --annotations labels.json -o my_model",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (teach, prepare, fit, prototypes, thresholds, evaluate, convert):
        command.add_parser(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
