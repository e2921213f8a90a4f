"""`StandardOps` in PyTorch, ONNX Runtime and OpenVINO against torchvision and the slow oracles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import nms
from torchvision.ops import roi_align as torchvision_roi_align

from glmd_export.onnx_export import OPSET
from glmd_export.ops import StandardOps
from glmd_runtime import backends
from tests import reference
from tests.conftest import skip_unless

Run = Callable[..., list[np.ndarray]]
RUNNERS = ("torch", *backends.BACKENDS)
B, N, R, IOU = 2, 12, 5, 0.7
C, H, W, STRIDE, BINS, ROIS = 3, 10, 14, 8, 4, 6


class Select(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return StandardOps().suppress(boxes, scores, self.number, IOU)


class Align(nn.Module):
    def forward(self, features: Tensor, boxes: Tensor) -> tuple[Tensor]:
        return (StandardOps().roi_align(features, boxes, BINS, STRIDE),)


def runners(folder: Path, module: nn.Module, **inputs: tuple[int, ...]) -> dict[str, Run]:
    """The module as functions of arrays: in PyTorch, and exported in every backend."""
    example = tuple(torch.ones(shape) for shape in inputs.values())
    model = folder / f"{type(module).__name__}.onnx"
    torch.onnx.export(
        module.eval(), example, model, input_names=list(inputs), opset_version=OPSET, dynamo=True,
        custom_translation_table=dict(StandardOps().translations), external_data=False, verbose=False,
    )

    def in_torch(*arrays: np.ndarray) -> list[np.ndarray]:
        return [t.numpy() for t in module(*map(torch.from_numpy, arrays))]

    def in_backend(backend: backends.Backend) -> Run:
        return lambda *arrays: list(backend.run(dict(zip(inputs, arrays, strict=True))).values())

    loaded = {name: in_backend(backends.load(name, model)) for name in backends.available()}
    return {"torch": in_torch, **loaded}


def pick(functions: dict[str, Run], name: str) -> Run:
    skip_unless(name in functions, name, f"{name} is not installed")
    return functions[name]


@pytest.fixture(scope="module")
def selects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return runners(tmp_path_factory.mktemp("select"), Select(R), boxes=(B, N, 4), scores=(B, N))


@pytest.fixture(scope="module")
def selects_nine_of_three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return runners(tmp_path_factory.mktemp("select9"), Select(9), boxes=(1, 3, 4), scores=(1, 3))


@pytest.fixture(scope="module")
def aligns(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return runners(tmp_path_factory.mktemp("align"), Align(), features=(B, C, H, W), boxes=(B, ROIS, 4))


def check_selection(run: Run, boxes: np.ndarray, scores: np.ndarray, number: int = R) -> None:
    """Against the oracle: (B, N, 4), (B, N)."""
    proposals, valid = run(boxes, scores)
    assert proposals.shape == (len(boxes), number, 4) and valid.shape == (len(boxes), number)
    for image in range(len(boxes)):
        expected = reference.select_proposals(boxes[image], scores[image], number, IOU)
        assert valid[image].tolist() == [True] * len(expected) + [False] * (number - len(expected))
        np.testing.assert_array_equal(proposals[image, : len(expected)], expected)
        assert not proposals[image, len(expected) :].any()


# On a grid of quarter pixels every IoU is exact up to one division, so that no engine may differ from the oracle.
EDGES = st.integers(0, 40).map(lambda n: n / 4)
BOX = st.tuples(EDGES, EDGES, EDGES, EDGES)  # also inverted and empty ones
IMAGE = st.lists(BOX, min_size=N, max_size=N)
SCORES = st.lists(st.integers(-4, 4).map(lambda n: n * 0.5), min_size=N, max_size=N)  # many ties


@pytest.mark.parametrize("runner", RUNNERS)
@settings(max_examples=60, deadline=None)
@given(first=IMAGE, second=IMAGE, scores=st.tuples(SCORES, SCORES))
def test_selection_is_the_oracles(
    selects: dict[str, Run], runner: str, first: list, second: list, scores: tuple[list, list]
) -> None:
    check_selection(pick(selects, runner), np.array([first, second], np.float32), np.array(scores, np.float32))


def spread(count: int) -> np.ndarray:
    """(count, 4) boxes that do not touch."""
    x = np.arange(count, dtype=np.float32) * 20
    return np.stack([x, x, x + 10, x + 10], axis=1)


SAME = np.tile(np.float32([5, 5, 25, 25]), (N, 1))
EMPTY = np.tile(np.float32([5, 5, 5, 25]), (N, 1))
FALLING = np.linspace(3, -3, N, dtype=np.float32)
CHAIN = np.stack([np.arange(N), np.zeros(N), np.arange(N) + 8, np.full(N, 8)], axis=1).astype(np.float32)
SELECTIONS = {
    "nothing: boxes of zeros": (np.zeros((N, 4), np.float32), FALLING),
    "all empty": (EMPTY, FALLING),
    "inverted": (SAME[:, [2, 3, 0, 1]], FALLING),
    "all identical": (SAME, FALLING),
    "all identical, and tied": (SAME, np.zeros(N, np.float32)),
    "apart, and tied: the first ones": (spread(N), np.zeros(N, np.float32)),
    "more than asked for": (spread(N), FALLING[::-1].copy()),
    "fewer than asked for": (np.concatenate([spread(2), SAME[:1], EMPTY[3:]]), FALLING),
    "the best one is empty": (np.concatenate([EMPTY[:1], spread(N - 1)]), FALLING),
    "each overlaps its neighbour": (CHAIN, FALLING),
    "very low scores": (spread(N), FALLING - 1e9),
    "at the border and beyond": (spread(N) - 15, FALLING),
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("case", SELECTIONS)
def test_selection_of(selects: dict[str, Run], runner: str, case: str) -> None:
    boxes, scores = SELECTIONS[case]
    ordinary = spread(N), FALLING  # an image does not disturb the next one
    check_selection(pick(selects, runner), np.stack([boxes, ordinary[0]]), np.stack([scores, ordinary[1]]))


@pytest.mark.parametrize("runner", RUNNERS)
def test_selection_of_more_than_there_are(selects_nine_of_three: dict[str, Run], runner: str) -> None:
    check_selection(pick(selects_nine_of_three, runner), spread(3)[None], FALLING[None, :3], number=9)


def test_the_oracle_selects_like_torchvision() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner, size = rng.uniform(0, 60, (40, 2)), rng.uniform(5, 40, (40, 2))
        boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
        scores = rng.normal(size=40).astype(np.float32)
        kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), IOU)[:R].numpy()
        np.testing.assert_array_equal(reference.select_proposals(boxes, scores, R, IOU), boxes[kept])


# Quarter pixels again: the number of samples is a side rounded up, and must not hang on a rounding error.
CANVAS = st.integers(-100, 4 * W * STRIDE + 100).map(lambda n: n / 4)
SIDE = st.integers(2, 500).map(lambda n: n / 4)
ROI = st.tuples(CANVAS, CANVAS, SIDE, SIDE).map(lambda r: (r[0], r[1], r[0] + r[2], r[1] + r[3]))
ALIGNED = {
    "inside": (16, 16, 64, 48),
    "smaller than a cell": (30, 30, 33, 31),
    "the whole map": (0, 0, W * STRIDE, H * STRIDE),
    "on the border": (0, 0, 24, 24),
    "partly outside": (-20, -12, 30, 30),
    "beyond the far corner": (W * STRIDE - 10, H * STRIDE - 10, W * STRIDE + 40, H * STRIDE + 40),
    "wholly outside": (-200, -200, -100, -100),
    "thin": (10, 10, 10.5, 70),
}


def features(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(B, C, H, W)).astype(np.float32)


def check_alignment(run: Run, maps: np.ndarray, boxes: np.ndarray) -> None:
    """Against torchvision: (B, C, H, W), (B, ROIS, 4)."""
    rois = [torch.from_numpy(image) for image in boxes]
    expected = torchvision_roi_align(torch.from_numpy(maps), rois, BINS, 1 / STRIDE, sampling_ratio=0, aligned=True)
    np.testing.assert_allclose(run(maps, boxes)[0], expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("runner", RUNNERS)
@settings(max_examples=40, deadline=None)
@given(boxes=st.lists(ROI, min_size=B * ROIS, max_size=B * ROIS), seed=st.integers(0, 99))
def test_alignment_is_torchvisions(aligns: dict[str, Run], runner: str, boxes: list, seed: int) -> None:
    array = np.array(boxes, np.float32).reshape(B, ROIS, 4)
    check_alignment(pick(aligns, runner), features(seed), array)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("case", ALIGNED)
def test_alignment_of(aligns: dict[str, Run], runner: str, case: str) -> None:
    boxes = np.tile(np.array(ALIGNED[case], np.float32), (B, ROIS, 1))
    boxes[1, 1:] += 3
    check_alignment(pick(aligns, runner), features(1), boxes)


@pytest.mark.parametrize("case", ALIGNED)
def test_the_oracle_aligns_like_torchvision(case: str) -> None:
    maps, box = features(2), np.array(ALIGNED[case], np.float32)
    rois = [torch.from_numpy(box)[None]]
    expected = torchvision_roi_align(torch.from_numpy(maps[:1]), rois, BINS, 1 / STRIDE, sampling_ratio=0, aligned=True)
    np.testing.assert_allclose(reference.roi_align(maps[0], box, BINS, STRIDE), expected[0].numpy(), atol=1e-5)
