"""Inference libraries behind one protocol; each is imported only when an engine is loaded with it."""

from __future__ import annotations

from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from glmd_runtime.backends.base import Backend, Read, Tensors, run_padded
from glmd_runtime.backends.cuda import why_no_device
from glmd_runtime.errors import BundleError, GlmdError, UnsupportedError, UsageError
from glmd_runtime.install import install_command

__all__ = [
    "BACKENDS",
    "Backend",
    "Read",
    "Tensors",
    "available",
    "load",
    "preference",
    "readers",
    "require",
    "run_padded",
    "why_not",
]


class _Entry(NamedTuple):
    module: str
    class_name: str
    reads: tuple[str, ...]  # patterns of file names, the preferred first
    extra: str  # of the SDK's, the one that brings the library
    cuda: bool = False
    note: str = ""  # after the command, a comment to a shell

    @property
    def install(self) -> str:
        return install_command(self.extra) + self.note


BACKENDS = {
    "openvino": _Entry("openvino", "OpenVinoBackend", ("openvino.*.xml", "model.onnx"), "openvino"),
    "onnxruntime": _Entry(
        "onnxruntime", "OnnxRuntimeBackend", ("model.onnx", "model.fp16.onnx", "model.int8.onnx"), "cpu"
    ),
    "tensorrt": _Entry(
        "tensorrt",
        "TensorRtBackend",
        ("model.plugin.fp16.onnx", "model.fp16.onnx", "model.s8.onnx"),
        "tensorrt",
        cuda=True,
        note="  # but on a Jetson use the system's: python3 -m venv --system-site-packages",
    ),
    "tensorrt_rtx": _Entry(
        "tensorrt", "TensorRtRtxBackend", ("tensorrt_rtx.*.engine",), "rtx", cuda=True
    ),
}


def available() -> list[str]:
    """Names of the backends whose library is installed here, with a device to run on where it needs one."""
    return [name for name, entry in BACKENDS.items() if find_spec(name) and not (entry.cuda and why_no_device())]


def readers(engine: str) -> list[str]:
    """Names of the backends that read this file of a bundle, installed or not."""
    return [name for name, entry in BACKENDS.items() if any(fnmatch(engine, pattern) for pattern in entry.reads)]


def preference(name: str, engine: str) -> int:
    """A smaller number for the file that a backend would rather read, of two of one precision."""
    return [fnmatch(engine, pattern) for pattern in BACKENDS[name].reads].index(True)


def why_not(name: str) -> str:
    """An empty string when a backend can run here, else one sentence with the remedy; imports its library.

    Raises: UsageError for an unknown name.
    """
    if name not in BACKENDS:
        raise UsageError(f"The backend must be one of {', '.join(BACKENDS)}; got {name!r}.")
    if name not in available():
        return _absence(name)
    try:
        import_module(name)
    except Exception as error:  # whatever a broken library does when it is imported
        return f"{name} is installed but cannot be imported: {error}. Run: {BACKENDS[name].install}"
    return ""


def _absence(name: str) -> str:
    if BACKENDS[name].cuda and find_spec(name):
        return f"The backend {name} cannot run here: {why_no_device()}."
    return f"The backend {name} is not installed. Run: {BACKENDS[name].install}"


def require(name: str) -> None:
    """Raise UsageError for an unknown backend, UnsupportedError for one that cannot run here."""
    if reason := why_not(name):
        raise UnsupportedError(reason)


def load(
    name: str,
    model: Path,
    threads: int | None = None,
    device: str | None = None,
    throughput: bool = False,
    read: Read = Path.read_bytes,
) -> Backend:
    """Load an engine file.

    Args:
        name: of a backend.
        model: a file that it reads; for "tensorrt", the plan that `engines.open_engine` built.
        threads: CPU threads, with TensorRT calls in flight at once; None for the library's own choice.
        device: "cpu", "cuda" or "cuda:N"; None for the best that the library can use here.
        throughput: whether more calls a second count, several at once, or how long each takes.
        read: what gives the content of `model` and of the files beside it; a bundle's own checks their hashes.
    Raises: UsageError for an unknown name or a wrong value, UnsupportedError when the library is not installed or
        broken, or cannot use the device; BundleError when the library cannot read the file.
    """
    require(name)
    if threads is not None and threads < 1:
        raise UsageError(f"The number of threads must be at least 1; got {threads}.")
    entry = BACKENDS[name]
    backend_class = getattr(import_module(f"glmd_runtime.backends.{entry.module}"), entry.class_name)
    try:
        backend: Backend = backend_class(model, threads, device, throughput, read)
    except GlmdError:
        raise
    except Exception as error:  # each library has its own kinds of error, and they share no base
        raise BundleError(f"{name} cannot load {model}: {str(error).strip()} Export the checkpoint again.") from error
    return backend
