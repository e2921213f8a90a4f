"""Inference libraries, plugins, and whether a Detector works."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any

from glmd_runtime.backends import BACKENDS
from glmd_runtime.backends.tensorrt import find_plugins
from glmd_runtime.doctor.finding import Finding, remedied
from glmd_runtime.doctor.gpu import Gpu
from glmd_runtime.doctor.probe import probe
from glmd_runtime.errors import GlmdError, UnsupportedError
from glmd_runtime.install import checkout

TINY = Path(__file__).with_name("tiny.glmd")
SHIPPED = Path(__file__).parents[2] / "models" / "thermal_lite0.glmd"  # of a checkout; a wheel has none
BUILD_TIMEOUT = 3600.0  # seconds; a board may take half an hour over an engine
_NEEDS_GPU = "needs a GPU of NVIDIA to run"
_NO_MODEL = "a built-in test model, as no detector ships with the package; try yours: glmd-doctor my_model.glmd"


def check_backends(gpu: Gpu) -> list[Finding]:
    """A line each. What is not installed has a remedy where that helps: a GPU is there, or nothing else works."""
    found = {name: _backend(name, gpu) for name in BACKENDS if find_spec(name)}
    works = any(one.status == "ok" for name, one in found.items() if name != "tensorrt_rtx")  # which was only imported
    helps = {name: gpu.there if entry.cuda else not works for name, entry in BACKENDS.items()}
    return [found.get(name) or _absent(name, helps[name]) for name in BACKENDS]


def _absent(name: str, helps: bool) -> Finding:
    if BACKENDS[name].cuda and not helps:
        return Finding(name, "-", f"not installed; {_NEEDS_GPU}")
    return Finding(name, "-", "not installed", BACKENDS[name].install if helps else "")


def _backend(name: str, gpu: Gpu) -> Finding:
    try:
        came = probe("version", name)["version"].split("-")[0]  # OpenVINO's goes on with its commit
        if BACKENDS[name].cuda and not gpu.there:
            return Finding(name, "-", f"{came}; {_NEEDS_GPU}")
        if BACKENDS[name].cuda and gpu.why_not:
            return remedied(name, "-", f"{came}, {gpu.why_not}")
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


def check_plugins(gpu: Gpu) -> list[Finding]:
    try:
        library = find_plugins()
    except UnsupportedError as error:
        return [Finding("plugins", "fail", str(error), "unset GLMD_PLUGIN_LIBRARY")]
    if library is None:
        return [_no_plugins(gpu)]
    return [Finding("plugins", "ok", str(library))]


def _no_plugins(gpu: Gpu) -> Finding:
    if not gpu.there:
        return Finding("plugins", "-", f"none built; {_NEEDS_GPU}")
    folder = checkout()
    mend = f"make -C {quote(str(folder))} plugins" if folder and (folder / "Makefile").is_file() else ""
    return Finding("plugins", "-", "none built; TensorRT takes the plain graph", mend)


def check_default_path(bundle: Path | None) -> Finding:
    """A Detector as it comes, on the given bundle, the shipped one, or the tiny one. Raises: GlmdError."""
    path = bundle or (SHIPPED if SHIPPED.is_dir() else TINY)
    found = _detect(path, "auto")
    where = f"{found['engine']} ({found['precision']}) on {found['backend']}, {found['device']}"
    text = f"Detector({path.name}) takes {where} and gives its reference's answers"
    return Finding("default path", "ok", f"{text}; {_NO_MODEL}" if path == TINY else text)


def _detect(bundle: Path, backend: str) -> dict[str, Any]:
    """A bundle's engine for TensorRT is kept, as that of any Detector; nobody needs the tiny one's again."""
    if bundle != TINY:
        return probe("detect", str(bundle), backend, timeout=BUILD_TIMEOUT)
    with TemporaryDirectory() as scratch:
        return probe("detect", str(bundle), backend, cache=Path(scratch))
