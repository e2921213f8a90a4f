"""The commands that messages name can be pasted: a shell makes of them what pip should get."""

from __future__ import annotations

import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from glmd_runtime import backends, install

ROOT = Path(__file__).parents[2]
LINES = [
    "numpy>=1.24",
    'onnxruntime>=1.18; extra == "cpu"',
    "av>=15 ; extra == 'video'",  # as other tools write it
    'trackers<3,>=2.6; extra == "track"',
    'supervision>=0.26.1; extra == "track"',
    'torch; extra == "train"',
    'glmdnet-sdk[cpu,train]; extra == "export"',
    'onnx>=1.16; extra == "export"',
    'tensorrt<12,>=10.3; extra == "tensorrt"',
]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed in a folder of packages, with the metadata of a wheel."""
    monkeypatch.setattr(install, "FOLDER", tmp_path)
    monkeypatch.setattr(install, "requires", lambda name: LINES if name == "glmdnet-sdk" else None)


def test_in_a_checkout_it_is_installed_from_there() -> None:
    assert install.checkout() == ROOT
    assert shlex.split(install.install_command("video")) == ["pip", "install", f"{ROOT}[video]"]


def test_a_folder_with_a_space_and_a_quote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "the camera's sdk"
    folder.mkdir()
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    monkeypatch.setattr(install, "FOLDER", folder)
    assert shlex.split(install.install_command("cpu")) == ["pip", "install", f"{folder}[cpu]"]


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("cpu", ["onnxruntime>=1.18"]),
        ("video", ["av>=15"]),
        ("track", ["trackers<3,>=2.6", "supervision>=0.26.1"]),
        ("export", ["onnxruntime>=1.18", "torch", "onnx>=1.16"]),  # the package itself is in no index
    ],
)
def test_without_a_checkout_it_is_the_packages_of_the_extra(extra: str, packages: list[str], wheel: None) -> None:
    assert install.checkout() is None
    assert shlex.split(install.install_command(extra)) == ["pip", "install", *packages]


def test_another_projects_file_beside_the_package_is_no_checkout(wheel: None, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert install.checkout() is None


def test_a_copied_folder_without_metadata(wheel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(install, "requires", requires)
    assert install.install_command("cpu") == "pip install '.[cpu]'  # in the SDK's folder"


def test_what_follows_the_command_is_a_comment(wheel: None) -> None:
    command = backends.BACKENDS["tensorrt"].install
    assert shlex.split(command, comments=True) == ["pip", "install", "tensorrt<12,>=10.3"] and "Jetson" in command


def test_the_metadata_that_pip_wrote_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "FOLDER", tmp_path)
    names = [word.split("<")[0].split(">")[0] for word in shlex.split(install.install_command("export"))]
    assert {"torch", "onnx", "onnxruntime", "openvino"} < set(names) and not [n for n in names if "glmdnet" in n]
