"""What tests share: the golden arrays, the real data where it lies, and skips that CI can forbid."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("glmd", deadline=None)  # a busy machine is no defect
settings.load_profile("glmd")

GOLDEN = Path(__file__).parent / "golden"
DATA = Path(os.environ.get("GLMD_DATA", "../shared/data"))


def skip_unless(present: bool, name: str, reason: str) -> None:
    """Skip the test unless `present`; fail it instead where GLMD_REQUIRE (comma-separated) names it."""
    if present:
        return
    if name in os.environ.get("GLMD_REQUIRE", "").split(","):
        pytest.fail(f"GLMD_REQUIRE names {name!r}: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real thermal data sets."""
    skip_unless((DATA / "hit_uav" / "val.json").is_file(), "data", "GLMD_DATA does not point to the thermal data sets")
    return DATA


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of tests/golden/<name>.npz, computed by the published implementation (docs/reproduction.md)."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)
