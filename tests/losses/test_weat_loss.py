"""WEAT's and MART's losses on logits: the published formulas, weights, gradients, input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from assay.losses import MARTLoss, WEATLoss, energy_weights
from assay.losses.energies import joint_energy, marginal_energy
from assay.papers.weat import released
from assay.runtime.errors import InputError


def pair(seed: int, n: int = 30, c: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z, z_adv = (scale * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return z, z_adv, torch.randint(c, (n,), generator=g)


@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(0.01, 30))
def test_cross_entropy_in_energies(seed: int, c: int, scale: float) -> None:
    z, _, y = pair(seed, c=c, scale=scale)
    expected = F.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(joint_energy(z, y) - marginal_energy(z), expected, rtol=1e-12, atol=1e-11)


def test_weights_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-400.0, -500.0], [1e4, 0.0]], dtype=torch.float64)
    size = torch.tensor([np.log(2), 3 + np.log1p(np.exp(-2)), 400.0, 1e4])
    torch.testing.assert_close(energy_weights(logits), 1 / F.softplus(size))
    centred = torch.log_softmax(logits, 1)
    torch.testing.assert_close(energy_weights(centred), torch.full((4,), 1 / np.log(2), dtype=torch.float64))


def test_weights_see_the_level_of_the_logits_and_probabilities_do_not() -> None:
    z, _, _ = pair(0)
    torch.testing.assert_close((z + 5).softmax(1), z.softmax(1))
    assert float((energy_weights(z + 5) - energy_weights(z)).abs().min()) > 1e-3


@pytest.mark.parametrize("variant", ["nat", "adv"])
def test_the_released_formula_and_its_stable_form(variant: str) -> None:
    z, z_adv, y = pair(1)
    expected = released(variant, 6.0, z.numpy(), z_adv.numpy(), y.numpy())  # type: ignore[arg-type]
    strict = WEATLoss(variant, strict_reference=True)(z, y, z_adv)  # type: ignore[arg-type]
    stable = WEATLoss(variant)(z, y, z_adv)  # type: ignore[arg-type]
    assert abs(float(strict) - expected) < 1e-12
    assert abs(float(stable) - expected) < 1e-6


def test_the_stable_form_keeps_gradients_that_the_released_one_loses() -> None:
    z, y = torch.zeros(1, 3), torch.tensor([0])
    slopes = []
    for strict in (False, True):
        z_adv = torch.tensor([[0.0, 60.0, 0.0]], requires_grad=True)
        WEATLoss(strict_reference=strict)(z, y, z_adv).backward()
        slopes.append(z_adv.grad)
    assert float(slopes[0][0, 0].abs()) > 1
    assert float(slopes[1][0, 0].abs()) < 1e-3


def test_weights_carry_no_gradient() -> None:
    z, z_adv, y = pair(2)
    z.requires_grad_()
    loss = WEATLoss()
    (found,) = torch.autograd.grad(loss(z, y, z_adv), z)
    each = F.cross_entropy(z, y, reduction="none")
    each = each + 6 * F.kl_div(z_adv.log_softmax(1), z.softmax(1), reduction="none").sum(1)
    (expected,) = torch.autograd.grad((energy_weights(z.detach()) * each).mean(), z)
    torch.testing.assert_close(found, expected)


def test_normalised_weights_have_mean_one() -> None:
    z, z_adv, y = pair(3)
    loss = WEATLoss(normalize=True)
    assert abs(float(loss.weights(z).mean()) - 1) < 1e-12
    ratio = loss(z, y, z_adv) / WEATLoss()(z, y, z_adv)
    torch.testing.assert_close(ratio, 1 / energy_weights(z).mean())


def test_mart_against_its_released_formula() -> None:
    z, z_adv, y = pair(4, scale=1.0)
    p, p_adv = z.softmax(1), z_adv.softmax(1)
    top = p_adv.argsort(1)[:, -2:]
    rival = torch.where(top[:, 1] == y, top[:, 0], top[:, 1])
    boosted = F.cross_entropy(z_adv, y) + F.nll_loss((1.0001 - p_adv + 1e-12).log(), rival)
    drift = F.kl_div((p_adv + 1e-12).log(), p, reduction="none").sum(1)
    expected = boosted + 6 * (drift * (1.0000001 - p.gather(1, y[:, None])[:, 0])).mean()
    assert abs(float(MARTLoss()(z, y, z_adv) - expected)) < 1e-3
    exact = F.cross_entropy(z_adv, y) + F.nll_loss((1 - p_adv).log(), rival)
    exact = exact + 6 * (drift * (1 - p.gather(1, y[:, None])[:, 0])).mean()
    torch.testing.assert_close(MARTLoss()(z, y, z_adv), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", [WEATLoss(), MARTLoss()])
def test_finite_with_gradients_for_extreme_logits(loss: torch.nn.Module) -> None:
    z, z_adv, y = pair(5)
    z, z_adv = (1e4 * t.float().sign() for t in (z, z_adv))
    z.requires_grad_(), z_adv.requires_grad_()
    value = loss(z, y, z_adv)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (z, z_adv)))


@pytest.mark.parametrize("cls", [WEATLoss, MARTLoss])
def test_bad_input(cls: type[torch.nn.Module]) -> None:
    z, z_adv, y = pair(6)
    nan = z.clone()
    nan[0, 0] = torch.nan
    for bad in ((z[0], y, z_adv), (z, y + 4, z_adv), (nan, y, z_adv), (z, y, z_adv[:, :3]), (z, y, nan), (z, y[1:], z)):
        with pytest.raises(InputError):
            cls()(*bad)
    for options in ({"reduction": "median"}, {"beta": -1.0}, {"beta": float("nan")}):
        with pytest.raises(InputError):
            cls(**options)


def test_unknown_variant() -> None:
    with pytest.raises(InputError, match="variant"):
        WEATLoss("both")  # type: ignore[arg-type]
