"""The fakes have only names that the real libraries have: members, parameters, and CUDA's numbers.

The backend and the builder run on the fakes, so what they use is what the fakes have. Compared are the bindings that
can be installed without a GPU: TensorRT-RTX (whole), tensorrt-lean 10.16 and 11.4 (the runtime half), cuda-bindings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import skip_unless
from tests.fakes.gpu import SITE

ROOT = Path(__file__).parents[2]
LEAN = {"10.3.0": "lean-10.16", "10.14.1": "lean-10.16", "11.4.0": "lean-11.4"}

# Used, and in none of the bindings that can be installed here: docs/tensorrt.md says so too. The calls below are those
# of TensorRT-RTX, whose API is that of TensorRT 11; that 10.x has them in this form rests on its documentation.
NOWHERE: frozenset[str] = frozenset()


@cache
def surface(module: str, path: Path, version: str = "10.3.0") -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.surface", module],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(path), "GLMD_FAKE_TENSORRT": version},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def lean(version: str) -> dict[str, Any]:
    path = Path(sys.prefix) / LEAN[version]
    skip_unless((path / "tensorrt_lean").is_dir(), "tensorrt_lean", f"{LEAN[version]} is not in {sys.prefix}")
    return surface("tensorrt_lean", path)


def rtx() -> dict[str, Any]:
    skip_unless(find_spec("tensorrt_rtx") is not None, "tensorrt_rtx", "tensorrt_rtx is not installed")
    return surface("tensorrt_rtx", Path())


def lacking(fake: dict[str, Any], real: dict[str, Any]) -> set[str]:
    """Names of the fake that the real module lacks, or has with other parameters; "unknown" is not judged."""
    absent = {name for name in fake if name not in real}
    for name in set(fake) - absent:
        if isinstance(fake[name], dict):
            members = {member for member in fake[name] if not _agree(fake[name][member], real[name].get(member))}
            absent |= {f"{name}.{member}" for member in members}
        elif not _agree(fake[name], real[name]):
            absent.add(name)
    return absent


def _agree(fake: Any, real: Any) -> bool:
    """Whether whatever the fake takes, the real one takes too."""
    if isinstance(fake, list) and isinstance(real, list):
        return fake == real[: len(fake)] and all(name.endswith("=") for name in real[len(fake) :])
    numbers = isinstance(fake, int) and isinstance(real, int)  # of TensorRT's enumerations only the names are used
    return real is not None and (numbers or "unknown" in (fake, real) or fake == real)


@pytest.mark.parametrize("version", LEAN)
def test_the_runtime_half_is_that_of_lean(version: str) -> None:
    fake, real = surface("tensorrt", SITE, version), lean(version)
    shared = {name: value for name, value in fake.items() if name in real}
    assert {"Runtime", "ICudaEngine", "IExecutionContext", "IPluginRegistry", "ILogger", "ITimingCache"} <= set(shared)
    assert lacking(shared, real) == set()


@pytest.mark.parametrize("version", LEAN)
def test_the_rest_is_that_of_rtx(version: str) -> None:
    fake, known = surface("tensorrt", SITE, version), lean(version)
    rest = {name: value for name, value in fake.items() if name not in known}
    assert {"Builder", "OnnxParser", "INetworkDefinition", "IBuilderConfig", "EngineInspector"} <= set(rest)
    assert lacking(rest, rtx()) == NOWHERE


def test_what_version_11_removed() -> None:
    old, new = surface("tensorrt", SITE, "10.3.0"), surface("tensorrt", SITE, "11.4.0")
    assert {"FP16", "INT8"} <= set(old["BuilderFlag"]) & set(lean("10.14.1")["BuilderFlag"])
    assert not {"FP16", "INT8"} & (set(new["BuilderFlag"]) | set(lean("11.4.0")["BuilderFlag"]))


def test_cuda_is_that_of_cuda_bindings() -> None:
    skip_unless(find_spec("cuda") is not None, "cuda", "cuda-bindings is not installed")
    fake, real = surface("cuda.bindings.runtime", SITE), surface("cuda.bindings.runtime", Path())
    assert lacking(fake, real) == set()
    for name in ("cudaError_t", "cudaDeviceAttr", "cudaMemcpyKind", "cudaStreamCaptureMode"):
        assert fake[name].items() <= real[name].items()


def test_a_difference_would_be_found() -> None:
    fake = {"f": ["a"], "g": ["a"], "h": ["a"], "C": {"m": ["a"], "n": "property"}, "E": {"X": 1}}
    real = {"f": ["a", "b"], "h": ["a", "b="], "C": {"m": ["b"]}, "E": {"Y": 1}}
    assert lacking(fake, real) == {"f", "g", "C.m", "C.n", "E.X"}
    assert lacking(fake, fake) == set() and lacking({"f": ["a"]}, {"f": "unknown"}) == set()
