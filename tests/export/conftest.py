"""One small checkpoint with random weights, and its exports: exporting takes seconds, so each is made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from glmd_export.onnx_export import export_onnx, graph_spec
from glmd_export.ops import OPS
from glmd_export.parity import make_reference
from glmd_runtime import backends
from glmd_runtime.bundle import Bundle, write_bundle
from glmd_runtime.manifest import Manifest
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec
from glmd_runtime.reference import Reference
from glmd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from glmd_train.config import ModelConfig
from glmd_train.model.backbone import load_imagenet
from glmd_train.model.detector import build_model

SIZE_HW = (128, 160)
CLASS_NAMES = ("person", "car", "bison")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Each library would start a thread a core, and these wait for each other where the cores have other work."""
    threads, load = torch.get_num_threads(), backends.load
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:

        def alone(name: str, model: Path, threads: int | None = None, *others: Any, **named: Any) -> backends.Backend:
            return load(name, model, 1, *others, **named)

        patch.setattr(backends, "load", alone)
        yield
    torch.set_num_threads(threads)


def draw_checkpoint(**changes: Any) -> Checkpoint:
    """ImageNet's trunk, the rest random, drawn so that scores and boxes differ: what `build_model` draws gives near
    ties, which no engine must break as PyTorch does."""
    torch.manual_seed(0)
    values = {"proposals": 24, "pre_nms_topk": 200, "anchor_sizes": (16.0, 48.0), **changes}
    config = ModelConfig(class_names=CLASS_NAMES, **values)
    model = build_model(config).eval()
    spec = PreprocessSpec(SIZE_HW, mean=(127.0,) * config.in_channels, std=(60.0,) * config.in_channels)
    load_imagenet(model.backbone, model.roi_heads.res5, spec.std)
    rpn, predictor = model.rpn, model.roi_heads.predictor
    nn.init.normal_(rpn.objectness.weight, std=1.0)
    for layer in (rpn.deltas, predictor.cls_score, predictor.bbox_pred):
        nn.init.normal_(layer.weight, std=0.1)
    for affine in (model.affine_rpn, model.affine_rcnn):
        nn.init.uniform_(affine.weight, 0.5, 1.5)
        nn.init.normal_(affine.bias, std=0.1)
    return Checkpoint(model, config, spec, PostprocessSpec((0.3,) * len(CLASS_NAMES)), {"data": "none"})


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny_model.safetensors", draw_checkpoint())


@pytest.fixture(scope="session")
def checkpoint(checkpoint_file: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_file)


@pytest.fixture(scope="session")
def model_of_one(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(checkpoint, tmp_path_factory.mktemp("one") / "model.onnx")


@pytest.fixture(scope="session")
def model_of_two(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(checkpoint, tmp_path_factory.mktemp("two") / "model.onnx", batch=2)


@pytest.fixture(scope="session")
def half_models(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The FP16 graph of each variant."""
    folder = tmp_path_factory.mktemp("half")
    return {ops: export_onnx(checkpoint, folder / f"{ops}.onnx", ops=ops, precision="fp16") for ops in OPS}


@pytest.fixture(scope="session")
def frames() -> tuple[np.ndarray, ...]:
    """16 and 8 bit, of the canvas's shape and of another."""
    rng = np.random.default_rng(0)
    return (
        rng.integers(7000, 9000, SIZE_HW, dtype=np.uint16),
        rng.integers(0, 256, (100, 160), dtype=np.uint8),
        rng.integers(0, 256, (60, 50), dtype=np.uint8),
    )


@pytest.fixture(scope="session")
def reference(checkpoint: Checkpoint, frames: tuple[np.ndarray, ...]) -> Reference:
    return make_reference(checkpoint, frames)


def seal(folder: Path, checkpoint: Checkpoint, model: Path, batch: int = 1, name: str = "model.onnx") -> Bundle:
    """A bundle around an ONNX file, before its verification."""
    precision = "fp16" if ".fp16." in name else "fp32"
    manifest = Manifest(
        "tiny_model", CLASS_NAMES, checkpoint.preprocess, checkpoint.postprocess, graph_spec(checkpoint, batch),
        {name: precision},
    )
    return write_bundle(folder / "tiny_model.glmd", manifest, {name: model})
