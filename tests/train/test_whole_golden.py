"""The whole network against the published implementation, stage by stage (goldens h): one image, and two in a batch."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from glmd_runtime.detections import Detections
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry, PreprocessSpec, preprocess
from glmd_train.config import ModelConfig, ResNetConfig
from glmd_train.model.detector import GLMDNet, build_model
from glmd_train.official.weights import from_official
from tests.conftest import golden

# Of the goldens' own README; proposals that move by 3e-3 pixel move what is pooled from them.
FEATURE_ATOL, POOLED_ATOL, CHAIN_ATOL, BOX_ATOL, SCORE_ATOL = 3e-4, 1e-4, 2e-2, 0.02, 3e-4
NAMES = ("person", "car", "bicycle", "uav", "motorcycle", "truck", "bus", "bison", "deer", "dog", "boat")
SPEC = PreprocessSpec((200, 333), (93.5781,) * 3, (1.0,) * 3, resize="published")
POST = PostprocessSpec((0.05,) * len(NAMES), max_detections=40)
FILES = ("h_infer_single", "h_infer_batch2")


@cache
def small_model() -> GLMDNet:
    """The goldens' model: a ResNet-50 of few channels, with the images of a batch mixed as published."""
    config = ModelConfig(
        class_names=NAMES, backbone="resnet50", in_channels=3, published_batching=True, bins=7,
        resnet=ResNetConfig(stem_channels=16, width_per_group=8, res2_channels=16),
        anchor_sizes=(32, 64, 128, 256, 512), pre_nms_topk=400, proposals=60,
    )
    model = build_model(config).eval()
    arrays = golden("weights_small_novel")
    model.load_state_dict(from_official({key: torch.from_numpy(value) for key, value in arrays.items()}))
    return model


class Run(NamedTuple):
    """A golden file, and what the model gives for its pictures."""

    wanted: dict[str, np.ndarray]
    geometries: list[Geometry]
    images: Tensor  # (B, 3, H, W), zeros right and below the smaller ones
    stages: dict[str, Tensor]


@pytest.fixture(scope="module", params=FILES)
def run(request: pytest.FixtureRequest) -> Run:
    wanted = golden(request.param)
    pairs = [preprocess(wanted[f"image{i}"], SPEC) for i in range(len(wanted["net_input"]))]
    height, width = (max(image.shape[axis] for image, _ in pairs) for axis in (1, 2))
    padded = [np.pad(image, ((0, 0), (0, height - image.shape[1]), (0, width - image.shape[2]))) for image, _ in pairs]
    images, geometries = torch.from_numpy(np.stack(padded)), [geometry for _, geometry in pairs]
    with torch.inference_mode():
        return Run(wanted, geometries, images, stages_of(small_model(), images, geometries))


def stages_of(model: GLMDNet, images: Tensor, geometries: list[Geometry]) -> dict[str, Tensor]:
    valid_hw = torch.tensor([geometry.valid_hw for geometry in geometries], dtype=torch.float32)
    trunk = model.backbone(images)
    neck = model.neck(trunk)
    for_rpn, for_rcnn = model.affine_rpn(neck), model.affine_rcnn(neck)
    logits, deltas = model.rpn.head(for_rpn)
    proposals, _ = model.rpn(for_rpn, valid_hw)
    head = head_of(model, for_rcnn, proposals)
    boxes, scores = model.roi_heads(for_rcnn, proposals, valid_hw)
    return {
        "backbone": trunk, "neck": neck, "rpn_feature": for_rpn, "rcnn_feature": for_rcnn,
        "rpn_logits": logits, "rpn_deltas": deltas, "proposals": proposals, "boxes": boxes, "scores": scores, **head,
    }


def head_of(model: GLMDNet, features: Tensor, proposals: Tensor) -> dict[str, Tensor]:
    """(B, C, H, W), (B, R, 4) -> the vectors, their gated halves, and what is said of them."""
    predictor = model.roi_heads.predictor
    vectors = model.roi_heads.pooled(features, list(proposals))
    logits, deltas = predictor(vectors)
    gated = {"feature_cls": predictor.cls_gate(vectors), "feature_reg": predictor.box_gate(vectors)}
    return {"res5_mean": vectors, "cls_logits": logits, "box_deltas": deltas.flatten(1), **gated}


