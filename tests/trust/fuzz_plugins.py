"""The plugins' kernels on the CPU, built with AddressSanitizer and UndefinedBehaviorSanitizer, on inputs of any kind.

`python -m tests.trust.fuzz_plugins LIBRARY RUNS`, with libasan preloaded, is the process that the part begins.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.plugins.cases import POOLINGS, SELECTIONS, pooling, selection
from tests.plugins.kernels import ORDERS, HostKernels
from tests.trust.parts import Figures, Form, require

ROOT = Path(__file__).parents[2]
RUNS = {"short": 300, "long": 20_000}
OVERRUN = "overrun"  # instead of a number of runs: a kernel that writes beyond its output, which must be seen
_ODD = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.0, -0.0, 2**31, -(2**31) - 1, 65520.0], np.float32)


def sanitized(form: Form) -> Figures:
    """Build the host library with the sanitizers, and run the kernels through it; in the long form their tests too."""
    with tempfile.TemporaryDirectory() as scratch:
        library = build(Path(scratch))
        seen = run_sanitized("-m", "tests.trust.fuzz_plugins", str(library), OVERRUN)
        require("heap-buffer-overflow" in seen.stderr, f"what was written beyond an output went unseen:\n{seen.stderr}")
        done = run_sanitized("-m", "tests.trust.fuzz_plugins", str(library), str(RUNS[form]))
        require(done.returncode == 0, f"the kernels ended with {done.returncode}:\n{done.stdout}{done.stderr[-6000:]}")
        figures: Figures = {"executions": RUNS[form], "findings": 0, "refused": int(done.stdout.split()[-1])}
        if form == "long":
            tests = run_sanitized("-m", "pytest", "tests/plugins", "-m", "not gpu", library=library)
            require(tests.returncode == 0, f"the kernels' tests failed:\n{tests.stdout[-6000:]}{tests.stderr[-6000:]}")
            figures["tests"] = int(re.findall(r"(\d+) passed", tests.stdout)[-1])
        return figures


def build(folder: Path) -> Path:
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(folder), "-DGLMD_CUDA_ARCHS=none", "-DGLMD_SANITIZE=ON"],
        ["cmake", "--build", str(folder), "--target", "glmd_host"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        require(done.returncode == 0, done.stdout + done.stderr)
    return folder / "libglmd_host.so"


def run_sanitized(*arguments: str, library: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python with libasan in front, which a library that it loads needs, and behind it what throws torch's exceptions.

    Python's own leaks are not looked at.
    """
    ask = [["g++", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so.6")]
    found = [subprocess.run(one, capture_output=True, text=True, check=True).stdout.strip() for one in ask]
    environment = os.environ | {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}
    if library:
        environment["GLMD_HOST_LIBRARY"] = str(library)
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@dataclass
class Driver:
    kernels: HostKernels
    refused: int = 0

    def run(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.kernels.schedule(ORDERS[seed % len(ORDERS)], seed)
        (self.select if seed % 2 else self.pool)(rng, seed)

    def pool(self, rng: np.random.Generator, seed: int) -> None:
        case = pooling(str(rng.choice(list(POOLINGS))), seed)
        with np.errstate(over="ignore"):
            features = odd(rng, case.features).astype(rng.choice([np.float16, np.float32]))
        bins, stride = either(rng, case.bins, [0, 1, 13, 32, 33]), either(rng, case.stride, [0, 1, 64, -8])
        ratio = either(rng, case.sampling_ratio, [-1, 7, 100])
        hwc8 = features.dtype == np.float16 and bool(rng.integers(2))
        self.call(lambda: self.kernels.roi_align(features, odd(rng, case.rois), bins, stride, ratio, hwc8=hwc8))

    def select(self, rng: np.random.Generator, seed: int) -> None:
        case = selection(str(rng.choice(list(SELECTIONS))), seed)
        arrays = [odd(rng, a) for a in (case.objectness, case.deltas, case.anchors, case.edges)]
        limits: dict[str, Any] = {
            "pre_nms_topk": either(rng, case.pre_nms_topk, [0, -1, 2000]),
            "proposals": either(rng, case.proposals, [0, -1, 300]),
            "iou": either(rng, case.iou, [0.0, 1.0, -1.0, float("nan"), float("inf")]),
        }
        if min(limits["pre_nms_topk"], limits["proposals"]) < 0:
            return  # the size of an array that cannot be
        self.call(lambda: self.kernels.select_proposals(*arrays, **limits))

    def call(self, kernel: Any) -> None:
        """cudaErrorInvalidValue is a refusal; anything else, as a barrier that not all threads meet, is none."""
        try:
            kernel()
        except RuntimeError as error:
            if not str(error).endswith("cudaError_t 1"):
                raise
            self.refused += 1


def odd(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """A copy with numbers in it that no network should give; of three the third as it is."""
    values = values.astype(np.float32)
    places = rng.random(values.shape) < rng.choice([0.0, 0.02, 0.5])
    return np.where(places, rng.choice(_ODD, values.shape), values)


def either(rng: np.random.Generator, usual: Any, unusual: list[Any]) -> Any:
    return usual if rng.random() < 0.8 else unusual[rng.integers(len(unusual))]


def overrun(kernels: HostKernels) -> None:
    """RoiAlign told of one row more than its output has."""
    kernels._place = lambda array: array[:1].copy()  # type: ignore[method-assign]
    kernels.roi_align(np.ones((1, 1, 5, 5), np.float32), np.ones((1, 64, 4)), 7, 8, 0)


def main() -> None:
    library, runs = sys.argv[1:]
    driver = Driver(HostKernels(Path(library)))
    if runs == OVERRUN:
        overrun(driver.kernels)
        return
    for seed in range(int(runs)):
        driver.run(seed)
    print("refused", driver.refused)


if __name__ == "__main__":
    main()
