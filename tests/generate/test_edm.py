"""EDM's preconditioning and Heun's method, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.generate import DenoiserMLP, EDMPrecond, PerturbationKernel, edm_sampler, edm_sigmas
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

SPREAD = 0.6


def gaussian(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The denoiser of data N(0, SPREAD^2)."""
    return SPREAD**2 / (SPREAD**2 + sigma[:, None] ** 2) * x


def test_the_levels_of_the_paper() -> None:
    sigmas = edm_sigmas(5, 0.1, 10.0, 3.0)
    expected = [(10 ** (1 / 3) + i / 4 * (0.1 ** (1 / 3) - 10 ** (1 / 3))) ** 3 for i in range(5)]
    torch.testing.assert_close(sigmas, torch.tensor([*expected, 0.0], dtype=torch.float64))


def test_follows_the_closed_form_with_second_order() -> None:
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch_rng(0, "start"))
    # x(s) is proportional to sqrt(SPREAD^2 + s^2); the last step, from sigma_min, is Euler's and lands on the denoiser.
    ends = math.sqrt(SPREAD**2 + 0.1**2), math.sqrt(SPREAD**2 + 5.0**2)
    exact = x * ends[0] / ends[1] * SPREAD**2 / ends[0] ** 2
    errors = []
    for steps in (20, 40, 80):
        found = edm_sampler(gaussian, x, steps=steps, sigma_min=0.1, sigma_max=5.0)
        errors.append(float((found - exact).abs().max()))
    assert errors[0] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_counts_of_evaluations_and_perturbations() -> None:
    calls: list[float] = []
    shakes: list[float] = []

    def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        calls.append(float(sigma[0]))
        return gaussian(x, sigma)

    def perturb(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        shakes.append(float(sigma[0]))
        return x

    edm_sampler(denoiser, torch.ones(2, 3), perturb=perturb)
    assert len(calls) == 35
    assert min(calls) > 0
    assert shakes == edm_sigmas()[:-1].tolist()


@pytest.mark.parametrize("D", [1.0, 4.0, 64.0, 2048.0, math.inf])
def test_the_exact_denoiser_leads_to_a_data_point(D: float) -> None:
    g = torch_rng(0, "land")
    data = torch.randn(3, 5, dtype=torch.float64, generator=g)
    kernel = PerturbationKernel(5, D, clip=1e-3)
    end = edm_sampler(lambda x, s: kernel.posterior_mean(x, data, s), kernel.prior(60, 80.0, g))
    nearest = torch.cdist(end, data).min(1)
    assert float(nearest.values.max()) < 1e-2
    assert len(nearest.indices.unique()) == 3


def test_preconditioning() -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor, c_noise: torch.Tensor, labels: None) -> torch.Tensor:
            self.seen = x, c_noise
            return x / 2

    net, x, s, d = Half(), torch.ones(2, 3, dtype=torch.float64), torch.tensor([0.1, 3.0]), 0.5
    found = EDMPrecond(net, d)(x, s)
    total = (s.double() ** 2 + d**2)[:, None]
    torch.testing.assert_close(net.seen[0], x / total.sqrt())
    torch.testing.assert_close(net.seen[1], s.double().log() / 4)
    torch.testing.assert_close(found, d**2 / total * x + s[:, None] * d / total.sqrt() * net.seen[0] / 2)


def test_an_output_object_is_unwrapped_and_a_wrong_shape_refused() -> None:
    class Output:
        def __init__(self, sample: torch.Tensor) -> None:
            self.sample = sample

    class Wrapped(nn.Module):
        def __init__(self, cut: int) -> None:
            super().__init__()
            self.cut = cut

        def forward(self, x: torch.Tensor, c_noise: torch.Tensor, labels: None) -> Output:
            return Output(x[:, self.cut :])

    x, s = torch.ones(2, 3), torch.ones(2)
    torch.testing.assert_close(EDMPrecond(Wrapped(0))(x, s), (0.2 + 0.5 / 1.25) * x)
    with pytest.raises(InputError, match="expected"):
        EDMPrecond(Wrapped(1))(x, s)


def test_the_network_sees_level_and_label_and_starts_at_zero() -> None:
    with seeded(0, "net"):
        net = DenoiserMLP((1, 4, 4), classes=3, width=16)
        x, labels = torch.randn(2, 1, 4, 4), torch.tensor([0, 2])
        assert net(x, torch.zeros(2), labels).abs().sum() == 0
        nn.init.normal_(net.leave[-1].weight)
    base = net(x, torch.zeros(2), labels)
    assert base.shape == x.shape
    assert not torch.allclose(net(x, torch.ones(2), labels), base)
    assert not torch.allclose(net(x, torch.zeros(2), labels.flip(0)), base)


@pytest.mark.parametrize(
    "options",
    [{"steps": 1}, {"sigma_min": 0}, {"sigma_min": 90}, {"sigma_max": math.inf}, {"rho": 0}, {"sigma_max": math.nan}],
)
def test_bad_levels(options: dict) -> None:
    with pytest.raises(InputError, match="expected steps"):
        edm_sampler(gaussian, torch.ones(2, 3), **options)


def test_bad_start_and_spread() -> None:
    with pytest.raises(InputError, match="NaN"):
        edm_sampler(gaussian, torch.full((2, 3), torch.nan))
    with pytest.raises(InputError, match="sigma_data"):
        EDMPrecond(nn.Identity(), 0.0)
