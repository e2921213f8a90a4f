"""What `make cover` demands: each share by itself, as it is and not rounded."""

from __future__ import annotations

import os

import pytest

from tests.trust import coverage
from tests.trust.parts import BrokenPromiseError

ALL = {"lines": (100, 100), "branches": (100, 100)}


@pytest.mark.parametrize(
    ("runtime", "rest", "lacks"),
    [
        (ALL, ALL, None),
        ({"lines": (950, 1000), "branches": (95, 100)}, {"lines": (88, 100), "branches": (22, 25)}, None),
        ({"lines": (9496, 10000), "branches": (100, 100)}, ALL, "95.0% of 10000 lines of glmd_runtime"),
        ({"lines": (100, 100), "branches": (90, 100)}, ALL, "90.0% of 100 branches of glmd_runtime"),
        (ALL, {"lines": (87, 100), "branches": (100, 100)}, "87.0% of 100 lines of glmd_train"),
        (ALL, {"lines": (100, 100), "branches": (87, 100)}, "87.0% of 100 branches of glmd_train"),
    ],
)
def test_each_share_is_demanded(
    runtime: dict[str, tuple[int, int]], rest: dict[str, tuple[int, int]], lacks: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coverage, "counts", {"glmd_runtime/*": runtime, "glmd_train/*,glmd_export/*": rest}.get)
    if lacks is None:
        assert set(coverage.judged()) == {"runtime_lines", "runtime_branches", "rest_lines", "rest_branches"}
    else:
        with pytest.raises(BrokenPromiseError, match=lacks):
            coverage.judged()


def measured() -> bool:
    """Whether a process that a test starts would be."""
    return "COVERAGE_PROCESS_CONFIG" in os.environ


@pytest.mark.no_cover
def test_processes_of_a_test_without_coverage_are_not_measured() -> None:
    assert not measured()


def test_those_of_others_are_where_coverage_is_measured(request: pytest.FixtureRequest) -> None:
    assert measured() or not request.config.getoption("cov_source")
