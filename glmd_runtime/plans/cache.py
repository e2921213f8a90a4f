"""Where TensorRT engines lie between runs: the user's cache folder, a folder an engine.

    engines/thermal_lite0-0123456789abcdef/model.engine, model.engine.json
    engines/thermal_lite0-0123456789abcdef.log     what the builder said, of failed builds too
    engines/thermal_lite0-0123456789abcdef.lock    held by the process that builds or opens it
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from filelock import FileLock, Timeout

from glmd_runtime.errors import BundleError
from glmd_runtime.files.scratch import put_in_place, scratch_folder
from glmd_runtime.plans.plan import PlanRecord, cache_folder, own_folder, sha256

PLAN = "model.engine"


@dataclass(frozen=True)
class CachedEngine:
    """One entry: its folder, its record if that can be read, its size, and why it is of no use any more, or ""."""

    folder: Path
    record: PlanRecord | None
    size: int
    stale: str


def entry_folder(name: str, key: Sequence[str]) -> Path:
    """Where the engine lies, or will lie, that a bundle's name and everything that makes it unique call for."""
    digest = hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()
    return engines_folder() / f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}-{digest[:16]}"


def engines_folder() -> Path:
    """Raises: UnsupportedError where somebody else could put an engine there."""
    return own_folder(cache_folder() / "engines")


def lock(folder: Path, timeout: float = -1) -> FileLock:
    """The lock of an entry; the system releases it when its holder ends, in whatever way."""
    return FileLock(f"{folder}.lock", timeout=timeout)


@contextmanager
def new_entry(folder: Path) -> Iterator[Path]:
    """A folder to build in, which takes the entry's place when the block ends without an error."""
    with scratch_folder(folder) as scratch:
        new = scratch / "engine"
        new.mkdir()
        yield new
        put_in_place(new, folder, overwrite=True)


def cached_engines() -> list[CachedEngine]:
    """All entries, and what killed builds left behind."""
    return [_inspect(folder) for folder in sorted(engines_folder().iterdir()) if folder.is_dir()]


def prune() -> list[CachedEngine]:
    """Remove the entries that are of no use any more and that no process holds. Returns: those removed."""
    return [entry for entry in cached_engines() if entry.stale and _removed(entry.folder)]


def _removed(folder: Path) -> bool:
    entry = folder.with_name(folder.name[1:].rpartition(".")[0] if folder.name.startswith(".") else folder.name)
    held = lock(entry, timeout=0)
    try:
        with held:
            shutil.rmtree(folder)
            if folder == entry:
                folder.with_name(f"{folder.name}.log").unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _inspect(folder: Path) -> CachedEngine:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if folder.name.startswith("."):
        return CachedEngine(folder, None, size, "an unfinished build")
    try:
        record = PlanRecord.read(folder / PLAN)
    except BundleError:
        return CachedEngine(folder, None, size, "its record cannot be read")
    return CachedEngine(folder, record, size, _why_stale(folder / PLAN, record))


def _why_stale(plan: Path, record: PlanRecord) -> str:
    if not plan.is_file() or sha256(plan) != record.sha256:
        return "the plan is not the recorded one"
    try:
        here = import_module(record.library).__version__
    except Exception:  # a library that is absent or broken here says nothing about the entry
        return ""
    return "" if here == record.version else f"{record.library} is {here} here"
