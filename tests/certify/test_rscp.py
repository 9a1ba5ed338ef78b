"""RSCP and RSCP+ against closed forms, a reference in NumPy, and the limits in which they are split conformal."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats.mstats import mquantiles
from torch import Tensor, nn

from assay.calibrate import Outputs
from assay.certify import (
    APS,
    LAC,
    PTT,
    RAPS,
    RSCP,
    RSCPPlus,
    SmoothedScores,
    bernstein_bound,
    hoeffding_bound,
    noisy_outputs,
)
from assay.certify.base import conformal_quantile
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded


def _noisy(n: int = 120, c: int = 7, v: int = 24, seed: int = 0) -> tuple[Outputs, Tensor]:
    """Logits of noisy copies around a centre, and labels drawn from the centre's probabilities."""
    g = torch.Generator().manual_seed(seed)
    centre = 1.5 * torch.randn(n, c, generator=g)
    views = centre + 0.7 * torch.randn(v, n, c, generator=g)
    return Outputs(centre, views=views), centre.softmax(1).multinomial(1, generator=g)[:, 0]


def test_slacks_by_hand() -> None:
    # N = 256, beta = 0.001: ln 1000 = 6.907755279, ln 2000 = 7.600902460
    assert hoeffding_bound(256, 0.001) == pytest.approx(math.sqrt(6.907755279 / 512), abs=1e-9)
    variance = torch.tensor([0.0, 0.25], dtype=torch.float64)
    constant = 7 * 7.600902460 / 765
    expected = [constant, constant + math.sqrt(2 * 0.25 * 7.600902460 / 256)]
    assert bernstein_bound(variance, 256, 0.001).tolist() == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 2000), st.floats(1e-4, 0.04))
def test_slacks_shrink_with_draws_and_grow_with_confidence(draws: int, beta: float) -> None:
    variance = torch.tensor(0.1, dtype=torch.float64)
    for slack in (hoeffding_bound, lambda n, b: float(bernstein_bound(variance, n, b))):
        assert slack(2 * draws, beta) < slack(draws, beta) < slack(draws, beta / 2)


@pytest.mark.parametrize("bound", ["hoeffding", "bernstein"])
def test_a_slack_fails_no_more_often_than_beta(bound: str) -> None:
    """Means of 64 Bernoulli draws, exactly by the binomial law: the mean exceeds the probability by the slack."""
    from scipy.stats import binom

    n, beta = 64, 0.05
    k = np.arange(n + 1)
    mean = torch.from_numpy(k / n)
    variance = mean * (1 - mean) * n / (n - 1)
    slack = hoeffding_bound(n, beta) if bound == "hoeffding" else bernstein_bound(variance, n, beta).numpy()
    for p in np.linspace(0.02, 0.98, 25):
        assert binom.pmf(k, n, p)[k / n - slack > p].sum() <= beta


def _reference(raw: np.ndarray, y: np.ndarray, test: np.ndarray, method: RSCPPlus) -> np.ndarray:
    """RSCP+ from raw scores (v, n, c), as the published procedure states it, with SciPy's normal law."""
    n = len(y)
    k = math.ceil((n + 1) * (1 - method.alpha + 2 * method.beta) - 1e-9)
    tau = np.sort(raw.mean(0)[np.arange(n), y])[k - 1]
    v, t = len(test), np.log(2 / method.beta)
    hoeffding = np.sqrt(-np.log(method.beta) / 2 / v)
    bernstein = np.sqrt(2 * test.var(0, ddof=1) * t / v) + (7 / 3) * t / (v - 1)
    slack = bernstein if method.bound == "bernstein" else hoeffding
    low = norm.ppf(np.maximum(test.mean(0) - slack, 0)) - method.eps / method.sigma
    return low <= norm.ppf(np.minimum(tau + hoeffding, 1))


@pytest.mark.parametrize("bound", ["bernstein", "hoeffding"])
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.1])
def test_sets_are_those_of_the_reference(bound: str, eps: float) -> None:
    calibration, y = _noisy(seed=1, v=600)
    test, _ = _noisy(seed=2, v=600)
    method = RSCPPlus(eps=eps, alpha=0.4, beta=0.05, bound=bound)  # type: ignore[arg-type]
    raw = [1 - o.views.double().softmax(2).numpy() for o in (calibration, test) if o.views is not None]
    sets = method.fit(calibration, y).sets(test)
    assert np.array_equal(sets.numpy(), _reference(raw[0], y.numpy(), raw[1], method))
    assert 0 < float(sets.double().mean()) < 1


