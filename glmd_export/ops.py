"""The two operations of the network that inference engines disagree on, as a strategy of the exported graph.

    standard  ONNX RoiAlign and NonMaxSuppression            ONNX Runtime, OpenVINO
    plain     matrix products and a fixed number of rounds   TensorRT-RTX, TensorRT, anything else
    plugin    this project's CUDA operators (cpp_plugins)    TensorRT with the plugin library

What no engine has in its own vocabulary is a PyTorch custom operator with an ONNX translation of its own, for three
reasons. The exporter traces a custom operator as one opaque call of a declared shape, so nothing data-dependent enters
the graph. Its eager kernel is torchvision's, so the wrapped model still runs, and is tested, in PyTorch. And the
translations that ship with the exporter leave shapes open (NonMaxSuppression) or change with its releases, ours do not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import torchvision.ops
from onnx.defs import OpSchema, register_schema
from onnxscript import opset18 as onnx_op
from onnxscript.onnx_types import BOOL, FLOAT, INT64
from onnxscript.values import Opset
from torch import Tensor

from glmd_train.model.anchors import decode
from glmd_train.model.rpn import RPN_WEIGHTS

PLUGIN_DOMAIN = "glmd"
# Suppression chains of up to so many boxes are resolved exactly by `matrix_keep`; an even number, see there.
NMS_ROUNDS = 16
# TensorRT's TopK gives 3840 rows at most.
PLAIN_TOPK_LIMIT = 3000
_LOWEST = torch.finfo(torch.float32).min

Translations = Mapping[Callable[..., Any], Callable[..., Any]]


class Ops(Protocol):
    """What an exported graph needs from its engine beside arithmetic, convolutions, MatMul, Softmax and TopK."""

    @property
    def translations(self) -> Translations:
        """The ONNX translation of each custom operator that the strategy calls."""

    def roi_align(self, features: Tensor, boxes: Tensor, bins: int, stride: int) -> Tensor:
        """Aligned, adaptively sampled RoiAlign.

        Args: features (B, C, H, W); boxes (B, R, 4) xyxy in network pixels, `stride` of them to a cell.
        Returns: (B R, C, bins, bins), image by image.
        """

    def select_proposals(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, edges: Tensor, *, topk: int, number: int, iou: float
    ) -> tuple[Tensor, Tensor]:
        """The best anchors, decoded, clipped and thinned out to a fixed number of rows; see `RPN.select`.

        Args: objectness (B, N) logits; deltas (B, N, 4); anchors (N, 4) xyxy; edges (B, 4), width, height, width and
            height of the valid area; topk anchors enter the suppression.
        Returns: of each image the `number` = R best boxes that are not empty and overlap no better kept box by more
            than `iou`: boxes (B, R, 4), best first, then rows of zeros; valid (B, R) bool, False for these.
        """


class _Suppressing(ABC):
    """Operations that decode the best anchors in the graph's own arithmetic, and then suppress."""

    topk_limit = math.inf

    def select_proposals(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, edges: Tensor, *, topk: int, number: int, iou: float
    ) -> tuple[Tensor, Tensor]:
        best, index = objectness.topk(int(min(max(topk, number), len(anchors), self.topk_limit)))  # (B, top)
        chosen = deltas.gather(1, index[:, :, None].expand(-1, -1, 4))  # (B, top, 4)
        boxes = clip(decode(chosen, anchors[index], RPN_WEIGHTS), edges[:, None])
        return self.suppress(boxes, best, number, iou)

    @abstractmethod
    def suppress(self, boxes: Tensor, scores: Tensor, number: int, iou: float) -> tuple[Tensor, Tensor]:
        """(B, N, 4), (B, N) falling -> what `Ops.select_proposals` returns."""


class StandardOps(_Suppressing):
    """ONNX RoiAlign and NonMaxSuppression."""

    @property
    def translations(self) -> Translations:
        return {
            torch.ops.glmd.roi_align.default: _roi_align_to_onnx,
            torch.ops.glmd.suppress.default: _suppress_to_onnx,
        }

    def roi_align(self, features: Tensor, boxes: Tensor, bins: int, stride: int) -> Tensor:
        return roi_align(features, boxes, bins, stride)

    def suppress(self, boxes: Tensor, scores: Tensor, number: int, iou: float) -> tuple[Tensor, Tensor]:
        scores = torch.where(full(boxes), scores, -torch.inf)
        rows = torch.stack([suppress(*image, number, iou) for image in zip(boxes, scores, strict=True)])  # (B, R)
        padded = F.pad(boxes, (0, 0, 0, 1))  # (B, N + 1, 4): the rows past the last kept one read a box of zeros
        return padded.gather(1, rows[:, :, None].expand(-1, -1, 4)), rows < boxes.shape[1]


