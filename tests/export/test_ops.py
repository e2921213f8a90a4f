"""The operations of the graph in PyTorch, ONNX Runtime and OpenVINO against torchvision and the slow oracles."""

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
from glmd_export.ops import NMS_ROUNDS, OPS, PlainOps, StandardOps, matrix_keep
from glmd_runtime import backends
from tests import reference
from tests.conftest import skip_unless

Run = Callable[..., list[np.ndarray]]
Runner = tuple[str, str]  # variant, where it runs
Runs = dict[Runner, Run]
VARIANTS = ("standard", "plain")  # the plugins' tests are in tests/plugins
RUNNERS = [(ops, name) for ops in VARIANTS for name in ("torch", "onnxruntime", "openvino")]
B, N, R, IOU = 2, 12, 5, 0.7
C, H, W, STRIDE, BINS, ROIS = 3, 10, 14, 8, 4, 6


class Select(nn.Module):
    def __init__(self, ops: str, number: int) -> None:
        super().__init__()
        self.ops, self.number = OPS[ops](), number

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return self.ops.suppress(boxes, scores, self.number, IOU)


class Align(nn.Module):
    def __init__(self, ops: str) -> None:
        super().__init__()
        self.ops = OPS[ops]()

    def forward(self, features: Tensor, boxes: Tensor) -> tuple[Tensor]:
        return (self.ops.roi_align(features, boxes, BINS, STRIDE),)


Make = Callable[[str], nn.Module]


def runners(folder: Path, make: Make, **inputs: tuple[int, ...]) -> Runs:
    """The module of each variant as functions of arrays: in PyTorch, and exported in every backend."""
    return {
        (ops, name): run for ops in VARIANTS for name, run in _runners(folder, make(ops).eval(), ops, inputs).items()
    }


def _runners(folder: Path, module: nn.Module, ops: str, inputs: dict[str, tuple[int, ...]]) -> dict[str, Run]:
    example = tuple(torch.ones(shape) for shape in inputs.values())
    model = folder / f"{ops}.onnx"
    torch.onnx.export(
        module, example, model, input_names=list(inputs), opset_version=OPSET, dynamo=True,
        custom_translation_table=dict(OPS[ops]().translations), external_data=False, verbose=False,
    )

    def in_torch(*arrays: np.ndarray) -> list[np.ndarray]:
        return [t.numpy() for t in module(*map(torch.from_numpy, arrays))]

    def in_backend(backend: backends.Backend) -> Run:
        return lambda *arrays: list(backend.run(dict(zip(inputs, arrays, strict=True))).values())

    readers = [name for name in backends.available() if name in backends.readers("model.onnx")]
    loaded = {name: in_backend(backends.load(name, model)) for name in readers}
    return {"torch": in_torch, **loaded}


def pick(functions: Runs, runner: Runner) -> Run:
    skip_unless(runner in functions, runner[1], f"{runner[1]} is not installed")
    return functions[runner]