def test_the_published_interpolated_quantile_gives_the_same_sets_at_its_threshold() -> None:
    calibration, y = _noisy(seed=1)
    method = RSCP(alpha=0.2)
    own = method.smooth(calibration).mean.gather(1, y[:, None])[:, 0].numpy()
    level = (1 - 0.2) * (1 + 1 / len(own))
    tau = float(mquantiles(own, prob=level)[0])
    fitted = method.fit(calibration, y)
    k = math.ceil(121 * 0.8)
    low, high = np.sort(own)[[k - 2, k]]
    assert low <= tau <= high  # it interpolates around the order statistic that is used here
    sets = replace(fitted, threshold_=tau).sets(calibration).numpy()
    expected = norm.ppf(method.smooth(calibration).mean.numpy()) - 0.5 <= norm.ppf(tau)
    assert np.array_equal(sets, expected)


@pytest.mark.parametrize("score", ["hps", "aps", "raps"])
def test_without_shift_and_slack_it_is_split_conformal_on_smoothed_scores(score: str) -> None:
    calibration, y = _noisy(seed=3)
    test, _ = _noisy(seed=4)
    shrink = PTT(temperature=1.0, bias=0.5).fit(torch.linspace(0, 1.2, 50))
    transform = shrink if score == "raps" else None
    exact = RSCP(score=score, eps=0.0, transform=transform)  # type: ignore[arg-type]
    own = exact.smooth(calibration, stream="fit").mean.gather(1, y[:, None])[:, 0]
    plain = exact.smooth(test).mean <= conformal_quantile(own, 0.1)
    assert torch.equal(exact.fit(calibration, y).sets(test), plain)
    plus = RSCPPlus(score=score, eps=0.0, beta=1e-9, transform=transform)  # type: ignore[arg-type]
    sure = [
        SmoothedScores(s.mean, s.variance, 10**17)
        for s in (exact.smooth(calibration, stream="fit"), exact.smooth(test))
    ]
    assert torch.equal(plus.calibrate(sure[0], y).included(sure[1]), plain)


def test_sets_grow_with_eps_and_contain_the_uncorrected_ones() -> None:
    calibration, y = _noisy(seed=1, v=200)
    test, _ = _noisy(seed=2, v=200)
    before = RSCP(eps=0.0).fit(calibration, y).sets(test)
    for eps in (0.05, 0.2):
        sets, plus = (m.fit(calibration, y).sets(test) for m in (RSCP(eps=eps), RSCPPlus(eps=eps)))
        assert (sets | ~before).all()
        assert (plus | ~sets).all()
        before = sets


def test_half_space_attains_the_lipschitz_bound_under_real_noise() -> None:
    """Phi^-1 of the smoothed indicator of w.x > 0 moves by eps / sigma along w: sets at x' are plain sets at x."""
    side = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        side.weight.copy_(1e6 * torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))  # class 0 has score 1 where x_0 > 0
    x = torch.tensor([[-0.2, 0.3], [0.1, 0.5], [0.3, 0.0]])
    method = RSCP(sigma=0.25, eps=0.125, n_samples=20_000)
    here = method.smooth(method.outputs(side, x)).mean[:, 0]
    moved = method.smooth(method.outputs(side, x + torch.tensor([0.125, 0.0]), seed=1)).mean[:, 0]
    assert torch.allclose(here, torch.special.ndtr(x[:, 0].double() / 0.25), atol=0.015)
    rise = torch.special.ndtri(moved) - torch.special.ndtri(here)
    assert torch.allclose(rise, torch.full_like(rise, 0.5), atol=0.06)


def test_certain_scores_at_the_ends_are_always_in_and_empty_sets_stay_empty() -> None:
    y = torch.zeros(40, dtype=torch.int64)
    low = SmoothedScores(torch.full((40, 2), 0.1).double(), torch.zeros(40, 2).double(), 10**6)
    test = SmoothedScores(torch.tensor([[0.0, 1.0], [0.9, 0.9]]).double(), torch.zeros(2, 2).double(), 10**6)
    assert RSCPPlus().calibrate(low, y).included(test).tolist() == [[True, False], [False, False]]
    high = SmoothedScores(torch.ones(40, 2).double(), torch.zeros(40, 2).double(), 10**6)
    assert RSCPPlus().calibrate(high, y).included(test).all()


def test_too_few_calibration_samples_for_the_tightened_level() -> None:
    # alpha = 0.1 needs 9 samples, alpha - 2 beta = 0.08 needs 12
    outputs, y = _noisy(n=11)
    assert math.isfinite(RSCP().fit(outputs, y).threshold_)
    fitted = RSCPPlus(beta=0.01).fit(outputs, y)
    assert math.isinf(fitted.threshold_)
    assert fitted.sets(outputs).all()


def test_raps_penalises_ranks_by_hand_and_equals_aps_without_penalty() -> None:
    outputs = Outputs(torch.tensor([[3.0, 1.0, 2.0, 0.0]]))
    u = torch.full((1, 1), 0.3, dtype=torch.float64)
    base = APS().scores(outputs, u)
    penalty = torch.tensor([[0.0, 0.3 * 2 / 3, 0.3 * 1 / 3, 0.3]], dtype=torch.float64)  # ranks 1, 3, 2, 4 and k = 1
    assert torch.allclose(RAPS(lam=0.3, k=1).scores(outputs, u), base + penalty)
    assert torch.equal(RAPS(lam=0.0).scores(outputs, u), base)
    assert torch.equal(RAPS(lam=0.3, k=4).scores(outputs, u), base)


