"""What every result says of its making: machine, versions, commit; and how results come into documents."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from glmd_runtime.sinks import whole_file
from glmd_runtime.tuned import this_machine

RESULTS = Path(__file__).parent / "results"


def conditions(command: str) -> dict[str, Any]:
    return {
        "command": command,
        "device": this_machine(),
        "versions": {name: _version(name) for name in ("torch", "onnxruntime", "openvino", "numpy")},
        "commit": commit(),
    }


def write_rows(name: str, command: str, rows: Sequence[dict[str, Any]], device: str = "cpu") -> Path:
    """A result in which each row says by itself what it is of; precision, batch and threads are the row's own."""
    said = conditions(command)
    where = {"device": said["device"] if device == "cpu" else f"{device}, {said['device']}"}
    own = [{**row, **where, "commit": said["commit"], "command": command} for row in rows]
    return write(name, {"versions": said["versions"], "rows": own})


def commit() -> str:
    """The commit that was measured; "-dirty" if anything but results, and documents with them, was changed since."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs/images", ":!*.md")
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


def write_tables(document: Path, tables: dict[str, list[str]]) -> None:
    text = document.read_text()
    for name, rows in tables.items():
        text = between_marks(text, name, "\n".join(rows))
    with whole_file(document) as partial:
        partial.write_text(text)


def between_marks(text: str, name: str, content: str) -> str:
    """`text` with what stands between <!-- name --> and <!-- /name --> replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"The document lacks the marks <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda marks: f"{marks[1]}{content}\n{marks[2]}", text)
