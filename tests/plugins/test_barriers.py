"""Each barrier of the kernels is there for a reason that the tests see."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.barriers import barriers, verdicts


def test_all_barriers_are_named_once() -> None:
    assert len(barriers()) == len(set(barriers())) > 0


@pytest.mark.parametrize("barrier", barriers())
def test_a_missing_barrier_is_noticed(host_library: Path, barrier: str) -> None:
    assert any(not verdict.startswith("0 of") for verdict in verdicts(host_library, barrier))


def test_a_whole_kernel_is_not_blamed(host_library: Path) -> None:
    assert all(verdict.startswith("0 of") for verdict in verdicts(host_library, "none_of_them"))
