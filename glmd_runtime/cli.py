"""The commands that run on the device: glmd-run, glmd-verify, glmd-doctor."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from glmd_runtime.backends import BACKENDS, INSTALL
from glmd_runtime.bundle import open_bundle
from glmd_runtime.command import loading, run_command
from glmd_runtime.commands.run import run, run_parser
from glmd_runtime.doctor import describe, diagnose, lines
from glmd_runtime.engine_cache import prune
from glmd_runtime.engines import open_engine
from glmd_runtime.errors import ParityError, UnsupportedError
from glmd_runtime.verify import VerifyReport, VerifyRow, verify_bundle
from glmd_runtime.verify_calibration import verify_calibration


def glmd_run_main() -> None:
    """Entry point of glmd-run."""
    sys.exit(run_command(run_parser(), run, stopped="unfinished outputs were discarded, recordings kept"))


def glmd_verify_main() -> None:
    """Entry point of glmd-verify."""
    sys.exit(run_command(_verify_parser(), _verify))


def glmd_doctor_main() -> None:
    """Entry point of glmd-doctor."""
    sys.exit(run_command(_doctor_parser(), _doctor))


def _verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("glmd-verify", description="Check a bundle's engines against its own reference.")
    parser.add_argument("bundle", type=Path, help="a bundle name.glmd")
    parser.add_argument("--backend", choices=BACKENDS, help="only this one (default: all that are installed)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _doctor_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("glmd-doctor", description="Say what this machine can run, and what it cached.")
    parser.add_argument("--prune", action="store_true", help="remove cached engines that are of no use any more")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def _verify(args: argparse.Namespace) -> None:
    with loading():
        bundle = open_bundle(args.bundle)
        rows = verify_bundle(bundle, args.backend, open_engine=open_engine).rows
        report = VerifyReport((*rows, *verify_calibration(bundle, args.backend)))
    print(json.dumps(report.to_dict(), indent=2) if args.json else "\n".join(map(_row_line, report.rows)))
    failed = [f"{row.engine} on {row.backend}, {row.stage}" for row in report.rows if row.status == "failed"]
    if failed:
        raise ParityError(f"{args.bundle} does not give its reference's answers: {'; '.join(failed)}.")
    if report.status == "failed":
        reasons = sorted({f"{row.engine} on {row.backend}, {row.reason}" for row in report.rows if row.reason})
        raise UnsupportedError(
            f"To be verified, an engine of {args.bundle} must run here; none did: "
            f"{'; '.join(reasons) or 'no backend reads them'}. Name another backend, or run: {INSTALL}"
        )


def _row_line(row: VerifyRow) -> str:
    numbers: dict[str, Any] = {name: f"{value:.3g}" for name, value in row.metrics.items()}
    said = row.reason or ", ".join(f"{name} {value}" for name, value in numbers.items())
    return f"{row.status:8} {row.engine:12} {row.backend:12} {row.precision:5} {row.stage:11} {said}"


def _doctor(args: argparse.Namespace) -> None:
    removed = [describe(entry) for entry in prune()] if args.prune else []
    found = diagnose()
    if args.json:
        print(json.dumps({**found, "pruned": removed}, indent=2))
        return
    print("\n".join(lines(found)))
    if args.prune:
        print(f"pruned        {len(removed)} engines, {sum(entry['bytes'] for entry in removed) / 2**20:.1f} MiB")
