"""Repulsion, elastic weight consolidation and the Fisher information against closed forms; both stages on points."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.generate import GANTraining, StyleGANLike, generated
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.unlearn import (
    AdaptThenUnlearn,
    collect_feedback,
    ewc_penalty,
    extrapolated,
    percent_unlearned,
    repulsion,
    score_fisher,
    weight_distance,
)
from assay.unlearn.adapt_unlearn import Oracle

QUICK = AdaptThenUnlearn(
    batch=32, lr=1e-3, r1=0.1, ema=0.9, ewc_weight=10.0, n_adapted=2, adapt_iters=20, unlearn_iters=10
)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """A GAN of a blob in the plane."""
    with seeded(0, "pair"):
        start = StyleGANLike(3, (2,), 24, 2)
        judge = nn.Sequential(
            nn.Linear(2, 24), nn.LeakyReLU(0.2), nn.Linear(24, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1)
        )
        x = 0.5 * torch.randn(400, 2)
    return GANTraining(steps=150, batch_size=32, lr=1e-3, r1=0.1, ema=0.9).fit(start, judge, x, seed=0)


@pytest.fixture(scope="module")
def right(pair: tuple[nn.Module, nn.Module]) -> Oracle:
    """Undesired is what lies right of the median."""
    middle = generated(pair[0], 2000, seed=9)[:, 0].median()
    return lambda x: x[:, 0] > middle


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters()}


def test_distance_and_repulsions_on_two_weights() -> None:
    theta = {"a": torch.tensor([[0.5, 1.0]], requires_grad=True), "b": torch.tensor([2.0])}
    other = {"a": torch.tensor([[0.0, 0.0]]), "b": torch.tensor([1.0])}
    v = (1.25 / 2 + 1) / 2
    assert float(weight_distance(theta, [other]).detach()) == pytest.approx(v)
    assert float(weight_distance(theta, [other] * 5).detach()) == pytest.approx(v)
    for form, value, slope in (
        ("el2", 100 * math.exp(-2 * v), -200 * math.exp(-2 * v)),
        ("nl2", -2 * v, -2.0),
        ("il2", 2 / v, -2 / v**2),
    ):
        found = repulsion(theta, [other], form, 2.0)
        (gradient,) = torch.autograd.grad(found, theta["a"])
        assert float(found.detach()) == pytest.approx(value, rel=1e-5)
        assert gradient.flatten().tolist() == pytest.approx([slope * t / 2 for t in (0.5, 1.0)], rel=1e-5)
    assert float(repulsion(theta, [other], "nl2", 2.0, digits=True).detach()) == pytest.approx(-0.2 * v)
    assert float(repulsion(theta, [other], "il2", 2.0, digits=True).detach()) == pytest.approx(0.2 / v)


def test_near_the_adapted_weights_the_exponential_pushes_as_the_square_does() -> None:
    theta = {"a": torch.zeros(3, dtype=torch.float64).add(1e-5).requires_grad_()}
    other = {"a": torch.zeros(3, dtype=torch.float64)}
    slopes = [
        torch.autograd.grad(repulsion(theta, [other], f, g), theta["a"])[0] for f, g in (("el2", 2.0), ("nl2", 200.0))
    ]
    assert torch.allclose(*slopes, rtol=1e-6, atol=0)


def test_fisher_is_the_mean_of_squared_per_sample_gradients(pair: tuple[nn.Module, nn.Module]) -> None:
    generator, judge = pair
    z = torch.randn(8, 3, generator=torch_rng(4, "fisher"))
    for kind in ("d_score", "loss"):
        found = score_fisher(generator, judge, kind=kind, n=8, seed=4)
        assert set(found) == {n for n in weights(generator) if n.startswith("blocks.")}
        total = torch.zeros_like(found["blocks.0.linear.weight"])
        for one in z:
            score = judge(generator(one[None])).sum()
            target = score if kind == "d_score" else F.softplus(-score)
            (g,) = torch.autograd.grad(target, generator.blocks[0].linear.weight)
            total += g.square() / 8
        assert torch.allclose(found["blocks.0.linear.weight"], total, rtol=1e-3, atol=1e-9)


def test_ewc_by_hand_and_flat_at_its_anchor() -> None:
    theta = {"a": torch.tensor([1.0, 2.0], requires_grad=True)}
    anchor, fisher = {"a": torch.tensor([1.0, 1.0])}, {"a": torch.tensor([5.0, 3.0])}
    assert float(ewc_penalty(theta, anchor, fisher, 4.0).detach()) == pytest.approx(6.0)
    start = ewc_penalty(theta, {"a": theta["a"].detach()}, fisher, 4.0)
    assert float(start.detach()) == 0
    assert not torch.autograd.grad(start, theta["a"])[0].any()


def test_no_repulsion_is_fine_tuning_bit_for_bit(pair: tuple[nn.Module, nn.Module], right: Oracle) -> None:
    negatives, positives = collect_feedback(pair[0], right, 600, seed=1)
    plain, _ = replace(QUICK, repulsion="none").forget(pair, negatives, positives, seed=3)
    zero, _ = replace(QUICK, gamma=0.0).forget(pair, negatives, positives, seed=3)
    pushed, _ = replace(QUICK, gamma=300.0).forget(pair, negatives, positives, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), zero.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), pushed.parameters(), strict=True))


def test_both_stages(pair: tuple[nn.Module, nn.Module], right: Oracle) -> None:
    before = [p.clone() for p in (*pair[0].parameters(), *pair[1].parameters())]
    negatives, positives = collect_feedback(pair[0], right, 1000, seed=1)
    method = replace(QUICK, adapt_iters=150, ewc_weight=0.0, unlearn_iters=300, gamma=1.0)
    adapted = method.adapt(*pair, negatives, seed=0)
    assert len(adapted) == 2
    assert not torch.equal(adapted[0]["to_rgb.weight"], adapted[1]["to_rgb.weight"])
    bad = extrapolated(pair[0], adapted, -1.0)
    asked = float(right(generated(pair[0], 2000, seed=5)).float().mean())
    assert float(right(generated(bad, 2000, seed=5)).float().mean()) > asked + 0.05
    after, _ = method.forget(pair, negatives, positives, seed=0, adapted=adapted)
    assert percent_unlearned(pair[0], after, right, 2000) > 20
    assert all(torch.equal(a, b) for a, b in zip(before, (*pair[0].parameters(), *pair[1].parameters()), strict=True))


def test_stages_take_up_the_optimisers_of_a_trained_pair(pair: tuple[nn.Module, nn.Module], right: Oracle) -> None:
    def steps(trained: tuple[nn.Module, nn.Module]) -> set[float]:
        states = getattr(trained, "optimizers_", {})
        return {float(s["step"]) for name in ("generator", "discriminator") for s in states[name]["state"].values()}

    negatives, positives = collect_feedback(pair[0], right, 600, seed=1)
    plain = replace(QUICK, repulsion="none")
    on = plain.forget(pair, negatives, positives, seed=3)
    anew = plain.forget((pair[0], pair[1]), negatives, positives, seed=3)
    assert steps(on) == {160.0}
    assert steps(anew) == {10.0}
    assert steps(pair) == {150.0}
    assert not all(torch.equal(a, b) for a, b in zip(on[0].parameters(), anew[0].parameters(), strict=True))
    given = {"optimizers": getattr(pair, "optimizers_", None)}
    first, second = (replace(QUICK, n_adapted=1).adapt(*pair, negatives, seed=3, **kept) for kept in ({}, given))
    assert not all(torch.equal(first[0][n], second[0][n]) for n in first[0])


def test_ewc_keeps_the_weights_nearer(pair: tuple[nn.Module, nn.Module], right: Oracle) -> None:
    negatives, _ = collect_feedback(pair[0], right, 600, seed=1)
    moved = []
    for weight in (0.0, 1e6):
        adapted = replace(QUICK, ewc_weight=weight, n_adapted=1).adapt(*pair, negatives, seed=0)
        moved.append(max(float((adapted[0][n] - p).abs().max()) for n, p in weights(pair[0]).items() if "blocks" in n))
    assert moved[1] < moved[0]


def test_errors(pair: tuple[nn.Module, nn.Module]) -> None:
    x = torch.rand(20, 2)
    with pytest.raises(InputError, match="no negative"):
        QUICK.forget(pair, x[:0], x, seed=0)
    with pytest.raises(InputError, match="no positive"):
        QUICK.forget(pair, x, x[:0], seed=0)
    with pytest.raises(InputError, match="adapted weights"):
        QUICK.forget(pair, x, x, seed=0, adapted=[{"other": x}])
    with pytest.raises(InputError, match="above 0"):
        replace(QUICK, repulsion="il2").forget(pair, x, x, seed=0, adapted=[weights(pair[0])])
    with pytest.raises(InputError, match="no adapted"):
        weight_distance(weights(pair[0]), [])
    with pytest.raises(InputError, match="some of each kind"):
        collect_feedback(pair[0], lambda x: torch.ones(len(x), dtype=torch.bool), 10, seed=0)
    for answer in (lambda x: x[:, 0], lambda x: x > 0):
        with pytest.raises(InputError, match="oracle: gives"):
            collect_feedback(pair[0], answer, 10, seed=0)
        with pytest.raises(InputError, match="oracle: gives"):
            percent_unlearned(pair[0], pair[0], answer, 10)
    with pytest.raises(InputError, match="no adapted"):
        extrapolated(pair[0], [], 1.0)
    with pytest.raises(InputError, match="in adapted weights"):
        extrapolated(pair[0], [{"other": x}], 1.0)
    for options in ({"gamma": -1.0}, {"n_adapted": 0}, {"repulsion": "l3"}, {"fisher": "none"}):
        with pytest.raises(InputError):
            AdaptThenUnlearn(**options)
