"""What every result says of its making: machine, versions, commit."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from glmd_runtime.tuned import this_machine

RESULTS = Path(__file__).parent / "results"


def conditions(command: str) -> dict[str, Any]:
    return {
        "command": command,
        "device": this_machine(),
        "versions": {name: _version(name) for name in ("torch", "onnxruntime", "openvino", "numpy")},
        "commit": commit(),
    }


def commit() -> str:
    """The commit that was measured; "-dirty" if anything but results and their pictures was changed since."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs/images")
    return (head or "unknown") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def write(name: str, values: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(values, indent=1) + "\n")
    return path
