"""glmd-tune: the best setting of a bundle for this machine, by AP within a budget of time, as a new bundle."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING

from glmd_export import usage
from glmd_export.cli import canvas_size, progress
from glmd_runtime import backends
from glmd_runtime.bundle import Bundle, check_target, open_bundle
from glmd_runtime.commands.command import run_command
from glmd_runtime.commands.parser import Parser
from glmd_runtime.errors import CheckpointError, UsageError
from glmd_runtime.tuned import cores

if TYPE_CHECKING:
    from glmd_export.tune import Tuning
    from glmd_export.tuning.sweep import Request

PROPOSALS = (50, 100, 150, 200)
SHRINK = (0.75, 0.5)  # of the bundle's canvas, in steps of ...
STEP = 32  # ... pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (glmd_runtime.errors has the table)."""
    return run_command(parser(), run, arguments, extra="export", stopped="nothing was written")


def parser() -> Parser:
    top = Parser(
        prog="glmd-tune",
        description="Find the most accurate setting of a bundle that is fast enough on this machine, and write it as a "
                    "new bundle, verified like an export.",
        codes={
            0: "done; no other leaves a bundle", 1: "failed, or nothing is within the budget",
            3: "nothing within the budget gives the right answers",
        },
        example="glmd-tune models/thermal_lite0.glmd --data val.json --budget-ms 40 -o fast.glmd",
    )
    add = top.add_argument
    add("bundle", type=Path, metavar="X.glmd", help="stays as it is")
    add("--data", type=Path, nargs="+", required=True, metavar="JSON",
        help="COCO annotation files, for AP (the mean over the files) and as frames to measure on")
    add("--budget-ms", type=float, required=True, metavar="MS",
        help="milliseconds that a frame may take, from frame to boxes (median)")
    add("-o", "--output", type=Path, required=True, metavar="Y.glmd", help="the new bundle")
    add("--overwrite", action="store_true", help="replace the bundle at the output path")
    _add_grid(top.add_argument_group("what is tried"))
    _add_checkpoint(top.add_argument_group("checkpoint"))
    add = top.add_argument_group("report").add_argument
    add("--json", action="store_true", help="print the report as JSON")
    add("--plot", type=Path, metavar="OUT.svg", help="AP against latency as a picture, .svg or .png")
    return top


def _add_grid(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--proposals", type=int, nargs="+", metavar="N",
        help=f"proposals an image, 1 to 1000 (default: {' '.join(map(str, PROPOSALS))}, and the bundle's)")
    add("--sizes", type=canvas_size, nargs="+", metavar="HxW",
        help="canvases, height x width in pixels (default: the bundle's, three quarters and half of it)")
    add("--threads", type=int, nargs="+", metavar="N",
        help="CPU threads (default: 1, 2, 4, ... up to the cores of this machine)")
    add("--backends", nargs="+", choices=backends.BACKENDS, metavar="NAME",
        help=f"of {', '.join(backends.BACKENDS)} (default: all that can run here)")
    add("--calib", type=Path, metavar="DIR",
        help="pictures like those of the camera, 100 or more, no labels needed: try INT8 where FP32 is too slow")


def _add_checkpoint(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--ckpt", "--checkpoint", type=Path, metavar="FILE",
        help="what the bundle was exported from; other proposals, sizes and INT8 need it (default: beside the bundle)")
    add("--config", type=Path, metavar="YAML", help="as it was given to glmd-export with a .pth file")
    add("--classes", type=Path, metavar="FILE", help="as it was given to glmd-export with a .pth file")


def run(options: argparse.Namespace) -> None:
    """Raises: GlmdError, with the exit code in its class."""
    from glmd_train.given import check_checkpoint

    _check_usage(options)
    bundle = open_bundle(options.bundle)
    ckpt, why_not = find_checkpoint(bundle, options.ckpt)
    if why_not:
        _check_own_engines(options, why_not)
        print(f"Only the bundle's own engines are tried: {why_not}", file=sys.stderr)
    if ckpt:
        check_checkpoint(ckpt, options.config, options.classes)
    with progress() as step:
        step("loading the libraries")
        from glmd_export.tune import tune
        from glmd_train.checkpoint import load_checkpoint

        weights = (load_checkpoint(ckpt, config=options.config, classes=options.classes), ckpt) if ckpt else None
        request = _request(options, bundle)
        done = tune(bundle, weights, options.output, request, overwrite=options.overwrite, step=step)
    _write_report(options, done)
    print(f"Written: {options.output}", file=sys.stderr)


