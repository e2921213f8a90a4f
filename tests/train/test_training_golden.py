"""One training step of the small model against the published implementation, base and novel (golden i).

Random sampling is replaced by a fixed order and dropout is off on both sides. Tolerances: losses 2e-5 relative, boxes
0.01 pixel, gradient and step norms 2e-2 relative, projections 5e-2 of the norm, parameter norms 5e-5; labels exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from glmd_train.config import TrainConfig
from glmd_train.model import matching
from glmd_train.model.detector import GLMDNet, build_model
from glmd_train.model.losses import confusing_class, present_classes, suspected_objects
from glmd_train.model.matching import Target, match, sample
from glmd_train.official.names import our_name
from glmd_train.training.optimizer import build_optimizer, freeze_parts
from tests.conftest import golden

SMALL = {
    "backbone": "resnet50", "resnet": {"stem_channels": 16, "res2_channels": 16, "width_per_group": 8},
    "in_channels": 3, "anchor_sizes": [32, 64, 128, 256, 512], "train_pre_nms_topk": 400, "train_proposals": 160,
    "rpn_batch": 64, "roi_batch": 48, "bins": 7, "neck_dropout": 0, "published_batching": True,
}
STAGES = {
    "base": {"classes": 72, "mean": 112.8373, "rate": 0.02, "freeze": [],
             "model": {"rpn_gradient": 0.0, "roi_gradient": 0.75}},
    "novel": {"classes": 11, "mean": 93.5781, "rate": 0.01, "freeze": ["res5"],
              "model": {"rpn_gradient": 0.01, "roi_gradient": 0.01, "rpn_loss": "ca", "roi_loss": "ca"}},
}


def configuration(stage: dict[str, Any]) -> TrainConfig:
    names = [str(i) for i in range(stage["classes"])]
    return TrainConfig.model_validate({
        "output": "x", "train": [{"annotations": "a.json"}], "iterations": 1, "freeze_at": 3,
        "model": {"class_names": names, **SMALL, **stage["model"]}, "freeze": stage["freeze"],
        "preprocess": {"mean": [stage["mean"]] * 3, "std": [1, 1, 1], "resize": "published"},
        "optimizer": "sgd", "learning_rate": stage["rate"], "backbone_rate": 1, "weight_decay": 5e-5,
        "bias_decay": 1e-4,
    })


def in_fixed_order(indices: Tensor, number: int, generator: torch.Generator) -> Tensor:
    return indices[(indices * 2654435761 % 2**32).argsort()[:number]]


@dataclass(frozen=True)
class Step:
    """The model after its backward pass, what went in, and what the published code made of the same."""

    model: GLMDNet
    config: TrainConfig
    images: Tensor
    valid_hw: Tensor
    targets: list[Target]
    losses: dict[str, Tensor]
    wanted: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=["base", "novel"])
def step(request: pytest.FixtureRequest) -> Step:
    wanted = golden(f"i_train_{request.param}")
    config = configuration(STAGES[request.param])
    model = build_model(config.model)
    own = model.state_dict()
    given = {our_name(key): torch.from_numpy(v) for key, v in golden(f"weights_small_train_{request.param}").items()}
    model.load_state_dict({name: value.reshape(own[name].shape) for name, value in given.items()})
    freeze_parts(model.train(), config)
    sizes = [wanted[f"image{i}"].shape[1:] for i in range(2)]
    images = torch.zeros(2, 3, *(max(edges) for edges in zip(*sizes, strict=True)))
    for i, (h, w) in enumerate(sizes):
        images[i, :, :h, :w] = torch.from_numpy(wanted[f"image{i}"]).float() - STAGES[request.param]["mean"]
    targets = [
        Target(torch.from_numpy(wanted[f"gt_boxes{i}"]), torch.from_numpy(wanted[f"gt_classes{i}"]), torch.zeros(0, 4))
        for i in range(2)
    ]
    valid_hw = torch.tensor(sizes, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_draw", in_fixed_order)
        losses = model.losses(images, valid_hw, targets)
    torch.stack(list(losses.values())).sum().backward()
    return Step(model, config, images, valid_hw, targets, losses, wanted)


def test_losses(step: Step) -> None:
    names = {"roi_class": "loss_cls", "roi_box": "loss_box_reg", "rpn_objectness": "loss_rpn_cls",
             "rpn_box": "loss_rpn_loc"}
    for ours, theirs in names.items():
        np.testing.assert_allclose(step.losses[ours].item(), step.wanted[f"loss/{theirs}"], rtol=2e-5)


@torch.no_grad()
def test_anchors_and_proposals(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which anchors are sampled, which proposals leave the RPN, and which of them the ROI head is trained on."""
    monkeypatch.setattr(matching, "_draw", in_fixed_order)
    model, wanted = step.model, step.wanted
    features = model.neck(model.backbone(step.images))
    np.testing.assert_allclose(features, wanted["neck"], atol=3e-4)
    logits, deltas = model.rpn.head(model.affine_rpn(features))
    anchors = model.rpn.anchors(*features.shape[2:])
    for i, target in enumerate(step.targets):
        _, kind = match(anchors, target, 0.3, 0.7, keep_best=True)
        positive, negative = sample(kind, 64, 0.5)
        labels = torch.full_like(kind, -1)
        labels[positive], labels[negative] = 1, 0
        np.testing.assert_array_equal(labels, wanted["anchor_labels"][i])
        if step.config.model.rpn_loss == "ca":
            np.testing.assert_array_equal(suspected_objects(logits[i], labels), wanted["rpn_ca_removed"][i])
        boxes = model.rpn.select(logits[i], deltas[i], step.valid_hw[i], anchors, 160, 400)
        np.testing.assert_allclose(boxes, wanted[f"rpn_proposals{i}"], atol=0.01)
        sampled, classes, objects = model.roi_heads._pick(boxes, target)
        np.testing.assert_allclose(sampled, wanted[f"sampled_boxes{i}"], atol=0.01)
        np.testing.assert_array_equal(classes, wanted[f"sampled_gt_classes{i}"])
        is_object = classes.numpy() < len(step.config.model.class_names)
        np.testing.assert_array_equal(objects[is_object], wanted[f"sampled_gt_boxes{i}"][is_object])


