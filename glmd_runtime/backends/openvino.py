"""OpenVINO on the CPU; reads ONNX files and its own .xml."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino

from glmd_runtime.backends.base import Read, Tensors
from glmd_runtime.errors import BundleError, UnsupportedError
from glmd_runtime.files.onnx_file import check_onnx
from glmd_runtime.files.scratch import work_folder

# The first array that the library shows sets up its share of numpy, and in two threads at once that never ends: one
# holds Python's lock and waits for the other, which waits for Python's lock. So it is done here, by one thread.
np.copy(openvino.Tensor(np.zeros(1, np.float32)).data)


class OpenVinoBackend:
    """As many inference requests as it computes at once: a request is not thread-safe.

    Usually that is one, which uses every core; for throughput each has its share of them, and waits for no other core.
    """

    device = "cpu"

    def __init__(
        self,
        model: Path,
        threads: int | None = None,
        device: str | None = None,
        throughput: bool = False,
        read: Read = Path.read_bytes,
    ) -> None:
        if device not in (None, "cpu"):
            raise UnsupportedError(f"openvino runs on the CPU here; got device {device!r}. Name another backend.")
        # OpenVINO would otherwise lower the precision by itself on CPUs with bfloat16 or half units.
        config = {"PERFORMANCE_HINT": "THROUGHPUT" if throughput else "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        core = openvino.Core()
        compiled = core.compile_model(_read(core, model, read), "CPU", config)
        self._outputs = {name: output for output in compiled.outputs for name in output.names}
        self.calls = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.calls):
            self._free.put(compiled.create_infer_request())

    def run(self, inputs: Tensors) -> Tensors:
        request = self._free.get()
        try:
            results = request.infer(inputs, share_outputs=False)
        finally:
            self._free.put(request)
        return {name: results[output] for name, output in self._outputs.items()}

    def close(self) -> None:
        del self._free, self._outputs


def _read(core: Any, model: Path, read: Read) -> Any:
    """The model as it was when it was read; given a path, the library would read the file itself, later."""
    content = read(model)
    if model.suffix != ".xml":
        check_onnx(content, model)
        with work_folder("glmd-openvino") as folder:  # of one in memory, 2026.4 loses inputs
            (folder / "model.onnx").write_bytes(content)
            return core.read_model(folder / "model.onnx")
    if not content.startswith(b"<"):  # the library goes by what is inside, and would take it for another kind
        raise BundleError(f"{model} must be an OpenVINO model in XML; it is not. Export the checkpoint again.")
    return core.read_model(content, read(model.with_suffix(".bin")))
