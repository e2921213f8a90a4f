"""What is fuzzed of training and export: configurations, labels, checkpoints, pickles, ONNX files."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tests.trust.fuzz_mutations import (
    Target,
    after_first,
    attempt_all,
    either,
    joined,
    json_values,
    operations,
    parts,
    protobuf,
    safetensors,
    split,
    wire,
    wire_field,
    words,
)


def yaml(folder: Path) -> Target:
    """A configuration and the file that it builds upon, of theirs and of ours."""
    import yaml as library

    from glmd_train.config import load_config
    from glmd_train.official.configuration import is_published_yaml, translate

    base = {"VERSION": 2, "SOLVER": {"BASE_LR": 0.02}, "INPUT": {"MIN_SIZE_TRAIN": "(640, 800)"}}
    heads = {"NAME": "Res5ROIHeads", "NUM_CLASSES": 72}
    theirs = {
        "_BASE_": "base.yaml", "MODEL": {"WEIGHTS": "R-101.pkl", "PIXEL_MEAN": [1.0] * 3, "ROI_HEADS": heads},
        "DATASETS": {"TRAIN": "('gcoco_train',)", "TEST": "()"}, "SOLVER": {"STEPS": "(85000, 100000)"},
    }
    ours = {
        "extends": "base.yaml", "model": {"class_names": ["a", "b"], "anchor_sizes": [8, 16.5]}, "iterations": 5,
        "preprocess": {"size_hw": [64, 80], "intensity": {"mode": "clahe"}}, "train": [{"annotations": "a.json"}],
    }
    pairs = [(theirs, base), (ours, {"output": "${GLMD_DATA}/out", "seed": 3, "freeze": ["rpn"]})]
    (folder / "base.yaml").touch()
    path = folder / "main.yaml"

    def run(data: bytes) -> None:
        for name, content in zip(("main.yaml", "base.yaml"), split(data, 2), strict=True):
            (folder / name).write_bytes(content)
        (translate if is_published_yaml(path) else load_config)(path)

    seeds = [joined(*map(write, pair)) for pair in pairs for write in (json.dumps, library.safe_dump)]
    return Target(run, seeds, parts(json_values, json_values))


def _pictures(folder: Path, *names: str) -> Path:
    """Small grey pictures, 12 wide and 10 high."""
    import cv2

    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros((10, 12), np.uint8))
    return folder / "images"


_COCO = {
    "images": [{"id": i, "file_name": name, "width": 12, "height": 10} for i, name in ((1, "a.png"), (2, "b.png"))],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3.5, 4], "iscrowd": 0, "area": 14},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [0, 0, 12, 10], "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}],
    "info": {"image_folder": "images"},
}


def coco(folder: Path) -> Target:
    """A COCO file, for training and for `prepare`, with pictures where it says and elsewhere."""
    from glmd_train.data.coco import load_coco
    from glmd_train.data.formats import read_labels

    images, path = _pictures(folder, "images/a.png", "images/b.png"), folder / "labels.json"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        attempt_all(lambda: load_coco(path, ("person", "car")), lambda: read_labels(path, images))

    without = {key: value for key, value in _COCO.items() if key != "info"}
    return Target(run, [json.dumps(one).encode() for one in (_COCO, without)], json_values)


def ifsod(folder: Path) -> Target:
    """IFSOD's folder."""
    from glmd_train.data.formats import convert

    _pictures(folder, "set/images/a.png", "set/images/b.png")
    path = folder / "set" / "annotations" / "all.json"
    path.parent.mkdir()

    def run(data: bytes) -> None:
        path.write_bytes(data)
        convert(folder / "set", folder / "out.json")

    return Target(run, [json.dumps(_COCO).encode()], json_values)


def yolo(folder: Path) -> Target:
    """data.yaml, the labels of a picture, and a list of pictures."""
    from glmd_train.data.formats import convert, read_labels

    images = _pictures(folder, "images/a.png", "images/b.png")
    (folder / "labels").mkdir()
    described, names = folder / "data.yaml", ("data.yaml", "labels/a.txt", "train.txt")

    def run(data: bytes) -> None:
        for name, content in zip(names, split(data, 3), strict=True):
            (folder / name).write_bytes(content)
        attempt_all(
            lambda: read_labels(described, images, "yolo"),
            lambda: convert(described, folder / "out.json", "yolo", "train"),
        )

    labels = "0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n"
    lists = ['{"names": ["a", "b"], "nc": 2, "train": "images", "path": ""}', "names: {0: a, 1: b}\ntrain: train.txt\n"]
    seeds = [joined(one, labels, "images/a.png\nimages/b.png\n") for one in lists]
    return Target(run, seeds, parts(json_values, words, words))


