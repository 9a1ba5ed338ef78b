"""The Gaussian posterior: its divergence, what its prior may see, and a bound that holds on data it never saw."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from assay.certify import FittedPosterior, PACBayesPosterior, maurer_bound, monte_carlo_bound
from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.subject.subject import fresh
from assay.training import Supervised

SHORT = PACBayesPosterior(epochs=3, warm_up=Supervised(epochs=4), draws=20)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


@pytest.fixture(scope="module")
def fitted(data: Data) -> FittedPosterior:
    return SHORT.fit(MLP(hidden=(24,)), data, seed=0)


def test_divergence_in_closed_form(fitted: FittedPosterior) -> None:
    m, s = fitted.mean_.double(), fitted.deviation_.double()
    m0, s0 = fitted.network.prior_mean.double(), SHORT.prior_deviation
    expected = (torch.log(s0 / s) + (s**2 + (m - m0) ** 2) / (2 * s0**2) - 0.5).sum()
    assert float(fitted.network.kl().detach()) == pytest.approx(float(expected), rel=1e-3)
    assert float(expected) > 1e-3


def test_an_untrained_posterior_is_its_prior(data: Data) -> None:
    still = PACBayesPosterior(epochs=0, warm_up=Supervised(epochs=1), draws=5).fit(MLP(hidden=(8,)), data, seed=0)
    found = still.certificate()
    assert found.kl == pytest.approx(0, abs=1e-4)
    assert found.bound == pytest.approx(float(maurer_bound(found.upper_risk, found.kl, found.n, 0.025)))


def test_the_prior_never_sees_what_the_bound_is_computed_on(data: Data) -> None:
    _, held = data.split(0.5, seed=3)
    other = data.with_y(torch.where(torch.isin(data.index, held.index), (data.y + 1) % 10, data.y))
    method = PACBayesPosterior(epochs=1, warm_up=Supervised(epochs=1), draws=1)
    a, b = (method.fit(MLP(hidden=(8,)), d, seed=3) for d in (data, other))
    assert torch.equal(a.held_.index, held.index)
    assert torch.equal(a.network.prior_mean, b.network.prior_mean)
    assert not torch.equal(a.mean_, b.mean_)


def test_certificate_is_the_inverse_kl_of_the_inverse_kl(fitted: FittedPosterior) -> None:
    found = fitted.certificate()
    assert found.upper_risk == pytest.approx(float(monte_carlo_bound(found.risk, 20, 0.01)))
    assert found.bound == pytest.approx(float(maurer_bound(found.upper_risk, found.kl, found.n, 0.025)))
    assert found.risk < found.upper_risk < found.bound < 1
    assert found.confidence == pytest.approx(0.965)
    assert fitted.certificate() == found


def test_the_bound_holds_and_says_something(data: Data) -> None:
    method = PACBayesPosterior(epochs=3, warm_up=Supervised(epochs=40), draws=600)
    fitted = method.fit(MLP(hidden=(32,)), data, seed=1)
    found, test = fitted.certificate(), load_data("digits:test")
    assert fitted.risk(test, 20, seed=5) < found.bound < 0.25


def test_a_random_prior_is_the_fresh_network(data: Data) -> None:
    method = PACBayesPosterior(prior_fraction=0.0, epochs=1, warm_up=Supervised(epochs=1), draws=1)
    fitted = method.fit(MLP(hidden=(8,)), data, seed=0)
    assert len(fitted.held_) == len(data)
    start = nn.utils.parameters_to_vector(fresh(MLP(hidden=(8,)), seed=0).parameters())
    assert torch.equal(fitted.network.prior_mean, start)
    assert not torch.equal(fitted.mean_, start)


def test_draws_are_gaussian_about_the_mean(fitted: FittedPosterior) -> None:
    flat = [nn.utils.parameters_to_vector(fitted.sample(seed=s).parameters()).detach() for s in range(60)]
    z = (torch.stack(flat) - fitted.mean_) / fitted.deviation_
    n = z.numel()
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / n)


def test_seeds_and_purity(data: Data) -> None:
    model, small = MLP(hidden=(8,)).train(), data.limit(80)
    before = [p.clone() for p in model.parameters()]
    method = PACBayesPosterior(epochs=1, warm_up=Supervised(epochs=1), draws=2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, c = (method.fit(model, small, seed=s) for s in (0, 0, 1))
    a.certificate()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.mean_, b.mean_)
    assert not torch.equal(a.mean_, c.mean_)
    assert model.training
    assert all(torch.equal(p, q) and p.requires_grad for p, q in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prior_fraction": 1.0}, "prior_fraction"),
        ({"prior_deviation": 0.0}, "prior_deviation"),
        ({"delta": 0.6, "delta_draws": 0.6}, "delta"),
        ({"draws": 0}, "draws"),
    ],
)
def test_bad_options(options: dict[str, float], match: str) -> None:
    with pytest.raises(InputError, match=match):
        PACBayesPosterior(**options)


def test_bad_data(data: Data) -> None:
    with pytest.raises(InputError, match="left for the bound"):
        SHORT.fit(MLP(), data[:10], seed=0)


def test_statistics_of_the_bound_s_samples_are_refused(data: Data) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    short = PACBayesPosterior(epochs=1, warm_up=Supervised(epochs=1), draws=1)
    assert short.fit(model, data[:64], seed=0).certificate().bound <= 1
    with pytest.raises(InputError, match="prior_fraction above 0"):
        replace(short, prior_fraction=0.0).fit(model, data[:64], seed=0)
