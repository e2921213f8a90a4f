"""OpenVINO on the CPU; reads ONNX files and its own .xml."""

from __future__ import annotations

import threading
from pathlib import Path

import openvino

from glmd_runtime.backends.base import Tensors
from glmd_runtime.errors import UnsupportedError


class OpenVinoBackend:
    """One inference request behind a lock: a request is not thread-safe, and one frame already uses every core."""

    device = "cpu"

    def __init__(self, model: Path, threads: int | None = None, device: str | None = None) -> None:
        if device not in (None, "cpu"):
            raise UnsupportedError(f"openvino runs on the CPU here; got device {device!r}. Name another backend.")
        # OpenVINO would otherwise lower the precision by itself on CPUs with bfloat16 or half units.
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        compiled = openvino.Core().compile_model(model, "CPU", config)
        self._outputs = {name: output for output in compiled.outputs for name in output.names}
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()

    def run(self, inputs: Tensors) -> Tensors:
        with self._lock:
            results = self._request.infer(inputs, share_outputs=False)
        return {name: results[output] for name, output in self._outputs.items()}

    def close(self) -> None:
        del self._request, self._outputs
