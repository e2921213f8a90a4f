"""glmd-train eval: AP, recall, false alarms and the worst misses of checkpoints or bundles."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmd_runtime.commands.command import loading_libraries
from glmd_runtime.errors import UsageError
from glmd_runtime.files.scratch import check_place
from glmd_train.commands.common import counting, on_device

if TYPE_CHECKING:
    from glmd_runtime.calibration import CalibrationSpec
    from glmd_runtime.postprocess import PostprocessSpec
    from glmd_train.checkpoint import Checkpoint
    from glmd_train.data.coco import Record
    from glmd_train.evaluate import Predict
    from glmd_train.scores.runs import Model, Run


def add_parser(commands: Any) -> None:
    one = commands.add_parser(
        "eval", help="AP, recall and false alarms of checkpoints or bundles on COCO-format data",
        description="Measure AP, recall and false alarms of checkpoints or bundles on COCO-format data.",
        example="glmd-train eval --engine models/thermal_lite0.glmd --data val.json",
    )
    model = one.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", "--ckpt", type=Path, nargs="+", metavar="FILE",
                       help=".safetensors (or .pth) files, run by PyTorch; several are runs of one training: other "
                            "seeds, other draws of support pictures")
    model.add_argument("--engine", type=Path, nargs="+", metavar="BUNDLE", help=".glmd bundles, run as on the device")
    told = one.add_mutually_exclusive_group()
    told.add_argument("--classes", type=Path, metavar="FILE", help="class names of a .pth file, one a line")
    told.add_argument("--config", type=Path, metavar="YAML", help="training configuration of a .pth file")
    data = one.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=Path, nargs="+", metavar="FILE", help="COCO annotation files")
    data.add_argument("--data-per-model", type=Path, nargs="+", metavar="FILE",
                      help="one annotation file for each model, where test lists differ by draw")
    one.add_argument("--images", type=Path, metavar="DIR", help="where file names in the annotations start")
    one.add_argument("--background", type=Path, metavar="DIR", help="pictures without objects, to count false alarms")
    kinds = one.add_mutually_exclusive_group()
    kinds.add_argument("--base-classes", nargs="+", metavar="NAME", help="the other classes are novel")
    kinds.add_argument("--novel-classes", nargs="+", metavar="NAME",
                       help="the other classes are base; default: what the checkpoint says of its start weights")
    one.add_argument("--device", choices=("cpu", "cuda"),
                     help="default: cpu for checkpoints, the fastest for bundles")
    one.add_argument("--out", type=Path, metavar="DIR", help="write scores.json, curves.png and misses.png here")
    one.add_argument("--json", action="store_true", help="print the scores as JSON")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    _check(options)
    _check_paths(options)
    with loading_libraries():
        from glmd_train.scores.report import print_runs, to_dict

    results = evaluate_models(options)
    values = {data: to_dict(runs) for data, runs in results.items()}
    if options.out:
        write_out(options.out, values, [run for runs in results.values() for run in runs])
    if options.json:
        print(json.dumps(values, indent=1))
        return
    for data, runs in results.items():
        print_runs(data, runs)


def _check(options: argparse.Namespace) -> None:
    """What can be wrong before any model runs, which may take long."""
    models = options.checkpoint or options.engine
    if options.engine and (options.config or options.classes):
        raise UsageError("A bundle names its own classes. Leave out --config and --classes.")
    for path in options.checkpoint or ():
        if path.suffix == ".glmd":
            raise UsageError(f"{path} is a bundle: use --engine for it.")
    if options.data_per_model and len(options.data_per_model) != len(models):
        raise UsageError(
            f"--data-per-model expects a file for each of the {len(models)} models; got {len(options.data_per_model)}."
        )
    if options.out:
        from glmd_train.scores.plots import new_figure

        new_figure()  # an error now if there is no matplotlib
        check_place(options.out / "scores.json")


def _check_paths(options: argparse.Namespace) -> None:
    """What will be read, a first time: the models are opened one after the other."""
    from glmd_runtime.bundle import bundle_of, open_bundle
    from glmd_train.given import background_pictures, check_checkpoint, check_data

    for path in options.checkpoint or ():
        check_checkpoint(path, options.config, options.classes)
    for path in options.engine or ():
        open_bundle(bundle_of(path))
    check_data(options.data_per_model or options.data, options.images)
    if options.background:
        background_pictures(options.background)


def evaluate_models(options: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs of every model, by set as it was named; with --data-per-model they are one set."""
    from glmd_train.given import background_pictures
    from glmd_train.scores.runs import detect_background, load_set, run_model, short_names

    paths = options.checkpoint or options.engine
    pictures = background_pictures(options.background) if options.background else []
    results: dict[str, list[Run]] = {}
    sets: dict[Path, list[Record]] = {}
    names: tuple[str, ...] = ()
    for i, (path, name) in enumerate(zip(paths, short_names(paths), strict=True)):
        with open_model(path, name, options) as model:
            if not sets:  # all of them now: a wrong file is an error before the long work
                names = model.class_names
                sets = {file: load_set(file, names, options.images) for file in options.data_per_model or options.data}
            if model.class_names != names:
                raise UsageError(
                    f"Runs of one training have the same classes; {paths[0]} has {list(names)}, {path} has "
                    f"{list(model.class_names)}. Evaluate other models one by one."
                )
            base = base_classes(options, model)
            mine = [options.data_per_model[i]] if options.data_per_model else list(sets)
            with _counted(model, sum(len(sets[data]) for data in mine) + len(pictures)) as counted:
                background = detect_background(counted, pictures)
                for data in mine:
                    key = "data per model" if options.data_per_model else str(data)
                    results.setdefault(key, []).extend(run_model(counted, str(data), sets[data], background, base))
    return results


