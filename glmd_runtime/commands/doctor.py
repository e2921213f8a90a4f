"""glmd-doctor: what this machine can run, and what would mend the rest."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from glmd_runtime.commands.parser import Parser
from glmd_runtime.doctor import diagnose

_LINES = (
    "each line: ok, warn (works, with a drawback), fail (does not work) or - (not here, not needed); what was looked "
    "at; what was found; the command that mends it"
)


def doctor_parser() -> Parser:
    parser = Parser(
        "glmd-doctor",
        description="Say what this machine can run, and which command mends what does not work.",
        epilog=_LINES,
        codes={0: "the default path works", 1: "the bundle fails, as in glmd-run", 5: "the default path does not work"},
        example="glmd-doctor models/thermal_lite0.glmd",
    )
    parser.add_argument("bundle", nargs="?", type=Path, help="the one to try (default: the shipped one, or a tiny one)")
    parser.add_argument("--prune", action="store_true", help="remove cached engines that are of no use any more")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def run(args: argparse.Namespace) -> None:
    """Raises: GlmdError when the default path does not work."""
    removed = _prune() if args.prune else []
    with Console(stderr=True).status("trying what is installed"):
        found = diagnose(args.bundle)
    if args.json:
        print(json.dumps({**found.to_dict(), "pruned": removed}, indent=2))
    else:
        print("\n".join(map(str, found.findings)))
        if args.prune:
            print(f"pruned: {len(removed)} engines, {sum(entry['bytes'] for entry in removed) / 2**20:.1f} MiB")
    if found.error:
        raise found.error


def _prune() -> list[dict[str, Any]]:
    from glmd_runtime.doctor.cache import describe
    from glmd_runtime.plans.cache import prune

    return [describe(entry) for entry in prune()]
