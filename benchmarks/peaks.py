"""What this machine can do at best: the rate of large matrix products in OpenVINO, and of moving memory."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import openvino
import torch
from openvino import opset13 as op

from benchmarks.timing import milliseconds

# (rows, depth, columns) of the products tried; which one is the fastest depends on the caches.
SHAPES = ((2048, 1024, 1024), (4096, 512, 512))
RUNS = 12
CACHED, LARGE = 4 << 20, 256 << 20  # bytes: what stays in the last cache, and what does not
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class Peaks(NamedTuple):
    """gflops by precision (two operations a multiply-add); cached, large: GB/s of working sets of either size."""

    gflops: dict[str, float]
    cached: float
    large: float

    def milliseconds(self, macs: int, moved: int, precision: str) -> float:
        """The roofline: computing or moving, whichever takes longer."""
        bandwidth = self.cached if moved <= CACHED else self.large
        return max(2 * macs / self.gflops[precision], moved / bandwidth) / 1e6


def measured_peaks(threads: int) -> Peaks:
    rates = {precision: max(product_rate(precision, shape, threads) for shape in SHAPES) for precision in HINTS}
    return Peaks(rates, bandwidth(CACHED), bandwidth(LARGE))


def product_rate(precision: str, shape: tuple[int, int, int], threads: int) -> float:
    """GFLOP/s of the fastest of some products of one shape."""
    compiled = compile_profiled(product(*shape, precision), precision, threads)
    request = compiled.create_infer_request()
    best = min(_product_ms(request) for _ in range(RUNS))
    return 2 * float(np.prod(shape)) / best / 1e6


def compile_profiled(network: openvino.Model, precision: str, threads: int) -> openvino.CompiledModel:
    config = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": str(threads), "PERF_COUNT": "YES",
    }
    return openvino.Core().compile_model(network, "CPU", config)


def _product_ms(request: openvino.InferRequest) -> float:
    request.infer()
    kinds = ("MatMul", "FullyConnected", "Convolution")
    return max(1000 * one.real_time.total_seconds() for one in request.profiling_info if one.node_type in kinds)


def product(rows: int, depth: int, columns: int, precision: str) -> openvino.Model:
    """(rows, depth) @ (depth, columns) as a point-wise convolution, which is how nearly all of the network has it."""
    image = op.parameter([1, depth, rows // 32, 32], np.float32)
    weights = np.random.default_rng(0).integers(-127, 127, (columns, depth, 1, 1)).astype(np.int8)
    floats = op.multiply(op.convert(op.constant(weights), "f32"), op.constant(np.full((columns, 1, 1, 1), 0.01, "f4")))
    quantized = [op.constant(np.float32(bound)) for bound in (0, 2.55, 0, 2.55)]
    given = op.fake_quantize(image, *quantized, 256) if precision == "int8" else image
    return openvino.Model([op.convolution(given, floats, [1, 1], [0, 0], [0, 0], [1, 1])], [image])


@cache
def bandwidth(size: int) -> float:
    """GB/s of adding two arrays into a third, `size` bytes together."""
    a, b, c = (torch.ones(size // 12) for _ in range(3))
    return size / min(milliseconds(lambda: torch.add(a, b, out=c)) for _ in range(10 * RUNS)) / 1e6
