"""Momentum, look-ahead, diverse inputs and smoothing against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.attacks import DIFGSM, MIFGSM, NIFGSM, PGD, TIFGSM, Linf, Untargeted
from assay.attacks.engine import Climb
from assay.attacks.tifgsm import gaussian_kernel
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, torch_rng

RNG = torch_rng(0, "transfer")
A, B = (torch.randn(3, 50, generator=RNG, dtype=torch.float64) for _ in range(2))
X = 0.5 + 0.2 * torch.rand(4, 2, 5, 5, generator=RNG, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0])
EPS = 0.1


class Curved(nn.Module):
    def forward(self, x):
        v = x.flatten(1)
        return torch.sin(6 * v) @ A.T + v @ B.T


def gradient(z):
    z = z.clone().requires_grad_()
    logits = Curved()(z)
    own = logits.gather(1, Y[:, None])
    others = logits.masked_fill(F.one_hot(Y, 3).bool(), -torch.inf).logsumexp(1, keepdim=True)
    return torch.autograd.grad((others - own).sum(), z)[0]


def by_hand(steps, momentum, ahead):
    g, z, alpha = torch.zeros_like(X), X, EPS / steps
    for _ in range(steps):
        grad = gradient(z + alpha * momentum * g if ahead else z)
        g = momentum * g + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        z = (z + alpha * g.sign()).clamp(X - EPS, X + EPS).clamp(0, 1)
    return z


@pytest.mark.parametrize(("cls", "ahead"), [(MIFGSM, False), (NIFGSM, True)])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_momentum_and_look_ahead_are_the_papers(cls, ahead, momentum):
    attack = cls(ball=Linf(EPS), steps=7, momentum=momentum)
    torch.testing.assert_close(attack(Curved(), X, Y, seed=0), by_hand(7, momentum, ahead))
    torch.testing.assert_close(attack.run(Curved(), X, Untargeted(Y), seed=0).x_adv, by_hand(7, momentum, ahead))


def test_without_momentum_diversity_or_smoothing_all_are_plain_ascent():
    plain = PGD(ball=Linf(EPS), steps=10, step_size=0.1, random_start=False, early_stop=False)(Curved(), X, Y, seed=0)
    for attack in (
        MIFGSM(ball=Linf(EPS), momentum=0.0),
        DIFGSM(ball=Linf(EPS), diversity=0.0),
        TIFGSM(ball=Linf(EPS), kernel=1),
    ):
        torch.testing.assert_close(attack(Curved(), X, Y, seed=0), plain)
    torch.testing.assert_close(DIFGSM(ball=Linf(EPS), diversity=1.0, shrink=1.0)(Curved(), X, Y, seed=0), plain)


def test_diverse_inputs_are_the_image_shrunk_inside_a_frame_of_zeros():
    x = torch.ones(200, 1, 20, 20)
    attack = DIFGSM(diversity=0.5, shrink=0.6)
    run = Climb(
        attack, nn.Identity(), x, Untargeted(torch.zeros(200, dtype=torch.int64)), Draws(0, "t", torch.arange(200))
    )
    run.z = x
    seen = attack.view(run)
    kept = (seen == x).flatten(1).all(1)
    assert 0.35 < kept.float().mean() < 0.65
    sides = seen[~kept].sum((1, 2, 3)).sqrt()
    assert sides.min() >= 0.6 * 20 - 0.5
    assert sides.max() <= 20 + 1e-3
    assert sides.std() > 1
    middle = (seen[~kept] * torch.arange(20.0)).sum((1, 2, 3)) / seen[~kept].sum((1, 2, 3))
    assert (middle - 9.5).abs().max() <= 4.1  # the frame holds it: half of 0.4 * 20
    assert middle.std() > 0.5


def test_smoothing_is_the_weighted_mean_of_the_gradients_of_shifted_images():
    grad = gradient(X)
    kernel = gaussian_kernel(3, 1.0)
    assert float(kernel.sum()) == pytest.approx(1)
    padded = F.pad(grad, (1, 1, 1, 1))
    mean = sum(kernel[i] * kernel[j] * padded[:, :, i : i + 5, j : j + 5] for i in range(3) for j in range(3))
    torch.testing.assert_close(TIFGSM(kernel=3, sigma=1.0).shape(grad), mean)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MIFGSM(momentum=-1.0),
        lambda: DIFGSM(shrink=0.0),
        lambda: DIFGSM(diversity=2.0),
        lambda: TIFGSM(kernel=4),
        lambda: TIFGSM(sigma=0.0),
        lambda: TIFGSM()(Curved(), X.flatten(1), Y, seed=0),
        lambda: DIFGSM()(Curved(), X.flatten(1), Y, seed=0),
    ],
)
def test_bad_options(make):
    with pytest.raises(InputError):
        make()
