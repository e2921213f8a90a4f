"""Lines and branches that the tests reach.

    python -m tests.trust.coverage    judges the data that a run of the tests has left, as `make cover` does
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.trust.parts import BrokenPromiseError, Figures, Form, Part, require

ROOT = Path(__file__).parents[2]
FILES = {"runtime": "glmd_runtime/*", "rest": "glmd_train/*,glmd_export/*"}
WANTED = {"runtime": 0.95, "rest": 0.88}  # of the lines, and of the branches, each
KINDS = {"lines": ("covered_lines", "num_statements"), "branches": ("covered_branches", "num_branches")}


def reached(_: Form) -> Figures:
    """All tests, as CI runs them."""
    done = subprocess.run(["make", "cover", f"VENV={sys.prefix}"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BrokenPromiseError(f"make cover ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return judged()


def judged() -> Figures:
    """The shares. Raises: BrokenPromiseError for one that is too small."""
    figures: Figures = {}
    for name, files in FILES.items():
        for kind, (covered, there) in counts(files).items():
            figures[f"{name}_{kind}"] = said = f"{covered / there:.1%} of {there}"
            require(covered >= WANTED[name] * there, f"Tests reach {said} {kind} of {files}, wanted {WANTED[name]:.0%}")
    return figures


def counts(files: str) -> dict[str, tuple[int, int]]:
    """Lines and branches in these files: reached, and all."""
    command = [sys.executable, "-m", "coverage", "json", "-q", "-o", "-", f"--include={files}"]
    totals = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)["totals"]
    return {kind: (totals[covered], totals[there]) for kind, (covered, there) in KINDS.items()}


_PROMISE = "tests reach 95% of the lines and of the branches of glmd_runtime, 88% of the rest"
PARTS = [Part("coverage.lines_and_branches", _PROMISE, reached, ("long",))]

if __name__ == "__main__":
    print("\n".join(f"{name}: {said}" for name, said in judged().items()))
