"""Mutation testing: mutmut changes one thing at a time in a file (a comparison, a constant, an argument), and the tests
of that file ought to fail. What no test notices is listed, with the reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.conftest import DATA
from tests.trust.parts import BrokenPromiseError, Figures, Form, Part, require

ROOT = Path(__file__).parents[2]
PACKAGES = ("glmd_runtime", "glmd_train", "glmd_export")
WANTED = 0.85  # share of the mutants that a test must notice
FILES = {  # and the tests that speak of each
    "glmd_runtime/boxes.py": ("tests/runtime/test_boxes.py",),
    "glmd_runtime/postprocess.py": ("tests/runtime/test_postprocess.py",),
    "glmd_runtime/thermal.py": ("tests/runtime/test_thermal.py",),
    "glmd_runtime/camera/agc.py": ("tests/runtime/test_thermal.py", "tests/runtime/test_agc.py"),
    "glmd_train/model/losses.py": ("tests/train/test_losses_golden.py",),
}
# Why no test can notice: by file, for what a survivor's line becomes. What none of these matches is not tested.
WHY = {
    "boxes.py": {
        r"reshape\(-2, 4\)": "numpy takes any negative number for as many as there are",
        r'kind="STABLE"': "numpy looks at the first letter only, of either case",
        r"union >= 0, inter": "0 / 1 is 0 as well",
        r"union, 2\)": "where there is no union the quotient is not taken",
    },
    "postprocess.py": {r"zip\(columns, row, ": "the other zip sees to it that a row has a value for each column"},
    "thermal.py": {r"np\.asarray\(xyxy, ": "whole numbers of pixels are cut out, the same in either precision"},
    "agc.py": {
        r"calcHist\(\[frame\], None": "of a picture with one channel it is that one",
        r"up_to\[-1\] \+ 1": "beyond the last pixel only where its part is 0",
        r"part <= 0\.5": "halfway both formulas are exact",
        r"createCLAHE\(clip, (None)?\)": "OpenCV's own tiles are 8x8 too",
        r"curve\)\.astype\(None\)|np\.asarray\(cv2\..*(, None\)|, \))": "of that type without it",
        r"astype\(None\)$": "None is numpy's float64, as was wanted",
        r"np\.take\(table, frame": "slower, and the same values",
        r"self\._time = 1\.0": "the time before the first frame is asked for by none",
        r"or True else self\._curve": "moved by nothing",
    },
    "losses.py": {
        r"zip\(table, labels, ": "what zip does where it is not told",
        r"\.to\(None\)|sum\(counts\),": "indices may lie on the CPU, whatever they index",
        r"len\(labels\) \+ 2": "one more row that no picture takes",
        r"float\(count\)": "not tested: a process group of GPUs would be needed",
    },
}
# One thread, as every mutant is a fork; CI lets hypothesis draw the same examples each time, and wait for slow ones.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CI": "true", "GLMD_DATA": str(DATA.resolve())}


def notice(file: str, _: Form) -> Figures:
    """Mutate one file; what its tests notice, and a line for each mutant that they do not."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        lay_out(work, file)
        mutmut(work, "run")
        mutmut(work, "export-cicd-stats")
        stats = json.loads((work / "mutants" / "mutmut-cicd-stats.json").read_text())
        others = re.findall(r"(\S+): (.+)", mutmut(work, "results"))  # mutant, how it ended
        survivors = [described(name, mutmut(work, "show", name), file, ended) for name, ended in others]
    share = stats["killed"] / stats["total"]
    require(share >= WANTED, "\n".join([f"{share:.1%} of the mutants killed, wanted {WANTED:.0%}; not:", *survivors]))
    require(stats["killed"] + len(survivors) == stats["total"], f"Mutants are missing among {survivors}: {stats}")
    return {"mutants": stats["total"], "killed": stats["killed"], "share": f"{share:.1%}", "not_killed": survivors}


def lay_out(work: Path, file: str) -> None:
    """A copy of what the tests need, as mutmut writes where it runs, and its configuration."""
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", work)
    package = file.split("/")[0]
    settings = {"source_paths": [package], "only_mutate": [file],
                "also_copy": [name for name in PACKAGES if name != package],
                "pytest_add_cli_args_test_selection": FILES[file]}
    lines = ["\n    ".join([f"{key} =", *values]) for key, values in settings.items()]
    (work / "setup.cfg").write_text("\n".join(["[mutmut]", *lines, ""]))


def mutmut(work: Path, *words: str) -> str:
    command = [sys.executable, "-m", "mutmut", *words]
    done = subprocess.run(command, cwd=work, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise BrokenPromiseError(f"mutmut {words[0]} ended with {done.returncode}:\n{said}")
    return done.stdout


def described(mutant: str, diff: str, file: str, ended: str) -> str:
    """`boxes.py:20`, what stands there instead, and why no test fails; a mutant is x_FUNCTION__mutmut_46."""
    source, name = (ROOT / file).read_text(), Path(file).name
    function = re.split(r"\.x_|ǁ", mutant.split("__mutmut_")[0])[-1]
    start = source.index(f"def {function}(")
    before, after = (re.findall(rf"^\{sign}(?!\{sign}\{sign})(.+)$", diff, re.M) for sign in "-+")
    line = source[: source.index(before[0], start) if before else start].count("\n") + 1
    becomes = " ".join(text.partition("  # ")[0].strip() for text in after) or "(gone)"
    why = next((reason for pattern, reason in WHY[name].items() if re.search(pattern, becomes)), "not tested")
    return f"`{name}:{line}` `{becomes}`: {why if ended == 'survived' else ended}"


PARTS = [
    Part(f"mutation.{Path(file).stem}", f"tests notice what is changed in `{file}`", partial(notice, file), ("long",))
    for file in FILES
]
