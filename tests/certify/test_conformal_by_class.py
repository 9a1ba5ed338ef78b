"""Calibration by class: quantiles against a loop, what it repairs, and its robust versions under the worst shift."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor

from assay.calibrate import Outputs
from assay.certify import APS, LAC, PTT, RAPS, RSCP, FittedRSCP, RSCPPlus, SetPredictor, SmoothedScores
from assay.certify.base import class_quantiles, conformal_quantile


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 4)), min_size=1, max_size=60), st.floats(0.02, 0.98))
def test_quantiles_are_those_of_each_class(samples: list[tuple[float, int]], alpha: float) -> None:
    scores = torch.tensor([s for s, _ in samples], dtype=torch.float64)
    y = torch.tensor([k for _, k in samples])
    expected = [conformal_quantile(scores[y == k], alpha) for k in range(5)]
    assert class_quantiles(scores, y, 5, alpha).tolist() == expected


@pytest.mark.parametrize("alpha", [1e-12, 1 - 1e-12])
def test_extreme_levels_take_the_smallest_score_or_everything(alpha: float) -> None:
    scores, y = torch.tensor([0.3, 0.1, 0.2, 0.5], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    least = [0.1, 0.2, torch.inf] if alpha > 0.5 else [torch.inf] * 3
    assert conformal_quantile(scores, alpha) == min(least)
    assert class_quantiles(scores, y, 3, alpha).tolist() == least


def _unequal(n: int, seed: int) -> tuple[Outputs, Tensor]:
    """Class 0 is recognised nearly always, class 2 hardly."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=g)
    strength = torch.tensor([6.0, 2.0, 0.3])[y]
    return Outputs(torch.randn(n, 3, generator=g) + strength[:, None] * torch.eye(3)[y]), y


@pytest.mark.parametrize(
    "method", [LAC(alpha=0.1), APS(alpha=0.1), RAPS(alpha=0.1, k=1)], ids=lambda m: type(m).__name__
)
def test_it_repairs_the_class_that_marginal_sets_miss(method: SetPredictor) -> None:
    (calibration, y), (test, truth) = _unequal(3000, 0), _unequal(3000, 1)
    by_class = type(method)(**{**vars(method), "by_class": True})
    hard = truth == 2
    rates = []
    for predictor in (method, by_class):
        covered = predictor.fit(calibration, y).sets(test).gather(1, truth[:, None])[:, 0]
        rates.append(float(covered[hard].double().mean()))
        # the quantile of n samples and the rate of m both vary: a binomial of the harmonic size
        assert binomtest(int(covered.sum()), 3000, 0.9).pvalue > 1e-9
    size = int(hard.sum()) // 2
    assert binomtest(round(rates[0] * size), size, 0.9, alternative="less").pvalue < 1e-6
    assert binomtest(round(rates[1] * size), size, 0.9).pvalue > 1e-4


def _shifted(n: int, seed: int, shift: float) -> tuple[SmoothedScores, Tensor]:
    """Smoothed scores of two half-spaces of a Gaussian number, one a class: as steep as the Lipschitz bound allows.

    The mean is Phi(z + mu_y) at the label and its complement elsewhere; ``shift`` moves z, in units of sigma.
    """
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=g)
    z = torch.randn(n, generator=g).double() + torch.tensor([-1.0, 0.7])[y] + shift
    own = torch.special.ndtr(z)
    mean = torch.stack((own, 1 - own), 1)
    mean = torch.where((y == 0)[:, None], mean, mean.flip(1))
    return SmoothedScores(mean, torch.zeros_like(mean), 10**12), y


@pytest.mark.parametrize("cls", [RSCP, RSCPPlus])
def test_robust_sets_cover_every_class_at_the_worst_shift(cls: type[RSCP]) -> None:
    calibration, y = _shifted(4000, 0, 0.0)
    method = cls(alpha=0.1, sigma=0.25, eps=0.125, by_class=True)
    test, truth = _shifted(4000, 1, 0.125 / 0.25)
    fitted = method.calibrate(calibration, y)
    unaware: FittedRSCP = cls(alpha=0.1, sigma=0.25, eps=0.0, by_class=True).calibrate(calibration, y)
    marginal = cls(alpha=0.1, sigma=0.25, eps=0.125).calibrate(calibration, y)
    rates = {
        name: [float(f.included(test).gather(1, truth[:, None])[truth == k].double().mean()) for k in range(2)]
        for name, f in (("robust", fitted), ("unaware", unaware), ("marginal", marginal))
    }
    size = int(np.bincount(truth).min()) // 2
    for k in range(2):
        assert binomtest(round(rates["robust"][k] * size), size, 0.9).pvalue > 1e-4, rates
        assert binomtest(round(rates["unaware"][k] * size), size, 0.9, alternative="less").pvalue < 1e-6, rates
    assert min(rates["marginal"]) < 0.87


