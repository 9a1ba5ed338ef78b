"""ibp-tightness: what the shams change and keep, and the checks of the module itself."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from assay.certify import IBPTraining, init_tightness_theory
from assay.nets import MLP, SmallCNN
from assay.papers import ibp_tightness as paper
from assay.runtime.random import seeded


@pytest.mark.parametrize("make", [lambda: MLP(hidden=(12, 12)), lambda: SmallCNN((1, 14, 14), widths=(4, 6), hidden=8)])
def test_detached_radii_keep_the_value_and_change_the_gradient(make) -> None:
    with seeded(0, "test"):
        model = make()
        x = torch.rand(5, 1, 14, 14) if isinstance(model, SmallCNN) else torch.rand(5, 1, 8, 8)
    y, parameters = torch.arange(5), list(model.parameters())
    losses = {
        "method": IBPTraining().robust_loss(model, x, torch.full_like(x, 0.02), y),
        "reference": paper.reference_loss(model, x, torch.full_like(x, 0.02), y),
        "detached": paper._Detached().robust_loss(model, x, torch.full_like(x, 0.02), y),
    }
    grads = {k: torch.cat([g.flatten() for g in torch.autograd.grad(v, parameters)]) for k, v in losses.items()}
    for name in ("reference", "detached"):
        assert float(losses[name].detach()) == pytest.approx(float(losses["method"].detach()), rel=1e-5)
    assert torch.allclose(grads["reference"], grads["method"], rtol=1e-3, atol=1e-6)
    assert float((grads["detached"] - grads["method"]).norm() / grads["method"].norm()) > 0.1


def test_detached_gradient_of_a_linear_model_is_that_of_shifted_logits() -> None:
    with seeded(0, "test"):
        model, x, y = MLP(hidden=()), torch.rand(4, 1, 8, 8), torch.tensor([3, 1, 4, 1])
    w = model.head.weight
    shift = 0.1 * (w[y][:, None] - w).abs().sum(2).detach()
    expected = F.cross_entropy(model(x) + shift, y)
    found = paper.reference_loss(model, x, torch.full_like(x, 0.1), y, detached=True)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    (a,), (b,) = (torch.autograd.grad(v, [w]) for v in (found, expected))
    assert torch.allclose(a, b, atol=1e-6)


def test_without_the_square_root_theory_is_off_everywhere() -> None:
    rows = [{"arm": "width", "width": d, "depth": 2, "ratio": init_tightness_theory(d)} for d in (8, 512)]
    rows += [{"arm": "depth", "width": 64, "depth": n, "ratio": init_tightness_theory(64, n)} for n in (2, 3, 4)]
    right, wrong = (paper.beside_theory(rows, sham) for sham in (None, "wrong-width-power"))
    assert max(r.get("error", 0) for r in right) < 1e-12
    assert min(r["error"] for r in wrong if "error" in r) > 1
    assert right[-1]["depth_slope"] == pytest.approx(1)
    assert wrong[-1]["depth_slope"] == pytest.approx(0.5, abs=0.02)
    assert right[-1]["slope"] == pytest.approx(np.log(rows[1]["ratio"] / rows[0]["ratio"]) / math.log(64))


def test_invariance_holds_on_other_seeds() -> None:
    for seed in range(3):
        found = paper.invariance(seed, pairs=60)
        assert found["misjudged"] == 0
        assert found["loose"] < 1e-12
