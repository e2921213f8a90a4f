"""Other detectors at the same input, 640x512, in turns with ours: eager PyTorch, random weights, speed alone.

    python -m benchmarks.peers

torchvision's are here already. RF-DETR's nano model (Apache-2.0) gets an environment of its own beside this one, and is
asked for one call at a time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.common import write_rows
from benchmarks.timing import WHOLE, Sample, in_turns, part, percentiles, pin, ratio, whole
from glmd_runtime.errors import UnsupportedError
from glmd_train.checkpoint import load_checkpoint

SIZE_HW = (512, 640)
ENVIRONMENT = Path("out/bench/peers")
RFDETR = "rfdetr==1.11.2"
OURS, THEIRS = "GLMDNet lite0, PyTorch eager", "RF-DETR nano, PyTorch eager"
TORCHVISION = {
    "torchvision Faster R-CNN R50-FPN, PyTorch eager": torchvision.models.detection.fasterrcnn_resnet50_fpn,
    "torchvision Faster R-CNN MobileNetV3-FPN, PyTorch eager":
        torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn,
}
LICENCES = {OURS: "Apache-2.0", THEIRS: "Apache-2.0", **dict.fromkeys(TORCHVISION, "BSD-3-Clause")}
# Answers each line with the milliseconds of one call; the first line says that it is ready.
WORKER = """
import sys, time, torch
from rfdetr import RFDETRNano
torch.set_num_threads(int(sys.argv[1]))
network = RFDETRNano(pretrain_weights=None, device="cpu").model.model.eval()
image = torch.zeros(1, 3, int(sys.argv[2]), int(sys.argv[3]))
with torch.inference_mode():
    network(image)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        network(image)
        print(1000 * (time.perf_counter() - began), flush=True)
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--checkpoint", type=Path, default=Path("models/thermal_lite0.safetensors"))
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=6)
    given = options.parse_args()
    pin(given.threads)
    subjects = {OURS: whole(ours(given.checkpoint)), **{name: whole(theirs(m)) for name, m in TORCHVISION.items()}}
    setup = {"precision": "fp32", "batch": 1, "threads": given.threads, "size_hw": list(SIZE_HW)}
    missing = []
    try:
        with rfdetr(given.threads) as sample:
            samples = in_turns({**subjects, THEIRS: sample}, given.rounds)
    except UnsupportedError as error:
        samples = in_turns(subjects, given.rounds)
        missing.append({"subject": THEIRS, "licence": LICENCES[THEIRS], "status": "not_run", "reason": str(error)})
    rows = [row(name, part(taken), part(samples[OURS])) for name, taken in samples.items()]
    for one in [*rows, *missing]:
        print(one)
    command = f"python -m benchmarks.peers --threads {given.threads} --rounds {given.rounds}"
    print(write_rows("peers_640x512", command, [{**one, **setup} for one in [*rows, *missing]]))


def row(name: str, ms: list[float], of_ours: list[float]) -> dict[str, Any]:
    named = {"subject": name, "licence": LICENCES[name], "status": "run"}
    return {**named, "run": percentiles(ms), "slower": ratio(ms, of_ours)}


def ours(path: Path) -> Callable[[], Any]:
    return _forward(load_checkpoint(path).model, torch.zeros(1, 1, *SIZE_HW), torch.tensor([SIZE_HW]).float())


def theirs(make: Callable[..., nn.Module]) -> Callable[[], Any]:
    """A model of torchvision that keeps a picture of this size as it is."""
    model = make(weights=None, weights_backbone=None, min_size=min(SIZE_HW), max_size=max(SIZE_HW))
    return _forward(model.eval(), [torch.rand(3, *SIZE_HW)])


def _forward(model: nn.Module, *inputs: Tensor | list[Tensor]) -> Callable[[], Any]:
    return torch.inference_mode()(partial(model, *inputs))


@contextmanager
def rfdetr(threads: int) -> Iterator[Callable[[], Sample]]:
    """A process with RF-DETR, as a subject. Raises: UnsupportedError where it cannot be installed or started."""
    command = [*map(str, (python_with_rfdetr(), "-c", WORKER, threads, *SIZE_HW))]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}  # weights are random: nothing is to be fetched
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=offline
    ) as worker:
        assert worker.stdin and worker.stdout
        if "ready" not in iter(partial(_line, worker), ""):
            raise UnsupportedError(f"{RFDETR} is installed, but did not start")
        yield partial(_ask, worker)
        worker.stdin.close()


def _line(worker: subprocess.Popen[str]) -> str:
    """The next line without its end; "" when there is none."""
    assert worker.stdout
    return worker.stdout.readline().strip()


def _ask(worker: subprocess.Popen[str]) -> Sample:
    assert worker.stdin
    worker.stdin.write("\n")
    worker.stdin.flush()
    return {WHOLE: float(_line(worker))}


def python_with_rfdetr() -> Path:
    """Its own environment, which sees this one's packages, so that both run the same torch."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        packages = next(ENVIRONMENT.glob("lib/python*/site-packages"))
        (packages / "ours.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", RFDETR, _same("torch")]
    if subprocess.run([*map(str, command)], stdout=sys.stderr).returncode:
        raise UnsupportedError(f"{RFDETR} could not be installed")
    return python


def _same(package: str) -> str:
    return f"{package}=={version(package)}"


if __name__ == "__main__":
    main()
