"""TensorRT engines: built once, in a process of their own, proved, checked, kept; every failure is one clear error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from glmd_runtime import backends, engines
from glmd_runtime.backends.base import Tensors
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.bundle import Bundle, open_bundle, write_bundle
from glmd_runtime.engines import build_plan, open_engine
from glmd_runtime.errors import BundleError, GlmdError, ParityError, PrecisionError, UnsupportedError, UsageError
from glmd_runtime.plans.cache import cached_engines, engines_folder, lock, prune
from glmd_runtime.plans.plan import PlanRecord, sha256
from tests import tiny
from tests.conftest import skip_unless
from tests.fakes import models
from tests.fakes.gpu import FakeGpu

every_version = pytest.mark.parametrize("version", ["10.3.0", "10.14.1", "11.4.0"])
ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return models.half_bundle(tmp_path / "t.glmd")


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    path = tmp_path / "model.fp16.onnx"
    path.write_bytes(models.half_model())
    return path


@pytest.fixture
def rtx() -> None:
    skip_unless(find_spec("tensorrt_rtx") is not None, "tensorrt_rtx", "tensorrt_rtx is not installed")


def check_answers(bundle: Bundle, engine: str = models.HALF) -> None:
    backend = open_engine(bundle, engine, "tensorrt")
    reference = bundle.reference
    came = backend.run({"images": reference.images[:1], "valid_hw": reference.valid_hw[:1]})
    np.testing.assert_allclose(came["scores"], reference.scores[:1], atol=2e-2)
    np.testing.assert_allclose(came["boxes"], reference.boxes[:1], atol=0.1)
    np.testing.assert_array_equal(came["valid"], reference.valid[:1])
    backend.close()


def edit_record(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Cache


@every_version
def test_the_first_start_builds_the_second_does_not(version: str, bundle: Bundle, gpu: FakeGpu) -> None:
    gpu.become(version, "8.7")
    check_answers(bundle)
    check_answers(bundle)
    assert gpu.builds == 1
    [entry] = cached_engines()
    assert entry.record is not None and not entry.stale
    assert (entry.record.version, entry.record.capability, entry.record.precision) == (version, "8.7", "fp16")
    assert entry.record.onnx == bundle.manifest.sha256[models.HALF] and gpu.cache in entry.folder.parents


@pytest.mark.parametrize(("version", "devices"), [("10.14.1", "8.7"), ("11.4.0", "8.7"), ("10.3.0", "8.9")])
def test_another_version_or_gpu_builds_again(version: str, devices: str, bundle: Bundle, gpu: FakeGpu) -> None:
    check_answers(bundle)
    gpu.become(version, devices)
    check_answers(bundle)
    assert gpu.builds == 2 and len(cached_engines()) == 2  # the first serves again when the machine changes back


def test_another_model_builds_again(bundle: Bundle, gpu: FakeGpu, tmp_path: Path) -> None:
    check_answers(bundle)
    check_answers(models.half_bundle(tmp_path / "moved.glmd"))
    assert gpu.builds == 1
    other = models.half_bundle(tmp_path / "two.glmd", batch=2)
    open_engine(other, models.HALF, "tensorrt").close()
    assert gpu.builds == 2


def test_another_plugin_library_builds_again(gpu: FakeGpu, tmp_path: Path) -> None:
    bundle = models.bundle(tmp_path / "t.glmd", {models.PLUGIN: ("fp16", models.half_model(plugin=True))})
    for content in (b"glmd plugins 1", b"glmd plugins 2"):
        gpu.become("10.3.0", "8.7")
        gpu.plugins(tmp_path / "libglmd_plugins.so", content)
        check_answers(bundle, models.PLUGIN)
        check_answers(bundle, models.PLUGIN)
    assert gpu.builds == 2 and len(cached_engines()) == 2


def test_a_failed_check_is_not_cached(bundle: Bundle, gpu: FakeGpu) -> None:
    gpu.fault("wrong")
    for times in (1, 2):
        with pytest.raises(ParityError, match=r"model\.fp16\.onnx on tensorrt must give .* score_"):
            open_engine(bundle, models.HALF, "tensorrt")
        assert gpu.builds == times and cached_engines() == []
    gpu.fault("")
    check_answers(bundle)


def test_never_building(bundle: Bundle, gpu: FakeGpu) -> None:
    with pytest.raises(UnsupportedError, match=r"No TensorRT engine .* is cached .* build='auto'"):
        open_engine(bundle, models.HALF, "tensorrt", build="never")
    assert gpu.builds == 0
    check_answers(bundle)
    open_engine(bundle, models.HALF, "tensorrt", build="never").close()
    assert gpu.builds == 1
    with pytest.raises(UsageError, match="one of auto, never; got 'always'"):
        open_engine(bundle, models.HALF, "tensorrt", build="always")


def spoil_plan(folder: Path) -> None:
    (folder / "model.engine").write_bytes(b"ftrt{}")


def spoil_record(folder: Path) -> None:
    (folder / "model.engine.json").write_text("{")


def change_version(folder: Path) -> None:
    edit_record(folder / "model.engine.json", version="10.0.0")


def change_gpu(folder: Path) -> None:
    edit_record(folder / "model.engine.json", capability="7.5")


@pytest.mark.parametrize("spoil", [spoil_plan, spoil_record, change_version, change_gpu])
def test_a_spoilt_entry_is_built_again(spoil: Callable[[Path], None], bundle: Bundle, gpu: FakeGpu) -> None:
    check_answers(bundle)
    [entry] = cached_engines()
    spoil(entry.folder)
    with pytest.raises(GlmdError, match="Build it again"):
        open_engine(bundle, models.HALF, "tensorrt", build="never")
    check_answers(bundle)
    check_answers(bundle)
    assert gpu.builds == 2 and [e.stale for e in cached_engines()] == [""]


def test_two_processes_build_one_engine(bundle: Bundle, gpu: FakeGpu) -> None:
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from glmd_runtime.bundle import open_bundle
from glmd_runtime.engines import open_engine
open_engine(open_bundle({str(bundle.path)!r}), {models.HALF!r}, "tensorrt").close()
"""
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(p.communicate(timeout=120)[1].count(b"Building"), p.returncode) for p in both] in (
        [(1, 0), (0, 0)],
        [(0, 0), (1, 0)],
    )
    assert gpu.builds == 1


