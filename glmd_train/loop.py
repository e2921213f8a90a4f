"""The training loop, readable from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from glmd_runtime.errors import GlmdError, UnsupportedError, UsageError
from glmd_runtime.postprocess import PostprocessSpec
from glmd_train.checkpoint import DEFAULT_SCORE, Checkpoint, load_checkpoint, save_checkpoint, transfer
from glmd_train.config import TrainConfig
from glmd_train.data.loaders import Batch, Slots, TrainingSet, collate, load_records, lost_workers, training_loader
from glmd_train.evaluate import evaluate, torch_predict
from glmd_train.model.backbone import load_imagenet
from glmd_train.model.detector import GLMDNet, build_model
from glmd_train.model.resnet import measure_statistics
from glmd_train.official.weights import load_start_weights
from glmd_train.training.machine import compute_in_halves, keep_freed_memory
from glmd_train.training.optimizer import build_optimizer, freeze_parts, set_rate
from glmd_train.training.run_folder import RunFolder

LOG_EVERY = 20  # iterations


def fit(config: TrainConfig, resume: bool = False) -> Path:
    """Train, evaluate, and write `config.output`/model.safetensors; `RunFolder` says what else is there.

    A run that was stopped and is resumed gives the weights that it would have given without the stop: pictures, random
    samples and dropout follow from the seed and the iteration alone.
    Raises: UsageError if the folder holds another run, GlmdError when a loss is not finite or a worker was ended.
    """
    folder = RunFolder(config.output)
    folder.check(config, resume)
    keep_freed_memory()
    fabric = start_fabric(config)
    fabric.seed_everything(config.seed, verbose=False)
    names, spec = config.model.class_names, config.preprocess.spec()
    pictures = TrainingSet(config.train, names, spec, config.augment, config.seed)
    validation = {data.annotations: load_records(data, names) for data in config.val}

    model, known = start_model(config, pictures)
    pictures.check_classes(known)
    freeze_parts(model.to(memory_format=torch.channels_last), config)
    if config.precision == "bf16-mixed":
        compute_in_halves(model.backbone, model.roi_heads.res5)
    optimizer = build_optimizer(model, config)
    wrapped, optimizer = fabric.setup(model, optimizer)
    wrapped.mark_forward_method("losses")
    # After the set-up, which moves the parameters to their device: the optimizer's state follows them there.
    first = restored(folder, fabric, model, optimizer)
    loader = fabric.setup_dataloaders(share(pictures, fabric, config, first), use_distributed_sampler=False)
    if fabric.is_global_zero:
        folder.begin(config, first)
    checkpoint = Checkpoint(
        model, config.model, replace(spec, statistics=pictures.statistics()),
        PostprocessSpec((DEFAULT_SCORE,) * len(names)), provenance(config, known),
    )

    wrapped.train()
    saved = time.monotonic()
    with progress_bar(fabric.is_global_zero) as bar, lost_workers():
        task = bar.add_task("", total=config.iterations, completed=first)
        for iteration, parts in enumerate(in_parts(loader, config.accumulate), start=first):
            set_rate(optimizer, iteration, config)
            values = train_step(fabric, wrapped, optimizer, parts, config, iteration)
            bar.update(task, advance=1, description=" ".join(f"{n} {v:.3f}" for n, v in values.items()))
            done = iteration + 1
            if not fabric.is_global_zero:
                continue
            if iteration % LOG_EVERY == 0:
                fabric.log_dict({**values, "rate": optimizer.param_groups[0]["lr"]}, step=iteration)
                folder.log({"iteration": iteration, **values})
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save_checkpoint(folder.model, checkpoint)  # first, as it refuses weights that are no numbers
                folder.store(model, optimizer, done)
                saved = time.monotonic()
            if config.eval_every and done % config.eval_every == 0 and done < config.iterations:
                folder.log({"iteration": done, "scores": validate(checkpoint, validation)})

    if fabric.is_global_zero:
        save_checkpoint(folder.model, checkpoint)
        folder.store(model, optimizer, config.iterations)
        checkpoint.provenance["scores"] = validate(checkpoint, validation)
        folder.log({"iteration": config.iterations, "scores": checkpoint.provenance["scores"]})
        save_checkpoint(folder.model, checkpoint)
    fabric.print(f"Trained: {folder.model}")
    return folder.model


def train_step(
    fabric: Fabric, wrapped: Any, optimizer: Any, parts: Sequence[Batch], config: TrainConfig, iteration: int
) -> dict[str, float]:
    """One step of the optimizer on the batches of one iteration.

    Returns: the losses by name, means over the parts and processes.
    Raises: GlmdError when a loss or gradient is not finite; the weights are then as before.
    """
    torch.manual_seed(seed_of(config.seed, iteration, fabric.global_rank))  # of the dropout
    sums: dict[str, torch.Tensor] = {}
    for number, (images, valid_hw, targets) in enumerate(parts):
        with fabric.no_backward_sync(wrapped, enabled=number + 1 < config.accumulate):
            targets = [target.to(fabric.device) for target in targets]
            losses = wrapped.losses(images.contiguous(memory_format=torch.channels_last), valid_hw, targets)
            fabric.backward(torch.stack(list(losses.values())).sum() / config.accumulate)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + loss.detach() / config.accumulate
    values = mean_over_processes(fabric, sums)
    # Without a limit this only measures: the factor on the gradients is then 1.
    limit = config.clip_norm or math.inf
    norm = fabric.clip_gradients(wrapped, optimizer, max_norm=limit, error_if_nonfinite=False)
    if not np.isfinite([*values.values(), norm.item()]).all():
        images = [target.name for *_, targets in parts for target in targets]
        raise not_finite(iteration, {**values, "gradient norm": norm.item()}, images)
    optimizer.step()
    optimizer.zero_grad()
    return values


def start_fabric(config: TrainConfig) -> Fabric:
    """Devices and processes as the configuration asks. Raises: UnsupportedError if they are not here."""
    try:
        fabric = Fabric(
            accelerator=config.accelerator, devices=config.devices, num_nodes=config.nodes,
            loggers=TensorBoardLogger(config.output, name="tensorboard", version=""),
        )
        fabric.launch()
    except (RuntimeError, ValueError, ModuleNotFoundError) as error:
        asked = f"accelerator {config.accelerator!r}, devices {config.devices!r}, nodes {config.nodes}"
        raise UnsupportedError(f"Training cannot start with {asked} here: {error}") from error
    return fabric


def part_size(config: TrainConfig, processes: int) -> int:
    """Pictures that one process computes at a time. Raises: UsageError if they cannot be shared out equally."""
    parts = processes * config.accumulate
    if config.batch_size % parts:
        raise UsageError(
            f"batch_size {config.batch_size} cannot be shared out equally: expected a multiple of {parts}, that is "
            f"{processes} processes times accumulate {config.accumulate}. Change batch_size or accumulate."
        )
    return config.batch_size // parts


def share(pictures: TrainingSet, fabric: Fabric, config: TrainConfig, first: int) -> DataLoader[Batch]:
    """The pictures that this process computes, from iteration `first` on. Raises: as `part_size`."""
    part = part_size(config, fabric.world_size)
    slots = Slots(
        first, config.iterations, part=part, accumulate=config.accumulate,
        rank=fabric.global_rank, processes=fabric.world_size,
    )
    return training_loader(pictures, slots, config.workers)


def restored(folder: RunFolder, fabric: Fabric, model: GLMDNet, optimizer: Any) -> int:
    """The iteration to go on with. Raises: UsageError if not every process finds the same state."""
    first = folder.restore(model, optimizer)
    everywhere = fabric.all_gather(torch.tensor(first)).flatten().tolist()
    if len(set(everywhere)) > 1:
        raise UsageError(
            f"Every node must see the run's folder {folder.path}; they would go on with the iterations "
            f"{sorted(set(everywhere))}. Give an output on a disk that all nodes share."
        )
    return first


def in_parts(loader: DataLoader[Batch], parts: int) -> Iterator[list[Batch]]:
    """The batches of each iteration."""
    batches = iter(loader)
    while batch := next(batches, None):
        yield [batch, *(next(batches) for _ in range(parts - 1))]


def seed_of(*numbers: int) -> int:
    """One seed that differs with each of the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def mean_over_processes(fabric: Fabric, values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Scalars by name; every process gets the same, and so takes the same decision."""
    mean = fabric.all_reduce(torch.stack(list(values.values())), reduce_op="mean")
    return dict(zip(values, mean.tolist(), strict=True))


def not_finite(iteration: int, values: dict[str, float], images: list[str]) -> GlmdError:
    table = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return GlmdError(
        f"Loss or gradient is not finite at iteration {iteration}: {table}; image ids of this process: "
        f"{', '.join(images)}. "
        "Lower learning_rate, lengthen warmup, or look at these pictures; the run's folder keeps what was saved last."
    )


def start_model(config: TrainConfig, pictures: TrainingSet) -> tuple[GLMDNet, tuple[str, ...]]:
    """A model with the start weights that the configuration asks for, and the classes that these know."""
    model = build_model(config.model)
    if isinstance(config.weights, Path):
        return model, _start_from(config.weights, model, config)
    if config.predictor == "mean":
        raise UsageError(f"predictor: mean needs start weights with class names; {config.weights!r} has none.")
    if config.weights == "imagenet":
        if config.model.backbone != "lite0":
            raise UsageError(
                f"weights: 'imagenet' is for the backbone lite0. For {config.model.backbone} give the path of "
                "detectron2's R-50.pkl or R-101.pkl, or 'random'."
            )
        load_imagenet(model.backbone, model.roi_heads.res5, config.preprocess.std)
    elif config.model.resnet is not None:
        images, *_ = collate([pictures[i] for i in range(config.batch_size)])
        measure_statistics(model.backbone, model.roi_heads.res5, images)
    return model, ()


def _start_from(weights: Path, model: GLMDNet, config: TrainConfig) -> tuple[str, ...]:
    if not weights.is_file():
        raise UsageError(f"weights: {weights} does not exist. Give a checkpoint's path, 'imagenet' or 'random'.")
    predictor = model.roi_heads.predictor
    fresh = [(layer, deepcopy(layer.state_dict())) for layer in (predictor.cls_score, predictor.bbox_pred)]
    known: tuple[str, ...] = ()
    if weights.suffix == ".safetensors":
        source = load_checkpoint(weights)
        transfer(source, model, config.model.class_names, "mean" if config.predictor == "mean" else "fresh")
        known = source.class_names
    elif config.predictor == "mean":
        raise UsageError(f"predictor: mean needs start weights with class names; {weights} has none. Use reset.")
    else:
        load_start_weights(weights, model)
    if config.predictor == "reset":  # the published surgery from base to novel classes
        for layer, state in fresh:
            layer.load_state_dict(state)
    return known


def validate(checkpoint: Checkpoint, validation: dict[Path, list[Any]]) -> dict[str, Any]:
    """Score every validation set; returns the scores by folder and file name."""
    checkpoint.model.eval()
    predict = torch_predict(checkpoint)
    scores = {
        f"{path.parent.name}/{path.stem}": evaluate(predict, records, checkpoint.class_names).to_dict()
        for path, records in validation.items()
    }
    checkpoint.model.train()
    return scores


def provenance(config: TrainConfig, known: tuple[str, ...]) -> dict[str, Any]:
    """What the checkpoint's card says of its making; paths are cut to data set and file.

    known: classes of the start weights. Of a model that began with others the rest are novel.
    """
    base = {"base_classes": [name for name in config.model.class_names if name in known]} if known else {}
    return {
        "train": [f"{d.annotations.parent.name}/{d.annotations.name}" for d in config.train],
        "start": config.weights.name if isinstance(config.weights, Path) else config.weights,
        **base,
        "iterations": config.iterations,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def progress_bar(shown: bool) -> Progress:
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    return Progress(*columns, disable=not shown, refresh_per_second=2)
