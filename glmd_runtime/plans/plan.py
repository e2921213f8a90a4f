"""A plan: the file that TensorRT builds for one kind of GPU, and the record beside it that says where it may run.

    model.engine        the plan, as the library serialised it
    model.engine.json   the record: hash, library, version, GPU, precision, plugins; read before the plan is touched
    model.engine.log    what the library said while it built
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
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
    """The user's cache folder of this SDK. Raises: as `own_folder`."""
    return own_folder(user_cache_path("glmdnet"))


def own_folder(folder: Path) -> Path:
    """`folder`, made if it is not there, in which nobody but the user of this process can put anything.

    Others' rights are not just taken away: what they have put there would stay.

    Raises: UnsupportedError where others can write, or the folder is another user's, or a link.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=stat.S_IRWXU, parents=True)
    if reason := _why_not_own(folder.lstat()):
        raise UnsupportedError(
            f"Engines are code, so they are kept in a folder that their user alone can write to; {folder} {reason}. "
            "Remove it, or name another place in XDG_CACHE_HOME."
        )
    return folder


def _why_not_own(found: os.stat_result) -> str:
    """What is wrong with a folder of which lstat says this, or ""."""
    if not stat.S_ISDIR(found.st_mode):
        return "is a link or a file"
    if found.st_uid != os.geteuid():
        return f"belongs to the user {found.st_uid}, not to {os.geteuid()}"
    return "can be written to by others" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def record_path(plan: Path) -> Path:
    return plan.with_name(plan.name + ".json")


def log_path(plan: Path) -> Path:
    return plan.with_name(plan.name + ".log")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(iter(lambda: file.read(1 << 20), b""))
