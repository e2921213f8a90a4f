"""The two operations of the network that inference engines disagree on, as a strategy of the exported graph.

Each operation is a PyTorch custom operator with an ONNX translation of its own, for three reasons. The exporter traces
a custom operator as one opaque call of a declared shape, so nothing data-dependent enters the graph. Its eager kernel
is torchvision's, so the wrapped model still runs, and is tested, in PyTorch. And the translations that ship with the
exporter leave shapes open (NonMaxSuppression) or change with its releases, ours do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import torchvision.ops
from onnxscript import opset18 as onnx_op
from onnxscript.onnx_types import FLOAT, INT64
from torch import Tensor

_LOWEST = torch.finfo(torch.float32).min


class Ops(Protocol):
    """What an exported graph needs from its engine beside arithmetic, convolutions, MatMul, Softmax and TopK."""

    @property
    def translations(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        """The ONNX translation of each custom operator that the strategy calls."""

    def roi_align(self, features: Tensor, boxes: Tensor, bins: int, stride: int) -> Tensor:
        """Aligned, adaptively sampled RoiAlign.

        Args: features (B, C, H, W); boxes (B, R, 4) xyxy in network pixels, `stride` of them to a cell.
        Returns: (B R, C, bins, bins), image by image.
        """

    def select_proposals(self, boxes: Tensor, scores: Tensor, number: int, iou: float) -> tuple[Tensor, Tensor]:
        """Non-maximum suppression to a fixed number of rows.

        Args: boxes (B, N, 4) xyxy; scores (B, N) finite, of any range.
        Returns: of each image the `number` = R best boxes that are not empty and overlap no better kept box by more
            than `iou`: boxes (B, R, 4), best first, then rows of zeros; valid (B, R) bool, False for these.
        """


class StandardOps:
    """ONNX RoiAlign and NonMaxSuppression: for ONNX Runtime and OpenVINO."""

    @property
    def translations(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        return {
            torch.ops.glmd.roi_align.default: _roi_align_to_onnx,
            torch.ops.glmd.suppress.default: _suppress_to_onnx,
        }

    def roi_align(self, features: Tensor, boxes: Tensor, bins: int, stride: int) -> Tensor:
        return roi_align(features, boxes, bins, stride)

    def select_proposals(self, boxes: Tensor, scores: Tensor, number: int, iou: float) -> tuple[Tensor, Tensor]:
        full = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)  # (B, N)
        scores = torch.where(full, scores, -torch.inf)
        rows = torch.stack([suppress(*image, number, iou) for image in zip(boxes, scores, strict=True)])  # (B, R)
        padded = F.pad(boxes, (0, 0, 0, 1))  # (B, N + 1, 4): the rows past the last kept one read a box of zeros
        return padded.gather(1, rows[:, :, None].expand(-1, -1, 4)), rows < boxes.shape[1]


@torch.library.custom_op("glmd::roi_align", mutates_args=())
def roi_align(features: Tensor, boxes: Tensor, bins: int, stride: int) -> Tensor:
    """`Ops.roi_align` by torchvision."""
    return torchvision.ops.roi_align(features, list(boxes), bins, 1 / stride, sampling_ratio=0, aligned=True)


@roi_align.register_fake
def _(features: Tensor, boxes: Tensor, bins: int, stride: int) -> Tensor:
    return features.new_empty(boxes.shape[0] * boxes.shape[1], features.shape[1], bins, bins)


def _roi_align_to_onnx(features: FLOAT, boxes: FLOAT, bins: int, stride: int) -> FLOAT:
    b, r, _ = boxes.shape
    image_of_row = onnx_op.Constant(value_ints=[image for image in range(b) for _ in range(r)])  # (B R,)
    rows = onnx_op.Reshape(boxes, onnx_op.Constant(value_ints=[-1, 4]))  # (B, R, 4) -> (B R, 4)
    return onnx_op.RoiAlign(
        features, rows, image_of_row, coordinate_transformation_mode="half_pixel", mode="avg",
        output_height=bins, output_width=bins, sampling_ratio=0, spatial_scale=1 / stride,
    )


@torch.library.custom_op("glmd::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, number: int, iou: float) -> Tensor:
    """NMS of one image by torchvision.

    Args: boxes (N, 4); scores (N,), -inf for a box that is never kept.
    Returns: (number,) int64 indices of the kept boxes, best first, then N.
    """
    possible = torch.nonzero(scores > -torch.inf)[:, 0]
    kept = possible[torchvision.ops.nms(boxes[possible], scores[possible], iou)[:number]]
    return F.pad(kept, (0, number - len(kept)), value=len(boxes))


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, number: int, iou: float) -> Tensor:
    return boxes.new_empty(number, dtype=torch.int64)


def _suppress_to_onnx(boxes: FLOAT, scores: FLOAT, number: int, iou: float) -> INT64:
    chosen = onnx_op.NonMaxSuppression(
        onnx_op.Unsqueeze(boxes, onnx_op.Constant(value_ints=[0])),  # (N, 4) -> (1, N, 4)
        onnx_op.Unsqueeze(scores, onnx_op.Constant(value_ints=[0, 1])),  # (N,) -> (1, 1, N)
        onnx_op.Constant(value_ints=[number]),
        onnx_op.Constant(value_floats=[iou]),
        onnx_op.Constant(value_floats=[_LOWEST]),
    )  # (kept, 3): image, class, row
    rows = onnx_op.Gather(chosen, onnx_op.Constant(value_int=2), axis=1)  # (kept,), kept <= number
    filled = onnx_op.Concat(rows, onnx_op.Constant(value_ints=[boxes.shape[0]] * number), axis=0)
    first = onnx_op.Slice(filled, onnx_op.Constant(value_ints=[0]), onnx_op.Constant(value_ints=[number]))
    # To the same shape, so that engines know it when they compile: everything behind it is then static.
    return onnx_op.Reshape(first, onnx_op.Constant(value_ints=[number]))
