"""A bundle: the sealed directory `name.glmd/` that holds a model, all that is needed to run it, and its proof.

    manifest.json     what it is: classes, pre- and post-processing, graph, engines, provenance; size, hash of all else
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

Nothing writes into a bundle afterwards: whoever changes something writes a new one. Nothing of a file is used before
its size and its hash held; what the hashes prove, and what they do not, is told in SECURITY.md.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import reprlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.calibration import CalibrationSpec
from glmd_runtime.enroll import EnrolledSpec
from glmd_runtime.errors import BundleError, EngineError, UsageError
from glmd_runtime.files.arrays import read_npz
from glmd_runtime.files.documents import parse_json
from glmd_runtime.files.plain import blocks_of, plain_files, sha256_of
from glmd_runtime.files.scratch import put_in_place, scratch_folder, writing
from glmd_runtime.files.values import each, text, whole
from glmd_runtime.postprocess import RAW_OUTPUTS, PostprocessSpec, RawOutputs, split_outputs
from glmd_runtime.preprocess import PreprocessSpec, is_frame
from glmd_runtime.tuned import TunedSpec

SCHEMA_VERSION = 2
NEEDS = "0.1.0"  # the first version of glmdnet-sdk that reads this schema, for older ones to name
MANIFEST, SEAL, REFERENCE, VERIFY = "manifest.json", "manifest.sha256", "reference.npz", "verify.json"
PCB_MODEL, PROTOTYPES, PCB_REFERENCE = "pcb.onnx", "prototypes.safetensors", "pcb_reference.npz"
ENROLLED = "enrolled.safetensors"
_PLAIN = ("engines", "provenance", "sha256", "sizes")  # keys whose values are as they are in JSON
_OPTIONAL = {"calibration", "enrolled", "tuned"}  # keys that a manifest may lack
_EXPORT_AGAIN = "Export or copy the bundle again."
MOST_BYTES = 4 << 30  # of a file, whatever the manifest says
_MOST_MANIFEST = 4 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEAL_BYTES = 65
_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".pkl")  # what glmd-export makes bundles of

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

    def check_outputs(self, outputs: Any, count: int, engine: str) -> None:
        """Raises: EngineError unless a call with `count` images gave what the graph gives, and numbers in it."""
        expected = {name: (count, *shape[1:]) for name, shape in self.outputs.items()}
        given = outputs if isinstance(outputs, Mapping) else {}
        came = {name: np.shape(given[name]) for name in expected if name in given}
        if came != expected:
            raise EngineError(f"{engine} must answer with {expected}; got {came}. Export the checkpoint again.")
        valid = given["valid"].astype(bool)  # (N, R)
        known = valid & np.isfinite(given["scores"]).any(axis=2)
        if (valid.any(axis=1) > known.any(axis=1)).any():
            raise EngineError(f"{engine} answered with no number, NaN for every proposal. Check it: glmd-verify BUNDLE")

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
            outputs["features"] = (b, r, *self.outputs["features"][-1:])
        if (self.inputs, self.outputs) != (inputs, outputs):
            raise ValueError(f"the graph must have {inputs} and {outputs}; got {self.inputs} and {self.outputs}")
        if max(map(math.prod, (*inputs.values(), *outputs.values()))) > _MOST_NUMBERS:
            raise ValueError(f"a tensor of the graph has at most {_MOST_NUMBERS} numbers; got {inputs} and {outputs}")


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself; the exporter fills everything but `sha256` and `sizes`, which `write_bundle` does.

    engines      file name -> precision ("fp32", "fp16", ...) of each file a backend can load
    provenance   free values: checkpoint, data, commit, versions
    sha256       file name -> hash of each file but manifest.json and manifest.sha256; sizes, the same in bytes
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
    sizes: Mapping[str, int] = field(default_factory=dict)
    calibration: CalibrationSpec | None = None
    enrolled: EnrolledSpec | None = None
    tuned: TunedSpec | None = None

    def __post_init__(self) -> None:
        if self.tuned and self.tuned.engine not in self.engines:
            raise ValueError(f"tuned names the engine {self.tuned.engine}; the bundle has {sorted(self.engines)}")
        if wrong := [name for name, digest in self.sha256.items() if not _SHA256.fullmatch(digest)]:
            raise ValueError(f"sha256 of {wrong[0]} must be 64 digits of a hexadecimal number")
        if wrong := [name for name, size in self.sizes.items() if type(size) is not int or not 0 <= size <= MOST_BYTES]:
            raise ValueError(f"the size of {wrong[0]} must be a number of bytes, at most {MOST_BYTES}")

    def to_dict(self) -> dict[str, Any]:
        specs = {key: getattr(self, key).to_dict() for key in ("preprocess", "postprocess", "graph")}
        plain = {key: dict(getattr(self, key)) for key in _PLAIN}
        schema = {"schema_version": SCHEMA_VERSION, "needs": NEEDS}
        head = {**schema, "name": self.name, "class_names": list(self.class_names)}
        optional = {key: spec.to_dict() for key in sorted(_OPTIONAL) if (spec := getattr(self, key)) is not None}
        return {**head, **specs, **plain, **optional}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Of the present schema; `migrated` makes it of an older one.

        Raises: BundleError for a missing or unknown key, and a malformed value.
        """
        expected = {"schema_version", "needs", *(f.name for f in fields(cls))}
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
                **{key: dict(values[key]) for key in _PLAIN},
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