@contextmanager
def open_model(path: Path, name: str, options: argparse.Namespace) -> Iterator[Model]:
    """A checkpoint on its device, or a bundle, for as long as the context lasts."""
    from glmd_runtime import Detector
    from glmd_runtime.bundle import bundle_of, open_bundle
    from glmd_train.evaluate import EVAL_SCORE, torch_predict

    with ExitStack() as stack:
        if options.engine:
            manifest = open_bundle(bundle_of(path)).manifest

            def detector(pcb: bool) -> Predict:
                one = Detector(path, score_threshold=EVAL_SCORE, device=options.device, pcb=pcb)
                return stack.enter_context(one).run

            own, calibration = manifest.postprocess, manifest.calibration
            made = manifest.provenance.get("training", {})
            yield _model(name, manifest.class_names, made, own, calibration, detector)
        else:
            one = _open_checkpoint(path, options)
            calibration = one.pcb.calibration.spec if one.pcb else None
            yield _model(name, one.class_names, one.provenance, one.postprocess, calibration,
                         lambda pcb: torch_predict(one, pcb=pcb))


def _model(
    name: str, class_names: tuple[str, ...], provenance: Mapping[str, Any], own: PostprocessSpec,
    calibration: CalibrationSpec | None, predict: Callable[[bool], Predict],
) -> Model:
    """`predict` is told whether PCB is on; where there are prototypes it is asked for both."""
    from glmd_train.scores.runs import Model

    specs = {"on": calibration.postprocess(own), "off": own} if calibration else {"": own}
    thresholds = {state: spec.score_thresholds for state, spec in specs.items()}
    return Model(name, class_names, thresholds, provenance, {state: predict(state == "on") for state in specs})


def _open_checkpoint(path: Path, options: argparse.Namespace) -> Checkpoint:
    from glmd_train.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path, config=options.config, classes=options.classes)
    return on_device(checkpoint, options.device or "cpu")


def base_classes(options: argparse.Namespace, model: Model) -> set[str] | None:
    """As the command line says, or the checkpoint: what its start weights knew. None where neither does."""
    told = options.base_classes or options.novel_classes or ()
    if unknown := [name for name in told if name not in model.class_names]:
        raise UsageError(f"The model has no class {', '.join(unknown)}; it has {', '.join(model.class_names)}.")
    if options.base_classes:
        return set(told)
    if options.novel_classes:
        return set(model.class_names) - set(told)
    base = model.provenance.get("base_classes")
    return None if base is None else set(base)


@contextmanager
def _counted(model: Model, pictures: int) -> Iterator[Model]:
    """The model with a progress bar."""
    with counting(model.name, pictures * len(model.predict)) as counted:
        yield replace(model, predict={state: counted(predict) for state, predict in model.predict.items()})


def write_out(folder: Path, values: dict[str, Any], runs: Sequence[Run]) -> None:
    """scores.json, and of each run curves.png and misses.png, in folders of their own where there are several."""
    from glmd_train.scores.runs import short_names

    several = len(runs) > 1
    models, sets = list(dict.fromkeys(run.model for run in runs)), list(dict.fromkeys(run.data for run in runs))
    labels = dict(zip(sets, short_names(map(Path, sets)), strict=True))
    for one in runs:
        parts = [one.model if len(models) > 1 else "", labels[one.data] if len(sets) > 1 else ""]
        parts += [f"pcb_{one.pcb}" if one.pcb else ""]
        place = "_".join(part.replace("/", "_") for part in parts if part)
        _write_pictures(folder / place if several else folder, one)
    _write(folder / "scores.json", json.dumps(values, indent=1).encode())


def _write_pictures(folder: Path, one: Run) -> None:
    import cv2

    from glmd_train.scores.intervals import match_classes
    from glmd_train.scores.misses import draw_sheet, find_misses
    from glmd_train.scores.plots import plot_curves

    names = one.found[0].class_names
    title = f"{one.model} on {one.data}" + (f", PCB {one.pcb}" if one.pcb else "")
    matches = {names[i]: match for i, match in match_classes(one.records, one.found).items()}
    _write(folder / "curves.png", plot_curves(matches, dict(zip(names, one.thresholds, strict=True)), title))
    sheet = draw_sheet(find_misses(one.records, one.found, names), title)
    _write(folder / "misses.png", cv2.imencode(".png", sheet)[1].tobytes())


def _write(path: Path, content: bytes) -> None:
    from glmd_runtime.files.scratch import whole_file

    with whole_file(path) as partial:
        partial.write_bytes(content)
