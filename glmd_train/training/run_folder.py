"""The folder of a run: its record, its log, and the state that it can be continued from.

    config.json        the configuration in full
    last.pt            weights, optimizer and iteration, replaced whole every few minutes
    log.jsonl          losses and scores, a line each; tensorboard/ holds the same
    model.safetensors  the checkpoint
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmd_runtime.errors import CheckpointError, UsageError
from glmd_runtime.files.documents import parse_json, read_json
from glmd_runtime.files.scratch import whole_file, writing
from glmd_train.config import TrainConfig
from glmd_train.model.detector import GLMDNet
from glmd_train.torch_file import read_torch

# What may differ when a run goes on: where it runs, what is read beside it, and how long it goes on.
_FREE = {
    "output", "val", "accelerator", "devices", "nodes", "workers", "checkpoint_minutes", "eval_every", "iterations",
}


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it must not lose; files are replaced whole or not at all."""

    path: Path

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    def check(self, config: TrainConfig, resume: bool) -> None:
        """Raises: UsageError if another run is here; CheckpointError if the run here has another configuration."""
        if not self.last.exists():
            return
        if not resume:
            raise UsageError(f"{self.path} holds a run already. Continue it with --resume, or choose another output.")
        record = self.path / "config.json"
        if different := _differences(config, record):
            raise CheckpointError(
                f"{self.path} does not continue this configuration: {', '.join(different)} differ from {record}. "
                "Choose another output, or the configuration that began the run."
            )

    def begin(self, config: TrainConfig, first: int) -> None:
        """Write the record; lines of the log that a continued run will write again go."""
        self.path.mkdir(parents=True, exist_ok=True)
        _write_whole(self.path / "config.json", config.model_dump_json(indent=1))
        log = self.path / "log.jsonl"
        if log.exists():
            rows = [line for line in log.read_text().splitlines() if _iteration(line) < first]
            _write_whole(log, "".join(line + "\n" for line in rows))

    def log(self, row: dict[str, Any]) -> None:
        path = self.path / "log.jsonl"
        with writing(path), path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def store(self, model: GLMDNet, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """Everything that a continued run needs beside the configuration."""
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
        content = io.BytesIO()  # as torch would hide that a disk is full
        torch.save(state, content)
        with whole_file(self.last) as partial:
            partial.write_bytes(content.getbuffer())

    def restore(self, model: GLMDNet, optimizer: torch.optim.Optimizer) -> int:
        """Load what `store` wrote; returns the iteration to go on with, 0 where nothing was stored.

        Raises: CheckpointError if the file is damaged, or is of a run with another model.
        """
        if not self.last.exists():
            return 0
        try:
            state = read_torch(self.last)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            return int(state["iteration"])
        except Exception as error:  # what was damaged may have become anything
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise CheckpointError(
                f"{self.last} does not continue this configuration: expected its own run's state, got {reason!r}. "
                "Choose another output, or move the damaged folder away."
            ) from error


def _write_whole(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text)


def _differences(config: TrainConfig, record: Path) -> list[str]:
    """Names of the settings in which `config` is not the run's; none where the record is lost."""
    try:
        began = read_json(record)
    except (OSError, ValueError):
        return []
    now = config.model_dump(mode="json")
    return [key for key in now if key not in _FREE and _portable(now[key]) != _portable(began.get(key))]


def _portable(value: Any) -> Any:
    """The value with paths cut to their last part, as a run may go on where the data lies elsewhere."""
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    return Path(value).name if isinstance(value, str) else value


def _iteration(line: str) -> float:
    """Of a line of the log; a line that was cut by a kill counts as the latest."""
    try:
        return parse_json(line)["iteration"]
    except ValueError:
        return float("inf")
