"""docs/reliability.md: a table for each area, from the kept results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import write_tables
from tests.trust.parts import Part

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


def write_report(results: Mapping[str, Any], parts: Sequence[Part]) -> Path:
    """Rewrite what stands between the marks <!-- area --> of the document."""
    areas = dict.fromkeys(part.area for part in parts)
    write_tables(DOCUMENT, {area: table([p for p in parts if p.area == area], results) for area in areas})
    return DOCUMENT


def table(parts: Sequence[Part], results: Mapping[str, Any]) -> list[str]:
    head = ["| part | what holds | figures | seconds | date | commit |", "| --- | --- | --- | --- | --- | --- |"]
    return head + [row(part, results.get(part.name)) for part in parts] + listed(parts, results)


def listed(parts: Sequence[Part], results: Mapping[str, Any]) -> list[str]:
    """The figures that are lists, a line for each value, below the table."""
    figures = [f for part in parts for f in results.get(part.name, {"figures": {}})["figures"].items()]
    lists = [(name, values) for name, values in figures if isinstance(values, list)]
    return [line for name, values in lists for line in ("", f"{name}:", "", *(f"* {value}" for value in values))]


def row(part: Part, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"| {part.name} | {part.promise} | not run | | | |"
    plain = {name: value for name, value in result["figures"].items() if not isinstance(value, list)}
    figures = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in plain.items())
    when = f"{result['seconds']} | {result['date']} | {result['commit']}"
    return f"| {part.name} | {part.promise} | {figures} | {when} |"
