"""glmd-doctor: what this machine can run, and what would mend the rest."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from glmd_runtime.commands.parser import Parser
from glmd_runtime.doctor import diagnose
from glmd_runtime.errors import GlmdError

_LINES = (
    "each line: ok, warn (works, with a drawback), fail (does not work) or - (not here, not needed); what was looked "
    "at; what was found; the command that mends it"
)


def doctor_parser() -> Parser:
    parser = Parser(
        "glmd-doctor",
        description="Say what this machine can run, and which command mends what does not work.",
        epilog=_LINES,
        codes={0: "the default path works", 1: "it does not, or the bundle is none"},
        example="glmd-doctor models/thermal_lite0.glmd",
    )
    parser.add_argument("bundle", nargs="?", type=Path, help="the one to try (default: the shipped one, or a tiny one)")
    parser.add_argument("--prune", action="store_true", help="remove cached engines that are of no use any more")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def run(args: argparse.Namespace) -> None:
    """Raises: BundleError before anything is tried; GlmdError when the default path does not work."""
    if args.bundle:
        _check(args.bundle)
    removed = _prune() if args.prune else []
    with Console(stderr=True).status("trying what is installed"):
        found = diagnose(args.bundle)
    if args.json:
        print(json.dumps({**found.to_dict(), "pruned": removed}, indent=2))
    else:
        print("\n".join(map(str, found.findings)))
        if args.prune:
            print(f"pruned: {len(removed)} engines, {sum(entry['bytes'] for entry in removed) / 2**20:.1f} MiB")
    if found.error:  # the reason has its line there
        raise GlmdError("The default path does not work.")


def _check(bundle: Path) -> None:
    with suppress(ImportError):  # of numpy or OpenCV, of which the diagnosis has more to say
        from glmd_runtime.bundle import open_bundle

        open_bundle(bundle)


def _prune() -> list[dict[str, Any]]:
    from glmd_runtime.doctor.cache import describe
    from glmd_runtime.plans.cache import prune

    return [describe(entry) for entry in prune()]
