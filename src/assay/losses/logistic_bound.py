"""What a small logistic excess says about the zero-one excess of a linear classifier."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from assay.runtime.errors import InputError


def logistic_h_bound(excess: ArrayLike, gap: float = 0.0) -> np.ndarray:
    """min(1, sqrt(2 (excess + gap))): a bound on the zero-one excess of multinomial logistic regression.

    The simplified form of the H-consistency bound of Zheng et al. (2023, arXiv:2302.02334) for linear classifiers
    whose scores reach every value: it follows from ``zero_one_bound(excess, 1, n)``, since
    T(b) = ((1 + b) log(1 + b) + (1 - b) log(1 - b)) / 2 >= b^2 / 2. ``excess`` >= 0 is the mean logistic loss in nats
    less the best of the class, ``gap`` >= 0 the minimizability gap. Same shape as ``excess``. InputError for negative
    or undefined numbers.
    """
    total = np.asarray(excess, float)
    if not (total >= 0).all() or not gap >= 0:
        raise InputError(f"logistic_h_bound: excess or gap={gap} negative or NaN; expected numbers >= 0")
    return np.minimum(np.sqrt(2 * (total + gap)), 1.0)
