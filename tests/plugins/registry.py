"""Loads the plugin library into a TensorRT registry and prints what it finds there, as JSON.

    python -m tests.plugins.registry tensorrt_lean libglmd_plugins.so

In a process of its own: a fault in a plugin library aborts the process.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import numpy as np

FIELDS: dict[str, dict[str, float]] = {
    "GlmdRoiAlign": {"bins": 7, "stride": 16, "sampling_ratio": 0},
    "GlmdSelectProposals": {"pre_nms_topk": 3000, "proposals": 300, "iou": 0.7},
}


def fields(trt: Any, values: dict[str, float]) -> Any:
    """A PluginFieldCollection: int32 for an int, float32 for a float."""
    kinds = {int: (np.int32, trt.PluginFieldType.INT32), float: (np.float32, trt.PluginFieldType.FLOAT32)}
    arrays = [(name, np.array([value], kinds[type(value)][0]), kinds[type(value)][1]) for name, value in values.items()]
    return trt.PluginFieldCollection([trt.PluginField(*each) for each in arrays])


def seen(trt: Any, registry: Any, name: str) -> dict[str, object]:
    creator = registry.get_creator(name, "1", "")
    values = FIELDS[name]
    plugin = creator.create_plugin("layer", fields(trt, values), trt.TensorRTPhase.RUNTIME)
    kinds = (trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD, trt.PluginCapabilityType.RUNTIME)
    without_one = fields(trt, dict(list(values.items())[1:]))
    return {
        "fields": [field.name for field in creator.field_names],
        "capabilities": sum(plugin.get_capability_interface(kind) is not None for kind in kinds),
        "refuses a missing field": creator.create_plugin("layer", without_one, trt.TensorRTPhase.RUNTIME) is None,
    }


def main(module: str, library: str) -> None:
    trt = importlib.import_module(module)
    registry = trt.get_plugin_registry()
    registry.load_library(library)
    found = {name: seen(trt, registry, name) for name in FIELDS}
    print(json.dumps({"version": trt.__version__, **found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
