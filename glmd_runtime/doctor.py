"""What this machine can run, and what is cached on it; what a bug report should hold."""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Any

from glmd_runtime import backends
from glmd_runtime.backends import cuda
from glmd_runtime.backends.tensorrt import find_plugins
from glmd_runtime.engine_cache import CachedEngine, cached_engines, engines_folder
from glmd_runtime.errors import UnsupportedError


def diagnose() -> dict[str, Any]:
    """Plain values: machine, devices, backends with version or the reason against them, plugins, cached engines."""
    return {
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "cuda": _devices(),
        "backends": {name: _backend(name) for name in backends.BACKENDS},
        "plugins": _plugins(),
        "cache": str(engines_folder()),
        "engines": [describe(entry) for entry in cached_engines()],
    }


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


def lines(found: dict[str, Any]) -> list[str]:
    """What `diagnose` found, for people."""
    said = [f"machine       {found['machine']}", f"CUDA          {found['cuda']}"]
    for name, state in found["backends"].items():
        said.append(f"{name:13} {state['version'] or '-'}  {state['why_not'] or 'can run here'}")
    said += [f"plugins       {found['plugins']}", f"engine cache  {found['cache']}: {len(found['engines'])} engines"]
    for entry in found["engines"]:
        state = entry["stale"] or f"{entry['library']}, {entry['precision']}, compute capability {entry['capability']}"
        said.append(f"  {entry['name']}  {entry['bytes'] / 2**20:.1f} MiB  {state}")
    return said


def _backend(name: str) -> dict[str, str]:
    why_not = backends.why_not(name)
    try:
        version = str(import_module(name).__version__)
    except Exception:  # absent, or broken in whatever way; why_not says it
        version = ""
    return {"version": version, "why_not": why_not}


def _devices() -> str:
    if reason := cuda.why_no_device():
        return reason
    count = cuda.call("cudaGetDeviceCount")
    return ", ".join(f"cuda:{i} of compute capability {cuda.capability(i)}" for i in range(count))


def _plugins() -> str:
    try:
        return str(find_plugins() or "none built")
    except UnsupportedError as error:
        return str(error)
