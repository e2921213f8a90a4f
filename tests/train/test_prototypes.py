"""PCB in PyTorch: golden j, classifiers of several families, the round trip through a checkpoint, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.resnet import Bottleneck, ResNet

from glmd_runtime.calibration import Calibration, CalibrationSpec, calibrate
from glmd_runtime.errors import CheckpointError, DatasetError, UnsupportedError, UsageError
from glmd_runtime.postprocess import PostprocessSpec, postprocess
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train import cli
from glmd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from glmd_train.classifier import IMAGENET_RGB, Classifier, Pcb, load_classifier, rgb_of_images, rgb_of_picture
from glmd_train.config import ModelConfig
from glmd_train.data.coco import Record
from glmd_train.model.detector import build_model
from glmd_train.prototypes import (
    add_pcb,
    box_logits,
    build_prototypes,
    calibrated_detections,
    matched_thresholds,
    run_model,
)
from tests.conftest import golden
from tests.export.conftest import draw_checkpoint

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("person", "car", "bison")
PUBLISHED = PreprocessSpec((800, 1333), (93.5781,) * 3, (1.0,) * 3, resize="published")
MEAN, STD = (tuple(255 * v for v in values) for values in IMAGENET_RGB)


@pytest.fixture(scope="module")
def z() -> dict[str, np.ndarray]:
    return golden("j_pcb")


@pytest.fixture(scope="module")
def published(z: dict[str, np.ndarray]) -> Classifier:
    """The golden's small network: torchvision's ResNet with narrower stages."""
    network = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=50)
    network.conv1, network.bn1 = nn.Conv2d(3, 12, 7, 2, 3, bias=False), nn.BatchNorm2d(12)
    channels = 12
    for i, width in enumerate((6, 12, 18, 24)):
        stride = 1 if i == 0 else 2
        shortcut = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        setattr(network, f"layer{i + 1}", nn.Sequential(Bottleneck(channels, width, stride, shortcut)))
        channels = 4 * width
    network.fc = nn.Linear(channels, 50)
    network.load_state_dict({k[2:]: torch.from_numpy(v) for k, v in z.items() if k.startswith("w/")})
    return Classifier("golden", "", network, MEAN, STD)


class Picture(Record):
    """A record whose picture is at hand."""

    def read(self) -> np.ndarray:
        return self.picture


def records(z: dict[str, np.ndarray]) -> list[Record]:
    """The support set with the boxes that the published code used (its x coordinates are off by rounding)."""
    none, out = np.zeros((0, 4), np.float32), []
    for i in range(4):
        picture = z[f"support_image{i}"]
        boxes, labels = z[f"support{i}/boxes_used"], z[f"support{i}/gt_classes"]
        record = Picture(i, Path(), picture.shape[:2], boxes, labels, none)
        object.__setattr__(record, "picture", picture)
        out.append(record)
    return out


def test_golden_stages(z: dict[str, np.ndarray], published: Classifier) -> None:
    pictures = [(f"support{i}", f"support_image{i}", f"support{i}/boxes_used") for i in range(4)]
    for name, picture, boxes in [*pictures, ("query", "query/image", "query/boxes")]:
        rgb = published.normalise(rgb_of_picture(z[picture]))
        np.testing.assert_allclose(rgb, z[f"{name}/net_input"], atol=1e-5)
        with torch.no_grad():
            features = published.features(rgb)
        np.testing.assert_allclose(features, z[f"{name}/conv_feature"], atol=1e-4)
        count = len(z[f"{name}/fc_logits"])
        logits = box_logits(published, PUBLISHED, z[picture], z[boxes][:count])
        np.testing.assert_allclose(logits, z[f"{name}/fc_logits"], atol=1e-4)
    assert published.stride == 32


def test_golden_prototypes_and_scores(z: dict[str, np.ndarray], published: Classifier) -> None:
    prototypes = build_prototypes(published, records(z), 6, PUBLISHED)
    np.testing.assert_allclose(prototypes[z["prototype_labels"]], z["prototypes"], atol=1e-4)
    assert not prototypes[5].any()  # a class without support
    logits = box_logits(published, PUBLISHED, z["query/image"], z["query/boxes"])
    came = calibrate(z["query/scores"], z["query/classes"], logits, prototypes, CalibrationSpec())
    np.testing.assert_allclose(came, z["query/calibrated_scores"], atol=1e-5)


def test_original_boxes_instead_of_the_published_ones_move_prototypes_little(
    z: dict[str, np.ndarray], published: Classifier
) -> None:
    """The published code scales support boxes back by the height's ratio alone; here they are used as they are."""
    own = []
    for i, record in enumerate(records(z)):
        xywh = z[f"support{i}/bbox_xywh_original"].astype(np.float32)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        assert np.abs(boxes - record.boxes).max() < 0.05
        object.__setattr__(record, "boxes", boxes)
        own.append(record)
    apart = build_prototypes(published, own, 5, PUBLISHED) - z["prototypes"]
    assert 1e-4 < np.abs(apart).max() < 0.1


