"""GlmdSelectProposals' kernels against RPN.select, and a slow oracle with a settled order of ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, nms

from glmd_train.model.anchors import MAX_LOG_SCALE, clip_boxes, decode
from tests.plugins.cases import SELECTIONS, Selection, selection
from tests.plugins.kernels import HostKernels, Kernels

SEEDS = range(40)
WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def select(kernels: Kernels, case: Selection) -> tuple[np.ndarray, np.ndarray]:
    return kernels.select_proposals(
        case.objectness, case.deltas, case.anchors, case.edges,
        pre_nms_topk=case.pre_nms_topk, proposals=case.proposals, iou=case.iou,
    )


def candidates(case: Selection, image: int) -> torch.Tensor:
    """Boxes that enter the NMS, best first, ties by lower index."""
    k = max(case.pre_nms_topk, case.proposals)
    best = torch.from_numpy(case.objectness[image]).sort(descending=True, stable=True).indices[:k]
    boxes = decode(torch.from_numpy(case.deltas[image])[best], torch.from_numpy(case.anchors)[best], WEIGHTS)
    boxes = clip_boxes(boxes, torch.from_numpy(case.edges[image, :2]).flip(0))
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]


def expected(case: Selection, boxes: torch.Tensor) -> np.ndarray:
    order = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    return boxes[nms(boxes, order, float(np.float32(case.iou)))[: case.proposals]].numpy()


def undecided(case: Selection, boxes: torch.Tensor) -> bool:
    """Whether rounding alone may turn an overlap, or an empty box: another exp is enough."""
    overlaps = box_iou(boxes, boxes)
    thin = (boxes[:, 2:] - boxes[:, :2] < 1e-4).any()
    return bool(thin or ((overlaps - case.iou).abs() < 1e-5).any())


@pytest.mark.parametrize("kind", SELECTIONS)
def test_proposals_equal_the_oracle(kernels: Kernels, kind: str) -> None:
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
