"""Values of a document that somebody else may have written: each is what its reader takes it for, or a ValueError.

JSON knows NaN, numbers beyond any array and lists in the place of words; nothing behind a reader expects them.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import Any, TypeVar
from unicodedata import category

_T = TypeVar("_T")
# Categories of Unicode: control characters, which a terminal obeys; half a character, which is none in UTF-8 and of
# which OpenCV dies; ends of lines and paragraphs.
_NEVER_SHOWN = frozenset({"Cc", "Cs", "Zl", "Zp"})


def number(value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in low..high."""
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        with_point = float(value) if abs(value) < 1e308 else math.inf
        if math.isfinite(with_point):
            return with_point
    raise ValueError(f"expected a finite number in {low:g}..{high:g}; got {reprlib.repr(value)}")


def whole(value: Any, low: int = 0, high: int = 2**31 - 1) -> int:
    """A whole number in low..high."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise ValueError(f"expected a whole number in {low}..{high}; got {reprlib.repr(value)}")


def text(value: Any) -> str:
    """A text of one line that can be written in UTF-8, and shown anywhere."""
    if isinstance(value, str) and value == shown(value):
        return value
    raise ValueError(f"expected a text without control characters; got {reprlib.repr(value)}")


def shown(value: str) -> str:
    """Any text as one that `text` takes, with a question mark for each character that it would refuse."""
    return "".join("?" if category(character) in _NEVER_SHOWN else character for character in value)


def in_utf8(name: str) -> bool:
    """Whether a name, of a file too, can be written in UTF-8: of another one OpenCV dies."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def each(read: Callable[..., _T], values: Any, **limits: Any) -> tuple[_T, ...]:
    """The values of a list, by one of the functions above and its limits."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"expected a list; got {reprlib.repr(values)}")
    return tuple(read(value, **limits) for value in values)
