"""Every backend gives the graph's answers, alone and from several threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from glmd_runtime import backends
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.errors import BundleError, UnsupportedError, UsageError
from tests import tiny
from tests.conftest import skip_unless
from tests.fakes.gpu import FakeGpu

every_backend = pytest.mark.parametrize("name", backends.readers("model.onnx"))


def load(name: str, bundle: Path) -> backends.Backend:
    skip_unless(name in backends.available(), name, f"{name} is not installed")
    return backends.load(name, bundle / "model.onnx", threads=1)


def inputs(n: int, seed: int = 0) -> backends.Tensors:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, 1, *tiny.SIZE_HW)).astype(np.float32)
    return {"images": images, "valid_hw": np.tile(np.float32([[50, 60]]), (n, 1))}


def check(came: backends.Tensors, sent: backends.Tensors) -> None:
    for name, expected in zip(("boxes", "scores", "valid"), tiny.answers(**sent), strict=True):
        np.testing.assert_allclose(came[name], expected, rtol=1e-5)


@every_backend
def test_answers(name: str, tiny_bundle: Path) -> None:
    backend = load(name, tiny_bundle)
    check(backend.run(inputs(1)), inputs(1))
    backend.close()


@every_backend
def test_outputs_belong_to_the_caller(name: str, tiny_bundle: Path) -> None:
    backend = load(name, tiny_bundle)
    first = backend.run(inputs(1))
    backend.run(inputs(1, seed=1))
    check(first, inputs(1))


@every_backend
def test_several_threads(name: str, tiny_bundle: Path) -> None:
    backend = load(name, tiny_bundle)
    sent = [inputs(1, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for came, asked in zip(pool.map(backend.run, sent), sent, strict=True):
            check(came, asked)


@every_backend
def test_a_damaged_model(name: str, tmp_path: Path) -> None:
    skip_unless(name in backends.available(), name, f"{name} is not installed")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(BundleError, match="is no ONNX model, or is damaged"):
        backends.load(name, tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=f"{name} cannot load"):
        backends.load(name, tmp_path / "model.onnx")


def outside(model: onnx.ModelProto, place: Path) -> onnx.TensorProto:
    """A tensor that is in another file."""
    place.write_bytes(np.ones(4, np.float32).tobytes())
    tensor = onnx.TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[4], data_location=1)
    for key, value in (("location", str(place)), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def as_initializer(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.initializer.append(tensor)


def as_constant(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["outside"], value=tensor))


def in_a_branch(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["outside"], ["o"])], "branch", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["c"], ["p"], then_branch=branch, else_branch=branch))


def in_a_function(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    node = helper.make_node("Constant", [], ["o"], value=tensor)
    model.functions.append(helper.make_function("glmd", "f", [], ["o"], [node], [helper.make_opsetid("", 17)]))


def as_sparse(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, dims=[4]))


@every_backend
@pytest.mark.parametrize("hide", [as_initializer, as_constant, in_a_branch, in_a_function, as_sparse])
def test_a_model_that_names_other_files(name: str, hide: Callable[..., None], tmp_path: Path) -> None:
    skip_unless(name in backends.available(), name, f"{name} is not installed")
    model = onnx.load_from_string(tiny.model())
    hide(model, outside(model, tmp_path / "secret"))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="keeps tensors in other files, which are not read"):
        backends.load(name, tmp_path / "model.onnx")


def test_an_openvino_model_is_xml(tmp_path: Path) -> None:
    """OpenVINO would take it for ONNX, by what is inside, whatever it is called."""
    skip_unless("openvino" in backends.available(), "openvino", "openvino is not installed")
    (tmp_path / "openvino.fp32.xml").write_bytes(tiny.model())
    with pytest.raises(BundleError, match="must be an OpenVINO model in XML"):
        backends.load("openvino", tmp_path / "openvino.fp32.xml")


@pytest.mark.parametrize("cause", [ImportError, OSError, AttributeError])
def test_a_library_that_breaks_at_import(
    cause: type[Exception], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> None:
        raise cause("libstdc++.so.6 is too old")

    monkeypatch.setattr(backends, "available", lambda: ["openvino"])
    monkeypatch.setattr(backends, "import_module", broken)
    with pytest.raises(UnsupportedError, match=r"openvino is installed but .* is too old.*pip install"):
        backends.load("openvino", tiny_bundle / "model.onnx")


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [backends.why_not(name) for name in backends.available()] == [""] * len(backends.available())
    with pytest.raises(UsageError, match="got 'abacus'"):
        backends.why_not("abacus")

    def broken(_: str) -> None:
        raise OSError("libcudart.so.13 is missing")

    monkeypatch.setattr(backends, "available", lambda: ["tensorrt_rtx"])
    monkeypatch.setattr(backends, "import_module", broken)
    assert "tensorrt_rtx is installed but cannot be imported: libcudart" in backends.why_not("tensorrt_rtx")
    assert "openvino is not installed. Run: pip install" in backends.why_not("openvino")


class TestOnnxRuntimeOnAGpu:
    """Which providers are asked for; sessions are only recorded: onnxruntime-gpu has no place beside onnxruntime."""

    @pytest.fixture
    def sessions(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        import onnxruntime

        asked: list[list[str]] = []

        class Session:
            def __init__(self, model: bytes, options: Any, providers: list[tuple[str, dict[str, Any]]]) -> None:
                asked.append([name for name, _ in providers])
                self.settings = dict(providers)

            def get_outputs(self) -> list[Any]:
                return []

            def get_providers(self) -> list[str]:
                return [name for name in asked[-1] if name not in self.unable]

            unable: tuple[str, ...] = ()

        everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        self.session = Session
        return asked

    def test_order(self, sessions: list[list[str]], tmp_path: Path) -> None:
        (tmp_path / "m.onnx").touch()
        backend = backends.load("onnxruntime", tmp_path / "m.onnx", device="cuda:0")
        assert [name[:4] for name in sessions[-1]] == ["Tens", "CUDA", "CPUE"] and backend.device == "cuda:0"
        assert backend._session.settings["CUDAExecutionProvider"] == {"device_id": 0, "use_tf32": 0}
        assert backends.load("onnxruntime", tmp_path / "m.onnx", device="cpu").device == "cpu"
        assert sessions[-1] == ["CPUExecutionProvider"]

    def test_never_the_cpu_without_a_word(self, sessions: list[list[str]], gpu: FakeGpu, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").touch()
        self.session.unable = ("TensorrtExecutionProvider", "CUDAExecutionProvider")  # libraries of another CUDA
        with pytest.raises(UnsupportedError, match=r"no CUDA provider .* onnxruntime-gpu.*device='cpu'"):
            backends.load("onnxruntime", tmp_path / "m.onnx", device="cuda")
        assert backends.load("onnxruntime", tmp_path / "m.onnx").device == "cpu"
        gpu.become("10.3.0", "")
        with pytest.raises(UnsupportedError, match="no CUDA provider"):
            backends.load("onnxruntime", tmp_path / "m.onnx", device="cuda")


# Prints what a backend's first call imports.
_FIRST_CALL = """
import builtins, sys
from pathlib import Path
import numpy as np
from glmd_runtime import backends
backend = backends.load("openvino", Path(sys.argv[1]))
real = builtins.__import__
builtins.__import__ = lambda name, *rest, **named: (print(name), real(name, *rest, **named))[1]
backend.run({"images": np.zeros((1, 1, 64, 80), np.float32), "valid_hw": np.full((1, 2), 64, np.float32)})
builtins.__import__ = real
"""


def test_the_first_call_of_openvino_sets_nothing_up(tiny_bundle: Path) -> None:
    """Two first calls at once would wait for each other for ever; in a new process, as it is done once in each."""
    skip_unless("openvino" in backends.available(), "openvino", "openvino is not installed")
    command = [sys.executable, "-c", _FIRST_CALL, str(tiny_bundle / "model.onnx")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_openvino_runs_on_the_cpu(tiny_bundle: Path) -> None:
    skip_unless("openvino" in backends.available(), "openvino", "openvino is not installed")
    with pytest.raises(UnsupportedError, match="on the CPU here; got device 'cuda'"):
        backends.load("openvino", tiny_bundle / "model.onnx", device="cuda")


@pytest.mark.parametrize("n", [1, 3, 4, 7])
def test_a_short_batch_is_padded(n: int) -> None:
    class Echo:
        def run(self, inputs: backends.Tensors) -> backends.Tensors:
            assert inputs["x"].shape == (3, 2)
            return {"y": inputs["x"] * 2}

        def close(self) -> None: ...

    x = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    np.testing.assert_array_equal(backends.run_padded(Echo(), 3, {"x": x})["y"], x * 2)


def test_wrong_values_are_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="one of openvino, onnxruntime, tensorrt, tensorrt_rtx; got 'tensorflow'"):
        backends.load("tensorflow", tiny_bundle / "model.onnx")
    monkeypatch.setattr(backends, "available", lambda: [])
    with pytest.raises(UnsupportedError, match=r"not installed. Run: pip install '/.*\[openvino\]'"):
        backends.load("openvino", tiny_bundle / "model.onnx")


@pytest.mark.parametrize("threads", [0, -1])
def test_a_wrong_number_of_threads(threads: int, tiny_bundle: Path) -> None:
    name = next(iter(backends.available()), "")
    skip_unless(bool(name), "onnxruntime", "no inference library is installed")
    with pytest.raises(UsageError, match=f"at least 1; got {threads}"):
        backends.load(name, tiny_bundle / "model.onnx", threads)


def test_readers() -> None:
    assert backends.readers("model.onnx") == ["openvino", "onnxruntime"]
    assert backends.readers("openvino.fp32.xml") == ["openvino"]
    assert backends.readers("model.fp16.onnx") == ["onnxruntime", "tensorrt"]
    assert backends.readers("model.plugin.fp16.onnx") == ["tensorrt"]
    assert backends.readers("model.s8.onnx") == ["tensorrt"]
    assert backends.readers("model.int8.onnx") == ["onnxruntime"]
    assert backends.readers("tensorrt_rtx.fp16.engine") == ["tensorrt_rtx"]
    assert backends.readers("tensorrt_rtx.fp16.engine.json") == []


def test_fake_plays_its_script() -> None:
    fake = FakeBackend(tiny.graph_spec(), [[((1, 2, 3, 4), 1, 0.9)], []])
    first, second, third = (fake.run(inputs(1)) for _ in range(3))
    assert {name: value.shape for name, value in first.items()} == tiny.graph_spec().outputs
    assert first["boxes"][0, 0, 1].tolist() == [1, 2, 3, 4] and first["valid"][0].tolist() == [True] + [False] * 3
    assert not second["valid"].any()
    np.testing.assert_array_equal(third["scores"], first["scores"])
