"""Arrays on the fake device, as torch, cupy and pycuda would pass them on."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


class _Array:
    """A copy of a numpy array in device memory; `work` is what its library still has to compute into it."""

    def __init__(self, array: np.ndarray, strides: tuple[int, ...] | None = None, device: int = 0) -> None:
        from cuda.bindings import runtime

        self._runtime, self._array, self._device = runtime, np.ascontiguousarray(array), device
        self.shape, self.dtype, self._strides = array.shape, array.dtype, strides  # strides in elements
        self.pointer = runtime.cudaMalloc(self._array.nbytes)[1]
        self._stream = runtime.cudaStreamCreateWithFlags(1)[1]
        self._stream._push(lambda: ctypes.memmove(self.pointer, self._array.ctypes.data, self._array.nbytes))


class CudaArray(_Array):
    """Speaks `__cuda_array_interface__`, version 2 (which knows no stream) or 3, as pycuda does."""

    version = 3

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        strides = self._strides and tuple(step * self.dtype.itemsize for step in self._strides)
        known = {"shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "strides": strides}
        return {**known, "version": self.version, **({"stream": int(self._stream)} if self.version == 3 else {})}


class OldCudaArray(CudaArray):
    version = 2


class _DLDevice(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("dl_tensor", _DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class DlpackArray(_Array):
    """Speaks DLPack, as torch and cupy do; the data begin one element into its memory."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device

    def __dlpack__(self, *, stream: int) -> Any:
        # What this library has under way comes first in the consumer's stream.
        self._runtime._stream_at(stream)._push(lambda: self._runtime.cudaStreamSynchronize(self._stream) and None)
        size, axes = self.dtype.itemsize, len(self.shape)
        code = {"i": 0, "u": 1, "f": 2, "b": 6}[self.dtype.kind]
        shape = (ctypes.c_int64 * axes)(*self.shape)
        strides = (ctypes.c_int64 * axes)(*self._strides) if self._strides else None
        device, dtype = _DLDevice(*self.__dlpack_device__()), _DLDataType(code, size * 8, 1)
        tensor = _DLTensor(self.pointer - size, device, axes, dtype, shape, strides, size)
        self._managed = _DLManagedTensor(tensor, None, None)
        return _new_capsule(ctypes.addressof(self._managed), b"dltensor", None)
