"""glmd-doctor on machines that are whole, broken in one place, or have a (fake) GPU."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest

from glmd_runtime import UnsupportedError, backends
from glmd_runtime.bundle import open_bundle
from glmd_runtime.doctor import cache, devices, diagnose, engines, machine, packages
from glmd_runtime.doctor import gpu as gpus
from glmd_runtime.doctor.finding import Finding
from glmd_runtime.doctor.probe import probe
from glmd_runtime.engines import open_engine
from tests import tiny
from tests.conftest import skip_unless
from tests.fakes import models
from tests.fakes.gpu import FakeGpu

ROOT = Path(__file__).parents[2]
NO_GPU = gpus.Gpu("", "", "no CUDA device was found")
NO_LIBGL = "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')"


def command(name: str, *args: object, shadows: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, where packages in `shadows` hide the installed ones."""
    call = f"import sys; from glmd_runtime.cli import glmd_{name}_main as main; sys.argv[0] = 'glmd-{name}'; main()"
    path = os.pathsep.join(map(str, filter(None, (shadows, ROOT))))
    return subprocess.run(
        [sys.executable, "-c", call, *map(str, args)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )


def shadow(folder: Path, module: str, code: str) -> Path:
    (folder / f"{module}.py").write_text(code)
    return folder


def test_the_whole_diagnosis_as_json(tiny_bundle: Path) -> None:
    skip_unless(bool(backends.available()), "onnxruntime", "no inference library is installed")
    done = command("doctor", tiny_bundle, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said) == {"schema", "works", "findings", "engines", "pruned"} and said["works"]
    assert all(set(finding) == {"name", "status", "what", "mend"} for finding in said["findings"])
    names = [finding["name"] for finding in said["findings"]]
    assert {"python", "cpu", "cores", "numpy", "cv2", "packages", "video", "gpu", "plugins", "engine cache"} < {*names}
    assert {*backends.BACKENDS} < {*names} and names[-1] == "default path"
    for finding in said["findings"]:
        if finding["name"] in backends.available():
            assert "right answers" in finding["what"]


def test_what_is_no_bundle_is_refused_before_anything_is_tried(own_bundle: Path) -> None:
    (own_bundle / "model.onnx").write_bytes(b"no model")
    for path, said in ((own_bundle, "model.onnx"), (own_bundle / "none.glmd", "is nothing. Make one with glmd-export")):
        done = command("doctor", path)
        assert done.returncode == 1 and done.stdout == ""
        [line] = done.stderr.splitlines()
        assert line.startswith("glmd-doctor: error: ") and said in line


def test_a_bundle_that_does_not_work_is_the_exit_code(tmp_path: Path) -> None:
    path = tiny.bundle(tmp_path / "t.glmd", verified=tiny.report("failed")).path
    done = command("doctor", path)
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if "default path" in line]
    assert line.startswith("fail") and "no engine that passed verification" in line
    assert done.stderr.strip().splitlines()[-1] == "glmd-doctor: error: The default path does not work."


