"""What the exported graph computes otherwise than the model gives the model's answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glmd_export import savings
from glmd_export.onnx_export import INPUTS, OUTPUTS, export_onnx
from glmd_export.ops import OPS
from glmd_export.savings import HoistedHead, Winograd, WinogradKernels, fits, live_bins, spare
from glmd_runtime import backends
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.checkpoint import Checkpoint
from glmd_train.config import ModelConfig
from glmd_train.model.decouple import AffineLayer
from glmd_train.model.detector import build_model
from glmd_train.model.resnet import measure_statistics
from glmd_train.model.roi_heads import ROIHeads
from tests import reference
from tests.conftest import skip_unless

SIZE_HW = (112, 144)
BACKENDS = pytest.mark.parametrize("name", backends.readers("model.onnx"))
# Boxes that RoiAlign is particular about: empty ones, whole cells to a bin or a little more, beyond the map.
BOXES = torch.tensor([
    [0, 0, 0, 0], [0, 0, 112, 112], [16, 0, 128, 224], [90, 70, 400, 300], [10, 10, 10.5, 90], [3, 5, 60, 44],
    [0, 0, 112.003, 100], [0, 0, 50, 112.001],
])


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    """A ResNet of the full size's shape with few channels, all of which count as many; frozen norms with statistics."""
    torch.manual_seed(0)
    config = ModelConfig(
        class_names=("person", "car"), backbone="resnet50", in_channels=3, proposals=12, pre_nms_topk=100,
        resnet={"stem_channels": 8, "width_per_group": 8, "res2_channels": 16}, stride=16, bins=7,
        anchor_sizes=(32.0, 64.0),
    )
    model = build_model(config).eval()
    measure_statistics(model.backbone, model.roi_heads.res5, 50 * torch.randn(1, 3, 64, 80))
    nn.init.normal_(model.rpn.objectness.weight, std=1.0)
    for affine in (model.affine_rpn, model.affine_rcnn):
        nn.init.uniform_(affine.weight, 0.5, 1.5)
        nn.init.normal_(affine.bias, std=0.1)
    spec = PreprocessSpec(SIZE_HW, mean=(100.0,) * 3, std=(1.0,) * 3)
    return Checkpoint(model, config, spec, PostprocessSpec((0.3, 0.3)), {})


@pytest.fixture
def all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "LEAST_CHANNELS", 8)


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 11), st.integers(1, 11), st.integers(0, 2**31))
def test_winograd_is_the_convolution(batch: int, height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    conv, x = nn.Conv2d(5, 3, 3, padding=1), torch.randn(batch, 5, height, width)
    with torch.no_grad():
        torch.testing.assert_close(Winograd(conv, (height, width))(x), conv(x), rtol=1e-4, atol=1e-4)


def test_kernels_are_those_of_the_slow_formula() -> None:
    weight = torch.randn(2, 3, 3, 3)
    came = WinogradKernels(weight)()
    for o in range(2):
        for c in range(3):
            np.testing.assert_allclose(
                came[:, c, o].reshape(6, 6), reference.winograd_kernel(weight[o, c].numpy()), rtol=1e-5, atol=1e-6
            )


def test_live_bins_are_those_that_a_stride_of_two_reads() -> None:
    features = torch.randn(1, 4, 7, 9)
    align = OPS["standard"]().roi_align
    expected = align(features, BOXES[None], 7, 16)[:, :, ::2, ::2]  # (R, C, 4, 4)
    came = align(features, live_bins(BOXES[None], 7, 16).flatten(1, 2), 1, 16).reshape(4, 4, len(BOXES), 4)
    torch.testing.assert_close(came.permute(2, 3, 0, 1), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bins", [7, 8])
def test_the_hoisted_head_gives_the_pooled_vectors(bins: int, small: Checkpoint, all_count: None) -> None:
    model = small.model
    heads = ROIHeads(model.roi_heads.res5, model.roi_heads.predictor, stride=16, bins=bins, batch=1)
    features, boxes = torch.randn(2, 64, 7, 9), torch.stack([BOXES, BOXES.flip(0)])
    with torch.no_grad():
        expected = heads.pooled(model.affine_rcnn(features), list(boxes))
        came = HoistedHead(heads, model.affine_rcnn)(features, boxes, OPS["standard"]())
    torch.testing.assert_close(came.flatten(0, 1), expected, rtol=1e-3, atol=1e-3)


def test_an_affine_layer_without_shift_is_folded_too(small: Checkpoint, all_count: None) -> None:
    heads, affine = small.model.roi_heads, AffineLayer(64, bias=False)
    nn.init.uniform_(affine.weight, 0.5, 1.5)
    features = torch.randn(1, 64, 7, 9)
    with torch.no_grad():
        expected = heads.pooled(affine(features), [BOXES])
        came = HoistedHead(heads, affine)(features, BOXES[None], OPS["standard"]())
    torch.testing.assert_close(came[0], expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def files(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Spared or not -> the exported graph, of two images."""
    folder = tmp_path_factory.mktemp("savings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(savings, "LEAST_CHANNELS", 8)
        return {
            spared: export_onnx(small, folder / f"{spared}.onnx", batch=2, spared=spared) for spared in (False, True)
        }


@BACKENDS
def test_the_spared_graph_gives_the_models_answers(name: str, small: Checkpoint, files: dict[bool, Path]) -> None:
    skip_unless(name in backends.available(), name, f"{name} is not installed")
    images, valid_hw = 50 * torch.randn(2, 3, *SIZE_HW), torch.tensor([SIZE_HW] * 2, dtype=torch.float32)
    with torch.inference_mode():
        expected = small.model(images, valid_hw)
    came = backends.load(name, files[True]).run(dict(zip(INPUTS, (images.numpy(), valid_hw.numpy()), strict=True)))
    for key in OUTPUTS:
        value = getattr(expected, key).numpy().astype(np.float32)
        np.testing.assert_allclose(came[key].astype(np.float32), value, rtol=1e-3, atol=2e-3)


def test_a_file_holds_the_kernels_as_they_were_trained(files: dict[bool, Path]) -> None:
    sizes = {spared: sum(t.ByteSize() for t in onnx.load(file).graph.initializer) for spared, file in files.items()}
    assert sizes[True] < 1.2 * sizes[False]


def test_the_model_itself_is_left_alone(small: Checkpoint, all_count: None) -> None:
    spared = spare(small.model, (7, 9))
    assert isinstance(spared.rpn.conv, Winograd) and isinstance(small.model.rpn.conv, nn.Conv2d)
    assert isinstance(spared.neck.context_conv, Winograd)


def test_what_does_not_pay_stays(small: Checkpoint) -> None:
    assert isinstance(spare(small.model, (7, 9)).rpn.conv, nn.Conv2d)
    assert not fits(small.model.roi_heads)


def test_other_heads_are_not_hoisted(small: Checkpoint, checkpoint: Checkpoint, all_count: None) -> None:
    heads = small.model.roi_heads
    assert fits(heads)
    assert not fits(checkpoint.model.roi_heads)  # the light one
    assert not fits(ROIHeads(heads.res5, heads.predictor, stride=16, bins=14, batch=1))  # more than a tile
