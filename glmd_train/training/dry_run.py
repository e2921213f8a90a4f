"""What a training would do, shown on its first picture: configuration, shapes, parameters, memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from glmd_train.config import TrainConfig
from glmd_train.data.loaders import TrainingSet, collate, load_records
from glmd_train.loop import part_size, start_model
from glmd_train.model.detector import GLMDNet
from glmd_train.training.optimizer import freeze_parts

_MIB = 2**20
# Copies of a trainable parameter beside itself: the gradient, then momentum or Adam's two moments.
_COPIES = {"sgd": 2, "adamw": 3}


@dataclass(frozen=True)
class DryRun:
    """configuration, in full; shapes of the first picture's tensors by part; parameters by part (all, trainable);
    pictures and objects by class in the training set; memory in MiB by use, of one device; losses of the first picture
    by name."""

    configuration: dict[str, Any]
    pictures: int
    objects: dict[str, int]
    shapes: dict[str, list[int]]
    parameters: dict[str, tuple[int, int]]
    memory: dict[str, float]
    losses: dict[str, float]


def dry_run(config: TrainConfig, processes: int = 1) -> DryRun:
    """Build the model, read the first picture and compute its losses; nothing is written.

    Args: processes, over which the pictures of an iteration will be shared out.
    Raises: what `loop.fit` does for a wrong configuration, wrong data and wrong start weights.
    """
    names, spec = config.model.class_names, config.preprocess.spec()
    pictures = TrainingSet(config.train, names, spec, config.augment, config.seed)
    for dataset in config.val:
        load_records(dataset, names)
    share = part_size(config, processes)
    images, valid_hw, targets = collate([pictures[0]])
    model, known = start_model(config, pictures)
    pictures.check_classes(known)
    freeze_parts(model, config)
    shapes = {"images": list(images.shape)}
    with _recorded(model, shapes), _saved_for_backward(model) as saved:
        losses = model.train().losses(images, valid_hw, targets)
    return DryRun(
        configuration=config.model_dump(mode="json"),
        pictures=len(pictures.records),
        objects=pictures.count_objects(),
        shapes=shapes,
        parameters=_parameters(model),
        memory=_memory(model, _COPIES[config.optimizer], sum(saved.values()) * share),
        losses={name: loss.item() for name, loss in losses.items()},
    )


@contextmanager
def _recorded(model: GLMDNet, shapes: dict[str, list[int]]) -> Iterator[None]:
    """Note the shape of what each part gives."""

    def note(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        shapes[name] = list(output.shape)

    parts = {"backbone": model.backbone, "neck": model.neck, "rpn": model.rpn.conv, "res5": model.roi_heads.res5}
    hooks = [part.register_forward_hook(partial(note, name)) for name, part in parts.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _saved_for_backward(model: GLMDNet) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps for the backward pass, by its address; not those of the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def _parameters(model: GLMDNet) -> dict[str, tuple[int, int]]:
    """(all, trainable) of every part and in total."""
    counts = {}
    for name, part in [*model.named_children(), ("total", model)]:
        sizes = [(p.numel(), p.requires_grad) for p in part.parameters()]
        counts[name] = (sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains))
    return counts


def _memory(model: GLMDNet, copies: int, activations: int) -> dict[str, float]:
    """MiB of float32; what libraries take for themselves comes on top."""
    total, trainable = _parameters(model)["total"]
    rows = {"weights": 4 * total, "gradients and optimizer": 4 * copies * trainable, "activations": activations}
    return {name: round(size / _MIB, 1) for name, size in {**rows, "sum": sum(rows.values())}.items()}
