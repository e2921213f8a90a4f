"""Published configurations: the values that they resolve to, key by key, and every key known or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from glmd_runtime.errors import UsageError
from glmd_train.checkpoint import load_checkpoint
from glmd_train.cli import main
from glmd_train.config import load_config
from glmd_train.data.gcoco import GCOCO_CLASSES
from glmd_train.official.configuration import IFSOD_CLASSES, translate
from tests.train.test_official import PLAIN, config, detectron2, drawn, from_official, names_file, saved, to_official

CONFIGS = Path(__file__).parents[2] / "glmd_train" / "configs"
BASE = {
    "VERSION": 2,
    "MODEL": {"META_ARCHITECTURE": "GeneralizedRCNN", "ROI_HEADS": {"NAME": "Res5ROIHeads"}},
    "SOLVER": {"IMS_PER_BATCH": 16, "BASE_LR": 0.02},
    "INPUT": {"MIN_SIZE_TRAIN": "(640, 672, 704, 736, 768, 800)"},
}
GLMD = {"ENABLE_GLMD": True, "GLMD": {f"ENABLE_{part}": True for part in ("CM", "LR", "MDF", "CRD")}}
GCOCO = {
    "MODEL": {
        **GLMD, "WEIGHTS": "/somewhere/of/theirs/R-101.pkl", "RESNETS": {"DEPTH": 101}, "PIXEL_MEAN": [112.8373] * 3,
        "RPN": {"ENABLE_DECOUPLE": True, "BACKWARD_SCALE": 0.0},
        "ROI_HEADS": {"NUM_CLASSES": 72, "ENABLE_DECOUPLE": True, "BACKWARD_SCALE": 0.75},
    },
    "DATASETS": {"TRAIN": "('gcoco_train',)", "TEST": "()"},
    "SOLVER": {"IMS_PER_BATCH": 4, "STEPS": "(85000, 100000)", "MAX_ITER": 110000},
}


def ifsod(shots: int, steps: int, iterations: int) -> dict[str, Any]:
    return {
        "MODEL": {
            **GLMD, "WEIGHTS": "./output/train/model_reset_remove.pth", "RESNETS": {"DEPTH": 101},
            "PIXEL_MEAN": [93.5781] * 3,
            "RPN": {"ENABLE_DECOUPLE": True, "BACKWARD_SCALE": 0.0, "BBOX_OBJ_LOSS_TYPE": "CA"},
            "ROI_HEADS": {
                "NUM_CLASSES": 11, "ENABLE_DECOUPLE": True, "BACKWARD_SCALE": 0.01, "FREEZE_FEAT": True,
                "CLS_DROPOUT": True,
            },
            "ROI_BOX_HEAD": {"BBOX_CLS_LOSS_TYPE": "CA"},
        },
        "DATASETS": {"TRAIN": f"('ifsod_finetune_novel_{shots}shot',)", "TEST": "('ifsod_test_novel',)"},
        "SOLVER": {
            "IMS_PER_BATCH": 8, "BASE_LR": 0.01, "STEPS": f"({steps},)", "MAX_ITER": iterations, "WARMUP_ITERS": 100,
        },
        "TEST": {"PCB_ENABLE": True, "EVAL_PERIOD": 500},
    }


def written(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "Base.yaml").write_text(yaml.safe_dump(BASE))
    path = folder / "configs" / "theirs.yaml"
    path.write_text(yaml.safe_dump({"_BASE_": "../Base.yaml", **values}))
    return path


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with a dotted key set."""
    first, _, rest = key.partition(".")
    return values | {first: changed(values.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ("values", "ours"),
    [
        (GCOCO, "r101_base"), (ifsod(1, 900, 1500), "r101_novel_1shot"), (ifsod(2, 1000, 2000), "r101_novel_2shot"),
        (ifsod(3, 1500, 2500), "r101_novel_3shot"), (ifsod(5, 2000, 3000), "r101_novel_5shot"),
        (ifsod(10, 3000, 4000), "r101_novel_10shot"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_published_configurations_are_those_that_ship_here(values: dict[str, Any], ours: str, tmp_path: Path) -> None:
    assert main(["convert", "--config", str(written(tmp_path, values)), "-o", str(tmp_path / "ours.yaml")]) == 0
    came, shipped = load_config(tmp_path / "ours.yaml"), load_config(CONFIGS / f"{ours}.yaml")
    for key in set(type(came).model_fields) - {"output", "weights", "train", "val", "workers", "eval_every"}:
        assert getattr(came, key) == getattr(shipped, key), key
    for side in ("train", "val"):
        assert [d.annotations for d in getattr(came, side)] == [d.annotations for d in getattr(shipped, side)]
        assert [d.skip_empty for d in getattr(came, side)] == [d.skip_empty for d in getattr(shipped, side)]


def test_what_a_file_leaves_out_follows_from_whose_file_it_is(tmp_path: Path) -> None:
    plain = {"MODEL": {"ROI_HEADS": {"NUM_CLASSES": 80}}, "DATASETS": {"TRAIN": "('coco_2017_train',)"}}
    theirs = translate(written(tmp_path, plain))
    assert len(theirs["model"]["class_names"]) == 80
    assert [theirs["model"]["class_names"][i] for i in (0, 4, 5, 16, 79)] == [
        "person", "airplane", "bus", "dog", "toothbrush",
    ]
    assert set(GCOCO_CLASSES) < set(theirs["model"]["class_names"])
    defrcn = translate(written(tmp_path, changed(plain, "MODEL.RPN.ENABLE_DECOUPLE", True)))
    for part, key, a, b in (
        ("model", "bins", 14, 7), ("model", "backbone", "resnet50", "resnet50"), (None, "freeze_at", 2, 3),
        (None, "weight_decay", 1e-4, 5e-5), (None, "bias_decay", 1e-4, 1e-4), (None, "weights", "random", "random"),
    ):
        found = [one[part][key] if part else one[key] for one in (theirs, defrcn)]
        assert found == [a, b], key
    assert theirs["model"]["cm"] is False and theirs["preprocess"]["mean"] == [103.53, 116.28, 123.675]


@pytest.mark.parametrize(
    ("key", "value", "ours", "expected"),
    [
        ("MODEL.GLMD.ENABLE_MDF", False, "model.mdf", None),  # without effect in the published code: stays at our True
        ("MODEL.GLMD.ENABLE_CRD", False, "model.crd", False),
        ("MODEL.ENABLE_GLMD", False, "model.cm", False),
        ("MODEL.RPN.BBOX_OBJ_LOSS_TYPE", "normal", "model.rpn_gradient", 0.0),
        ("MODEL.RPN.ENABLE_DECOUPLE", False, "model.rpn_gradient", 1.0),
        ("MODEL.ROI_HEADS.BACKWARD_SCALE", 0.3, "model.rpn_gradient", 0.3),
        ("MODEL.ROI_HEADS.CLS_DROPOUT", False, "model.cls_dropout", 0.0),
        ("MODEL.RPN.FREEZE", True, "freeze", ["rpn", "res5"]),
        ("MODEL.WEIGHTS", "/x/model_final.pth", "predictor", "by_name"),
        ("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "model.resnet.width_per_group", 8),
        ("SOLVER.WEIGHT_DECAY_BIAS", None, "bias_decay", 5e-5),
        ("SOLVER.WEIGHT_DECAY", "1e-3", "weight_decay", 1e-3),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "schedule", "cosine"),
        ("INPUT.RANDOM_FLIP", "none", "augment.flip", 0.0),
        ("INPUT.MIN_SIZE_TEST", 600, "preprocess.size_hw", [600, 1333]),
        ("SEED", 7, "seed", 7),
        ("TEST.EVAL_PERIOD", 0, "eval_every", None),
        ("MODEL.RETINANET.NUM_CLASSES", 3, "model.class_names", list(IFSOD_CLASSES)),  # of another network
    ],
)
def test_single_keys(key: str, value: Any, ours: str, expected: Any, tmp_path: Path) -> None:
    found: Any = translate(written(tmp_path, changed(ifsod(10, 3000, 4000), key, value)))
    for part in ours.split("."):
        found = found.get(part)
    assert found == expected


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("MODEL.RPN.NMS_TRESH", 0.7, "MODEL.RPN.NMS_TRESH is no key of"),
        ("MODEL.RPN.NMS_THRESH", 0.6, "MODEL.RPN.NMS_THRESH is 0.6; only 0.7 is implemented"),
        ("MODEL.ROI_HEADS.OUTPUT_LAYER", "CosineSimOutputLayers", "only 'FastRCNNOutputLayers' is implemented"),
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "only 'Res5ROIHeads' is implemented"),
        ("MODEL.MASK_ON", True, "only False is implemented"),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "only False is implemented"),
        ("MODEL.RESNETS.DEPTH", 18, "model.backbone: it must be 'lite0', 'resnet50' or 'resnet101'; got"),
        ("MODEL.RPN.BBOX_OBJ_LOSS_TYPE", "focal", "'focal'; expected one of ['normal', 'CA']"),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", "many", "is 'many'; expected a value like 6000"),
        ("MODEL.PIXEL_MEAN", 103.5, "is 103.5; expected a value like [103.53"),
        ("MODEL.GLMD.ENABLE_CM", "yes", "is 'yes'; expected a value like False"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]], "expected one list in a list"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 12, "NUM_CLASSES is 12, but ['ifsod_finetune_novel_10shot'"),
        ("DATASETS.TRAIN", "('my_set',)", "names the data set 'my_set'"),
        ("DATASETS.TEST", "('coco_2017_val',)", "must train and test on data of the same classes"),
        ("INPUT.MAX_SIZE_TRAIN", 1000, "MAX_SIZE_TRAIN and INPUT.MAX_SIZE_TEST differ"),
        ("MODEL.WEIGHTS", "detectron2://COCO-Detection/x/model_final.pkl", "Download the file"),
        ("SOLVER.BASE_LR", -1.0, "learning_rate: it must be greater than 0; got -1.0."),
        ("MODEL.RPN", None, "MODEL.RPN is no key"),
    ],
)
def test_what_cannot_be_translated_is_named(
    key: str, value: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, changed(ifsod(10, 3000, 4000), key, value))
    assert main(["convert", "--config", str(path), "-o", str(tmp_path / "ours.yaml")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "ours.yaml").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("_BASE_: theirs.yaml\n", "has itself as _BASE_"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml: No such file"),
        ("MODEL: {a: [\n", "expected keys like MODEL and SOLVER"),
        ("model: {bins: 7}\n", "expected keys like MODEL and SOLVER"),
        ("MODEL: {}\n", "MODEL.ROI_HEADS.NAME is 'StandardROIHeads'"),
        ("MODEL: !!python/object/apply:os.system ['touch touched']\n", "expected keys like MODEL and SOLVER"),
    ],
)
def test_files_that_are_no_configuration(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("theirs.yaml").write_text(text)
    assert main(["convert", "--config", "theirs.yaml", "-o", "ours.yaml"]) == 2
    assert says in capsys.readouterr().err
    assert not Path("ours.yaml").exists() and not Path("touched").exists()


SMALL = {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.STEM_OUT_CHANNELS": 8, "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
         "MODEL.RESNETS.RES2_OUT_CHANNELS": 16, "MODEL.RPN.POST_NMS_TOPK_TEST": 60}


def small(values: dict[str, Any]) -> dict[str, Any]:
    for key, value in SMALL.items():
        values = changed(values, key, value)
    return values


def test_a_checkpoint_is_read_with_its_published_configuration(tmp_path: Path) -> None:
    weights = drawn(class_names=IFSOD_CLASSES)
    path = saved(tmp_path, to_official(weights, config(class_names=IFSOD_CLASSES)))
    loaded = load_checkpoint(path, config=written(tmp_path, small(ifsod(10, 3000, 4000))))
    assert loaded.class_names == IFSOD_CLASSES and loaded.config.proposals == 60
    assert loaded.preprocess.mean == (93.5781,) * 3
    with pytest.raises(UsageError, match=r"is not the configuration of .*backbone resnet101 against resnet50"):
        load_checkpoint(path, config=written(tmp_path, ifsod(10, 3000, 4000)))


def test_affine_layers_that_the_published_code_would_skip_are_not_applied_in_silence(tmp_path: Path) -> None:
    weights = to_official(drawn(class_names=IFSOD_CLASSES), config(class_names=IFSOD_CLASSES))
    without = written(tmp_path, small(changed(ifsod(10, 3000, 4000), "MODEL.RPN.ENABLE_DECOUPLE", False)))
    with pytest.raises(UsageError, match="ENABLE_DECOUPLE: False"):
        load_checkpoint(saved(tmp_path, weights), config=without)
    weights |= {key: torch.ones_like(value) for key, value in weights.items() if key == "affine_rpn.weight"}
    weights |= {key: torch.zeros_like(value) for key, value in weights.items() if key == "affine_rpn.bias"}
    load_checkpoint(saved(tmp_path, weights), config=without)


def test_names_of_unknown_data_are_told_beside_the_configuration(tmp_path: Path) -> None:
    weights = detectron2(drawn(**PLAIN))
    values = small({"MODEL": {"ROI_HEADS": {"NUM_CLASSES": 2}}, "DATASETS": {"TRAIN": "('my_set',)"}})
    theirs, names = written(tmp_path, values), names_file(tmp_path)
    with pytest.raises(UsageError, match=r"data set 'my_set'.*add --classes FILE"):
        load_checkpoint(saved(tmp_path, weights), config=theirs)
    loaded = load_checkpoint(saved(tmp_path, weights), config=theirs, classes=names)
    assert loaded.config.bins == 14 and loaded.class_names == ("class 0", "class 1")
    assert torch.equal(loaded.model.rpn.conv.weight, from_official(weights)["rpn.conv.weight"])
