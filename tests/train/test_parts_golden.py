"""Predictor with CRD, affine layer and gradient decoupling against the published implementation (goldens d, e)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from glmd_train.model.decouple import AffineLayer, scale_gradient
from glmd_train.model.roi_heads import BoxPredictor
from tests.conftest import golden
from tests.train.golden_maps import PREDICTOR, state


def close(actual: torch.Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), wanted, rtol=0, atol=2e-6 * max(1, np.abs(wanted).max()))


def predictor(arrays: dict[str, np.ndarray], dropout: float) -> BoxPredictor:
    module = BoxPredictor(64, 11, crd=True, dropout=dropout)
    own = module.state_dict()
    module.load_state_dict({k: v.reshape(own[k].shape) for k, v in state(arrays, PREDICTOR).items()})
    return module


def test_predictor_with_crd() -> None:
    arrays = golden("d_crd_predictor")
    module = predictor(arrays, dropout=0.8).eval()
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    close(module.cls_gate(x), arrays["eval/feature_cls"])
    close(module.box_gate(x), arrays["eval/feature_reg"])
    logits, deltas = module(x)
    close(logits, arrays["eval/logits"])
    close(deltas.flatten(1), arrays["eval/deltas"])
    close(logits.softmax(1), arrays["eval/probs"])
    graded = (logits * torch.from_numpy(arrays["eval/grad_logits"])).sum()
    (graded + (deltas.flatten(1) * torch.from_numpy(arrays["eval/grad_deltas"])).sum()).backward()
    close(x.grad, arrays["eval/grad_x"])


def test_dropout_is_on_the_classifier_only(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = golden("d_crd_predictor")
    kept = torch.from_numpy(arrays["dropout/keep_mask"])
    monkeypatch.setattr(F, "dropout", lambda x, p, training, inplace: x * kept / (1 - p) if training else x)
    module = predictor(arrays, dropout=0.8).train()
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    logits, deltas = module(x)
    close(logits, arrays["dropout/logits"])
    close(deltas.flatten(1), arrays["dropout/deltas"])
    graded = (logits * torch.from_numpy(arrays["eval/grad_logits"])).sum()
    (graded + (deltas.flatten(1) * torch.from_numpy(arrays["eval/grad_deltas"])).sum()).backward()
    close(x.grad, arrays["dropout/grad_x"])


def test_predictor_without_crd_sees_the_pooled_vector_itself() -> None:
    module = BoxPredictor(8, 3, crd=False, dropout=0.0)
    x = torch.randn(5, 8)
    logits, deltas = module(x)
    assert torch.equal(logits, module.cls_score(x)) and deltas.shape == (5, 3, 4)
    assert module(x[:0])[1].shape == (0, 3, 4)


@pytest.mark.parametrize("factor", [0.0, 0.01, 0.75, 1.0])
@pytest.mark.parametrize("kind", ["bias", "nobias"])
def test_affine_after_decoupling(kind: str, factor: float) -> None:
    arrays = {k.removeprefix(f"{kind}/"): v for k, v in golden("e_affine_gdl").items() if k.startswith(kind)}
    layer = AffineLayer(24, bias=kind == "bias")
    layer.load_state_dict({k[2:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("w/")})
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    out = layer(scale_gradient(x, factor))
    (out * torch.from_numpy(arrays["grad_out"])).sum().backward()
    wanted = {k.removeprefix(f"lambda_{factor}/"): v for k, v in arrays.items() if k.startswith(f"lambda_{factor}/")}
    np.testing.assert_allclose(out.detach(), wanted["out"], atol=1e-6)
    np.testing.assert_allclose(x.grad, wanted["grad_x"], atol=1e-6)
    for name, parameter in layer.named_parameters():
        np.testing.assert_allclose(parameter.grad, wanted[f"grad_{name}"], rtol=1e-5, atol=1e-5)
