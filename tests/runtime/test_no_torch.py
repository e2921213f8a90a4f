"""The runtime needs numpy, OpenCV and one inference library; what else there is, it does not touch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glmd_runtime import backends
from tests.conftest import skip_unless

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "pydantic", "timm", "onnx", "lightning_fabric", "supervision", "PIL")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocked(*names: str) -> str:
    return f"import sys; sys.modules.update(dict.fromkeys({names!r}))\n"


@pytest.mark.parametrize("name", backends.readers("model.onnx"))
def test_a_detector_runs_without_torch(name: str, tiny_bundle: Path) -> None:
    skip_unless(name in backends.available(), name, f"{name} is not installed")
    code = f"""
import numpy as np
from glmd_runtime import Detector
from glmd_runtime.bundle import open_bundle
from glmd_runtime.verify import verify_bundle
with Detector({str(tiny_bundle)!r}, backend={name!r}) as detector:
    print(len(detector.run(np.full((64, 80), 128, np.uint8))))
print(verify_bundle(open_bundle({str(tiny_bundle)!r}), {name!r}).status)
"""
    assert python(blocked(*HEAVY, "av") + code).split() == ["2", "passed"]


@pytest.mark.parametrize("module", ["glmd_runtime", "glmd_runtime.cli"])
def test_importing_loads_no_framework(module: str) -> None:
    loaded = python(f"import sys, {module}; print(*sorted(m for m in sys.modules if '.' not in m))").split()
    assert not {*HEAVY, "onnxruntime", "openvino", "av"} & set(loaded)


@pytest.mark.parametrize(
    ("absent", "call", "extra"),
    [
        (("onnxruntime", "openvino"), "Detector({bundle!r})", "cpu"),
        (("openvino",), "Detector({bundle!r}, backend='openvino')", "openvino"),
        (("av",), "open_source({clip!r})", "video"),
    ],
)
def test_what_is_absent_is_named_with_its_extra(
    absent: tuple[str, ...], call: str, extra: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    code = f"""
from glmd_runtime import Detector, UnsupportedError
from glmd_runtime.video.sources import open_source
try:
    {call.format(bundle=str(tiny_bundle), clip=str(tmp_path / "clip.mp4"))}
except UnsupportedError as error:
    print(error)
"""
    assert f"pip install '{ROOT}[{extra}]'" in python(blocked(*absent) + code)
