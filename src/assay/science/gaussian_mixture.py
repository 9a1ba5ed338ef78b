"""Two normal classes of unequal frequency: the errors of the best weighted linear rule."""

from __future__ import annotations

import math

from scipy.stats import norm

from assay.runtime.errors import InputError


def imbalanced_gaussian_risk(delta: float, K: float, rho: float = 1.0) -> tuple[float, float]:
    """(err_major, err_minor) of the Bayes rule when errors on the minority cost ``rho`` (Wang et al., 2021,
    arXiv:2107.13639, section 3; the closed form is derived here).

    x given y is N(y mu, sigma^2 I), y = +1 being ``K`` times as frequent as y = -1, and delta = 2 |mu| / sigma the
    separability. The rule's threshold moves by t = ln(K / rho) / delta towards the minority:
    err(+1) = Phi(-delta / 2 - t), err(-1) = Phi(-delta / 2 + t). InputError for numbers that are not positive.
    """
    if not (0 < delta < math.inf and 0 < K < math.inf and 0 < rho < math.inf):
        raise InputError(f"imbalanced_gaussian_risk: delta={delta}, K={K}, rho={rho}; expected finite numbers > 0")
    t = math.log(K / rho) / delta
    return float(norm.cdf(-delta / 2 - t)), float(norm.cdf(-delta / 2 + t))


def adversarial_separability(d: int, eta: float, eps: float, sigma: float = 1.0) -> float:
    """2 sqrt(d) (eta - eps) / sigma: what the separability of mu = (eta, .., eta) in d dimensions falls to when every
    coordinate may move by ``eps``.

    The best rule has equal weights, and the worst move takes eps from every coordinate of y x: normal classes with
    means +-(eta - eps) are left. InputError unless 0 <= eps < eta and d, sigma > 0.
    """
    if not (d >= 1 and 0 <= eps < eta and 0 < sigma < math.inf):
        given = f"d={d}, eta={eta}, eps={eps}, sigma={sigma}"
        raise InputError(f"adversarial_separability: {given}; expected 0 <= eps < eta, d >= 1, sigma > 0")
    return 2 * math.sqrt(d) * (eta - eps) / sigma


def balance_price(delta: float, K: float) -> float:
    """err_major(rho = K) - err_major(rho = 1): what full balance costs the majority, falling in delta."""
    return imbalanced_gaussian_risk(delta, K, K)[0] - imbalanced_gaussian_risk(delta, K)[0]
