"""A tiny bundle for every test of the runtime, and a copy that a test may spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only; its engines are marked as passed."""
    return tiny.bundle(tmp_path_factory.mktemp("bundles") / "tiny.glmd").path


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "own.glmd"))
