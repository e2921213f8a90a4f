"""A tiny bundle for every test of the runtime, and a copy that a test may spoil."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import skip_unless
from tests.fakes.gpu import FakeGpu, fake_gpu


@pytest.fixture
def pyav() -> None:
    """For tests that read or write video."""
    skip_unless(find_spec("av") is not None, "av", "PyAV is not installed")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only; its engines are marked as passed."""
    return tiny.bundle(tmp_path_factory.mktemp("bundles") / "tiny.glmd").path


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "own.glmd"))


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[FakeGpu]:
    """A fake machine with TensorRT 10.3 and one GPU of compute capability 8.7."""
    skip_unless(find_spec("onnxruntime") is not None, "onnxruntime", "the fake TensorRT computes with onnxruntime")
    with fake_gpu(tmp_path) as machine:
        yield machine
