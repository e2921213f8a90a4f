"""What several commands share: a device, a progress bar, pictures without objects."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmd_runtime.errors import UnsupportedError
from glmd_train.lesson import FALSE_ALARMS

if TYPE_CHECKING:
    from glmd_train.checkpoint import Checkpoint
    from glmd_train.evaluate import Predict


def add_background(add: Callable[..., Any]) -> None:
    """The options that `given.check_background` checks; `add` is add_argument of a parser."""
    add("--background", type=Path, metavar="DIR", help="pictures without any object, of the place where it will run")
    add("--false-alarms", type=float, metavar="N",
        help=f"of 1000 pictures like the background, at most so many with one of a class (default: {FALSE_ALARMS:g})")


def allowed_alarms(options: argparse.Namespace) -> float:
    return FALSE_ALARMS if options.false_alarms is None else float(options.false_alarms)


def on_device(checkpoint: Checkpoint, device: str) -> Checkpoint:
    """The checkpoint, its networks moved. Raises: UnsupportedError if PyTorch has no such device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("--device cuda: PyTorch finds no CUDA device here. Use --device cpu.")
    for part in (checkpoint.model, *([checkpoint.pcb.classifier] if checkpoint.pcb else [])):
        part.to(device)
    return checkpoint


@contextmanager
def counting(name: str, total: int) -> Iterator[Callable[[Predict], Predict]]:
    """A progress bar on stderr, where somebody can see it, and what makes a function advance it at each call."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total)
        yield lambda predict: _after(predict, lambda: bar.advance(task))


def _after(predict: Predict, step: Callable[[], None]) -> Predict:
    def stepping(frame: Any) -> Any:
        found = predict(frame)
        step()
        return found

    return stepping
