"""Inference libraries behind one protocol; each is imported only when an engine is loaded with it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from glmd_runtime.backends.base import Backend, Tensors, run_padded
from glmd_runtime.errors import BundleError, UnsupportedError, UsageError

__all__ = ["BACKENDS", "INSTALL", "Backend", "Tensors", "available", "load", "readers", "require", "run_padded"]


class _Entry(NamedTuple):
    class_name: str
    reads: tuple[str, ...]  # file suffixes


INSTALL = "pip install '.[cpu]' in the SDK's folder"

# The fastest first, as measured on the light model in FP32 on two CPU threads; `backend="auto"` goes by this order.
BACKENDS = {
    "openvino": _Entry("OpenVinoBackend", (".onnx", ".xml")),
    "onnxruntime": _Entry("OnnxRuntimeBackend", (".onnx",)),
}


def available() -> list[str]:
    """Names of the backends whose library is installed here, the fastest first."""
    return [name for name in BACKENDS if find_spec(name) is not None]


def readers(engine: str) -> list[str]:
    """Names of the backends that read this engine file, installed or not, the fastest first."""
    return [name for name, entry in BACKENDS.items() if Path(engine).suffix in entry.reads]


def require(name: str) -> None:
    """Raise UsageError for an unknown backend, UnsupportedError for one whose library is not installed."""
    if name not in BACKENDS:
        raise UsageError(f"The backend must be one of {', '.join(BACKENDS)}; got {name!r}.")
    if name not in available():
        raise UnsupportedError(f"The backend {name} is not installed. Run: {INSTALL}")


def load(name: str, model: Path, threads: int | None = None) -> Backend:
    """Load an engine file.

    Args: name of a backend; model, an .onnx or .xml file; threads, None for the library's own choice.
    Raises: UsageError for an unknown name or a wrong number, UnsupportedError when the library is not installed or
        broken, BundleError when the library cannot read the file.
    """
    require(name)
    if threads is not None and threads < 1:
        raise UsageError(f"The number of threads must be at least 1; got {threads}.")
    try:
        backend_class = getattr(import_module(f"glmd_runtime.backends.{name}"), BACKENDS[name].class_name)
    except Exception as error:  # whatever a broken library does when it is imported
        raise UnsupportedError(f"{name} is installed but cannot be imported: {error}. Run: {INSTALL}") from error
    try:
        backend: Backend = backend_class(model, threads)
    except Exception as error:  # each library has its own kinds of error, and they share no base
        raise BundleError(f"{name} cannot load {model}: {str(error).strip()} Export the checkpoint again.") from error
    return backend
