"""What is installed: a wheel in an empty environment, away from the checkout, does what the commands promise."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import glmd_runtime
from tests.conftest import skip_unless

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def brought(extra: str) -> set[str]:
    """Names of the packages that an extra asks for itself, those of other extras that it takes included."""
    names: set[str] = set()
    for requirement in EXTRAS[extra]:
        name, _, others = re.match(r"([\w-]+)(\[([\w,]+)\])?", requirement).groups()
        ours = name == PROJECT["name"]
        names |= {n for other in others.split(",") for n in brought(other)} if ours else {name}
    return names


def test_the_version_has_one_source() -> None:
    assert version("glmdnet-sdk") == glmd_runtime.__version__
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert glmd_runtime.__version__ not in (ROOT / "CMakeLists.txt").read_text()


def test_extras_bring_what_can_be_together() -> None:
    plain = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert not plain & {"onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "av", "torch"}
    assert brought("cpu") == {"onnxruntime"} and brought("gpu") == {"onnxruntime-gpu"}
    for extra in EXTRAS:
        both = brought(extra) | plain
        assert "opencv-python-headless" not in both and "opencv-python" in both
        assert not {"onnxruntime", "onnxruntime-gpu"} <= both
    parts = ("cpu", "openvino", "video", "live", "track", "train", "export")
    assert brought("all") >= set().union(*map(brought, parts))


def test_no_package_is_under_the_gpl() -> None:
    licences = runpy.run_path(str(ROOT / "docs" / "licences.py"))
    rows = {name: said for name, said, _ in licences["rows"]()}
    assert {"numpy", "openvino", "av", "torch", "trackers"} <= set(rows)
    for name, said in rows.items():
        assert said != "unknown", f"{name}: read its licence and name it in docs/licences.py"
        assert not re.search(r"(?<!L)GPL|General Public", said.replace("Lesser General Public", "")), f"{name}: {said}"
    page = (ROOT / "docs" / "licences.md").read_text()
    asked = {name for extra in EXTRAS if extra != "dev" for name in brought(extra)}
    assert [name for name in sorted(asked) if f"| {name.lower()} |" not in page] == []


def test_libraries_under_the_gpl_within_wheels_are_those_that_the_page_names() -> None:
    """Of video encoders: metadata do not tell what a wheel holds."""
    licences = runpy.run_path(str(ROOT / "docs" / "licences.py"))
    packages = {name: found for extra in licences["EXTRAS"] for name, found in licences["closure"](extra).items()}
    files = {name: map(str, found.files or ()) for name, found in packages.items() if found}
    holding = {name for name, paths in files.items() if any("libx26" in path for path in paths)}
    assert holding <= {"av"}


def test_the_container_gets_all_that_its_commands_are_made_of() -> None:
    lines = re.findall(r"(?m)^COPY (.+) \S+$", (ROOT / "examples" / "Containerfile").read_text())
    copied = {ROOT / name for line in lines for name in line.split()}
    packages = {ROOT / target.split(".")[0] for target in PROJECT["scripts"].values()}
    links = {path.resolve() for package in packages for path in package.rglob("*") if path.is_symlink()}
    assert packages | links <= copied and all(path.exists() for path in copied)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a wheel that was installed as a stranger would, with the extra cpu."""
    skip_unless(find_spec("build") is not None, "pypi", "the package `build` is not installed")
    folder = tmp_path_factory.mktemp("installed")

    def done(*command: object) -> bool:
        return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, timeout=1500).returncode == 0

    assert done(sys.executable, "-m", "build", "--outdir", folder)
    [wheel] = folder.glob("*.whl")
    python = folder / "env" / "bin" / "python"
    assert done(sys.executable, "-m", "venv", folder / "env")
    there = done(python, "-m", "pip", "install", "-c", "constraints.txt", f"{wheel}[cpu]")
    skip_unless(there, "pypi", "pip cannot install the dependencies: is there a package index?")
    return python.parent


def call(installed: Path, folder: Path, name: str, *args: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(installed / name), *map(str, args)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_commands_of_a_wheel(installed: Path, tmp_path: Path) -> None:
    packages = json.loads(call(installed, tmp_path, "pip", "list", "--format", "json").stdout)
    names = {package["name"].lower() for package in packages}
    assert "onnxruntime" in names and not names & {"torch", "openvino", "onnxruntime-gpu", "opencv-python-headless"}
    done = call(installed, tmp_path, "glmd-doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = [one["what"] for one in json.loads(done.stdout)["findings"] if one["name"] == "default path"]
    assert path.startswith("Detector(tiny.glmd) takes model.onnx") and "no detector ships with the package" in path
    mends = {one["mend"] for one in json.loads(done.stdout)["findings"]}
    assert "pip install 'av>=15'" in mends and not [mend for mend in mends if "make" in mend or "[" in mend]
    for name in ("glmd-run", "glmd-verify", "glmd-doctor", "glmd-train", "glmd-export", "glmd-tune"):
        done = call(installed, tmp_path, name, "--help")
        assert done.returncode == 0 and f"usage: {name}" in done.stdout, done.stderr
        assert call(installed, tmp_path, name, "--version").stdout == f"{name} {glmd_runtime.__version__}\n"
    bundle = ROOT / "models" / "thermal_lite0.glmd"
    done = call(installed, tmp_path, "glmd-run", "--engine", bundle, "--source", "sim://ground?seed=1&frames=5",
                "--json", "found.jsonl")
    assert done.returncode == 0 and "onnxruntime" in done.stdout, done.stderr
    found = [json.loads(line)["detections"] for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert len(found) == 5 and any(found)


def test_what_commands_read_is_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import glmd_runtime, glmd_train; from glmd_train.commands.teach import BASE\n"
        "train, page = Path(glmd_train.__file__).parent, Path(glmd_runtime.__file__).parent / 'web' / 'page'\n"
        "recipes = len(list(train.glob('configs/recipes/*.yaml')))\n"
        "print(BASE.stat().st_size > 1e6, recipes, (page / 'index.html').is_file())"
    )
    done = call(installed, tmp_path, "python", "-c", code)
    recipes = len(list((ROOT / "glmd_train" / "configs" / "recipes").glob("*.yaml")))
    assert done.stdout.split() == ["True", str(recipes), "True"], done.stderr
    done = call(installed, tmp_path, "glmd-train", "teach", "--images", ".", "--annotations", ".", "--dry-run")
    assert done.returncode == 5 and "Run: pip install 'torch>=2.6' " in done.stderr and "Traceback" not in done.stderr