class PlainOps(_Suppressing):
    """Nothing but arithmetic, MatMul, TopK and Gather: builds under TensorRT-RTX, and runs anywhere.

    At most PLAIN_TOPK_LIMIT anchors enter the suppression, which is exact for chains of up to NMS_ROUNDS boxes.
    RoiAlign is exact for boxes no longer than the feature map, which clipped proposals never are.
    """

    topk_limit = PLAIN_TOPK_LIMIT

    @property
    def translations(self) -> Translations:
        return {}

    def roi_align(self, features: Tensor, boxes: Tensor, bins: int, stride: int) -> Tensor:
        """RoiAlign separates into out[r, c] = Y[r] F[c] X[r]^T: two matrix products, dense but in every vocabulary."""
        b, c, h, w = features.shape
        r = boxes.shape[1]
        cells = boxes.float() / stride - 0.5  # coordinates stay float32 whatever the features are
        y = interpolation(cells[..., 1], cells[..., 3], bins, h).to(features.dtype)  # (B, R, bins, H)
        x = interpolation(cells[..., 0], cells[..., 2], bins, w).to(features.dtype)  # (B, R, bins, W)
        columns = features.reshape(b, c * h, w) @ x.reshape(b, r * bins, w).transpose(1, 2)  # (B, C H, R bins)
        columns = columns.reshape(b, c, h, r, bins).permute(0, 3, 1, 2, 4)  # (B, R, C, H, bins)
        return (y[:, :, None] @ columns).flatten(0, 1)  # (B, R, 1, bins, H) @ (B, R, C, H, bins) -> (B R, C, ...)

    def suppress(self, boxes: Tensor, scores: Tensor, number: int, iou: float) -> tuple[Tensor, Tensor]:
        keep = matrix_keep(boxes, full(boxes), iou)  # (B, N)
        boxes, keep = (F.pad(t, pad) for t, pad in ((boxes, (0, 0, 0, number)), (keep, (0, number))))  # N >= R
        falling = torch.arange(keep.shape[1], 0, -1, device=keep.device)  # exact in float32, as there are few
        ranks, index = (keep * falling).topk(number)  # (B, R), the kept ones in their order first
        valid = ranks > 0
        return boxes.gather(1, index[:, :, None].expand(-1, -1, 4)) * valid[:, :, None], valid


class PluginOps:
    """The CUDA operators of cpp_plugins; in PyTorch they are what `StandardOps` computes."""

    @property
    def translations(self) -> Translations:
        return {
            torch.ops.glmd.roi_align.default: _roi_align_to_plugin,
            torch.ops.glmd.select_proposals.default: _select_proposals_to_plugin,
        }

    def roi_align(self, features: Tensor, boxes: Tensor, bins: int, stride: int) -> Tensor:
        return roi_align(features, boxes, bins, stride)

    def select_proposals(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, edges: Tensor, *, topk: int, number: int, iou: float
    ) -> tuple[Tensor, Tensor]:
        return select_proposals(objectness, deltas, anchors, edges, topk, number, iou)


OPS: Mapping[str, Callable[[], Ops]] = {"standard": StandardOps, "plain": PlainOps, "plugin": PluginOps}


def clip(boxes: Tensor, edges: Tensor) -> Tensor:
    """(..., 4) boxes cut to 0..edges; edges broadcast against them."""
    return torch.minimum(boxes.clamp(min=0), edges)


