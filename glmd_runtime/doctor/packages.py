"""Packages: those that are always needed, and those that are in each other's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version

from glmd_runtime.doctor import machine
from glmd_runtime.doctor.finding import Finding
from glmd_runtime.doctor.probe import probe
from glmd_runtime.errors import GlmdError

# Of modules that several packages bring, the packages, the one to keep first; onnxruntime-gpu only where a GPU is.
_BUILDS = {
    "cv2": ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime", "onnxruntime-openvino", "onnxruntime-directml"),
}


def check_needed() -> list[Finding]:
    """What every command imports."""
    return [_imported("numpy"), _imported("cv2")]


def _imported(module: str) -> Finding:
    try:
        return Finding(module, "ok", str(probe("version", module)["version"]))
    except GlmdError as error:
        return Finding(module, "fail", f"cannot be imported: {error}", _mend(module, str(error)))


def _mend(module: str, error: str) -> str:
    if "libGL" in error or "libgthread" in error or "libglib" in error:
        return "apt-get install libgl1 libglib2.0-0"  # what a container or server may lack
    return f"pip install --force-reinstall --no-deps {'opencv-python' if module == 'cv2' else module}"


def check_clashes() -> list[Finding]:
    installed = packages_distributions()
    clashes = [finding for module in _BUILDS if (finding := _clash(module, installed))] + _torch()
    return clashes or [Finding("packages", "ok", "none in another's way")]


def _clash(module: str, installed: Mapping[str, Sequence[str]]) -> Finding | None:
    """Two builds of one module: the files are those of the build that was installed last."""
    builds = [name for name in _BUILDS[module] if name in {one.lower() for one in installed.get(module, ())}]
    if len(builds) < 2:
        return None
    versions = {version(name) for name in builds}
    text = f"{' and '.join(f'{name} {version(name)}' for name in builds)} are both the module {module}"
    kept = next(name for name in builds if name != "onnxruntime-gpu" or machine.nvidia_drivers())
    mend = f"pip uninstall -y {' '.join(builds)} && pip install {kept}"
    # Builds of OpenCV are alike in what is used here; those of ONNX Runtime hide each other's devices.
    alike = module == "cv2" and len(versions) == 1
    return Finding("packages", "warn" if alike else "fail", text, mend)


def _torch() -> list[Finding]:
    """torchvision's operators are compiled for one version of torch."""
    try:
        there = version("torch").split("+")[0]
        wanted = [line.split("==")[1] for line in requires("torchvision") or () if line.startswith("torch==")]
    except PackageNotFoundError:
        return []
    if wanted and wanted[0] != there:
        text = f"torchvision {version('torchvision')} is for torch {wanted[0]}; torch is {there}"
        return [Finding("packages", "fail", text, "pip install --force-reinstall torch torchvision")]
    return []
