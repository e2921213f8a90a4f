"""RoiAlign in three vocabularies, of the light model's size: ONNX RoiAlign, two matrix products, bilinear sampling.

    python -m benchmarks.roi_align

Medians side by side in one run. Engines that cannot build ONNX RoiAlign need one of the other two; `ops.PlainOps` has
the matrix products.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import conditions, write
from benchmarks.timing import measure
from glmd_export.onnx_export import OPSET
from glmd_export.ops import OPS
from glmd_runtime import backends

C, H, W, STRIDE, BINS, ROIS = 40, 64, 80, 8, 8, 150


class Align(nn.Module):
    def __init__(self, ops: str) -> None:
        super().__init__()
        self.ops = OPS[ops]()

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        return self.ops.roi_align(features, boxes, BINS, STRIDE)


class Sample(nn.Module):
    """GridSample at every point of the adaptive grid of a box as long as the map; those a box does not have weigh 0."""

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        cells = boxes / STRIDE - 0.5  # (1, R, 4)
        y, weigh_y = points(cells[0, :, 1], cells[0, :, 3], H)  # (R, bins S) each
        x, weigh_x = points(cells[0, :, 0], cells[0, :, 2], W)
        rows, columns = y.shape[1], x.shape[1]
        across = (2 * x[:, None] / (W - 1) - 1).expand(-1, rows, -1)
        down = (2 * y[:, :, None] / (H - 1) - 1).expand(-1, -1, columns)
        grid = torch.stack([across, down], dim=3).reshape(1, -1, columns, 2)  # (1, R rows, columns, 2)
        found = F.grid_sample(features, grid, align_corners=True)  # (1, C, R rows, columns)
        found = found.reshape(C, ROIS, rows, columns).transpose(0, 1)  # (R, C, rows, columns)
        found = found * weigh_y[:, None, :, None] * weigh_x[:, None, None]
        return found.reshape(ROIS, C, BINS, rows // BINS, BINS, columns // BINS).sum(dim=(3, 5))  # (R, C, bins, bins)


def points(low: Tensor, high: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """One axis: where the samples of each bin are, in cells, and what each weighs."""
    size = (high - low)[:, None, None] / BINS
    number = size.ceil().clamp(min=1)
    sample = torch.arange(-(-length // BINS))
    at = low[:, None, None] + torch.arange(BINS)[:, None] * size + (sample + 0.5) * size / number  # (R, bins, S)
    weight = ((sample < size.ceil()) & (at >= -1) & (at <= length)) / number
    return at.clamp(0, length - 1).flatten(1), weight.flatten(1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=2)
    threads = options.parse_args().threads
    torch.manual_seed(0)
    features = torch.randn(1, C, H, W)
    corner = torch.rand(1, ROIS, 2) * torch.tensor([W * STRIDE * 0.8, H * STRIDE * 0.8])
    boxes = torch.cat([corner, corner + 8 + torch.rand(1, ROIS, 2) * 80], dim=2)
    modules = {"ONNX RoiAlign": Align("standard"), "two matrix products": Align("plain"), "bilinear sampling": Sample()}
    expected = modules["ONNX RoiAlign"](features, boxes)
    calls = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, module in modules.items():
            torch.testing.assert_close(module(features, boxes), expected, atol=1e-4, rtol=1e-4)
            model = Path(scratch) / f"{name}.onnx"
            torch.onnx.export(
                module.eval(), (features, boxes), model, input_names=["features", "boxes"], opset_version=OPSET,
                dynamo=True, custom_translation_table=dict(OPS["standard"]().translations), verbose=False,
            )
            for library in ("onnxruntime", "openvino"):
                backend = backends.load(library, model, threads)
                inputs = {"features": features.numpy(), "boxes": boxes.numpy()}
                calls[f"{name}, {library}"] = lambda backend=backend, inputs=inputs: backend.run(inputs)
        rows = measure(calls, rounds=15)
    for name, row in rows.items():
        print(name, row)
    size = {"proposals": ROIS, "features": [C, H, W], "bins": BINS}
    setup = {"precision": "fp32", "batch": 1, "threads": threads, **size}
    print(write("roi_align", {**conditions("python -m benchmarks.roi_align"), **setup, "rows": rows}))


if __name__ == "__main__":
    main()
