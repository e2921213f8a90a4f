"""glmd-verify: a bundle's engines against the reference in it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from glmd_runtime.backends import BACKENDS, INSTALL
from glmd_runtime.bundle import open_bundle
from glmd_runtime.commands.command import loading
from glmd_runtime.engines import open_engine
from glmd_runtime.errors import ParityError, UnsupportedError
from glmd_runtime.verify import VerifyReport, VerifyRow, verify_bundle
from glmd_runtime.verify_calibration import verify_calibration


def verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "glmd-verify",
        description="Check a bundle's engines against its own reference.",
        epilog="example: glmd-verify models/thermal_lite0.glmd",
    )
    parser.add_argument("bundle", type=Path, help="a bundle name.glmd")
    parser.add_argument("--backend", choices=BACKENDS, help="only this one (default: all that are installed)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def run(args: argparse.Namespace) -> None:
    """Raises: ParityError for wrong answers; UnsupportedError when no engine can run here."""
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