def close(actual: Tensor | np.ndarray, wanted: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(actual), wanted, rtol=0, atol=atol)


def test_pixels(run: Run) -> None:
    close(run.images, run.wanted["net_input"], 1e-5)


def test_features(run: Run) -> None:
    for name in ("backbone", "neck"):
        close(run.stages[name], run.wanted[name], FEATURE_ATOL)
    model, trunk = small_model(), run.stages["backbone"]
    with torch.inference_mode():
        parts = {"cm": model.neck.context(trunk), "lr": model.neck.local(trunk), **run.stages}
    for name in ("cm", "lr", "rpn_feature", "rcnn_feature"):
        close(parts[name].abs().mean(dim=(2, 3)), run.wanted[f"{name}_mean_abs_per_channel"], FEATURE_ATOL)


def test_rpn(run: Run) -> None:
    b, anchors, h, w = run.wanted["rpn_logits"].shape
    logits = run.wanted["rpn_logits"].transpose(0, 2, 3, 1).reshape(b, -1)  # (B, A, H, W) -> (B, H W A)
    deltas = run.wanted["rpn_deltas"].reshape(b, anchors, 4, h, w).transpose(0, 3, 4, 1, 2).reshape(b, -1, 4)
    close(run.stages["rpn_logits"], logits, FEATURE_ATOL)
    close(run.stages["rpn_deltas"], deltas, FEATURE_ATOL)


def test_proposals(run: Run) -> None:
    for i, proposals in enumerate(run.stages["proposals"]):
        wanted = run.wanted[f"proposal_boxes{i}"]
        match_in_order(proposals.numpy(), wanted, run.wanted[f"proposal_logits{i}"], BOX_ATOL)


def match_in_order(boxes: np.ndarray, wanted: np.ndarray, scores: np.ndarray, atol: float) -> None:
    """Equal boxes in equal order, except that those with scores within 1e-4 of each other may change places."""
    assert len(boxes) == len(wanted)
    for box, score in zip(boxes, scores, strict=True):
        rivals = wanted[np.abs(scores - score) < 1e-4]
        assert np.abs(rivals - box).max(axis=1).min() <= atol


def test_pooled_from_the_stored_neck_and_proposals(run: Run) -> None:
    model = small_model()
    proposals = np.stack([run.wanted[f"proposal_boxes{i}"] for i in range(len(run.geometries))])
    seen: dict[str, Tensor] = {}
    hook = model.roi_heads.res5.register_forward_pre_hook(lambda _, inputs: seen.update(pooled=inputs[0]))
    with torch.inference_mode():
        features = model.affine_rcnn(torch.from_numpy(run.wanted["neck"]))
        head = head_of(model, features, torch.from_numpy(proposals))
    hook.remove()
    close(seen["pooled"], run.wanted["pooled"], POOLED_ATOL)
    for name, value in head.items():
        close(value, run.wanted[name], FEATURE_ATOL)


def test_head_from_the_images(run: Run) -> None:
    for name in ("res5_mean", "feature_cls", "feature_reg", "cls_logits", "box_deltas"):
        close(run.stages[name], run.wanted[name], CHAIN_ATOL)


def test_detections_in_the_resized_image(run: Run) -> None:
    for i, geometry in enumerate(run.geometries):
        same = Geometry(geometry.valid_hw, geometry.valid_hw)
        check_detections(detections(run, i, same), run.wanted, f"raw_{{}}{i}")


def test_detections_in_the_original_picture(run: Run) -> None:
    for i, geometry in enumerate(run.geometries):
        check_detections(detections(run, i, geometry), run.wanted, f"{{}}{i}")


def detections(run: Run, image: int, geometry: Geometry) -> Detections:
    boxes, scores = (run.stages[name][image].numpy() for name in ("boxes", "scores"))
    return postprocess(RawOutputs(boxes, scores, np.ones(len(boxes), bool)), geometry, POST, NAMES)


def check_detections(found: Detections, wanted: dict[str, np.ndarray], names: str) -> None:
    boxes, scores, classes = (wanted[names.format(name)] for name in ("boxes", "scores", "classes"))
    np.testing.assert_array_equal(found.class_ids, classes)
    close(found.scores, scores, SCORE_ATOL)
    close(found.xyxy, boxes, BOX_ATOL)
