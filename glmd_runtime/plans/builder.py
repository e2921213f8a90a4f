"""One build of a TensorRT engine: the process that `engines.build_plan` starts, so that a fault or a leak stays in it.

    python -m glmd_runtime.plans.builder '{"onnx": ..., "plan": ..., "library": ..., "precision": ...}'

On stdout it writes JSON lines: {"progress": ...} and at last {"built": ...} or {"error": [type, message]}. What the
library says goes to stderr, which becomes the log.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

from glmd_runtime.backends import cuda
from glmd_runtime.backends.tensorrt import load_plugins
from glmd_runtime.errors import BundleError, GlmdError, OutputError, PrecisionError, UnsupportedError, UsageError
from glmd_runtime.files.onnx_file import check_onnx
from glmd_runtime.files.plain import sha256_of
from glmd_runtime.files.scratch import whole_file, writing
from glmd_runtime.plans.plan import PlanRecord, sha256

_HALF, _INT8 = re.compile(r"half|fp16", re.IGNORECASE), re.compile(r"int8", re.IGNORECASE)
_TYPES = {"fp16": _HALF, "int8": _INT8}  # how an engine's layers name the precision
_TENSOR_TYPE = re.compile(r"Datatype\W+([^,}\]\n]+)")


@dataclass(frozen=True)
class Request:
    """What to build; `engines.build_plan` explains each value."""

    onnx: str
    plan: str
    library: str
    precision: str
    sha256: str
    plugin: str
    workspace: int
    timing_cache: str
    device: int | None


def main() -> None:
    """Build what the first argument asks for; every outcome but a crash is the last line on stdout."""
    Thread(target=_end_with_parent, daemon=True).start()
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library that prints must not disturb the lines

    def send(**message: Any) -> None:
        lines.write(json.dumps(message) + "\n")

    try:
        request = Request(**json.loads(sys.argv[1]))
        with writing(request.plan):
            record = build(request, lambda text: send(progress=text))
        send(built=record)
    except GlmdError as error:
        send(error=[type(error).__name__, str(error)])
    except MemoryError:
        send(error=["UnsupportedError", "memory ran out while the engine was built; end other programs"])


def _end_with_parent() -> None:
    """Who waits for the engine holds the other end of stdin, and lets go of it in whatever way it ends."""
    sys.stdin.read()
    os._exit(1)


def build(request: Request, progress: Callable[[str], None]) -> dict[str, Any]:
    """Parse, build, prove the precision, write the plan. Returns: the fields of its PlanRecord.

    Raises: BundleError for a file that is no model, UnsupportedError for a model that the library cannot build,
        PrecisionError when the engine does not compute in the precision asked for.
    """
    trt = import_module(request.library)
    capability = ""
    if request.device is not None:
        cuda.set_device(request.device)
        capability = cuda.capability(request.device)
    logger = _logger(trt)
    if request.plugin:
        load_plugins(trt, Path(request.plugin))
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    progress("reading the model")
    content = _content(Path(request.onnx), request.sha256)
    _parse(trt, network, logger, Path(request.onnx), content)
    convolutions = _check_network(trt, network, request)
    config = _configure(trt, builder, request, progress)
    began = perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = perf_counter() - began
    if plan is None:
        reason = logger.last_error or "it gave no reason"
        raise UnsupportedError(f"{request.library} {trt.__version__} cannot build {request.onnx}: {reason}")
    _check_engine(_engine_layers(trt, logger, plan, request.device), convolutions, request)
    Path(request.plan).write_bytes(plan)
    _keep_timings(config, request.timing_cache)
    return vars(
        PlanRecord(
            library=request.library,
            version=trt.__version__,
            capability=capability,
            precision=request.precision,
            sha256=sha256(Path(request.plan)),
            onnx=sha256_of([content]),
            plugin=sha256(Path(request.plugin)) if request.plugin else "",
            seconds=round(seconds, 3),
        )
    )


def _network_flags(trt: Any) -> int:
    """Networks of 11.x and of TensorRT-RTX are always strongly typed; 10.x wants to be asked."""
    asks = trt.__name__ == "tensorrt" and trt.__version__.startswith("10.")
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if asks else 0


def _content(onnx: Path, expected: str) -> bytes:
    """The model that is built. Raises: BundleError when it is not the expected one, or names other files."""
    content = onnx.read_bytes()
    if expected and (came := sha256_of([content])) != expected:
        raise BundleError(f"{onnx} was altered: expected SHA-256 {expected[:12]}, got {came[:12]}. Open it again.")
    check_onnx(content, onnx)
    return content


def _parse(trt: Any, network: Any, logger: Any, onnx: Path, content: bytes) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse(content) and network.num_outputs:
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    nodes = [f"{e.node_operator()} {e.node_name()!r} ({e.desc()})" for e in errors if e.node_operator()]
    if not nodes:
        said = "; ".join(e.desc() for e in errors) or "it has no outputs"
        raise BundleError(f"{trt.__name__} cannot read {onnx}: {said}. Export the checkpoint again.")
    raise UnsupportedError(
        f"{trt.__name__} {trt.__version__} cannot parse {onnx}: {'; '.join(nodes)}. "
        "Build from model.fp16.onnx, which holds only standard operators; Glmd operators need this project's plugins."
    )


def _check_network(trt: Any, network: Any, request: Request) -> list[str]:
    """Names of the convolutions. Raises: PrecisionError when none of them has inputs of the type asked for."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    inputs = [layer.get_input(0) for layer in convolutions]
    dequantized = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE}
    honoured = {
        "fp32": True,
        "fp16": any(tensor.dtype == trt.DataType.HALF for tensor in inputs),
        "int8": any(tensor.name in dequantized for tensor in inputs),
    }
    if not honoured[request.precision]:
        raise PrecisionError(
            f"{request.precision} was asked for, but of {len(convolutions)} convolutions in {request.onnx} none has "
            f"such inputs. Precision is part of the graph: export with --{request.precision}."
        )
    return [layer.name for layer in convolutions]


