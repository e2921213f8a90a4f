"""ONNX Runtime: on a CUDA device where onnxruntime-gpu and a device are there, else on the CPU."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime

from glmd_runtime.backends.base import Read, Tensors
from glmd_runtime.backends.cuda import parse_device, why_no_device
from glmd_runtime.errors import UnsupportedError
from glmd_runtime.files.onnx_file import check_onnx
from glmd_runtime.plans.plan import cache_folder, own_folder

CPU = "CPUExecutionProvider"


class OnnxRuntimeBackend:
    """Sessions of ONNX Runtime may be run from several threads; each has its own CUDA stream.

    Nothing is done for throughput: two calls of one thread each took as long as one of two after the other.
    """

    def __init__(
        self,
        model: Path,
        threads: int | None = None,
        device: str | None = None,
        throughput: bool = False,
        read: Read = Path.read_bytes,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0  # 0: as many as there are cores
        options.log_severity_level = 3
        options.add_session_config_entry("session.load_model_format", "ONNX")  # not its own, which is not checked
        content = read(model)
        check_onnx(content, model)
        self._session = onnxruntime.InferenceSession(content, options, providers=_providers(device))
        self._outputs = [output.name for output in self._session.get_outputs()]
        on_gpu = self._session.get_providers()[0] != CPU  # a provider that fails to start is left out without a word
        if device not in (None, "cpu") and not on_gpu:
            raise UnsupportedError(
                f"onnxruntime has no CUDA provider that works for {device}. Run: pip install onnxruntime-gpu, "
                "in the place of onnxruntime and for this machine's CUDA; or use device='cpu'."
            )
        self.device = f"cuda:{parse_device(device)}" if on_gpu else "cpu"

    def run(self, inputs: Tensors) -> Tensors:
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def close(self) -> None:
        del self._session


def _providers(device: str | None) -> list[tuple[str, dict[str, Any]]]:
    """What to try, best first: TensorRT, CUDA, CPU, as far as they were installed and asked for."""
    index = parse_device(device)
    installed = onnxruntime.get_available_providers()
    if index is None or "CUDAExecutionProvider" not in installed or why_no_device():
        return [(CPU, {})]
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21: finds CUDA and cuDNN among the installed packages
        onnxruntime.preload_dlls()
    cuda = {"device_id": index, "use_tf32": 0}  # TF32 keeps ten bits of mantissa, too few for coordinates
    providers: list[tuple[str, dict[str, Any]]] = [("CUDAExecutionProvider", cuda), (CPU, {})]
    with suppress(Exception):  # whatever a missing or broken TensorRT does when it is imported: CUDA comes next
        import tensorrt  # noqa: F401  loads the library that the provider needs

        cache = {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(own_folder(cache_folder() / "onnxruntime")),
        }
        if "TensorrtExecutionProvider" in installed:
            providers.insert(0, ("TensorrtExecutionProvider", {"device_id": index, **cache}))
    return providers
