"""What only a GPU can show: a real engine, the same bits every time, and no access or race that compute-sanitizer sees.

The comparisons with torchvision run on the device too, in the other files of this folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from glmd_train.model.anchors import AnchorGenerator
from glmd_train.model.rpn import RPN
from tests.conftest import skip_unless
from tests.plugins import engine
from tests.plugins.cases import selection
from tests.plugins.conftest import ROOT, built
from tests.plugins.kernels import DeviceKernels

pytestmark = pytest.mark.gpu


def test_every_run_gives_the_same_bits(device_kernels: DeviceKernels) -> None:
    case = selection("tied", 5)
    attributes = {"pre_nms_topk": case.pre_nms_topk, "proposals": case.proposals, "iou": case.iou}
    inputs = (case.objectness, case.deltas, case.anchors, case.edges)
    first = device_kernels.select_proposals(*inputs, **attributes)
    for _ in range(20):
        for got, wanted in zip(device_kernels.select_proposals(*inputs, **attributes), first, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
@pytest.mark.usefixtures("device_kernels")
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    skip_unless(shutil.which("compute-sanitizer") is not None, "gpu", "compute-sanitizer is not on the PATH")
    command = [
        "compute-sanitizer", "--tool", tool, "--kernel-regex", "kns=glmd", "--error-exitcode", "9",
        sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", "device and (tied or crossing)",
        "tests/plugins/test_roi_align.py", "tests/plugins/test_select_proposals.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


def test_an_engine_of_the_plugins_equals_pytorch() -> None:
    skip_unless(torch.cuda.is_available(), "gpu", "no CUDA device, or a torch without CUDA")
    present = importlib.util.find_spec("tensorrt") is not None
    skip_unless(present, "tensorrt", "tensorrt is not installed (pip install tensorrt)")
    library = built("libglmd_plugins.so", "GLMD_PLUGIN_LIBRARY")
    skip_unless(library.is_file(), "plugins", f"{library} is not built: it needs nvcc and TensorRT's headers")
    trt = importlib.import_module("tensorrt")

    generator = torch.Generator().manual_seed(1)
    anchors = AnchorGenerator((32, 64, 128, 256, 512), (0.5, 1.0, 2.0), 16)(engine.H, engine.W)
    logits = torch.stack([torch.randperm(engine.N, generator=generator).float() for _ in range(engine.B)])
    deltas = torch.randn(engine.B, engine.N, 4, generator=generator) * 0.3
    edges = torch.tensor([[800.0, 640.0]]).repeat(engine.B, 2)
    features = torch.randn(engine.B, engine.C, engine.H, engine.W, generator=generator).half()
    inputs = {"objectness": logits, "deltas": deltas, "anchors": anchors, "edges": edges, "features": features}
    got = engine.run(trt, engine.build(trt, library), {name: tensor.numpy() for name, tensor in inputs.items()})

    cell = AnchorGenerator((1.0,), (1.0,), 16)
    rpn = RPN(1, cell, pre_nms_topk=1000, proposals=100, train_pre_nms_topk=1000, train_proposals=100, batch=1)
    rows = zip(logits, deltas, strict=True)
    wanted = [rpn.select(*row, torch.tensor([640.0, 800.0]), anchors, 100) for row in rows]
    assert got["valid"].all()
    np.testing.assert_allclose(got["boxes"], torch.stack(wanted).numpy(), rtol=1e-5, atol=1e-3)
    pooled = roi_align(features.float(), list(torch.from_numpy(got["boxes"])), 7, 1 / 16, aligned=True)
    np.testing.assert_allclose(got["pooled"].astype(np.float32), pooled.numpy(), rtol=2**-11, atol=1e-5)
