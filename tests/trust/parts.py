"""A part of the trust suite: one promise, and the run that shows that it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Figures = dict[str, Any]  # plain values, in the order in which the report shows them
Form = Literal["short", "long"]


class BrokenPromiseError(Exception):
    """A promise did not hold; says what was expected and what came."""


@dataclass(frozen=True)
class Part:
    """One promise of docs/reliability.md.

    name     area.part, as in fuzz.manifest
    promise  what holds, one line of the report
    run      takes the form ("short": seconds, in CI; "long": the figures of the report), returns figures, raises
             `BrokenPromiseError` (or lets an error pass) when the promise does not hold
    forms    in which it is run; those that need minutes whatever their size are long only
    """

    name: str
    promise: str
    run: Callable[[Form], Figures]
    forms: tuple[Form, ...] = ("short", "long")

    @property
    def area(self) -> str:
        return self.name.split(".")[0]


def require(holds: bool, said: str) -> None:
    """Raise BrokenPromiseError unless the promise holds."""
    if not holds:
        raise BrokenPromiseError(said)