@torch.no_grad()
def test_which_class_leaves_each_row(step: Step) -> None:
    labels = [torch.from_numpy(step.wanted[f"sampled_gt_classes{i}"]) for i in range(2)]
    logits = torch.from_numpy(step.wanted["cls_logits"])
    present = present_classes([t.labels for t in step.targets], [48, 48], logits.shape[1] - 1, slice_rows=48)
    if step.config.model.roi_loss == "ca":
        np.testing.assert_array_equal(
            confusing_class(logits, torch.cat(labels), present), step.wanted["ca_removed_class"]
        )
    else:
        assert (step.wanted["ca_removed_class"] == -1).all()


def measures(tensor: Tensor) -> tuple[float, float]:
    """L2 norm, and projection on cos(0.01 i + 0.5), in float64."""
    flat = tensor.detach().double().flatten()
    return float(flat.norm()), float(flat @ torch.cos(0.01 * torch.arange(len(flat)) + 0.5).double())


def trainable(step: Step) -> list[tuple[int, Tensor]]:
    parameters = dict(step.model.named_parameters())
    return [(row, parameters[our_name(str(name))]) for row, name in enumerate(step.wanted["param_names"])]


def test_what_is_frozen(step: Step) -> None:
    frozen = {name for name, p in step.model.named_parameters() if not p.requires_grad}
    assert frozen == {our_name(str(name)) for name in step.wanted["frozen_param_names"]}
    assert len(trainable(step)) == sum(p.requires_grad for p in step.model.parameters())


def test_gradients(step: Step) -> None:
    for row, parameter in trainable(step):
        assert (parameter.grad is None) == step.wanted["grad_is_none"][row]
        norm, dot = measures(parameter.grad)
        wanted = step.wanted["grad_norm"][row]
        np.testing.assert_allclose(norm, wanted, rtol=2e-2, err_msg=str(step.wanted["param_names"][row]))
        np.testing.assert_allclose(dot, step.wanted["grad_dot"][row], rtol=0, atol=5e-2 * wanted)


def test_full_gradients(step: Step) -> None:
    parameters = dict(step.model.named_parameters())
    for key in (key for key in step.wanted if key.startswith("grad/")):
        wanted = step.wanted[key]
        gradient = parameters[our_name(key.removeprefix("grad/"))].grad
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=2e-2 * np.abs(wanted).max(), err_msg=key)


def test_two_steps_of_the_optimizer(step: Step) -> None:
    """The groups' rates and decays, and where two steps with the same gradients lead. The last test of the fixture, as
    it moves the weights."""
    optimizer = build_optimizer(step.model, step.config)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rows = trainable(step)
    assert len(group_of) == len(rows)
    for row, parameter in rows:
        name = str(step.wanted["param_names"][row])
        assert group_of[id(parameter)]["lr"] == pytest.approx(step.wanted["lr"][row]), name
        assert group_of[id(parameter)]["weight_decay"] == pytest.approx(step.wanted["weight_decay"][row]), name
    before = {row: parameter.detach().clone() for row, parameter in rows}
    for number in (1, 2):
        optimizer.step()
        for row, parameter in rows:
            norm, _ = measures(parameter)
            np.testing.assert_allclose(norm, step.wanted[f"param_norm_after{number}"][row], rtol=5e-5, atol=1e-7)
            moved, _ = measures(parameter.detach().double() - before[row].double())
            np.testing.assert_allclose(moved, step.wanted[f"step{number}_norm"][row], rtol=2e-2, atol=1e-9)
            before[row] = parameter.detach().clone()
