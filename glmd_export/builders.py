"""Engines that are built ahead of time, on any machine: OpenVINO IR, and TensorRT-RTX plans for GeForce and RTX cards.

TensorRT engines fit only the GPU they were built on: those are built there, by `glmd_runtime.engines`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from glmd_export.lint import lint
from glmd_runtime import backends
from glmd_runtime.engines import build_plan
from glmd_runtime.errors import BundleError, UnsupportedError
from glmd_runtime.plans.plan import record_path

if TYPE_CHECKING:
    from openvino import Model

_LINES = 5  # broken rules that one message names


def build_openvino(onnx: Path, out: Path) -> tuple[Path, Path]:
    """Write a standard graph as OpenVINO IR, weights in float32. The same graph gives the same bytes.

    Args: out, a path ending in .xml.
    Returns: the .xml and the .bin beside it.
    Raises: UnsupportedError when OpenVINO is not installed, BundleError when it cannot read the file.
    """
    backends.require("openvino")
    import openvino

    try:
        model = openvino.Core().read_model(onnx)
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot read {onnx}: {error}. Export the checkpoint again.") from error
    return save_openvino(model, out)


def save_openvino(model: Model, out: Path) -> tuple[Path, Path]:
    """Write an OpenVINO model in the types that it has; the same bytes for the same model."""
    from openvino import save_model

    number_nodes(model)
    # By default it would store half weights, whose answers are not those that were compared in float32.
    save_model(model, out, compress_to_fp16=False)
    return out, out.with_suffix(".bin")


def number_nodes(model: Model) -> None:
    """Name the nodes without a name by their place; OpenVINO numbers them through the whole process."""
    for index, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


def build_rtx(
    onnx: Path, out: Path, precision: str, *, step: Callable[[str], None] = lambda _: None
) -> tuple[Path, Path]:
    """Build a TensorRT-RTX engine of a plain graph, without a GPU; never loaded here.

    Args: precision, "fp32", "fp16" or "int8", what the graph's own casts or Q/DQ nodes say; step, told what begins.
    Returns: the plan and its record.
    Raises: UnsupportedError when TensorRT-RTX is not installed or the graph breaks its rules, PrecisionError when the
        engine does not compute in that precision, BundleError when the file is no model.
    """
    broken = [f"{one.node}: {one.message}" for one in lint(onnx, "tensorrt_rtx") if one.severity == "error"]
    if broken:
        more = f" And {len(broken) - _LINES} more." if len(broken) > _LINES else ""
        raise UnsupportedError(f"TensorRT-RTX does not build {onnx.name}. {' '.join(broken[:_LINES])}{more}")
    build_plan(onnx, out, library="tensorrt_rtx", precision=precision, progress=step)
    return out, record_path(out)
