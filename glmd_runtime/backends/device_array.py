"""Arrays of other libraries that lie on a CUDA device: where, and of what form, without a copy to the host."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from glmd_runtime.backends import cuda
from glmd_runtime.errors import FrameError

_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13  # DLDeviceType
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLDataTypeCode -> numpy's letter


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array on the device; `owner` keeps it alive."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any


def is_on_device(value: Any) -> bool:
    """Whether an array lies on a CUDA device, as far as it can say so itself."""
    if hasattr(value, "__dlpack_device__"):
        with suppress(Exception):  # of whatever kind; what cannot say where it is fails when it is read
            return value.__dlpack_device__()[0] in (_CUDA, _CUDA_MANAGED)
        return False
    return hasattr(value, "__cuda_array_interface__")


def device_array(value: Any, stream: Any, device: int) -> DeviceArray:
    """View an array on the device, by DLPack where it speaks it, else by `__cuda_array_interface__`.

    What its library still computes into it is done before `stream` goes on.

    Raises: FrameError for an array on another device, or not contiguous, or one that its library does not give away.
    """
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(value, stream, device)
    interface = value.__cuda_array_interface__
    _wait_for_producer(interface)
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides = interface.get("strides")
    _check_contiguous(value, shape, strides and [step // dtype.itemsize for step in strides])
    return DeviceArray(interface["data"][0], shape, dtype, value)


def _wait_for_producer(interface: dict[str, Any]) -> None:
    """Version 3 names the stream to wait for, or None for no need; before it, nothing is known."""
    if "stream" not in interface:
        cuda.call("cudaDeviceSynchronize")
    elif interface["stream"] is not None:
        cuda.call("cudaStreamSynchronize", interface["stream"])


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h, with DLDevice and DLDataType unfolded."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _from_dlpack(value: Any, stream: Any, device: int) -> DeviceArray:
    index = value.__dlpack_device__()[1]
    if index != device:
        raise FrameError(f"The array must lie on cuda:{device}, as the engine does; got cuda:{index}. Move it there.")
    try:
        capsule = value.__dlpack__(stream=int(stream))
    except Exception as error:  # each library has its own kinds of error, and they share no base
        raise FrameError(
            f"An array on the device must be one that DLPack can pass on; got {type(value).__name__}: {error}. "
            "Of a torch tensor, pass tensor.detach()."
        ) from error
    tensor = _Tensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[: tensor.ndim])
    _check_contiguous(value, shape, tensor.strides[: tensor.ndim] if tensor.strides else None)
    dtype = np.dtype(f"{_KINDS.get(tensor.code, 'V')}{tensor.bits // 8}")
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, dtype, capsule)


def _check_contiguous(value: Any, shape: tuple[int, ...], strides: list[int] | None) -> None:
    """`strides` in elements; None says contiguous. Axes of length 1 may have any."""
    expected = 1
    for length, step in zip(reversed(shape), reversed(strides or []), strict=False):
        if length > 1 and step != expected:
            raise FrameError(
                f"An array on the device must be contiguous; got {type(value).__name__} of shape {shape} and strides "
                f"{tuple(strides or ())}. Of a torch tensor, pass tensor.contiguous()."
            )
        expected *= length
