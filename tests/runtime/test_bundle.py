"""A bundle is whole, or it is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmd_export import cli as export_cli
from glmd_runtime.bundle import MANIFEST, SEAL, Reference, check_target, open_bundle, write_bundle
from glmd_runtime.errors import BundleError, UsageError
from tests import tiny


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as somebody would who knows how to seal it again."""
    values = json.loads((path / MANIFEST).read_text())
    change(values)
    text = json.dumps(values)
    (path / MANIFEST).write_text(text)
    (path / SEAL).write_text(hashlib.sha256(text.encode()).hexdigest())


def test_what_was_written_is_read(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    written = tiny.manifest()
    assert dataclasses.replace(bundle.manifest, sha256={}) == written
    assert (bundle.manifest.graph.batch, bundle.manifest.graph.proposals) == (1, 4)
    assert bundle.verify == tiny.report().to_dict()


def test_reference_survives(tiny_bundle: Path) -> None:
    came, written = open_bundle(tiny_bundle).reference, tiny.reference()
    assert len(came) == 4
    for name in ("images", "valid_hw", "boxes", "scores", "valid"):
        np.testing.assert_array_equal(getattr(came, name), getattr(written, name))
    for a, b in zip(came.frames, written.frames, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_writing_twice_gives_the_same_bytes() -> None:
    assert tiny.reference().to_bytes() == tiny.reference().to_bytes()


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "verify.json"])
def test_a_missing_file(own_bundle: Path, name: str) -> None:
    (own_bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"missing \['{name}'\].*again"):
        open_bundle(own_bundle)


@pytest.mark.parametrize("name", [MANIFEST, SEAL])
def test_a_missing_manifest(own_bundle: Path, name: str) -> None:
    (own_bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(own_bundle)


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "verify.json", MANIFEST])
def test_an_altered_file(own_bundle: Path, name: str) -> None:
    content = bytearray((own_bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (own_bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was altered: expected SHA-256"):
        open_bundle(own_bundle)


def test_a_file_too_many(own_bundle: Path) -> None:
    (own_bundle / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"sealed.*found \['notes.txt'\]"):
        open_bundle(own_bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=2), "schema_version 1; got 2"),
        (lambda m: m.pop("schema_version"), "schema_version 1; got None"),
        (lambda m: m.update(surprise=1), r"unknown \['surprise'\]"),
        (lambda m: m.pop("engines"), r"missing \['engines'\]"),
        (lambda m: m["preprocess"].pop("mean"), "another form: KeyError"),
        (lambda m: m["graph"].update(inputs=3), "another form"),
        (lambda m: m["sha256"].update({"../model.onnx": "0"}), "plain file names"),
        (lambda m: m["engines"].update({"other.onnx": "fp32"}), "engines too"),
    ],
)
def test_a_manifest_of_another_form(own_bundle: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    reseal(own_bundle, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(own_bundle)


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (("name",), 5, "expected a text; got 5"),
        (("class_names",), "ab", "expected a list; got 'ab'"),
        (("class_names",), ["person", {}], "expected a text"),
        (("class_names",), ["person"], "the graph must have"),
        (("engines",), {}, "names no engine"),
        (("engines", "model.onnx"), ["fp32"], "expected a text"),
        (("preprocess", "size_hw"), [64, 2**31], "whole number in 1..8192; got 2147483648"),
        (("preprocess", "size_hw"), [64, 64.5], "whole number"),
        (("preprocess", "size_hw"), [64, 81], "the graph must have"),
        (("preprocess", "mean"), [float("nan")], "finite number"),
        (("preprocess", "mean"), [10**400], "finite number"),
        (("preprocess", "std"), [1e-30], "finite number"),
        (("preprocess", "intensity", "low"), True, "finite number"),
        (("preprocess", "intensity", "mode"), ["linear"], "expected a text"),
        (("postprocess", "nms_iou"), {}, "finite number in 0..1"),
        (("postprocess", "score_thresholds"), [0.1], "2 classes need as many score thresholds; got .1."),
        (("postprocess", "max_detections"), -1, "whole number in 1"),
        (("graph", "outputs", "valid"), [1, -1], "whole number in 1"),
        (("graph", "outputs", "valid"), "14", "expected a list"),
        (("graph", "outputs", "boxes"), [1, 4, 2, 5], "the graph must have"),
        (("graph", "outputs", "scores"), [3, 4, 2], "the graph must have"),
        (("graph", "outputs", "features"), [1, 4], "the graph must have"),
        (("graph", "outputs", "features"), [1, 4, 2**30], "at most 268435456 numbers"),
        (("graph", "outputs", "masks"), [1], "the graph must have"),
        (("graph", "inputs", "images"), [], "not enough values"),
    ],
)
def test_a_value_that_nothing_behind_it_expects(own_bundle: Path, keys: tuple[str, ...], value: Any, says: str) -> None:
    """All of them were found by fuzzing, as errors of whatever used the value."""

    def change(values: dict[str, Any]) -> None:
        *above, last = keys
        for key in above:
            values = values[key]
        values[last] = value

    reseal(own_bundle, change)
    with pytest.raises(BundleError, match=f"manifest.json has a value of another form: .*{says}"):
        open_bundle(own_bundle)


