"""A bundle is whole, or it is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest

from glmd_export import cli as export_cli
from glmd_runtime import Detector
from glmd_runtime.bundle import SEAL, Bundle, check_target, open_bundle, write_bundle
from glmd_runtime.engines import open_engine
from glmd_runtime.errors import BundleError, UsageError
from glmd_runtime.manifest import MANIFEST
from glmd_runtime.verify import verify_bundle
from tests import tiny


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as somebody would who knows how to seal it again."""
    values = json.loads((path / MANIFEST).read_text())
    change(values)
    text = json.dumps(values)
    seal(path, text.encode())


def seal(path: Path, manifest: bytes) -> None:
    (path / MANIFEST).write_bytes(manifest)
    (path / SEAL).write_text(hashlib.sha256(manifest).hexdigest() + "\n")


def as_version_1(path: Path) -> Path:
    """The same bundle as the first schema had it: without sizes, and without what it needs."""
    def change(values: dict[str, Any]) -> None:
        values["schema_version"] = 1
        del values["needs"], values["sizes"]

    reseal(path, change)
    return path


def test_what_was_written_is_read(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    written = tiny.manifest()
    assert dataclasses.replace(bundle.manifest, sha256={}, sizes={}) == written
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
        (lambda m: m.update(schema_version=3, needs="0.7.1"), r"1 to 2; got 3\..*Install glmdnet-sdk 0\.7\.1 or newer"),
        (lambda m: m.update(schema_version=3, needs="7\033[2J"), "Install the version of glmdnet-sdk that wrote the"),
        (lambda m: m.update(schema_version=True), "schema_version 1 to 2; got True"),
        (lambda m: m.update(schema_version=0), "schema_version 1 to 2; got 0"),
        (lambda m: m.pop("schema_version"), "schema_version 1 to 2; got None"),
        (lambda m: m.pop("sizes"), r"missing \['sizes'\]"),
        (lambda m: m["sizes"].pop("model.onnx"), r"hash and size of the same files; \['model.onnx'\]"),
        (lambda m: m["sizes"].update({"model.onnx": 1}), r"model\.onnx was altered: expected 1 bytes"),
        (lambda m: m["sizes"].update({"model.onnx": 1 << 40}), "number of bytes, at most"),
        (lambda m: m["sizes"].update({"model.onnx": True}), "number of bytes, at most"),
        (lambda m: m["sha256"].update({"model.onnx": "0"}), "64 digits"),
        (lambda m: m.update(surprise=1), r"unknown \['surprise'\]"),
        (lambda m: m.pop("engines"), r"missing \['engines'\]"),
        (lambda m: m["preprocess"].pop("mean"), "another form: KeyError"),
        (lambda m: m["graph"].update(inputs=3), "another form"),
        (lambda m: m["sha256"].update({"../model.onnx": "0" * 64}), "plain file names"),
        (lambda m: m["sha256"].update({"..": "0" * 64}), "plain file names"),
        (lambda m: m["sha256"].update({"": "0" * 64}), "plain file names"),
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
        (("name",), 5, "expected a text without control characters; got 5"),
        (("class_names",), "ab", "expected a list; got 'ab'"),
        (("class_names",), ["person", {}], "expected a text"),
        (("class_names",), ["person"], "the graph must have"),
        (("class_names",), ["person", "\x1b]0;mine\x07"], "expected a text"),
        (("class_names",), ["person", "two\nlines"], "expected a text"),
        (("name",), "\x1b[31mtiny", "expected a text"),
        (("name",), "tiny\u2028", "expected a text"),
        (("engines",), {}, "names no engine"),
        (("engines", "model.onnx"), ["fp32"], "expected a text"),
        (("preprocess", "size_hw"), [64, 2**31], "whole number in 1..8192; got 2147483648"),
        (("preprocess", "size_hw"), [64, 64.5], "whole number"),
        (("preprocess", "size_hw"), [64, 81], "the graph must have"),
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


@pytest.mark.parametrize("change", [{"class_names": ["a\ud800", "car"]}, {"provenance": {"\udc00": 1}}])
def test_half_a_character(own_bundle: Path, change: dict[str, Any]) -> None:
    """OpenCV dies of it, and no terminal can show it."""
    reseal(own_bundle, lambda values: values.update(change))
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON: .*surrogates not allowed"):
        open_bundle(own_bundle)


def test_names_in_any_script(own_bundle: Path) -> None:
    names = ["Fußgänger", "車 \U0001f697"]
    reseal(own_bundle, lambda values: values.update(class_names=names))
    assert open_bundle(own_bundle).manifest.class_names == tuple(names)


@pytest.mark.parametrize("digest", [5, None, [], "", "0"])
def test_a_hash_that_is_none(own_bundle: Path, digest: Any) -> None:
    reseal(own_bundle, lambda m: m["sha256"].update({"verify.json": digest}))
    with pytest.raises(BundleError):
        open_bundle(own_bundle)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a": NaN}', "\xff"])
def test_not_json(own_bundle: Path, text: str) -> None:
    seal(own_bundle, text.encode("latin1"))
    with pytest.raises(BundleError, match="is not JSON"):
        open_bundle(own_bundle)


@pytest.mark.parametrize("values", [[], "bundle", 1, None])
def test_no_json_object(own_bundle: Path, values: Any) -> None:
    seal(own_bundle, json.dumps(values).encode())
    with pytest.raises(BundleError, match=f"must hold a JSON object; got {type(values).__name__}.*again"):
        open_bundle(own_bundle)


def test_another_seal(own_bundle: Path) -> None:
    whole = (own_bundle / SEAL).read_bytes()
    for content, message in [
        (bytes(range(128, 128 + len(whole))), f"{MANIFEST} was altered"),
        (whole[:-1] + b"\v", f"{MANIFEST} was altered"),  # white space too
        (whole[:-1], f"{SEAL} was altered: expected 65 bytes, got 64"),
        (whole + b"\n", f"{SEAL} was altered: expected 65 bytes, got 66"),
    ]:
        (own_bundle / SEAL).write_bytes(content)
        with pytest.raises(BundleError, match=message):
            open_bundle(own_bundle)


def test_a_manifest_without_end(own_bundle: Path) -> None:
    with (own_bundle / MANIFEST).open("ab") as file:
        file.truncate(1 << 40)  # takes no room on the disk, and would take all of memory
    with pytest.raises(BundleError, match=r"manifest\.json has 1099511627776 bytes"):
        open_bundle(own_bundle)


def link_to_itself(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["model.onnx", MANIFEST, SEAL, "extra"])
@pytest.mark.parametrize("become", [link_to_itself, dangling, pipe, folder])
def test_what_is_no_plain_file(name: str, become: Callable[[Path], None], own_bundle: Path) -> None:
    (own_bundle / name).touch()
    become(own_bundle / name)
    with pytest.raises(BundleError, match=rf"plain files, no links, no folders; got \['{name}'\].*cp -rL"):
        open_bundle(own_bundle)


@pytest.mark.parametrize(
    ("become", "said"),
    [(link_to_itself, "cannot be read: "), (Path.unlink, "cannot be read: "), (pipe, "must be a plain file")],
)
def test_what_takes_a_file_s_name_later_is_not_read(
    become: Callable[[Path], None], said: str, own_bundle: Path
) -> None:
    bundle = open_bundle(own_bundle)
    become(own_bundle / "model.onnx")
    with pytest.raises(BundleError, match=rf"model\.onnx {said}.*\. Export or copy the bundle again\.$"):
        bundle.read("model.onnx")


def test_the_bundle_itself_may_be_a_link(own_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current.glmd").symlink_to(own_bundle)
    assert open_bundle(tmp_path / "current.glmd").read("model.onnx") == tiny.model()


def test_version_1_is_read_and_written_anew(own_bundle: Path, tmp_path: Path) -> None:
    whole = open_bundle(own_bundle).manifest
    old = open_bundle(as_version_1(own_bundle))
    assert old.manifest == whole
    written = write_bundle(own_bundle, old.manifest, old.files, overwrite=True)
    assert written.manifest == whole and json.loads((own_bundle / MANIFEST).read_text())["schema_version"] == 2


def test_version_1_is_checked_as_version_2(own_bundle: Path) -> None:
    as_version_1(own_bundle)
    content = (own_bundle / "model.onnx").read_bytes()
    for altered in (content[:-1], content + b"\0", content[:-1] + b"\1"):
        (own_bundle / "model.onnx").write_bytes(altered)
        with pytest.raises(BundleError, match=r"model\.onnx was altered"):
            open_bundle(own_bundle)
    (own_bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"missing \['model.onnx'\]"):
        open_bundle(own_bundle)


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "verify.json"])
def test_what_is_replaced_after_opening_is_not_used(name: str, own_bundle: Path) -> None:
    bundle = open_bundle(own_bundle)
    content = bytearray((own_bundle / name).read_bytes())
    content[-1] ^= 1
    (own_bundle / name).write_bytes(content)
    uses: dict[str, Callable[[], object]] = {
        "model.onnx": lambda: open_engine(bundle, name, "onnxruntime"),
        "reference.npz": lambda: bundle.reference,
        "verify.json": lambda: bundle.verify,
    }
    with pytest.raises(BundleError, match=f"{name} was altered"):
        uses[name]()
    with pytest.raises(BundleError, match="has no passwd"):
        bundle.read("../../etc/passwd")


