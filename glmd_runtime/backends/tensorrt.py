"""TensorRT and TensorRT-RTX on a CUDA device; both read plans that `glmd_runtime.engines` built.

Only calls that TensorRT 10.3 to 11.x and TensorRT-RTX have in common are made.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.backends import cuda
from glmd_runtime.backends.base import Read, Tensors
from glmd_runtime.backends.device_array import DeviceArray, device_array, is_on_device
from glmd_runtime.errors import BundleError, FrameError, GlmdError, UnsupportedError
from glmd_runtime.plans.plan import PlanRecord, sha256

PLUGIN_VARIABLE = "GLMD_PLUGIN_LIBRARY"
_BUILT_PLUGINS = Path(__file__).parents[2] / "build" / "libglmd_plugins.so"  # CMake's, in the SDK's folder
_IN_FLIGHT = 2  # calls at once, unless asked for more: one computes while the other copies
_DTYPES = {"FLOAT": "f4", "HALF": "f2", "INT32": "i4", "INT64": "i8", "INT8": "i1", "UINT8": "u1", "BOOL": "?"}
_BUILD_AGAIN = "Build it again on this machine."

_loaded_plugins: dict[tuple[str, Path], Any] = {}  # (library, plugin library) -> handle: once a process


class TensorRtBackend:
    """One engine, and for each call in flight an execution context with its own stream, buffers and CUDA graph.

    Args: plan, with its record beside it; threads, calls in flight at once; device, "cuda" or "cuda:N".
    Raises:
        UnsupportedError: no device, or the plan was built for another GPU or version, or its plugins are missing;
        BundleError: the plan is not the one that was recorded.
    """

    library = "tensorrt"

    def __init__(
        self,
        plan: Path,
        threads: int | None = None,
        device: str | None = None,
        throughput: bool = False,
        read: Read = Path.read_bytes,
    ) -> None:
        index = cuda.use_device(device, self.library)
        trt = import_module(self.library)
        content = _checked_plan(plan, trt, cuda.capability(index), read)
        self.device = f"cuda:{index}"
        self._logger = logger(trt)
        self._engine = _deserialized(trt, self._logger, plan, content)
        self._slots: list[_Slot] = []
        self._free: LifoQueue[_Slot] = LifoQueue()
        self._limit, self._lock = threads or _IN_FLIGHT, threading.Lock()
        self.calls = self._limit if throughput else 1
        self._index = index
        self._free.put(self._new_slot())

    def run(self, inputs: Tensors) -> Tensors:
        """Inputs may lie on the CUDA device (DLPack or `__cuda_array_interface__`): they are copied within it."""
        cuda.set_device(self._index)  # the current device belongs to the thread
        slot = self._take()
        try:
            return slot.run(inputs)
        finally:
            self._free.put(slot)

    def close(self) -> None:
        cuda.set_device(self._index)
        for slot in self._slots:
            slot.close()
        self._slots.clear()
        del self._engine

    def _take(self) -> _Slot:
        """A slot that is free; a new one while there are fewer than the limit; else the next to become free."""
        with suppress(Empty):
            return self._free.get_nowait()
        with self._lock:
            if len(self._slots) < self._limit:
                return self._new_slot()
        return self._free.get()

    def _new_slot(self) -> _Slot:
        self._slots.append(_Slot(self._engine, self._index))
        return self._slots[-1]


class TensorRtRtxBackend(TensorRtBackend):
    library = "tensorrt_rtx"


class _Slot:
    """What one call in flight needs."""

    def __init__(self, engine: Any, device: int) -> None:
        self._context = engine.create_execution_context()
        if self._context is None:
            raise UnsupportedError("The device has no memory left for this engine. End other programs that use it.")
        self._device, self._graph = device, None
        self._warm = False
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime().cudaStreamNonBlocking)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._inputs = {name for name in names if engine.get_tensor_mode(name).name == "INPUT"}
        self._buffers = {
            name: cuda.Buffer(tuple(engine.get_tensor_shape(name)), _DTYPES[engine.get_tensor_dtype(name).name])
            for name in names
        }
        for name, buffer in self._buffers.items():
            self._context.set_tensor_address(name, buffer.pointer)

    def run(self, inputs: Tensors) -> Tensors:
        if set(inputs) != self._inputs:
            raise FrameError(f"The graph takes {sorted(self._inputs)}; got {sorted(inputs)}. Pass these by name.")
        lent = {name: self._checked(name, value) for name, value in inputs.items()}
        for name, array in lent.items():
            self._upload(self._buffers[name], array)
        self._enqueue()
        outputs = {name: buffer for name, buffer in self._buffers.items() if name not in inputs}
        for buffer in outputs.values():
            buffer.download(self._stream)
        cuda.call("cudaStreamSynchronize", self._stream)
        lent.clear()  # until here the copies were reading them
        if not self._warm:  # TensorRT wants one call before a capture
            self._warm, self._graph = True, self._captured()
        return {name: buffer.host.copy() for name, buffer in outputs.items()}

    def _checked(self, name: str, value: Any) -> DeviceArray | NDArray[Any]:
        host = self._buffers[name].host
        array = device_array(value, self._stream, self._device) if is_on_device(value) else np.asarray(value)
        if (array.shape, array.dtype) != (host.shape, host.dtype):
            raise FrameError(
                f"{name} must be {host.shape} {host.dtype}, as in the bundle's manifest; got {array.shape} "
                f"{array.dtype}. Convert it."
            )
        return array

    def _upload(self, buffer: cuda.Buffer, array: DeviceArray | NDArray[Any]) -> None:
        if isinstance(array, DeviceArray):
            cuda.copy(buffer.pointer, array.pointer, buffer.size, self._stream)
        else:
            buffer.host[...] = array
            buffer.upload(self._stream)

    def _enqueue(self) -> None:
        if self._graph is not None:
            cuda.call("cudaGraphLaunch", self._graph, self._stream)
        elif not self._context.execute_async_v3(int(self._stream)):
            raise GlmdError(f"TensorRT could not run the engine on cuda:{self._device}. Make a new Detector.")

    def _captured(self) -> Any:
        """The engine's launches as one CUDA graph; None where they cannot be captured, and are enqueued singly."""
        mode = cuda.runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with suppress(GlmdError):
            cuda.call("cudaStreamBeginCapture", self._stream, mode)
            enqueued = self._context.execute_async_v3(int(self._stream))
            graph = cuda.call("cudaStreamEndCapture", self._stream)
            try:
                return cuda.call("cudaGraphInstantiate", graph, 0) if enqueued else None
            finally:
                cuda.call("cudaGraphDestroy", graph)
        cuda.runtime().cudaGetLastError()  # else the next call would report it
        return None

    def close(self) -> None:
        if self._graph is not None:
            cuda.call("cudaGraphExecDestroy", self._graph)
        del self._context
        for buffer in self._buffers.values():
            buffer.close()
        cuda.call("cudaStreamDestroy", self._stream)


