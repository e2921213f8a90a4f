"""ImageNet weights in pickles: read by every version that wrote them, and whatever a pickle asks for, nothing runs."""

from __future__ import annotations

import builtins
import collections
import functools
import operator
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glmd_runtime.errors import CheckpointError, UsageError
from glmd_train.checkpoint import load_checkpoint
from glmd_train.model.resnet import Res5, ResNetTrunk
from glmd_train.official import pickled_arrays
from glmd_train.official.pickled_arrays import read_pickle
from glmd_train.official.weights import load_resnet_imagenet, load_start_weights, to_official
from tests.train.test_official import build_model, config, drawn, names_file, same

ARRAYS = {
    "conv1_w": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "by column": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "half": np.ones((2, 0, 1), np.float16),
    "scalar": np.array(3, np.uint8),
}


def written(folder: Path, content: Any, protocol: int = 2) -> Path:
    path = folder / "R-50.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", ["core", "_core"])
def test_arrays_of_every_protocol_and_version_of_numpy(protocol: int, core: str, tmp_path: Path) -> None:
    content = {"model": ARRAYS, "__author__": "someone", "matching_heuristics": True, "number": np.float32(2.5)}
    text = pickle.dumps(content, protocol=protocol)
    if protocol < 4:  # later ones count the letters
        text = re.sub(rb"numpy\._?core\.", b"numpy." + core.encode() + b".", text)
    found = read_pickle(written(tmp_path, text))
    assert found["__author__"] == "someone" and found["number"] == 2.5
    for name, array in ARRAYS.items():
        assert found["model"][name].dtype == array.dtype
        np.testing.assert_array_equal(found["model"][name], array)


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """Bytes were strings there, of which 0x93 and the like are no text."""
    array = np.array([-1.5, 3.25e-9], np.float32)
    raw = array.tobytes()
    assert max(raw) > 127
    program = (
        b"}U\x07conv1_w" b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(U\x02f4I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\nU" + bytes([len(raw)]) + raw
        + b"tbs."
    )
    np.testing.assert_array_equal(read_pickle(written(tmp_path, program))["conv1_w"], array)


class Call:
    """Pickled, this is a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def touch(target: Path) -> Call:
    return Call(os.system, f"touch {target}")


def numpy_load(target: Path) -> Call:
    """A second pickle in numpy's own format, which numpy would read."""
    evil = target.with_suffix(".npy")
    np.save(evil, np.array([touch(target)], dtype=object), allow_pickle=True)
    return Call(np.load, str(evil), None, True)


# Pickles that would make the file `target`, or reach for what could.
ATTACKS: dict[str, Callable[[Path], Any]] = {
    "os.system": touch,
    "eval": lambda target: Call(builtins.eval, f"open({str(target)!r}, 'w').close()"),
    "exec": lambda target: Call(builtins.exec, f"open({str(target)!r}, 'w').close()"),
    "numpy.load": numpy_load,
    "partial": lambda target: functools.partial(os.system, f"touch {target}"),
    "attrgetter": lambda target: operator.attrgetter("system"),
    "deep among arrays": lambda target: {"conv1_w": ARRAYS["conv1_w"], "evil": [({}, touch(target))]},
    "array of objects": lambda target: {"conv1_w": np.array([touch(target)], dtype=object)},
    "protocol 0": lambda target: f"cos\nsystem\n(S'touch {target}'\ntR.".encode(),
    "instance": lambda target: f"(S'touch {target}'\nios\nsystem\n.".encode(),
    "numpy's own exec": lambda target: b"cnumpy.testing._private.utils\nrunstring\n(S'import os'\n}tR.",
    "f2py": lambda target: f"cnumpy.f2py.capi_maps\nload_f2cmap_file\n(S'{target}'\ntR.".encode(),
    "ctypeslib": lambda target: b"cnumpy.ctypeslib\nload_library\n(S'libc.so.6'\nS'/lib'\ntR.",
    "a dotted name": lambda target: b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_malicious_pickle_runs_nothing(name: str, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    path = written(tmp_path, ATTACKS[name](target))
    with pytest.raises(CheckpointError, match="code is never executed"):
        read_pickle(path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "numpy.load", "deep among arrays", "instance"])
def test_these_pickles_are_a_real_danger(name: str, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    pickle.loads(written(tmp_path, ATTACKS[name](target)).read_bytes())
    assert target.exists()


def twice_over(levels: int, again: Callable[[int], bytes]) -> bytes:
    """A key that is a tuple of twice the tuple before, which takes a few hundred bytes and all the time there is."""
    return b"\x80\x02})q\0" + b"".join(again(i) + b"\x86q" + bytes([i + 1]) for i in range(levels)) + b"K\1s."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (twice_over(60, lambda i: b"h" + bytes([i])), "damaged"),
        (twice_over(60, lambda i: b"2"), "damaged"),
        (twice_over(60, lambda i: b"N0h" + bytes([i])), "damaged"),
        (b"", "damaged"),
        (b"no pickle", "damaged"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "damaged"),  # room for a terabyte
        (b"\x80\x02}r\xff\xff\xff\x7f.", "damaged"),  # a memo of two milliards
        ([1, 2], "holds a list"),
        ({"conv1_w": collections.deque()}, "names collections.deque"),
        ({"conv1_w": np.array(["text"])}, "an array of 'U4'"),
        ({"conv1_w": np.zeros(2, "f4,i4")}, "names an array of 'V8'"),
        ({"lr": 0.1}, "holds no weights"),
    ],
)
def test_other_contents_are_one_clear_error(content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(says)):
        load_checkpoint(written(tmp_path, content), classes=names_file(tmp_path))


def test_damage_anywhere_is_a_checkpoint_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = pickle.dumps({"model": ARRAYS}, protocol=2)
    for _ in range(300):
        altered = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(altered), 2):
            altered[place] = rng.integers(256)
        try:
            read_pickle(written(tmp_path, bytes(altered)))
        except CheckpointError:
            continue


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled_arrays, "MAX_BYTES", 1 << 20)
    with pytest.raises(CheckpointError, match="has 2 MB; a file of weights has at most 1 MB"):
        read_pickle(written(tmp_path, b"." * (2 << 20)))


