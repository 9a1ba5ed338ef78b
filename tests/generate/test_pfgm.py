"""PFGM++: its noise levels, what its objective is minimised by, labels, disturbance, and errors."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from assay.data import Data, load_data
from assay.generate import PFGMPP, DenoiserMLP, FittedPFGMPP, PerturbationKernel
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits:train").limit(200)


def network(classes: int = 0) -> DenoiserMLP:
    with seeded(0, "net"):
        return DenoiserMLP((1, 8, 8), classes, width=32)


def test_noise_levels_and_weights() -> None:
    draw = {k: PFGMPP(noise=k).levels(20_000, torch_rng(0, k)) for k in ("edm", "ve", "vp")}
    sigma, weight = draw["edm"]
    assert stats.kstest(sigma.log(), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    torch.testing.assert_close(weight, 1 / sigma**2 + 1 / 0.5**2)
    sigma, weight = draw["ve"]
    assert stats.kstest(sigma.log(), stats.uniform(math.log(0.02), math.log(100 / 0.02)).cdf).pvalue > 1e-3
    torch.testing.assert_close(weight, sigma**-2)
    sigma, weight = draw["vp"]
    t = (-0.1 + (0.1**2 + 2 * 19.9 * torch.log1p(sigma**2)).sqrt()) / 19.9
    assert stats.kstest(t, stats.uniform(1e-5, 1 - 1e-5).cdf).pvalue > 1e-3
    torch.testing.assert_close(weight, sigma**-2)


@pytest.mark.parametrize("D", [4.0, math.inf])
def test_the_objective_is_stationary_at_the_posterior_mean(D: float) -> None:
    """Unbiased: at E[y | x] the mean of w (D - y) phi vanishes for a bounded test function phi."""
    data = torch.tensor([[-0.8, 0.1], [0.5, 0.6], [0.3, -0.9]])
    kernel, shifts = PerturbationKernel(2, D), []
    rows = torch.randint(3, (20_000,), generator=torch_rng(0, "rows"))

    class Best(nn.Module):
        def __init__(self, shift: torch.Tensor) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: None) -> torch.Tensor:
            phi = torch.stack((x[:, 0].tanh(), x[:, 1].cos()), 1) * sigma[:, None] / (1 + sigma[:, None])
            return kernel.posterior_mean(x, data, sigma).to(x.dtype) + self.shift * phi

    def loss(shift: float, part: torch.Tensor) -> float:
        y = data[part]
        return float(PFGMPP(D=D).regression(Best(torch.tensor(shift)), y, None, torch_rng(0, "same", len(part))))

    for seed in range(10):
        part = rows[seed * 2000 : (seed + 1) * 2000 - seed]
        shifts.append((loss(0.1, part) - loss(-0.1, part)) / 0.2)
    assert abs(np.mean(shifts)) < 4 * np.std(shifts, ddof=1) / 10**0.5
    assert loss(0.0, rows) < min(loss(0.5, rows), loss(-0.5, rows))


def test_the_stable_target_is_the_posterior_mean_over_the_reference() -> None:
    y = torch.rand(6, 1, 2, 2, generator=torch_rng(0, "y")) * 2 - 1
    method, kernel = PFGMPP(D=8), PerturbationKernel(4, 8)

    class Posterior(nn.Module):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: None) -> torch.Tensor:
            return kernel.posterior_mean(x.flatten(1), y.flatten(1), sigma).float().reshape(x.shape)

    assert float(method.regression(Posterior(), y, None, torch_rng(0, "stf"), y)) < 1e-6
    assert float(method.regression(Posterior(), y, None, torch_rng(0, "stf"))) > 1e-2


def test_the_stable_target_of_a_conditional_network_is_that_of_its_class() -> None:
    y = torch.rand(6, 1, 2, 2, generator=torch_rng(0, "y")) * 2 - 1
    labels = torch.tensor([0, 1, 2, 2, 1, 1])
    method, kernel = PFGMPP(D=8, reference=6, conditional=True), PerturbationKernel(4, 8)

    class Posterior(nn.Module):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
            means = [
                kernel.posterior_mean(row[None], y.flatten(1)[labels == k], s)
                for row, s, k in zip(x.flatten(1), sigma, given, strict=True)
            ]
            return torch.cat(means).float().reshape(x.shape)

    assert float(method.regression(Posterior(), y, labels, torch_rng(0, "stf"), y, labels)) < 1e-6
    state = SimpleNamespace(seed=0, step=0, data=Data(y, labels, ("a", "b", "c"), (-1.0, 1.0), "six"))
    assert float(method.objective(Posterior(), SimpleNamespace(x=y, y=labels), state)) < 1e-6


@pytest.mark.parametrize("options", [{"reference": 200}, {"noise": "ve"}, {"noise": "vp"}, {"D": 1.0, "clip": 1e-3}])
def test_every_variant_lowers_its_loss(digits: Data, options: dict) -> None:
    method = PFGMPP(net=network(), steps=100, batch_size=64, ema=None, **options)
    y = digits.x[:100] * 2 - 1
    trained = method.fit(digits, seed=0).model_
    losses = [method.regression(m, y, None, torch_rng(1, "held")).item() for m in (method._start((1, 8, 8)), trained)]
    assert losses[1] < 0.95 * losses[0]


def test_loss_has_a_gradient_and_leaves_the_global_generator(digits: Data) -> None:
    net = network()
    before = torch.get_rng_state()
    y = digits.x[:8] * 2 - 1
    value = PFGMPP(net=net, D=64).loss(y, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert value.shape == ()
    value.backward()
    assert float(net.leave[-1].weight.grad.abs().sum()) > 0
    assert PFGMPP(net=net, D=64).loss(y, seed=3).item() == value.item()
    assert PFGMPP(net=net, D=64, reference=8).loss(y, seed=3).item() != value.item()


def test_labels_choose_what_is_drawn(digits: Data) -> None:
    y = (digits.x.flatten(1).sum(1) > digits.x.flatten(1).sum(1).median()).long()
    bright = Data(torch.where(y[:, None, None, None] == 1, digits.x * 0.2 + 0.8, digits.x * 0.2), y, ("dark", "bright"))
    fitted = PFGMPP(D=128, steps=300, conditional=True).fit(bright, seed=0)
    labels = torch.tensor([0] * 20 + [1] * 20)
    means = fitted.sample(40, seed=0, labels=labels).flatten(1).mean(1)
    assert float(means[:20].mean()) < 0.4
    assert float(means[20:].mean()) > 0.6
    assert torch.equal(fitted.sample(9, seed=1), fitted.sample(9, seed=1, steps=18))
    for bad in (labels + 1, labels[:5], labels.float()):
        with pytest.raises(InputError, match="labels"):
            fitted.sample(40, seed=0, labels=bad)


class Shrink(nn.Module):
    """F = 0 but for its one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, labels: None) -> torch.Tensor:
        return self.scale * x