def voc(folder: Path) -> Target:
    """One XML file."""
    from glmd_train.data.formats import read_labels

    images, path = _pictures(folder, "images/a.png"), folder / "a.xml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        read_labels(path, images, "voc")

    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9.5</xmax><ymax>10</ymax></bndbox>"
    one = f"<object><name>person</name><difficult>1</difficult>{box}</object>"
    size = "<size><width>12</width><height>10</height><depth>1</depth></size>"
    declared = '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE a [<!ENTITY b "c">]>'
    text = f"<annotation><filename>a.png</filename>{size}{one}{one}</annotation>"
    return Target(run, [text.encode(), text.encode("utf-16")], words, [(declared + text).encode()])


def labelme(folder: Path) -> Target:
    """One JSON file, and the folder that it is in."""
    from glmd_train.data.formats import convert

    _pictures(folder, "set/a.png")
    path = folder / "set" / "a.json"
    kinds = {"rectangle": 2, "circle": 2, "polygon": 3, "mask": 2, "rotation": 4}
    shapes = [{"label": k, "shape_type": k, "points": [[1, 1], [4, 3], [2, 6.5], [1, 2]][:n]} for k, n in kinds.items()]
    content = {"shapes": shapes, "imagePath": "a.png", "imageHeight": 10, "imageWidth": 12, "imageData": None}

    def run(data: bytes) -> None:
        path.write_bytes(data)
        convert(folder / "set", folder / "out.json")

    return Target(run, [json.dumps(content).encode()], json_values)


def onnx_metadata(folder: Path) -> Target:
    """ONNX files as far as the project itself reads them, before any engine does.

    What `check_onnx` lets pass has no tensor in another file, neither to onnx's reader in Python nor to that in C++.
    """
    import onnx

    from glmd_export.lint import lint
    from glmd_runtime.files.onnx_file import check_onnx
    from tests import tiny

    path = folder / "model.onnx"
    named = tiny.model().replace(b"edges4", b"deltas")

    def check(data: bytes) -> None:
        check_onnx(data, path)
        for model in _readings(data):
            assert not _names_files(model), model

    def run(data: bytes) -> None:
        path.write_bytes(data)
        attempt_all(lambda: lint(path, "tensorrt"), lambda: lint(path, "tensorrt_rtx"), lambda: check(data))

    seeds = [tiny.model(), tiny.model(2), named]
    return Target(run, seeds, either(protobuf(onnx.ModelProto), wire), _models_in_several_files())


def _readings(data: bytes) -> Iterator[Any]:
    """The model as Python's protobuf reads it, and as that of C++ does, which ONNX Runtime and OpenVINO have too."""
    import onnx
    from onnx.onnx_cpp2py_export.inliner import inline_local_functions

    for read in (lambda: data, lambda: inline_local_functions(data, False)):  # which says again what it read
        with suppress(Exception):  # of several kinds, for what is no model to it
            yield onnx.ModelProto.FromString(read())


def _names_files(message: Any) -> bool:
    """Whether a message has a tensor in it that is in another file."""
    if message.DESCRIPTOR.name == "TensorProto":
        return bool(message.data_location or message.external_data)
    inside = [(field, value) for field, value in message.ListFields() if field.message_type]
    return any(_names_files(one) for _, value in inside for one in (value if hasattr(value, "add") else [value]))


def _models_in_several_files() -> list[bytes]:
    """A weight, a constant and a sparse weight in another file, and a graph of which C++ alone knows that it is one."""
    import onnx
    from onnx import helper

    from tests import tiny

    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    models = [onnx.ModelProto.FromString(tiny.model()) for _ in range(3)]
    models[0].graph.initializer.append(tensor)
    models[1].graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    models[2].graph.sparse_initializer.add(values=tensor)
    head = onnx.ModelProto(ir_version=8, opset_import=models[0].opset_import)
    hidden = wire_field(7 << 3 | 2 | 1 << 32, models[0].graph.SerializeToString())
    return [*(model.SerializeToString() for model in models), head.SerializeToString() + hidden]