def interpolation(low: Tensor, high: Tensor, bins: int, length: int) -> Tensor:
    """One axis of RoiAlign as matrices: the weight of each cell in each bin.

    Args: low, high (...,) ends of the boxes in cells, from the first cell's centre, at most `length` apart.
    Returns: (..., bins, length) float32; the mean of `ceil(bin size)` bilinear samples spread evenly over the bin.
    """
    size = ((high - low) / bins)[..., None, None]  # (..., 1, 1) of a bin
    number = size.ceil().clamp(min=1)
    sample = torch.arange(-(-length // bins), device=low.device)  # (S,)
    first = low[..., None, None] + torch.arange(bins, device=low.device)[:, None] * size  # (..., bins, 1)
    at = first + (sample + 0.5) * size / number  # (..., bins, S)
    counts = (sample < size.ceil()) & (at >= -1) & (at <= length)  # further out there is nothing
    distance = at.clamp(0, length - 1)[..., None] - torch.arange(length, device=low.device)  # (..., bins, S, length)
    hats = (1 - distance.abs()).clamp(min=0)  # bilinear weights
    return (hats * (counts / number)[..., None]).sum(dim=-2)


def matrix_keep(boxes: Tensor, alive: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression as NMS_ROUNDS rounds of a fixed point iteration.

    Args: boxes (..., N, 4), best first; alive (..., N) bool, False for what is never kept and suppresses nothing.
    Returns: (..., N) float32, 1 for the kept boxes.

    Round t settles every box at the end of a suppression chain of up to t boxes. What is not settled after an even
    number of rounds is kept: beyond the last round a duplicate may stay, but no object is lost.
    """
    overlap = torch.triu(pairwise_iou(boxes) > iou, diagonal=1).float()  # (..., N, N): row suppresses column
    alive = alive.float()
    keep = alive
    for _ in range(NMS_ROUNDS):
        suppressed = keep[..., None, :] @ overlap  # (..., 1, N): by how many kept boxes
        keep = alive * (suppressed[..., 0, :] < 0.5)
    return keep


def pairwise_iou(boxes: Tensor) -> Tensor:
    """(..., N, 4) -> (..., N, N), with the roundings of torchvision's nms; 0 where both are empty."""
    top_left = torch.maximum(boxes[..., :, None, :2], boxes[..., None, :, :2])  # (..., N, N, 2)
    bottom_right = torch.minimum(boxes[..., :, None, 2:], boxes[..., None, :, 2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])  # (..., N)
    inter = width * height
    return inter / (area[..., :, None] + area[..., None, :] - inter).clamp(min=torch.finfo(torch.float32).tiny)


def full(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...) bool, False for empty and inverted boxes."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


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


def _plugin_schema(
    name: str, inputs: dict[str, str], outputs: dict[str, str], **attributes: OpSchema.AttrType
) -> OpSchema:
    """The contract of a CUDA operator (cpp_plugins/README.md): argument -> type; "T" is half or float."""
    sides = ([OpSchema.FormalParameter(n, t) for n, t in side.items()] for side in (inputs, outputs))
    types = ("T", ["tensor(float16)", "tensor(float)"], "type of the features")
    needed = [OpSchema.Attribute(key, kind) for key, kind in attributes.items()]
    return OpSchema(
        name, PLUGIN_DOMAIN, 1, "", inputs=next(sides), outputs=next(sides),
        type_constraints=[types] if "T" in inputs.values() else [], attributes=needed,
    )


_float, _int, _real = "tensor(float)", OpSchema.AttrType.INT, OpSchema.AttrType.FLOAT
register_schema(_plugin_schema(
    "GlmdRoiAlign", {"features": "T", "rois": _float}, {"aligned": "T"}, bins=_int, stride=_int, sampling_ratio=_int
))
register_schema(_plugin_schema(
    "GlmdSelectProposals", {"objectness": _float, "deltas": _float, "anchors": _float, "edges": _float},
    {"selected": _float, "valid": "tensor(bool)"}, pre_nms_topk=_int, proposals=_int, iou=_real,
))
_glmd_op = Opset(PLUGIN_DOMAIN, 1)


def _roi_align_to_plugin(features: FLOAT, boxes: FLOAT, bins: int, stride: int) -> FLOAT:
    return _glmd_op.GlmdRoiAlign(features, boxes, bins=bins, stride=stride, sampling_ratio=0)


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


@torch.library.custom_op("glmd::select_proposals", mutates_args=())
def select_proposals(
    objectness: Tensor, deltas: Tensor, anchors: Tensor, edges: Tensor, topk: int, number: int, iou: float
) -> tuple[Tensor, Tensor]:
    """`Ops.select_proposals` by torchvision."""
    return StandardOps().select_proposals(objectness, deltas, anchors, edges, topk=topk, number=number, iou=iou)


@select_proposals.register_fake
def _(
    objectness: Tensor, deltas: Tensor, anchors: Tensor, edges: Tensor, topk: int, number: int, iou: float
) -> tuple[Tensor, Tensor]:
    rows = len(objectness), number
    return objectness.new_empty(*rows, 4), objectness.new_empty(rows, dtype=torch.bool)


def _select_proposals_to_plugin(
    objectness: FLOAT, deltas: FLOAT, anchors: FLOAT, edges: FLOAT, topk: int, number: int, iou: float
) -> tuple[FLOAT, BOOL]:
    return _glmd_op.GlmdSelectProposals(
        objectness, deltas, anchors, edges, pre_nms_topk=topk, proposals=number, iou=iou
    )
