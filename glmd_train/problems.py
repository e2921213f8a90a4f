"""What pydantic refuses of a configuration, in the words of all other errors."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2  # an input is as large as its file wants it to be


def problems(error: ValidationError, kind: type[BaseModel], named: Callable[[str], str] = str) -> str:
    """A line for each value that was refused: where, why, and what came.

    Args: kind, the model that refused them; named, how a dotted key ("" for the whole) is written before its reason.
    """
    found = [(named(".".join(map(str, one["loc"]))), _reason(one, kind)) for one in error.errors()]
    return "\n".join(f"{where}: {why}" if where else why for where, why in found)


def _reason(problem: Any, kind: type[BaseModel]) -> str:
    *parents, key = problem["loc"] or ("",)
    if problem["type"] == "extra_forbidden":
        known = _keys(kind, parents)
        close = get_close_matches(str(key), known, 1)
        return f"there is no such key; did you mean {close[0]}?" if close else (
            f"there is no such key; expected one of {', '.join(known)}."
        )
    if problem["type"] == "missing":
        return "there is no value; give one."
    said = re.sub(r"^[A-Z]\w+ should", "it must", problem["msg"].removeprefix("Value error, ").rstrip("."))
    return f"{said}; got {_SHORT.repr(problem['input'])}."


def _keys(kind: type[BaseModel], parents: list[Any]) -> list[str]:
    """Those of the group that `parents` lead to from a model; a number among them is a place in a list."""
    for name in parents:
        if isinstance(name, str):
            kind = _group(kind.model_fields[name].annotation) or kind
    return list(kind.model_fields)


def _group(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `list[Model]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_group, get_args(annotation))), None)