def checkpoint(folder: Path) -> Target:
    """safetensors files of checkpoints, prototypes and enrolled classes, and files of torch.save."""
    import torch
    from safetensors.numpy import save

    from glmd_runtime.calibration import prototypes_to_bytes, read_prototypes
    from glmd_runtime.enroll import EnrolledSpec, Enrolment, read_enrolment
    from glmd_runtime.postprocess import PostprocessSpec
    from glmd_runtime.preprocess import PreprocessSpec
    from glmd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from glmd_train.config import ModelConfig
    from glmd_train.model.detector import build_model
    from glmd_train.state_dict import read_state_dict

    sizes = {"stem_channels": 1, "width_per_group": 1, "res2_channels": 1}
    config = ModelConfig(class_names=("a", "b"), backbone="resnet50", resnet=sizes, cm=False, lr=False, crd=False)
    spec, post = PreprocessSpec((64, 80), (127.0,), (128.0,)), PostprocessSpec((0.3, 0.3))
    whole = save_checkpoint(folder / "seed.safetensors", Checkpoint(build_model(config), config, spec, post, {"a": 1}))
    few = {"backbone.stem.conv.weight": np.ones((1, 1, 7, 7), np.float16), "rpn.conv.bias": np.ones(3, np.float32)}
    tensors = {name: torch.from_numpy(value) for name, value in few.items()}
    torch.save({"model": tensors, "iteration": 3}, folder / "seed.pth")
    enrolled = EnrolledSpec(("c",), (0.5,))
    files = {
        b"c": (folder / "a.safetensors", load_checkpoint),
        b"p": (folder / "p.safetensors", lambda path: read_prototypes(path.read_bytes(), path, 2)),
        b"e": (folder / "e.safetensors", lambda path: read_enrolment(path.read_bytes(), path, enrolled, 4)),
        b"t": (folder / "a.pth", read_state_dict),
        b"k": (folder / "a.pkl", read_state_dict),
    }
    seeds = [
        b"c" + whole.read_bytes(), b"p" + prototypes_to_bytes(np.ones((2, 3), np.float32)),
        b"e" + Enrolment(enrolled, np.ones((1, 4), np.float32), np.ones(1, np.float32)).to_bytes(),
        b"t" + (folder / "seed.pth").read_bytes(), b"k" + pickle.dumps({"model": few, "__author__": "x"}, 2),
    ]

    def run(data: bytes) -> None:
        path, read = files.get(data[:1], files[b"c"])
        path.write_bytes(data[1:])
        read(path)

    return Target(run, seeds, after_first(safetensors), [b"c" + save(few, {"glmd": "{}"})])


class Escaped(BaseException):
    """Something was executed that a file of weights named."""


_FORBIDDEN = ("os.", "subprocess.", "exec", "compile", "socket.", "ctypes.", "shutil.", "pickle.find_class", "import")


def unpickler(folder: Path) -> Target:
    """Pickles of arrays, with calls of the system among their seeds; an audit hook sees what is executed."""
    from glmd_train.official.pickled_arrays import read_pickle

    path, seen, watching = folder / "a.pkl", [], []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and (event.startswith(_FORBIDDEN) or (event == "open" and arguments[1] not in ("r", "rb"))):
            seen.append((event, arguments))

    def run(data: bytes) -> None:
        path.write_bytes(data)
        watching.append(True)
        try:
            read_pickle(path)
        finally:
            watching.clear()
            if seen or (folder / "canary").exists():
                raise Escaped(seen)

    numbers = np.arange(4, dtype="f4").reshape(2, 2)
    arrays = {"w": numbers, "f": np.asfortranarray(numbers), "s": np.float32(2), "b": b"\x80"}
    seeds = [pickle.dumps({"model": arrays, "__author__": "x"}, protocol) for protocol in range(6)]
    for seed in seeds:  # before the hook, since Python's own codecs are imported when they are first used
        run(seed)
    sys.addaudithook(audit)
    hostile = [b"cos\nsystem\n(S'touch canary'\ntR.", b"\x80\x02}U\x01acos\nsystem\nU\x0ctouch canary\x85Rs."]
    return Target(run, seeds, operations, hostile)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "yaml": yaml, "coco": coco, "yolo": yolo, "voc": voc, "labelme": labelme, "ifsod": ifsod,
    "onnx_metadata": onnx_metadata, "checkpoint": checkpoint, "unpickler": unpickler,
}
