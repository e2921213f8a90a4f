"""glmd-export: a checkpoint becomes a sealed bundle whose every engine was compared with PyTorch."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from glmd_export import usage
from glmd_runtime.commands.command import run_command
from glmd_runtime.commands.parser import Parser
from glmd_runtime.errors import ParityError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from glmd_export.exporter import Recipe
    from glmd_runtime.verify_report import VerifyReport
    from glmd_train.checkpoint import Checkpoint

ENGINES = ("onnxruntime", "openvino", "tensorrt_rtx", "tensorrt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (glmd_runtime.errors has the table)."""
    return run_command(parser(), run, arguments, extra="export", stopped="nothing was written")


def parser() -> Parser:
    top = Parser(
        prog="glmd-export",
        description="Export a checkpoint to a bundle, and prove that the bundle gives the checkpoint's answers.",
        codes={3: "the answers differ from the checkpoint's, or INT8 costs too much; no bundle is left"},
        example="glmd-export --ckpt models/thermal_lite0.safetensors --fp16",
    )
    _add_model(top.add_argument_group("model"))
    _add_engines(top.add_argument_group("what the bundle holds beside model.onnx"))
    _add_report(top.add_argument_group("report"))
    return top


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--ckpt", "--checkpoint", type=Path, required=True, metavar="FILE",
        help="checkpoint of glmd-train (.safetensors, .pth), or of GLMDNet, DeFRCN, detectron2's C4 (.pth, .pkl)")
    add("--config", type=Path, metavar="YAML", help="training configuration of a .pth file, ours or a published one")
    add("--classes", type=Path, metavar="FILE", help="class names of a .pth file, one a line")
    add("-o", "--output", type=Path, metavar="NAME.glmd", help="default: the checkpoint's stem, in the current folder")
    add("--overwrite", action="store_true", help="replace the bundle at the output path")
    add("--size", type=canvas_size, metavar="HxW",
        help="canvas that frames are letterboxed to, height x width in pixels, for example 512x640 (default: the "
             "checkpoint's; a published checkpoint has none)")
    add("--proposals", type=int, metavar="N", help="proposals an image, 1 to 1000 (default: the checkpoint's)")
    add("--batch", type=int, default=1, metavar="N", help="images a call, 1 to 8 (default: 1); a short batch is padded")


def canvas_size(text: str) -> tuple[int, int]:
    """"512x640" -> (512, 640), height and width."""
    found = re.fullmatch(r"(\d{2,4})[xX](\d{2,4})", text)
    hw = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(32 <= side <= 4096 for side in hw):
        raise argparse.ArgumentTypeError(f"expected HxW, 32 to 4096 pixels each, like 512x640; got {text!r}")
    return hw


