"""Python 3.10 to 3.13, numpy 1.26 and 2, OpenCV 4 and 5, and the oldest versions that pyproject.toml admits.

The SDK is installed as its users do, as a copy and without torch, into a fresh environment, and the runtime's tests run
on the installed packages. Interpreters are found by name, or named in GLMD_PYTHONS, separated as in PATH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import requires
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement

from tests.conftest import DATA
from tests.trust.parts import BrokenPromiseError, Figures, Form, Part, require

ROOT = Path(__file__).parents[2]
PACKAGES = ("glmd_runtime", "glmd_train", "glmd_export")
BASE = ("cpu", "openvino", "video", "live")  # extras that want no more of numpy than the SDK itself
TRACK = ("track",)  # trackers wants numpy 2
NUMPY_1, NUMPY_2 = ("numpy~=1.26.0",), ("numpy>=2",)
OPENCV_4, OPENCV_5 = ("opencv-python<5",), ("opencv-python>=5",)
TESTS = ("pytest", "hypothesis", "onnx")  # tests make their graphs with onnx
SHOWN = ("numpy", "opencv-python", "onnxruntime", "openvino", "av")
COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")


@dataclass(frozen=True)
class Combination:
    """A Python, the extras to install, and what pip is told of versions."""

    python: str
    extras: Sequence[str]
    constraints: Sequence[str]


def oldest(extras: Sequence[str]) -> tuple[str, ...]:
    """numpy>=1.24 as numpy==1.24, and so on."""
    wanted = map(Requirement, requires("glmdnet-sdk") or ())
    markers = [{"extra": extra} for extra in ("", *extras)]
    chosen = [one for one in wanted if one.marker is None or any(one.marker.evaluate(marker) for marker in markers)]
    least = ((one.name, s.version) for one in chosen for s in one.specifier if s.operator in (">=", "=="))
    return tuple(f"{name}=={version}" for name, version in least)


COMBINATIONS = {
    "python310_numpy1_opencv4": Combination("3.10", BASE, (*NUMPY_1, *OPENCV_4)),
    "python310_numpy2_opencv5": Combination("3.10", BASE + TRACK, (*NUMPY_2, *OPENCV_5)),
    "python311_numpy2_opencv5": Combination("3.11", BASE + TRACK, (*NUMPY_2, *OPENCV_5)),
    "python312_numpy1_opencv4": Combination("3.12", BASE, (*NUMPY_1, *OPENCV_4)),
    "python313_numpy2_opencv4": Combination("3.13", BASE + TRACK, (*NUMPY_2, *OPENCV_4)),
    "python313_numpy2_opencv5": Combination("3.13", BASE + TRACK, (*NUMPY_2, *OPENCV_5)),
    "oldest": Combination("3.10", BASE, oldest(BASE)),
}


def runtime_tests(combination: Combination, form: Form) -> Figures:
    """The runtime's tests, all of them, on what a fresh environment got."""
    interpreter = find(combination.python)
    if interpreter is None:
        return {"not_run": f"no python{combination.python} here; name one in GLMD_PYTHONS"}
    with TemporaryDirectory(prefix="glmd-compatibility-") as folder:
        python = install(Path(folder), interpreter, combination, TESTS)
        call = [str(python), "-m", "pytest", "tests/runtime", "-p", "no:cacheprovider"]
        environment = {**os.environ, "GLMD_DATA": str(DATA.resolve())}
        done = subprocess.run(call, cwd=Path(folder) / "sdk", env=environment, capture_output=True, text=True)
        require(done.returncode == 0, f"{combination}: {done.stdout[-4000:]}{done.stderr[-1000:]}")
        counts = {kind: int(number) for number, kind in COUNT.findall(done.stdout.splitlines()[-1])}
        return {**counts, "failed": 0, "with": versions(python)}


def glmd_run(form: Form) -> Figures:
    """The shipped bundle, with the versions that pip chooses by itself."""
    with TemporaryDirectory(prefix="glmd-compatibility-") as folder:
        python = install(Path(folder), sys.executable, Combination("", ("cpu", "openvino", "video"), ()), ())
        source = ("--source", "sim://ground?seed=1&frames=3", "--json", "-")
        call = [str(python.parent / "glmd-run"), "--engine", "models/thermal_lite0.glmd", *source]
        done = subprocess.run(call, cwd=Path(folder) / "sdk", capture_output=True, text=True)
        found = [len(json.loads(line)["detections"]) for line in done.stdout.splitlines()]
        require(done.returncode == 0 and len(found) == 3 and min(found) > 0, f"It found {found}: {done.stderr[-2000:]}")
        return {"frames": len(found), "detections": sum(found), "with": versions(python)}


def find(version: str) -> str | None:
    """The path of an interpreter that runs and is of this version."""
    return next((path for path in _candidates(f"python{version}") if _version(path) == version), None)


def _candidates(name: str) -> Iterator[str]:
    yield from os.environ.get("GLMD_PYTHONS", "").split(os.pathsep)
    yield shutil.which(name) or ""
    if shutil.which("pyenv"):  # whose python3.X runs only where that version is chosen
        yield from subprocess.run(["pyenv", "whence", "--path", name], capture_output=True, text=True).stdout.split()


def _version(path: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([path, "-c", code], capture_output=True, text=True).stdout.strip() if path else ""


def install(folder: Path, interpreter: str, combination: Combination, more: Sequence[str]) -> Path:
    """The Python of a new environment with a copy of the SDK; beside it, what is not installed: tests, models.

    Raises: BrokenPromiseError with pip's last lines.
    """
    sdk, environment, constraints = folder / "sdk", folder / "environment", folder / "constraints.txt"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        (sdk / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, sdk / name)
    constraints.write_text("\n".join(combination.constraints))
    subprocess.run([interpreter, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    wanted = [f".[{','.join(combination.extras)}]", *more]
    pip = [str(python), "-m", "pip", "install", "--only-binary", ":all:", "-c", str(constraints), *wanted]
    done = subprocess.run(pip, cwd=sdk, capture_output=True, text=True)
    if done.returncode:
        raise BrokenPromiseError(f"{combination} cannot be installed: {done.stderr[-2000:]}")
    for package in (*PACKAGES, "build"):
        shutil.rmtree(sdk / package, ignore_errors=True)  # else tests would see these
    return python


def versions(python: Path) -> str:
    """Those of Python and of what matters most."""
    code = f"""
import platform
from importlib.metadata import version
print("Python", platform.python_version(), *(f", {{name}} {{version(name)}}" for name in {SHOWN}))
"""
    said = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return said.stdout.strip().replace(" ,", ",")


def title(name: str, combination: Combination) -> str:
    oldest_of_all = ", everything in the oldest version that pyproject.toml admits" if name == "oldest" else ""
    return f"the runtime's tests pass on Python {combination.python}{oldest_of_all}"


PARTS: list[Part] = [
    Part("compatibility.installed", "installed without torch, glmd-run detects with the shipped bundle", glmd_run),
    *(
        Part(f"compatibility.{name}", title(name, one), partial(runtime_tests, one), forms=("long",))
        for name, one in COMBINATIONS.items()
    ),
]
