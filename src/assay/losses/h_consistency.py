"""H-consistency bounds of comp-sum losses (Mao et al., 2023, arXiv:2304.07288, Theorems 3.1-3.2 and section 4).

All functions are pure and work in float64 on NumPy arrays. ``tau`` >= 0 names the loss (see CompSumLoss), ``n`` >= 2
is the number of classes, p (N, n) are class distributions. Bad input raises InputError.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, logsumexp, xlog1py

from assay.runtime.errors import InputError

_HALVINGS = 60


def _check(where: str, tau: float, n: int = 2) -> None:
    if not (math.isfinite(tau) and tau >= 0):
        raise InputError(f"{where}: tau={tau}; expected a finite number >= 0")
    if int(n) != n or n < 2:
        raise InputError(f"{where}: n={n} classes; expected an integer >= 2")


def _distributions(where: str, p: ArrayLike) -> np.ndarray:
    array = np.asarray(p, float)
    if array.ndim != 2 or array.shape[1] < 2 or len(array) == 0:
        raise InputError(f"{where}: p has shape {array.shape}; expected (N, n) with N >= 1, n >= 2")
    if not (np.isfinite(array).all() and (array >= 0).all() and np.allclose(array.sum(1), 1, atol=1e-8)):
        raise InputError(f"{where}: rows of p are no distributions; expected values >= 0 that sum to 1")
    return array


def t_transform(beta: ArrayLike, tau: float, n: int) -> np.ndarray:
    """T_tau(beta): the least surrogate regret of a prediction whose zero-one regret is ``beta`` in [0, 1].

    Convex and increasing, T(0) = 0; for tau > 1 it carries the factor 1 / n^(tau - 1). Same shape as ``beta``.
    """
    _check("t_transform", tau, n)
    b = np.asarray(beta, float)
    if not ((b >= 0) & (b <= 1)).all():
        raise InputError("t_transform: beta outside [0, 1]; expected a zero-one regret")
    if tau == 1:
        return (xlog1py(1 + b, b) + xlog1py(1 - b, -b)) / 2
    classes = float(n) ** (1 - tau)
    if tau >= 2:
        return b / (tau - 1) * classes
    a = 1 / (2 - tau)
    with np.errstate(divide="ignore"):
        # log of ((1 + b)^a + (1 - b)^a) / 2, which stays finite as tau tends to 2 and a to infinity
        mean = np.logaddexp(a * np.log1p(b), a * np.log1p(-b)) - math.log(2)
    excess = np.expm1((2 - tau) * mean) / (tau - 1)
    return excess * (2.0 ** (1 - tau) if tau < 1 else classes)


def gamma(t: ArrayLike, tau: float, n: int) -> np.ndarray:
    """Gamma_tau, the inverse of T_tau on [0, 1], by bisection; 1 where ``t`` >= T_tau(1): there it says nothing."""
    _check("gamma", tau, n)
    value = np.asarray(t, float)
    if not (value >= 0).all():
        raise InputError("gamma: t is negative or NaN; expected a surrogate regret >= 0")
    low, high = np.zeros(value.shape), np.ones(value.shape)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = t_transform(middle, tau, n) <= value
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(value >= t_transform(1.0, tau, n), 1.0, high)


def zero_one_bound(surrogate_excess: ArrayLike, tau: float, n: int, gap: float = 0.0) -> np.ndarray:
    """Upper bound on zero-one excess risk (with its own gap): Gamma_tau(excess + minimizability gap), at most 1.

    ``surrogate_excess`` is R_tau(h) - R_tau*(H) >= 0: the best risk must be subtracted already.
    """
    if not gap >= 0:
        raise InputError(f"zero_one_bound: gap={gap}; expected a number >= 0")
    return gamma(np.asarray(surrogate_excess, float) + gap, tau, n)


def conditional_optimum(p: ArrayLike, tau: float) -> np.ndarray:
    """C*_tau(p) (N,): the least expected loss over all real scores; its softmax is proportional to p^(1/(2-tau))."""
    _check("conditional_optimum", tau)
    q = _distributions("conditional_optimum", p)
    if tau == 1:
        return entr(q).sum(1)
    if tau >= 2:
        return (1 - q.max(1)) / (tau - 1)
    with np.errstate(divide="ignore"):
        norm = (2 - tau) * logsumexp(np.log(q) / (2 - tau), axis=1)
    return np.expm1(norm) / (1 - tau)


def conditional_regret(p: ArrayLike, logits: ArrayLike, tau: float) -> np.ndarray:
    """C_tau(p, h) - C*_tau(p) (N,): what scores ``logits`` (N, n) lose in expectation over labels drawn from p."""
    _check("conditional_regret", tau)
    q, scores = _distributions("conditional_regret", p), np.asarray(logits, float)
    if scores.shape != q.shape or not np.isfinite(scores).all():
        raise InputError(f"conditional_regret: logits of shape {scores.shape}; expected finite numbers {q.shape}")
    log_s = scores - logsumexp(scores, axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        losses = -log_s if tau == 1 else -np.expm1((tau - 1) * log_s) / (tau - 1)
    expected = np.multiply(q, losses, out=np.zeros_like(q), where=q > 0)  # no 0 times infinity
    return expected.sum(1) - conditional_optimum(q, tau)


def minimizability_gap(best_risk: float, p: ArrayLike, tau: float) -> float:
    """M_tau(H) = R_tau*(H) - E_x C*_tau(p(.|x)) for ``best_risk`` = the best risk of H on the sample with rows ``p``.

    Non-negative in exact arithmetic; zero for a hypothesis set that holds all functions.
    """
    return float(best_risk - conditional_optimum(p, tau).mean())