def test_prune_removes_what_is_of_no_use(bundle: Bundle, gpu: FakeGpu) -> None:
    check_answers(bundle)
    gpu.become("10.14.1", "8.7")
    check_answers(bundle)
    (engines_folder() / ".tiny-0123456789abcdef.x").mkdir()  # what a killed build leaves
    stale = {entry.folder.name: entry.stale for entry in cached_engines() if entry.stale}
    assert sorted(stale.values()) == ["an unfinished build", "tensorrt is 10.14.1 here"]
    [held] = [entry.folder for entry in cached_engines() if "10.14.1 here" in entry.stale]
    with lock(held):
        assert [entry.stale for entry in prune()] == ["an unfinished build"]
    assert [entry.folder for entry in prune()] == [held] and prune() == []
    assert [entry.stale for entry in cached_engines()] == [""] and not held.with_name(f"{held.name}.log").exists()
    check_answers(bundle)
    assert gpu.builds == 2


def test_no_device(bundle: Bundle, gpu: FakeGpu) -> None:
    gpu.become("11.4.0", "")
    with pytest.raises(UnsupportedError, match=r"no CUDA device .* NVIDIA GPU and its driver"):
        open_engine(bundle, models.HALF, "tensorrt")
    with pytest.raises(UnsupportedError, match="no CUDA device"):
        build_plan(bundle.path / models.HALF, gpu.cache / "x", library="tensorrt", precision="fp16")


def test_the_cpu_is_no_place_for_tensorrt(bundle: Bundle, gpu: FakeGpu) -> None:
    with pytest.raises(UnsupportedError, match="CUDA devices only"):
        open_engine(bundle, models.HALF, "tensorrt", device="cpu")
    with pytest.raises(UsageError, match="cpu, cuda or cuda:N; got 'gpu'"):
        open_engine(bundle, models.HALF, "tensorrt", device="gpu")
    with pytest.raises(GlmdError, match="cuda:7 cannot be used"):
        open_engine(bundle, models.HALF, "tensorrt", device="cuda:7")


