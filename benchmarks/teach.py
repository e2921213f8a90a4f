"""Ten pictures of one class, taught, exported and scored with the commands that a user has, for several draws.

    python -m benchmarks.teach --set cheetah --classes cheetah --seeds 200 201 202  # then: python -m benchmarks.readme

Pictures are drawn from the set's train list by the strict protocol; the bundle is scored on its val list. A draw that
is in results/teach.json is not made again. Bundles stay in --out, to be looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, conditions, write
from benchmarks.tables import Lines, table
from glmd_train.data.fewshot import write_splits

KEY = ("set", "classes", "shots", "seed")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--set", required=True, help="a folder of the data with train.json and val.json")
    options.add_argument("--classes", nargs="+", required=True)
    options.add_argument("--shots", type=int, default=10)
    options.add_argument("--seeds", type=int, nargs="+", required=True)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    options.add_argument("--out", type=Path, default=Path("out/teach"))
    given = options.parse_args()
    for seed in given.seeds:
        key = {"set": given.set, "classes": given.classes, "shots": given.shots, "seed": seed}
        if not made(key):
            row = {**key, **lesson(given, seed)}
            write("teach", {"runs": [*runs(), row]})  # read again: another draw may have been made beside this one
        print(json.dumps(made(key)[0]))


def runs() -> list[dict[str, Any]]:
    path = RESULTS / "teach.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


def made(key: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in runs() if all(row[name] == key[name] for name in KEY)]


def lines(lessons: Sequence[dict[str, Any]]) -> Lines:
    """A row for each lesson of ten pictures of one class; AP, AP50 and recall in percent."""
    header = ["class", "seed", "AP", "AP50", "recall at score 0.3", "threshold of the lesson", "minutes", "commit"]
    in_order = sorted(lessons, key=lambda one: (one["set"], one["seed"]))
    shown = [one for one in in_order if one["shots"] == 10 and len(one["classes"]) == 1]
    return table(header, [_cells(one, *one["classes"]) for one in shown])


def _cells(one: dict[str, Any], name: str) -> list[str]:
    scores, report = one["scores"], one["report"]
    ap, ap50, recall = (f"{100 * scores['mean'][key]:.1f}" for key in ("ap", "ap50", "recall"))
    low, high = (f"{100 * value:.1f}" for value in scores["groups"]["all"]["ap50_interval"])
    threshold, minutes = f"{report['classes'][name]['threshold']:.2f}", f"{report['seconds'] / 60:.0f}"
    return [name, str(one["seed"]), ap, f"{ap50} ({low} to {high})", recall, threshold, minutes, one["commit"]]


def lesson(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One draw: teach, export, score."""
    folder = given.out / f"{given.set}_{'_'.join(given.classes)}_{given.shots}_{seed}"
    train, val = given.data / given.set / "train.json", given.data / given.set / "val.json"
    write_splits(train, folder, "strict", [given.shots], [seed], tuple(given.classes))
    labels, model = folder / "labels.json", folder / "model.safetensors"
    labels.write_text(json.dumps(joined(sorted((folder / f"seed{seed}").glob(f"full_box_{given.shots}shot_*.json")))))
    report = command("glmd_train", "teach", "--images", train.parent, "--annotations", labels,
                     "--classes", *given.classes, "--seed", seed, "-o", model, "--json")
    bundle = model.with_suffix(".glmd")
    command("glmd_export", "--ckpt", model, "-o", bundle)
    scores = command("glmd_train", "eval", "--engine", bundle, "--data", val, "--json")
    command_line = f"python -m benchmarks.teach --set {given.set} --classes {' '.join(given.classes)} --seeds {seed}"
    [one] = scores.values()
    return {"report": report, "scores": {**one, "data": f"{given.set}/val.json"}, **conditions(command_line)}


def joined(files: Sequence[Path]) -> dict[str, Any]:
    """The drawn boxes of all classes as one COCO content; of an image that was drawn twice one entry."""
    contents = [json.loads(file.read_text()) for file in files]
    images = {image["id"]: image for content in contents for image in content["images"]}
    # A box that was not drawn for its class is a crowd in the file of another one.
    drawn_last = sorted((a for content in contents for a in content["annotations"]), key=lambda a: -a["iscrowd"])
    annotations = {a["id"]: a for a in drawn_last}
    return {**contents[0], "images": list(images.values()), "annotations": list(annotations.values())}


def command(package: str, *arguments: object) -> Any:
    """Run a command of the SDK; what it prints as JSON, None where it prints none."""
    call = [sys.executable, "-c", f"import sys; from {package}.cli import main; sys.exit(main())", *map(str, arguments)]
    printed = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed) if "--json" in arguments else None


if __name__ == "__main__":
    main()