def test_network_images_are_the_picture_again() -> None:
    rng = np.random.default_rng(0)
    for channels, shape in [(1, (40, 60)), (3, (40, 60)), (3, (40, 60, 3))]:
        picture = rng.integers(0, 256, shape, dtype=np.uint8)
        spec = PreprocessSpec((40, 60), tuple(range(100, 100 + channels)), (50.0,) * channels)
        planes = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
        image = (planes - np.array(spec.mean)[:, None, None]) / np.array(spec.std)[:, None, None]
        rgb = rgb_of_images(torch.from_numpy(image.astype(np.float32))[None], spec)
        np.testing.assert_allclose(rgb, rgb_of_picture(picture), atol=1e-3)


# One of each kind: traced modules, traced functions, methods of timm; swin mixes windows of positions.
FAMILIES = {
    "torchvision:resnet18": models.resnet18,
    "torchvision:densenet121": models.densenet121,
    "torchvision:shufflenet_v2_x0_5": models.shufflenet_v2_x0_5,
    "timm:mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_box_around_everything_is_near_what_the_network_says_of_the_picture(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FAMILIES[name]().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    classifier = load_classifier(name, tmp_path / "weights.pth")
    rgb = 255 * torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        wanted = network(classifier.normalise(rgb))
        (came,) = classifier(rgb, [torch.tensor([[0.0, 0.0, 256.0, 256.0]])])
    assert torch.cosine_similarity(came, wanted[0], dim=0) > 0.99
    assert classifier.stride == 32 and len(classifier.weights_sha256) == 64


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", "timm:vit_tiny_patch16_224", "torchvision:squeezenet1_0"])
def test_networks_that_cannot_be_asked_for_boxes_are_refused(name: str) -> None:
    library, _, model = name.partition(":")
    network = models.get_model(model, weights=None) if library == "torchvision" else timm.create_model(model)
    with pytest.raises(UnsupportedError, match="mean pooling and a head"):
        Classifier(name, "", network, MEAN, STD)


def test_weights_of_another_number_of_classes(tmp_path: Path) -> None:
    weights = models.resnet18(num_classes=7).state_dict()
    old = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}  # as files of 2017
    save_file(old, tmp_path / "weights.safetensors")
    classifier = load_classifier("torchvision:resnet18", tmp_path / "weights.safetensors")
    assert classifier(torch.zeros(1, 3, 64, 64), [torch.ones(2, 4)]).shape == (2, 7)


def a_file(folder: Path, content: object) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


WRONG: dict[str, tuple[str, Callable[[Path], Path | None], type[Exception], str]] = {
    "a name that means nothing": ("alexnet", lambda f: a_file(f, {}), UsageError, "torchvision:NAME"),
    "no classifier": ("torchvision:fasterrcnn_resnet50_fpn", lambda f: a_file(f, {}), UsageError, "of a classifier"),
    "no weights": ("torchvision:resnet18", lambda f: None, UsageError, "--pcb-weights FILE"),
    "weights that are not there": ("torchvision:resnet18", lambda f: f / "no.pth", UsageError, "does not exist"),
    "weights for lite0": ("lite0", lambda f: a_file(f, {}), UsageError, "leave out --pcb-weights"),
    "an object": ("torchvision:resnet18", lambda f: a_file(f, Path("/")), CheckpointError, "never executed"),
    "weights of another network": (
        "torchvision:resnet18", lambda f: a_file(f, models.resnet34().state_dict()), CheckpointError, "unknown"
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_classifiers(case: str, tmp_path: Path) -> None:
    name, weights, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        load_classifier(name, weights(tmp_path))


def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    config = ModelConfig(class_names=NAMES, proposals=10, bins=4)
    spec = PreprocessSpec((64, 80), (127.0,), (128.0,))
    return Checkpoint(build_model(config).eval(), config, spec, PostprocessSpec((0.3,) * 3))


def coco(folder: Path) -> Path:
    """Two pictures with a person each, one of them with a car."""
    rng = np.random.default_rng(0)
    images, boxes = [], [(1, 1, [4, 5, 20, 30]), (2, 1, [30, 10, 25, 40]), (2, 2, [2, 3, 30, 20])]
    for i in (1, 2):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (60, 70), dtype=np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "height": 60, "width": 70})
    rows = [{"id": n, "image_id": i, "category_id": k, "bbox": b} for n, (i, k, b) in enumerate(boxes)]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}]
    path = folder / "support.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    return load_classifier()


def test_no_support_at_all_is_an_error(lite0: Classifier) -> None:
    with pytest.raises(DatasetError, match="--support"):
        build_prototypes(lite0, [], 3, checkpoint().preprocess)