def test_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file.glmd").write_text("")
    (tmp_path / "own.pth").write_text("")
    for path, message in [
        ("nothing.glmd", "is nothing"), ("lost.pth", "is nothing"), ("file.glmd", "is a file in no bundle"),
        ("own.pth", r"is a checkpoint\. Make a bundle of it: glmd-export --ckpt .*own\.pth"),
        (".", f"must hold {MANIFEST}"),
    ]:
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
    with pytest.raises(UsageError, match="notes is no folder"):
        check_target(tmp_path / "notes" / "new.glmd")
    monkeypatch.setattr("os.access", lambda *_: False)  # for root, every folder is writable
    with pytest.raises(UsageError, match="cannot be written to"):
        check_target(tmp_path / "new.glmd")


def test_the_exporter_checks_its_target_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos.glmd").mkdir()
    (tmp_path / "damaged.safetensors").touch()
    given = ["--ckpt", str(tmp_path / "damaged.safetensors"), "-o", str(tmp_path / "photos.glmd"), "--overwrite"]
    assert export_cli.main(given) == 1
    assert "is no bundle" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new.glmd"
    with pytest.raises(BundleError, match="must be among the files"):
        write_bundle(path, tiny.manifest(), {})
    with pytest.raises(FileNotFoundError):
        write_bundle(path, tiny.manifest(), {"model.onnx": tmp_path / "absent.onnx"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot exchange two names")
def test_while_a_bundle_is_replaced_there_is_always_one(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be killed between any two steps."""
    rename, seen = Path.rename, []

    def renamed(self: Path, target: Path) -> Path:
        try:
            return rename(self, target)
        finally:
            seen.append(open_bundle(own_bundle))

    monkeypatch.setattr(Path, "rename", renamed)
    tiny.bundle(own_bundle, batch=2, overwrite=True)
    assert seen and open_bundle(own_bundle).manifest.graph.batch == 2


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_manifest_with_what_is_no_number(number: str, own_bundle: Path) -> None:
    """Nothing would ever be detected: no score is above NaN."""
    text = (own_bundle / MANIFEST).read_text().replace("0.2,", f"{number},", 1)
    assert number in text
    seal(own_bundle, text.encode())
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(own_bundle)


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


def sealed(path: Path, **files: bytes) -> Bundle:
    """A bundle that somebody made as a trap: its hashes hold."""
    content = {"model.onnx": tiny.model(), "reference.npz": tiny.reference().to_bytes(), "verify.json": b"{}"}
    return write_bundle(path, tiny.manifest(), {**content, **{name.replace("_", "."): v for name, v in files.items()}})


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


HUGE = npy(np.zeros(1)).replace(b"(1,)", b"(%d,)" % 10**12).replace(b" " * 13, b" ", 1)
TRAPS = {
    "objects": (npz(images=npy(np.array([{"a": 1}], dtype=object))), "holds Python objects"),
    "more than there is": (npz(images=HUGE), "array of 8000000000000 bytes, of which there are 8"),
    "a bomb": (npz(**{f"a{i}": bytes(64 << 20) for i in range(17)}), "of at most 1073741824"),
    "no archive": (b"PK", "no archive of arrays"),
    "no arrays": (npz(), "'images'"),
    "other arrays": (npz(images=npy(np.zeros(0))), "missing 4 required"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_reference_that_is_a_trap(trap: str, tmp_path: Path) -> None:
    content, message = TRAPS[trap]
    bundle = sealed(tmp_path / "t.glmd", reference_npz=content)
    with pytest.raises(BundleError, match=rf"reference\.npz holds no reference: .*{message}"):
        _ = bundle.reference


ARRAYS = {name: getattr(tiny.reference(), name) for name in ("images", "valid_hw", "boxes", "scores", "valid")}
ODD_REFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "images of another rank": ({"images": np.zeros(4, "f4")}, "were expected"),
    "images that are one number": ({"images": np.float32(1)}, "unsized"),
    "images of another size": ({"images": np.zeros((4, 1, 64, 81), "f4")}, "were expected"),
    "no images": ({name: array[:0] for name, array in ARRAYS.items()}, "a frame or more .* got 0"),
    "fewer sizes than images": ({"valid_hw": ARRAYS["valid_hw"][:1]}, "were expected"),
    "fewer answers than images": ({"scores": ARRAYS["scores"][:3]}, "were expected"),
    "one class more": ({"scores": np.zeros((4, 4, 3), "f4")}, "were expected"),
    "doubles": ({"boxes": ARRAYS["boxes"].astype("f8")}, "were expected"),
    "another byte order": ({"boxes": ARRAYS["boxes"].astype(">f4")}, "were expected"),
    "texts": ({"boxes": np.array(["x"] * 4)}, "were expected"),
    "dates": ({"scores": np.array(["2020"] * 4, "M8[s]")}, "were expected"),
    "features, which the graph does not give": ({"features": np.zeros((4, 4, 6), "f4")}, "were expected"),
    "a frame of floats": ({"frame1": np.zeros((4, 4), "f4")}, "frame1 is no frame"),
    "a frame of seven colours": ({"frame3": np.zeros((2, 2, 7), "u1")}, "frame3 is no frame"),
    "sizes without end": ({"valid_hw": np.full((4, 2), np.inf, "f4")}, "outside of the images"),
    "sizes that are no numbers": ({"valid_hw": np.full((4, 2), np.nan, "f4")}, "outside of the images"),
    "sizes of nothing": ({"valid_hw": np.zeros((4, 2), "f4")}, "outside of the images"),
}


@pytest.mark.parametrize("odd", ODD_REFERENCES)
def test_a_reference_of_another_graph(odd: str, tmp_path: Path) -> None:
    """Sealed by somebody who knows how."""
    changes, message = ODD_REFERENCES[odd]
    frames = {f"frame{i}": frame for i, frame in enumerate(tiny.frames())}
    content = npz(**{name: npy(array) for name, array in {**ARRAYS, **frames, **changes}.items()})
    bundle = sealed(tmp_path / "t.glmd", reference_npz=content)
    with pytest.raises(BundleError, match=rf"reference\.npz holds no reference: .*{message}.*again\.$"):
        verify_bundle(bundle)


@pytest.mark.parametrize("report", [b"[", b"[" * 100_000, b"[1]", b"{}", b'{"rows": [{}]}', b'{"rows": 1}'])
def test_a_report_that_is_none(report: bytes, tmp_path: Path) -> None:
    path = sealed(tmp_path / "t.glmd", verify_json=report).path
    with pytest.raises(BundleError, match=r"holds no report|A report has rows"):
        Detector(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("status", []), ("status", {}), ("status", "fine"), ("status", None), ("engine", []), ("backend", 5),
        ("precision", "fp32\x1b[2J"), ("stage", ["raw"]), ("reason", 5), ("metrics", "x"), ("metrics", [1]),
        ("metrics", {"error": "1"}), ("metrics", {"error": []}), ("metrics", {"error": True}), ("surprise", 1),
    ],
)
def test_a_report_with_a_row_of_another_form(key: str, value: Any, tmp_path: Path) -> None:
    rows = tiny.report().to_dict()["rows"]
    report = json.dumps({"rows": [{**row, key: value} for row in rows]}).encode()
    path = sealed(tmp_path / "t.glmd", verify_json=report).path
    with pytest.raises(BundleError, match=r"A report has rows of VerifyRow; got .*Verify it again\.$"):
        Detector(path)
