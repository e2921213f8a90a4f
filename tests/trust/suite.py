"""The suite itself: its short forms are quick enough for every change."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from tests.trust.parts import BrokenPromiseError, Figures, Form, Part, require

ROOT = Path(__file__).parents[2]
MOST = 480  # seconds that all short forms together may take


def short_forms(_: Form) -> Figures:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "tests.trust"], cwd=ROOT, capture_output=True, text=True)
    seconds = round(time.monotonic() - began)
    if done.returncode:
        raise BrokenPromiseError(f"The short forms ended with {done.returncode}:\n{done.stdout[-3000:]}")
    require(seconds <= MOST, f"The short forms took {seconds} s, {MOST} at most are wanted")
    [passed] = re.findall(r"^trust: (\d+) passed", done.stdout, re.M)
    return {"parts": int(passed), "seconds": seconds}


PARTS = [Part("suite.short_forms", f"the short forms of all parts take {MOST} s at most", short_forms, ("long",))]
