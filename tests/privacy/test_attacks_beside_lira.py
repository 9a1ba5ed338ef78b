"""RMIA, attack P and quantile regression against closed forms and their false-positive rates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from torch import Tensor, nn

from assay.data import Data
from assay.privacy import RMIA, AttackP, LossThreshold, QuantileMIA, Reference, Shadows
from assay.privacy.attack_p import p_values
from assay.privacy.quantile_mia import hinge_confidence, pinball
from assay.privacy.rmia import exp_taylor
from assay.runtime.errors import InputError
from assay.runtime.inference import predict

CLASSES = ("a", "b", "c")


def linear(seed: int) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng))
    return model


def normal(n: int, seed: int, start: int = 0) -> Data:
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 4, generator=rng), torch.randint(3, (n,), generator=rng)
    return Data(x, y, CLASSES, (-20.0, 20.0), index=torch.arange(start, start + n))


@pytest.fixture(scope="module")
def shadows() -> Shadows:
    seen = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]]).bool()
    return Shadows([linear(s) for s in range(4)], normal(4, 0), seen)


def probability(model: nn.Module, data: Data) -> np.ndarray:
    """exp of the label's logit over the sum, in NumPy."""
    z = np.exp(predict(model, data.x).double().numpy())
    return z[np.arange(len(data)), data.y.numpy()] / z.sum(1)


@pytest.mark.parametrize("online", [True, False])
def test_rmia_with_one_z_is_the_ratio_by_hand(online: bool, shadows: Shadows) -> None:
    target, z = linear(9), normal(1, 7)
    attack = RMIA(online=online, a=0.4)
    fitted = attack.from_shadows(shadows, z)
    tables = [np.stack([probability(m, d) for m in shadows.models]) for d in (shadows.data, z)]
    ratio = []
    for i in range(4):
        saw = shadows.seen[:, i].numpy()
        inside, out = tables[0][saw, i].mean(), tables[0][~saw, i].mean()
        prior = (inside + out) / 2 if online else ((1 + 0.4) * out + (1 - 0.4)) / 2
        ratio.append(probability(target, shadows.data)[i] / prior)
    out = tables[1][:, 0].mean()  # z's index is one of the pool's, and yet no model saw it
    prior = out if online else ((1 + 0.4) * out + (1 - 0.4)) / 2
    by_hand = np.array(ratio) * prior / probability(target, z)[0]
    np.testing.assert_allclose(fitted.pairwise(target, shadows.data)[:, 0].numpy(), by_hand, rtol=1e-6)
    between = float(np.sort(by_hand)[1:3].mean())
    score = replace(attack, gamma=between).from_shadows(shadows, z).score(target, shadows.data)
    assert score.tolist() == (by_hand >= between).astype(float).tolist()


@settings(max_examples=12)
@given(st.floats(0.3, 3.0), st.integers(1, 40), st.booleans(), st.sampled_from(["softmax", "taylor-soft-margin"]))
def test_rmia_is_the_share_of_z_that_are_beaten(gamma: float, m: int, online: bool, signal: Any) -> None:
    seen = torch.tensor([[1, 0], [0, 1]]).bool().repeat(1, 5)
    shadows = Shadows([linear(0), linear(1)], normal(10, 1), seen)
    fitted = RMIA(gamma=gamma, online=online, signal=signal).from_shadows(shadows, normal(m, 2))
    share = (fitted.pairwise(linear(5), shadows.data) >= gamma).double().mean(1)
    torch.testing.assert_close(fitted.score(linear(5), shadows.data), share)


def test_without_a_population_z_are_the_pool(shadows: Shadows) -> None:
    pairs = RMIA().from_shadows(shadows).pairwise(linear(9), shadows.data)
    torch.testing.assert_close(pairs * pairs.T, torch.ones(4, 4, dtype=torch.float64))
    torch.testing.assert_close(pairs.diagonal(), torch.ones(4, dtype=torch.float64))
    others = ((pairs >= 1) & ~torch.eye(4, dtype=torch.bool)).double().sum(1) / 3
    assert RMIA().from_shadows(shadows).score(linear(9), shadows.data).equal(others)
    assert others.sort().values.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_of_one_is_no_correction(shadows: Shadows) -> None:
    stranger = normal(5, 3, start=100)
    attack = RMIA(online=False, a=1.0)
    outs = np.stack([probability(m, stranger) for m in shadows.models]).mean(0)
    ratio = attack.from_shadows(shadows).ratio(linear(9), stranger).numpy()
    np.testing.assert_allclose(ratio, probability(linear(9), stranger) / outs, rtol=1e-6)
    with pytest.raises(InputError, match="5 samples"):
        RMIA().from_shadows(shadows).score(linear(9), stranger)


def test_taylor_soft_margin() -> None:
    z = torch.linspace(-30, 30, 61, dtype=torch.float64)
    expected = sum(z**i / math.factorial(i) for i in range(5))
    torch.testing.assert_close(exp_taylor(z, 4), expected)
    assert (exp_taylor(z, 4) > 0).all()
    data, model = normal(6, 4), linear(2)
    scaled = predict(model, data.x).double() / 2
    own = scaled.gather(1, data.y[:, None])[:, 0]
    others = exp_taylor(scaled, 4).sum(1) - exp_taylor(own, 4)
    lowered = exp_taylor(own - 0.6, 4)
    attack = RMIA(signal="taylor-soft-margin", temperature=2.0)
    torch.testing.assert_close(attack.signal_of(model, data), lowered / (lowered + others))
    close = replace(attack, margin=0.0, order=60, temperature=1.0).signal_of(model, data).numpy()
    np.testing.assert_allclose(close, probability(model, data), rtol=1e-6)


