"""Checkpoints: one safetensors file with the weights and, as its metadata, everything needed to use them.

Files of torch.save are read as well; they hold weights alone, so the rest must be told (see `state_dict`).
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from glmd_runtime.errors import CheckpointError
from glmd_runtime.files.documents import parse_json
from glmd_runtime.files.scratch import whole_file
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.classifier import Pcb
from glmd_train.config import ModelConfig
from glmd_train.given import WEIGHTS_ALONE, check_checkpoint
from glmd_train.model.detector import GLMDNet, build_model
from glmd_train.official.names import published_name
from glmd_train.official.weights import check_told, from_official, is_official
from glmd_train.state_dict import as_float, check_fit, describe, read_state_dict

FORMAT = "glmd-checkpoint-1"
# What a user gets without asking: few false alarms. Evaluation uses its own, lower threshold.
DEFAULT_SCORE = 0.3
_PCB = "pcb."  # in front of the names of PCB's tensors
# The rows of the predictor: (parameter, rows a class)
_PREDICTOR = {"cls_score": 1, "bbox_pred": 4}


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and its contract.

    provenance  free text for the card: data, command, commit, scores
    pcb         prototypical calibration, where `glmd-train prototypes` added it
    """

    model: GLMDNet
    config: ModelConfig
    preprocess: PreprocessSpec
    postprocess: PostprocessSpec
    provenance: dict[str, Any] = field(default_factory=dict)
    pcb: Pcb | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names


def save_checkpoint(path: Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float16) -> Path:
    """Write the file whole or not at all; weights are stored in `dtype` (half by default: 8 MB for the light model).

    Those that are too large for it stay as they are. Raises: CheckpointError for weights that are no numbers.
    """
    contract = {
        "format": FORMAT,
        "model": checkpoint.config.model_dump(mode="json"),
        "preprocess": checkpoint.preprocess.to_dict(),
        "postprocess": checkpoint.postprocess.to_dict(),
        "provenance": checkpoint.provenance,
    }
    weights = {k: _stored(v.detach().cpu(), dtype) for k, v in checkpoint.model.state_dict().items()}
    if checkpoint.pcb:  # as it is: prototypes belong to these very weights
        contract["pcb"], tensors = checkpoint.pcb.to_tensors()
        weights |= {_PCB + k: v.contiguous() for k, v in tensors.items()}
    _check_finite(weights, path)
    with whole_file(path) as partial:  # written by us: the library's own file is readable for its owner only
        partial.write_bytes(save(weights, metadata={"glmd": json.dumps(contract)}))
    return path


def _stored(weights: Tensor, dtype: torch.dtype) -> Tensor:
    smaller = weights.to(dtype)
    return (smaller if smaller.isfinite().all() else weights).contiguous()


def _check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    if wrong := [name for name, values in weights.items() if not values.isfinite().all()]:
        raise CheckpointError(
            f"{path} would hold, or holds, weights that are no numbers: NaN or infinity in {', '.join(wrong[:3])}, "
            f"{len(wrong)} of {len(weights)} tensors. Use a checkpoint from before, or train again at a lower rate."
        )


def load_checkpoint(path: Path, *, config: Path | None = None, classes: Path | None = None) -> Checkpoint:
    """Read a .safetensors checkpoint, or weights in a .pth (.pt) or .pkl file; in eval mode, float32, on the CPU.

    Weights are ours, or those of the published GLMDNet, of DeFRCN, or of a C4 detector of detectron2.
    Args: config (a training's YAML, ours or theirs) or classes (one name a line), for files of weights only: see
        `state_dict.describe`.
    Raises: CheckpointError if the file is missing, damaged, not ours, does not fit its own configuration, or holds
        weights that are no numbers;
        UsageError if `config` or `classes` is lacking, contradicts the weights, or is given for a .safetensors file.
    """
    check_checkpoint(path, config, classes)
    return _load_pth(path, config, classes) if path.suffix in WEIGHTS_ALONE else _load_safetensors(path)


def _load_pth(path: Path, config: Path | None, classes: Path | None) -> Checkpoint:
    stored = read_state_dict(path)
    published = is_official(stored)
    weights = from_official(stored) if published else stored
    network = describe(weights, path, config, classes)
    _check_finite(weights, path)
    model = _filled(network.model, weights, path, published_name if published else str)
    check_told(stored, model, network.preprocess.spec(), path)
    postprocess = PostprocessSpec((DEFAULT_SCORE,) * len(network.model.class_names))
    told = next(file.name for file in (config, classes) if file)
    return Checkpoint(model.eval(), network.model, network.preprocess.spec(), postprocess, {"described_by": told})


