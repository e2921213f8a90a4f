"""What this machine can run: a line for each thing that matters, with the command that mends it.

Libraries that may be broken are tried in processes of their own (probe.py, tasks.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmd_runtime.doctor import devices, machine, packages
from glmd_runtime.doctor.finding import Finding, remedied
from glmd_runtime.errors import GlmdError, UnsupportedError

SCHEMA = 1  # of `Diagnosis.to_dict`; goes up where a key changes its meaning
_FIRST: tuple[Callable[[], list[Finding]], ...] = (
    machine.check_python, machine.check_cpu, machine.check_cores, packages.check_clashes, devices.check_video,
    devices.check_cameras,
)  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and the cached engines as plain values; `error` is why the default path does not work, or None."""

    findings: tuple[Finding, ...]
    engines: tuple[dict[str, Any], ...]
    error: GlmdError | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "works": self.error is None,
            "findings": [finding.to_dict() for finding in self.findings],
            "engines": list(self.engines),
        }


def diagnose(bundle: Path | None = None) -> Diagnosis:
    """Look at everything. `bundle` is what to detect with; None is the shipped one, or where it is not, a tiny one."""
    needed = packages.check_needed()
    findings = [*(finding for check in _FIRST for finding in check()), *needed]
    if broken := next((finding for finding in needed if finding.status == "fail"), None):
        return _ended(findings, UnsupportedError(f"needs {broken.name}"))
    from glmd_runtime.doctor import cache, engines, gpu  # which need numpy

    cached = cache.cached()
    found = tuple(map(cache.describe, cached))
    there = gpu.look_for_gpu()
    findings += [*gpu.check_gpu(there), *engines.check_backends(there), *engines.check_plugins(there)]
    findings += cache.check_cache(cached)
    try:
        return Diagnosis((*findings, engines.check_default_path(bundle)), found, None)
    except GlmdError as error:
        return _ended(findings, error, found)


def _ended(findings: list[Finding], error: GlmdError, engines: tuple[dict[str, Any], ...] = ()) -> Diagnosis:
    return Diagnosis((*findings, remedied("default path", "fail", str(error))), engines, error)
