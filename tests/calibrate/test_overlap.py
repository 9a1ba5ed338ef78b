"""Overlapping classes: the distribution's posterior, the two-point formulas, and what the gap measures."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.calibrate import (
    Outputs,
    OverlapDistribution,
    TemperatureScaling,
    logit_gap_profile,
    oracle_temperature,
    overlap_gap,
    paired_label_noise,
    two_point_nll,
    two_point_nll_noise,
)
from assay.papers.overlap_calibration import two_point
from assay.runtime.errors import InputError


@pytest.mark.parametrize("k", [2, 4, 16])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.75, 0.9])
def test_formula_is_the_best_temperatures(k: int, alpha: float) -> None:
    assert abs(two_point(k, alpha) - two_point_nll(1 - alpha / 2, k)) < 1e-9


def test_formula_at_its_ends() -> None:
    assert two_point_nll(1.0, 10) == 0
    assert math.isclose(two_point_nll(0.1, 10), math.log(10))
    assert math.isclose(two_point_nll(0.5, 2), math.log(2))
    for q, k in ((0.05, 10), (1.1, 10), (0.5, 1)):
        with pytest.raises(InputError, match="two_point_nll"):
            two_point_nll(q, k)


@pytest.mark.parametrize(("eta", "k", "value"), [(0.5, 10, 1.79), (0.25, 10, 1.15), (0.5, 100, 2.99), (0.0, 10, 0.0)])
def test_formula_under_paired_noise(eta: float, k: int, value: float) -> None:
    # exact shares: calibration and memorised labels both noisy, test labels clean
    m, n = 8, 8 * 8 * k
    y, first, second = torch.arange(n) % k, torch.arange(n) // k % m, torch.arange(n) // (k * m)
    other = (y + 1) % k
    memorised = torch.where(first < m * eta, other, y)
    held = torch.where(second < m * eta, other, y)
    logits = 10 * F.one_hot(memorised, k).double()
    scaled = logits / oracle_temperature(logits, held)
    found = float(F.cross_entropy(scaled, y))
    assert abs(found - two_point_nll_noise(eta, k)) < 1e-8
    assert abs(found - value) < 5e-3


def test_points_lie_in_the_balls_that_the_posterior_says() -> None:
    d = OverlapDistribution(classes=6, alpha=0.4, dim=3, seed=1)
    x, y, posterior = d.sample(4000, seed=2)
    distance = torch.cdist(x.double(), d.centres)
    near, ball = distance.min(1)
    assert near.max() <= 1 + 1e-5
    expected = torch.zeros(9, 6, dtype=torch.float64)
    expected[:6] = torch.eye(6)
    for pair in range(3):
        expected[6 + pair, 2 * pair : 2 * pair + 2] = 0.5
    assert torch.equal(posterior, expected[ball])
    assert (posterior[torch.arange(4000), y] > 0).all()
    assert abs((ball >= 6).double().mean() - 0.4) < 0.04
    assert abs((near < 0.5 ** (1 / 3)).double().mean() - 0.5) < 0.04  # half of the volume
    assert torch.isclose(torch.pdist(d.centres).min(), torch.tensor(10.0).double())


def test_distribution_is_seeded_and_checked() -> None:
    d = OverlapDistribution()
    assert torch.equal(d.sample(5, seed=3)[0], d.sample(5, seed=3)[0])
    assert not torch.equal(d.sample(5, seed=3)[0], d.sample(5, seed=4)[0])
    for bad in ({"classes": 5}, {"alpha": 1.1}, {"gap": 2.0}, {"radius": 0.0}, {"dim": 0}):
        with pytest.raises(InputError, match="OverlapDistribution"):
            OverlapDistribution(**bad)
    with pytest.raises(InputError, match="n=0"):
        d.sample(0, seed=0)


def test_oracle_temperature_is_temperature_scaling_and_may_lie_on_a_bound() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(200, 4, generator=g)
    y = z.softmax(1).multinomial(1, generator=g)[:, 0]
    assert oracle_temperature(3 * z, y) == TemperatureScaling(highest=1e3).fit(Outputs(3 * z), y).temperature_
    assert oracle_temperature(z, z.argmin(1)) == 1e3
    assert oracle_temperature(z, z.argmax(1)) == 1e-2


def test_paired_noise() -> None:
    y = torch.arange(5000) % 5
    noisy, other = paired_label_noise(y, 0.3, 5, seed=1)
    assert (other != torch.arange(5)).all()
    changed = noisy != y
    assert torch.equal(noisy[changed], other[y[changed]])
    assert abs(changed.double().mean() - 0.3) < 0.03
    assert torch.equal(paired_label_noise(y, 0.0, 5, seed=1)[0], y)
    with pytest.raises(InputError, match="eta"):
        paired_label_noise(y, 1.2, 5, seed=1)


def _confident(alpha: float, k: int = 8, n: int = 4000) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    y = torch.randint(k, (n,), generator=g)
    wrong = torch.rand(n, generator=g) < alpha / 2
    return 10 * F.one_hot(torch.where(wrong, y ^ 1, y), k).double(), y


def test_gap_is_what_the_formula_leaves() -> None:
    # by predicted class the label is right with probability q, else the partner: an entropy of h(q)
    logits, y = _confident(0.6)
    q = 0.7
    expected = two_point_nll(q, 8) - two_point_nll(q, 2)
    assert abs(overlap_gap(logits, y) - expected) < 0.05
    assert expected > 0.5


def test_gap_is_small_where_a_temperature_is_enough() -> None:
    g = torch.Generator().manual_seed(3)
    z = 2 * torch.randn(4000, 4, generator=g, dtype=torch.float64)
    y = z.softmax(1).multinomial(1, generator=g)[:, 0]
    assert overlap_gap(3 * z, y, bins=4, strength=1e6) == pytest.approx(0, abs=1e-3)
    assert overlap_gap(3 * z, y, bins=4, strength=50.0) < 0.02
    for bad in ({"bins": 0}, {"strength": 0.0}):
        with pytest.raises(InputError, match="overlap_gap"):
            overlap_gap(z, y, **bad)


def test_logit_gaps_of_a_linear_model() -> None:
    # the mean over a sphere of a linear margin is its centre's; of two classes it is linear
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    x, y = torch.tensor([[4.0, 0.0, 1.0], [-2.0, 1.0, 0.0]]), torch.tensor([0, 0])
    gaps = logit_gap_profile(model, x, y, radii=(0.0, 1.0), points=4000, seed=0)
    assert torch.allclose(gaps[:, 0], torch.tensor([8.0, -4.0]))
    assert torch.allclose(gaps[:, 1], torch.tensor([8.0, -4.0]), atol=0.1)
    one_by_one = logit_gap_profile(model, x, y, radii=(0.0, 1.0), points=4000, seed=0, batch_size=1)
    assert torch.allclose(gaps[0], one_by_one[0], atol=1e-4)
    for options in ({"radii": (-1.0,)}, {"radii": (math.nan,)}, {"radii": (math.inf,)}, {"batch_size": 0}):
        with pytest.raises(InputError, match="logit_gap_profile: radii"):
            logit_gap_profile(model, x, y, seed=0, **options)


def test_the_gap_is_finite_where_one_half_is_all_right() -> None:
    z, y = torch.zeros(40, 3), torch.zeros(40, dtype=torch.int64)
    z[:, 0], y[1] = 20.0, 1
    assert math.isfinite(overlap_gap(z, y))


def test_the_profile_refuses_labels_without_a_logit() -> None:
    with pytest.raises(InputError, match=r"logit_gap_profile: labels span \[0, 2\]"):
        logit_gap_profile(nn.Linear(3, 2), torch.zeros(3, 3), torch.tensor([0, 2, 1]), points=2, seed=0)
