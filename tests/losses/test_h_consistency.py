"""Exact checks of comp-sum losses and their bounds."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from assay.losses import (
    CompSumLoss,
    conditional_optimum,
    conditional_regret,
    gamma,
    minimizability_gap,
    t_transform,
    zero_one_bound,
)
from assay.runtime.errors import InputError

TAUS = (0.0, 0.3, 0.7, 1.0, 1.3, 1.7, 2.0, 2.5)


def test_special_cases() -> None:
    logits = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 5
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    expected = {
        0.0: (logits - logits.gather(1, y[:, None])).exp().sum(1) - 1,
        1.0: F.cross_entropy(logits, y, reduction="none"),
        1.7: (1 - p**0.7) / 0.7,
        2.0: 1 - p,
    }
    for tau, value in expected.items():
        assert torch.allclose(CompSumLoss(tau, "none")(logits, y), value, atol=1e-12), tau


def test_continuous_at_one() -> None:
    logits, y = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64), torch.tensor([1])
    middle = CompSumLoss(1.0)(logits, y)
    for step in (1e-4, 1e-8, 1e-12):
        for tau in (1 - step, 1 + step):
            assert abs(CompSumLoss(tau)(logits, y) - middle) < 20 * step + 1e-12


def test_overflow_is_clamped_and_said() -> None:
    logits, y = torch.tensor([[500.0, 0.0]]), torch.tensor([1])
    with pytest.warns(RuntimeWarning, match="1 exponents clamped"):
        assert torch.isfinite(CompSumLoss(0.0)(logits, y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CompSumLoss(0.0)(logits, 1 - y)


@pytest.mark.parametrize("tau", [-0.1, math.nan, math.inf])
def test_bad_tau(tau: float) -> None:
    with pytest.raises(InputError):
        CompSumLoss(tau)
    with pytest.raises(InputError):
        t_transform(0.5, tau, 2)


@pytest.mark.parametrize("tau", TAUS)
def test_conditional_optimum_is_what_a_solver_finds(tau: float) -> None:
    p = np.array([[0.5, 0.3, 0.2]])
    found = min(
        minimize(lambda h: conditional_regret(p, h[None], tau)[0], start, method="Nelder-Mead", tol=1e-12).fun
        for start in (np.zeros(3), np.array([2.0, 0, 0]))
    )
    assert -1e-9 <= found < 1e-5


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("n", [2, 3, 10])
def test_transform_shape_and_inverse(tau: float, n: int) -> None:
    b = np.linspace(0, 1, 101)
    t = t_transform(b, tau, n)
    assert t[0] == 0
    assert (np.diff(t) > 0).all()
    assert (np.diff(t, 2) > -1e-12).all()
    assert np.allclose(gamma(t, tau, n)[1:], b[1:], atol=1e-9)
    assert gamma(t[-1] * 2, tau, n) == 1
    simple = np.sqrt(2**tau * (2 - tau) * t) if tau < 1 else np.sqrt(2 * n ** (tau - 1) * t)
    if tau < 2:
        assert (gamma(t, tau, n) <= simple + 1e-7).all()


def test_transform_closed_forms() -> None:
    b = np.linspace(0, 1, 11)
    assert np.allclose(t_transform(b, 0, 5), 1 - np.sqrt(1 - b**2))
    assert np.isclose(t_transform(0.6, 1, 7), 0.19274475702175753)
    assert np.allclose(t_transform(b, 2, 5), b / 5)
    assert np.allclose(t_transform(b, 1.999999, 4), t_transform(b, 2, 4), atol=1e-5)
    assert np.allclose(t_transform(b, 1 + 1e-9, 4), t_transform(b, 1, 4), atol=1e-6)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.floats(0.001, 1), st.floats(-8, 8)), min_size=2, max_size=6),
    st.floats(0, 3),
)
def test_regret_is_at_least_the_transform(rows: list[tuple[float, float]], tau: float) -> None:
    weights, scores = np.array(rows).T
    p = (weights / weights.sum())[None]
    b = p.max() - p[0, scores.argmax()]
    assert conditional_regret(p, scores[None], tau)[0] >= t_transform(b, tau, len(rows)) - 1e-8


def test_zero_one_bound_and_gap() -> None:
    p = np.array([[0.8, 0.2], [0.6, 0.4]])
    constant = float(-(p * np.log(0.5)).sum(1).mean())
    assert np.isclose(minimizability_gap(constant, p, 1.0), math.log(2) - conditional_optimum(p, 1.0).mean())
    assert zero_one_bound(5.0, 1.0, 2) == 1
    assert zero_one_bound(0.01, 1.0, 2, gap=0.02) == gamma(0.03, 1.0, 2)
    for call in (
        lambda: zero_one_bound(-0.1, 1.0, 2),
        lambda: zero_one_bound(0.1, 1.0, 2, gap=-1),
        lambda: t_transform(1.1, 1.0, 2),
        lambda: t_transform(0.5, 1.0, 1),
        lambda: conditional_optimum(np.array([[0.5, 0.6]]), 1.0),
        lambda: conditional_regret(p, np.zeros((2, 3)), 1.0),
    ):
        with pytest.raises(InputError):
            call()


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_a_class_that_never_occurs_adds_nothing_to_the_regret(tau: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert conditional_regret([[1.0, 0.0]], [[2000.0, 0.0]], tau).tolist() == [0]
