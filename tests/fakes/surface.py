"""The names, members and parameters of a module as plain values, to compare modules that no process can hold together.

    python -m tests.fakes.surface MODULE        prints them as JSON, run where that module can be imported
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

SITE = Path(__file__).parent / "site"


def surface(module: ModuleType) -> dict[str, Any]:
    """Public name -> parameters of a function, {member: number} of an enumeration, {member: parameters} of a class."""
    ours = SITE in Path(module.__file__ or "").parents  # what a fake imports or inherits is no part of it
    names = {n: v for n, v in vars(module).items() if not n.startswith("_") and not inspect.ismodule(v)}
    if ours:
        names = {n: v for n, v in names.items() if getattr(v, "__module__", module.__name__) == module.__name__}
    return {name: _describe(value, ours) for name, value in names.items()}


def _describe(value: Any, ours: bool) -> Any:
    if not inspect.isclass(value):
        return _parameters(value)
    if members := getattr(value, "__members__", None):
        return {name: int(member) if hasattr(member, "__int__") else 0 for name, member in members.items()}
    names = {*vars(value), *getattr(value, "__annotations__", {})} if ours else {*dir(value)}
    chosen = sorted(name for name in names if not name.startswith("_") or name == "__init__")
    return {name: _parameters(getattr(value, name, None)) for name in chosen}


def _parameters(function: Any) -> list[str] | str:
    """Names of the parameters, "=" behind those with a default; "property"; "unknown" where a binding does not tell."""
    if isinstance(function, property) or not callable(function):
        return "property"
    if inspect.isclass(function):
        return "class"
    if inspect.isfunction(function):
        known = inspect.signature(function).parameters.values()
        return [p.name + ("=" if p.default is not p.empty else "") for p in known if p.name != "self"]
    written = re.findall(r"^(?:\d+\. )?\w+\((.*)\)(?: ->.*)?$", function.__doc__ or "", re.MULTILINE)
    described = [_names(text) for text in written if text != "*args, **kwargs"]
    return described[0] if described else "unknown"


def _names(text: str) -> list[str]:
    """From `self: T, flags: typing.SupportsInt = 0`, as pybind11 writes, and `dst, size_t count`, as Cython does."""
    flat = re.sub(r"<[^>]*>|\[[^]]*\]|\([^)]*\)", "", text)
    parts = [part.strip() for part in flat.split(",") if part.strip()]
    names = [part.partition(":")[0].partition("=")[0].split()[-1] + ("=" if "=" in part else "") for part in parts]
    return [name for name in names if name != "self"]


if __name__ == "__main__":
    print(json.dumps(surface(import_module(sys.argv[1]))))
