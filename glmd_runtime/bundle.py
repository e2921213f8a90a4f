"""A bundle: the sealed directory `name.glmd/` that holds a model, all that is needed to run it, and its proof.

    manifest.json     what it is: classes, pre- and post-processing, graph, engines, provenance, a hash of every file
    manifest.sha256   the hash of manifest.json
    model.onnx, ...   the engines, each with its precision
    reference.npz     a few frames with PyTorch's answers
    verify.json       how far each engine was from these answers

A bundle with prototypical calibration also has

    pcb.onnx                 its classifier: images (B, C, H, W), boxes (B, N, 4) -> logits (B, N, D)
    prototypes.safetensors   the prototypes (K, D)
    pcb_reference.npz        PyTorch's boxes and logits for the reference's frames

and one whose detector was taught classes on the device (`Detector.enroll`)

    enrolled.safetensors     what their scores are computed with: weights (E, D), biases (E,)

The manifest of one that `glmd-tune` wrote says which engine, backend and threads are best on which machine.

Nothing writes into a bundle afterwards: whoever changes something writes a new one.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from glmd_runtime.calibration import CalibrationSpec
from glmd_runtime.enroll import EnrolledSpec
from glmd_runtime.errors import BundleError, UsageError
from glmd_runtime.postprocess import RAW_OUTPUTS, PostprocessSpec, RawOutputs, split_outputs
from glmd_runtime.preprocess import PreprocessSpec
from glmd_runtime.tuned import TunedSpec
from glmd_runtime.values import each, text, whole

SCHEMA_VERSION = 1
MANIFEST, SEAL, REFERENCE, VERIFY = "manifest.json", "manifest.sha256", "reference.npz", "verify.json"
PCB_MODEL, PROTOTYPES, PCB_REFERENCE = "pcb.onnx", "prototypes.safetensors", "pcb_reference.npz"
ENROLLED = "enrolled.safetensors"
_OPTIONAL = {"calibration", "enrolled", "tuned"}  # keys that a manifest may lack
_EXPORT_AGAIN = "Export or copy the bundle again."

_MOST_NUMBERS = 1 << 28  # in one tensor of a graph

Shape = tuple[int, ...]


@dataclass(frozen=True)
class GraphSpec:
    """Names and shapes of the graph's tensors.

    inputs   images (B, C, H, W) float32, valid_hw (B, 2) float32
    outputs  boxes (B, R, K, 4) float32, scores (B, R, K) float32, valid (B, R) bool; perhaps features (B, R, D) float32
    """

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]

    @property
    def batch(self) -> int:
        return self.inputs["images"][0]

    @property
    def proposals(self) -> int:
        return self.outputs["valid"][1]

    def to_dict(self) -> dict[str, Any]:
        return {side: {n: list(s) for n, s in getattr(self, side).items()} for side in ("inputs", "outputs")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GraphSpec:
        """Raises: AttributeError, KeyError or ValueError for values that `to_dict` does not give."""
        return cls(*({n: each(whole, s, low=1) for n, s in values[side].items()} for side in ("inputs", "outputs")))

    def check(self, classes: int, preprocess: PreprocessSpec) -> None:
        """Raises: KeyError or ValueError unless the tensors fit each other, the classes and pixels, and memory."""
        (b, *_), (_, r) = self.inputs["images"], self.outputs["valid"]
        inputs: dict[str, Shape] = {"images": (b, preprocess.channels, *preprocess.size_hw), "valid_hw": (b, 2)}
        outputs: dict[str, Shape] = {"boxes": (b, r, classes, 4), "scores": (b, r, classes), "valid": (b, r)}
        if "features" in self.outputs:
            outputs["features"] = (b, r, *self.outputs["features"][2:3])
        if (self.inputs, self.outputs) != (inputs, outputs):
            raise ValueError(f"the graph must have {inputs} and {outputs}; got {self.inputs} and {self.outputs}")
        if max(map(math.prod, (*inputs.values(), *outputs.values()))) > _MOST_NUMBERS:
            raise ValueError(f"a tensor of the graph has at most {_MOST_NUMBERS} numbers; got {inputs} and {outputs}")


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself; the exporter fills everything but `sha256`, which `write_bundle` does.

    engines      file name -> precision ("fp32", "fp16", ...) of each file a backend can load
    provenance   free values: checkpoint, data, commit, versions
    sha256       file name -> hash of each file but manifest.json and manifest.sha256
    class_names  of the graph's K classes; those that were enrolled come after them
    calibration  of a bundle with PCB, enrolled of one with enrolled classes, tuned of one that was tuned to a machine;
                 manifest.json has the keys only then
    """

    name: str
    class_names: tuple[str, ...]
    preprocess: PreprocessSpec
    postprocess: PostprocessSpec
    graph: GraphSpec
    engines: Mapping[str, str]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    calibration: CalibrationSpec | None = None
    enrolled: EnrolledSpec | None = None
    tuned: TunedSpec | None = None

    def __post_init__(self) -> None:
        if self.tuned and self.tuned.engine not in self.engines:
            raise ValueError(f"tuned names the engine {self.tuned.engine}; the bundle has {sorted(self.engines)}")

    def to_dict(self) -> dict[str, Any]:
        specs = {key: getattr(self, key).to_dict() for key in ("preprocess", "postprocess", "graph")}
        plain = {key: dict(getattr(self, key)) for key in ("engines", "provenance", "sha256")}
        head = {"schema_version": SCHEMA_VERSION, "name": self.name, "class_names": list(self.class_names)}
        optional = {key: spec.to_dict() for key in sorted(_OPTIONAL) if (spec := getattr(self, key)) is not None}
        return {**head, **specs, **plain, **optional}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Raises BundleError for no mapping, another schema version, a missing or unknown key, a malformed value."""
        if not isinstance(values, Mapping):
            raise BundleError(f"{MANIFEST} must hold a JSON object; got {type(values).__name__}. {_EXPORT_AGAIN}")
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST} must have schema_version {SCHEMA_VERSION}; got {version!r}. "
                "Export the checkpoint with this version of glmdnet-sdk, or install the version that wrote the bundle."
            )
        expected = {"schema_version", *(f.name for f in fields(cls))}
        missing, unknown = expected - _OPTIONAL - set(values), set(values) - expected
        if missing or unknown:
            raise BundleError(
                f"{MANIFEST} must have the keys {sorted(expected - _OPTIONAL)}; missing {sorted(missing)}, "
                f"unknown {sorted(unknown)}. {_EXPORT_AGAIN}"
            )
        try:
            manifest = cls(
                name=text(values["name"]),
                class_names=each(text, values["class_names"]),
                preprocess=PreprocessSpec.from_dict(values["preprocess"]),
                postprocess=PostprocessSpec.from_dict(values["postprocess"]),
                graph=GraphSpec.from_dict(values["graph"]),
                **{key: dict(values[key]) for key in ("engines", "provenance", "sha256")},
                calibration=CalibrationSpec.from_dict(values["calibration"]) if "calibration" in values else None,
                enrolled=EnrolledSpec.from_dict(values["enrolled"]) if "enrolled" in values else None,
                tuned=TunedSpec.from_dict(values["tuned"]) if "tuned" in values else None,
            )
            manifest._check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{MANIFEST} has a value of another form: {error!r}. {_EXPORT_AGAIN}") from error
        return manifest

    def _check(self) -> None:
        """Raises: KeyError or ValueError for parts of a manifest that do not fit each other, or are no texts."""
        self.graph.check(len(self.class_names), self.preprocess)
        each(text, [*self.engines.values(), *self.sha256.values()])
        if not self.engines:
            raise ValueError("it names no engine")
        counts = {len(self.postprocess.score_thresholds)}
        counts |= {len(self.calibration.score_thresholds)} - {0} if self.calibration else set()  # 0: as without it
        if counts != {len(self.class_names)}:
            raise ValueError(f"{len(self.class_names)} classes need as many score thresholds; got {sorted(counts)}")


@dataclass(frozen=True, eq=False)
class Reference:
    """A few frames with the network's inputs and PyTorch's raw outputs for them: what an engine is checked against.

    frames    N camera arrays as `preprocess` takes them
    images    (N, C, H, W) float32 and valid_hw (N, 2) float32, the graph's inputs
    boxes     (N, R, K, 4) float32, scores (N, R, K) float32, valid (N, R) bool, the raw outputs
    features  (N, R, D) float32, of a graph that gives them; else None
    """

    frames: tuple[NDArray[Any], ...]
    images: NDArray[np.float32]
    valid_hw: NDArray[np.float32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    valid: NDArray[np.bool_]
    features: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def raw_outputs(self) -> list[RawOutputs]:
        return split_outputs({name: getattr(self, name) for name in RAW_OUTPUTS})

    def to_bytes(self) -> bytes:
        """The content of reference.npz."""
        arrays: dict[str, Any] = {
            f.name: array for f in fields(self) if f.name != "frames" and (array := getattr(self, f.name)) is not None
        }
        arrays |= {f"frame{i}": frame for i, frame in enumerate(self.frames)}  # frames may differ in size
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Reference:
        with np.load(path, allow_pickle=False) as arrays:
            frames = tuple(arrays[f"frame{i}"] for i in range(len(arrays["images"])))
            return cls(frames, **{f.name: arrays[f.name] for f in fields(cls) if f.name in arrays})


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, every hash of which held."""

    path: Path
    manifest: Manifest

    @cached_property
    def reference(self) -> Reference:
        if REFERENCE not in self.manifest.sha256:
            raise BundleError(f"{self.path} has no {REFERENCE} to be checked against. {_EXPORT_AGAIN}")
        return Reference.load(self.path / REFERENCE)

    @cached_property
    def verify(self) -> dict[str, Any]:
        """The content of verify.json; a bundle still being made has none, and so no engine that passed."""
        path = self.path / VERIFY
        return json.loads(path.read_text()) if path.exists() else {"status": "failed", "rows": []}


