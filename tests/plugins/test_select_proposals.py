"""GlmdSelectProposals' kernels against `RPN.select`, and a slow oracle with a settled order of ties."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, nms

from glmd_train.model.anchors import MAX_LOG_SCALE, AnchorGenerator, clip_boxes, decode
from glmd_train.model.rpn import NMS_IOU, RPN, RPN_WEIGHTS
from tests.plugins.cases import SELECTIONS, Selection, selection
from tests.plugins.kernels import ORDERS, HostKernels

SEEDS = range(40)
EDGES = np.array([[100.0, 100.0, 100.0, 100.0]])


def select(kernels: HostKernels, case: Selection) -> tuple[np.ndarray, np.ndarray]:
    return kernels.select_proposals(
        case.objectness, case.deltas, case.anchors, case.edges,
        pre_nms_topk=case.pre_nms_topk, proposals=case.proposals, iou=case.iou,
    )


def kept_of(kernels: HostKernels, scores: list[float], boxes: np.ndarray, **attributes: float) -> list[list[float]]:
    """The proposals of one image whose anchors are the boxes, moved by nothing."""
    attributes = {"pre_nms_topk": 100, "proposals": len(scores), "iou": 0.5, **attributes}
    out, valid = kernels.select_proposals(
        np.array([scores]), np.zeros((1, len(boxes), 4)), np.asarray(boxes, float), EDGES, **attributes
    )
    return out[0][valid[0]].tolist()


def candidates(case: Selection, image: int) -> torch.Tensor:
    """Boxes that enter the NMS, best first, ties by lower index."""
    k = max(case.pre_nms_topk, case.proposals)
    best = torch.from_numpy(case.objectness[image]).sort(descending=True, stable=True).indices[:k]
    boxes = decode(torch.from_numpy(case.deltas[image])[best], torch.from_numpy(case.anchors)[best], RPN_WEIGHTS)
    boxes = clip_boxes(boxes, torch.from_numpy(case.edges[image, :2]).flip(0))
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]


def expected(case: Selection, boxes: torch.Tensor) -> np.ndarray:
    order = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    return boxes[nms(boxes, order, float(np.float32(case.iou)))[: case.proposals]].numpy()


def undecided(case: Selection, boxes: torch.Tensor) -> bool:
    """Whether the last bit of an exp may turn an overlap, or make a box empty."""
    overlaps = box_iou(boxes, boxes)
    thin = (boxes[:, 2:] - boxes[:, :2] < 1e-4).any()
    return bool(thin or ((overlaps - case.iou).abs() < 1e-5).any())


@pytest.mark.parametrize("kind", SELECTIONS)
def test_proposals_equal_the_oracle(kernels: HostKernels, kind: str) -> None:
    judged = 0
    for seed in SEEDS:
        case = selection(kind, seed)
        boxes, valid = select(kernels, case)
        for image in range(len(boxes)):
            entering = candidates(case, image)
            if undecided(case, entering):
                continue
            judged += 1
            wanted = expected(case, entering)
            assert valid[image].sum() == len(wanted) and valid[image, : len(wanted)].all(), seed
            np.testing.assert_allclose(boxes[image, : len(wanted)], wanted, rtol=1e-5, atol=1e-4, err_msg=str(seed))
            assert (boxes[image, len(wanted) :] == 0).all()
    assert judged > len(SEEDS)


@pytest.mark.parametrize("kind", SELECTIONS)
def test_the_order_of_threads_changes_no_bit(host: HostKernels, kind: str) -> None:
    for seed in SEEDS:
        case, found = selection(kind, seed), []
        for order in ORDERS:
            host.schedule(order, seed)
            found.append(select(host, case))
        for boxes, valid in found[1:]:
            np.testing.assert_array_equal(boxes, found[0][0])
            np.testing.assert_array_equal(valid, found[0][1])


def test_the_published_size_equals_rpn_select(kernels: HostKernels) -> None:
    """64 x 80 cells, 15 anchors each: 76,800, of which 6000 enter the NMS and 1000 leave it."""
    generator = torch.Generator().manual_seed(7)
    anchors = AnchorGenerator((32, 64, 128, 256, 512), (0.5, 1.0, 2.0), 16)
    rpn = RPN(1, anchors, pre_nms_topk=6000, proposals=1000, train_pre_nms_topk=12000, train_proposals=2000, batch=256)
    cells = anchors(64, 80)
    logits = torch.randperm(len(cells), generator=generator).float()  # no ties, whose order torch leaves open
    deltas = torch.randn(len(cells), 4, generator=generator) * 0.3
    valid_hw = torch.tensor([1000.0, 1270.0])
    wanted = rpn.select(logits, deltas, valid_hw, cells, rpn.proposals).numpy()
    boxes, valid = kernels.select_proposals(
        logits[None].numpy(), deltas[None].numpy(), cells.numpy(), valid_hw.flip(0).repeat(2)[None].numpy(),
        pre_nms_topk=rpn.pre_nms_topk, proposals=rpn.proposals, iou=NMS_IOU,
    )
    assert valid.sum() == len(wanted) == rpn.proposals
    np.testing.assert_allclose(boxes[0], wanted, rtol=1e-5, atol=1e-3)


def test_a_box_at_the_threshold_stays_and_one_beyond_goes(kernels: HostKernels) -> None:
    """IoU of the second box with the first is exactly one half, of the third 0.6."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 6]])
    assert kept_of(kernels, [3, 2, 1], boxes) == [[0, 0, 10, 10], [0, 0, 10, 5]]


