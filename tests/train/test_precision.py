"""Mixed precision, and what else a training asks of its machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glmd_train import loop
from glmd_train.checkpoint import load_checkpoint
from glmd_train.config import load_config
from glmd_train.data.loaders import collate
from glmd_train.data.transforms import Sample
from glmd_train.loop import fit
from glmd_train.training.machine import keep_freed_memory
from tests.train.squares import draw_squares, write_config


@pytest.mark.parametrize(("precision", "kind"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_trunk_and_res5_compute_in_the_precision_of_the_run_and_all_else_in_float32(
    precision: str, kind: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[torch.dtype]] = {}
    step = loop.train_step

    def spied(fabric: Any, wrapped: Any, *rest: Any) -> dict[str, float]:
        model = wrapped.module
        for name in ("backbone.stem.0", "roi_heads.res5.blocks.3.0.conv_pw", "neck.local.merge", "rpn.conv",
                     "roi_heads.predictor.cls_score", "backbone", "roi_heads.res5"):
            model.get_submodule(name).register_forward_hook(
                lambda one, given, out, name=name: seen.setdefault(name, set()).add(out.dtype)
            )
        return step(fabric, wrapped, *rest)

    monkeypatch.setattr(loop, "train_step", spied)
    config = write_config(draw_squares(tmp_path))
    model = load_checkpoint(fit(load_config(config, [f"precision={precision}", "iterations=1", "val=[]"]))).model
    halves = {"backbone.stem.0", "roi_heads.res5.blocks.3.0.conv_pw"}
    assert seen.keys() > halves
    assert all(kinds == {kind if name in halves else torch.float32} for name, kinds in seen.items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


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
