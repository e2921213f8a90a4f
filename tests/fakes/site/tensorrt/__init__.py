"""TensorRT as the SDK uses it: builds "plans" that hold the ONNX file, and runs them with ONNX Runtime.

It refuses what the real one refuses: weak typing gives FP32 on 10.x and does not exist on 11, plans of another version
or GPU or without their plugins are not deserialised, a context runs one call at a time, and results are not there
before the stream is synchronised.

GLMD_FAKE_TENSORRT  the version: "10.3.0", "10.14.1", "11.4.0"
GLMD_FAKE_FAULT     one thing that goes wrong: crash, hang, memory, refuse, fp32, wrong, capture, enqueue
GLMD_FAKE_BUILDS    a file that gets one line a build
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import threading
import time
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cuda.bindings import runtime as cuda

__version__ = os.environ.get("GLMD_FAKE_TENSORRT", "10.3.0")
_MAJOR = int(__version__.split(".")[0])
_GLMD = "glmd"  # domain of the custom operators


def _fault() -> str:
    return os.environ.get("GLMD_FAKE_FAULT", "")


def _enum(name: str, *members: str) -> Any:
    return IntEnum(name, {member: i for i, member in enumerate(members)}, module=__name__)


DataType = _enum("DataType", "FLOAT", "HALF", "INT8", "INT32", "BOOL", "INT64")
TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
LayerType = _enum("LayerType", "CONVOLUTION", "QUANTIZE", "DEQUANTIZE", "CAST", "PLUGIN_V3", "ELEMENTWISE")
LayerInformationFormat = _enum("LayerInformationFormat", "ONELINE", "JSON")
ProfilingVerbosity = _enum("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED")
MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE")
ErrorCode = _enum("ErrorCode", "SUCCESS", "MODEL_DESERIALIZE_FAILED", "INVALID_NODE")
if _MAJOR == 10:
    BuilderFlag = _enum("BuilderFlag", "FP16", "INT8", "TF32")


    class NetworkDefinitionCreationFlag(IntEnum):
        STRONGLY_TYPED = 1

else:
    BuilderFlag = _enum("BuilderFlag", "TF32")

_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.INT8: DataType.INT8,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.BOOL: DataType.BOOL,
}
_OPERATORS = {
    "Conv": LayerType.CONVOLUTION,
    "QuantizeLinear": LayerType.QUANTIZE,
    "DequantizeLinear": LayerType.DEQUANTIZE,
    "Cast": LayerType.CAST,
}


class Dims(tuple):  # type: ignore[type-arg]
    pass


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self._initialised = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


def _checked(logger: ILogger) -> ILogger:
    if not getattr(logger, "_initialised", False):
        raise TypeError("ILogger.__init__() must be called when overriding __init__")
    return logger


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class IPluginRegistry:
    def __init__(self) -> None:
        self._libraries: set[str] = set()

    def load_library(self, plugin_path: str) -> object | None:
        if not Path(plugin_path).read_bytes().startswith(b"glmd plugins"):
            raise RuntimeError(f"{plugin_path}: invalid ELF header")
        if self._libraries:
            return None  # a plugin of this name is registered already
        self._libraries.add(plugin_path)
        return object()


_registry = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    return _registry


class IProgressMonitor:
    def __init__(self) -> None:
        self._initialised = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class ITensor:
    name: str
    dtype: Any

    def __init__(self, name: str, dtype: Any) -> None:
        self.name, self.dtype = name, dtype


class ILayer:
    name: str
    type: Any

    def __init__(self, node: Any, types: dict[str, Any]) -> None:
        self.name = node.name
        self.type = LayerType.PLUGIN_V3 if node.domain == _GLMD else _OPERATORS.get(node.op_type, LayerType.ELEMENTWISE)
        self._inputs = [ITensor(name, types.get(name)) for name in node.input]
        self._outputs = [ITensor(name, types.get(name)) for name in node.output]

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]


class INetworkDefinition:
    def __init__(self, strongly_typed: bool) -> None:
        self._strongly_typed = strongly_typed
        self._model: Any = None
        self._layers: list[ILayer] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output)

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]


class ParserError:
    def __init__(self, code: Any, desc: str, node_name: str = "", node_operator: str = "") -> None:
        self._values = {"code": code, "desc": desc, "node_name": node_name, "node_operator": node_operator}

    def code(self) -> Any:
        return self._values["code"]

    def desc(self) -> str:
        return str(self._values["desc"])

    def node_name(self) -> str:
        return str(self._values["node_name"])

    def node_operator(self) -> str:
        return str(self._values["node_operator"])


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger = network, _checked(logger)
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        try:
            parsed = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
        except Exception:
            self._errors.append(ParserError(ErrorCode.MODEL_DESERIALIZE_FAILED, "Failed to parse the ONNX model."))
            return False
        for node in parsed.graph.node:
            if node.domain == _GLMD and not _registry._libraries:
                what = "Plugin not found, are the plugin name, version, and namespace correct?"
                self._errors.append(ParserError(ErrorCode.INVALID_NODE, what, node.name, node.op_type))
        graph = parsed.graph
        types = {v.name: _TYPES[v.type.tensor_type.elem_type] for v in (*graph.input, *graph.value_info, *graph.output)}
        self._network._model = parsed
        self._network._layers = [ILayer(node, types) for node in graph.node]
        return not self._errors


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._content)


class IBuilderConfig:
    profiling_verbosity: Any
    progress_monitor: IProgressMonitor | None

    def __init__(self) -> None:
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor = None
        self._timings: ITimingCache | None = None
        self._workspace = 0

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._workspace = pool_size

    def clear_flag(self, flag: Any) -> None:
        if flag not in BuilderFlag:
            raise TypeError("incompatible function arguments")

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._content not in (b"", b"timings " + __version__.encode()):
            return False
        self._timings = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._timings


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = _checked(logger)

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        if _MAJOR >= 11 and flags:
            raise ValueError(f"unknown network flags {flags}")
        return INetworkDefinition(_MAJOR >= 11 or bool(flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        _count_build()
        if not self._do_work(config):
            return None
        if config._timings:
            config._timings._content = b"timings " + __version__.encode()
        header = {
            "version": __version__,
            "capability": _capability(),
            "typed": network._strongly_typed and _fault() != "fp32",
            "detailed": config.profiling_verbosity == ProfilingVerbosity.DETAILED,
            "plugins": any(node.domain == _GLMD for node in network._model.graph.node),
            "wrong": _fault() == "wrong",
            "onnx": base64.b64encode(network._model.SerializeToString()).decode(),
        }
        return IHostMemory(b"ftrt" + json.dumps(header).encode())

    def _do_work(self, config: IBuilderConfig) -> bool:
        if _fault() == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if _fault() == "hang":
            time.sleep(600)
        if _fault() == "memory":
            hoard = bytearray(os.urandom(1)) * (1 << 30)
            time.sleep(600)
            del hoard
        if _fault() == "refuse":
            self._logger.log(ILogger.ERROR, "could not find any implementation for node conv1")
            return False
        if config.progress_monitor:
            config.progress_monitor.phase_start("Building Engine", None, 2)
            config.progress_monitor.phase_start("Tactic Selection", "Building Engine", 9)
            for step in range(2):
                config.progress_monitor.step_complete("Tactic Selection", step)
                if not config.progress_monitor.step_complete("Building Engine", step):
                    return False
            config.progress_monitor.phase_finish("Building Engine")
        return True


def _count_build() -> None:
    if path := os.environ.get("GLMD_FAKE_BUILDS"):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")


def _capability() -> str:
    device = getattr(cuda._thread, "device", 0)
    major = cuda.cudaDeviceGetAttribute(cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor, device)[1]
    minor = cuda.cudaDeviceGetAttribute(cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor, device)[1]
    return f"{major}.{minor}"


class _Crash(BaseException):
    """Where the real library would end the process."""


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = _checked(logger)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if cuda.cudaGetDeviceCount()[1] is None:
            raise _Crash("Runtime without a device")
        if serialized_engine[:4] != b"ftrt":
            return self._refuse("Magic tag does not match")
        plan = json.loads(serialized_engine[4:])
        if plan["version"] != __version__:
            return self._refuse("The engine plan file is not compatible with this version of TensorRT")
        if plan["capability"] != _capability():
            return self._refuse("The engine plan file is generated on an incompatible device")
        if plan["plugins"] and not _registry._libraries:
            return self._refuse("getPluginCreator could not find plugin GlmdRoiAlign version 1")
        return ICudaEngine(plan)

    def _refuse(self, why: str) -> None:
        self._logger.log(ILogger.ERROR, why)


class EngineInspector:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan

    def get_engine_information(self, format: Any) -> str:
        model = onnx.load_from_string(base64.b64decode(self._plan["onnx"]))
        if not self._plan["detailed"]:
            return "\n".join(node.name for node in model.graph.node)
        halves = {v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == 10}
        quantized = {o for n in model.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
        lines = []
        for node in model.graph.node:
            kind = "Int8" if node.input[0] in quantized else "Half" if node.input[0] in halves else "Float"
            kind = kind if self._plan["typed"] else "Float"
            tensor = f"[ {{ Name: {node.input[0]}, Location: Device, Dimensions: [1], Format/Datatype: {kind} }}]"
            what = "CaskConvolution" if node.op_type == "Conv" else "kgen"
            lines.append(f"Name: {node.name or node.output[0]}, LayerType: {what}, Inputs: {tensor}, Outputs: {tensor}")
        return "Layers:\n" + "\n".join(lines) + "\n\nBindings:\n"


class ICudaEngine:
    def __init__(self, plan: dict[str, Any]) -> None:
        import onnxruntime

        self._plan = plan
        model = onnx.load_from_string(base64.b64decode(plan["onnx"]))
        for node in model.graph.node:
            if node.domain == _GLMD:  # whatever it is, here it passes its input on
                node.domain, node.op_type = "", "Identity"
                del node.attribute[:]
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self._tensors = {
            v.name: (mode, [d.dim_value for d in v.type.tensor_type.shape.dim], _TYPES[v.type.tensor_type.elem_type])
            for mode, side in ((TensorIOMode.INPUT, model.graph.input), (TensorIOMode.OUTPUT, model.graph.output))
            for v in side
        }

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._tensors[name][0]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._tensors[name][1])

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name][2]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._plan)

    def create_execution_context(self) -> IExecutionContext | None:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._busy = threading.Lock()

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._tensors or memory not in cuda._device_memory:
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = cuda._stream_at(stream_handle)
        if _fault() == "capture" and stream.capture is not None:
            stream.broken = True
            return False
        if _fault() == "enqueue" or set(self._addresses) != set(self._engine._tensors):
            return False
        stream._push(self._compute)
        return True

    def _compute(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise _Crash("an execution context was used by two calls at once")
        try:
            time.sleep(0.001)  # long enough for two threads to meet
            tensors = self._engine._tensors
            inputs = {name: self._array(name) for name in tensors if tensors[name][0] == TensorIOMode.INPUT}
            names = [name for name in tensors if name not in inputs]
            for name, value in zip(names, self._engine._session.run(names, inputs), strict=True):
                off = 0.3 if self._engine._plan["wrong"] and name == "scores" else 0
                self._array(name)[...] = value + value.dtype.type(off) if off else value
        finally:
            self._busy.release()

    def _array(self, name: str) -> Any:
        """The tensor's memory as an array."""
        _, shape, dtype = self._engine._tensors[name]
        kind = {DataType.BOOL: np.bool_, DataType.HALF: np.float16, DataType.INT64: np.int64}.get(dtype, np.float32)
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        content = (ctypes.c_ubyte * size).from_address(self._addresses[name])
        return np.ctypeslib.as_array(content).view(kind).reshape(shape)
