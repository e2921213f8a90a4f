"""Scores for people (tables) and programs (plain values): of one model, or of several runs with their interval."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from glmd_train.evaluate import FIELDS, Score
from glmd_train.scores.intervals import Interval, run_interval
from glmd_train.scores.runs import Run

_PIPE_WIDTH = 160  # characters of a table that no terminal limits
_COLUMNS = ("objects", "AP", "AP50", "AP75", "recall at 0.3")
_GROUPS = {"all": "mean", "base": "base (bAP)", "novel": "novel (nAP)"}


def to_dict(runs: Sequence[Run]) -> dict[str, Any]:
    """The runs on one set: those of one model as its scores, with "pcb_off" beside them; of several as a list "runs".

    Several also have "over_runs": PCB state -> group or class -> mean, 95% t interval and number of runs.
    """
    if len({run.model for run in runs}) == 1:
        return {**runs[0].to_dict(), **{f"pcb_{run.pcb}": run.to_dict() for run in runs[1:]}}
    over_runs = {
        pcb or "no_pcb": {
            name: {key: {"mean": round(one.value, 4), "low": round(one.low, 4), "high": round(one.high, 4), "runs": n}
                   for key, (one, n) in row.items()}
            for name, row in _over_runs(members).items()
        }
        for pcb, members in _by_pcb(runs).items()
    }  # fmt: skip
    return {"runs": [run.to_dict() for run in runs], "over_runs": over_runs}


def print_runs(data: str, runs: Sequence[Run]) -> None:
    """What `to_dict` holds as a table on stdout, and what a reader must know of it below."""
    models = {run.model for run in runs}
    _print(_one_model(data, runs) if len(models) == 1 else _several_models(data, runs))
    for line in _remarks(runs):
        print(line)


def print_scores(scores: Mapping[str, Score]) -> None:
    """One table a data set, of scores alone."""
    for name, score in scores.items():
        table = _class_table(name, score)
        table.add_row("mean", "", *(_percent(score.mean(field)) for field in FIELDS))
        _print(table)
        print("\n".join(_left_out([score])))


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def _class_table(title: str, score: Score) -> Table:
    table = Table("class", *_COLUMNS, title=Text(title))
    for name, row in score.classes.items():
        table.add_row(Text(name), str(row.objects), *(_percent(getattr(row, field)) for field in FIELDS))
    table.add_section()
    return table


def _one_model(data: str, runs: Sequence[Run]) -> Table:
    first = runs[0]
    table = _class_table(f"{first.model} on {data}{_pcb(first)}", first.score)
    for run in runs:
        for group in run.intervals:
            names = run.groups[group]
            table.add_row(_GROUPS[group] + _pcb(run), _objects(run, names), *_group_cells(run, group))
    return table


def _several_models(data: str, runs: Sequence[Run]) -> Table:
    table = Table("model", "of", *_COLUMNS, title=Text(data))
    for run in runs:
        for group in run.intervals:
            cells = (Text(run.model), _GROUPS[group] + _pcb(run), _objects(run, run.groups[group]))
            table.add_row(*cells, *_group_cells(run, group))
    for pcb, members in _by_pcb(runs).items():
        table.add_section()
        for name, row in _over_runs(members).items():
            cells = [_bounds(one) for one, _ in row.values()]
            number = next(iter(row.values()))[1]
            label = _GROUPS.get(name, name) + (f", PCB {pcb}" if pcb else "")
            table.add_row(f"mean of {number} runs", Text(label), "", *cells)
    return table


def _group_cells(run: Run, group: str) -> list[str]:
    """AP, AP50 and AP75 with their intervals over the pictures, and the recall."""
    intervals = run.intervals[group]
    recall = run.score.mean("recall", run.groups[group])
    return [*(_bounds(intervals[field]) for field in FIELDS if field in intervals), _percent(recall)]


def _over_runs(runs: Sequence[Run]) -> dict[str, dict[str, tuple[Interval, int]]]:
    """Group or class -> field -> its mean over the runs that have an object of it, two or more, and their number."""
    names = [*runs[0].groups, *dict.fromkeys(name for run in runs for name in run.score.classes)]
    values = {name: [row for run in runs if (row := _values(run, name))] for name in names}
    return {
        name: {field: (run_interval([row[field] for row in rows]), len(rows)) for field in FIELDS}
        for name, rows in values.items() if len(rows) > 1
    }


def _values(run: Run, name: str) -> dict[str, float]:
    """The scores of a group or a class in one run; empty without an object of it."""
    if name in run.groups:
        return {f: run.score.mean(f, run.groups[name]) for f in FIELDS} if name in run.intervals else {}
    return vars(run.score.classes[name]) if name in run.score.classes else {}


def _by_pcb(runs: Iterable[Run]) -> dict[str, list[Run]]:
    return {pcb: list(members) for pcb, members in groupby(sorted(runs, key=_pcb), lambda run: run.pcb)}


def _pcb(run: Run) -> str:
    return f", PCB {run.pcb}" if run.pcb else ""


def _objects(run: Run, names: Iterable[str]) -> str:
    return str(sum(run.score.classes[name].objects for name in names if name in run.score.classes))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _bounds(one: Interval) -> str:
    return f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"


def _remarks(runs: Sequence[Run]) -> list[str]:
    models = list(dict.fromkeys(run.model for run in runs))
    pictures = sorted({len(run.records) for run in runs})
    lines = [f"in brackets: 95% interval over the pictures, by bootstrap ({' or '.join(map(str, pictures))} pictures)"]
    if len(models) > 1:
        lines[0] += f"; of means: 95% interval over the n = {len(models)} runs (t)"
        lines += _protocol([next(run for run in runs if run.model == model) for model in models])
    return lines + [_alarms(run, len(models) > 1) for run in runs] + _left_out([run.score for run in runs])


def _protocol(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart; a mean over draws says nothing without it."""
    made = [(run.provenance.get("seed"), run.provenance.get("train")) for run in runs]
    lines = [
        f"{run.model}: seed {'not recorded' if seed is None else seed}, trained on "
        f"{', '.join(map(str, train)) if train else 'data not recorded'}"
        for run, (seed, train) in zip(runs, made, strict=True)
    ]
    if any(made.count(one) > 1 for one in made):
        lines.append("runs that share seed and training data, as far as recorded, are not different draws")
    return lines


def _alarms(run: Run, named: bool) -> str:
    who = (f"{run.model}" if named else "") + _pcb(run)
    rates = run.alarms.to_dict()
    if not run.alarms.frames:
        said = "no empty frame"
    else:
        said = (f"{rates['own_per_1000']:g} per 1000 empty frames at the model's own score thresholds "
                f"({_thresholds(run)}), {rates['fixed_per_1000']:g} at 0.3 ({run.alarms.frames} empty frames)")
    return f"false alarms{' of ' if named else ''}{who}: {said}"


def _thresholds(run: Run) -> str:
    low, high = min(run.thresholds), max(run.thresholds)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _left_out(scores: Sequence[Score]) -> list[str]:
    strange, unscored = (
        sorted({name for score in scores for name in getattr(score, field)}) for field in ("left_out", "unscored")
    )
    lines = [f"left out, as the model has no such class: {', '.join(strange)}"] if strange else []
    return lines + ([f"no object in the data, in no mean: {', '.join(unscored)}"] if unscored else [])
