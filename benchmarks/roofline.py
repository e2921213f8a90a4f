"""Where the time of the network goes, stage by stage, against what the machine's arithmetic and memory allow.

    python -m benchmarks.roofline --bundle models/thermal_lite0.glmd

Counted from the graph, timed by OpenVINO node by node; the peak is the same library's, measured beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import openvino

from benchmarks.common import write_rows
from benchmarks.latency import example_frame
from benchmarks.operations import BYTES, ROI_ALIGN, STAGE_NAMES, Operation, operations
from benchmarks.peaks import Peaks, compile_profiled, measured_peaks
from benchmarks.timing import pin
from glmd_runtime import backends, open_bundle, preprocess
from glmd_runtime.backends import Tensors
from glmd_runtime.bundle import Bundle

RUNS = 20
OTHER = "layout"  # nodes that the library put in by itself
WHOLE, DENSE = "all stages", "dense parts"


class Executed(NamedTuple):
    """One call of a kernel: the graph's nodes that it computes, in which precision, and how long it took."""

    parts: tuple[Operation, ...]
    precision: str
    ms: float

    @property
    def stage(self) -> str:
        """That of its product, if it has one: what is fused into a convolution belongs to it."""
        ranked = sorted(self.parts, key=lambda one: one.macs, reverse=True)
        return next((one.stage for one in ranked if one.stage), OTHER)

    @property
    def macs(self) -> int:
        return sum(one.macs for one in self.parts)

    @property
    def moved(self) -> int:
        return BYTES[self.precision] * sum(one.elements for one in self.parts)

    @property
    def dense(self) -> bool:
        return self.macs > 0 and all(one.dense for one in self.parts if one.macs)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, default=Path("models/thermal_lite0.glmd"))
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    pin(given.threads)
    bundle = open_bundle(given.bundle)
    inputs = network_inputs(bundle)
    peaks = measured_peaks(given.threads)
    rows: list[dict[str, Any]] = [peak_row(peaks)]
    for engine, precision in engines(bundle):
        executed = profile(bundle.path / engine, precision, given.threads, inputs)
        rows += [{"engine": engine, "precision": precision, **row} for row in stage_rows(executed, peaks)]
    for row in rows:
        print(row)
    command = f"python -m benchmarks.roofline --bundle {given.bundle} --threads {given.threads}"
    setup = {"batch": 1, "threads": given.threads}
    print(write_rows(f"roofline_{bundle.manifest.name}", command, [{**row, **setup} for row in rows]))


def engines(bundle: Bundle) -> list[tuple[str, str]]:
    """One file a precision, that which OpenVINO prefers; and the float32 one again, told to compute in bfloat16."""
    readable = [e for e in bundle.manifest.engines if "openvino" in backends.readers(e)]
    readable.sort(key=lambda engine: -backends.preference("openvino", engine))
    by_precision = {bundle.manifest.engines[engine]: engine for engine in readable}
    return [*((engine, precision) for precision, engine in by_precision.items()), (by_precision["fp32"], "bf16")]


def network_inputs(bundle: Bundle) -> Tensors:
    image, geometry = preprocess(example_frame(bundle.manifest.preprocess), bundle.manifest.preprocess)
    return {"images": image[None], "valid_hw": np.asarray([geometry.valid_hw], np.float32)}


def profile(model: Path, precision: str, threads: int, inputs: Tensors) -> list[Executed]:
    network = openvino.Core().read_model(model)
    known = operations(network)
    compiled = compile_profiled(network, precision, threads)
    request = compiled.create_infer_request()
    request.infer(inputs)
    runs = [_times(request, inputs) for _ in range(RUNS)]
    kernel_of = fused(network, compiled)
    return [
        Executed(
            tuple(one for name, one in known.items() if kernel_of.get(name) == node),
            _precision(kernel),
            median(run[node, kernel] for run in runs if (node, kernel) in run),
        )
        for node, kernel in runs[0]
    ]


def fused(network: openvino.Model, compiled: openvino.CompiledModel) -> dict[str, str]:
    """Name of a node of the graph -> name of the executed one that computes it.

    The library says so itself, but forgets a product whose bias it fused: that belongs to whoever reads it.
    """
    executed = compiled.get_runtime_model().get_ops()
    found = {name: node.get_friendly_name() for node in executed for name in _original(node)}
    for node in reversed(network.get_ordered_ops()):
        readers = (one.get_node().get_friendly_name() for out in node.outputs() for one in out.get_target_inputs())
        kernels = [found[name] for name in readers if name in found]
        if kernels:
            found.setdefault(node.get_friendly_name(), kernels[0])
    return found


def _times(request: openvino.InferRequest, inputs: Tensors) -> dict[tuple[str, str], float]:
    """(node, kernel) -> milliseconds, of those that were run."""
    request.infer(inputs)
    run = [one for one in request.profiling_info if one.real_time]
    return {(one.node_name, one.exec_type): 1000 * one.real_time.total_seconds() for one in run}


def _original(node: openvino.Node) -> list[str]:
    info = node.get_rt_info()
    return info["originalLayersNames"].astype(str).split(",") if "originalLayersNames" in info else []


def _precision(kernel: str) -> str:
    """OpenVINO ends a kernel's name with its type: brgconv_avx512_1x1_I8."""
    return {"bf16": "bf16", "i8": "int8", "u8": "int8"}.get(kernel.rpartition("_")[2].lower(), "fp32")


def peak_row(peaks: Peaks) -> dict[str, Any]:
    rates = {precision: round(rate, 1) for precision, rate in peaks.gflops.items()}
    bandwidths = {"cached_gb_s": round(peaks.cached, 1), "memory_gb_s": round(peaks.large, 1)}
    return {"stage": "peak", "engine": "", "precision": "each", "gflops": rates, **bandwidths}


def stage_rows(executed: Sequence[Executed], peaks: Peaks) -> list[dict[str, Any]]:
    """A row a stage, then the dense products and the whole; without RoiAlign's, which are gathered, not multiplied."""
    groups = {name: [one for one in executed if one.stage == name] for name in (*STAGE_NAMES, ROI_ALIGN, OTHER)}
    rows = {name: row for name, group in groups.items() if (row := stage_row(group, peaks))["ms"]}
    rows[DENSE] = stage_row([one for one in executed if one.dense], peaks)
    rows[WHOLE] = stage_row(executed, peaks)
    return [{"stage": name, **row} for name, row in rows.items()]


def stage_row(executed: Iterable[Executed], peaks: Peaks) -> dict[str, Any]:
    group = list(executed)
    macs, moved, ms = sum(one.macs for one in group), sum(one.moved for one in group), sum(one.ms for one in group)
    least = sum(peaks.milliseconds(one.macs, one.moved, one.precision) for one in group)
    int8 = sum(one.macs for one in group if one.precision == "int8")
    return {
        "gmac": round(macs / 1e9, 3), "mb": round(moved / 1e6, 2), "ms": round(ms, 3),
        "roofline_ms": round(least, 3), "roofline_share": round(least / ms, 3) if ms else None,
        "gflops": round(2 * macs / ms / 1e6, 1) if ms else None, "int8_share": round(int8 / macs, 3) if macs else None,
    }


if __name__ == "__main__":
    main()