def test_the_random_part_is_shared_by_the_copies_of_a_sample() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    same = Outputs(logits, views=logits.expand(9, 6, 4))
    smoothed = RSCP(score="aps").smooth(same)
    assert float(smoothed.variance.max()) < 1e-20
    u = RSCP(score="aps").uniform(same, 0, "sets")
    assert torch.allclose(smoothed.mean, APS().scores(Outputs(logits), u))


def test_ptt_by_hand_and_monotone() -> None:
    ptt = PTT(temperature=0.5, bias=0.5).fit(torch.tensor([0.5, 0.25, 0.5, 0.75]))
    assert ptt.quantiles_.tolist() == [0.25, 0.5, 0.5, 0.75]
    got = ptt.transform(torch.tensor([[0.1, 0.25], [0.5, 0.9]]))
    rank = torch.tensor([[0.0, 0.25], [0.75, 1.0]], dtype=torch.float64)
    assert torch.allclose(got, torch.sigmoid((rank - 0.5) / 0.5))
    grid = PTT().fit(torch.rand(500, generator=torch.Generator().manual_seed(0))).transform(torch.linspace(-1, 2, 999))
    assert (grid.diff() >= 0).all()
    assert float(grid.min()) >= 0
    assert float(grid.max()) <= 1


def test_ptt_uses_the_first_copy_and_the_variance_of_transformed_scores() -> None:
    outputs, y = _noisy()
    assert outputs.views is not None
    method = RSCPPlus()
    single = method.single_scores(outputs, y)
    assert torch.allclose(single, 1 - outputs.views[0].double().softmax(1).gather(1, y[:, None])[:, 0])
    fitted = PTT().fit(single)
    smoothed = replace(method, transform=fitted).smooth(outputs)
    each = fitted.transform(1 - outputs.views.double().softmax(2))
    assert torch.allclose(smoothed.mean, each.mean(0))
    assert torch.allclose(smoothed.variance, each.var(0))


def test_noisy_outputs_depend_on_the_name_of_a_sample_alone() -> None:
    with seeded(0, "test"):
        model = MLP((1, 4, 4), 3, (8,)).train()
    x = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    kept, state = x.clone(), torch.random.get_rng_state()
    whole = noisy_outputs(model, x, sigma=0.5, draws=6, seed=3)
    rows = torch.tensor([7, 2])
    part = noisy_outputs(model, x[rows], sigma=0.5, draws=6, seed=3, index=rows, batch_size=1)
    assert whole.views is not None
    assert part.views is not None
    assert torch.allclose(whole.views[:, rows], part.views, atol=1e-6)
    assert whole.views.shape == (6, 9, 3)
    assert torch.allclose(whole.probabilities, whole.views.double().softmax(2).mean(0))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(x, kept)
    assert model.training
    other = noisy_outputs(model, x, sigma=0.5, draws=6, seed=4)
    assert not torch.equal(whole.views, other.views if other.views is not None else whole.views)


class Doubled(LAC):
    """Scores above what it says is the largest."""

    def scores(self, outputs: Outputs, u: torch.Tensor) -> torch.Tensor:
        return 2 * super().scores(outputs, u)


def test_bad_options_and_inputs() -> None:
    outputs, y = _noisy(n=20)
    for options in ({"sigma": 0.0}, {"eps": -1.0}, {"n_samples": 1}, {"score": "thr"}, {"beta": 0.05}, {"bound": "x"}):
        with pytest.raises(InputError):
            RSCPPlus(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="views"):
        RSCP().fit(Outputs(outputs.logits), y)
    with pytest.raises(InputError, match="at least 2"):
        RSCP().fit(Outputs(outputs.logits, views=outputs.logits[None]), y)
    with pytest.raises(InputError, match=r"expected \[0, 1\]"):
        RSCP(score=Doubled()).fit(outputs, y)
    with pytest.raises(InputError, match="by_class=True of RSCPPlus"):
        RSCPPlus(score=LAC(by_class=True))
    for bad in ({"temperature": 0.0}, {"bias": 1.5}):
        with pytest.raises(InputError):
            PTT(**bad)
    with pytest.raises(InputError):
        PTT().fit(torch.tensor([math.nan]))
    with pytest.raises(InputError):
        RAPS(lam=-1.0)
    with pytest.raises(InputError):
        noisy_outputs(nn.Flatten(), torch.rand(3, 2), sigma=0.0, draws=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(RSCP(score=LAC()).fit(outputs, y).threshold_, float)
