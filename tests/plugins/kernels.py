"""The plugins' kernels as functions of numpy arrays: on the CPU under the shim, or on the device."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

ORDERS = ("forward", "reverse", "shuffled")


class RoiAlign(ctypes.Structure):
    """`glmd::RoiAlign` of roi_align/roi_align.h."""

    _fields_ = [(name, ctypes.c_int) for name in (
        "images", "rois", "channels", "height", "width", "bins", "stride", "sampling_ratio",
    )]


class SelectProposals(ctypes.Structure):
    """`glmd::SelectProposals` of select_proposals/select_proposals.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("images", "anchors", "pre_nms_topk", "proposals")), ("iou", ctypes.c_float),
    ]


class HostKernels:
    """The operators on the CPU, with the threads of a block in a chosen order. `library`: libglmd_host.so."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.glmd_workspace_bytes.restype = ctypes.c_size_t

    def roi_align(
        self, features: np.ndarray, rois: np.ndarray, bins: int, stride: int, sampling_ratio: int, *,
        hwc8: bool = False,
    ) -> np.ndarray:
        """(B, C, H, W) half or float, (B, R, 4) float -> (B R, C, bins, bins); `hwc8`: through channels-last memory."""
        (b, c, h, w), r = features.shape, rois.shape[1]
        shape = (b * r, c, bins, bins)
        if hwc8:
            features = np.pad(features.transpose(0, 2, 3, 1), [(0, 0)] * 3 + [(0, -c % 8)])  # (B, H, W, 8 C8)
            shape = (b * r, bins, bins, features.shape[-1])
        inputs = [self._place(features), self._place(rois.astype(np.float32))]
        out = self._place(np.full(shape, np.nan, features.dtype))
        problem = RoiAlign(b, r, c, h, w, bins, stride, sampling_ratio)
        half = int(features.dtype == np.float16)
        addresses = map(self._address, (*inputs, out))
        self._check(self.library.glmd_roi_align(ctypes.byref(problem), half, int(hwc8), *addresses, None))
        pooled = self._fetch(out)
        return pooled[..., :c].transpose(0, 3, 1, 2) if hwc8 else pooled

    def select_proposals(
        self, objectness: np.ndarray, deltas: np.ndarray, anchors: np.ndarray, edges: np.ndarray, *,
        pre_nms_topk: int, proposals: int, iou: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B, N), (B, N, 4), (N, 4), (B, 4) -> (B, R, 4), (B, R) bool."""
        b, n = objectness.shape
        problem = SelectProposals(b, n, pre_nms_topk, proposals, iou)
        inputs = [self._place(array.astype(np.float32)) for array in (objectness, deltas, anchors, edges)]
        boxes = self._place(np.full((b, proposals, 4), np.nan, np.float32))
        valid = self._place(np.full((b, proposals), 2, np.uint8))
        workspace = self._place(np.full(self.library.glmd_workspace_bytes(ctypes.byref(problem)), 255, np.uint8))
        addresses = map(self._address, (*inputs, boxes, valid, workspace))
        self._check(self.library.glmd_select_proposals(ctypes.byref(problem), *addresses, None))
        flags = self._fetch(valid)
        assert flags.max() <= 1, "a row of `valid` was not written"
        return self._fetch(boxes), flags.astype(bool)

    def decode(self, deltas: np.ndarray, anchors: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """(N, 4), (N, 4), (4,) -> decoded, clipped boxes (N, 4)."""
        arrays = [self._place(a.astype(np.float32)) for a in (deltas, anchors, edges)]
        boxes = np.empty_like(arrays[0])
        self.library.glmd_decode(len(boxes), *map(self._address, (*arrays, boxes)))
        return boxes

    def schedule(self, order: str, seed: int = 0) -> None:
        self.library.glmd_schedule(ORDERS.index(order), seed)

    def leave_out_barrier(self, name: str) -> None:
        """Empty: none."""
        self.library.glmd_leave_out_barrier(name.encode())

    def _place(self, array: np.ndarray) -> Any:
        """Into the kernels' memory. float4 reads need an array at a multiple of 16 bytes, which numpy's are."""
        return np.ascontiguousarray(array)

    def _address(self, array: Any) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    def _fetch(self, array: Any) -> np.ndarray:
        return array

    def _check(self, error: int) -> None:
        if error:
            raise RuntimeError(f"the kernels returned cudaError_t {error}")


class DeviceKernels(HostKernels):
    """The operators on the GPU, in torch's memory. `library`: libglmd_kernels.so."""

    def _place(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).cuda()

    def _address(self, array: Any) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.data_ptr())

    def _fetch(self, array: Any) -> np.ndarray:
        return array.cpu().numpy()  # waits for the default stream, on which the kernels run