def open_bundle(path: str | Path) -> Bundle:
    """Open `name.glmd/` and check every file against its hash.

    Raises: BundleError when it is no bundle, of an unknown schema, or a file is missing, altered or not listed.
    """
    path = Path(path)
    if not path.is_dir():
        kind = "a file" if path.exists() else "nothing"
        raise BundleError(f"A bundle is a directory 'name.glmd/'; {path} is {kind}. Make one with glmd-export.")
    for name in (MANIFEST, SEAL):
        if not (path / name).is_file():
            raise BundleError(f"{path} must hold {MANIFEST} and {SEAL}; {name} is missing. {_EXPORT_AGAIN}")
    _check_hash(path / MANIFEST, (path / SEAL).read_text("ascii", "backslashreplace").strip())
    try:
        values = json.loads((path / MANIFEST).read_text())
    except ValueError as error:
        raise BundleError(f"{path / MANIFEST} is not JSON: {error}. {_EXPORT_AGAIN}") from error
    manifest = Manifest.from_dict(values)
    _check_files(path, manifest)
    return Bundle(path, manifest)


def write_bundle(
    path: str | Path, manifest: Manifest, files: Mapping[str, bytes | Path], *, overwrite: bool = False
) -> Bundle:
    """Write a bundle whole or not at all: into a sibling directory first, then by rename.

    Args:
        path: `name.glmd`; an existing one is refused unless `overwrite`.
        manifest: its `sha256` is filled in here.
        files: file name -> content, or a file to copy; every engine of the manifest must be among them.
    Raises: what `check_target` does, BundleError when a file of an engine is lacking.
    """
    path = Path(path)
    with _lock(path):
        check_target(path, overwrite=overwrite)
    if lacking := sorted(_needed(manifest) - set(files)):
        raise BundleError(f"Every engine of the manifest must be among the files; {lacking} are not.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        hashes = {name: _sha256(new / name) for name in sorted(files)}
        text = json.dumps({**manifest.to_dict(), "sha256": hashes}, indent=2) + "\n"
        (new / MANIFEST).write_text(text)
        (new / SEAL).write_text(_sha256(new / MANIFEST) + "\n")
        written = open_bundle(new).manifest
        with _lock(path):
            check_target(path, overwrite=overwrite)  # again: writing takes time, and others may write too
            _put_in_place(new, path, Path(scratch) / "old")
    return Bundle(path, written)


def check_target(path: Path, *, overwrite: bool = False) -> None:
    """Whether a bundle can be written to `path`, worth asking before long work.

    Raises: UsageError when it exists and may not be overwritten, or its folder cannot be written to;
        BundleError when what would be overwritten is no bundle.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already. Choose another path, or replace it with --overwrite.")
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is no bundle and will not be replaced by one. Choose another path.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        why = "cannot be written to" if folder.is_dir() else "is a file"
        raise UsageError(f"A bundle needs a folder that can be written to; {folder} {why}. Choose another path.")


def _put_in_place(new: Path, path: Path, old: Path) -> None:
    """Rename `new` to `path`, what was there to `old`; the old one comes back when that fails."""
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


def _lock(path: Path) -> FileLock:
    """For the moment in which a bundle takes its place; away from it, as a lock leaves a file."""
    digest = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"glmd-{digest}.lock")


def _check_files(path: Path, manifest: Manifest) -> None:
    """Compare the directory with the manifest: the same names, the same hashes."""
    listed = set(manifest.sha256)
    odd = [name for name in listed if Path(name).name != name]
    if odd or not _needed(manifest) <= listed:
        raise BundleError(f"{path / MANIFEST} must list plain file names, engines too; got {sorted(listed)}.")
    present = {entry.name for entry in path.iterdir()} - {MANIFEST, SEAL}
    if missing := sorted(listed - present):
        raise BundleError(f"{path} must hold {sorted(listed)}; missing {missing}. {_EXPORT_AGAIN}")
    if extra := sorted(present - listed):
        raise BundleError(f"{path} is sealed and must hold only {sorted(listed)}; found {extra}. Move them elsewhere.")
    for name, digest in manifest.sha256.items():
        _check_hash(path / name, digest)


def _needed(manifest: Manifest) -> set[str]:
    """The files that a manifest itself speaks of."""
    pcb = {PCB_MODEL, PROTOTYPES} if manifest.calibration else set()
    return set(manifest.engines) | pcb | ({ENROLLED} if manifest.enrolled else set())


def _check_hash(path: Path, expected: str) -> None:
    came = _sha256(path)
    if came != expected:
        raise BundleError(f"{path} was altered: expected SHA-256 {expected[:12]}, got {came[:12]}. {_EXPORT_AGAIN}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
