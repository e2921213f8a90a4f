"""What a bundle says of itself, as manifest.json holds it, and how an older schema becomes the present one."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from glmd_runtime.calibration import CalibrationSpec
from glmd_runtime.enroll import EnrolledSpec
from glmd_runtime.errors import BundleError, EngineError, FrameError
from glmd_runtime.files.values import each, text, whole
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec
from glmd_runtime.tuned import TunedSpec

SCHEMA_VERSION = 2
NEEDS = "0.1.0"  # the first version of glmdnet-sdk that reads this schema, for older ones to name
MANIFEST = "manifest.json"
EXPORT_AGAIN = "Export or copy the bundle again."
MOST_BYTES = 4 << 30  # of a file, whatever the manifest says
_PLAIN = ("engines", "provenance", "sha256", "sizes")  # keys whose values are as they are in JSON
_OPTIONAL = {"calibration", "enrolled", "tuned"}  # keys that a manifest may lack
_SHA256 = re.compile(r"[0-9a-f]{64}")
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

    def check_images(self, images: Any, count: int) -> None:
        """Raises: FrameError unless these are `count` images as the graph takes them, one or more, on any device."""
        shape = (count, *self.inputs["images"][1:])
        dtype = str(images.dtype).rpartition(".")[2]  # torch says torch.float32
        if tuple(images.shape) != shape or dtype != "float32" or not count:
            raise FrameError(
                f"images must be {shape} float32, at least one, for {count} geometries; got {tuple(images.shape)} "
                f"{dtype}. Make them as glmd_runtime.preprocess does."
            )

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
                f"unknown {sorted(unknown)}. {EXPORT_AGAIN}"
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
            raise BundleError(f"{MANIFEST} has a value of another form: {error!r}. {EXPORT_AGAIN}") from error
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
        raise BundleError(f"{MANIFEST} must hold a JSON object; got {type(values).__name__}. {EXPORT_AGAIN}")
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
