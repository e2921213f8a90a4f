"""TensorRT and TensorRT-RTX on a CUDA device; reads plans that `glmd_runtime.engines` built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glmd_runtime.errors import UnsupportedError

_plugins: dict[tuple[str, str], Any] = {}  # (library, plugin library) -> handle: a process may load one only once


def load_plugins(trt: Any, library: Path) -> None:
    """Register a plugin library's operators. Raises: UnsupportedError."""
    key = trt.__name__, str(library)
    if key in _plugins:
        return
    try:
        handle = trt.get_plugin_registry().load_library(str(library))
    except Exception as error:  # pybind11 passes on whatever the loader throws
        raise UnsupportedError(f"The plugin library {library} cannot be loaded: {error}. Build it again.") from error
    if handle is None:
        raise UnsupportedError(f"{trt.__name__} {trt.__version__} refuses the plugins in {library}. Build them again.")
    _plugins[key] = handle