def test_scores_above_one_are_scaled_and_their_sets_are_the_same() -> None:
    g = torch.Generator().manual_seed(0)
    outputs = Outputs(torch.randn(60, 4, generator=g), views=torch.randn(32, 60, 4, generator=g))
    y = torch.randint(4, (60,), generator=g)
    raps = RAPS(lam=3.0, k=1)
    assert raps.top == 4.0
    method = RSCP(score=raps, eps=0.0)
    smoothed = method.smooth(outputs, stream="fit")
    assert outputs.views is not None
    each = raps.scores(Outputs(outputs.views.flatten(0, 1)), method.uniform(outputs, 0, "fit").repeat(32, 1))
    mean = each.unflatten(0, (32, 60)).mean(0)
    assert torch.allclose(smoothed.mean, mean / 4)
    own = mean.gather(1, y[:, None])[:, 0]
    sets = method.calibrate(smoothed, y).included(smoothed)
    assert torch.equal(sets, mean / 4 <= conformal_quantile(own / 4, 0.1))


SCORES: tuple[SetPredictor, ...] = (LAC(), APS(), APS(randomized=False), RAPS(k=1), RAPS(k=1, lam=2.0))


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("score", SCORES, ids=repr)
def test_every_predictor_has_a_robust_version_that_covers_attacked_samples(score: SetPredictor, by_class: bool) -> None:
    # a linear model; every test sample moves by eps straight to where its own class is least likely
    g = torch.Generator().manual_seed(0)
    weight, sigma, eps = 3 * torch.eye(3), 0.5, 0.25
    y = torch.arange(1200) % 3
    x = torch.eye(3)[y] + 0.35 * torch.randn(1200, 3, generator=g)
    away = weight.mean(0) - weight[y]
    moved = x + eps * away / away.norm(dim=1, keepdim=True)
    outputs = [
        Outputs(t @ weight, views=(t + sigma * torch.randn(256, 1200, 3, generator=g)) @ weight) for t in (x, moved)
    ]
    fit, test = torch.arange(600), torch.arange(600, 1200)
    part = [Outputs(o.logits[r], views=o.views[:, r]) for o, r in zip(outputs, (fit, test), strict=True)]
    sizes = []
    for cls, radius in ((RSCP, 0.0), (RSCP, eps), (RSCPPlus, eps)):
        method = cls(score=score, sigma=sigma, eps=radius, by_class=by_class)
        sets = method.fit(part[0], y[fit]).sets(part[1])
        covered = sets.gather(1, y[test, None])[:, 0]
        sizes.append(float(sets.sum(1).double().mean()))
        groups = [covered[y[test] == k] for k in range(3)] if by_class else [covered]
        pvalues = [binomtest(int(c.sum()) // 2, len(c) // 2, 0.9, alternative="less").pvalue for c in groups]
        assert radius == 0 or min(pvalues) > 1e-3, (cls, sizes, pvalues)
    assert sizes[0] < sizes[1] <= sizes[2]


@pytest.mark.parametrize("score", ["hps", "aps", "raps"])
def test_every_score_has_a_robust_version_by_class(score: Literal["hps", "aps", "raps"]) -> None:
    g = torch.Generator().manual_seed(0)
    centre = 1.5 * torch.randn(400, 4, generator=g)
    y = centre.softmax(1).multinomial(1, generator=g)[:, 0]
    outputs = Outputs(centre, views=centre + 0.3 * torch.randn(64, 400, 4, generator=g))
    ranks = PTT().fit(RSCP(score=score).single_scores(outputs, y))
    for cls in (RSCP, RSCPPlus):
        robust = cls(score=score, transform=ranks, by_class=True)
        plain = cls(score=score, transform=ranks, by_class=True, eps=0.0)
        sets, inner = (m.fit(outputs, y).sets(outputs) for m in (robust, plain))
        assert (sets | ~inner).all()
        covered = inner.gather(1, y[:, None])[:, 0]
        assert all(float(covered[y == k].double().mean()) >= 0.9 for k in range(4))
