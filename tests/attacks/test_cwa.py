"""The common weakness attack and its parts against their algorithm, step by step, and in closed forms."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import assay.attacks.cwa as module
from assay.attacks import (
    CSE_MI,
    CWA,
    MIFGSM,
    SAM_MI,
    Ensemble,
    Linf,
    Targeted,
    Untargeted,
    common_weakness_stats,
    gradient_cosine,
)
from assay.attacks.cwa import Crop, cosines
from assay.attacks.engine import Climb
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded, torch_rng

RNG = torch_rng(0, "cwa")
X = torch.rand(4, 2, 6, 6, generator=RNG, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0])
EPS = 0.1


def smooth_models() -> list[nn.Module]:
    with seeded(0, "cwa"):
        return [
            nn.Sequential(nn.Flatten(), nn.Linear(72, width), nn.Tanh(), nn.Linear(width, 3)).double().eval()
            for width in (20, 30, 40)
        ]


MODELS = smooth_models()


def gradient(models, z):
    z = z.clone().requires_grad_()
    logits = torch.stack([m(z) for m in models]).mean(0)
    return torch.autograd.grad(F.cross_entropy(logits, Y, reduction="sum"), z)[0]


def cut(z):
    return torch.minimum(torch.maximum(z, X - EPS), X + EPS).clamp(0, 1)


def norm(v, p):
    return torch.linalg.vector_norm(v, p, dim=(1, 2, 3), keepdim=True)


def by_hand(kind: str, inner: float, reverse: float, steps: int = 4, mu: float = 1.0):
    """Algorithm 1, with the cross-entropy itself; ``kind`` is mi, adam or sam."""
    x, m, outer, first, second = X, *(torch.zeros_like(X) for _ in range(4))
    for t in range(1, steps + 1):
        z = cut(x - reverse * EPS * gradient(MODELS, x).sign()) if reverse else x
        if kind == "sam":
            g = gradient(MODELS, z)
        else:
            for model in MODELS:
                g = gradient([model], z)
                m = mu * m + g / norm(g, 2)
                z = cut(z + inner * m)
            g = z - x
        if kind == "adam":
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
            step = 1e-3 * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        else:
            outer = mu * outer + g / norm(g, 1)
            step = EPS / 5 * outer.sign()
        x = cut(x + step)
    return x


@pytest.mark.parametrize("inner", [0.3, 5.0])
@pytest.mark.parametrize(
    ("attack", "kind", "reverse"),
    [(CWA, "mi", 1 / 15), (CSE_MI, "mi", 0), (CWA, "adam", 1 / 15), (SAM_MI, "sam", 1 / 10)],
)
def test_the_attacks_are_the_papers_algorithm(attack, kind, reverse, inner):
    options = {} if kind == "sam" else {"inner_step": inner, "base": kind}
    found = attack(ball=Linf(EPS), steps=4, **options)(MODELS, X, Y, seed=0)
    torch.testing.assert_close(found, by_hand(kind, inner, reverse))


@pytest.mark.parametrize(("steps", "momentum"), [(1, 1.0), (6, 0.0)])
def test_one_model_and_no_reverse_step_is_the_momentum_attack(steps, momentum):
    plain = MIFGSM(ball=Linf(EPS), step_size=0.2, steps=steps, momentum=momentum)(MODELS[0], X, Y, seed=0)
    attack = CWA(ball=Linf(EPS), steps=steps, momentum=momentum, reverse_step=0, inner_step=1e-3)
    torch.testing.assert_close(attack(MODELS[0], X, Y, seed=0), plain)
    torch.testing.assert_close(attack([MODELS[0]], X, Y, seed=0), plain)


def test_the_second_term_of_the_inner_pass_is_the_gradient_of_similarity():
    """For unnormalised gradients sum_{i != j} H_i g_j is the gradient of sum_{i < j} <g_i, g_j>."""
    z = X.clone().requires_grad_()
    losses = [F.cross_entropy(m(z), Y, reduction="sum") for m in MODELS]
    g = [torch.autograd.grad(loss, z, create_graph=True)[0] for loss in losses]
    pairs = sum((a * b).sum() for a, b in combinations(g, 2))
    similar = torch.autograd.grad(pairs, z, retain_graph=True)[0]
    turned = [
        torch.autograd.grad(g[i], z, sum(g[j] for j in range(3) if j != i).detach(), retain_graph=True)[0]
        for i in range(3)
    ]
    torch.testing.assert_close(sum(turned), similar)


def sweep(attack, x=X):
    run = Climb(attack, Ensemble(MODELS), x, Untargeted(Y), Draws(0, "t", torch.arange(len(x))))
    return attack.sweep(run, x)


def test_the_default_inner_step_scales_with_the_dimension_and_does_not_saturate_all():
    assert CWA().inner_length(torch.zeros(1, 3, 224, 224)) == 250
    assert CSE_MI().inner_length(torch.zeros(1, 3, 112, 112)) == pytest.approx(25)
    attack = CWA(ball=Linf(EPS))
    moved = (sweep(attack) - X).abs()
    inside = (X > EPS) & (X < 1 - EPS)
    share = float((moved[inside] >= EPS - 1e-12).double().mean())
    assert 0.5 < share < 1


def test_what_is_spent():
    for attack, passes in ((CWA(steps=3), 3 * 4), (CSE_MI(steps=3), 3 * 3), (SAM_MI(steps=3), 3 * 2)):
        assert attack.run(MODELS, X, Untargeted(Y), seed=0).gradients.tolist() == [passes] * 4
    assert CWA(steps=1, base="vmi").run(MODELS, X, Untargeted(Y), seed=0).gradients.tolist() == [61] * 4


def test_targets_become_likelier():
    t = (Y + 1) % 3
    found = CWA(ball=Linf(EPS)).run(MODELS, X, Targeted(t), seed=0).x_adv
    before, after = (-F.cross_entropy(Ensemble(MODELS)(z), t) for z in (X, found))
    assert after > before + 0.05


def test_a_loss_of_ones_own_for_outputs_that_are_no_logits():
    embed = nn.Sequential(nn.Flatten(), nn.Linear(72, 5)).double()
    away = embed(X).detach()

    def distance(outputs, goal):
        return (outputs - away).square().sum(1)

    found = CWA(ball=Linf(EPS), loss_fn=distance, random_start=True)([embed], X, Y, seed=0)
    noise = CWA(ball=Linf(EPS), loss_fn=distance, random_start=True, steps=0)([embed], X, Y, seed=0)
    assert (distance(embed(found), None) > 10 * distance(embed(noise), None)).all()


class Linear(nn.Module):
    """Two classes with the gap w . x."""

    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, x):
        gap = x.flatten(1) @ self.w
        return torch.stack((torch.zeros_like(gap), gap), 1)


def test_gradients_of_neighbours_and_of_changed_spectra_point_along_a_line():
    w = torch.randn(72, generator=RNG, dtype=torch.float64)
    y = torch.zeros(4, dtype=torch.int64)
    for base in ("vmi", "ssa"):
        attack = CWA(ball=Linf(EPS), base=base)
        run = Climb(attack, Linear(w), X, Untargeted(y), Draws(0, "t", torch.arange(4)))
        unit = attack.unit(run, X, Linear(w)).flatten(1)
        torch.testing.assert_close(unit, (w / w.norm()).expand(4, -1))


def test_neighbours_are_within_one_and_a_half_eps():
    moved = CWA(ball=Linf(EPS)).neighbour(X, Draws(0, "t", torch.arange(4))) - X
    assert 1.4 * EPS < float(moved.abs().max()) <= 1.5 * EPS


def test_the_cosine_transform_is_orthonormal_and_unit_factors_give_the_image_back(monkeypatch):
    for side in (1, 5, 8):
        torch.testing.assert_close(cosines(side) @ cosines(side).T, torch.eye(side, dtype=torch.float64))
    draws = Draws(0, "t", torch.arange(4))
    changed = CWA(ball=Linf(1e-12)).simulated(X, draws)
    assert 0.05 < float((changed - X).norm() / X.norm()) < 0.5  # factors uniform in [0.5, 1.5]: 0.29 in the mean square
    monkeypatch.setattr(module, "RHO", 0.0)
    torch.testing.assert_close(CWA(ball=Linf(1e-12)).simulated(X, draws), X, rtol=0, atol=1e-9)


def test_a_crop_keeps_the_scale_and_reaches_the_padding():
    x = torch.ones(300, 1, 20, 20)
    seen = Crop(0.8, Draws(0, "t", torch.arange(300)))(x)
    assert seen.shape == x.shape
    assert (seen[:, :, 2:18, 2:18].sum() == seen.sum()).all()  # a window of 16 in the middle of the frame
    sizes = seen.sum((1, 2, 3))
    assert sizes.max() == 16**2
    assert sizes.min() == 12**2  # 4 rows and columns of padding
    ramp = torch.arange(20.0).expand(300, 1, 20, 20)
    inner = Crop(0.8, Draws(0, "t", torch.arange(300)))(ramp)[:, 0, 10]
    assert (inner[:, 3:17].diff(dim=1) <= 1).all()
    torch.testing.assert_close(Crop(1.0, Draws(0, "t", torch.arange(300)))(x), x)


def test_smoothing_and_cropping_by_nothing_change_nothing():
    plain = CWA(ball=Linf(EPS))(MODELS, X, Y, seed=0)
    torch.testing.assert_close(CWA(ball=Linf(EPS), ti=1, di=1.0)(MODELS, X, Y, seed=0), plain)
    assert not CWA(ball=Linf(EPS), ti=3)(MODELS, X, Y, seed=0).equal(plain)
    assert not CWA(ball=Linf(EPS), di=0.8)(MODELS, X, Y, seed=0).equal(plain)


def test_cosines_of_gradients():
    a, b = (torch.zeros(72, dtype=torch.float64).index_fill(0, torch.tensor(k), 1.0) for k in ([0], [0, 1]))
    y = torch.zeros(4, dtype=torch.int64)
    torch.testing.assert_close(gradient_cosine([Linear(a), Linear(3 * a)], X, y), torch.ones(4).double())
    expected = torch.full((4,), (1 + 2 * 0.5**0.5) / 3).double()
    torch.testing.assert_close(gradient_cosine([Linear(a), Linear(5 * a), Linear(b)], X, y), expected)


def test_flatness_and_distance_of_lines():
    a = torch.zeros(72, dtype=torch.float64).index_fill(0, torch.tensor([7]), 2.0)
    y = torch.zeros(4, dtype=torch.int64)
    stats = common_weakness_stats([Linear(a), Linear(-a)], X, X, y, seed=0, ball=Linf(EPS))
    p = torch.sigmoid(X.flatten(1) @ a)
    torch.testing.assert_close(stats.flatness, (4 * p * (1 - p)).expand(2, -1))  # p (1 - p) |a|^2
    torch.testing.assert_close(stats.closeness, -torch.ones(4).double())
    room = torch.stack((1 - X.flatten(1)[:, 7], X.flatten(1)[:, 7])).clamp_max(EPS)
    torch.testing.assert_close(stats.distance, room)


def test_ensembles():
    outputs = torch.stack([m(X) for m in MODELS])
    torch.testing.assert_close(Ensemble(MODELS)(X), outputs.mean(0))
    torch.testing.assert_close(Ensemble(MODELS, mean=False)(X), outputs.sum(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensemble([]), "no networks"),
        (lambda: Ensemble([len]), "expected a torch module"),
        (lambda: Ensemble([*MODELS, nn.Flatten()])(X), "same of all"),
        (lambda: CWA()([], X, Y, seed=0), "no networks"),
        (lambda: CWA(ball=Linf(0.0)), "eps"),
        (lambda: CWA(base="nesterov"), "base"),
        (lambda: CWA(inner_step=0.0), "inner_step"),
        (lambda: CWA(di=0.0), "di"),
        (lambda: CWA(ti=4), "ti"),
        (lambda: SAM_MI(reverse_step=2.0), "reverse_step"),
        (lambda: CWA(base="ssa")([MODELS[0]], X.flatten(1), Y, seed=0), "image"),
        (lambda: CWA(di=0.9)([MODELS[0]], X.flatten(1), Y, seed=0), "image"),
        (lambda: gradient_cosine(MODELS[:1], X, Y), "at least two"),
        (lambda: common_weakness_stats(MODELS, X, X, Y, seed=0, probes=0), "probes"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