def migrated(values: Any, sizes: Mapping[str, int]) -> Mapping[str, Any]:
    """The content of a manifest, of whatever schema this version can read, as one of the present schema.

    Args: sizes, bytes of the files that are there, since version 1 did not say them.
    Raises: BundleError for what is no object, and for an unknown version, with what it needs.
    """
    if not isinstance(values, Mapping):
        raise BundleError(f"{MANIFEST} must hold a JSON object; got {type(values).__name__}. {_EXPORT_AGAIN}")
    version = values.get("schema_version")
    if type(version) is int and version == SCHEMA_VERSION:
        return values
    if type(version) is int and version in _MIGRATIONS:
        return migrated(_MIGRATIONS[version](values, sizes), sizes)
    needs = values.get("needs")
    told = isinstance(needs, str) and re.fullmatch(r"[0-9.]{1,20}", needs)
    wanted = f"glmdnet-sdk {needs} or newer" if told else "the version of glmdnet-sdk that wrote the bundle"
    raise BundleError(
        f"{MANIFEST} must have schema_version {min(_MIGRATIONS)} to {SCHEMA_VERSION}; got {reprlib.repr(version)}. "
        f"Install {wanted}, or export the checkpoint with this one."
    )


def _from_version_1(values: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Version 1 said no sizes: those on the disk count, bounded as all are."""
    return {**values, "schema_version": 2, "needs": NEEDS, "sizes": dict(sizes)}


_MIGRATIONS: dict[int, Callable[[Mapping[str, Any], Mapping[str, int]], dict[str, Any]]] = {1: _from_version_1}


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

    def check(self, graph: GraphSpec) -> None:
        """Raises: ValueError unless images and answers are those of the graph, and there is a frame for each."""
        images, answers = ({n: (len(self), *s[1:]) for n, s in side.items()} for side in (graph.inputs, graph.outputs))
        expected = {name: (shape, "|b1" if name == "valid" else "<f4") for name, shape in (images | answers).items()}
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "frames"}
        came = {name: (array.shape, array.dtype.str) for name, array in arrays.items() if array is not None}
        if came != expected or not self.frames:
            raise ValueError(f"a frame or more and {expected} were expected; got {len(self.frames)} and {came}")
        if wrong := [f"frame{i}" for i, frame in enumerate(self.frames) if not is_frame(frame)]:
            raise ValueError(f"{wrong[0]} is no frame of a camera")
        if not ((self.valid_hw >= 1) & (self.valid_hw <= self.images.shape[2:])).all():
            raise ValueError(f"valid_hw is outside of the images; got {self.valid_hw.tolist()}")

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
    def from_bytes(cls, content: bytes, graph: GraphSpec) -> Reference:
        """Raises: ValueError, KeyError or TypeError for another content than `to_bytes` gives, or of another graph."""
        arrays = read_npz(content)
        frames = tuple(arrays[f"frame{i}"] for i in range(len(arrays["images"])))
        reference = cls(frames, **{f.name: arrays[f.name] for f in fields(cls) if f.name in arrays})
        reference.check(graph)
        return reference


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, every hash of which held."""

    path: Path
    manifest: Manifest

    @cached_property
    def reference(self) -> Reference:
        if REFERENCE not in self.manifest.sha256:
            raise BundleError(f"{self.path} has no {REFERENCE} to be checked against. {_EXPORT_AGAIN}")
        try:
            return Reference.from_bytes(self.read(REFERENCE), self.manifest.graph)
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{self.path / REFERENCE} holds no reference: {error}. {_EXPORT_AGAIN}") from error

    @cached_property
    def verify(self) -> dict[str, Any]:
        """The content of verify.json; a bundle still being made has none, and so no engine that passed."""
        if VERIFY not in self.manifest.sha256:
            return {"status": "failed", "rows": []}
        try:
            return dict(parse_json(self.read(VERIFY)))
        except (ValueError, TypeError) as error:
            raise BundleError(f"{self.path / VERIFY} holds no report: {error}. {_EXPORT_AGAIN}") from error

    @property
    def files(self) -> dict[str, bytes | Path]:
        """All but manifest.json and manifest.sha256, as `write_bundle` takes them."""
        return {name: self.path / name for name in self.manifest.sha256}

    def read(self, file: str | Path) -> bytes:
        """The content of one of its files, whose hash holds at this moment: it may have been replaced since.

        Raises: BundleError for a file that was altered, or that is none of the bundle's.
        """
        name = Path(file).name
        if name not in self.manifest.sha256:
            raise BundleError(f"{self.path} has no {name}; it has {sorted(self.manifest.sha256)}. {_EXPORT_AGAIN}")
        blocks = list(blocks_of(self.path / name, self.manifest.sizes[name]))
        _compare(self.path / name, sha256_of(blocks), self.manifest.sha256[name])
        return b"".join(blocks)


def open_bundle(path: str | Path) -> Bundle:
    """Open `name.glmd/` and check every file against its hash.

    Raises: BundleError when it is no bundle, of an unknown schema, or a file is missing, altered, not listed or no file
        but a link or the like. The directory itself may be a link.
    """
    path = Path(path)
    if not path.is_dir():
        raise _no_bundle(path)
    sizes = plain_files(path)
    for name in (MANIFEST, SEAL):
        if name not in sizes:
            raise BundleError(f"{path} must hold {MANIFEST} and {SEAL}; {name} is missing. {_EXPORT_AGAIN}")
    content = _read_manifest(path, sizes)
    try:
        values = parse_json(content)
    except ValueError as error:
        raise BundleError(f"{path / MANIFEST} is not JSON: {error}. {_EXPORT_AGAIN}") from error
    files = {name: size for name, size in sizes.items() if name not in (MANIFEST, SEAL)}
    manifest = Manifest.from_dict(migrated(values, files))
    _check_files(path, manifest, set(files))
    return Bundle(path, manifest)


def bundle_of(path: Path) -> Path:
    """The bundle that is named by its own path, or by that of an engine file inside it; it is not opened.

    Raises: BundleError for a file that lies in no bundle.
    """
    if not path.is_file():
        return path
    if not (path.parent / MANIFEST).exists():
        raise _no_bundle(path)
    return path.parent


def _no_bundle(path: Path) -> BundleError:
    """What is at a path instead, and how to come from there to a bundle."""
    if path.exists() and path.suffix in _CHECKPOINTS:
        came, remedy = "a checkpoint", f"Make a bundle of it: {shlex.join(['glmd-export', '--ckpt', str(path)])}"
    else:
        came, remedy = "a file in no bundle" if path.exists() else "nothing", "Make one with glmd-export."
    return BundleError(f"A bundle is a directory 'name.glmd/', an engine a file inside one; {path} is {came}. {remedy}")


def write_bundle(
    path: str | Path, manifest: Manifest, files: Mapping[str, bytes | Path], *, overwrite: bool = False
) -> Bundle:
    """Write a bundle whole or not at all: into a sibling directory first, which then takes its place.

    Args:
        path: `name.glmd`; an existing one is refused unless `overwrite`.
        manifest: its `sha256` and `sizes` are filled in here.
        files: file name -> content, or a file to copy; every engine of the manifest must be among them.
    Raises: what `check_target` does, BundleError when a file of an engine is lacking, OutputError on a full disk.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    if lacking := sorted(_needed(manifest) - set(files)):
        raise BundleError(f"Every engine of the manifest must be among the files; {lacking} are not.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), scratch_folder(path) as scratch:
        new = scratch / "bundle"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        sizes = {name: (new / name).stat().st_size for name in sorted(files)}
        hashes = {name: sha256_of(blocks_of(new / name, size)) for name, size in sizes.items()}
        text = json.dumps({**manifest.to_dict(), "sha256": hashes, "sizes": sizes}, indent=2) + "\n"
        (new / MANIFEST).write_text(text)
        (new / SEAL).write_text(sha256_of([text.encode()]) + "\n")
        written = open_bundle(new).manifest
        check_target(path, overwrite=overwrite)  # again: writing takes time, and others may write too
        try:
            put_in_place(new, path, overwrite=overwrite)
        except OSError:
            check_target(path, overwrite=overwrite)  # who was faster by a moment
            raise
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


def _read_manifest(path: Path, sizes: Mapping[str, int]) -> bytes:
    """The content of manifest.json, of which nothing is read that is not sealed."""
    if sizes[MANIFEST] > _MOST_MANIFEST:
        size = sizes[MANIFEST]
        raise BundleError(f"{path / MANIFEST} has {size} bytes; it may have {_MOST_MANIFEST}. {_EXPORT_AGAIN}")
    content = b"".join(blocks_of(path / MANIFEST, sizes[MANIFEST]))
    seal = b"".join(blocks_of(path / SEAL, _SEAL_BYTES)).decode("ascii", "backslashreplace")
    _compare(path / MANIFEST, sha256_of([content]) + "\n", seal)
    return content


def _check_files(path: Path, manifest: Manifest, present: set[str]) -> None:
    """Compare the directory with the manifest: the same names, the same sizes, the same hashes."""
    listed = set(manifest.sha256)
    odd = [name for name in listed if not _PLAIN_NAME.fullmatch(name)]
    if odd or not _needed(manifest) <= listed:
        raise BundleError(f"{path / MANIFEST} must list plain file names, engines too; got {sorted(listed)}.")
    if missing := sorted(listed - present):
        raise BundleError(f"{path} must hold {sorted(listed)}; missing {missing}. {_EXPORT_AGAIN}")
    if extra := sorted(present - listed):
        raise BundleError(f"{path} is sealed and must hold only {sorted(listed)}; found {extra}. Move them elsewhere.")
    if unsized := sorted(listed ^ set(manifest.sizes)):
        raise BundleError(f"{path / MANIFEST} must list hash and size of the same files; {unsized} are in one of both.")
    for name, digest in manifest.sha256.items():
        _compare(path / name, sha256_of(blocks_of(path / name, manifest.sizes[name])), digest)


def _needed(manifest: Manifest) -> set[str]:
    """The files that a manifest itself speaks of."""
    pcb = {PCB_MODEL, PROTOTYPES} if manifest.calibration else set()
    return set(manifest.engines) | pcb | ({ENROLLED} if manifest.enrolled else set())


def _compare(path: Path, came: str, expected: str) -> None:
    if came != expected:
        raise BundleError(f"{path} was altered: expected SHA-256 {expected[:12]}, got {came[:12]}. {_EXPORT_AGAIN}")