@pytest.mark.parametrize("digest", [5, None, [], "", "0"])
def test_a_hash_that_is_none(own_bundle: Path, digest: Any) -> None:
    reseal(own_bundle, lambda m: m["sha256"].update({"verify.json": digest}))
    with pytest.raises(BundleError):
        open_bundle(own_bundle)


def test_not_json(own_bundle: Path) -> None:
    (own_bundle / MANIFEST).write_text("{")
    (own_bundle / SEAL).write_text(hashlib.sha256(b"{").hexdigest())
    with pytest.raises(BundleError, match="is not JSON"):
        open_bundle(own_bundle)


@pytest.mark.parametrize("values", [[], "bundle", 1, None])
def test_no_json_object(own_bundle: Path, values: Any) -> None:
    text = json.dumps(values)
    (own_bundle / MANIFEST).write_text(text)
    (own_bundle / SEAL).write_text(hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(BundleError, match=f"must hold a JSON object; got {type(values).__name__}.*again"):
        open_bundle(own_bundle)


def test_a_binary_seal(own_bundle: Path) -> None:
    (own_bundle / SEAL).write_bytes(bytes(range(128, 256)))
    with pytest.raises(BundleError, match=f"{MANIFEST} was altered"):
        open_bundle(own_bundle)


def test_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file.glmd").write_text("")
    for path, message in [("nothing.glmd", "is nothing"), ("file.glmd", "is a file"), (".", f"must hold {MANIFEST}")]:
        with pytest.raises(BundleError, match=message):
            open_bundle(tmp_path / path)


def test_an_existing_path_is_kept_unless_told_otherwise(own_bundle: Path) -> None:
    before = (own_bundle / MANIFEST).read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        tiny.bundle(own_bundle, batch=2)
    assert (own_bundle / MANIFEST).read_bytes() == before
    assert tiny.bundle(own_bundle, batch=2, overwrite=True).manifest.graph.batch == 2
    assert [p.name for p in own_bundle.parent.iterdir()] == [own_bundle.name]


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="is no bundle"):
        tiny.bundle(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_target_can_be_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_target(tmp_path / "not" / "yet" / "new.glmd")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleError, match="is no bundle"):
        check_target(tmp_path, overwrite=True)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError, match="notes is a file"):
        check_target(tmp_path / "notes" / "new.glmd")
    monkeypatch.setattr("os.access", lambda *_: False)  # for root, every folder is writable
    with pytest.raises(UsageError, match="cannot be written to"):
        check_target(tmp_path / "new.glmd")


def test_the_exporter_checks_its_target_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos.glmd").mkdir()
    output = str(tmp_path / "photos.glmd")
    assert export_cli.main(["--ckpt", "absent.safetensors", "-o", output, "--overwrite"]) == 1
    assert "is no bundle" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new.glmd"
    with pytest.raises(BundleError, match="must be among the files"):
        write_bundle(path, tiny.manifest(), {})
    with pytest.raises(FileNotFoundError):
        write_bundle(path, tiny.manifest(), {"model.onnx": tmp_path / "absent.onnx"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_writers_that_race_for_one_path(tmp_path: Path, overwrite: bool) -> None:
    """Somebody wins, whoever loses is told so, and what stays is whole."""
    def write(_: int) -> str:
        try:
            tiny.bundle(tmp_path / "tiny.glmd", overwrite=overwrite)
        except UsageError as error:
            return str(error)
        return "written"

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(write, range(24)))
    assert said.count("written") == 1 if not overwrite else "written" in said
    assert all("exists already" in one for one in said if one != "written")
    open_bundle(tmp_path / "tiny.glmd")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.glmd"]


def test_reference_may_be_absent_until_it_is_asked_for(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "new.glmd", tiny.manifest(), {"model.onnx": tiny.model()})
    assert bundle.verify["rows"] == []
    with pytest.raises(BundleError, match=r"no reference\.npz"):
        _ = bundle.reference


def test_a_pickle_in_the_reference_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        Reference.load(tmp_path / "evil.npz")
