"""The kernels that the tests drive: built for the CPU here, for the device by whoever has one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import skip_unless
from tests.plugins.kernels import ORDERS, DeviceKernels, HostKernels

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libglmd_host.so: GLMD_HOST_LIBRARY, else built now."""
    if given := os.environ.get("GLMD_HOST_LIBRARY"):
        return Path(given)
    for tool in ("cmake", "g++"):
        skip_unless(shutil.which(tool) is not None, tool, f"{tool} is not installed (apt-get install cmake g++)")
    build = tmp_path_factory.mktemp("host")
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), "-DGLMD_CUDA_ARCHS=none"],
        ["cmake", "--build", str(build), "--target", "glmd_host"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "libglmd_host.so"


@pytest.fixture(scope="session")
def host(host_library: Path) -> HostKernels:
    return HostKernels(host_library)


@pytest.fixture(params=[*ORDERS, pytest.param("device", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Iterator[HostKernels]:
    """The operators under each order of threads, and on the device where there is one."""
    if request.param == "device":
        yield request.getfixturevalue("device_kernels")
        return
    host = request.getfixturevalue("host")
    host.schedule(request.param)
    yield host


@pytest.fixture(scope="session")
def device_kernels() -> DeviceKernels:
    """libglmd_kernels.so on the GPU."""
    skip_unless(torch.cuda.is_available(), "gpu", "no CUDA device, or a torch without CUDA")
    library = built("libglmd_kernels.so", "GLMD_KERNELS_LIBRARY")
    skip_unless(library.is_file(), "gpu", f"{library} is not built: cmake -S . -B build && cmake --build build")
    return DeviceKernels(library)


def built(name: str, variable: str) -> Path:
    """Where a library of the CMake build lies: the environment's `variable`, else the build folder."""
    folder = Path(os.environ.get("GLMD_PLUGIN_BUILD", ROOT / "build"))
    return Path(os.environ.get(variable, folder / name))