def _load_safetensors(path: Path) -> Checkpoint:
    contract, tensors = _read(path)
    weights = {k: v for k, v in tensors.items() if not k.startswith(_PCB)}
    try:
        config = ModelConfig.model_validate(contract["model"])
        preprocess = PreprocessSpec.from_dict(contract["preprocess"])
        postprocess = PostprocessSpec.from_dict(contract["postprocess"])
        if preprocess.channels != config.in_channels or len(postprocess.score_thresholds) != len(config.class_names):
            raise ValueError("means or score thresholds are not as many as the model's channels or classes")
        pcb = _load_pcb(contract, tensors, path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # ValidationError is a ValueError
        raise CheckpointError(f"{path} has a contract this version cannot read: {error}") from error
    model = _filled(config, weights, path)
    return Checkpoint(model.eval(), config, preprocess, postprocess, contract.get("provenance", {}), pcb)


def _filled(
    config: ModelConfig, weights: Mapping[str, Tensor], path: Path, name: Callable[[str], str] = str
) -> GLMDNet:
    """A model with the weights of a file; made only where the file has as much as the configuration says.

    name: how the file calls a parameter of ours. Raises: CheckpointError.
    """
    with torch.device("meta"):  # shapes that take no memory, for a few bytes can ask for more than there is
        check_fit(build_model(config).state_dict(), weights, path, name)
    model = build_model(config)
    model.load_state_dict(weights)
    return model


def _load_pcb(contract: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> Pcb | None:
    if "pcb" not in contract:
        return None
    own = {k.removeprefix(_PCB): v for k, v in tensors.items() if k.startswith(_PCB)}
    return Pcb.from_tensors(contract["pcb"], own, str(path))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path.open("rb").close()  # safetensors says of a file that may not be read that it is not there
    try:
        with safe_open(path, "pt") as file:
            contract = parse_json((file.metadata() or {}).get("glmd", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a safetensors checkpoint, or is damaged: {error}") from error
    told = contract.get("format") if isinstance(contract, dict) else contract
    if told != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of this project: expected format {FORMAT!r} in its metadata, "
            f"got {reprlib.repr(told)}."
        )
    weights = as_float(tensors, path)
    _check_finite(weights, path)
    return contract, weights


def stored_dtype(path: Path) -> torch.dtype:
    """In which a .safetensors checkpoint holds the network's weights: to write them again without loss."""
    with safe_open(path, "pt") as file:
        return next(file.get_tensor(key).dtype for key in file.keys() if not key.startswith(_PCB))  # noqa: SIM118


def reshape(
    checkpoint: Checkpoint, *, size_hw: tuple[int, int] | None = None, proposals: int | None = None
) -> Checkpoint:
    """The same weights for another canvas, (height, width) in pixels, and another number of proposals an image.

    The checkpoint that is given stays as it is; None keeps what it has.
    """
    spec, config = checkpoint.preprocess, checkpoint.config
    if size_hw:
        spec = replace(spec, size_hw=size_hw, resize="letterbox")
    if proposals:
        config = config.model_copy(update={"proposals": proposals})
    model = build_model(config).eval()
    model.load_state_dict(checkpoint.model.state_dict())
    return replace(checkpoint, model=model, config=config, preprocess=spec)


def transfer(
    source: Checkpoint, model: GLMDNet, class_names: tuple[str, ...], unknown: Literal["fresh", "mean"] = "fresh"
) -> None:
    """Start `model` from another checkpoint: everything but the predictor as it is, the predictor's rows by class name.

    Background is carried over. Classes that the source does not know keep their fresh initialisation, or begin as the
    mean of its classes: as an object of whatever kind, whose box is known.
    Raises: CheckpointError if the two architectures differ elsewhere.
    """
    own, theirs = model.state_dict(), source.model.state_dict()
    predictor = {k for k in own if any(f"predictor.{name}." in k for name in _PREDICTOR)}
    wrong = [k for k in own if k not in predictor and (k not in theirs or theirs[k].shape != own[k].shape)]
    if wrong or set(theirs) - set(own):
        raise CheckpointError(f"The start weights are for another architecture; first difference: {wrong[:3]}.")
    rows = {k: _rows(k, own[k], theirs[k], source.class_names, class_names, unknown) for k in predictor}
    model.load_state_dict({k: rows.get(k, theirs.get(k)) for k in own})


def _rows(
    key: str, own: Tensor, theirs: Tensor, old: tuple[str, ...], new: tuple[str, ...], unknown: str
) -> Tensor:
    """One predictor parameter with the rows of shared classes (and background) copied."""
    rows = next(n for name, n in _PREDICTOR.items() if f".{name}." in key)
    out = own.clone().reshape(-1, rows, *own.shape[1:])  # (K or K + 1, rows, ...)
    source = theirs.reshape(-1, rows, *theirs.shape[1:])
    for index, name in enumerate(new):
        if name in old:
            out[index] = source[old.index(name)]
        elif unknown == "mean":
            out[index] = source[: len(old)].mean(dim=0)
    if len(out) > len(new):  # the classifier's last row is background
        out[-1] = source[-1]
    return out.reshape(own.shape)