def imagenet(one: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The trunk of a detector in Caffe2's form: its names, and norms that are a scale and a shift."""
    parts = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    ends = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}
    found = {}
    for key, value in one.items():
        block = re.fullmatch(r"(?:backbone|roi_heads)\.res(\d)\.(\d+)\.(\w+)\.((?:norm\.)?(?:weight|bias))", key)
        if block:
            found[f"res{block[1]}_{block[2]}_{parts[block[3]]}_{ends[block[4]]}"] = value.numpy()
    stem = {"weight": "conv1_w", "norm.weight": "res_conv1_bn_s", "norm.bias": "res_conv1_bn_b"}
    found |= {name: one[f"backbone.stem.conv1.{end}"].numpy() for end, name in stem.items()}
    unused = ("fc1000_w", "fc1000_b", "conv1_b", "conv1_w_momentum")
    return found | dict.fromkeys(unused, np.ones((2, 2), np.float32))


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return to_official(drawn(), config())


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"blobs": w}, lambda w: {"model": w, "__author__": "Caffe2"}])
def test_imagenet_weights_fill_the_trunk_and_res5(
    wrap: Callable[[Any], Any], published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model = build_model(config())
    before = {key: value.clone() for key, value in to_official(model.state_dict(), config()).items()}
    load_start_weights(written(tmp_path, wrap(imagenet(published))), model)
    for key, value in to_official(model.state_dict(), config()).items():
        if not key.startswith(("backbone.", "roi_heads.res5.")):
            assert torch.equal(value, before[key]), key
        elif "running" not in key:
            assert torch.equal(value, published[key]), key


def test_a_scale_without_statistics_is_exact(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = build_model(config())
    load_start_weights(written(tmp_path, imagenet(published)), model)
    stem, x = model.backbone.stem, torch.randn(1, 3, 16, 16)
    wanted = stem.conv(x) * stem.norm.weight[:, None, None] + stem.norm.bias[:, None, None]
    torch.testing.assert_close(stem(x), wanted, rtol=1e-6, atol=1e-6)


def test_a_grey_trunk_sees_what_three_equal_channels_show(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = written(tmp_path, imagenet(published))
    trunks = {channels: ResNetTrunk("resnet50", channels, config().resnet) for channels in (1, 3)}
    for trunk in trunks.values():
        load_resnet_imagenet(path, trunk, Res5("resnet50", config().resnet))
    grey = torch.randn(1, 1, 40, 40)
    torch.testing.assert_close(trunks[1](grey), trunks[3](grey.expand(1, 3, 40, 40)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_trunk_under_detectron2_s_names(prefix: str, published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    trunk = {
        prefix + key.removeprefix("backbone.").removeprefix("roi_heads."): value for key, value in published.items()
        if key.startswith(("backbone.", "roi_heads.res5."))
    }
    torch.save({"model": trunk}, tmp_path / "R-50.pth")
    model = build_model(config())
    load_start_weights(tmp_path / "R-50.pth", model)
    state = to_official(model.state_dict(), config())
    assert all(torch.equal(state[key], value) for key, value in published.items() if key.startswith("backbone."))


def test_what_is_missing_or_of_another_shape_is_named(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    weights = imagenet(published)
    missing = {key: value for key, value in weights.items() if key != "res3_1_branch2b_bn_s"}
    with pytest.raises(CheckpointError, match=r"missing \['backbone\.res3\.1\.conv2\.norm\.running_mean'"):
        load_start_weights(written(tmp_path, missing), build_model(config()))
    wrong = weights | {"res5_0_branch1_w": np.zeros((3, 2), np.float32)}
    with pytest.raises(CheckpointError, match=r"shape \['roi_heads\.res5\.0\.shortcut\.weight \(3, 2\), expected"):
        load_start_weights(written(tmp_path, wrong), build_model(config()))
    deeper = weights | {"res4_6_branch2a_w": weights["conv1_w"]}
    with pytest.raises(CheckpointError, match=r"unknown .*res4\.6\.conv1"):
        load_start_weights(written(tmp_path, deeper), build_model(config()))
    with pytest.raises(CheckpointError, match="holds no ResNet"):
        load_start_weights(written(tmp_path, {"fc1000_w": weights["fc1000_w"]}), build_model(config()))


def test_imagenet_weights_of_torchvision_are_of_another_network(tmp_path: Path) -> None:
    path = written(tmp_path, {"model": ARRAYS, "__author__": "torchvision"})
    with pytest.raises(CheckpointError, match="detectron2's folder MSRA"):
        load_start_weights(path, build_model(config()))


def test_imagenet_weights_are_no_checkpoint(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="A trunk with ImageNet weights is what `weights`"):
        load_checkpoint(written(tmp_path, imagenet(published)), classes=names_file(tmp_path))


def test_a_detector_of_detectron2_s_model_zoo_is_a_pickle_too(
    published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    zoo = {"model": {key: value.numpy() for key, value in published.items()}, "__author__": "Detectron2 Model Zoo"}
    loaded = load_checkpoint(written(tmp_path, zoo), classes=names_file(tmp_path))
    assert same(loaded.model.state_dict(), drawn())
    with pytest.raises(UsageError, match=r"--classes names\.txt"):
        load_checkpoint(written(tmp_path, zoo))