def test_the_prior_is_the_kernels_and_a_disturbance_moves_samples() -> None:
    net = Shrink().train()
    fitted = PFGMPP(net=net, D=3.0, sigma_max=20.0).pretrained((2, 3))
    assert isinstance(fitted, FittedPFGMPP)
    plain = fitted.draw(500, seed=0)
    # F = 0 is the denoiser of N(0, 0.5^2): the flow is linear, so the samples keep the prior's heavy-tailed radius.
    prior = PerturbationKernel(6, 3.0).prior(500, 20.0, torch_rng(0, "prior"))
    ratio = plain / prior
    assert float(ratio.std() / ratio.mean()) < 1e-4
    assert stats.kstest((prior.square().sum(1) / 400 / 3).numpy(), stats.betaprime(3, 1.5).cdf).pvalue > 1e-3
    small, large = (fitted.draw(500, seed=0, disturbance=a) for a in (0.05, 0.5))
    assert 0 < float((small - plain).abs().median()) < float((large - plain).abs().median())
    assert not torch.equal(fitted.sample(4, seed=0, steps=6), fitted.sample(4, seed=0))
    assert net.training
    assert net.scale.requires_grad


@pytest.mark.parametrize(
    "options",
    [
        {"D": 0.0},
        {"sampling_steps": 1},
        {"sigma_min": 0.0},
        {"D": -2.0},
        {"sigma_data": 0.0},
        {"p_std": 0.0},
        {"reference": -1},
        {"noise": "x"},
        {"clip": 0.7},
    ],
)
def test_bad_options(options: dict) -> None:
    with pytest.raises(InputError):
        PFGMPP(**options)


def test_bad_calls(digits: Data) -> None:
    with pytest.raises(InputError, match="net is None"):
        PFGMPP().pretrained((1, 8, 8))
    with pytest.raises(InputError, match="NaN"):
        PFGMPP(net=network()).loss(torch.full((2, 1, 8, 8), torch.nan))
    with pytest.raises(InputError, match="labels"):
        PFGMPP(net=network()).loss(digits.x[:3], digits.y[:2])
    fitted = PFGMPP(net=network()).pretrained((1, 8, 8))
    with pytest.raises(InputError, match="steps"):
        fitted.sample(2, seed=0, steps=1)
    with pytest.raises(InputError, match="takes no labels"):
        fitted.sample(2, seed=0, labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="disturbance"):
        fitted.sample(2, seed=0, disturbance=-1.0)
