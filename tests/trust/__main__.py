"""Run the trust suite.

    make trust                                         the short forms, minutes; nothing is written
    make trust-long                                    the long forms; a part that is in the results is not run again
    python -m tests.trust --long --parts fuzz faults.kill_export --again
    python -m tests.trust --report                     docs/reliability.md from benchmarks/results/trust.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from benchmarks.common import RESULTS, conditions, write
from tests.trust.parts import Form, Part
from tests.trust.report import write_report

AREAS: tuple[str, ...] = (  # modules of tests.trust, each with its PARTS
    "construction", "fuzz", "faults", "load", "compatibility", "coverage", "mutation", "suite",
)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--long", action="store_true", help="the long forms; results are kept")
    options.add_argument("--parts", nargs="+", default=[], metavar="NAME", help="areas or parts (default: all)")
    options.add_argument("--again", action="store_true", help="run parts too that are in the results")
    options.add_argument("--report", action="store_true", help="run nothing, write docs/reliability.md")
    given = options.parse_args()
    form: Form = "long" if given.long else "short"
    chosen = select(all_parts(), given.parts, form)
    if given.report:
        print(write_report(read_results(), all_parts()))
        return 0
    began = time.monotonic()
    done = read_results() if given.long and not given.again else {}
    failed = [part.name for part in chosen if part.name not in done and not attempt(part, form)]
    if given.long:
        write_report(read_results(), all_parts())
    print(*(f"failed: {name}" for name in failed), sep="\n")
    print(f"trust: {len(chosen) - len(failed)} passed, {len(failed)} failed, in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def all_parts() -> list[Part]:
    from importlib import import_module

    return [part for area in AREAS for part in import_module(f"tests.trust.{area}").PARTS]


def select(parts: Sequence[Part], names: Sequence[str], form: Form) -> list[Part]:
    """The parts of these names or areas that have this form; all of them without names."""
    known = {part.name for part in parts} | {part.area for part in parts}
    if unknown := sorted(set(names) - known):
        sys.exit(f"No part or area {unknown}; there are {sorted(known)}.")
    wanted = [part for part in parts if not names or {part.name, part.area} & set(names)]
    return [part for part in wanted if form in part.forms]


def attempt(part: Part, form: Form) -> bool:
    """Run one part, say what came, keep the figures of a long form; whether it passed."""
    began = time.monotonic()
    try:
        figures = part.run(form)
    except Exception:
        print(f"FAILED {part.name}: {part.promise}\n{traceback.format_exc()}", flush=True)
        return False
    seconds = round(time.monotonic() - began, 1)
    print(f"passed {part.name} ({seconds} s): {json.dumps(figures)}", flush=True)
    if form == "long":
        keep(part, figures, seconds)
    return True


def keep(part: Part, figures: dict[str, Any], seconds: float) -> None:
    said = conditions(f"python -m tests.trust --long --again --parts {part.name}")
    row = {"figures": figures, "seconds": seconds, "date": datetime.date.today().isoformat(), **said}
    write("trust", {**read_results(), part.name: row})


def read_results() -> dict[str, Any]:
    path = RESULTS / "trust.json"
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
