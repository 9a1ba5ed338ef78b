"""PAC-Bayes bounds on the risk of a randomised predictor: losses in [0, 1], numbers or arrays, float64.

With probability at least 1 - delta over n independent samples they hold for all posteriors at once, at a prior that
was chosen before these samples were seen. ``risk`` is the posterior's mean loss on the samples, ``kl`` its divergence
from the prior in nats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr

from assay.runtime.errors import InputError

Numbers = NDArray[np.float64]
LEAST = 8  # the smallest n that Maurer's theorem 5 covers


def binary_kl(q: ArrayLike, p: ArrayLike) -> Numbers:
    """kl(q || p) between two coins, in nats; infinite where p excludes what q allows."""
    q, p = np.asarray(q, float), np.asarray(p, float)
    return np.asarray(rel_entr(q, p) + rel_entr(1 - q, 1 - p))


def kl_inverse(q: ArrayLike, budget: ArrayLike) -> Numbers:
    """The largest p in [q, 1] with kl(q || p) <= ``budget`` (>= 0), by bisection; never below it by rounding.

    Raises InputError where q lies outside [0, 1] or the budget is negative or not a number.
    """
    q, budget = np.broadcast_arrays(np.asarray(q, float), np.asarray(budget, float))
    if not ((q >= 0) & (q <= 1)).all() or not (budget >= 0).all():
        raise InputError(f"kl_inverse: q = {q}, budget = {budget}; expected q in [0, 1] and a budget >= 0")
    low, high = q.copy(), np.ones_like(q)
    for _ in range(60):  # 2^-60 is below what float64 resolves next to 1
        middle = (low + high) / 2
        inside = binary_kl(q, middle) <= budget
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.asarray(high)


def _complexity(where: str, risk: ArrayLike, kl: ArrayLike, n: int, delta: float, least: int = 1) -> Numbers:
    """kl + ln(1 / delta), once the arguments are known to be in range."""
    risk, kl = np.asarray(risk, float), np.asarray(kl, float)
    if not ((risk >= 0) & (risk <= 1)).all() or not (kl >= 0).all():
        raise InputError(f"{where}: risk = {risk}, kl = {kl}; expected a risk in [0, 1] and kl >= 0")
    if n < least or not 0 < delta < 1:
        raise InputError(f"{where}: n = {n}, delta = {delta}; expected n >= {least} and 0 < delta < 1")
    return np.asarray(kl - np.log(delta))


def maurer_bound(risk: ArrayLike, kl: ArrayLike, n: int, delta: float = 0.05) -> Numbers:
    """kl^-1(risk, (kl + ln(2 sqrt(n) / delta)) / n) (Maurer, 2004, arXiv:cs/0411099, theorem 5; n >= 8)."""
    spent = _complexity("maurer_bound", risk, kl, n, delta, LEAST) + np.log(2 * np.sqrt(n))
    return kl_inverse(risk, spent / n)


def mcallester_bound(risk: ArrayLike, kl: ArrayLike, n: int, delta: float = 0.05) -> Numbers:
    """risk + sqrt((kl + ln(2 sqrt(n) / delta)) / (2 n)): McAllester (1999) with Maurer's constant, by Pinsker.

    Never below maurer_bound, and may exceed 1.
    """
    spent = _complexity("mcallester_bound", risk, kl, n, delta, LEAST) + np.log(2 * np.sqrt(n))
    return np.asarray(np.asarray(risk, float) + np.sqrt(spent / (2 * n)))


def catoni_bound(risk: ArrayLike, kl: ArrayLike, n: int, delta: float = 0.05, *, strength: float = 1.0) -> Numbers:
    """(1 - exp(-C risk - (kl + ln(1 / delta)) / n)) / (1 - exp(-C)) (Catoni, 2007, arXiv:0712.0248, theorem 1.2.6).

    ``strength`` C > 0 must be chosen before the samples are seen; the least over C, which may not be taken after the
    fact, is kl^-1(risk, (kl + ln(1 / delta)) / n).
    """
    spent = _complexity("catoni_bound", risk, kl, n, delta)
    if not 0 < strength < np.inf:
        raise InputError(f"catoni_bound: strength is {strength}; expected a finite number above 0")
    return np.asarray(-np.expm1(-strength * np.asarray(risk, float) - spent / n) / -np.expm1(-strength))


def monte_carlo_bound(risk: ArrayLike, draws: int, delta: float = 0.01) -> Numbers:
    """An upper bound on a mean in [0, 1] from the mean ``risk`` of draws of it: kl^-1(risk, ln(2 / delta) / draws).

    Langford and Caruana, 2001, as used by Dziugaite and Roy (2017, arXiv:1703.11008). It holds with
    probability at least 1 - delta over the draws.
    """
    spent = _complexity("monte_carlo_bound", risk, 0.0, draws, delta) + np.log(2)
    return kl_inverse(risk, spent / draws)