def find_checkpoint(bundle: Bundle, given: Path | None) -> tuple[Path | None, str]:
    """(file, "") of the checkpoint that a bundle was exported from, or (None, the reason why none is to be had).

    Args: given, a file; None looks beside the bundle.
    Raises: CheckpointError for a given file that is missing or another one.
    """
    if bundle.manifest.enrolled:
        return None, "classes were enrolled into it, which belong to its own graph. Tune a bundle before its enrolment."
    told = bundle.manifest.provenance.get("checkpoint")
    if not (isinstance(told, dict) and {"file", "sha256"} <= set(told)):
        return None, f"{bundle.path} does not say which checkpoint it was exported from. Export it again."
    path = given or bundle.path.absolute().parent / Path(str(told["file"])).name
    if not path.is_file():
        why = f"{path}, its checkpoint, does not exist."
    elif (came := hashlib.sha256(path.read_bytes()).hexdigest()) != told["sha256"]:
        why = f"{path} is not what it was exported from: expected SHA-256 {str(told['sha256'])[:12]}, got {came[:12]}."
    else:
        return path, ""
    if given:
        raise CheckpointError(f"{why} Give the file that {bundle.path.name} was exported from, or export this one.")
    return None, f"{why} Name it with --ckpt FILE."


def _check_own_engines(options: argparse.Namespace, why_not: str) -> None:
    """Without a checkpoint nothing can be exported that was asked for by name."""
    asked = [f"--{name}" for name in ("ckpt", "proposals", "sizes", "calib") if getattr(options, name)]
    if asked:
        raise UsageError(f"{' and '.join(asked)} would export {options.bundle} anew, but {why_not}")


def _check_usage(options: argparse.Namespace) -> None:
    """What can be said before anything is loaded."""
    if not 0 < options.budget_ms < inf:
        raise UsageError(f"--budget-ms is a number of milliseconds a frame, more than 0; got {options.budget_ms:g}.")
    for name, least, most in (("proposals", 1, 1000), ("threads", 1, 1024)):
        if wrong := [n for n in getattr(options, name) or () if not least <= n <= most]:
            raise UsageError(f"--{name} must be {least} to {most}; got {wrong[0]}.")
    usage.check_pictures(options.calib)
    for name in options.backends or ():
        backends.require(name)
    _check_outputs(options)
    usage.check_data(options.data)


def _check_outputs(options: argparse.Namespace) -> None:
    output, plot = options.output, options.plot
    usage.check_name(output)
    for path in filter(None, (output, plot)):
        if path.resolve().is_relative_to(options.bundle.resolve()):
            raise UsageError(f"{options.bundle} is sealed and stays as it is; {path} is in it. Choose another path.")
    if plot and plot.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot must end in .svg or .png; got {plot}.")
    usage.check_reports(plot)
    check_target(output, overwrite=options.overwrite)


def _request(options: argparse.Namespace, bundle: Bundle) -> Request:
    from glmd_export.tuning.sweep import Request

    manifest = bundle.manifest
    own = manifest.preprocess.size_hw
    sizes = options.sizes or [own, *(_shrunk(own, factor) for factor in SHRINK)]
    proposals = options.proposals or [*PROPOSALS, manifest.graph.proposals]
    threads = options.threads or [n for n in (2**i for i in range(10)) if n <= cores()]
    return Request(
        options.budget_ms, tuple(options.data), tuple(sorted(set(proposals))), tuple(sorted(set(sizes))),
        tuple(sorted(set(threads))), tuple(options.backends or backends.available()), options.calib,
    )


def _shrunk(hw: tuple[int, int], factor: float) -> tuple[int, int]:
    h, w = (STEP * ceil(side * factor / STEP) for side in hw)
    return h, w


def _write_report(options: argparse.Namespace, done: Tuning) -> None:
    from glmd_export.tuning.report import plot_front, print_tuning, to_dict

    if options.json:
        print(json.dumps(to_dict(done), indent=2))
    else:
        print_tuning(done, f"{options.bundle.name} within {options.budget_ms:g} ms a frame")
    if options.plot:
        plot_front(options.plot, done)


if __name__ == "__main__":
    sys.exit(main())
