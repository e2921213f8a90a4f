"""glmd-train teach: pictures and labels of a new object -> a fine-tuned, calibrated checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmd_runtime.commands.command import loading_libraries
from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.files.scratch import check_place
from glmd_train.commands.common import add_background, allowed_alarms

if TYPE_CHECKING:
    from glmd_train.teach import Lesson

BASE = Path(__file__).parents[1] / "thermal_lite0_base.safetensors"  # in a checkout, a link to the one in models/


def add_parser(commands: Any) -> None:
    one = commands.add_parser(
        "teach", help="a few labelled pictures of something new -> a calibrated detector of it",
        description="Fine-tune a base model on a few labelled pictures of new classes, choose a score threshold for "
        "each, add prototypes. The model knows the taught classes, not the base's.",
        example="glmd-train teach --images pictures/ --annotations labels.json -o my_model",
    )
    add = one.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="the pictures")
    add("--annotations", type=Path, required=True, metavar="PATH",
        help="their labels: a COCO file, YOLO's, Pascal VOC's or LabelMe's folder")
    add("--base", type=Path, default=BASE, metavar="FILE",
        help="the model to start from (default: the shipped thermal_lite0_base)")
    add_background(add)
    add("--classes", nargs="+", default=[], metavar="NAME", help="teach these of the labelled classes (default: all)")
    add("--recipe", default="default", metavar="NAME",
        help="how to train: default, the best here; or as published: glmdnet, defrcn, tfa")
    add("--iterations", type=int, metavar="N",
        help="of each of the three trainings, for a quick look at what comes of it (default: as the recipe says)")
    add("--seed", type=int, default=0, metavar="N", help="of the training (default: %(default)s)")
    add("-o", "--output", type=Path, metavar="NAME", help="writes NAME.safetensors and the folder NAME.report")
    add("--dry-run", action="store_true", help="judge the pictures, and train nothing")
    add("--json", action="store_true", help="print the findings, or the report, as JSON")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    output, folder = _outputs(options)
    _check_values(options)
    _check_paths(options)
    with loading_libraries():
        from glmd_train.teach import read_lesson

    lesson = read_lesson(options.images, options.annotations, options.base, options.classes, options.background)
    if options.dry_run:
        _print_judgement(lesson, options.json)
    _refuse_errors(lesson)
    if not options.dry_run:
        _teach(lesson, output, folder, options)


def _check_values(options: argparse.Namespace) -> None:
    from glmd_train.given import check_background
    from glmd_train.recipes import recipe_names

    if options.recipe not in recipe_names():
        raise UsageError(f"--recipe must be one of {', '.join(recipe_names())}; got {options.recipe!r}.")
    if options.iterations is not None and options.iterations < 1:
        raise UsageError(f"--iterations must be 1 or more; got {options.iterations}.")
    check_background(options.background, options.false_alarms)
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed must be 0 to {2**32 - 1}; got {options.seed}.")


def _check_paths(options: argparse.Namespace) -> None:
    """What `read_lesson` will read, a first time, for it has to load PyTorch before."""
    from glmd_train.data.formats import read_labels
    from glmd_train.given import check_checkpoint

    check_checkpoint(options.base)
    read_labels(options.annotations, options.images)


def _outputs(options: argparse.Namespace) -> tuple[Path, Path]:
    """The file and the folder to write. Raises: UsageError if there is none, no place, or something there."""
    if options.output is None and not options.dry_run:
        raise UsageError("-o NAME is needed: it writes NAME.safetensors and NAME.report. Or use --dry-run.")
    if options.output and options.output.name in ("", ".."):
        raise UsageError(f"-o NAME must end in a name for the files; got {options.output}.")
    name = options.output or Path("dry_run")
    name = name.with_suffix("") if name.suffix == ".safetensors" else name
    output, folder = name.with_name(f"{name.name}.safetensors"), name.with_name(f"{name.name}.report")
    done = (output, folder / "report.json")  # a folder without is of a lesson that was stopped
    for path in done if options.output else ():
        check_place(path)
    if not options.dry_run and (there := [str(path) for path in done if os.path.exists(path)]):
        raise UsageError(f"{' and '.join(there)} exists already. Choose another -o, or remove it.")
    return output, folder


def _refuse_errors(lesson: Lesson) -> None:
    if errors := [finding.text for finding in lesson.findings if finding.severity == "error"]:
        raise DatasetError(f"The pictures cannot be taught from: {'; '.join(errors)}")


def _teach(lesson: Lesson, output: Path, folder: Path, options: argparse.Namespace) -> None:
    from rich.console import Console

    from glmd_train.lesson.report import as_text, report_values, write_report
    from glmd_train.teach import save, teach

    console = Console(stderr=True, highlight=False)
    for finding in lesson.findings:
        console.print(f"{finding.severity}: {finding.text}", markup=False)
    began = time.monotonic()
    with redirect_stdout(sys.stderr):  # stdout is for the report
        taught = teach(
            lesson, folder, recipe=options.recipe, iterations=options.iterations, seed=options.seed,
            false_alarms=allowed_alarms(options), step=lambda text: console.print(text, markup=False),
        )
    values = report_values(lesson, taught, time.monotonic() - began)
    write_report(folder, values, lesson, taught)
    save(taught, output, {"taught": {key: values[key] for key in ("pictures", "classes", "background")}})
    print(json.dumps(values, indent=1) if options.json else as_text(values))
    written = f"Written: {output}, {folder}/. Next: {next_command(output, lesson.class_names)}"
    console.print(written, markup=False, soft_wrap=True)  # a command that is broken in two cannot be copied


def next_command(checkpoint: Path, class_names: Sequence[str]) -> str:
    """What makes a bundle of it. Prototypes tell classes from each other, and of one alone make worse (docs/pcb.md)."""
    pcb = " --pcb" if len(class_names) > 1 else ""
    return f"glmd-export --ckpt {checkpoint} --fp16{pcb}"


def _print_judgement(lesson: Lesson, as_json: bool) -> None:
    from glmd_train.checkpoint import load_checkpoint
    from glmd_train.lesson.support import print_judgement, summary

    values = summary(lesson.records, lesson.class_names, load_checkpoint(lesson.base).preprocess)
    if as_json:
        print(json.dumps({"pictures": values, "findings": [one.to_dict() for one in lesson.findings]}, indent=1))
    else:
        print_judgement(values, lesson.findings)
