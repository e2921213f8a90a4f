"""glmd-verify: a bundle's engines against the reference in it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from glmd_runtime.backends import BACKENDS
from glmd_runtime.bundle import open_bundle
from glmd_runtime.commands.command import loading
from glmd_runtime.commands.parser import Parser
from glmd_runtime.engines import open_engine
from glmd_runtime.errors import ParityError, UnsupportedError
from glmd_runtime.install import install_command
from glmd_runtime.verify import verify_bundle
from glmd_runtime.verify_calibration import verify_calibration
from glmd_runtime.verify_report import VerifyReport, VerifyRow


def verify_parser() -> Parser:
    parser = Parser(
        "glmd-verify",
        description="Check a bundle's engines against its own reference.",
        example="glmd-verify models/thermal_lite0.glmd",
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
    print(json.dumps(report.to_dict(), indent=2) if args.json else "\n".join([*_lines(report.rows), report.summary]))
    failed = [f"{row.engine} on {row.backend}, {row.stage}" for row in report.rows if row.status == "failed"]
    if failed:
        raise ParityError(f"{args.bundle} does not give its reference's answers: {'; '.join(failed)}.")
    if report.status == "failed":
        reasons = sorted({f"{row.engine} on {row.backend}, {row.reason}" for row in report.rows if row.reason})
        raise UnsupportedError(
            f"To be verified, an engine of {args.bundle} must run here; none did: "
            f"{'; '.join(reasons) or 'no backend reads them'}. Name another backend, or run: {install_command('cpu')}"
        )


def _lines(rows: Sequence[VerifyRow]) -> list[str]:
    heads = [(row.status.replace("_", " "), row.engine, row.backend, row.precision, row.stage) for row in rows]
    widths = [max(map(len, column)) for column in zip(*heads, strict=True)]
    padded = ["  ".join(map(str.ljust, head, widths)) for head in heads]
    return [f"{head}  {row.reason or _numbers(row)}" for head, row in zip(padded, rows, strict=True)]


def _numbers(row: VerifyRow) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in row.metrics.items())