def test_a_removed_box_removes_nothing(kernels: HostKernels) -> None:
    """A chain of 70, longer than a word of bits: each overlaps its neighbours only."""
    left = np.arange(70.0) * 0.25
    boxes = np.stack([left, left * 0, left + 1, left * 0 + 1], axis=1)  # IoU 0.6 with the next, 1/3 with the one after
    kept = kept_of(kernels, list(range(70, 0, -1)), boxes)
    assert [box[0] for box in kept] == left[::2].tolist()


def test_equal_scores_go_by_index(kernels: HostKernels) -> None:
    boxes = np.array([[i, 0, i + 1, 1] for i in range(90)])
    scores = [0.0, -0.0, 0.0] * 30
    assert [box[0] for box in kept_of(kernels, scores, boxes, pre_nms_topk=1, proposals=50)] == list(range(50))


def test_not_a_number_ranks_last_and_infinities_where_they_belong(kernels: HostKernels) -> None:
    boxes = np.array([[i, 0, i + 1, 1] for i in range(5)])
    scores = [np.nan, -np.inf, 1.0, np.inf, -np.nan]
    assert [box[0] for box in kept_of(kernels, scores, boxes)] == [3, 2, 1, 0, 4]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(4))
def test_deltas_that_are_not_finite_give_what_pytorch_gives(host: HostKernels, value: float, column: int) -> None:
    deltas = np.zeros((1, 4), np.float32)
    deltas[0, column] = value
    anchors = np.array([[10, 10, 30, 30]], np.float32)
    wanted = decode(torch.from_numpy(deltas), torch.from_numpy(anchors), RPN_WEIGHTS)
    wanted = clip_boxes(wanted, torch.tensor([100, 100]))
    (box,), (other,) = host.decode(deltas, anchors, EDGES[0]), wanted.numpy()
    full, other_full = ((b[2:] > b[:2]).all() for b in (box, other))
    assert full == other_full
    if full:
        np.testing.assert_allclose(box, other, rtol=1e-6)


def test_all_scores_not_a_number_are_no_hang(kernels: HostKernels) -> None:
    boxes = np.array([[i, 0, i + 1, 1] for i in range(40)])
    assert [box[0] for box in kept_of(kernels, [np.nan] * 40, boxes, pre_nms_topk=1, proposals=7)] == list(range(7))


def test_decoding_equals_pytorch(host: HostKernels) -> None:
    rng = np.random.default_rng(3)
    corner = rng.uniform(-50, 100, (5000, 2))
    anchors = np.concatenate([corner, corner + rng.uniform(1, 80, (5000, 2))], axis=1).astype(np.float32)
    deltas = rng.normal(0, 2, (5000, 4)).astype(np.float32)
    wanted = decode(torch.from_numpy(deltas), torch.from_numpy(anchors), RPN_WEIGHTS)
    wanted = clip_boxes(wanted, torch.tensor([90.0, 120.0])).numpy()
    np.testing.assert_allclose(host.decode(deltas, anchors, np.array([120, 90, 120, 90])), wanted, rtol=1e-5, atol=1e-4)


def test_the_largest_growth_is_the_models(host: HostKernels) -> None:
    host.library.glmd_max_log_scale.restype = ctypes.c_float
    assert host.library.glmd_max_log_scale() == np.float32(MAX_LOG_SCALE)


@pytest.mark.parametrize("changed", [{"pre_nms_topk": 0}, {"proposals": 0}, {"iou": -0.1}, {"iou": float("nan")}])
def test_what_the_kernels_cannot_do_is_an_error(kernels: HostKernels, changed: dict[str, float]) -> None:
    case = dataclasses.replace(selection("random", 0), **changed)
    with pytest.raises((RuntimeError, ValueError)):
        select(kernels, case)
