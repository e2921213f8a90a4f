"""Confusion-aware losses, RPN losses and schedule against the published implementation (goldens f, g, k).

Tolerance: 2e-6 of the largest value (f, g), exact (k)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from glmd_train.config import TrainConfig
from glmd_train.model.anchors import AnchorGenerator, encode
from glmd_train.model.losses import (
    box_loss,
    classification_loss,
    confusing_class,
    objectness_loss,
    present_classes,
    shared_count,
    suspected_objects,
    without_confusing_class,
)
from glmd_train.model.matching import Target, match
from glmd_train.model.rpn import RPN_WEIGHTS
from glmd_train.training.optimizer import schedule
from tests.conftest import golden

CA = golden("f_ca_loss")
CASES = [str(name) for name in CA["case_names"]]
SCHEDULE = golden("k_lr_schedule")


def close(actual: Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), wanted, rtol=0, atol=2e-6 * max(1, np.abs(wanted).max()))


def case(name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): value for key, value in CA.items() if key.startswith(f"{name}/")}


def present(arrays: dict[str, np.ndarray], published: bool) -> Tensor:
    classes = [torch.tensor([c for c in row if c >= 0]) for row in arrays["fs_class"].tolist()]
    slice_rows = int(arrays["batch_size_per_image"]) if published else None
    return present_classes(classes, arrays["proposals_per_image"].tolist(), int(arrays["num_classes"]), slice_rows)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("published", "prefix"), [(True, ""), (False, "intended_")])
def test_the_loss_of_the_roi_head(name: str, published: bool, prefix: str) -> None:
    arrays = case(name)
    logits = torch.from_numpy(arrays["logits"]).requires_grad_()
    labels = torch.from_numpy(arrays["gt_classes"])
    changed = without_confusing_class(logits, labels, present(arrays, published))
    loss = classification_loss(changed, labels, len(labels))
    loss.backward()
    close(loss, arrays[f"{prefix}loss"])
    close(logits.grad, arrays[f"{prefix}grad_logits"])


@pytest.mark.parametrize("name", CASES)
def test_the_class_that_leaves_each_row(name: str) -> None:
    arrays = case(name)
    labels = torch.from_numpy(arrays["gt_classes"])
    removed = confusing_class(torch.from_numpy(arrays["logits"]), labels, present(arrays, published=True))
    np.testing.assert_array_equal(removed, arrays["removed_class"])


@pytest.mark.parametrize("name", CASES)
def test_plain_cross_entropy(name: str) -> None:
    arrays = case(name)
    labels = torch.from_numpy(arrays["gt_classes"])
    close(classification_loss(torch.from_numpy(arrays["logits"]), labels, len(labels)), arrays["ce_loss"])


def test_the_slices_of_the_published_code_matter_only_for_partial_images() -> None:
    differ = [
        name for name in CASES if not torch.equal(present(case(name), published=True), present(case(name), False))
    ]
    assert differ and all("partial" in name for name in differ)


@pytest.fixture(scope="module")
def rpn() -> dict[str, np.ndarray]:
    return golden("g_rpn_losses")


def test_anchors_and_their_matches(rpn: dict[str, np.ndarray]) -> None:
    anchors = AnchorGenerator((32, 64, 128, 256, 512), (0.5, 1, 2), stride=16)(*rpn["feature_hw"].tolist())
    close(anchors, rpn["anchors"])
    for i in range(2):
        boxes = torch.from_numpy(rpn[f"gt_boxes{i}"])
        index, kind = match(anchors, Target(boxes, torch.zeros(len(boxes)).long(), boxes[:0]), 0.3, 0.7, keep_best=True)
        np.testing.assert_array_equal(kind, rpn["matcher_labels"][i])
        np.testing.assert_array_equal(index, rpn["matched_idx"][i])


@pytest.mark.parametrize("kind", ["normal", "CA"])
def test_the_losses_of_the_rpn(rpn: dict[str, np.ndarray], kind: str) -> None:
    logits = torch.from_numpy(rpn["logits"]).requires_grad_()
    deltas = torch.from_numpy(rpn["deltas"]).requires_grad_()
    labels = torch.from_numpy(rpn["labels"])
    sampled, objects = labels >= 0, labels == 1
    divisor = int(rpn["batch_size_per_image"]) * len(labels)
    objectness = objectness_loss(logits[sampled], labels[sampled], divisor, confusion_aware=kind == "CA")
    anchors = torch.from_numpy(rpn["anchors"]).expand(2, -1, -1)
    wanted = encode(torch.from_numpy(rpn["matched_boxes"])[objects], anchors[objects], RPN_WEIGHTS)
    close(wanted, rpn["gt_deltas"][objects.numpy()])
    boxes = box_loss(deltas[objects], wanted, divisor)
    (objectness + boxes).backward()
    close(objectness, rpn[f"{kind}/loss_rpn_cls"])
    close(boxes, rpn[f"{kind}/loss_rpn_loc"])
    close(logits.grad, rpn[f"{kind}/grad_logits"])
    close(deltas.grad, rpn[f"{kind}/grad_deltas"])


def test_what_leaves_the_rpn_s_loss(rpn: dict[str, np.ndarray]) -> None:
    removed = suspected_objects(torch.from_numpy(rpn["logits"]), torch.from_numpy(rpn["labels"]))
    np.testing.assert_array_equal(removed, rpn["CA/removed"])


def test_the_confusion_aware_loss_is_asked_for() -> None:
    logits, kinds = torch.tensor([3.0, -3.0, 2.0]), torch.tensor([0, 0, 1])
    usual, aware = (objectness_loss(logits, kinds, 2, confusion_aware=aware) for aware in (False, True))
    assert objectness_loss(logits, kinds, 2) == usual > aware > 0


def test_an_even_chance_is_no_suspicion() -> None:
    assert suspected_objects(torch.tensor([0.0, 1e-3, 1e-3]), torch.tensor([0, 0, 1])).tolist() == [False, True, False]


@pytest.mark.parametrize(("counted", "expected"), [(0, 1), (1, 1), (2, 2), (7, 7)])
def test_a_process_alone_divides_by_its_own_count(counted: int, expected: int) -> None:
    assert shared_count(counted, torch.device("cpu")) == expected


@pytest.mark.parametrize(("counted", "elsewhere", "mean"), [(0, 0, 1.0), (0, 1, 1.0), (2, 1, 1.5), (2, 5, 3.5)])
def test_processes_divide_by_the_mean_of_their_counts(
    counted: int, elsewhere: int, mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(elsewhere))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert shared_count(counted, torch.device("cpu")) == mean


@pytest.mark.parametrize("name", sorted({key.partition("/")[0] for key in SCHEDULE}))
def test_the_schedule(name: str) -> None:
    arrays = {key.partition("/")[2]: value for key, value in SCHEDULE.items() if key.startswith(f"{name}/")}
    config = TrainConfig.model_validate({
        "output": "x", "model": {"class_names": ["a"]}, "train": [{"annotations": "a.json"}], "schedule": "steps",
        "steps": arrays["steps"].tolist(), "warmup": int(arrays["warmup_iters"]),
        "iterations": int(arrays["max_iter"]), "learning_rate": float(arrays["base_lr"]),
    })
    rates = [config.learning_rate * schedule(t, config) for t in arrays["iteration"].tolist()]
    np.testing.assert_allclose(rates, arrays["lr"], rtol=1e-12)


@pytest.mark.parametrize("slice_rows", [None, 2])
def test_what_is_present_lies_where_the_labels_do(slice_rows: int | None) -> None:
    labels = [torch.tensor([0], device="meta")]
    assert present_classes(labels, [2], 3, slice_rows).device == torch.device("meta")
