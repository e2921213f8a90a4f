"""What tests share: the golden arrays, the real data where it lies, and skips that CI can forbid."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # a busy machine is no failure
DATA = Path(os.environ.get("GLMD_DATA", "../shared/data"))


def skip_unless(present: bool, name: str, reason: str) -> None:
    """Skip the test unless `present`; fail it instead where GLMD_REQUIRE (comma-separated) names it."""
    if present:
        return
    if name in os.environ.get("GLMD_REQUIRE", "").split(","):
        pytest.fail(f"GLMD_REQUIRE names {name!r}: {reason}")
    pytest.skip(reason)


# Coverage doubles the time of what runs much Python, as an export does. Long tests whose lines others reach as well are
# marked `no_cover`, one by one or as a file; pytest-cov heeds that in its own process, and here it is heeded in those
# that such tests and the fixtures of such files start.


@pytest.fixture(scope="module", autouse=True)
def _file_without_coverage(request: pytest.FixtureRequest) -> Iterator[None]:
    yield from _uncovered(request)


@pytest.fixture(autouse=True)
def _test_without_coverage(request: pytest.FixtureRequest) -> Iterator[None]:
    yield from _uncovered(request)


def _uncovered(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("no_cover"):
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real thermal data sets."""
    skip_unless((DATA / "hit_uav" / "val.json").is_file(), "data", "GLMD_DATA does not point to the thermal data sets")
    return DATA


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of tests/golden/<name>.npz, computed by the published implementation (docs/reproduction.md)."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)
