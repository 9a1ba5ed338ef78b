"""The exact parts of the PFGM++ paper, each with the kernel and with those of the shams."""

import math

import numpy as np
import pytest
import torch

from assay.generate import PerturbationKernel
from assay.papers import pfgmpp as paper

KERNELS = paper.KERNELS


@pytest.mark.parametrize("seed", range(3))
def test_draws_and_density_need_the_kernel(seed: int) -> None:
    for sham, kernels in KERNELS.items():
        rows = paper.drawn(kernels, 5000, seed)
        p, density = (np.array([r[k] for r in rows]) for k in ("p", "density"))
        if sham is None:
            assert p.min() > 1e-4
            assert density.max() < 1e-9
        else:
            assert p.min() < 1e-6
            assert density.max() > 1
        if sham == "gaussian-noise":
            assert p[:2].max() < 1e-6
        if sham == "sigma-for-r":  # at D = 1 r is sigma
            assert p[0] > 1e-4
            assert density[0] < 1e-9


@pytest.mark.parametrize("D", paper.ORDER)
def test_radial_quadrature_is_the_closed_form_at_any_noise_level(D: float) -> None:
    law = paper.closed(64, D)
    for sigma in (0.02, 1.0, 50.0):
        found = paper.radial(PerturbationKernel(64, D), sigma)
        assert found["cv"] == pytest.approx(law["cv"], rel=1e-3)
        assert found["drop"] == pytest.approx(law["drop"], rel=1e-3)


def test_the_shell_of_diffusion_is_thin() -> None:
    assert paper.closed(64, math.inf)["cv"] == pytest.approx(1 / math.sqrt(128), rel=0.01)


def test_mass_of_a_density_that_is_twice_too_large() -> None:
    class Twice(PerturbationKernel):
        def log_prob(self, x: torch.Tensor, y: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
            return super().log_prob(x, y, sigma) + math.log(2)

    assert paper.mass(PerturbationKernel(1, 3), 0.3) == pytest.approx(1, abs=1e-9)
    assert paper.mass(Twice(1, 3), 0.3) == pytest.approx(2, abs=1e-9)


def test_the_factor_of_the_radius_is_seen_by_limit_and_field() -> None:
    good, short = (KERNELS[s] for s in (None, "sigma-for-r"))
    for function, columns in ((paper.limit, ("limit", "mean")), (paper.field, ("angle",))):
        real, sham = function(good, 1), function(short, 1)
        for column in columns:
            assert real[column] < 1e-5
            assert sham[column] > 1e-2


def test_the_sampler_lands() -> None:
    assert paper.landing(PerturbationKernel, 2)["miss"] < 1e-2
