"""glmd-export --size and --proposals: a canvas for published checkpoints, which have none, or another one for ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glmd_export import cli, exporter
from glmd_runtime import Detector, open_bundle
from glmd_runtime.errors import UsageError
from glmd_train.checkpoint import Checkpoint, load_checkpoint
from glmd_train.config import ModelConfig, ResNetConfig
from glmd_train.model.detector import GLMDNet, build_model
from glmd_train.model.resnet import measure_statistics
from glmd_train.official.configuration import IFSOD_CLASSES
from glmd_train.official.weights import write_official


def draw_resnet(config: ModelConfig) -> GLMDNet:
    """Random weights whose numbers are as large as trained ones': untamed they amplify every rounding."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    for name, module in model.named_modules():
        if name.endswith("conv3.norm"):
            module.weight.fill_(0.2)
    measure_statistics(model.backbone, model.roi_heads.res5, 60 * torch.randn(2, 3, 128, 160))
    predictor = model.roi_heads.predictor
    nn.init.normal_(model.rpn.objectness.weight, std=0.5)
    for layer in (model.rpn.deltas, predictor.cls_score, predictor.bbox_pred):
        nn.init.normal_(layer.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small network as the published code would have saved it, and the names of its classes."""
    folder = tmp_path_factory.mktemp("published")
    small = ResNetConfig(stem_channels=16, width_per_group=8, res2_channels=16)
    config = ModelConfig(
        class_names=IFSOD_CLASSES, backbone="resnet50", resnet=small, in_channels=3, bins=7,
        anchor_sizes=(32, 64, 128, 256, 512),
    )
    write_official(folder / "model_final.pth", draw_resnet(config), config)
    (folder / "names.txt").write_text("\n".join(IFSOD_CLASSES))
    return ["--ckpt", str(folder / "model_final.pth"), "--classes", str(folder / "names.txt")]


@pytest.mark.no_cover
def test_a_published_checkpoint_becomes_a_verified_bundle(published: list[str], tmp_path: Path) -> None:
    out = tmp_path / "a.glmd"
    assert cli.main([*published, "--size", "128x160", "--proposals", "40", "-o", str(out)]) == 0
    bundle = open_bundle(out)
    spec, graph = bundle.manifest.preprocess, bundle.manifest.graph
    assert (spec.size_hw, spec.resize, spec.mean, spec.std) == ((128, 160), "letterbox", (93.5781,) * 3, (1.0,) * 3)
    assert graph.inputs["images"] == (1, 3, 128, 160) and graph.proposals == 40
    assert bundle.verify["status"] == "passed"
    assert {row["stage"] for row in bundle.verify["rows"] if row["status"] == "passed"} > {"trunk", "neck", "proposals"}
    with Detector(out, score_threshold=0.05) as detector:
        assert len(detector.run(bundle.reference.frames[0]))


def test_a_published_checkpoint_without_a_canvas_is_refused(
    published: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*published, "-o", str(tmp_path / "a.glmd")]) == 2
    assert "sees pictures of no fixed size (shorter edge 800, longest 1333)" in capsys.readouterr().err
    assert not (tmp_path / "a.glmd").exists()


def test_our_own_checkpoint_on_another_canvas(
    checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[Checkpoint] = []

    def export(checkpoint: Checkpoint, *_: Any, **__: Any) -> None:
        exported.append(checkpoint)
        raise UsageError("enough")

    monkeypatch.setattr(exporter, "export_bundle", export)
    out = tmp_path / "a.glmd"
    assert cli.main(["--ckpt", str(checkpoint_file), "--size", "96x128", "--proposals", "8", "-o", str(out)]) == 2
    (came,), own = exported, load_checkpoint(checkpoint_file)
    assert came.preprocess.size_hw == (96, 128) and came.preprocess.mean == own.preprocess.mean
    with torch.inference_mode():
        images = torch.zeros(1, 1, 96, 128)
        assert came.model(images, torch.tensor([[96.0, 128.0]])).boxes.shape[:2] == (1, 8)
    assert came.config == own.config.model_copy(update={"proposals": 8})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "512"], "expected HxW"), (["--size", "31x64"], "expected HxW"),
        (["--size", "64x9999"], "expected HxW"), (["--size", "64x-64"], "expected HxW"),
        (["--proposals", "0"], "--proposals must be 1 to 1000; got 0"),
        (["--proposals", "1001"], "--proposals must be 1 to 1000; got 1001"),
    ],
)
def test_wrong_values(options: list[str], says: str, checkpoint_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(["--ckpt", str(checkpoint_file), *options])
    except SystemExit as stop:  # of argparse
        code = stop.code
    assert code == 2 and says in capsys.readouterr().err
