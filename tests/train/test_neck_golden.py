"""The neck against numbers of the published implementation (goldens a, b, c; tolerances of tests/golden/README.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glmd_train.model.glmd import ContextModelling, GLMDNeck, LocalRefinement, attention_heads, sine_code
from tests.conftest import golden
from tests.train.golden_maps import CM, LR, NECK, renamed, state

OUTPUT_ATOL = 2e-5
GRADIENT_RTOL = 1e-5  # of the largest value of the array


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def close(actual: torch.Tensor, wanted: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("case", range(4))
def test_context_modelling(case: int) -> None:
    arrays = golden("a_cm")
    module = ContextModelling(32, int(arrays["nhead"]), dropout=0.1, published_batching=True).eval()
    module.load_state_dict(state(arrays, CM))
    x = tensor(arrays[f"case{case}/x"])
    coded = x + sine_code(*x.shape[1:])
    close(coded, arrays[f"case{case}/pass1_in"], OUTPUT_ATOL)
    close(module.along_rows(coded), arrays[f"case{case}/pass1_out"], OUTPUT_ATOL)
    close(module(x), arrays[f"case{case}/out"], OUTPUT_ATOL)


@pytest.mark.parametrize("case", [0, 2, 3])
def test_published_batching_changes_nothing_for_one_image(case: int) -> None:
    arrays = golden("a_cm")
    module = ContextModelling(32, int(arrays["nhead"]), dropout=0.1, published_batching=False).eval()
    module.load_state_dict(state(arrays, CM))
    close(module(tensor(arrays[f"case{case}/x"])), arrays[f"case{case}/out"], OUTPUT_ATOL)


@pytest.mark.parametrize("case", range(2))
def test_local_refinement(case: int) -> None:
    arrays = {k.removeprefix(f"case{case}/"): v for k, v in golden("b_lr").items()}
    module = LocalRefinement(32)
    module.load_state_dict(state(arrays, LR))
    x = tensor(arrays["x"]).requires_grad_()
    by_channel, by_place = module.depthwise(x), module.pointwise(x)
    close(by_channel, arrays["channel_branch_conv"], OUTPUT_ATOL)
    close(by_place, arrays["spatial_branch_conv"], OUTPUT_ATOL)
    close(module.channel_weights(by_channel), arrays["channel_gate"], OUTPUT_ATOL)
    close(module.spatial_weights(by_place), arrays["spatial_gate"], OUTPUT_ATOL)
    out = module(x)
    close(out, arrays["out"], OUTPUT_ATOL)
    check_gradients(module, x, out, arrays, LR)


@pytest.mark.parametrize("case", range(4))
def test_neck(case: int) -> None:
    arrays = {k.removeprefix(f"case{case}/"): v for k, v in golden("c_neck").items()}
    neck = GLMDNeck(48, published_batching=True).eval()
    neck.load_state_dict(state(arrays, NECK))
    x = tensor(arrays["x"]).requires_grad_()
    close(neck.context(x), arrays["cm"], OUTPUT_ATOL)
    close(neck.local(x), arrays["lr"], OUTPUT_ATOL)
    out = neck(x)
    close(out, arrays["out"], OUTPUT_ATOL)
    check_gradients(neck, x, out, arrays, NECK)


def check_gradients(
    module: torch.nn.Module, x: torch.Tensor, out: torch.Tensor, arrays: dict[str, np.ndarray], names: tuple[str, str]
) -> None:
    (out * tensor(arrays["grad_out"])).sum().backward()
    close(x.grad, arrays["grad_x"], GRADIENT_RTOL * np.abs(arrays["grad_x"]).max())
    parameters = dict(module.named_parameters())
    norms = [k for k in arrays if k.startswith("grad_norm/")]
    assert len(norms) == len(parameters)
    for key in norms:
        gradient = parameters[renamed(key.removeprefix("grad_norm/"), names)].grad
        assert float(gradient.double().norm()) == pytest.approx(float(arrays[key]), rel=1e-5), key


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ({"cm": False, "lr": False}, "none"),
        ({"cm": True, "lr": False}, "cm_only"),
        ({"cm": False, "lr": True}, "lr_only"),
    ],
)
def test_neck_without_parts(parts: dict[str, bool], wanted: str) -> None:
    arrays = golden("c_neck")
    neck = GLMDNeck(48, **parts).eval()
    own = neck.state_dict()
    neck.load_state_dict({k: v for k, v in state(arrays, NECK).items() if k in own})
    close(neck(tensor(arrays["case0/x"])), arrays[f"ablation/{wanted}"], OUTPUT_ATOL)


def test_neck_without_mdf_is_the_plain_sum() -> None:
    arrays = golden("c_neck")
    neck = GLMDNeck(48, mdf=False).eval()
    neck.load_state_dict({k: v for k, v in state(arrays, NECK).items() if k in neck.state_dict()})
    close(neck(tensor(arrays["case0/x"])), arrays["case0/cm"] + arrays["case0/lr"] + arrays["case0/x"], OUTPUT_ATOL)


@pytest.mark.parametrize("key", sorted(golden("c_posenc")))
def test_sine_code(key: str) -> None:
    height, width, channels = map(int, key.removeprefix("pe_").split("x"))
    close(sine_code(channels, height, width), golden("c_posenc")[key], 1e-6)


@pytest.mark.parametrize(("channels", "heads"), [(1024, 16), (112, 16), (40, 8), (12, 4), (6, 1)])
def test_attention_heads(channels: int, heads: int) -> None:
    assert attention_heads(channels) == heads
