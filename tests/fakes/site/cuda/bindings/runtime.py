"""The CUDA runtime as the SDK uses it, on host memory.

What the real one does asynchronously happens here when a stream is synchronised and not before, so that whoever reads
too early reads nothing. Addresses and handles that were never given out, or given back, are refused.

GLMD_FAKE_CUDA  compute capabilities of the devices, such as "8.7" or "8.6 8.9"; unset or empty: no device
"""

# ruff: noqa: N801, N802, N803, N815, N816  these are the real names

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any

cudaStreamNonBlocking = 1


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalState = 401
    cudaErrorStreamCaptureInvalidated = 901


class cudaDeviceAttr(IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class cudaMemcpyKind(IntEnum):
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


_Work = Callable[[], None]
_OK, _INVALID = cudaError_t.cudaSuccess, cudaError_t.cudaErrorInvalidValue
_thread = threading.local()
_device_memory: dict[int, Any] = {}
_pinned_memory: dict[int, Any] = {}
_streams: dict[int, cudaStream_t] = {}
_last_error = [_OK]


class cudaStream_t:
    """_Work in order, done when someone waits for it; during a capture it goes into a graph instead."""

    def __init__(self) -> None:
        self.work: list[_Work] = []
        self.capture: list[_Work] | None = None
        self.broken = False

    def __int__(self) -> int:
        return id(self)

    def _push(self, work: _Work) -> None:
        (self.work if self.capture is None else self.capture).append(work)


class cudaGraph_t:
    def __init__(self, work: list[_Work]) -> None:
        self.work = work


class cudaGraphExec_t(cudaGraph_t):
    pass


def _stream_at(handle: int) -> cudaStream_t:
    """For the fake TensorRT, which is given a stream as a number."""
    return _streams[handle]


def _devices() -> list[str]:
    return os.environ.get("GLMD_FAKE_CUDA", "").split()


def _failed(error: cudaError_t) -> cudaError_t:
    _last_error[0] = error
    return error


def cudaGetDeviceCount() -> tuple[cudaError_t, int | None]:
    return (_OK, len(_devices())) if _devices() else (_failed(cudaError_t.cudaErrorNoDevice), None)


def cudaSetDevice(device: int) -> tuple[cudaError_t]:
    if not 0 <= device < len(_devices()):
        return (_failed(cudaError_t.cudaErrorInvalidDevice),)
    _thread.device = device
    return (_OK,)


def cudaDeviceGetAttribute(attr: cudaDeviceAttr, device: int) -> tuple[cudaError_t, int | None]:
    if not 0 <= device < len(_devices()):
        return _failed(cudaError_t.cudaErrorInvalidDevice), None
    return _OK, int(_devices()[device].split(".")[attr - cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor])


def cudaMalloc(size: int) -> tuple[cudaError_t, int | None]:
    return _allocate(size, _device_memory)


def cudaMallocHost(size: int) -> tuple[cudaError_t, int | None]:
    return _allocate(size, _pinned_memory)


def cudaFree(devPtr: int) -> tuple[cudaError_t]:
    return (_OK if _device_memory.pop(devPtr, None) else _failed(_INVALID),)


def cudaFreeHost(ptr: int) -> tuple[cudaError_t]:
    return (_OK if _pinned_memory.pop(ptr, None) else _failed(_INVALID),)


def _allocate(size: int, memory: dict[int, Any]) -> tuple[cudaError_t, int | None]:
    if not _devices():
        return _failed(cudaError_t.cudaErrorNoDevice), None
    block = (ctypes.c_ubyte * size)()
    memory[ctypes.addressof(block)] = block
    return _OK, ctypes.addressof(block)


def _known(address: int, size: int) -> bool:
    """Whether the bytes lie in one allocation."""
    blocks = [*_device_memory.items(), *_pinned_memory.items()]
    return any(start <= address and address + size <= start + len(block) for start, block in blocks)


def cudaMemcpyAsync(dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: cudaStream_t) -> tuple[cudaError_t]:
    if int(stream) not in _streams:
        return (_failed(cudaError_t.cudaErrorInvalidResourceHandle),)
    if kind != cudaMemcpyKind.cudaMemcpyDefault or not (_known(dst, count) and _known(src, count)):
        return (_failed(_INVALID),)
    stream._push(lambda: ctypes.memmove(dst, src, count) and None)
    return (_OK,)


def cudaStreamCreateWithFlags(flags: int) -> tuple[cudaError_t, cudaStream_t | None]:
    if not _devices():
        return _failed(cudaError_t.cudaErrorNoDevice), None
    stream = cudaStream_t()
    _streams[int(stream)] = stream
    return _OK, stream


def cudaStreamDestroy(stream: cudaStream_t) -> tuple[cudaError_t]:
    gone = _streams.pop(int(stream), None)
    return (_OK if gone else _failed(cudaError_t.cudaErrorInvalidResourceHandle),)


def cudaStreamSynchronize(stream: cudaStream_t | int) -> tuple[cudaError_t]:
    if int(stream) not in _streams:
        return (_failed(cudaError_t.cudaErrorInvalidResourceHandle),)
    known = _streams[int(stream)]
    if known.capture is not None:
        known.broken = True
        return (_failed(cudaError_t.cudaErrorIllegalState),)
    while known.work:
        known.work.pop(0)()
    return (_OK,)


def cudaDeviceSynchronize() -> tuple[cudaError_t]:
    for stream in list(_streams.values()):
        cudaStreamSynchronize(stream)
    return (_OK,)


def cudaStreamBeginCapture(stream: cudaStream_t, mode: cudaStreamCaptureMode) -> tuple[cudaError_t]:
    if stream.capture is not None:
        return (_failed(cudaError_t.cudaErrorIllegalState),)
    stream.capture, stream.broken = [], False
    return (_OK,)


def cudaStreamEndCapture(stream: cudaStream_t) -> tuple[cudaError_t, cudaGraph_t | None]:
    if stream.capture is None:
        return _failed(cudaError_t.cudaErrorIllegalState), None
    work, stream.capture = stream.capture, None
    if stream.broken:
        return _failed(cudaError_t.cudaErrorStreamCaptureInvalidated), None
    return _OK, cudaGraph_t(work)


def cudaGraphInstantiate(graph: cudaGraph_t, flags: int) -> tuple[cudaError_t, cudaGraphExec_t | None]:
    return _OK, cudaGraphExec_t(list(graph.work))


def cudaGraphLaunch(graphExec: cudaGraphExec_t, stream: cudaStream_t) -> tuple[cudaError_t]:
    for work in graphExec.work:
        stream._push(work)
    return (_OK,)


def cudaGraphDestroy(graph: cudaGraph_t) -> tuple[cudaError_t]:
    return (_OK if isinstance(graph, cudaGraph_t) else _failed(_INVALID),)


def cudaGraphExecDestroy(graphExec: cudaGraphExec_t) -> tuple[cudaError_t]:
    return (_OK if isinstance(graphExec, cudaGraphExec_t) else _failed(_INVALID),)


def cudaGetLastError() -> tuple[cudaError_t]:
    error, _last_error[0] = _last_error[0], _OK
    return (error,)


def cudaGetErrorString(error: cudaError_t) -> tuple[cudaError_t, bytes]:
    return _OK, error.name.encode()
