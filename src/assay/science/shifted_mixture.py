"""Two normal classes, and an unlabelled pool from a mixture with shifted means."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm

from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng


class ShiftedMixture(NamedTuple):
    """Labelled samples, the pool, test samples (labels -1 and 1), and the mean of class 1 in the labelled set."""

    x: Float[np.ndarray, "m d"]
    y: Int[np.ndarray, " m"]
    pool: Float[np.ndarray, "n d"]
    x_test: Float[np.ndarray, "t d"]
    y_test: Int[np.ndarray, " t"]
    mean: Float[np.ndarray, " d"]


def shifted_gmm(
    m: int,
    n: int,
    d: int,
    *,
    mu_norm: float = 1.0,
    sigma: float = 1.0,
    alpha: float = 0.0,
    test: int = 10_000,
    seed: int,
) -> ShiftedMixture:
    """x given y is N(y mu0, sigma^2 I), both classes equally often; the pool's mean is mu1 = mu0 + alpha |mu0| v
    (Saberi et al., 2024, arXiv:2310.00027, the simulation; the official code).

    mu0 has length ``mu_norm`` and a random direction, v is a random unit vector. The labelled samples of a seed are the
    first of those for a larger m, and so are those of the pool. InputError for other numbers.
    """
    if m < 2 or n < 0 or d < 1 or test < 1 or not (mu_norm > 0 and sigma > 0 and alpha >= 0):
        given = f"m={m}, n={n}, d={d}, test={test}, mu_norm={mu_norm}, sigma={sigma}, alpha={alpha}"
        raise InputError(f"shifted_gmm: {given}; expected m >= 2, n >= 0, d, test >= 1, lengths > 0, alpha >= 0")
    mu, v = (w / np.linalg.norm(w) for w in numpy_rng(seed, "means").normal(size=(2, d)))
    mu = mu_norm * mu

    def draw(name: str, count: int, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = np.where(np.arange(count) % 2 == 0, 1, -1)
        return y[:, None] * mean + sigma * numpy_rng(seed, name).normal(size=(count, d)), y

    (x, y), (x_test, y_test) = draw("labelled", m, mu), draw("test", test, mu)
    return ShiftedMixture(x, y, draw("pool", n, mu + alpha * mu_norm * v)[0], x_test, y_test, mu)


def linear_accuracy(w: Float[np.ndarray, " d"], mean: Float[np.ndarray, " d"], sigma: float = 1.0) -> float:
    """Phi(<w, mean> / (sigma |w|)): the accuracy of sign <w, x> where x given y is N(y mean, sigma^2 I).

    At most Phi(|mean| / sigma), that of the Bayes rule. InputError for w = 0 and sigma <= 0.
    """
    length = float(np.linalg.norm(w))
    if not (0 < length < math.inf and sigma > 0):
        raise InputError(f"linear_accuracy: |w|={length}, sigma={sigma}; expected finite numbers > 0")
    return float(norm.cdf(np.dot(w, mean) / (sigma * length)))
