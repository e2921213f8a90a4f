"""glmd-export: a checkpoint becomes a sealed bundle whose every engine was compared with PyTorch."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmd_runtime.errors import GlmdError, ParityError, UnsupportedError, UsageError
from glmd_train.cli import missing_library

if TYPE_CHECKING:
    from glmd_runtime.verify import VerifyReport

MODEL = "model.onnx"
_STEPS = 21  # of the progress bar: four, then one a row of the report
_PIPE_WIDTH = 160  # characters of a table that no terminal limits


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (glmd_runtime.errors has the table)."""
    options = parser().parse_args(arguments)
    try:
        run(options)
    except (GlmdError, OSError) as error:
        print(f"glmd-export: error: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "exit_code", GlmdError.exit_code)
    except ModuleNotFoundError as error:
        return missing_library("glmd-export", error, "export")
    except KeyboardInterrupt:
        print("glmd-export: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="glmd-export",
        description="Export a checkpoint to a bundle, and prove that the bundle gives the checkpoint's answers.",
        epilog="exit codes: 0 done, 1 failed, 2 usage, 3 the answers differ (no bundle is left), 5 unsupported here",
    )
    add = top.add_argument
    add("--ckpt", type=Path, required=True, metavar="FILE", help="checkpoint of glmd-train (.safetensors)")
    add("-o", "--output", type=Path, metavar="NAME.glmd", help="default: the checkpoint's stem, in the current folder")
    add("--batch", type=int, default=1, metavar="N", help="images a call, 1 to 8 (default: 1); a short batch is padded")
    add("--overwrite", action="store_true", help="replace the bundle at the output path")
    add("--json", action="store_true", help="print the report as JSON")
    return top


def run(options: argparse.Namespace) -> None:
    """Raises: GlmdError, with the exit code in its class."""
    output = options.output or Path(options.ckpt.stem + ".glmd")
    _check_usage(options, output)
    with _progress() as step:
        report = export_bundle(options.ckpt, output, batch=options.batch, overwrite=options.overwrite, step=step)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print_report(report, title=f"{options.ckpt.name} in PyTorch against {output.name}")
    failed = [f"{row.stage} on {row.backend} ({row.reason})" for row in report.rows if row.status == "failed"]
    if failed:
        raise ParityError(f"{output} was not written, its answers are not the checkpoint's: {'; '.join(failed)}")
    print(f"Written: {output}", file=sys.stderr)


def export_bundle(
    ckpt: Path, output: Path, *, batch: int = 1, overwrite: bool = False, step: Callable[[str], None] = lambda _: None
) -> VerifyReport:
    """Export, compare, and write the bundle only if the comparison passed.

    Args: batch, images a call; step, told what begins.
    Raises: CheckpointError, BundleError, UnsupportedError.
    """
    step("load the libraries")
    from glmd_export.onnx_export import export_onnx, graph_spec
    from glmd_export.parity import compare_rows, make_reference, reference_frames
    from glmd_runtime import backends
    from glmd_runtime.bundle import REFERENCE, VERIFY, Manifest, write_bundle
    from glmd_runtime.verify import VerifyReport
    from glmd_train.checkpoint import load_checkpoint

    if not backends.available():
        raise UnsupportedError(f"Comparing the export with PyTorch needs an inference library. Run: {backends.INSTALL}")
    step("read the checkpoint")
    checkpoint = load_checkpoint(ckpt)
    with tempfile.TemporaryDirectory(prefix="glmd-export.") as scratch:
        step("export to ONNX")
        model = export_onnx(checkpoint, Path(scratch) / MODEL, batch=batch)
        manifest = Manifest(
            name=output.stem,
            class_names=checkpoint.class_names,
            preprocess=checkpoint.preprocess,
            postprocess=checkpoint.postprocess,
            graph=graph_spec(checkpoint, batch),
            engines={MODEL: "fp32"},
            provenance=_provenance(ckpt, checkpoint.provenance),
        )
        step("run PyTorch on the reference frames")
        reference = make_reference(checkpoint, reference_frames())
        files: dict[str, bytes | Path] = {MODEL: model, REFERENCE: reference.to_bytes()}
        unsealed = write_bundle(Path(scratch) / output.name, manifest, files)
        rows = []
        for row in compare_rows(unsealed, checkpoint, reference.frames):
            step(f"compared {row.stage} on {row.backend}")
            rows.append(row)
        report = VerifyReport(tuple(rows))
        if report.status == "passed":
            files[VERIFY] = json.dumps(report.to_dict(), indent=2).encode()
            write_bundle(output, manifest, files, overwrite=overwrite)
    return report


def print_report(report: VerifyReport, title: str) -> None:
    """A table on stdout, one line a stage."""
    from rich.console import Console
    from rich.table import Table

    table = Table("backend", "stage", "result", "numbers", title=title)
    for row in report.rows:
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in row.metrics.items())
        table.add_row(row.backend, row.stage, row.status, row.reason or numbers)
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def _check_usage(options: argparse.Namespace, output: Path) -> None:
    from glmd_runtime.bundle import check_target

    if not 1 <= options.batch <= 8:
        raise UsageError(f"--batch must be 1 to 8; got {options.batch}.")
    if output.suffix != ".glmd":
        raise UsageError(f"A bundle's name ends in .glmd; got {output}. Use -o {output.with_suffix('.glmd')}.")
    check_target(output, overwrite=options.overwrite)


def _provenance(ckpt: Path, training: dict[str, Any]) -> dict[str, Any]:
    source = {"file": ckpt.name, "sha256": hashlib.sha256(ckpt.read_bytes()).hexdigest()}
    versions = {name: version(name) for name in ("torch", "torchvision", "onnx", "onnxscript")}
    return {"checkpoint": source, "training": training, "versions": versions}


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A bar on stderr; call what it yields with a description at every step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=_STEPS)
        yield lambda text: progress.update(task, advance=1, description=text)


if __name__ == "__main__":
    sys.exit(main())
