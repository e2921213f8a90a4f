"""A verification report for people (a table, a plot) and for CI servers (JUnit)."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.errors import UnsupportedError
from glmd_runtime.files.scratch import whole_file

if TYPE_CHECKING:
    from glmd_runtime.verify_report import VerifyReport, VerifyRow

_PIPE_WIDTH = 160  # characters of a table that no terminal limits
_COLUMNS = 3  # of the plot
_STYLES = {"passed": "green", "failed": "bold red", "not_run": "yellow"}
_NOTHING_RAN = "no engine ran here: nothing was proved"


def print_report(report: VerifyReport, title: str) -> None:
    """A table on stdout, one line a row; rows that did not run for one reason share a line. Then the counts."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # plain text: square brackets in a reason are no markup

    table = Table("engine", "backend", "stage", "result", "numbers", title=Text(title))
    for (engine, backend, status, _), group in groupby(report.rows, _line):
        rows = list(group)
        stages = rows[0].stage if len(rows) == 1 else f"{rows[0].stage} to {rows[-1].stage}"
        cells = (engine, backend, stages, status.replace("_", " "), _numbers(rows[0]))
        table.add_row(*map(Text, cells), style=_STYLES[status])
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table)
    console.print(Text(_summary(report)))


def _line(row: VerifyRow) -> tuple[str, str, str, Any]:
    """What rows that share a line have in common; only those that did not run do."""
    return row.engine, row.backend, row.status, row.reason if row.status == "not_run" else row.stage


def _numbers(row: VerifyRow) -> str:
    """What breaks a bound already says the number; a remark on a passed row stands beside its numbers."""
    if row.status != "passed":
        return row.reason
    return ", ".join([*(f"{name} {value:.3g}" for name, value in row.metrics.items()), *filter(None, [row.reason])])


def _summary(report: VerifyReport) -> str:
    return report.summary + (f"; {_NOTHING_RAN}" if _nothing_ran(report) else "")


def _nothing_ran(report: VerifyReport) -> bool:
    return report.status == "failed" and all(row.status != "failed" for row in report.rows)


def to_junit(report: VerifyReport) -> str:
    """JUnit's XML: one testcase a row, failed and skipped ones with their reason, numbers as its output.

    A report whose every engine did not run has one failed testcase more, so that no CI server shows it green.
    """
    suite = ElementTree.Element("testsuite", name="glmdnet")
    for row in report.rows:
        case = ElementTree.SubElement(suite, "testcase", classname=f"{row.engine}.{row.backend}", name=row.stage)
        if row.status != "passed":
            kind = "failure" if row.status == "failed" else "skipped"
            ElementTree.SubElement(case, kind, message=_printable(row.reason))
        said = [_printable(row.reason), *(f"{name} {value:.6g}" for name, value in row.metrics.items())]
        ElementTree.SubElement(case, "system-out").text = "\n".join(said).strip()
    if _nothing_ran(report):
        case = ElementTree.SubElement(suite, "testcase", classname="bundle", name="an engine ran")
        ElementTree.SubElement(case, "failure", message=_NOTHING_RAN)
    for name, kind in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f".//{kind}"))))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Without the control characters that XML forbids and libraries print (colours)."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def plot_scores(path: Path, pairs: Mapping[str, NDArray[np.floating[Any]]]) -> None:
    """Write a PNG with one panel an engine: its scores against PyTorch's.

    Args: pairs, title of a panel -> (P, 2) scores of PyTorch and of the engine (`verify.score_pairs`).
    Raises: UnsupportedError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UnsupportedError("A plot needs matplotlib. Run: pip install matplotlib") from error
    columns = min(max(len(pairs), 1), _COLUMNS)
    rows = max(1, -(-len(pairs) // columns))
    figure = Figure(figsize=(4.2 * columns, 4.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (title, scores) in zip(panels, pairs.items(), strict=False):
        _plot(panel, title, np.asarray(scores, np.float64).reshape(-1, 2))
    for panel in panels[len(pairs) :]:
        panel.axis("off")
    if not pairs:
        panels[0].text(0.5, 0.5, _NOTHING_RAN, ha="center")
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def _plot(panel: Any, title: str, scores: NDArray[np.float64]) -> None:
    panel.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=1)
    panel.scatter(scores[:, 0], scores[:, 1], s=9, alpha=0.4, linewidths=0, zorder=2)
    worst = np.abs(scores[:, 1] - scores[:, 0]).max(initial=0.0)
    panel.set_title(title, fontsize=9)
    panel.text(0.03, 0.96, f"{len(scores)} scores\nfurthest apart {worst:.2g}", va="top", fontsize=8)
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel="score in PyTorch", ylabel="in the engine")