def _configure(trt: Any, builder: Any, request: Request, progress: Callable[[str], None]) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
    config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of mantissa are too few for coordinates
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for `_engine_layers`
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _progress_monitor(trt, progress)
    if request.timing_cache:
        _use_timings(config, Path(request.timing_cache))
    return config


def _use_timings(config: Any, path: Path) -> None:
    """Begin with what was measured before; with nothing where that is missing, spoilt or of another machine."""
    known = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if known is None or not config.set_timing_cache(known, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _engine_layers(trt: Any, logger: Any, plan: Any, device: int | None) -> str:
    """One line a layer of the engine: from the inspector, or without a device from the builder's own listing."""
    if device is None:
        return str(logger.layers)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise UnsupportedError(f"{trt.__name__} cannot load the engine that it built: {logger.last_error}")
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE))


def _check_engine(layers: str, convolutions: list[str], request: Request) -> None:
    """Raises: PrecisionError when no convolution of the engine computes in the type asked for."""
    if request.precision not in _TYPES:
        return
    lines = layers.splitlines()
    marks = ("conv", *(name.lower() for name in convolutions))
    # Where the engine's layers were fused beyond recognition, any layer must do.
    chosen = [line for line in lines if any(mark in line.lower() for mark in marks)] or lines
    types = sorted({kind.strip(' "') for line in chosen for kind in _TENSOR_TYPE.findall(line)})
    if not any(_TYPES[request.precision].search(kind) for kind in types):
        raise PrecisionError(
            f"{request.precision} was asked for, but the convolutions of the engine that {request.library} built from "
            f"{request.onnx} compute in {', '.join(types) or 'types that it does not tell'}. Report it with the log."
        )


def _keep_timings(config: Any, path: str) -> None:
    """Without them the next build takes longer, and nothing else."""
    if path:
        with suppress(OutputError, UsageError), whole_file(path) as partial:
            partial.write_bytes(config.get_timing_cache().serialize())


def _progress_monitor(trt: Any, progress: Callable[[str], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes on the outermost phases; the inner ones are thousands."""

        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._steps:
                progress(f"{phase_name}, {step + 1} of {self._steps[phase_name]}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Into the log goes everything but the details of each layer; the listing of the layers is kept."""

        def __init__(self) -> None:
            super().__init__()
            self.last_error = self.layers = ""

        def log(self, severity: Any, msg: str) -> None:
            if "LayerType: " in msg:
                self.layers = msg
            elif severity == trt.ILogger.VERBOSE:
                return
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = msg
            print(f"{severity.name}: {msg}", file=sys.stderr, flush=True)

    return Logger()


if __name__ == "__main__":
    main()
