"""Lines and branches that the tests reach."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.trust.parts import BrokenPromiseError, Figures, Form, Part

ROOT = Path(__file__).parents[2]
FILES = {"runtime": "glmd_runtime/*", "rest": "glmd_train/*,glmd_export/*"}


def reached(_: Form) -> Figures:
    """All tests, as CI runs them; `make cover` says what is too little."""
    done = subprocess.run(["make", "cover", f"VENV={sys.prefix}"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BrokenPromiseError(f"make cover ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return {f"{name}_{what}": share for name, files in FILES.items() for what, share in shares(files).items()}


def shares(files: str) -> dict[str, str]:
    """Of the lines and of the branches in these files, from the data that the run left."""
    command = [sys.executable, "-m", "coverage", "json", "-q", "-o", "-", f"--include={files}"]
    totals = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)["totals"]
    return {what: f"{totals[f'covered_{key}'] / totals[f'num_{plural}']:.1%} of {totals[f'num_{plural}']}"
            for what, key, plural in (("lines", "lines", "statements"), ("branches", "branches", "branches"))}


PARTS = [Part("coverage.lines_and_branches", "tests reach 95% of glmd_runtime and 88% of the rest", reached, ("long",))]