def test_the_second_device(bundle: Bundle, gpu: FakeGpu) -> None:
    gpu.become("10.3.0", "8.7 8.9")
    open_engine(bundle, models.HALF, "tensorrt", device="cuda:1").close()
    assert [entry.record and entry.record.capability for entry in cached_engines()] == ["8.9"]


def test_a_missing_plugin_library(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = models.bundle(tmp_path / "t.glmd", {models.PLUGIN: ("fp16", models.half_model(plugin=True))})
    with pytest.raises(UnsupportedError, match=r"needs this project's plugin library.*GLMD_PLUGIN_LIBRARY"):
        open_engine(bundle, models.PLUGIN, "tensorrt")
    monkeypatch.setenv("GLMD_PLUGIN_LIBRARY", "/nothing.so")
    with pytest.raises(UnsupportedError, match=r"/nothing\.so is no file"):
        open_engine(bundle, models.PLUGIN, "tensorrt")
    gpu.plugins(tmp_path / "libglmd_plugins.so", b"for another machine")
    with pytest.raises(UnsupportedError, match=r"cannot be loaded: .*invalid ELF header"):
        open_engine(bundle, models.PLUGIN, "tensorrt")
    assert gpu.builds == 0


def test_an_engine_without_a_tolerance_cannot_be_checked(gpu: FakeGpu, tmp_path: Path) -> None:
    bundle = models.half_bundle(tmp_path / "t.glmd")
    manifest = replace(bundle.manifest, engines={**bundle.manifest.engines, models.HALF: "fp32"})
    files = {name: bundle.path / name for name in bundle.manifest.sha256 if name != "reference.npz"}
    lacking = write_bundle(tmp_path / "lacking.glmd", manifest, files)
    with pytest.raises(BundleError, match=r"no reference\.npz"):
        open_engine(lacking, models.HALF, "tensorrt")
    assert cached_engines() == []


# Building, on the fake


@every_version
def test_a_build_says_what_it_did(version: str, onnx: Path, gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.become(version, "8.7")
    said: list[str] = []
    timings = tmp_path / "timings"
    record = build_plan(
        onnx, tmp_path / "out.engine", library="tensorrt", precision="fp16", timing_cache=timings, progress=said.append
    )
    assert PlanRecord.read(tmp_path / "out.engine") == record
    assert record.sha256 == sha256(tmp_path / "out.engine") and (record.version, record.capability) == (version, "8.7")
    assert said == ["reading the model", "Building Engine, 1 of 2", "Building Engine, 2 of 2"]
    assert timings.read_bytes() == f"timings {version}".encode() and (tmp_path / "out.engine.log").exists()
    build_plan(onnx, tmp_path / "out.engine", library="tensorrt", precision="fp16", timing_cache=timings)


def test_a_timing_cache_of_another_version_is_begun_anew(onnx: Path, gpu: FakeGpu, tmp_path: Path) -> None:
    timings = tmp_path / "timings"
    timings.write_bytes(b"of another machine")
    build_plan(onnx, tmp_path / "out.engine", library="tensorrt", precision="fp16", timing_cache=timings)
    assert timings.read_bytes() == b"timings 10.3.0"


@pytest.mark.parametrize(
    ("fault", "options", "error", "message"),
    [
        ("crash", {}, UnsupportedError, "crashed with SIGSEGV"),
        ("hang", {"timeout": 3.0}, UnsupportedError, "more than 3 s"),
        ("memory", {"host_memory": 700 << 20}, UnsupportedError, "more than 700 MiB of host memory"),
        ("refuse", {}, UnsupportedError, "cannot build .*: could not find any implementation for node conv1"),
        ("fp32", {}, PrecisionError, "fp16 was asked for, .* compute in Float"),
    ],
)
def test_a_failed_build_is_one_error_and_leaves_its_log(
    fault: str,
    options: dict[str, float],
    error: type[GlmdError],
    message: str,
    onnx: Path,
    gpu: FakeGpu,
    tmp_path: Path,
) -> None:
    gpu.fault(fault)
    out = tmp_path / "built"
    out.mkdir()
    with pytest.raises(error, match=rf"{message}.*log is {out / 'm.engine.log'}"):
        build_plan(onnx, out / "m.engine", library="tensorrt", precision="fp16", **options)  # type: ignore[arg-type]
    assert [path.name for path in out.iterdir()] == ["m.engine.log"]


def test_a_builder_that_the_system_kills_says_what_to_do(
    onnx: Path, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.fault("hang")
    monkeypatch.setattr(engines, "_watch", lambda process, *_: process.kill() or (process.wait() and ""))
    with pytest.raises(UnsupportedError, match="killed, as when memory runs out; end other programs"):
        build_plan(onnx, tmp_path / "m.engine", library="tensorrt", precision="fp16")


def test_a_builder_ends_with_whoever_waits_for_it(onnx: Path, gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.fault("hang")
    request = {"onnx": str(onnx), "plan": str(tmp_path / "m.engine"), "library": "tensorrt", "precision": "fp16"}
    request |= {"plugin": "", "workspace": 1 << 30, "timing_cache": "", "device": 0}
    command = [sys.executable, "-m", "glmd_runtime.plans.builder", json.dumps(request)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert done.returncode == 1 and not list(tmp_path.glob("m.engine"))


def test_a_builder_that_cannot_start(onnx: Path, gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.become("version ten", "8.7")
    with pytest.raises(UnsupportedError, match=r"exit code 1; it said last: ValueError: .*'version ten'"):
        build_plan(onnx, tmp_path / "m.engine", library="tensorrt", precision="fp16")


# Building, with TensorRT-RTX, which needs no GPU


@pytest.mark.parametrize(
    ("model", "precision"), [(models.half_model, "fp16"), (models.int8_model, "int8"), (models.half_model, "fp32")]
)
def test_rtx_builds_without_a_gpu(
    model: Callable[[], bytes], precision: str, rtx: None, onnx: Path, tmp_path: Path
) -> None:
    onnx.write_bytes(model())
    record = build_plan(onnx, tmp_path / "rtx.engine", library="tensorrt_rtx", precision=precision)
    assert (record.library, record.precision, record.capability) == ("tensorrt_rtx", precision, "")
    assert record.sha256 == sha256(tmp_path / "rtx.engine")
    log = (tmp_path / "rtx.engine.log").read_text()
    assert {"fp16": "Half", "int8": "Int8", "fp32": "Float"}[precision] in log


@pytest.mark.parametrize(
    ("content", "precision", "error", "message"),
    [
        (tiny.model(), "fp16", PrecisionError, "of 0 convolutions .* none .* export with --fp16"),
        (models.half_model(), "int8", PrecisionError, "of 1 convolutions .* export with --int8"),
        (b"no model", "fp16", BundleError, "is no ONNX model, or is damaged"),
        (b"", "fp16", BundleError, "it has no outputs"),
        (models.half_model(plugin=True), "fp16", UnsupportedError, "GlmdRoiAlign 'roi'"),
    ],
)
def test_rtx_refuses(
    content: bytes, precision: str, error: type[GlmdError], message: str, rtx: None, onnx: Path, tmp_path: Path
) -> None:
    onnx.write_bytes(content)
    out = tmp_path / "built"
    out.mkdir()
    with pytest.raises(error, match=f"(?s){message}.*m.engine.log"):
        build_plan(onnx, out / "m.engine", library="tensorrt_rtx", precision=precision)
    assert [path.name for path in out.iterdir()] == ["m.engine.log"]


def test_what_lies_in_the_folder_of_the_caller_is_not_imported(
    onnx: Path, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python looks first in the folder that a module is started in: one of somebody else's pictures, perhaps."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "tensorrt.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    monkeypatch.chdir(tmp_path / "pictures")
    build_plan(Path("..", onnx.name), Path("m.engine"), library="tensorrt", precision="fp16")
    assert Path("m.engine").exists() and not (tmp_path / "touched").exists()


def test_the_model_that_is_built_is_the_bundle_s(bundle: Bundle, gpu: FakeGpu) -> None:
    (bundle.path / models.HALF).write_bytes(models.half_model(plugin=True))  # since it was opened
    with pytest.raises(BundleError, match=r"fp16\.onnx was altered: expected SHA-256"):
        open_engine(bundle, models.HALF, "tensorrt")
    assert gpu.builds == 0


places = pytest.mark.parametrize("place", [".", "engines"])


def test_the_cache_is_made_for_its_user_alone(gpu: FakeGpu) -> None:
    before = os.umask(0)
    try:
        made = engines_folder()
    finally:
        os.umask(before)
    assert made.parent == gpu.cache
    assert [folder.stat().st_mode & 0o777 for folder in (gpu.cache, made)] == [0o700, 0o700]


@places
@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_cache_that_others_can_write_to(place: str, mode: int, gpu: FakeGpu) -> None:
    """What they have put there would stay if their right were taken away."""
    engines_folder()
    (gpu.cache / place).chmod(mode)
    with pytest.raises(UnsupportedError, match=r"can be written to by others\. Remove it.*XDG_CACHE_HOME"):
        engines_folder()


@places
def test_a_cache_of_another_user(place: str, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    engines_folder()
    theirs, lstat = gpu.cache / place, Path.lstat

    def of_another(path: Path) -> os.stat_result:
        mode, ino, dev, links, uid, *rest = lstat(path)
        return os.stat_result((mode, ino, dev, links, uid + (path == theirs), *rest))

    monkeypatch.setattr(Path, "lstat", of_another)
    with pytest.raises(UnsupportedError, match=rf"{theirs} belongs to the user {os.geteuid() + 1}, not to"):
        engines_folder()


@places
def test_a_cache_that_is_a_link(place: str, gpu: FakeGpu) -> None:
    engines_folder()
    moved = (gpu.cache / place).rename(gpu.cache.parent / "moved")
    (gpu.cache / place).symlink_to(moved)
    with pytest.raises(UnsupportedError, match="is a link or a file"):
        engines_folder()


def test_a_record_names_no_other_library(bundle: Bundle, gpu: FakeGpu) -> None:
    check_answers(bundle)
    [entry] = cached_engines()
    edit_record(entry.folder / "model.engine.json", library="antigravity")
    assert [one.stale for one in cached_engines()] == ["its record cannot be read"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", []), ("sha256", 5), ("capability", None), ("precision", {}), ("plugin", "a\n"), ("seconds", "1")],
)
def test_a_record_of_another_form(key: str, value: object, bundle: Bundle, gpu: FakeGpu) -> None:
    check_answers(bundle)
    [entry] = cached_engines()
    edit_record(entry.folder / "model.engine.json", **{key: value})
    assert [one.stale for one in cached_engines()] == ["its record cannot be read"]
    with pytest.raises(BundleError, match=r"runs only with its record .*; got ValueError.*Build it again"):
        PlanRecord.read(entry.folder / "model.engine")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_engine_whose_check_ends_in_any_way_is_closed(
    error: type[BaseException], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine(FakeBackend):
        closed = 0

        def run(self, inputs: Tensors) -> Tensors:
            raise error

        def close(self) -> None:
            self.closed += 1

    engine = Engine(bundle.manifest.graph, [[]])
    monkeypatch.setattr(backends, "require", lambda name: None)
    monkeypatch.setattr(backends, "load", lambda *_: engine)
    with pytest.raises(error):
        open_engine(bundle, models.HALF, "tensorrt_rtx")
    assert engine.closed == 1


def test_an_absent_library(onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"tensorrt_rtx is not installed\. Run: pip install '/.*\[rtx\]'"):
        build_plan(onnx, tmp_path / "m.engine", library="tensorrt_rtx", precision="fp16")


def test_other_backends_open_the_file_in_the_bundle(bundle: Bundle) -> None:
    skip_unless(find_spec("onnxruntime") is not None, "onnxruntime", "onnxruntime is not installed")
    backend = open_engine(open_bundle(bundle.path), "model.onnx", "onnxruntime", threads=1)
    reference = bundle.reference
    came = backend.run({"images": reference.images[:1], "valid_hw": reference.valid_hw[:1]})
    np.testing.assert_allclose(came["scores"], reference.scores[:1], atol=1e-5)
