"""Whether anything got slower than what was committed last: ratios within one run are compared, never milliseconds.

    python -m benchmarks.regression

Exit code 1 names what got worse by more than the spread of both runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

Ratio = Mapping[str, float]  # median, p10, p90; more is better
Ratios = dict[str, Ratio]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lines = [
        f"{path.stem}: {line}"
        for path in sorted(RESULTS.glob("*.json"))
        for line in worse(ratios(committed(path)), ratios(rows_of(path.read_text())))
    ]
    print("\n".join(lines) or "Nothing is slower than what was committed last, beyond the spread.")
    sys.exit(1 if lines else 0)


def worse(before: Ratios, after: Ratios) -> Iterator[str]:
    """What is less than before in both runs' eyes: each median below, or above, all that the other run saw."""
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if new["median"] < old["p10"] and old["median"] > new["p90"]:
            yield f"{name} was {_said(old)} times as fast as PyTorch, and is {_said(new)}"


def ratios(rows: Sequence[Mapping[str, Any]]) -> Ratios:
    """What rows say of themselves against PyTorch in their own run, by subject and part."""
    found: Ratios = {}
    for row in rows:
        faster = row.get("faster", {})
        parts = {"": faster} if "median" in faster else faster
        found |= {f"{row['subject']} {part}".strip(): gain for part, gain in parts.items()}
    return found


def committed(path: Path) -> list[dict[str, Any]]:
    """The rows of the last commit's file; none if it had no such file."""
    shown = subprocess.run(["git", "show", f"HEAD:./{path.name}"], capture_output=True, text=True, cwd=path.parent)
    return rows_of(shown.stdout) if shown.returncode == 0 else []


def rows_of(text: str) -> list[dict[str, Any]]:
    """Of results whose rows are a list; others hold no ratios."""
    rows = json.loads(text).get("rows")
    return [row for row in rows if "subject" in row] if isinstance(rows, list) else []


def _said(gain: Ratio) -> str:
    return f"{gain['median']:.2f} ({gain['p10']:.2f} to {gain['p90']:.2f})"


if __name__ == "__main__":
    main()
