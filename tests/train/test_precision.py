"""Mixed precision: it is on while the losses are computed, weights and what is compared with labels stay whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glmd_train.checkpoint import load_checkpoint
from glmd_train.config import load_config
from glmd_train.data.loaders import collate
from glmd_train.data.transforms import Sample
from glmd_train.loop import fit
from glmd_train.machine import fast_precision, keep_freed_memory
from glmd_train.model.detector import GLMDNet
from glmd_train.model.losses import classification_loss, objectness_loss
from tests.train.squares import draw_squares, write_config


@pytest.mark.parametrize(("precision", "halves"), [("32-true", False), ("bf16-mixed", True)])
def test_a_run_computes_in_the_precision_that_it_was_given(
    precision: str, halves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    losses = GLMDNet.losses

    def spied(model: GLMDNet, *inputs: Any) -> dict[str, torch.Tensor]:
        seen.append(torch.is_autocast_enabled("cpu"))
        _, valid_hw, targets = inputs
        assert valid_hw.dtype == targets[0].boxes.dtype == torch.float32
        found = losses(model, *inputs)
        assert all(loss.dtype == torch.float32 for loss in found.values())
        return found

    monkeypatch.setattr(GLMDNet, "losses", spied)
    config = write_config(draw_squares(tmp_path))
    model = load_checkpoint(fit(load_config(config, [f"precision={precision}", "iterations=2", "val=[]"]))).model
    assert seen == [halves] * 2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_losses_of_half_logits_are_those_of_the_same_numbers() -> None:
    logits, labels = torch.randn(64, 4).bfloat16(), torch.arange(64) % 4
    kinds = torch.arange(64) % 2
    assert torch.equal(classification_loss(logits, labels, 1), classification_loss(logits.float(), labels, 1))
    assert torch.equal(objectness_loss(logits[:, 0], kinds, 1), objectness_loss(logits[:, 0].float(), kinds, 1))


def test_halves_are_for_processors_that_multiply_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for supported, precision in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        assert fast_precision() == precision
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # as in a PyTorch that does not say
    assert fast_precision() == "32-true"


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does it")
def test_large_blocks_are_used_again_without_a_page_fault() -> None:
    import resource

    keep_freed_memory()
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(2**24)  # 64 MiB are 16,384 pages
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults[1:]) < 2000


def test_a_batch_is_channels_last_with_one_channel_too() -> None:
    boxes = np.zeros((0, 4), np.float32)
    for channels in (1, 3):
        one = Sample(np.ones((channels, 8, 6), np.float32), (8, 6), boxes, np.zeros(0, np.int64), boxes, 0, "a")
        images, *_ = collate([one, one])
        assert images.stride() == (48 * channels, 1, 6 * channels, channels)
        assert images.mean() == 1
