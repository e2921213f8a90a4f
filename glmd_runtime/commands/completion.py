"""Completion in the shell: what `--print-completion` prints, made by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Give a command, not each of its sub-commands, the option --print-completion."""
    parser.add_argument("--print-completion", action=_Print, choices=SHELLS, help="print what the shell completes from")


class _Print(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        import shtab  # only here, for no command is to wait for it

        _complete_paths(parser, shtab.FILE)
        print(shtab.complete(parser, str(values)))
        parser.exit()


def _complete_paths(parser: argparse.ArgumentParser, files: dict[str, Any]) -> None:
    """Let every option that takes a path complete names of files."""
    for action in parser._actions:
        if action.type is Path:
            action.complete = files  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command, files)
