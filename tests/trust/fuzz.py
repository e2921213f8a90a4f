"""Fuzzing: whatever comes, a reader ends well or in a GlmdError that says what is wrong.

Each target runs in a process of its own (`fuzz_engine`), so that an endless loop, a memory that grows and a crash in a
library are findings too. A finding fails the part; its input is kept and printed.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tests.trust.fuzz_engine import OWN, WAITING, Diary
from tests.trust.fuzz_plugins import sanitized
from tests.trust.fuzz_targets import PLANTED
from tests.trust.parts import Figures, Form, Part, require

ROOT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")  # where files cost nothing, if there is such a place
FOUND = Path(tempfile.gettempdir()) / "glmd-fuzz"

# Executions: of the short form, of the long one.
RUNS = {
    "manifest": (2000, 200_000), "verify": (2000, 200_000), "reference": (500, 20_000), "pcb_reference": (500, 20_000),
    "record": (2000, 200_000), "yaml": (800, 200_000), "coco": (2000, 200_000), "yolo": (800, 200_000),
    "voc": (2000, 200_000), "labelme": (1000, 200_000), "ifsod": (1000, 200_000), "frames": (2000, 200_000),
    "recording": (2000, 200_000), "pictures": (2000, 200_000), "uri": (2000, 200_000), "onnx_metadata": (1000, 20_000),
    "checkpoint": (100, 20_000), "unpickler": (2000, 20_000),
}
READS = {
    "manifest": "manifest.json of a sealed bundle: refused, or the bundle runs and its detections are drawn",
    "verify": "verify.json of a sealed bundle: refused, or it says which engine may run",
    "reference": "reference.npz of a sealed bundle: refused, or an engine can be compared with it",
    "pcb_reference": "pcb_reference.npz of a sealed bundle: refused, or a classifier can be compared with it",
    "record": "records beside TensorRT engines",
    "yaml": "configurations, ours and published ones",
    "coco": "COCO's labels",
    "yolo": "YOLO's labels",
    "voc": "Pascal VOC's labels",
    "labelme": "LabelMe's labels",
    "ifsod": "IFSOD's folder",
    "frames": "arrays of any kind as frames: refused, or they give what a plain copy gives, and are drawn",
    "recording": "recordings, their lines and their container",
    "pictures": "PNG, TIFF, JPEG, WEBP and BMP: their pages as frames, their headers for labels",
    "uri": "addresses of sources",
    "onnx_metadata": "ONNX files, before an engine reads them: no tensor in another file goes unseen",
    "checkpoint": "safetensors files and files of torch.save",
    "unpickler": "pickles of weights: nothing runs, as an audit hook sees",
}


def fuzz(target: str, form: Form) -> Figures:
    runs = RUNS[target][form == "long"]
    code, (executions, refused, data), said, left = run(target, runs + WAITING, "--runs", str(runs))
    require(code == 0, report(target, code, executions, data, said))
    require(executions >= runs, f"expected {runs} executions; got {executions}:\n{said[-2000:]}")
    require(not left, f"{target} left files beside the folder that it was given: {left}")
    return {"executions": executions, "refused": refused, "findings": 0, **coverage(said)}


def planted(form: Form) -> Figures:
    """Every defect of `fuzz_targets.planted` is found; the endless loop only in the long form, as it takes its time."""
    defects = [defect for defect in PLANTED if defect != b"loop" or form == "long"]
    orderly = {b"harmless": [], b"litter": ["litter"]}  # what ends so, and the files it leaves
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "input"
        for defect in (b"harmless", *defects):
            file.write_bytes(defect)
            code, (_, _, data), said, left = run("planted", WAITING, "--input", str(file))
            expected = (True, b"", orderly[defect]) if defect in orderly else (False, defect, [])
            require((code == 0, data, left) == expected, f"{defect!r} ended with {code}, left {left}:\n{said[-2000:]}")
    return {"planted": len(defects), "found": len(defects)}


def run(target: str, seconds: int, *options: str) -> tuple[int, tuple[int, int, bytes], str, list[str]]:
    """The exit code of the engine's process, what its diary says, what it said, and what it left beside its folder."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="glmd-fuzz.") as scratch:
        command = [sys.executable, "-m", "tests.trust.fuzz_engine", target, scratch, *options]
        diary, log = Path(scratch) / "diary", Path(scratch) / "log"
        with log.open("wb") as file:
            code = returned(command, file, seconds)
        wrote = Diary.read(diary) if diary.exists() else (0, 0, b"")
        left = sorted({path.name for path in Path(scratch).iterdir()} - OWN)
        return code, wrote, log.read_text("utf-8", "replace"), left


def returned(command: list[str], log: BinaryIO, seconds: int) -> int:
    """The exit code; -9 of what did not end in so many seconds."""
    with subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def coverage(said: str) -> Figures:
    """What libFuzzer says at its end; nothing where there was none."""
    found = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
    names = ("branches", "features", "corpus")
    return dict(zip(names, map(int, found[-1]), strict=True)) if found else {"engine": "mutations alone"}


def report(target: str, code: int, executions: int, data: bytes, said: str) -> str:
    """What is said of a finding, the input of which is kept."""
    FOUND.mkdir(exist_ok=True)
    kept = FOUND / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
    kept.write_bytes(data)
    return (
        f"{target} ended with {code} after {executions} executions:\n{said[-4000:]}\nIts input is kept; run it again:\n"
        f"    python -m tests.trust.fuzz_engine {target} $(mktemp -d) --input {kept}\n{data[:2000].hex()}"
    )


PARTS = [
    *(Part(f"fuzz.{target}", READS[target], partial(fuzz, target)) for target in RUNS),
    Part("fuzz.planted", "an error, a crash, memory, an endless loop and a stray file of a reader are found", planted),
    Part("fuzz.sanitized_plugins", "the plugins' kernels under AddressSanitizer, with numbers of any kind", sanitized),
]
