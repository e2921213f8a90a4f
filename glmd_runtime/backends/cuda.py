"""The few calls of the CUDA runtime that are needed here, on the primary context, which torch and cupy share."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from glmd_runtime.errors import GlmdError, UnsupportedError, UsageError

INSTALL = "pip install 'cuda-bindings>=12.6,<14'"


def why_no_device() -> str:
    """An empty string when a CUDA device can be used here, else one sentence with the remedy, without its full stop."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return f"it needs cuda-bindings, which is not installed. Run: {INSTALL}"
    try:
        library = runtime()
    except Exception as cause:  # whatever a broken library does when it is imported
        return f"cuda-bindings is installed but cannot be imported: {cause}. Run: {INSTALL}"
    try:
        error, count = library.cudaGetDeviceCount()
        said = "" if error == library.cudaError_t.cudaSuccess and count else _text(error)
    except RuntimeError as cause:  # cuda-bindings 12 where there is no driver
        said = str(cause)
    return said and f"no CUDA device was found ({said}). Use a machine with an NVIDIA GPU and its driver"


def parse_device(device: str | None) -> int | None:
    """The index of a CUDA device named "cuda" or "cuda:1", 0 for None; None for "cpu".

    Raises: UsageError for another name.
    """
    kind, colon, index = (device or "cuda").partition(":")
    if device == "cpu":
        return None
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise UsageError(f"The device must be cpu, cuda or cuda:N; got {device!r}.")
    return int(index or 0)


def use_device(device: str | None, library: str) -> int:
    """Make the device of that name current, for a library that runs on nothing else. Returns: its index.

    Raises: UnsupportedError for "cpu" and for a device that is not there; UsageError for another name.
    """
    index = parse_device(device)
    if index is None:
        raise UnsupportedError(f"{library} runs on CUDA devices only; got device='cpu'. Name another backend.")
    set_device(index)
    return index


def set_device(index: int) -> None:
    """Make a device's primary context the current one of this thread. Raises: UnsupportedError."""
    try:
        call("cudaSetDevice", index)
    except GlmdError as error:
        raise UnsupportedError(f"The device cuda:{index} cannot be used: {error} Name another device.") from error


def capability(index: int) -> str:
    """Compute capability of a device, such as "8.7"."""
    attributes = runtime().cudaDeviceAttr
    parts = (attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor)
    return ".".join(str(call("cudaDeviceGetAttribute", part, index)) for part in parts)


class Buffer:
    """A tensor on the device with its twin in page-locked host memory, from which copies need no detour.

    `host` is (shape) of `dtype`; `pointer` is the address on the device.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.size = prod(shape) * np.dtype(dtype).itemsize
        self.pointer: int = call("cudaMalloc", self.size)
        self._pinned: int = call("cudaMallocHost", self.size)
        content = (ctypes.c_ubyte * self.size).from_address(self._pinned)
        self.host: NDArray[Any] = np.ctypeslib.as_array(content).view(dtype).reshape(shape)

    def upload(self, stream: Any) -> None:
        copy(self.pointer, self._pinned, self.size, stream)

    def download(self, stream: Any) -> None:
        copy(self._pinned, self.pointer, self.size, stream)

    def close(self) -> None:
        call("cudaFree", self.pointer)
        call("cudaFreeHost", self._pinned)


def copy(target: int, source: int, size: int, stream: Any) -> None:
    """Copy bytes between any two places that CUDA can address, in the order of a stream."""
    call("cudaMemcpyAsync", target, source, size, runtime().cudaMemcpyKind.cudaMemcpyDefault, stream)


def call(name: str, *args: Any) -> Any:
    """Call the CUDA runtime by name. Returns: its one result, or None. Raises: GlmdError with CUDA's own words."""
    error, *results = getattr(runtime(), name)(*args)
    if error != runtime().cudaError_t.cudaSuccess:
        raise GlmdError(f"CUDA's {name} failed: {_text(error)}.")
    return results[0] if results else None


def runtime() -> Any:
    """The module cuda.bindings.runtime, imported when it is first needed."""
    from cuda.bindings import runtime

    return runtime


def _text(error: Any) -> str:
    return str(runtime().cudaGetErrorString(error)[1].decode())
