"""The training loop, readable from top to bottom."""

from __future__ import annotations

import json
import math
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from glmd_runtime.errors import CheckpointError, GlmdError, UnsupportedError, UsageError
from glmd_runtime.postprocess import PostprocessSpec
from glmd_train.checkpoint import DEFAULT_SCORE, Checkpoint, load_checkpoint, save_checkpoint, transfer
from glmd_train.config import TrainConfig
from glmd_train.data.coco import load_coco
from glmd_train.data.loaders import TrainingStream, training_loader
from glmd_train.evaluate import evaluate, torch_predict
from glmd_train.model.backbone import load_imagenet
from glmd_train.model.detector import GLMDNet, build_model

LOG_EVERY = 20  # iterations


def fit(config: TrainConfig, resume: bool = False) -> Path:
    """Train, evaluate, and write `config.output`/model.safetensors.

    The output folder also gets config.json, last.pt (to resume from), log.jsonl and the TensorBoard files.
    Raises: UsageError if the folder holds another run, GlmdError when a loss is not finite.
    """
    last = config.output / "last.pt"
    if last.exists() and not resume:
        raise UsageError(f"{config.output} holds a run already. Continue it with --resume, or choose another output.")
    if resume and not last.exists():
        raise UsageError(f"--resume expects a run in {config.output}; it holds no {last.name}. Start without --resume.")
    fabric = start_fabric(config)
    fabric.seed_everything(config.seed + fabric.global_rank, verbose=False)
    names = config.model.class_names
    spec = config.preprocess.spec()
    stream = TrainingStream(config.train, names, spec, config.augment, config.seed, fabric.global_rank)
    for dataset in config.val:
        load_coco(dataset.annotations, names, dataset.images)  # a wrong file is an error now, not after the training

    model = start_model(config).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config)
    wrapped, optimizer = fabric.setup(model, optimizer)
    wrapped.mark_forward_method("losses")
    # After the set-up, which moves the parameters to their device: the optimizer's state follows them there.
    first = restore(last, model, optimizer) if last.exists() else 0
    if fabric.is_global_zero:
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / "config.json").write_text(config.model_dump_json(indent=1))
    stream.start = first
    loader = fabric.setup_dataloaders(training_loader(stream, config.batch_size, config.workers))
    checkpoint = Checkpoint(
        model, config.model, spec, PostprocessSpec((DEFAULT_SCORE,) * len(names)), provenance(config)
    )

    wrapped.train()
    saved = time.monotonic()
    with progress_bar(fabric.is_global_zero) as bar:
        task = bar.add_task("", total=config.iterations, completed=first)
        for iteration, (images, valid_hw, targets) in enumerate(loader, start=first):
            if iteration >= config.iterations:
                break
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(iteration, config)
            targets = [target.to(fabric.device) for target in targets]
            losses = wrapped.losses(images.contiguous(memory_format=torch.channels_last), valid_hw, targets)
            total = torch.stack(list(losses.values())).sum()
            values = {name: value.item() for name, value in losses.items()}
            if not math.isfinite(sum(values.values())):
                raise GlmdError(f"The loss is not finite at iteration {iteration}: {values}. Lower learning_rate.")
            fabric.backward(total)
            fabric.clip_gradients(wrapped, optimizer, max_norm=config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()

            bar.update(task, advance=1, description=" ".join(f"{n} {v:.3f}" for n, v in values.items()))
            done = iteration + 1
            if not fabric.is_global_zero:
                continue
            if iteration % LOG_EVERY == 0:
                fabric.log_dict({**values, "rate": optimizer.param_groups[0]["lr"]}, step=iteration)
                log(config.output, {"iteration": iteration, **values})
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                store(last, model, optimizer, done)
                save_checkpoint(config.output / "model.safetensors", checkpoint)
                saved = time.monotonic()
            if config.eval_every and done % config.eval_every == 0 and done < config.iterations:
                validate(checkpoint, config, done)

    if fabric.is_global_zero:
        store(last, model, optimizer, config.iterations)
        save_checkpoint(config.output / "model.safetensors", checkpoint)
        checkpoint.provenance["scores"] = validate(checkpoint, config, config.iterations)
        save_checkpoint(config.output / "model.safetensors", checkpoint)
    fabric.print(f"Trained: {config.output / 'model.safetensors'}")
    return config.output / "model.safetensors"


def start_fabric(config: TrainConfig) -> Fabric:
    """Devices, precision and processes as the configuration asks. Raises: UnsupportedError if they are not here."""
    try:
        fabric = Fabric(
            accelerator=config.accelerator, devices=config.devices, precision=config.precision,
            loggers=TensorBoardLogger(config.output, name="tensorboard", version=""),
        )
        fabric.launch()
    except (RuntimeError, ValueError, ModuleNotFoundError) as error:
        asked = f"accelerator {config.accelerator!r}, devices {config.devices!r}, precision {config.precision!r}"
        raise UnsupportedError(f"Training cannot start with {asked} here: {error}") from error
    return fabric


def start_model(config: TrainConfig) -> GLMDNet:
    """A model with the start weights that the configuration asks for."""
    model = build_model(config.model)
    if isinstance(config.weights, Path):
        transfer(load_checkpoint(config.weights), model, config.model.class_names)
    elif config.weights == "imagenet":
        load_imagenet(model.backbone, model.roi_heads.res5, config.preprocess.std)
    return model


def build_optimizer(model: GLMDNet, config: TrainConfig) -> torch.optim.Optimizer:
    """Four groups: trunk and res5 at their own rate, the rest; weight decay on matrices only."""
    pretrained = {id(p) for part in (model.backbone, model.roi_heads.res5) for p in part.parameters()}
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault((id(parameter) in pretrained, parameter.ndim > 1), []).append(parameter)
    rows: list[dict[str, Any]] = [
        {
            "params": parameters,
            "peak": config.learning_rate * (config.backbone_rate if from_imagenet else 1),
            "weight_decay": config.weight_decay if is_matrix else 0.0,
        }
        for (from_imagenet, is_matrix), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(rows, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(rows, lr=config.learning_rate)


def schedule(iteration: int, config: TrainConfig) -> float:
    """Factor on the learning rate: linear warm-up from 1/1000, then cosine to 0 or a drop by 10 at each step."""
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * iteration / config.iterations))
    else:
        factor = 0.1 ** sum(step <= iteration for step in config.steps)
    if iteration >= config.warmup:
        return factor
    return factor * (0.001 + 0.999 * iteration / config.warmup)


def validate(checkpoint: Checkpoint, config: TrainConfig, iteration: int) -> dict[str, Any]:
    """Score every validation set; the result is logged and returned by file name."""
    checkpoint.model.eval()
    predict = torch_predict(checkpoint)
    scores = {}
    for dataset in config.val:
        records = load_coco(dataset.annotations, checkpoint.class_names, dataset.images)
        key = f"{dataset.annotations.parent.name}/{dataset.annotations.stem}"
        scores[key] = evaluate(predict, records, checkpoint.class_names).to_dict()
    log(config.output, {"iteration": iteration, "scores": scores})
    checkpoint.model.train()
    return scores


def provenance(config: TrainConfig) -> dict[str, Any]:
    """What the checkpoint's card says of its making; paths are cut to data set and file."""
    return {
        "train": [f"{d.annotations.parent.name}/{d.annotations.name}" for d in config.train],
        "start": config.weights.name if isinstance(config.weights, Path) else config.weights,
        "iterations": config.iterations,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def log(output: Path, row: dict[str, Any]) -> None:
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def store(path: Path, model: GLMDNet, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    """Everything a resumed run needs, written whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}, partial)
    partial.replace(path)


def restore(path: Path, model: GLMDNet, optimizer: torch.optim.Optimizer) -> int:
    """Load what `store` wrote; returns the iteration to go on with.

    Raises: CheckpointError if the file is damaged, or is of a run with another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["iteration"])
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} does not continue this configuration: expected its own run's state, got {reason!r}. "
            "Choose another output, or the configuration that began the run."
        ) from error


def progress_bar(shown: bool) -> Progress:
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    return Progress(*columns, disable=not shown, refresh_per_second=2)
