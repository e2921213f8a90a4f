"""What a tuning found: plain values, a table, a picture of AP against latency."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from glmd_export.tune import Tuning, data_names
from glmd_export.tuning.front import Candidate, front
from glmd_runtime.errors import UnsupportedError
from glmd_runtime.files.scratch import whole_file

_PIPE_WIDTH = 160  # characters of a table that no terminal limits
_STYLES = {"chosen": "bold green", "front": "", "": "dim"}


def to_dict(done: Tuning) -> dict[str, Any]:
    """For JSON. Each row says what it is: "chosen", "front" (nothing is both faster and more accurate), or ""."""
    request = done.request
    return {
        "machine": done.machine,
        "budget_ms": request.budget_ms,
        "data": data_names(request),
        "given": {"proposals": done.given[0], "size_hw": list(done.given[1])},
        "rows": [{**c.to_dict(), "is": _is(done, c), "within_budget": _within(done, c)} for c in done.candidates],
        "tried": [{"setting": str(trial.setting), **trial.latency.to_dict()} for trial in done.trials],
        "passed_over": done.passed_over,
        "seconds": round(done.seconds, 1),
    }


def _is(done: Tuning, candidate: Candidate) -> str:
    if candidate == done.chosen:
        return "chosen"
    return "front" if candidate in front(done.candidates) else ""


def _within(done: Tuning, candidate: Candidate) -> bool:
    return candidate.latency.median_ms <= done.request.budget_ms


def print_tuning(done: Tuning, title: str) -> None:
    """A table on stdout, one line a network, the fastest first; then how much was tried, and for how long."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title))
    for name in ("proposals", "size", "precision", "backend", "threads", "ms", "p90", "AP", "AP50"):
        table.add_column(name, justify="left" if name in ("precision", "backend") else "right")
    table.add_column("")
    for one in done.candidates:
        table.add_row(*map(Text, _cells(done, one)), style=_STYLES[_is(done, one)])
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table)
    for line in (*done.passed_over, _summary(done)):
        console.print(Text(line))


def _cells(done: Tuning, one: Candidate) -> list[str]:
    setting, latency = one.setting, one.latency
    remarks = [_is(done, one), "" if _within(done, one) else "over the budget",
               "as it was" if one.setting.shape == done.given else ""]
    return [
        str(setting.proposals), "{}x{}".format(*setting.size_hw), setting.precision, setting.backend,
        str(setting.threads or "-"), f"{latency.median_ms:.1f}", f"{latency.p90_ms:.1f}", f"{100 * one.ap:.2f}",
        f"{100 * one.ap50:.2f}", ", ".join(filter(None, remarks)),
    ]


def _summary(done: Tuning) -> str:
    minutes, seconds = divmod(round(done.seconds), 60)
    return (
        f"{len(done.trials)} settings tried, {len(done.candidates)} networks evaluated on "
        f"{', '.join(data_names(done.request))}, in {minutes} min {seconds} s on {done.machine}"
    )


def plot_front(path: Path, done: Tuning) -> None:
    """Write a picture, PNG or SVG by its ending: AP against median milliseconds, the front, the budget, the choice.

    Raises: UnsupportedError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UnsupportedError("A plot needs matplotlib. Run: pip install matplotlib") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    best = front(done.candidates)
    axes.step(_ms(best), _ap(best), where="post", color="tab:blue", linewidth=1.2, zorder=1, label="front")
    axes.axvspan(done.request.budget_ms, 10 * max(_ms(done.candidates)), color="0.93", zorder=0)
    axes.axvline(done.request.budget_ms, color="0.5", linestyle="--", linewidth=1, label="budget")
    for one in done.candidates:
        _draw(axes, done, one)
    margin = 0.08 * max(_ms(done.candidates))
    axes.set_xlim(min(_ms(done.candidates)) - margin, max(*_ms(done.candidates), done.request.budget_ms) + 3 * margin)
    axes.set_xlabel(f"milliseconds from frame to boxes, median, on {done.machine}")
    axes.set_ylabel(f"AP on {', '.join(data_names(done.request))}")
    axes.legend(loc="lower right")
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=130)


def _draw(axes: Any, done: Tuning, one: Candidate) -> None:
    what, ((x,), (y,)) = _is(done, one), (_ms([one]), _ap([one]))
    colour, chosen = {"chosen": "tab:green", "front": "tab:blue", "": "0.6"}[what], what == "chosen"
    axes.plot(x, y, "*" if chosen else "o", color=colour, markersize=14 if chosen else 5, zorder=2)
    words = ["R {}, {}x{}".format(one.setting.proposals, *one.setting.size_hw)]
    words += [one.setting.precision] if one.setting.precision != "fp32" else []
    words += ["chosen"] if chosen else []
    words += ["as it was"] if one.setting.shape == done.given else []
    white = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}
    axes.annotate(
        ", ".join(words), (x, y), xytext=(7, -9), textcoords="offset points", fontsize=7, color=colour, bbox=white
    )


def _ms(candidates: list[Candidate]) -> list[float]:
    return [one.latency.median_ms for one in candidates]


def _ap(candidates: list[Candidate]) -> list[float]:
    return [100 * one.ap for one in candidates]