def find_plugins() -> Path | None:
    """This project's plugin library: where GLMD_PLUGIN_LIBRARY says, or where `make plugins` puts it; None without.

    Raises: UnsupportedError when the variable names no file.
    """
    if named := os.environ.get(PLUGIN_VARIABLE):
        if not Path(named).is_file():
            raise UnsupportedError(f"{PLUGIN_VARIABLE} must name the plugin library; {named} is no file. Correct it.")
        return Path(named)
    return _BUILT_PLUGINS if _BUILT_PLUGINS.is_file() else None


def load_plugins(trt: Any, library: Path) -> None:
    """Register a plugin library's operators, once a process. Raises: UnsupportedError."""
    key = trt.__name__, library.resolve()
    if key in _loaded_plugins:
        return
    try:
        handle = trt.get_plugin_registry().load_library(str(library))
    except Exception as error:  # pybind11 passes on whatever the loader throws
        raise UnsupportedError(f"The plugin library {library} cannot be loaded: {error}. Build it again.") from error
    if handle is None:
        raise UnsupportedError(f"{trt.__name__} {trt.__version__} refuses the plugins in {library}. Build them again.")
    _loaded_plugins[key] = handle


def logger(trt: Any) -> Any:
    """A trt.ILogger that keeps the errors for our own messages."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(msg)

    return Logger()


def _checked_plan(plan: Path, trt: Any, capability: str, read: Read) -> bytes:
    """The plan's bytes, if they are those of its record and may run here: a plan is code, so this comes first."""
    record, content = PlanRecord.read(plan, read), read(plan)
    came = hashlib.sha256(content).hexdigest()
    if came != record.sha256:
        raise BundleError(f"{plan} was altered: expected SHA-256 {record.sha256[:12]}, got {came[:12]}. {_BUILD_AGAIN}")
    if (record.library, record.version) != (trt.__name__, trt.__version__):
        raise UnsupportedError(
            f"{plan} was built by {record.library} {record.version}, which alone can load it; here is {trt.__name__} "
            f"{trt.__version__}. {_BUILD_AGAIN}"
        )
    if record.capability not in ("", capability):
        raise UnsupportedError(
            f"{plan} was built for GPUs of compute capability {record.capability}; here is {capability}. {_BUILD_AGAIN}"
        )
    if record.plugin:
        _load_recorded_plugins(trt, plan, record.plugin)
    return content


def _load_recorded_plugins(trt: Any, plan: Path, digest: str) -> None:
    library = find_plugins()
    if library is None or sha256(library) != digest:
        found = f"{library} is another" if library else "none was found"
        raise UnsupportedError(
            f"{plan} needs the plugin library of SHA-256 {digest[:12]}; {found}. Build it as docs/tensorrt.md says, or "
            f"name it in {PLUGIN_VARIABLE}."
        )
    load_plugins(trt, library)


def _deserialized(trt: Any, log: Any, plan: Path, content: bytes) -> Any:
    engine = trt.Runtime(log).deserialize_cuda_engine(content)
    if engine is None:
        raise UnsupportedError(f"{trt.__name__} cannot load {plan}: {'; '.join(log.errors)} {_BUILD_AGAIN}")
    return engine
