"""A plan: the file that TensorRT builds for one kind of GPU, and the record beside it that says where it may run.

    model.engine        the plan, as the library serialised it
    model.engine.json   the record: hash, library, version, GPU, precision, plugins; read before the plan is touched
    model.engine.log    what the library said while it built
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from platformdirs import user_cache_path

from glmd_runtime.errors import BundleError, UnsupportedError
from glmd_runtime.files.documents import parse_json, read_bytes
from glmd_runtime.files.plain import sha256_of
from glmd_runtime.files.values import number, text

LIBRARIES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class PlanRecord:
    """What must be true before a plan is deserialised, and how it came about.

    library, version  "tensorrt" or "tensorrt_rtx", and the version that built it, the only one that may load it
    capability        compute capability of the GPU it was built on, such as "8.7"; "" when it was built without one
    precision         "fp32", "fp16" or "int8", found in the built engine
    sha256, onnx, plugin  SHA-256 of the plan, of the ONNX file and of the plugin library ("" without plugins)
    seconds           how long the build took
    """

    library: str
    version: str
    capability: str
    precision: str
    sha256: str
    onnx: str
    plugin: str
    seconds: float

    def write(self, plan: Path) -> None:
        record_path(plan).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, plan: Path, read: Callable[[Path], bytes] = read_bytes) -> PlanRecord:
        """Raises: BundleError when the plan has no record, or one of another form."""
        path = record_path(plan)
        try:
            values = parse_json(read(path))
            texts = {field.name: text(values[field.name]) for field in fields(cls) if field.name != "seconds"}
            record = cls(**texts, seconds=number(values["seconds"]))
            if record.library not in LIBRARIES:
                raise ValueError(f"the library {record.library!r}")
            return record
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"A TensorRT engine runs only with its record {path.name} beside it; got {error!r}. Build it again."
            ) from error


def cache_folder() -> Path:
    """The user's cache folder of this SDK, made if it is not there, and into which nobody else can write.

    Raises: UnsupportedError where others can, and it is not ours to change.
    """
    folder = user_cache_path("glmdnet")
    folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    if folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):  # what lies here is loaded as code
        try:
            folder.chmod(stat.S_IRWXU)
        except OSError as error:
            raise UnsupportedError(
                f"Engines are kept where their user alone can write; others can write to {folder}. Name another folder "
                "in XDG_CACHE_HOME."
            ) from error
    return folder


def record_path(plan: Path) -> Path:
    return plan.with_name(plan.name + ".json")


def log_path(plan: Path) -> Path:
    return plan.with_name(plan.name + ".log")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(iter(lambda: file.read(1 << 20), b""))
