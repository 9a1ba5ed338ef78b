"""Early learning and memorisation of wrong labels in a linear model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng


@dataclass(frozen=True, eq=False)
class EarlyLearning:
    """After each step t = 1, 2, ...: the accuracy ``clean`` (t,) on rightly labelled samples, ``true`` (t,) on wrongly
    labelled ones by their true class (NaN where there are none), and ``cosine`` (t,) of the weights and the signal."""

    clean: Float[np.ndarray, " t"]
    true: Float[np.ndarray, " t"]
    cosine: Float[np.ndarray, " t"]


def early_learning_curve(
    p: int, n: int, delta: float, sigma: float, steps: int, *, lr: float = 1.0, seed: int
) -> EarlyLearning:
    """Gradient descent from 0 on the mean logistic loss of n samples x = y v + ``sigma`` g in R^p, |v| = 1, g standard
    normal, whose labels y = -1, 1 are flipped with probability ``delta`` (Liu et al., 2020, arXiv:2007.00151, section
    3 and Theorem 1).

    The theorem: for small sigma an early step predicts the true class even of wrongly labelled samples; in the long run
    the weights separate the labels as given where that is possible, as for p > n, and ``true`` falls to 0. ``lr`` is
    ours. InputError for p, n, steps < 1, delta outside [0, 1/2), sigma < 0 and lr <= 0.
    """
    if min(p, n, steps) < 1 or not (0 <= delta < 0.5 and 0 <= sigma < math.inf and 0 < lr < math.inf):
        given = f"p={p}, n={n}, delta={delta}, sigma={sigma}, steps={steps}, lr={lr}"
        raise InputError(f"early_learning_curve: {given}; expected counts >= 1, delta in [0, 1/2), sigma >= 0, lr > 0")
    rng = numpy_rng(seed, "early learning")
    v = rng.normal(size=p)
    v /= np.linalg.norm(v)
    y = rng.choice((-1.0, 1.0), size=n)
    x = y[:, None] * v + sigma * rng.normal(size=(n, p))
    wrong = rng.random(n) < delta
    label, theta, rows = np.where(wrong, -y, y), np.zeros(p), []
    for _ in range(steps):
        theta = theta + lr / n * (label * expit(-label * (x @ theta))) @ x
        right = y * (x @ theta) > 0
        shares = (right[part].mean() if part.any() else math.nan for part in (~wrong, wrong))
        rows.append((*shares, v @ theta / np.linalg.norm(theta)))
    return EarlyLearning(*np.array(rows).T)
