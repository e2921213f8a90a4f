"""Tables and plot of thermal-fs from its runs, written between the marks of docs/few-shot.md and docs/enroll.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import RESULTS, write_tables
from benchmarks.fewshot_runs import CLASSES, MAIN, METHODS, SHOTS, WITHOUT, Key, Method
from glmd_train.scores.intervals import Interval, run_interval

ROOT = Path(__file__).parents[1]
DOCUMENT, PLOT = ROOT / "docs" / "few-shot.md", ROOT / "docs" / "images" / "fewshot.png"
ENROLL = ROOT / "docs" / "enroll.md"
OURS = "default"
Runs = dict[Key, dict[str, Any]]
Value = Callable[[dict[str, Any]], float]


def write_report(runs: Runs) -> None:
    tables = {
        "main": main_table(runs), "pairs": pair_table(runs), "classes": class_table(runs),
        "pcb": pcb_table(runs), "without": without_table(runs),
    }
    write_tables(DOCUMENT, tables)
    enrolled = json.loads((RESULTS / "enroll.json").read_text())["runs"]
    write_tables(ENROLL, {"against_teach": enroll_table(runs, enrolled)})
    plot(runs)
    print(f"Written: {DOCUMENT}, {ENROLL}, {PLOT}")


def of(runs: Runs, table: str, method: str, shots: int) -> dict[int, dict[str, Any]]:
    """The runs of one cell by seed."""
    return {k.seed: row for k, row in runs.items() if (k.table, k.method, k.shots) == (table, method, shots)}


def ap_of(method: Method, pictures: str = "val", key: str = "ap") -> Value:
    """The value of a run that counts for a method: with PCB or without, as it is used.

    On val: train pictures that were not drawn ("all" has them too) are frames of clips that drawn ones are from, and
    the default recipe was chosen on such pictures.
    """
    state = "pcb_on" if method.pcb else "pcb_off"
    return lambda row: float(row[state][pictures][key])


def said(values: Sequence[float]) -> str:
    """Mean and half of the 95% interval over runs."""
    if len(values) < 2:
        return f"{values[0]:.1f} (1 run)" if values else "not run"
    one = run_interval(values)
    return f"{one.value:.1f} ± {one.high - one.value:.1f}"


def difference(runs: Runs, table: str, shots: int, a: Method, b: Method, pictures: str = "val") -> Interval | None:
    """a - b in nAP over the draws that both have, as a paired interval; None for fewer than two."""
    mine, theirs = of(runs, table, a.name, shots), of(runs, table, b.name, shots)
    seeds = sorted(set(mine) & set(theirs))
    if len(seeds) < 2:
        return None
    return run_interval([ap_of(a, pictures)(mine[s]) - ap_of(b, pictures)(theirs[s]) for s in seeds])


def signed(one: Interval | None) -> str:
    return f"{one.value:+.1f} ({one.low:+.1f} to {one.high:+.1f})" if one else "fewer than 2 draws"


def main_table(runs: Runs) -> list[str]:
    lines = ["| method | PCB | " + " | ".join(f"nAP, {k} shot{'s' * (k > 1)}" for k in SHOTS)
             + " | nAP50, 10 shots | nAP, 10 shots, with train | runs | seconds, 10 shots, median |",
             "| --- | --- |" + " --- |" * (len(SHOTS) + 4)]
    for method in METHODS[MAIN]:
        cells = [said([ap_of(method)(row) for row in of(runs, MAIN, method.name, k).values()]) for k in SHOTS]
        ten = of(runs, MAIN, method.name, 10).values()
        cells += [said([value(row) for row in ten]) for value in (ap_of(method, key="ap50"), ap_of(method, "all"))]
        counts = "/".join(str(len(of(runs, MAIN, method.name, k))) for k in SHOTS)
        middle = round(median(row["seconds"] for row in ten)) if ten else ""
        lines.append(f"| {method.name} | {'on' if method.pcb else 'off'} | {' | '.join(cells)} | {counts} | {middle} |")
    return lines


def pair_table(runs: Runs) -> list[str]:
    ours = next(method for method in METHODS[MAIN] if method.name == OURS)
    lines = [f"| {OURS} minus | " + " | ".join(f"nAP, {k} shot{'s' * (k > 1)}" for k in SHOTS)
             + " | nAP, 10 shots, with train |", "| --- |" + " --- |" * (len(SHOTS) + 1)]
    for other in METHODS[MAIN]:
        if other is not ours:
            cells = [signed(difference(runs, MAIN, k, ours, other)) for k in SHOTS]
            cells.append(signed(difference(runs, MAIN, 10, ours, other, "all")))
            lines.append(f"| {other.name} | {' | '.join(cells)} |")
    return lines


def class_table(runs: Runs) -> list[str]:
    lines = ["| AP50, 10 shots | " + " | ".join(CLASSES) + " |", "| --- |" + " --- |" * len(CLASSES)]
    for method in METHODS[MAIN]:
        rows = of(runs, MAIN, method.name, 10).values()
        state = "pcb_on" if method.pcb else "pcb_off"
        cells = [said([row[state]["val"]["classes50"][name] for row in rows]) for name in CLASSES]
        lines.append(f"| {method.name} | {' | '.join(cells)} |")
    return lines


def pcb_table(runs: Runs) -> list[str]:
    """What PCB changes in each method, paired by run."""
    lines = ["| nAP with PCB minus without | " + " | ".join(f"{k} shot{'s' * (k > 1)}" for k in SHOTS) + " |",
             "| --- |" + " --- |" * len(SHOTS)]
    for method in METHODS[MAIN]:
        cells = []
        for shots in SHOTS:
            gains = [row["pcb_on"]["val"]["ap"] - row["pcb_off"]["val"]["ap"]
                     for row in of(runs, MAIN, method.name, shots).values()]
            cells.append(signed(run_interval(gains) if len(gains) > 1 else None))
        lines.append(f"| {method.name} | {' | '.join(cells)} |")
    return lines


def without_table(runs: Runs) -> list[str]:
    first, *others = METHODS[WITHOUT]
    lines = ["| GLMDNet, short base, 10 shots | nAP | minus all parts, paired | runs |", "| --- | --- | --- | --- |"]
    for method in (first, *others):
        rows = of(runs, WITHOUT, method.name, 10).values()
        gain = "" if method is first else signed(difference(runs, WITHOUT, 10, method, first))
        lines.append(f"| {method.name} | {said([ap_of(method)(row) for row in rows])} | {gain} | {len(rows)} |")
    whole = of(runs, WITHOUT, first.name, 10).values()
    losses = [row["pcb_off"]["val"]["ap"] - row["pcb_on"]["val"]["ap"] for row in whole]
    without = said([row["pcb_off"]["val"]["ap"] for row in whole])
    gain = signed(run_interval(losses) if len(losses) > 1 else None)
    lines.append(f"| without PCB | {without} | {gain} | {len(whole)} |")
    return lines


def enroll_table(runs: Runs, enrolled: Sequence[dict[str, Any]]) -> list[str]:
    """`Detector.enroll` beside the default recipe: nAP50 on the val lists, over the draws that both have."""
    lines = ["| boxes of each class | `enroll` | `teach` | `teach` minus `enroll` | draws |",
             "| --- | --- | --- | --- | --- |"]
    ours = next(method for method in METHODS[MAIN] if method.name == OURS)
    for shots in SHOTS:
        taught = {s: ap_of(ours, "val", "ap50")(row) for s, row in of(runs, MAIN, OURS, shots).items()}
        pairs = [(row["nap50"], taught[row["seed"]]) for row in enrolled
                 if row["shots"] == shots and row["seed"] in taught]
        gains = [b - a for a, b in pairs]
        gain = signed(run_interval(gains) if len(gains) > 1 else None)
        means = " | ".join(said(column) for column in zip(*pairs, strict=True)) if pairs else "not run | not run"
        lines.append(f"| {shots} | {means} | {gain} | {len(pairs)} |")
    return lines


def plot(runs: Runs) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, method in enumerate(METHODS[MAIN]):
        cells = {k: [ap_of(method)(row) for row in of(runs, MAIN, method.name, k).values()] for k in SHOTS}
        known = {k: run_interval(cell) for k, cell in cells.items() if len(cell) > 1}
        places = [SHOTS.index(k) + 0.04 * (i - 1.5) for k in known]
        bars = [one.high - one.value for one in known.values()]
        axes.errorbar(places, [one.value for one in known.values()], bars, marker="o", capsize=3,
                      label=method.name + (" + PCB" if method.pcb else ""))
    axes.set_xticks(range(len(SHOTS)), [str(k) for k in SHOTS])
    axes.set_xlabel("labelled boxes of each class")
    axes.set_ylabel("nAP on val, mean and 95% interval over draws")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(PLOT, dpi=110)
    plt.close(figure)
