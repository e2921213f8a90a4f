"""The whole method, small: GCOCO, base training, a few shots, evaluation and export, by the commands of the README.

Sizes are cut (ResNet-50 with few channels, small pictures, few iterations); the rest is as in the shipped
configurations. On real COCO and thermal pictures where they lie, on drawn ones elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from tests.conftest import DATA

pytestmark = pytest.mark.no_cover

CONFIGS = Path(__file__).parents[1] / "glmd_train" / "configs"
SHOTS = 5
SMALL_MODEL = {
    "backbone": "resnet50", "resnet": {"stem_channels": 16, "width_per_group": 8, "res2_channels": 32},
    "anchor_sizes": [16, 32, 64, 128], "pre_nms_topk": 300, "proposals": 50, "train_pre_nms_topk": 600,
    "train_proposals": 200, "rpn_batch": 64, "roi_batch": 64,
}
# Few iterations from random weights need a quicker optimizer than the published ones from ImageNet.
SMALL_RUN = {"optimizer": "adamw", "batch_size": 4, "warmup": 20, "clip_norm": 10}


@dataclass(frozen=True)
class World:
    """Colour pictures in COCO's layout, a thermal set with its pictures' folder, and the edge they are trained at."""

    coco: Path
    thermal: Path
    pictures: Path
    novel: tuple[str, str]
    edge: int
    iterations: tuple[int, int]  # of base training and fine-tuning


def run(module: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    # Two threads that wait for each other cost more than they bring to a network of this size.
    result = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def draw(kind: str, canvas: np.ndarray, box: tuple[int, int, int, int], colour: tuple[int, ...]) -> None:
    x, y, w, h = box
    if kind in ("airplane", "boat"):
        cv2.fillPoly(canvas, [np.asarray([(x, y + h), (x + w // 2, y), (x + w, y + h)])], colour)
    elif kind in ("cat", "dog"):
        cv2.ellipse(canvas, (x + w // 2, y + h // 2), (w // 2, h // 2), 0, 0, 360, colour, -1)
    else:
        cv2.rectangle(canvas, (x, y), (x + w, y + h), colour, -1)


def draw_set(folder: Path, kinds: dict[int, str], pictures: int, colour: bool, seed: int) -> dict[str, Any]:
    """A COCO dictionary and its pictures of 120x160, one object somewhere in each, on noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(1, pictures + 1):
        canvas = rng.normal(90, 12, (120, 160, 3)).clip(0, 255).astype(np.uint8)
        w, h = (int(v) for v in rng.integers(30, 56, 2))
        x, y = int(rng.integers(2, 158 - w)), int(rng.integers(2, 118 - h))
        category = list(kinds)[int(rng.integers(len(kinds)))]
        shade = tuple(int(v) for v in rng.integers(170, 255, 3)) if colour else (230, 230, 230)
        draw(kinds[category], canvas, (x, y, w, h), shade)
        annotations.append({"id": i, "image_id": i, "category_id": category, "bbox": [x, y, w, h], "area": w * h,
                            "iscrowd": 0})
        cv2.imwrite(str(folder / f"{i:06}.jpg"), canvas if colour else canvas[:, :, 0])
        images.append({"id": i, "file_name": f"{i:06}.jpg", "width": 160, "height": 120})
    categories = [{"id": i, "name": name} for i, name in kinds.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def drawn_world(folder: Path) -> World:
    coco, thermal = folder / "coco", folder / "thermal"
    kinds = {1: "person", 5: "airplane", 17: "cat", 73: "laptop"}
    (coco / "annotations").mkdir(parents=True)
    labels = draw_set(coco / "train2017", kinds, 40, colour=True, seed=0)
    (coco / "annotations" / "instances_train2017.json").write_text(json.dumps(labels))
    labels = draw_set(thermal / "images", {10: "dog", 11: "boat"}, 30, colour=False, seed=1)
    for image in labels["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    (thermal / "all.json").write_text(json.dumps(labels))
    return World(coco, thermal / "all.json", thermal, ("dog", "boat"), 96, (60, 120))


def real_world() -> World:
    data = DATA.resolve()
    dogs = data / "dogs_people"
    return World(data / "coco_mini", dogs / "train.json", dogs, ("dog", "person"), 160, (80, 150))


def write_yaml(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def base_config(world: World, folder: Path, gcoco: Path) -> Path:
    annotations = next(gcoco.rglob("instances*.json"))
    pictures = annotations.parent / "images" if annotations.parent == gcoco else gcoco / "train2017"
    base, _ = world.iterations
    labels = json.loads(annotations.read_text())
    shown = {annotation["category_id"] for annotation in labels["annotations"]}
    names = [category["name"] for category in labels["categories"] if category["id"] in shown]
    return write_yaml(folder / "base.yaml", {
        "extends": str(CONFIGS / "r101_base.yaml"), "output": str(folder / "base"), "weights": "random",
        "model": {**SMALL_MODEL, "class_names": names}, "preprocess": {"size_hw": [world.edge, 2 * world.edge]},
        "augment": {"shorter_edge": [world.edge * 4 // 5, world.edge]},
        "train": [{"annotations": str(annotations), "images": str(pictures), "skip_empty": True}],
        "freeze_at": 0, "iterations": base, "steps": [base * 4 // 5], "learning_rate": 0.001, **SMALL_RUN,
    })


def novel_config(world: World, folder: Path, support: str, output: str) -> Path:
    _, novel = world.iterations
    return write_yaml(folder / f"{output}.yaml", {
        "extends": str(CONFIGS / "r101_novel_10shot.yaml"), "output": str(folder / output),
        "weights": str(folder / "base" / "model.safetensors"),
        "model": {**SMALL_MODEL, "class_names": list(world.novel)},
        "preprocess": {"size_hw": [world.edge, 2 * world.edge]},
        "augment": {"shorter_edge": [world.edge * 4 // 5, world.edge]},
        "train": [{"annotations": support, "images": str(world.pictures)}], "val": [],
        "iterations": novel, "steps": [novel * 4 // 5], "learning_rate": 0.003, **SMALL_RUN,
    })


def shuffle(support: Path, out: Path, novel: tuple[str, str]) -> Path:
    """The same boxes, each picture's handed to another picture, and each class's to the other class."""
    content = json.loads(support.read_text())
    ids = sorted({a["image_id"] for a in content["annotations"]})
    handed = dict(zip(ids, ids[1:] + ids[:1], strict=True))
    first, second = (next(c["id"] for c in content["categories"] if c["name"] == name) for name in novel)
    swapped = {first: second, second: first}
    for annotation in content["annotations"]:
        annotation["image_id"] = handed[annotation["image_id"]]
        annotation["category_id"] = swapped.get(annotation["category_id"], annotation["category_id"])
    out.write_text(json.dumps(content))
    return out


@dataclass(frozen=True)
class Made:
    world: World
    folder: Path
    support: list[Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Everything up to the fine-tuned model, by the commands."""
    folder = tmp_path_factory.mktemp("paper")
    world = real_world() if (DATA / "coco_mini" / "instances.json").is_file() else drawn_world(folder)
    train = "glmd_train.cli"
    run(train, "prepare", "gcoco", "--coco", world.coco, "--out", folder / "gcoco", "--workers", 2)
    run(train, "fit", "--config", base_config(world, folder, folder / "gcoco"))
    run(train, "prepare", "fewshot", "--annotations", world.thermal, "--images", world.pictures, "--shots", SHOTS,
        "--seeds", 0, "--protocol", "strict", "--classes", *world.novel, "--out", folder / "shots")
    pattern = f"full_box_{SHOTS}shot_*_trainval.json"
    run(train, "fit", "--config", novel_config(world, folder, str(folder / "shots" / "seed0" / pattern), "novel"))
    return Made(world, folder, sorted((folder / "shots" / "seed0").glob(pattern)))


def mean_ap50(made: Made, *model: object) -> float:
    """On all support pictures as one set, so that an alarm in another class's picture counts."""
    support = made.support[0].parent / f"full_box_{SHOTS}shot_*_trainval.json"
    told = run("glmd_train.cli", "eval", *model, "--data", support, "--images", made.world.pictures, "--json").stdout
    (score,) = json.loads(told).values()
    return score["mean"]["ap50"]


def losses(run_folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    return [sum(v for k, v in row.items() if k != "iteration") for row in rows if "roi_class" in row]


def test_the_base_loss_falls_by_half(made: Made) -> None:
    first, *_, last = losses(made.folder / "base")
    assert last < first / 2


def test_support_pictures_are_not_tested(made: Made) -> None:
    test = json.loads((made.folder / "shots" / "seed0" / "test.json").read_text())
    support = {i["id"] for file in made.support for i in json.loads(file.read_text())["images"]}
    assert support and not support & {image["id"] for image in test["images"]}


def test_the_fine_tuned_model_finds_its_support_through_the_bundle(made: Made) -> None:
    checkpoint, bundle = made.folder / "novel" / "model.safetensors", made.folder / "novel.glmd"
    edge = made.world.edge
    run("glmd_export.cli", "--ckpt", checkpoint, "--size", f"{edge}x{edge * 4 // 3}", "-o", bundle)
    in_bundle, in_pytorch = mean_ap50(made, "--engine", bundle), mean_ap50(made, "--checkpoint", checkpoint)
    assert in_bundle >= 0.3 and in_pytorch >= 0.3


def test_shuffled_labels_teach_nothing(made: Made) -> None:
    for file in made.support:
        shuffle(file, made.folder / f"shuffled_{file.name}", made.world.novel)
    run("glmd_train.cli", "fit", "--config",
        novel_config(made.world, made.folder, str(made.folder / "shuffled_*.json"), "shuffled"))
    assert mean_ap50(made, "--checkpoint", made.folder / "shuffled" / "model.safetensors") < 0.1
