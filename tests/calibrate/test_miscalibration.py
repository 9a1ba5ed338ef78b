"""Signed miscalibration and the class-wise temperatures built on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.calibrate import (
    MSCTemperatureScaling,
    Outputs,
    classwise_miscalibration,
    ece,
    miscalibration_score,
    summarise,
)
from assay.runtime.errors import InputError


def outputs(n: int = 400, c: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(c, 0.5), n), rng.integers(c, size=n)


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_the_score_is_confidence_less_accuracy_and_at_most_ece(seed: int, bins: int) -> None:
    p, y = outputs(60, seed=seed)
    score = miscalibration_score(p, y, n_bins=bins)
    assert score == pytest.approx(p.max(1).mean() - (p.argmax(1) == y).mean(), abs=1e-12)
    assert abs(score) <= ece(p, y, bins=bins) + 1e-12


def test_equality_only_where_all_bins_err_to_one_side() -> None:
    p = np.column_stack((np.repeat([0.6, 0.9], 10), np.repeat([0.4, 0.1], 10)))
    low, mixed = np.zeros(20, int), np.r_[np.zeros(10, int), np.ones(10, int)]
    assert miscalibration_score(p, low) == pytest.approx(-0.25)
    assert ece(p, low) == pytest.approx(0.25)
    assert miscalibration_score(p, mixed) == pytest.approx((-0.4 + 0.9) / 2)
    assert ece(p, mixed) == pytest.approx((0.4 + 0.9) / 2)


def test_by_class() -> None:
    p, y = outputs()
    guess, gap = p.argmax(1), p.max(1) - (p.argmax(1) == y)
    for by, groups in (("true", y), ("predicted", guess)):
        scores = classwise_miscalibration(p, y, by=by)  # type: ignore[arg-type]
        assert scores == pytest.approx([gap[groups == k].mean() for k in range(4)], abs=1e-12)
    shares = np.bincount(y, minlength=4) / len(y)
    assert shares @ classwise_miscalibration(p, y) == pytest.approx(miscalibration_score(p, y), abs=1e-12)


def test_summary_of_the_official_code() -> None:
    found = summarise(np.array([0.2, 0.1, 0.0, -0.3]))
    assert found.score == pytest.approx((0.3 * 3 - 0.3) / 4)
    assert (found.over, found.under, found.share_over) == pytest.approx((0.1, -0.3, 0.75))
    assert np.isnan(summarise(np.array([0.1])).under)


def test_class_temperatures_follow_the_formula() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(500, 3, generator=g)
    y = torch.distributions.Categorical(logits=z).probs.multinomial(1, generator=g)[:, 0]
    given = Outputs(3 * z * torch.tensor([1.5, 1.0, 0.5]))
    method = MSCTemperatureScaling(gammas=201)
    fitted = method.fit(given, y)
    base = method.temperature(given.logits.double(), y)
    p = (given.logits.double() / base).softmax(1)
    m = method.normalised(classwise_miscalibration(p, y))
    gammas = (fitted.temperatures_.numpy() / base - 1) / m  # type: ignore[attr-defined]
    assert gammas == pytest.approx(np.full(3, gammas[0]), abs=1e-9)
    assert ece(fitted.transform(given).softmax(1), y) <= ece(p, y) + 1e-12
    kept = MSCTemperatureScaling(gammas=201, preserve_accuracy=True).fit(given, y).transform(given)
    assert torch.equal(kept.argmax(1), given.logits.argmax(1))


def test_normalisation() -> None:
    scores = np.array([-0.1, 0.0, 0.1, 0.2, 5.0])
    clipped = np.minimum(scores, 0.2 + 1.5 * 0.2)
    kinds = {k: MSCTemperatureScaling(norm=k).normalised(scores) for k in ("max", "min_max", "none")}
    assert kinds["none"] == pytest.approx(clipped)
    assert kinds["max"] == pytest.approx(clipped / 0.5)
    assert kinds["min_max"] == pytest.approx((clipped + 0.1) / 0.6)
    assert not MSCTemperatureScaling().normalised(np.zeros(3)).any()


def test_bad_input() -> None:
    p, y = outputs()
    with pytest.raises(InputError, match="no sample"):
        classwise_miscalibration(p, np.minimum(y, 2))
    for call in (
        lambda: miscalibration_score(p, y[:-1]),
        lambda: miscalibration_score(2 * p, y),
        lambda: miscalibration_score(p, y, n_bins=0),
        lambda: summarise(np.array([np.nan])),
        lambda: MSCTemperatureScaling(lowest=0.0),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
    with pytest.raises(InputError):
        MSCTemperatureScaling(norm="other")  # type: ignore[arg-type]
