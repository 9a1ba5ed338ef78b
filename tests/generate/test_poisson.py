"""The kernel against Student's t, Beta-prime and the Gaussian; the field against a potential in N + D dimensions."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from assay.generate import PerturbationKernel, pfgm_field, posterior_gap
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

DIMENSIONS = (1.0, 2.5, 3.0, 64.0)


def points(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, size, dtype=torch.float64, generator=torch_rng(seed, "points", n))


@pytest.mark.parametrize("D", DIMENSIONS)
def test_density_is_students_t(D: float) -> None:
    x, y, sigma = points(40, 5), points(40, 5, 1), 0.7
    expected = [stats.multivariate_t(b, sigma**2 * np.eye(5), D).logpdf(a) for a, b in zip(x, y, strict=True)]
    found = PerturbationKernel(5, D).log_prob(x, y, sigma)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@settings(max_examples=20)
@given(st.floats(1, 1e6), st.floats(0.01, 50))
def test_density_integrates_to_one(D: float, sigma: float) -> None:
    kernel = PerturbationKernel(1, D)

    def density(t: float) -> float:  # the line as sigma t / (1 - |t|), where heavy tails are finite
        u = torch.tensor([[sigma * t / (1 - abs(t))]])
        return float(kernel.log_prob(u, torch.zeros(1, 1), sigma).exp()) * sigma / (1 - abs(t)) ** 2

    assert 2 * integrate.quad(density, 0, 1 - 1e-12, epsabs=1e-9, limit=400)[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("D", [*DIMENSIONS, math.inf])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_radius_is_beta_prime(D: float, size: int) -> None:
    sigma, y = 1.7, points(4000, size)
    square = (PerturbationKernel(size, D).sample(y, sigma, torch_rng(0, "radius")) - y).square().sum(1).numpy()
    if math.isinf(D):
        law = stats.chi2(size, scale=sigma**2)
    else:
        law = stats.betaprime(size / 2, D / 2, scale=sigma**2 * D)
    assert stats.kstest(square, law.cdf).pvalue > 1e-3


def test_directions_are_uniform() -> None:
    x = PerturbationKernel(4, 3).sample(torch.zeros(20_000, 4), 1.0, torch_rng(0, "direction"))
    u = x / x.norm(dim=1, keepdim=True)
    assert float(u.mean(0).abs().max()) < 0.02
    assert float((u.T @ u / len(u) - torch.eye(4) / 4).abs().max()) < 0.01


def test_variance_where_it_is_finite() -> None:
    x = PerturbationKernel(8, 12).sample(torch.zeros(40_000, 8), 0.5, torch_rng(0, "variance"))
    assert float(x.var()) == pytest.approx(0.5**2 * 12 / (12 - 2), rel=0.03)


def test_a_clip_bounds_the_radius_on_both_sides() -> None:
    kernel = PerturbationKernel(4, 1, clip=0.1)
    odds = kernel.sample(torch.zeros(4000, 4), 2.0, torch_rng(0, "clip")).square().sum(1) / 2.0**2
    assert float(odds.min()) == pytest.approx(1 / 9)
    assert float(odds.max()) == pytest.approx(9)


@pytest.mark.parametrize("D", [1e8, 3e12])
def test_the_limit_is_diffusion(D: float) -> None:
    x, data, sigma = points(30, 5), points(7, 5, 1), torch.linspace(0.5, 1.5, 30, dtype=torch.float64)
    kernel = PerturbationKernel(5, D)
    normal = -(x - data[:1]).square().sum(1) / (2 * sigma**2) - 2.5 * (2 * math.pi * sigma**2).log()
    torch.testing.assert_close(kernel.log_prob(x, data[:1].expand(30, -1), sigma), normal, rtol=0, atol=1e-4)
    logits = -(x[:, None] - data).square().sum(2) / (2 * sigma[:, None] ** 2)
    torch.testing.assert_close(kernel.posterior_mean(x, data, sigma), logits.softmax(1) @ data, rtol=0, atol=1e-5)


def test_the_posterior_is_bayes_rule() -> None:
    x, data, kernel = points(6, 3), points(9, 3, 1), PerturbationKernel(3, 10)
    pairs = [kernel.log_prob(x, row.expand(6, 3), 0.4) for row in data]
    torch.testing.assert_close(kernel.posterior(x, data, 0.4), torch.stack(pairs, 1).softmax(1))


def test_the_gap_to_diffusion_by_hand_and_over_dimensions() -> None:
    x, data = torch.tensor([[0.5]]), torch.tensor([[0.0], [2.0]])
    near, far = (1 + 0.25 / 3) ** -2, (1 + 2.25 / 3) ** -2  # N = 1, D = 3, sigma = 1
    gap = abs(near / (near + far) - 1 / (1 + math.exp(-(2.25 - 0.25) / 2)))
    assert float(posterior_gap(x, data, 1.0, 3.0)) == pytest.approx(gap)
    x, data = points(6, 3), points(9, 3, 1)
    gaps = [float(posterior_gap(x, data, 0.4, D).mean()) for D in (1.0, 10.0, 100.0, 1e4, math.inf)]
    assert all(a > b for a, b in pairwise(gaps))
    assert gaps[-1] == 0


@pytest.mark.parametrize("D", [1, 2, 5])
def test_the_field_is_the_gradient_of_a_potential_in_n_plus_d_dimensions(D: int) -> None:
    x, data, r = points(8, 4), points(5, 4, 1), 0.6
    z = points(8, D, 2)
    z = r * z / z.norm(dim=1, keepdim=True)
    place = torch.cat((x, z), 1).requires_grad_()
    charges = torch.nn.functional.pad(data, (0, D))
    distance = (place[:, None] - charges).norm(dim=2)
    (gradient,) = torch.autograd.grad((distance ** -(4 + D - 2)).sum(), place)
    along, extra = -gradient[:, :4], -gradient[:, 4:]
    radial = (extra * z).sum(1, keepdim=True) / r
    # By symmetry the extra part points along z: only the norm of the extra coordinates matters.
    torch.testing.assert_close(extra, radial * z / r)
    found = pfgm_field(x, r, data, D)
    assert float((found[:, -1] - r).abs().max()) < 1e-12
    cosine = torch.nn.functional.cosine_similarity(found, torch.cat((along, radial), 1))
    torch.testing.assert_close(cosine, torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-12)


def test_high_dimension_and_far_points_stay_finite() -> None:
    kernel = PerturbationKernel(3072, 3_072_000)
    x, data = 80 * points(3, 3072), points(4, 3072, 1)
    assert torch.isfinite(kernel.log_prob(x, data[:3], 80.0)).all()
    assert torch.isfinite(kernel.posterior_mean(x, data, 1e-3)).all()


def test_rows_do_not_depend_on_each_other() -> None:
    x, data, sigma = points(6, 3), points(9, 3, 1), torch.linspace(0.1, 2, 6)
    kernel = PerturbationKernel(3, 4)
    alone = [kernel.posterior_mean(x[i : i + 1], data, sigma[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), kernel.posterior_mean(x, data, sigma))


@pytest.mark.parametrize(
    ("x", "sigma"),
    [
        (torch.zeros(2, 4), 1.0),
        (torch.zeros(3), 1.0),
        (torch.full((2, 3), torch.nan), 1.0),
        (torch.zeros(2, 3), 0.0),
        (torch.zeros(2, 3), float("inf")),
        (torch.zeros(2, 3), torch.ones(3)),
        (torch.zeros(0, 3), 1.0),
        (torch.zeros(2, 3, dtype=torch.int64), 1.0),
    ],
)
def test_bad_points(x: torch.Tensor, sigma: float | torch.Tensor) -> None:
    kernel = PerturbationKernel(3, 2)
    with pytest.raises(InputError):
        kernel.sample(x, sigma)
    with pytest.raises(InputError):
        kernel.posterior_mean(x, torch.zeros(1, 3), sigma)


@pytest.mark.parametrize("options", [{"D": 0}, {"D": -1}, {"D": math.nan}, {"N": 0}, {"clip": 0.5}, {"clip": 0}])
def test_bad_kernels(options: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        PerturbationKernel(**{"N": 3, "D": 2, **options})


def test_bad_pairs_and_fields() -> None:
    with pytest.raises(InputError, match="same shape"):
        PerturbationKernel(3, 2).log_prob(torch.zeros(2, 3), torch.zeros(1, 3), 1.0)
    for D in (math.inf, -1.0, 0.0):
        with pytest.raises(InputError, match="finite number > 0"):
            pfgm_field(torch.zeros(2, 3), 1.0, torch.zeros(1, 3), D)
    for among in (torch.tensor([[True, False], [False, False]]), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 2)):
        with pytest.raises(InputError, match="true at least once a row"):
            PerturbationKernel(3, 2).posterior(torch.zeros(2, 3), torch.zeros(2, 3), 1.0, among)
    with pytest.raises(InputError, match="sigma"):
        pfgm_field(torch.zeros(2, 3), -1.0, torch.zeros(1, 3), 2)
