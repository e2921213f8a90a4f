"""Options of every command: a help that ends with an example to copy, and errors that name the slip."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NoReturn

from glmd_runtime.errors import EXIT_CODES, UsageError

_NO_OTHERS: Mapping[int, str] = MappingProxyType({})


class Parser(argparse.ArgumentParser):
    """Parser of a command; those of its sub-commands are of this class too. Names of options are not abbreviated.

    Args: example, commands that can be copied, one a line; codes, what exit codes mean here, where that is more than
        `errors.EXIT_CODES` says; all others as argparse has them.
    """

    def __init__(
        self, prog: str | None = None, *, example: str, codes: Mapping[int, str] = _NO_OTHERS, **others: Any
    ) -> None:
        super().__init__(prog, allow_abbrev=False, **others)
        self.example, self.codes = example, codes

    def format_help(self) -> str:
        """argparse wraps what it is given, and a command that is broken in two cannot be copied."""
        codes = [f"  {code:<3}  {meaning}" for code, meaning in {**EXIT_CODES, **self.codes}.items()]
        lines = ["exit codes:", *codes, "", "example:", *(f"  {line}" for line in self.example.splitlines())]
        return f"{super().format_help()}\n" + "\n".join(lines) + "\n"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """First of all says which option there is not: argparse would say which required one is missing."""
        given = sys.argv[1:] if args is None else list(args)
        if name := next(self._unknown(given), None):
            self.error(f"{name} is no option{_nearest(name, self._option_string_actions)}")
        return super().parse_known_args(given, namespace)

    def _unknown(self, given: Sequence[str]) -> Iterator[str]:
        """What looks like an option of this command, and is none; the words after a sub-command are that one's."""
        known, below = self._option_string_actions, set(_commands(self))
        for word in takewhile(lambda word: word != "--" and word not in below, given):
            name = word.partition("=")[0]
            is_value = name[:1] != "-" or name == "-" or " " in name or _is_number(word)
            is_short = name[1:2] != "-" and name[:2] in known  # with its value in the same word, like -omodel
            if not (is_value or is_short or name in known):
                yield name

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += _nearest(str(value), list(map(str, action.choices or ())))
            raise

    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage, which would be longer than what is wrong."""
        self.exit(UsageError.exit_code, f"see {self.prog} --help\n{self.prog}: error: {message}\n")


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _nearest(word: str, known: Collection[str]) -> str:
    found = get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""
