"""Behaviour of the light model: images are independent, empty input is ordinary, parts can be left out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glmd_train.config import ModelConfig
from glmd_train.model.backbone import Lite0Res5, Lite0Trunk, load_imagenet
from glmd_train.model.detector import GLMDNet, build_model
from glmd_train.model.glmd import GLMDNeck
from glmd_train.model.matching import Target

SMALL = {"class_names": ("person", "car"), "proposals": 12, "train_proposals": 40, "rpn_batch": 32, "roi_batch": 16}


def target(boxes: list[list[float]], labels: list[int], ignore: list[list[float]] | None = None) -> Target:
    return Target(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignore or []).reshape(-1, 4),
    )


@pytest.fixture(scope="module")
def model() -> GLMDNet:
    torch.manual_seed(0)
    return build_model(ModelConfig(**SMALL)).eval()


@settings(max_examples=15)
@given(batch=st.integers(2, 4), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 1000))
def test_neck_images_of_a_batch_are_independent(batch: int, height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    neck = GLMDNeck(24).eval()
    x = torch.randn(batch, 24, height, width)
    singles = torch.cat([neck(one[None]) for one in x])
    torch.testing.assert_close(neck(x), singles, rtol=0, atol=1e-5)


def test_published_batching_mixes_the_images() -> None:
    torch.manual_seed(0)
    neck = GLMDNeck(24, published_batching=True).eval()
    x = torch.randn(2, 24, 5, 6)
    singles = torch.cat([neck(one[None]) for one in x])
    assert (neck(x) - singles).abs().max() > 1e-2


def test_batch_of_images_equals_single_images(model: GLMDNet) -> None:
    torch.manual_seed(1)
    images = torch.randn(3, 1, 64, 96)
    valid_hw = torch.tensor([[64.0, 96.0], [50.0, 96.0], [64.0, 33.0]])
    with torch.inference_mode():
        features = model.neck(model.backbone(images))
        for i in range(3):
            single = model.neck(model.backbone(images[i : i + 1]))
            torch.testing.assert_close(features[i : i + 1], single, rtol=0, atol=1e-5)
        # The ROI head on the same proposals: what differs between batch and single would be the model's fault.
        proposals, valid = model.rpn(model.affine_rpn(features), valid_hw)
        boxes, scores = model.roi_heads(features, proposals, valid_hw)
        for i in range(3):
            one = slice(i, i + 1)
            single_boxes, single_scores = model.roi_heads(features[one], proposals[one], valid_hw[one])
            torch.testing.assert_close(boxes[one], single_boxes, rtol=0, atol=1e-3)
            torch.testing.assert_close(scores[one], single_scores, rtol=0, atol=1e-5)
    assert valid.any(dim=1).all()


def test_outputs_have_the_contract_s_shapes_and_stay_in_the_valid_area(model: GLMDNet) -> None:
    valid_hw = torch.tensor([[40.0, 90.0]])
    with torch.inference_mode():
        raw = model(torch.randn(1, 1, 64, 96), valid_hw)
    assert raw.boxes.shape == (1, 12, 2, 4) and raw.scores.shape == (1, 12, 2) and raw.valid.shape == (1, 12)
    assert raw.valid.dtype == torch.bool
    assert raw.boxes.min() >= 0 and raw.boxes[..., 2].max() <= 90 and raw.boxes[..., 3].max() <= 40
    assert (raw.scores >= 0).all() and (raw.scores.sum(dim=2) <= 1 + 1e-6).all()


@pytest.mark.parametrize(
    "labels",
    [
        target([], []),  # nothing in the picture
        target([], [], [[0, 0, 96, 64]]),  # nothing but an ignore region
        target([[10, 10, 30, 40]], [1]),
        target([[10, 10, 30, 40], [50, 5, 60, 20]], [0, 1], [[60, 30, 90, 60]]),
    ],
)
@pytest.mark.parametrize("parts", [{}, {"cm": False}, {"lr": False}, {"mdf": False}, {"crd": False}])
def test_losses_are_finite_and_reach_every_parameter(labels: Target, parts: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**SMALL, **parts)).train()
    losses = model.losses(torch.randn(1, 1, 64, 96), torch.tensor([[64.0, 96.0]]), [labels])
    assert set(losses) == {"rpn_objectness", "rpn_box", "roi_class", "roi_box"}
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    if len(labels.boxes):
        missing = [n for n, p in model.named_parameters() if p.grad is None]
        assert not missing


@pytest.mark.parametrize(("rpn", "roi", "reached"), [(0.0, 0.0, False), (0.0, 0.75, True), (1.0, 0.0, True)])
def test_decoupling_scales_what_reaches_the_trunk(rpn: float, roi: float, reached: bool) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**SMALL, rpn_gradient=rpn, roi_gradient=roi))
    losses = model.losses(
        torch.randn(1, 1, 64, 96), torch.tensor([[64.0, 96.0]]), [target([[10, 10, 30, 40]], [1])]
    )
    torch.stack(list(losses.values())).sum().backward()
    assert bool(model.backbone.stem[0].weight.grad.abs().max() > 0) is reached
    assert model.affine_rpn.weight.grad.abs().max() > 0 and model.affine_rcnn.weight.grad.abs().max() > 0


def test_one_channel_stem_equals_the_grey_three_channel_stem() -> None:
    grey, colour = Lite0Trunk(8, 1).eval(), Lite0Trunk(8, 3).eval()
    load_imagenet(grey, Lite0Res5(8), std=(50.0,))
    load_imagenet(colour, Lite0Res5(8), std=(50.0, 50.0, 50.0))
    x = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(grey(x), colour(x.expand(1, 3, 64, 64)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "channels"), [(8, 40), (16, 112)])
def test_folded_trunk_equals_timm_s_with_its_batch_norms(stride: int, channels: int) -> None:
    from glmd_train.model.backbone import imagenet_network

    trunk = Lite0Trunk(stride, 3).eval()
    load_imagenet(trunk, Lite0Res5(stride), std=(128.0, 128.0, 128.0))
    network = imagenet_network().eval()
    x = torch.randn(1, 3, 64, 80)
    with torch.inference_mode():
        wanted = network.blocks[: len(trunk.blocks)](network.bn1(network.conv_stem(x.flip(1))))
        found = trunk(x)
    assert found.shape == (1, channels, 64 // stride, 80 // stride)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
