"""What the tests would say if a barrier were missing: the table of cpp_plugins/README.md.

    python -m tests.plugins.barriers libglmd_host.so

Each barrier is left out in turn, in a process of its own because a kernel without it may crash. The results of
every case are compared with those of the whole kernel.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.plugins.cases import POOLINGS, SELECTIONS, pooling, selection
from tests.plugins.kernels import ORDERS, HostKernels

ROOT = Path(__file__).parents[2]
SEEDS = range(6)


def barriers() -> list[str]:
    """Names in the sources, in order."""
    sources = sorted((ROOT / "cpp_plugins").glob("*/*.cu"))
    return [name for source in sources for name in re.findall(r"GLMD_BARRIER\((\w+)\)", source.read_text())]


def results(host: HostKernels) -> Iterator[tuple[np.ndarray, ...] | None]:
    """Of every case; None where the shim saw threads at different barriers, or a kernel that does not end."""
    for kind in POOLINGS:
        for seed in SEEDS:
            p = pooling(kind, seed)
            try:
                yield (host.roi_align(p.features, p.rois, p.bins, p.stride, p.sampling_ratio),)
            except RuntimeError:
                yield None
    for kind in SELECTIONS:
        for seed in SEEDS:
            s = selection(kind, seed)
            try:
                yield host.select_proposals(
                    s.objectness, s.deltas, s.anchors, s.edges,
                    pre_nms_topk=s.pre_nms_topk, proposals=s.proposals, iou=s.iou,
                )
            except (RuntimeError, AssertionError):
                yield None


def wrong_without(host: HostKernels, barrier: str) -> Iterator[tuple[int, int]]:
    """For each order of threads, how many cases go wrong, of how many."""
    for order in ORDERS:
        host.schedule(order)
        host.leave_out_barrier("")
        whole = list(results(host))
        host.leave_out_barrier(barrier)
        wrong = [
            got is None or not all(np.array_equal(*pair, equal_nan=True) for pair in zip(got, wanted, strict=True))
            for got, wanted in zip(results(host), whole, strict=True)
        ]
        yield sum(wrong), len(wrong)


def verdicts(library: Path, barrier: str) -> list[str]:
    """For each order of threads `n of m`, or `crash` from the one on that ended the process."""
    command = [sys.executable, "-m", "tests.plugins.barriers", str(library), barrier]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return lines + ["crash"] * (len(ORDERS) - len(lines))


def main(library: Path) -> None:
    print(f"| barrier left out | {' | '.join(ORDERS)} |\n|{' --- |' * (1 + len(ORDERS))}")
    for barrier in barriers():
        print(f"| `{barrier}` | {' | '.join(verdicts(library, barrier))} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        for wrong, cases in wrong_without(HostKernels(Path(sys.argv[1])), sys.argv[2]):
            print(f"{wrong} of {cases}", flush=True)
