"""A bundle that was tuned: what its manifest says, and when the Detector follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glmd_runtime import Detector, backends
from glmd_runtime.bundle import Bundle, open_bundle, write_bundle
from glmd_runtime.errors import BundleError, UnsupportedError
from glmd_runtime.tuned import TunedSpec, this_machine
from glmd_runtime.verify_report import VerifyReport, VerifyRow
from tests import tiny
from tests.conftest import skip_unless
from tests.runtime.test_bundle import reseal

HERE = TunedSpec(this_machine(), "model.onnx", "onnxruntime", 1, 30.0, 20.0, 22.0, 0.3, 0.6, ("val.json",))


@pytest.fixture
def tuned(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """Writes the tiny bundle with `HERE` and some changes; two backends passed for it."""
    skip_unless({"onnxruntime", "openvino"} <= set(backends.available()), "openvino", "both CPU libraries are needed")
    given = open_bundle(tiny_bundle)

    def write(**changes: Any) -> Bundle:
        files = {name: given.path / name for name in given.manifest.sha256}
        manifest = replace(given.manifest, tuned=replace(HERE, **changes))
        return write_bundle(tmp_path / "tuned.glmd", manifest, files, overwrite=True)

    return write


def opened(bundle: Path, **options: Any) -> tuple[str, int | None]:
    """(backend, threads) that a Detector runs with."""
    with Detector(bundle, **options) as detector:
        assert len(detector.run(tiny.frames()[1])) == 2
        return detector.info()["backend"], detector.info().get("threads")


def test_what_was_tuned_is_read_again(tuned: Callable[..., Bundle], tiny_bundle: Path) -> None:
    bundle = tuned(threads=None)
    assert open_bundle(bundle.path).manifest.tuned == replace(HERE, threads=None)
    assert "tuned" not in open_bundle(tiny_bundle).manifest.to_dict()


def test_a_detector_follows_it_where_the_caller_says_nothing_else(
    tuned: Callable[..., Bundle], tiny_bundle: Path
) -> None:
    assert opened(tiny_bundle) == ("openvino", None)
    path = tuned().path
    assert opened(path) == ("onnxruntime", 1)
    assert opened(path, threads=2) == ("onnxruntime", 2)
    assert opened(path, backend="onnxruntime") == ("onnxruntime", 1)
    assert opened(path, backend="openvino") == ("openvino", None)


def test_on_another_machine_it_is_not_followed(tuned: Callable[..., Bundle]) -> None:
    assert opened(tuned(machine="Cray-1, 1 cores").path) == ("openvino", None)


def test_without_its_backend_another_one_runs(tuned: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tuned().path
    monkeypatch.setattr(backends, "available", lambda: ["openvino"])
    assert opened(path) == ("openvino", None)


def test_an_engine_that_did_not_pass_is_not_run_for_being_fast(tiny_bundle: Path, tmp_path: Path) -> None:
    failed = VerifyReport((VerifyRow("model.onnx", "onnxruntime", "fp32", "raw", "failed"),))
    bundle = tiny.bundle(tmp_path / "t.glmd", verified=failed)
    files = {name: bundle.path / name for name in bundle.manifest.sha256}
    write_bundle(tmp_path / "tuned.glmd", replace(bundle.manifest, tuned=HERE), files)
    with pytest.raises(UnsupportedError, match="no engine that passed"):
        Detector(tmp_path / "tuned.glmd")


@pytest.mark.parametrize(
    "change",
    [
        lambda tuned: tuned.update(threads=0),
        lambda tuned: tuned.update(engine="other.onnx"),
        lambda tuned: tuned.update(surprise=1),
        lambda tuned: tuned.pop("backend"),
        lambda tuned: tuned.pop("data"),
    ],
)
def test_another_form_is_refused(change: Callable[[dict[str, Any]], object], tuned: Callable[..., Bundle]) -> None:
    path = tuned().path
    reseal(path, lambda manifest: change(manifest["tuned"]))
    with pytest.raises(BundleError, match="another form"):
        open_bundle(path)
