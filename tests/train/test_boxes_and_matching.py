"""Anchors, deltas, matching and sampling: tables and properties, against slow obvious loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glmd_train.model.anchors import AnchorGenerator, clip_boxes, decode, encode
from glmd_train.model.losses import box_loss, classification_loss
from glmd_train.model.matching import IGNORED, Target, match, sample

coordinate = st.floats(0, 500, width=32)
size = st.floats(1, 200, width=32)
box = st.tuples(coordinate, coordinate, size, size).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


@given(boxes=st.lists(box, min_size=1, max_size=8), data=st.data())
def test_decode_inverts_encode(boxes: list[list[float]], data: st.DataObject) -> None:
    anchors = torch.tensor(data.draw(st.lists(box, min_size=len(boxes), max_size=len(boxes))))
    wanted = torch.tensor(boxes)
    ratio = (wanted[:, 2:] - wanted[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    kept = (ratio < 62).all(dim=1)  # larger ratios are clamped on purpose
    weights = (10.0, 10.0, 5.0, 5.0)
    found = decode(encode(wanted, anchors, weights), anchors, weights)
    torch.testing.assert_close(found[kept], wanted[kept], rtol=1e-3, atol=0.05)


def test_decode_clamps_the_growth_of_a_box() -> None:
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = decode(torch.tensor([[0.0, 0.0, 99.0, 99.0]]), anchor, (1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(grown[0, 2] - grown[0, 0], torch.tensor(1000.0))


def test_anchors_are_those_of_a_plain_loop() -> None:
    sizes, ratios, stride = (8.0, 32.0), (0.5, 1.0, 2.0), 16
    wanted = []
    for y in range(3):
        for x in range(2):
            for s in sizes:
                for r in ratios:
                    w, h = math.sqrt(s * s / r), math.sqrt(s * s / r) * r
                    wanted.append([x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2])
    torch.testing.assert_close(AnchorGenerator(sizes, ratios, stride)(3, 2), torch.tensor(wanted))


def test_clip_boxes_keeps_rank_and_order() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 700.0, 600.0], [1.0, 2.0, 3.0, 4.0]])
    wanted = torch.tensor([[0.0, 0.0, 640.0, 512.0], [1.0, 2.0, 3.0, 4.0]])
    hw = torch.tensor([512.0, 640.0])
    torch.testing.assert_close(clip_boxes(boxes, hw), wanted)
    torch.testing.assert_close(clip_boxes(boxes[:, None], hw), wanted[:, None])
    assert clip_boxes(boxes[:0], hw).shape == (0, 4)


OBJECT = torch.tensor([[0.0, 0.0, 10.0, 10.0]])


@pytest.mark.parametrize(
    ("candidate", "ignore", "keep_best", "kind"),
    [
        ([0, 0, 10, 10], [], False, 1),
        ([0, 0, 10, 5], [], False, IGNORED),  # IoU 0.5, between the thresholds
        ([0, 0, 10, 5], [], True, 1),  # ... but the object's best
        ([50, 50, 60, 60], [], False, 0),
        ([50, 50, 60, 60], [], True, 0),  # no overlap: not the best of anything
        ([50, 50, 60, 60], [[45, 45, 60, 58]], False, IGNORED),  # 80% in an ignore region
        ([50, 50, 60, 60], [[45, 45, 60, 54]], False, 0),  # 40%
        ([0, 0, 10, 10], [[0, 0, 100, 100]], False, 1),  # an object stays one inside an ignore region
    ],
)
def test_match(candidate: list[float], ignore: list[list[float]], keep_best: bool, kind: int) -> None:
    target = Target(OBJECT, torch.tensor([2]), torch.tensor(ignore).reshape(-1, 4).float())
    index, kinds = match(torch.tensor([candidate]).float(), target, 0.3, 0.7, keep_best)
    assert (int(index[0]), int(kinds[0])) == (0, kind)


def test_match_without_objects_is_background() -> None:
    target = Target(OBJECT[:0], torch.zeros(0, dtype=torch.int64), OBJECT[:0])
    index, kinds = match(OBJECT, target, 0.3, 0.7, True)
    assert index.tolist() == [0] and kinds.tolist() == [0]


@given(kinds=st.lists(st.sampled_from([-1, 0, 1]), max_size=60), number=st.integers(1, 40))
def test_sample_respects_number_fraction_and_kind(kinds: list[int], number: int) -> None:
    kind = torch.tensor(kinds, dtype=torch.int64)
    positive, negative = sample(kind, number, 0.25)
    assert (kind[positive] == 1).all() and (kind[negative] == 0).all()
    assert len(positive) == min(kinds.count(1), int(number * 0.25))
    assert len(negative) == min(kinds.count(0), number - len(positive))
    assert len(set(positive.tolist())) == len(positive) and len(set(negative.tolist())) == len(negative)


def test_losses_of_nothing_are_zero() -> None:
    assert float(classification_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 1)) == 0
    assert float(box_loss(torch.zeros(0, 4), torch.zeros(0, 4), 1)) == 0