def _add_engines(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--fp16", action="store_true", help="half precision: the graphs that TensorRT builds from, and its engines")
    add("--int8", action="store_true", help="8-bit integers, calibrated on the pictures of --calib")
    add("--calib", type=Path, metavar="DIR", help="pictures like those of the camera, 100 or more, no labels needed")
    add("--end2end", action="store_true", help="graphs that end with the final NMS, for servers")
    add("--pcb", action="store_true", help="calibrate scores on the device with the checkpoint's prototypes")
    add("--enroll", action="store_true", help="let Detector.enroll teach classes on the device, from a few boxes")
    add("--engines", nargs="+", choices=ENGINES, metavar="NAME",
        help=f"build for these or fail: {', '.join(ENGINES)} (default: all that are possible here); onnxruntime "
             "alone: model.onnx, which every backend reads, and the smallest bundle")
    add("--data", type=Path, nargs="+", default=[], metavar="JSON",
        help="COCO annotation files: AP of every engine that can run here against PyTorch's")
    add("--max-drop", type=float, default=1.0, metavar="POINTS", help="AP that INT8 may cost, 0..100 (default: 1)")


def _add_report(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--json", action="store_true", help="print the report as JSON")
    add("--junit", type=Path, metavar="OUT.xml", help="write the report for a CI server")
    add("--plot", type=Path, metavar="OUT.png", help="plot the scores of every engine against PyTorch's")


def run(options: argparse.Namespace) -> None:
    """Raises: GlmdError, with the exit code in its class."""
    output = options.output or Path((options.ckpt.stem or "model") + ".glmd")
    _check_usage(options, output)
    with progress() as step:
        step("loading the libraries")
        from glmd_export.exporter import export_bundle
        from glmd_train.checkpoint import load_checkpoint

        loaded = load_checkpoint(options.ckpt, config=options.config, classes=options.classes)
        checkpoint = _adapted(loaded, options)
        result = export_bundle(
            checkpoint, options.ckpt, output, _recipe(options),
            overwrite=options.overwrite, plot=options.plot, step=step,
        )
    _write_report(options, result, output)
    if failed := [f"{r.stage} of {r.engine} on {r.backend} ({r.reason})" for r in result.rows if r.status == "failed"]:
        raise ParityError(f"{output} was not written, its answers are not the checkpoint's: {'; '.join(failed)}")
    if result.status != "passed":
        raise UnsupportedError(f"{output} was not written: no engine ran here, so that nothing was proved.")
    if checkpoint.pcb and not options.pcb:
        print("The checkpoint's prototypes were left out; --pcb takes them along.", file=sys.stderr)
    print(f"Written: {output}", file=sys.stderr)


def _adapted(checkpoint: Checkpoint, options: argparse.Namespace) -> Checkpoint:
    """The checkpoint on the canvas and with the number of proposals that were asked for."""
    from glmd_train.checkpoint import reshape

    spec = checkpoint.preprocess
    if spec.resize == "published" and not options.size:
        raise UsageError(
            f"{options.ckpt} sees pictures of no fixed size (shorter edge {spec.size_hw[0]}, longest "
            f"{spec.size_hw[1]}); an engine has one canvas. Say which: --size 512x640, height x width."
        )
    return reshape(checkpoint, size_hw=options.size, proposals=options.proposals)


def _recipe(options: argparse.Namespace) -> Recipe:
    from glmd_export.exporter import Recipe

    return Recipe(
        batch=options.batch, fp16=options.fp16, calibration=options.calib, data=tuple(options.data),
        max_drop=options.max_drop, end2end=options.end2end, pcb=options.pcb, enroll=options.enroll,
        engines=tuple(options.engines) if options.engines else None,
    )


def _write_report(options: argparse.Namespace, report: VerifyReport, output: Path) -> None:
    from glmd_export.report import print_report, to_junit
    from glmd_runtime.files.scratch import whole_file

    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print_report(report, title=f"{options.ckpt.name} in PyTorch against {output.name}")
    if options.junit:
        with whole_file(options.junit) as partial:
            partial.write_text(to_junit(report))


def _check_usage(options: argparse.Namespace, output: Path) -> None:
    """What can be said before anything is loaded."""
    from glmd_runtime.bundle import check_target
    from glmd_train.given import check_checkpoint

    if options.proposals is not None and not 1 <= options.proposals <= 1000:
        raise UsageError(f"--proposals must be 1 to 1000; got {options.proposals}.")
    if not 1 <= options.batch <= 8:
        raise UsageError(f"--batch must be 1 to 8; got {options.batch}.")
    usage.check_name(output)
    named = sorted({"tensorrt", "tensorrt_rtx"} & set(options.engines or ()))
    if named and not (options.fp16 or options.int8):
        raise UsageError(f"{' and '.join(named)} run FP16 and INT8; say which: --fp16, or --int8 --calib DIR.")
    usage.check_pictures(options.calib)
    if options.int8 != (options.calib is not None):
        raise UsageError("--int8 and --calib DIR go together: INT8 is calibrated on pictures like the camera's.")
    if not 0 <= options.max_drop <= 100:
        raise UsageError(f"--max-drop is in points of AP, 0..100; got {options.max_drop}.")
    usage.check_reports(options.plot, options.junit)
    check_checkpoint(options.ckpt, options.config, options.classes)
    usage.check_data(options.data)
    check_target(output, overwrite=options.overwrite)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A bar on stderr; call what it yields with a description at every step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)  # how many there will be is known only at the end
        yield lambda text: bar.update(task, advance=1, description=text)


if __name__ == "__main__":
    sys.exit(main())
