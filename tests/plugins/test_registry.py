"""The plugin library in the registries of TensorRT, as its own C++ contract test sees it, and without a device."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import skip_unless
from tests.plugins.conftest import ROOT, built
from tests.plugins.registry import FIELDS

# Where another version of a module lies: `pip install --target .venv/lean-11.4 tensorrt-lean-cu13==11.4.0.106`.
LEAN = {"10.16": ROOT / ".venv/lean-10.16", "11.4": ROOT / ".venv/lean-11.4"}


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    """libglmd_plugins.so: GLMD_PLUGIN_LIBRARY, else the build folder's."""
    library = built("libglmd_plugins.so", "GLMD_PLUGIN_LIBRARY")
    skip_unless(library.is_file(), "plugins", f"{library} is not built: it needs nvcc and TensorRT's headers")
    return library


def registered(module: str, library: Path, path: Path | None = None) -> tuple[dict[str, object], str]:
    """What a registry shows, and the process's standard error."""
    command = [sys.executable, "-m", "tests.plugins.registry", module, str(library)]
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def check(found: dict[str, object], errors: str) -> None:
    for name, values in FIELDS.items():
        assert found[name] == {
            "fields": list(values),
            "capabilities": 3,  # core, build, runtime
            "refuses a missing field": True,
        }
        assert f"{name}: attribute '{next(iter(values))}' is missing" in errors


@pytest.mark.parametrize("version", LEAN)
def test_tensorrt_lean_registers_the_plugins(plugin_library: Path, version: str) -> None:
    present = (LEAN[version] / "tensorrt_lean").is_dir()
    skip_unless(present, "tensorrt_lean", f"tensorrt-lean {version} is not in {LEAN[version]}")
    found, errors = registered("tensorrt_lean", plugin_library, LEAN[version])
    assert str(found["version"]).startswith(version)
    check(found, errors)


def test_tensorrt_rtx_registers_the_plugins(plugin_library: Path) -> None:
    present = importlib.util.find_spec("tensorrt_rtx") is not None
    skip_unless(present, "tensorrt_rtx", "tensorrt_rtx is not installed (pip install tensorrt-rtx-cu13)")
    check(*registered("tensorrt_rtx", plugin_library))


def test_the_library_keeps_the_contract_of_ipluginv3(plugin_library: Path) -> None:
    """Shapes, formats, workspace, serialised fields; enqueue without a device is an error."""
    program = built("plugin_contract", "GLMD_PLUGIN_CONTRACT")
    skip_unless(program.is_file(), "plugins", f"{program} is not built")
    done = subprocess.run([program, plugin_library], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
