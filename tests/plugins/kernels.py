"""The plugins' kernels as functions of arrays: on the CPU under the shim, or on the device through torch's memory."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import torch

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


class Kernels:
    """The two operators on `device`.

    Args: library: glmd_host for "cpu", glmd_kernels for "cuda".
    """

    def __init__(self, library: Path, device: str = "cpu") -> None:
        self.library, self.device = ctypes.CDLL(str(library)), device
        self.library.glmd_workspace_bytes.restype = ctypes.c_size_t

    def roi_align(
        self, features: torch.Tensor, rois: torch.Tensor, bins: int, stride: int, sampling_ratio: int = 0,
        hwc8: bool = False,
    ) -> torch.Tensor:
        """(B, C, H, W) half or float, (B, R, 4) float -> (B R, C, bins, bins); `hwc8`: through channels-last memory."""
        (b, c, h, w), r = features.shape, rois.shape[1]
        data = features.to(self.device).contiguous()
        if hwc8:
            data = torch.nn.functional.pad(data.permute(0, 2, 3, 1), (0, -c % 8)).contiguous()  # (B, H, W, 8 C8)
        shape = (b * r, bins, bins, data.shape[-1]) if hwc8 else (b * r, c, bins, bins)
        out = torch.full(shape, torch.nan, dtype=data.dtype, device=self.device)
        boxes = rois.float().to(self.device).contiguous()
        problem = RoiAlign(b, r, c, h, w, bins, stride, sampling_ratio)
        self._check(self.library.glmd_roi_align(
            ctypes.byref(problem), int(data.dtype == torch.float16), int(hwc8), *map(_address, (data, boxes, out)), None,
        ))
        return (out[..., :c].permute(0, 3, 1, 2) if hwc8 else out).cpu()

    def select_proposals(
        self, objectness: np.ndarray, deltas: np.ndarray, anchors: np.ndarray, edges: np.ndarray, *,
        pre_nms_topk: int, proposals: int, iou: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B, N), (B, N, 4), (N, 4), (B, 4) -> (B, R, 4), (B, R) bool."""
        b, n = objectness.shape
        problem = SelectProposals(b, n, pre_nms_topk, proposals, iou)
        arrays = [
            torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(self.device)
            for a in (objectness, deltas, anchors, edges)
        ]
        boxes = torch.full((b, proposals, 4), torch.nan, device=self.device)
        valid = torch.full((b, proposals), 2, dtype=torch.uint8, device=self.device)
        size = self.library.glmd_workspace_bytes(ctypes.byref(problem))
        workspace = torch.full((size,), 255, dtype=torch.uint8, device=self.device)
        self._check(self.library.glmd_select_proposals(
            ctypes.byref(problem), *map(_address, (*arrays, boxes, valid, workspace)), None,
        ))
        return boxes.cpu().numpy(), valid.cpu().numpy().astype(bool)

    def _check(self, error: int) -> None:
        if error:
            raise RuntimeError(f"the kernels returned cudaError_t {error}")
        if self.device == "cuda":
            torch.cuda.synchronize()


class HostKernels(Kernels):
    """The kernels on the CPU, with threads in a chosen order."""

    def schedule(self, order: str, seed: int = 0) -> None:
        self.library.glmd_schedule(ORDERS.index(order), seed)

    def leave_out_barrier(self, name: str) -> None:
        """Empty: none."""
        self.library.glmd_leave_out_barrier(name.encode())

    def decode(self, deltas: np.ndarray, anchors: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """(N, 4), (N, 4), (4,) -> decoded, clipped boxes (N, 4)."""
        arrays = [np.ascontiguousarray(a, dtype=np.float32) for a in (deltas, anchors, edges)]
        boxes = np.empty_like(arrays[0])
        self.library.glmd_decode(len(boxes), *(a.ctypes.data_as(ctypes.c_void_p) for a in (*arrays, boxes)))
        return boxes


def _address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
