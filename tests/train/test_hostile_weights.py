"""Files of weights made to be read: one clear error, no memory beyond the file, and nothing of ours is altered."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from glmd_export.cli import main as export
from glmd_runtime.errors import CheckpointError, UsageError
from glmd_train.checkpoint import load_checkpoint, save_checkpoint
from glmd_train.config import ModelConfig
from glmd_train.model.detector import build_model
from glmd_train.official.pickled_arrays import read_pickle
from glmd_train.official.weights import to_official
from glmd_train.state_dict import read_state_dict
from tests.train.test_checkpoint import checkpoint
from tests.trust.hostile_pickles import NAMED, state_of_ours, stated

BIAS = "rpn.conv.bias"
_TINY = {"stem_channels": 1, "width_per_group": 1, "res2_channels": 1}


@cache
def weights() -> dict[str, Tensor]:
    """A small ResNet under our names, of the settings that are published."""
    names = ("person", "car")
    config = ModelConfig(
        class_names=names, backbone="resnet50", resnet=_TINY, stride=16, in_channels=3, cm=False, lr=False, crd=False
    )
    return build_model(config).state_dict()


@pytest.fixture
def names(tmp_path: Path) -> Path:
    (tmp_path / "names.txt").write_text("person\ncar\n")
    return tmp_path / "names.txt"


def saved(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path, **options)
    return path


def test_the_network_of_these_tests_is_read(tmp_path: Path, names: Path) -> None:
    loaded = load_checkpoint(saved(tmp_path, weights()), classes=names)
    assert loaded.config.resnet.res2_channels == 1


# Kinds of tensors that torch saves, and that are no weights.
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "meta": lambda v: v.to("meta"),
    "sparse": lambda v: v.to_sparse(),
    "csr": lambda v: v.reshape(1, -1).to_sparse_csr(),
    "quantized": lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
    "complex": lambda v: v.to(torch.complex64),
    "bool": lambda v: v.bool(),
    "nested": lambda v: torch.nested.nested_tensor([v, v[:1]]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OTHERS)
def test_tensors_that_are_no_arrays_of_real_numbers(kind: str, tmp_path: Path, names: Path) -> None:
    path = saved(tmp_path, {**weights(), BIAS: OTHERS[kind](weights()[BIAS])})
    with pytest.raises(CheckpointError, match=r"dense tensors of real numbers .*; \['rpn\.conv\.bias'\] \(1 of"):
        load_checkpoint(path, classes=names)


def test_a_safetensors_file_of_complex_weights(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.safetensors", checkpoint())
    with safe_open(path, "pt") as file:
        held, told = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({**held, BIAS: held[BIAS].to(torch.complex64)}, path, told)
    with pytest.raises(CheckpointError, match="dense tensors of real numbers"):
        load_checkpoint(path)


def test_the_command_says_it_in_one_line(tmp_path: Path, names: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, {key: value.to("meta") for key, value in weights().items()})
    assert export(["--ckpt", str(path), "--classes", str(names), "-o", str(tmp_path / "a.glmd")]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said and "dense tensors of real numbers" in said


# Tensors of a few bytes that are, or become, any amount of memory.
LARGE: dict[str, Callable[[], dict[str, Tensor]]] = {
    "a stride of 0": lambda: {BIAS: torch.zeros(1, dtype=torch.half).expand(1 << 28)},
    "more than any memory": lambda: {BIAS: torch.zeros(1, dtype=torch.half).expand(1 << 40)},
    "windows": lambda: {BIAS: torch.zeros(1 << 16).as_strided((1 << 15, 1 << 15), (1, 1))},
    "many names": lambda: dict.fromkeys(map(str, range(1000)), torch.zeros(1 << 14, dtype=torch.half)),
    "a side of 0": lambda: {"proposal_generator.rpn_head.conv.weight": torch.zeros(1 << 40, 0)},
}


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("how", LARGE)
def test_tensors_larger_than_their_file(how: str, modern: bool, tmp_path: Path, names: Path) -> None:
    path = saved(tmp_path, LARGE[how](), _use_new_zipfile_serialization=modern)
    with pytest.raises(CheckpointError, match="Expected each tensor with numbers of its own"):
        load_checkpoint(path, classes=names)


def rezipped(path: Path, compression: int = zipfile.ZIP_STORED, again: int = 0) -> None:
    """The same archive, compressed, or with its numbers listed several times."""
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.filelist += [entry for entry in new.filelist if entry.filename.endswith("data/0")] * again


@pytest.mark.parametrize("damage", [{"compression": zipfile.ZIP_DEFLATED}, {"again": 1}])
def test_an_archive_that_grows_is_refused_before_it_is_read(
    damage: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, {"w": torch.zeros(1 << 16)})
    rezipped(path)
    assert read_state_dict(path)["w"].shape == (1 << 16,)
    rezipped(path, **damage)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match="compressed or overlapping parts"):
        read_state_dict(path)


def test_an_archive_of_tar_whose_first_name_begins_like_one_of_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("PK"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match="damaged"):
        read_state_dict(path)


@pytest.mark.parametrize("empty", ["stem.conv", "blocks.0.0.conv1.conv", "blocks.0.0.conv3.conv"])
def test_a_resnet_without_channels(empty: str, tmp_path: Path, names: Path) -> None:
    key = f"backbone.{empty}.weight"
    path = saved(tmp_path, {**weights(), key: torch.zeros(0, *weights()[key].shape[1:])})
    with pytest.raises(CheckpointError, match=r"a ResNet of \{.*: 0.*\}; expected sizes of 1 to 4096"):
        load_checkpoint(path, classes=names)


@pytest.mark.parametrize(("key", "value"), [
    ("proposal_generator.rpn_head.conv.weight", torch.tensor(1.0)), ("affine_rpn.other", torch.ones(1)),
    ("affine_rpn", torch.ones(1)),
])
def test_a_name_or_shape_that_no_network_has(key: str, value: Tensor, tmp_path: Path, names: Path) -> None:
    config = load_checkpoint(saved(tmp_path, weights()), classes=names).config
    path = saved(tmp_path, {**to_official(weights(), config), key: value})
    with pytest.raises(CheckpointError, match=r"another architecture|expected a parameter"):
        load_checkpoint(path, classes=names)


def test_a_dictionary_and_a_tensor_whose_methods_are_numbers(tmp_path: Path, names: Path) -> None:
    """Both can be said in a file that torch reads with weights_only."""
    bias = weights()[BIAS].clone()
    bias.float = bias.detach = 3
    content = OrderedDict({**weights(), BIAS: bias})
    content.get = content.keys = 3  # type: ignore[attr-defined]
    assert load_checkpoint(saved(tmp_path, {"model": content}), classes=names).class_names == ("person", "car")
    assert load_checkpoint(saved(tmp_path, content), classes=names).class_names == ("person", "car")


def array(name: str, numbers: bytes, shape: bytes = b"K\2\x85") -> bytes:
    """A named array of bytes in a pickle; `numbers` is what puts them on the stack."""
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
    kind = b"cnumpy\ndtype\nU\2u1K\0K\1\x87R(K\3U\1|NNNK\xffK\xffK\0tb"
    return b"U" + bytes([len(name)]) + name.encode() + made + b"(K\1" + shape + kind + b"\x89" + numbers + b"tb"


def pkl(folder: Path, program: bytes) -> Path:
    path = folder / "weights.pkl"
    path.write_bytes(b"\x80\2}" + program + b".")
    return path


def test_an_array_of_two_bytes(tmp_path: Path) -> None:
    assert read_pickle(pkl(tmp_path, array("w", b"U\2ab") + b"s"))["w"].tolist() == [97, 98]


@pytest.mark.parametrize("program", [
    array("w", b"J\0\0\0\x40", b"J\0\0\0\x40\x85") + b"s",  # a number of bytes in the place of bytes
    array("w", b"B\0\x10\0\0" + b"a" * 4096, b"M\0\x10\x85") + b"q\0s" + b"".join(
        b"U\2%02dh\0s" % number for number in range(99)
    ),
    b"U\1a}q\0(" + b"".join(b"U\2%02dN" % number for number in range(99)) + b"us" + b"".join(
        b"U\2%02dh\0s" % number for number in range(99)
    ),
], ids=["a number", "one array under many names", "one dictionary under many names"])
def test_arrays_larger_than_their_pickle(program: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is damaged"):
        read_pickle(pkl(tmp_path, program))


@pytest.mark.parametrize("attribute", ["__defaults__", "__name__", "__code__", "__dict__", "make", "x"])
@pytest.mark.parametrize("named", NAMED, ids=".".join)
def test_a_pickle_cannot_alter_what_it_names(named: tuple[str, str], attribute: str, tmp_path: Path) -> None:
    before = state_of_ours()
    with pytest.raises(CheckpointError, match="a change of what reads it"):
        read_pickle(pkl(tmp_path, b"U\1w" + stated(*named, (None, {attribute: ("latin1",)})) + b"s"))
    with pytest.raises(CheckpointError, match="a change of what reads it"):
        read_pickle(pkl(tmp_path, b"U\1w" + stated(*named, {attribute: ("latin1",)}) + b"s"))
    assert state_of_ours() == before


def test_a_dictionary_that_keeps_its_order_takes_no_state(tmp_path: Path) -> None:
    made = b"U\1mccollections\nOrderedDict\n)RU\1wK\1s"
    for state in ({"items": 3}, (None, {"items": 3})):
        found = read_pickle(pkl(tmp_path, made + pickle.dumps(state, 2)[2:-1] + b"bs"))
        assert found == {"m": {"w": 1}} and type(found["m"]) is dict


@pytest.mark.parametrize("named", NAMED, ids=".".join)
def test_what_a_pickle_gives_is_plain(named: tuple[str, str], tmp_path: Path) -> None:
    name = b"c%s\n%s\n" % (named[0].encode(), named[1].encode())
    inner = b"U\1d}U\1w" + name + b"sU\1n" + b"Nss"
    found = read_pickle(pkl(tmp_path, b"U\1w" + name + b"sU\1l](" + name + b"es" + array("a", b"U\2ab") + b"s" + inner))
    assert set(found) == {"a", "d"} and isinstance(found["a"], np.ndarray) and found["d"] == {"n": None}


def test_a_list_of_names_without_end(tmp_path: Path) -> None:
    path = saved(tmp_path, weights())
    with pytest.raises(UsageError, match="more than 1048576 bytes"):
        load_checkpoint(path, classes=Path("/dev/zero"))
