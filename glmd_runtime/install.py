"""What installs what is missing: the commands that messages name, to be pasted as they are."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

PACKAGE = "glmdnet-sdk"
FOLDER = Path(__file__).parents[1]  # of the SDK in a checkout; else that of all installed packages
_OF_AN_EXTRA = re.compile(r"(.+?)\s*;.*\bextra == [\"'](.+)[\"']")
_OWN_EXTRAS = re.compile(rf"{PACKAGE}\[(.+)\]")


def checkout() -> Path | None:
    """The SDK's folder, where this runs from one; None where a wheel was installed, which leaves no such folder."""
    project = FOLDER / "pyproject.toml"
    return FOLDER if project.is_file() and f'"{PACKAGE}"' in project.read_text(encoding="utf-8") else None


def install_command(extra: str) -> str:
    """What a shell takes from any folder to install one of the SDK's extras: from the checkout, else its packages."""
    if folder := checkout():
        return _pip(f"{folder}[{extra}]")
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:  # a copy of the package's folder, of which pip knows nothing
        lines = []
    return _pip(*_packages(extra, lines)) if lines else f"pip install '.[{extra}]'  # in the SDK's folder"


def _pip(*packages: str) -> str:
    return f"pip install {' '.join(map(shlex.quote, packages))}"


def _packages(extra: str, lines: list[str]) -> list[str]:
    """Requirements of an extra; of other extras that it takes, theirs, since no index has our package."""
    found: list[str] = []
    for requirement in (match[1] for line in lines if (match := _OF_AN_EXTRA.fullmatch(line)) and match[2] == extra):
        own = _OWN_EXTRAS.fullmatch(requirement)
        found += [one for name in own[1].split(",") for one in _packages(name, lines)] if own else [requirement]
    return list(dict.fromkeys(found))
