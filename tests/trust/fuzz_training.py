"""What is fuzzed of training and export: configurations, labels, checkpoints, pickles, ONNX files."""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.trust.fuzz_mutations import (
    Mutation,
    Target,
    archived,
    attempt_all,
    by_first,
    either,
    joined,
    json_values,
    octets,
    one_of,
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
    """safetensors files of checkpoints, prototypes and enrolled classes, and whole networks in .pth and .pkl files."""
    import torch
    from safetensors.numpy import save

    from glmd_runtime.calibration import prototypes_to_bytes, read_prototypes
    from glmd_runtime.enroll import EnrolledSpec, Enrolment, read_enrolment
    from glmd_runtime.postprocess import PostprocessSpec
    from glmd_runtime.preprocess import PreprocessSpec
    from glmd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from glmd_train.config import ModelConfig
    from glmd_train.model.detector import build_model
    from glmd_train.official.weights import to_official

    torch.set_num_threads(1)
    sizes = {"stem_channels": 1, "width_per_group": 1, "res2_channels": 1}
    known = {"class_names": ("a", "b"), "backbone": "resnet50", "resnet": sizes, "stride": 16, "in_channels": 3}
    config = ModelConfig(**known, cm=False, lr=False, crd=False)
    spec, post = PreprocessSpec((64, 80), (127.0,) * 3, (128.0,) * 3), PostprocessSpec((0.3, 0.3))
    model, names = build_model(config), folder / "names.txt"
    names.write_text("a\nb\n")
    whole = save_checkpoint(folder / "seed.safetensors", Checkpoint(model, config, spec, post, {"a": 1}))
    ours, theirs = model.state_dict(), {"model": to_official(model.state_dict(), config)}
    few = {"backbone.stem.conv.weight": np.ones((1, 1, 7, 7), np.float16), "rpn.conv.bias": np.ones(3, np.float32)}
    enrolled = EnrolledSpec(("c",), (0.5,))
    files = {
        b"c": (folder / "a.safetensors", load_checkpoint),
        b"p": (folder / "p.safetensors", lambda path: read_prototypes(path.read_bytes(), path, 2)),
        b"e": (folder / "e.safetensors", lambda path: read_enrolment(path.read_bytes(), path, enrolled, 4)),
        b"t": (folder / "a.pth", lambda path: load_checkpoint(path, classes=names)),
        b"k": (folder / "a.pkl", lambda path: load_checkpoint(path, classes=names)),
    }
    arrays = {"model": {key: value.numpy() for key, value in theirs["model"].items()}, "__author__": "x"}
    seeds = [
        b"c" + whole.read_bytes(), b"p" + prototypes_to_bytes(np.ones((2, 3), np.float32)),
        b"e" + Enrolment(enrolled, np.ones((1, 4), np.float32), np.ones(1, np.float32)).to_bytes(),
        b"t" + _saved(ours), b"t" + _saved(theirs), b"t" + _saved(ours, False), b"k" + pickle.dumps(arrays, 2),
    ]
    hostile = [b"c" + save(few, {"glmd": "{}"})]
    hostile += [b"t" + _saved({**ours, "rpn.conv.bias": odd(ours["rpn.conv.bias"])}) for odd in _odd_tensors()]

    def run(data: bytes) -> None:
        path, read = files.get(data[:1], files[b"c"])
        path.write_bytes(data[1:])
        read(path)

    mutations = {
        b"t": one_of(_weights(ours), _weights(theirs["model"]), archived(operations, "data.pkl"), octets),
        b"k": operations,
    }
    return Target(run, seeds, by_first(mutations, safetensors), hostile)


def _saved(content: object, modern: bool = True) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=modern)
    return buffer.getvalue()


def _odd_tensors() -> list[Callable[[Any], Any]]:
    """What torch saves and reads, and what is no weight of this shape, or none at all."""
    import torch

    return [
        lambda v: v.to("meta"), lambda v: v.to_sparse(), lambda v: v.to(torch.complex64), lambda v: v.bool(),
        lambda v: torch.quantize_per_tensor(v.float(), 0.1, 0, torch.qint8),
        lambda v: v.flatten()[:1].expand(1 << 28), lambda v: v.flatten()[:1].expand(1 << 40),
        lambda v: torch.zeros(0, 1 << 40), lambda v: v.flatten()[0], lambda v: v[:0], lambda v: v[None],
        lambda v: v * 0, lambda v: v / 0, lambda v: v.half(), lambda v: v.to(torch.int16), lambda v: v.repeat(2),
        lambda v: torch.cat([v] * 3), lambda v: torch.nn.Parameter(v.clone()), lambda v: 3, lambda v: {"a": v},
    ]


def _weights(whole: dict[str, Any]) -> Mutation:
    """A network, some of its tensors left out, under other names, or odd; whatever the input was."""
    odd, names, prefixes = _odd_tensors(), sorted(whole), ("module.", "backbone.", "affine_rpn.", "neck.local.", "")

    def mutated(_: bytes, rng: Random) -> bytes:
        changed = dict(whole)
        for _ in range(rng.choice((1, 1, 2, 4))):
            name = rng.choice(names)
            value = changed.pop(name, whole[name])
            if rng.random() < 0.4:
                name = rng.choice((rng.choice(names), rng.choice(prefixes) + name.rpartition(".")[2], name[:-1]))
            if rng.random() < 0.7:
                with suppress(Exception):  # what torch cannot make of this shape
                    changed[name] = rng.choice(odd)(value)
        return _saved(changed, rng.random() < 0.8)

    return mutated


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
