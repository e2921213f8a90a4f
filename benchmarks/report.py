"""The committed results as tables and plots in docs/benchmarks.md; nothing is run, so they are the same everywhere.

    python -m benchmarks.report

The picture of the README, which another machine computes a little otherwise, has benchmarks/picture.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.aims import load_results
from benchmarks.common import write_tables
from benchmarks.plots import PLOTS
from benchmarks.tables import TABLES, section

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT, IMAGES = DOCS / "benchmarks.md", DOCS / "images"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    results = load_results()
    write_tables(DOCUMENT, {name: section(name, results) for name in TABLES})
    for plot in PLOTS:
        if results[plot.__name__]:
            plot(results, IMAGES / f"{plot.__name__}.svg")
    print(DOCUMENT.read_text().split("<!-- aims -->")[1].split("<!-- /aims -->")[0])


if __name__ == "__main__":
    main()
