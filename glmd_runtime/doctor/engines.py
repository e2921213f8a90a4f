"""GPUs, inference libraries, plugins, and whether a Detector works."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from glmd_runtime.backends import BACKENDS
from glmd_runtime.backends.tensorrt import find_plugins
from glmd_runtime.doctor.finding import Finding
from glmd_runtime.doctor.probe import probe
from glmd_runtime.errors import GlmdError, UnsupportedError

TINY = Path(__file__).with_name("tiny.glmd")
SHIPPED = Path(__file__).parents[2] / "models" / "thermal_lite0.glmd"  # of a checkout; a wheel has none
BUILD_TIMEOUT = 3600.0  # seconds; a board may take half an hour over an engine
_DRIVERS = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release")


def check_gpu() -> list[Finding]:
    drivers = [Path(path).read_text().splitlines()[0] for path in _DRIVERS if os.access(path, os.R_OK)]
    said = ", ".join(drivers)
    try:
        found = probe("cuda")
    except GlmdError as error:
        found = {"why_not": str(error)}
    if not found["why_not"]:
        return [Finding("gpu", "ok", "; ".join(filter(None, (", ".join(found["devices"]), said))))]
    why, _, mend = found["why_not"].partition(" Run: ")
    if drivers:
        return [Finding("gpu", "warn", f"{said}, but {why}", mend)]
    return [Finding("gpu", "-", "no driver of NVIDIA")]


def check_backends() -> list[Finding]:
    return [_backend(name) for name in BACKENDS]


def _backend(name: str) -> Finding:
    if find_spec(name) is None:
        return Finding(name, "-", "not installed", BACKENDS[name].install)
    try:
        came = probe("version", name)["version"].split("-")[0]  # OpenVINO's goes on with its commit
        if BACKENDS[name].cuda and (why := probe("cuda")["why_not"]):
            return Finding(name, "-", f"{came}, {why}")
        if name == "tensorrt_rtx":
            return Finding(name, "ok", f"{came}, can be imported; its engines are built by glmd-export")
        found = _detect(TINY, name)
    except GlmdError as error:
        return Finding(name, "fail", f"{_installed(name)} does not work: {error}", BACKENDS[name].install)
    return Finding(name, "ok", f"{came}, gives the right answers for a tiny model on {found['device']}")


def _installed(module: str) -> str:
    """The version that pip knows, of a library that may not be importable."""
    for name in packages_distributions().get(module, ()):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return module


def check_plugins() -> list[Finding]:
    try:
        library = find_plugins()
    except UnsupportedError as error:
        return [Finding("plugins", "fail", str(error), "unset GLMD_PLUGIN_LIBRARY")]
    if library is None:
        return [Finding("plugins", "-", "none built; TensorRT takes the plain graph", "make plugins")]
    return [Finding("plugins", "ok", str(library))]


def check_default_path(bundle: Path | None) -> Finding:
    """A Detector as it comes, on the given bundle, the shipped one, or the tiny one. Raises: GlmdError."""
    path = bundle or (SHIPPED if SHIPPED.is_dir() else TINY)
    found = _detect(path, "auto")
    where = f"{found['engine']} ({found['precision']}) on {found['backend']}, {found['device']}"
    text = f"Detector({path.name}) takes {where} and gives its reference's answers"
    return Finding("default path", "ok", text)


def _detect(bundle: Path, backend: str) -> dict[str, Any]:
    """A bundle's engine for TensorRT is kept, as that of any Detector; nobody needs the tiny one's again."""
    if bundle != TINY:
        return probe("detect", str(bundle), backend, timeout=BUILD_TIMEOUT)
    with TemporaryDirectory() as scratch:
        return probe("detect", str(bundle), backend, cache=Path(scratch))