@pytest.fixture(scope="module")
def selects(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runners(tmp_path_factory.mktemp("select"), lambda ops: Select(ops, R), boxes=(B, N, 4), scores=(B, N))


@pytest.fixture(scope="module")
def selects_nine_of_three(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runners(tmp_path_factory.mktemp("select9"), lambda ops: Select(ops, 9), boxes=(1, 3, 4), scores=(1, 3))


@pytest.fixture(scope="module")
def aligns(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runners(tmp_path_factory.mktemp("align"), Align, features=(B, C, H, W), boxes=(B, ROIS, 4))


def check_selection(run: Run, boxes: np.ndarray, scores: np.ndarray, number: int = R) -> None:
    """Against the oracle: (B, N, 4), (B, N); the best first, as the anchors come out of the top-k."""
    order = np.argsort(-scores, axis=1, kind="stable")
    boxes, scores = np.take_along_axis(boxes, order[:, :, None], 1), np.take_along_axis(scores, order, 1)
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
@settings(max_examples=60)
@given(first=IMAGE, second=IMAGE, scores=st.tuples(SCORES, SCORES))
def test_selection_is_the_oracles(
    selects: Runs, runner: Runner, first: list, second: list, scores: tuple[list, list]
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
def test_selection_of(selects: Runs, runner: Runner, case: str) -> None:
    boxes, scores = SELECTIONS[case]
    ordinary = spread(N), FALLING  # an image does not disturb the next one
    check_selection(pick(selects, runner), np.stack([boxes, ordinary[0]]), np.stack([scores, ordinary[1]]))


@pytest.mark.parametrize("runner", RUNNERS)
def test_selection_of_more_than_there_are(selects_nine_of_three: Runs, runner: Runner) -> None:
    check_selection(pick(selects_nine_of_three, runner), spread(3)[None], FALLING[None, :3], number=9)


def clustered(rng: np.random.Generator, images: int, number: int) -> tuple[Tensor, Tensor]:
    """Boxes around few centres, of one size or of many, on a grid or not: (images, number, 4), and falling scores."""
    centre = rng.uniform(0, 300, (images, 6, 2))[np.arange(images)[:, None], rng.integers(0, 6, (images, number))]
    centre = centre + rng.normal(scale=rng.uniform(0.5, 20, (images, 1, 1)), size=(images, number, 2))
    size = rng.uniform(0, 40, (images, 1, 2)) + rng.uniform(-3, 30, (images, number, 2))  # a few are inverted
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=2).clip(0, 320)
    boxes[::2] = boxes[::2].round()
    scores = np.sort(rng.integers(-9, 9, (images, number)) / 2)[:, ::-1].copy()
    return torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(scores.astype(np.float32))


def test_plain_agrees_with_standard_in_thousands_of_cases() -> None:
    rng = np.random.default_rng(0)
    for number, images in ((4, 1000), (30, 1000), (120, 200)):
        boxes, scores = clustered(rng, images, number)
        expected, came = (OPS[ops]().suppress(boxes, scores, 20, IOU) for ops in VARIANTS)
        assert (came[1].sum(dim=1) > 1).float().mean() > 0.9  # there was something to suppress, and something left
        for a, b in zip(expected, came, strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=0)


@pytest.mark.parametrize("length", [2, 3, NMS_ROUNDS - 1, NMS_ROUNDS, NMS_ROUNDS + 1, NMS_ROUNDS + 2, 40, 61])
def test_a_chain_longer_than_the_rounds_keeps_too_much_but_loses_nothing(length: int) -> None:
    """Each box overlaps the next by IoU 0.75 and the one after by 0.55: every second one is to stay."""
    x = np.arange(length, dtype=np.float32)
    boxes = torch.from_numpy(np.stack([x, 0 * x, x + 7, 0 * x + 7], axis=1))
    expected = torch.from_numpy(np.arange(length) % 2 == 0)
    keep = matrix_keep(boxes, torch.ones(length, dtype=torch.bool), IOU).bool()
    settled = NMS_ROUNDS + 1
    assert torch.equal(keep[:settled], expected[:settled])
    assert keep[expected].all()
    assert keep[settled:].all()  # what comes after is not suppressed at all


def test_no_more_anchors_than_tensorrt_sorts_enter_the_plain_graph() -> None:
    rng = np.random.default_rng(1)
    number = PlainOps.topk_limit + 500
    x = torch.from_numpy(rng.uniform(0, 1e4, (number, 1)).astype(np.float32))
    anchors = torch.cat([x, x, x + 8, x + 8], dim=1)
    objectness = torch.from_numpy(rng.normal(size=(1, number)).astype(np.float32))
    arguments = (objectness, torch.zeros(1, number, 4), anchors, torch.full((1, 4), 2e4))
    limited, asked = (
        ops.select_proposals(*arguments, topk=topk, number=900, iou=IOU)[0]
        for ops, topk in ((PlainOps(), number), (StandardOps(), PlainOps.topk_limit))
    )
    torch.testing.assert_close(limited, asked)


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
WIDTH, HEIGHT = (st.integers(2, 4 * side * STRIDE).map(lambda n: n / 4) for side in (W, H))  # no longer than the map
ROI = st.tuples(CANVAS, CANVAS, WIDTH, HEIGHT).map(lambda r: (r[0], r[1], r[0] + r[2], r[1] + r[3]))
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
@settings(max_examples=40)
@given(boxes=st.lists(ROI, min_size=B * ROIS, max_size=B * ROIS), seed=st.integers(0, 99))
def test_alignment_is_torchvisions(aligns: Runs, runner: Runner, boxes: list, seed: int) -> None:
    array = np.array(boxes, np.float32).reshape(B, ROIS, 4)
    check_alignment(pick(aligns, runner), features(seed), array)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("case", ALIGNED)
def test_alignment_of(aligns: Runs, runner: Runner, case: str) -> None:
    boxes = np.tile(np.array(ALIGNED[case], np.float32), (B, ROIS, 1))
    boxes[1, 1:] += 3
    check_alignment(pick(aligns, runner), features(1), boxes)


@pytest.mark.parametrize("case", ALIGNED)
def test_the_oracle_aligns_like_torchvision(case: str) -> None:
    maps, box = features(2), np.array(ALIGNED[case], np.float32)
    rois = [torch.from_numpy(box)[None]]
    expected = torchvision_roi_align(torch.from_numpy(maps[:1]), rois, BINS, 1 / STRIDE, sampling_ratio=0, aligned=True)
    np.testing.assert_allclose(reference.roi_align(maps[0], box, BINS, STRIDE), expected[0].numpy(), atol=1e-5)