def test_thresholds_let_as_many_detections_of_the_support_pictures_pass(lite0: Classifier) -> None:
    rng = np.random.default_rng(1)
    one, support = draw_checkpoint(), []
    for i in range(3):
        boxes = np.array([[5, 5, 40, 40], [20, 10, 60, 50]], np.float32)
        record = Picture(i, Path(), (64, 80), boxes, np.array([0, 1]), np.zeros((0, 4), np.float32))
        object.__setattr__(record, "picture", rng.integers(0, 256, (64, 80), dtype=np.uint8))
        support.append(record)
    calibrated = add_pcb(one, lite0, support)
    assert calibrated.pcb
    thresholds = calibrated.pcb.calibration.spec.score_thresholds
    assert thresholds == matched_thresholds(calibrated, support) and thresholds[2] == 0.3
    counts = np.zeros((2, 3), int)
    for record in support:
        raw, geometry = run_model(one, record.read())
        spec = calibrated.pcb.calibration.spec.postprocess(one.postprocess)
        after = calibrated_detections(calibrated, record.read(), raw, geometry, spec)
        before = postprocess(raw, geometry, one.postprocess, NAMES)
        counts += [np.bincount(found.class_ids, minlength=3) for found in (before, after)]
    assert counts[0, :2].sum() > 0 and counts[0].tolist() == counts[1].tolist()


@pytest.mark.parametrize("name", ["lite0", "torchvision:resnet18"])
def test_a_checkpoint_keeps_its_calibration(name: str, tmp_path: Path, lite0: Classifier) -> None:
    if name == "lite0":
        classifier = lite0
    else:
        classifier = load_classifier(name, a_file(tmp_path, models.resnet18(num_classes=20).state_dict()))
    size = 1000 if name == "lite0" else 20
    prototypes = np.random.default_rng(0).normal(size=(3, size)).astype(np.float32)
    spec = CalibrationSpec(0.4, 0.1, 0.9, (0.3, 0.4, 0.5))
    saved = replace(checkpoint(), pcb=Pcb(classifier, Calibration(spec, prototypes)))
    loaded = load_checkpoint(save_checkpoint(tmp_path / "a.safetensors", saved, torch.float32))
    assert loaded.pcb and loaded.pcb.calibration.spec == spec
    assert (loaded.pcb.classifier.name, loaded.pcb.classifier.weights_sha256) == (name, classifier.weights_sha256)
    np.testing.assert_array_equal(loaded.pcb.calibration.prototypes, prototypes)
    frame = np.random.default_rng(1).integers(0, 256, (60, 70), dtype=np.uint8)
    boxes = np.array([[3, 4, 30, 40]], np.float32)
    np.testing.assert_array_equal(
        box_logits(loaded.pcb.classifier, saved.preprocess, frame, boxes),
        box_logits(classifier, saved.preprocess, frame, boxes),
    )
    mib = (tmp_path / "a.safetensors").stat().st_size / 2**20
    assert mib < 14 or name != "lite0"  # whose weights are in a package


def test_prototypes_of_other_package_weights_are_refused(tmp_path: Path, lite0: Classifier) -> None:
    calibration = Calibration(CalibrationSpec(), np.ones((3, 1000), np.float32))
    pcb = Pcb(lite0, calibration)
    values, tensors = pcb.to_tensors()
    with pytest.raises(CheckpointError, match="other weights of lite0"):
        Pcb.from_tensors({**values, "sha256": "0" * 64}, tensors, "a.safetensors")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    start = save_checkpoint(tmp_path / "a.safetensors", checkpoint())
    coco(tmp_path)
    arguments = ["--checkpoint", start, "--support", tmp_path / "supp*.json", "-o", tmp_path / "b.safetensors"]
    program = [sys.executable, "-m", "glmd_train.cli", "prototypes", *map(str, arguments)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "not calibrated" in done.stdout and "support boxes" in done.stdout
    before, after = load_checkpoint(start), load_checkpoint(tmp_path / "b.safetensors")
    assert after.pcb and after.pcb.calibration.prototypes.any(axis=1).tolist() == [True, True, False]
    assert after.provenance["pcb"] == {
        "support": ["supp*.json"], "boxes": {"person": 2, "car": 1, "bison": 0},
    }
    for key, value in before.model.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[key])
    assert cli.main(["prototypes", *map(str, arguments)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["prototypes", *map(str, arguments[:-1]), str(start / "b.safetensors")]) == 2
    assert f"{start.name} is no folder" in capsys.readouterr().err
    nothing = ["--support", str(tmp_path / "none*.json"), "-o", str(tmp_path / "c.safetensors")]
    assert cli.main(["prototypes", "--checkpoint", str(start), *nothing]) == 1
    assert "No file matches" in capsys.readouterr().err and not (tmp_path / "c.safetensors").exists()