def test_opencv_without_the_libraries_of_windows_is_explained(tmp_path: Path) -> None:
    shadows = tmp_path
    (tmp_path / "cv2").mkdir()  # a package that leaves its folder in sys.path when it fails, as OpenCV's does
    (tmp_path / "cv2" / "__init__.py").write_text(f"import sys\nsys.path.insert(1, __path__[0])\n{NO_LIBGL}")
    (tmp_path / "cv2" / "typing.py").write_text(NO_LIBGL)
    done = command("doctor", shadows=shadows)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "ok    numpy" in done.stdout
    [line] = [line for line in done.stdout.splitlines() if line.startswith("fail  cv2")]
    assert "libGL.so.1" in line and line.endswith("→ apt-get install libgl1 libglib2.0-0")
    for name in ("run", "verify"):
        done = command(name, "--help", shadows=shadows)
        assert done.returncode == 5 and "libGL.so.1" in done.stderr and done.stderr.endswith("Run: glmd-doctor\n")
        assert len(done.stderr.splitlines()) == 1
    code = "from glmd_runtime.errors import UnsupportedError\ntry: from glmd_runtime import Detector\n"
    code += "except UnsupportedError as error: print(error)"
    environment = {**os.environ, "PYTHONPATH": f"{shadows}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("numpy and OpenCV must work here; got: libGL.so.1"), done.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "it crashed with SIGABRT"),
        ("raise ImportError('libtbb.so.12 is not there')", "ImportError: libtbb.so.12 is not there"),
        ("import sys; sys.exit('no licence')", "it ended with exit code 1; it said last: no licence"),
        ("", "openvino"),  # an empty folder's name is enough to be found, and no library
    ],
)
def test_a_broken_library_is_a_finding(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(shadow(tmp_path, "openvino", code))
    monkeypatch.setattr(engines, "BACKENDS", {"openvino": backends.BACKENDS["openvino"]})
    [finding] = engines.check_backends(NO_GPU)
    assert finding.status == "fail" and said in finding.what and finding.mend == backends.BACKENDS["openvino"].install


def test_a_library_that_hangs_is_given_up() -> None:
    with pytest.raises(UnsupportedError, match="no answer in 0 s"):
        probe("version", "json", timeout=0.01)


@pytest.mark.parametrize(
    ("installed", "versions", "status", "mend"),
    [
        ({}, {}, "ok", ""),
        ({"cv2": ["opencv-python"]}, {"opencv-python": "5.0"}, "ok", ""),
        (
            {"cv2": ["opencv-python", "opencv-python-headless"]},
            {"opencv-python": "5.0", "opencv-python-headless": "5.0"},
            "warn",
            "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python",
        ),
        (
            {"cv2": ["opencv-contrib-python", "opencv-python"]},
            {"opencv-python": "5.0", "opencv-contrib-python": "4.9"},
            "fail",
            "pip uninstall -y opencv-python opencv-contrib-python && pip install opencv-python",
        ),
        ({}, {"torch": "2.6.0+cpu", "torchvision": "0.20"}, "fail", "pip install --force-reinstall torch torchvision"),
        ({}, {"torch": "2.5.0+cpu", "torchvision": "0.20"}, "ok", ""),
    ],
)
def test_packages_in_each_others_way(
    installed: Mapping[str, list[str]],
    versions: Mapping[str, str],
    status: str,
    mend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise packages.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages, "packages_distributions", lambda: installed)
    monkeypatch.setattr(packages, "version", version)
    monkeypatch.setattr(packages, "requires", lambda name: ["numpy", "torch==2.5.0"])
    [finding] = packages.check_clashes()
    assert (finding.name, finding.status, finding.mend) == ("packages", status, mend)


@pytest.mark.parametrize(("driver", "kept"), [("README.md", "onnxruntime-gpu"), ("no file", "onnxruntime")])
def test_the_build_of_onnxruntime_that_is_kept(driver: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DRIVERS", (ROOT / driver,))
    monkeypatch.setattr(packages, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime", "onnxruntime-gpu"]})
    monkeypatch.setattr(packages, "version", lambda name: "1.22")
    clash = packages.check_clashes()[0]
    assert clash.mend == f"pip uninstall -y onnxruntime-gpu onnxruntime && pip install {kept}"


@pytest.mark.parametrize(
    ("files", "status", "mend"),
    [
        ({}, "ok", ""),
        ({"cpu.max": "max 100000\n"}, "ok", ""),
        ({"cpu.max": "150000 100000\n"}, "warn", "glmd-run --threads 1 ..."),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "ok", ""),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "warn", "glmd-run --threads 2 ..."),
    ],
)
def test_the_share_of_a_container(
    files: dict[str, str], status: str, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "cores", lambda: 4)
    [finding] = machine.check_cores()
    assert (finding.status, finding.mend) == (status, mend)


@pytest.mark.parametrize(
    ("text", "architecture", "status", "has"),
    [
        ("model name\t: Old\nflags\t\t: sse2 avx\n", "x86_64", "warn", "without avx2"),
        ("model name\t: New\nflags\t\t: avx2 avx512f avx512_vnni\n", "x86_64", "ok", "avx2 avx512f avx512_vnni"),
        ("Features\t: fp asimd asimddp\n", "aarch64", "ok", "asimd asimddp"),
    ],
)
def test_what_the_processor_can(
    text: str, architecture: str, status: str, has: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: architecture)
    [finding] = machine.check_cpu()
    assert finding.status == status and has in finding.what


@pytest.fixture
def camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in a camera's place, with the name of one."""
    (tmp_path / "names" / "video0").mkdir(parents=True)
    (tmp_path / "names" / "video0" / "name").write_text("Boson: Boson\n")
    monkeypatch.setattr(devices, "DEV", tmp_path)
    monkeypatch.setattr(devices, "SYS", tmp_path / "names")
    (tmp_path / "video0").touch()
    return tmp_path / "video0"


def camera_that(monkeypatch: pytest.MonkeyPatch, *formats: bytes, fails: int = errno.EINVAL) -> None:
    """Let devices answer VIDIOC_ENUM_FMT with these formats, then with an error."""

    def ioctl(device: int, request: int, argument: bytes) -> bytes:
        index = devices._FMTDESC.unpack(argument)[0]
        if request != 0xC0405602 or index >= len(formats):
            raise OSError(fails, os.strerror(fails))
        return devices._FMTDESC.pack(index, 1, 0, b"", formats[index], b"")

    monkeypatch.setattr("fcntl.ioctl", ioctl)


def test_a_camera_and_how_to_read_it(camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera_that(monkeypatch, b"Y16 ", b"YU12")
    what = f"Boson: Boson; Y16 YU12; v4l2://{camera}?format=Y16"
    assert devices.check_cameras() == [Finding(str(camera), "ok", what)]


@pytest.mark.parametrize(
    ("fails", "status", "what"), [(errno.ENOTTY, "-", "gives no pictures"), (errno.EBUSY, "warn", "is in use")]
)
def test_a_camera_that_gives_nothing(
    fails: int, status: str, what: str, camera: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera_that(monkeypatch, fails=fails)
    [finding] = devices.check_cameras()
    assert finding.status == status and what in finding.what


def test_a_camera_that_is_not_ours(camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    [finding] = devices.check_cameras()
    assert finding.status == "warn" and finding.mend.startswith("sudo usermod -aG video $USER")


def test_encoders_that_ffmpeg_lacks(pyav: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.status for finding in devices.check_video()] == ["ok"]
    monkeypatch.setattr(devices, "_ENCODERS", {"abacus": "--count"})
    [finding] = devices.check_video()
    assert finding.status == "warn" and "abacus (--count)" in finding.what


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache.cached() == []
    [finding] = cache.check_cache([])
    assert finding.status == "warn" and "cannot be made" in finding.what


def test_a_cache_that_others_can_write_to(gpu: FakeGpu) -> None:
    gpu.cache.mkdir(parents=True)
    gpu.cache.chmod(0o777)
    assert cache.cached() == []
    [finding] = cache.check_cache([])
    assert finding.status == "warn" and "can be written to by others" in finding.what


def test_a_gpu_and_what_is_cached(gpu: FakeGpu, tmp_path: Path) -> None:
    def findings() -> dict[str, Finding]:
        return {finding.name: finding for finding in diagnose(path).findings}

    path = models.half_bundle(tmp_path / "t.glmd").path
    open_engine(open_bundle(path), models.HALF, "tensorrt").close()
    found = findings()
    assert found["gpu"].what.startswith("cuda:0 of compute capability 8.7")
    assert found["tensorrt"] == Finding(
        "tensorrt", "ok", "10.3.0, gives the right answers for a tiny model on cuda:0"
    )
    assert "model.fp16.onnx (fp16) on tensorrt, cuda:0" in found["default path"].what
    assert found["engine cache"].status == "ok" and "1 engines" in found["engine cache"].what  # the tiny one's is gone
    assert "tensorrt 10.3.0, fp16, compute capability 8.7" in found["cached engine"].what
    gpu.become("10.14.1", "8.7")
    [entry] = cache.cached()
    assert "tensorrt is 10.14.1 here" in entry.stale
    assert [f.mend for f in cache.check_cache([entry])] == ["glmd-doctor --prune", ""]


def test_a_gpu_that_is_gone_and_plugins_that_are_not_there(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.become("10.3.0", "")
    monkeypatch.setattr(machine, "DRIVERS", (ROOT / "README.md",))
    there = gpus.look_for_gpu()
    found = {finding.name: finding for finding in [*gpus.check_gpu(there), *engines.check_backends(there)]}
    assert found["gpu"].status == "warn" and "no CUDA device was found" in found["gpu"].what
    assert found["tensorrt"].status == "-" and "no CUDA device was found" in found["tensorrt"].what
    monkeypatch.setenv("GLMD_PLUGIN_LIBRARY", "/nothing/there.so")
    assert [finding.status for finding in engines.check_plugins(there)] == ["fail"]


def found_by(checked: list[Finding]) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.status, finding.mend) for finding in checked}


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    monkeypatch.setattr(engines, "find_plugins", lambda: None)


def test_without_a_gpu_nothing_for_one_is_proposed(nothing_installed: None) -> None:
    found = engines.check_backends(NO_GPU)
    assert found_by(found) == {
        "openvino": ("-", f"pip install '{ROOT}[openvino]'"),
        "onnxruntime": ("-", f"pip install '{ROOT}[cpu]'"),
        "tensorrt": ("-", ""),
        "tensorrt_rtx": ("-", ""),
    }
    [plugins] = engines.check_plugins(NO_GPU)
    assert plugins.mend == ""
    assert all(finding.what.endswith("needs a GPU of NVIDIA to run") for finding in [*found[2:], plugins])


def test_with_a_driver_it_is(nothing_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = gpus.Gpu("NVRM 570", "", f"it needs cuda-bindings. Run: {NO_GPU}")
    found = found_by(engines.check_backends(there))
    assert found["tensorrt"][1].startswith(f"pip install '{ROOT}[tensorrt]'")
    assert found["tensorrt_rtx"] == ("-", f"pip install '{ROOT}[rtx]'")
    assert found_by(engines.check_plugins(there)) == {"plugins": ("-", f"make -C {ROOT} plugins")}
    monkeypatch.setattr("glmd_runtime.install.FOLDER", tmp_path)  # a wheel has no Makefile
    assert found_by(engines.check_plugins(there)) == {"plugins": ("-", "")}


def test_beside_one_that_works_no_other_is_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: name == "openvino" or None)
    for status, mend in (("ok", ""), ("fail", f"pip install '{ROOT}[cpu]'")):
        monkeypatch.setattr(engines, "_backend", lambda name, gpu, status=status: Finding(name, status, "2026.4"))
        assert found_by(engines.check_backends(NO_GPU))["onnxruntime"] == ("-", mend)


def test_a_gpu_without_cuda_bindings_has_the_command_that_installs_them() -> None:
    [finding] = gpus.check_gpu(gpus.Gpu("NVRM 570", "", "it needs cuda-bindings. Run: pip install cuda-bindings"))
    assert finding == Finding("gpu", "warn", "NVRM 570, but it needs cuda-bindings.", "pip install cuda-bindings")


def test_where_no_bundle_ships_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engines, "SHIPPED", tmp_path / "none.glmd")
    answer = {"engine": "model.onnx", "precision": "fp32", "backend": "openvino", "device": "cpu"}
    monkeypatch.setattr(engines, "_detect", lambda bundle, backend: answer)
    finding = engines.check_default_path(None)
    assert finding.status == "ok" and "a built-in test model, as no detector ships" in finding.what
    assert "built-in" not in engines.check_default_path(tmp_path / "own.glmd").what


def test_the_tiny_bundle_is_the_one_that_tests_make(tmp_path: Path) -> None:
    for name, expected in (("model.onnx", tiny.model()), (models.HALF, models.half_model())):
        assert onnx.load(engines.TINY / name) == onnx.load_from_string(expected)
    assert open_bundle(engines.TINY).manifest.engines == models.doctor_bundle(tmp_path / "t.glmd").manifest.engines
    assert sum(file.stat().st_size for file in engines.TINY.iterdir()) < 10_000
