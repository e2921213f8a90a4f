"""The engines that TensorRT built on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from glmd_runtime.doctor.finding import Finding
from glmd_runtime.errors import UnsupportedError
from glmd_runtime.plans.cache import CachedEngine, cached_engines, engines_folder

MEND = "export XDG_CACHE_HOME=/a/folder"


def cached() -> list[CachedEngine]:
    """What is there; nothing where the folder cannot be read or made, or is not ours alone."""
    with suppress(OSError, UnsupportedError):
        return cached_engines()
    return []


def check_cache(engines: Sequence[CachedEngine]) -> list[Finding]:
    """The place of the engines, and whether there are any of no use."""
    try:
        folder = engines_folder()
    except OSError as error:
        return [_not_ours(f"{error.filename} cannot be made ({error.strerror})")]
    except UnsupportedError as error:
        return [Finding("engine cache", "warn", str(error), MEND)]
    text = f"{folder}: {len(engines)} engines, {sum(engine.size for engine in engines) / 2**20:.1f} MiB"
    if not os.access(folder, os.W_OK):
        return [_not_ours(f"{text}; not writable")]
    lines = [Finding("cached engine", "warn" if one.stale else "ok", _said(one)) for one in engines]
    if stale := sum(bool(engine.stale) for engine in engines):
        return [Finding("engine cache", "warn", f"{text}, {stale} of no use any more", "glmd-doctor --prune"), *lines]
    return [Finding("engine cache", "ok", text), *lines]


def _not_ours(text: str) -> Finding:
    return Finding("engine cache", "warn", f"{text}: TensorRT cannot keep engines", MEND)


def _said(engine: CachedEngine) -> str:
    values = describe(engine)
    state = engine.stale or f"{values['library']}, {values['precision']}, compute capability {values['capability']}"
    return f"{values['name']}, {engine.size / 2**20:.1f} MiB, {state}"


def describe(entry: CachedEngine) -> dict[str, Any]:
    """Plain values of a cached engine; `stale` says why it is of no use any more, or is empty."""
    record = entry.record
    known = {
        "library": record and f"{record.library} {record.version}",
        "capability": record and record.capability,
        "precision": record and record.precision,
        "seconds": record and record.seconds,
    }
    return {"name": entry.folder.name, "bytes": entry.size, **known, "stale": entry.stale}
