"""The tables of README.md and of other documents about the shipped model, from the committed results.

    python -m benchmarks.readme
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import clips, lessons, teach, thresholds, tiles
from benchmarks.aims import Results, load_results, spread
from benchmarks.common import RESULTS, write_tables
from benchmarks.fewshot_report import OURS, Runs, ap_of, difference, of, said, signed
from benchmarks.fewshot_runs import MAIN, METHODS, SHOTS, read_runs
from benchmarks.tables import Lines, table

ROOT = Path(__file__).parents[1]
README, CARD = ROOT / "README.md", ROOT / "models" / "thermal_lite0.md"
FEW_SHOT, LIGHT_MODEL, EVALUATION = (ROOT / "docs" / f"{name}.md" for name in ("few-shot", "light_model", "evaluation"))
SETS = {  # name -> what is in it
    "hit_uav": "from a drone: person, car, bicycle",
    "air": "in the sky: uav, airplane, helicopter, bird",
    "dogs_people": "hand-held: dog, person",
    "cheetah": "wildlife: cheetah, person",
}
THRESHOLDS = {"own": "at its own thresholds", "0.3": "at score 0.3"}
ENGINES = ("PyTorch eager", "onnxruntime model.onnx", "openvino openvino.fp32.xml", "openvino openvino.int8.xml")


def tables() -> dict[Path, dict[str, Lines]]:
    """Document -> mark -> table."""
    results, sets = load_results(), of_shipped("accuracy")["sets"]
    return {
        README: {"speed": speed(results), "accuracy": accuracy(results, sets), "fewshot": fewshot(read_runs())},
        CARD: {"by_threshold": by_threshold(sets)},
        FEW_SHOT: {"teach": teach.lines(teach.runs()), "tiles": tiles.lines(of_shipped("tiles")["sets"])},
        EVALUATION: {
            "thresholds": thresholds.lines(of_shipped("thresholds")["f1"]), "lessons": lessons.lines(lessons.runs()),
        },
        LIGHT_MODEL: {"clips": clips.lines(of_shipped("clips")["clips"])},
    }


def of_shipped(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}_thermal_lite0.json").read_text())
    return result


def speed(results: Results) -> Lines:
    rows = {row["subject"]: row for row in results["latency"]}
    header = ["engine", "precision", "frame to boxes, p50 and p90 ms", "as fast as PyTorch"]
    return table(header, [
        [name, row["precision"], f"{row['run']['p50_ms']:.1f}, {row['run']['p90_ms']:.1f}",
         spread(row["faster"]["run"])]
        for name in ENGINES for row in (rows[name],)
    ])


def accuracy(results: Results, sets: dict[str, Any]) -> Lines:
    exact = next(row["accuracy"]["sets"] for row in results["latency"] if row.get("engine") == "model.onnx")
    rates = [f"found, and right, {said}" for said in THRESHOLDS.values()]
    header = ["val list", "objects", "AP50", "in float32", *rates]
    return table(header, [
        [f"{name} ({what})", str(sum(one["objects"] for one in sets[name]["classes"].values())),
         f"{100 * sets[name]['mean']['ap50']:.1f}", f"{exact[f'{name}/val']:.1f}",
         *("{recall:.0%}, {precision:.0%}".format(**sets[name]["by_threshold"][at]) for at in THRESHOLDS)]
        for name, what in SETS.items()
    ])


def by_threshold(sets: dict[str, Any]) -> Lines:
    rows = {name: one["by_threshold"] for name, one in sets.items()}
    said = "{recall:.0%}, {precision:.0%}, {wrong_a_frame:.2f}"
    return table(["val list", *(THRESHOLDS.get(at, f"at score {at}") for at in rows["air"])], [
        [name, *(said.format(**one) for one in row.values())] for name, row in rows.items()
    ])


def fewshot(runs: Runs) -> Lines:
    """Each method at each K of which every method has draws, and what the default has more on the same draws of ten."""
    ours = next(method for method in METHODS[MAIN] if method.name == OURS)
    shots = [k for k in SHOTS if all(of(runs, MAIN, method.name, k) for method in METHODS[MAIN])]
    header = ["nAP on val", *(f"{k} shot{'s' * (k > 1)}" for k in shots), "the default has more, 10 shots", "draws"]
    return table(header, [
        [method.name, *(said([ap_of(method)(row) for row in of(runs, MAIN, method.name, k).values()]) for k in shots),
         "" if method is ours else signed(difference(runs, MAIN, 10, ours, method)),
         "/".join(str(len(of(runs, MAIN, method.name, k))) for k in shots)]
        for method in METHODS[MAIN]
    ])


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for document, marked in tables().items():
        write_tables(document, marked)
        print(f"Written: {document}")


if __name__ == "__main__":
    main()