def test_rmia_refuses() -> None:
    for options, words in (
        ({"gamma": 0.0}, "gamma > 0"),
        ({"a": 1.5}, r"a in \[0, 1\]"),
        ({"order": 3}, "even"),
        ({"signal": "logit"}, "taylor-soft-margin"),
    ):
        with pytest.raises(InputError, match=words):
            RMIA(**options)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(-1, 10))
def test_p_value_counts(null: list[int], score: int) -> None:
    p = p_values(torch.tensor(null).double(), torch.tensor([score]).double())
    assert p.item() == pytest.approx((1 + sum(v >= score for v in null)) / (1 + len(null)))


def test_attack_p_orders_as_the_loss_and_keeps_its_rate() -> None:
    model, fresh = linear(0), normal(40_000, 11)
    small, large = (AttackP().fit(Reference(data=normal(n, 12))) for n in (19, 999))
    loss = LossThreshold().score(model, fresh)
    order = large.score(model, fresh)[loss.argsort()]
    assert (order.diff() >= 0).all()
    assert not small.members(model, fresh, 0.049).any()  # 19 samples cannot resolve less than 1 / 20
    for alpha in (0.01, 0.1):
        rate = large.members(model, fresh, alpha).double().mean().item()
        # Given the population, the rate is a Beta variable (order statistics); the fresh samples add a binomial error.
        top = beta.ppf(0.999, alpha * 1000, 1000 * (1 - alpha))
        assert rate <= top + 3 * (alpha / len(fresh)) ** 0.5
        assert rate >= alpha / 3
    with pytest.raises(InputError, match=r"alpha=1\.0"):
        small.members(model, fresh, 1.0)


def test_attack_p_is_exact_on_average() -> None:
    # One fresh score among 9 others of a continuous law: a p-value of at most 0.2 in two of ten places, exactly.
    losses = torch.rand(20_000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.stack([p_values(row[1:], row[:1]) for row in losses[:2000]])[:, 0] <= 0.2
    assert abs(found.double().mean().item() - 0.2) < 3 * (0.16 / 2000) ** 0.5


@pytest.mark.parametrize("loss", ["gaussian", "pinball"])
def test_quantile_regression_keeps_its_rate_and_its_place(loss: str) -> None:
    model, fresh = linear(0), normal(20_000, 21)
    attack = QuantileMIA(loss=loss, alpha=0.1, held=0.5, epochs=8, lr=1e-2)  # type: ignore[arg-type]
    fitted = attack.fit(Reference(data=normal(1200, 22)), seed=1)
    rate = fitted.members(model, fresh, 0.1).double().mean().item()
    held = len(fitted.data_[1])
    assert held == 600
    assert rate <= beta.ppf(0.999, 0.1 * (held + 1), 0.9 * (held + 1)) + 3 * (0.1 / len(fresh)) ** 0.5
    assert rate > 0.05
    again = fitted.regressor(model)
    assert again is fitted.regressor(model)
    assert fitted.regressor(linear(1)) is not again
    # What the input says is taken out: the excess depends less on the input's own spread of scores than the score.
    largest = predict(model, fresh.x).double().topk(2).values
    margin = largest[:, 0] - largest[:, 1]
    score = hinge_confidence("", model, fresh, 256)
    raw, left = (s.abs().argsort().argsort().double() for s in (score, fitted.score(model, fresh)))
    rank = margin.argsort().argsort().double()
    spread = [torch.corrcoef(torch.stack([rank, s]))[0, 1].item() for s in (raw, left)]
    if loss == "gaussian":
        assert abs(spread[1]) < spread[0] - 0.3


def test_quantiles_are_learned_anew_where_only_an_attribute_differs() -> None:
    class Scaled(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.inner, self.by = linear(0), by

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.by

    fitted = QuantileMIA(epochs=1).fit(Reference(data=normal(40, 22)), seed=1)
    first, second = (fitted.score(Scaled(by), normal(9, 5)) for by in (1.0, 4.0))
    # Scores are standardised, so that a common factor changes nothing.
    assert torch.allclose(first, second, atol=1e-4)
    assert len(fitted.regressors_) == 2


def test_pinball_is_least_at_the_quantile() -> None:
    score = torch.arange(101.0)
    losses = torch.stack([pinball(score, torch.full((101,), q), 0.9) for q in score.tolist()])
    assert losses.argmin() == 90
    assert pinball(torch.tensor([3.0]), torch.tensor([1.0]), 0.9).item() == pytest.approx(1.8)
    assert pinball(torch.tensor([1.0]), torch.tensor([3.0]), 0.9).item() == pytest.approx(0.2)


def test_gaussian_regression_finds_mean_and_deviation() -> None:
    attack = QuantileMIA()
    score = torch.tensor([1.0, 3.0])
    best = torch.tensor([[2.0, math.log(math.expm1(1.0 - 1e-3))]]).expand(2, 2)
    grid = [attack.loss_of(best + torch.tensor([a, b]), score) for a in (-0.1, 0.0, 0.1) for b in (-0.1, 0.0, 0.1)]
    assert int(torch.stack(grid).argmin()) == 4
    for options in ({"loss": "huber"}, {"alpha": 0.0}, {"held": 1.0}):
        with pytest.raises(InputError):
            QuantileMIA(**options)


def test_two_reference_samples_are_too_few_for_a_quantile() -> None:
    few = Data(torch.rand(2, 4), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(InputError, match="to learn from"):
        QuantileMIA().fit(Reference(data=few))
