"""Classes that share a part of their support, and what one temperature can do there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist
from torch import Tensor

from assay.calibrate.base import Outputs
from assay.calibrate.temperature import FittedTemperature, TemperatureScaling
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


@dataclass(frozen=True, kw_only=True)
class OverlapDistribution:
    """k equally likely classes in pairs (0, 1), (2, 3) ... that share a ball (an executable form of Chidambaram & Ge,
    2024, arXiv:2306.00740, definition 4.1).

    A point of class y is uniform in the ball that y shares with its partner, with probability ``alpha``, else in the
    ball of y alone; all balls have ``radius`` in ``dim`` dimensions. Their centres are standard normal, scaled so that
    the nearest two are ``gap`` apart; they are drawn by ``seed``. Raises InputError for an odd number of classes, alpha
    outside [0, 1], and a gap that lets balls meet.
    """

    classes: int = 16
    alpha: float = 0.5
    dim: int = 2
    gap: float = 10.0
    radius: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classes < 2 or self.classes % 2 or not 0 <= self.alpha <= 1 or self.dim < 1:
            given = f"classes={self.classes}, alpha={self.alpha}, dim={self.dim}"
            raise InputError(f"OverlapDistribution: {given}; expected pairs of classes, alpha in [0, 1], dim >= 1")
        if not 0 < 2 * self.radius < self.gap < math.inf:
            given = f"gap={self.gap}, radius={self.radius}"
            raise InputError(f"OverlapDistribution: {given}; expected a finite gap above twice the radius")

    @property
    def centres(self) -> Float[Tensor, "b d"]:
        """Centres of the balls: those of the classes first, then those of the pairs."""
        drawn = torch.randn(3 * self.classes // 2, self.dim, generator=torch_rng(self.seed, "centres")).double()
        return drawn * self.gap / float(pdist(drawn).min())

    def sample(self, n: int, *, seed: int) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"], Float[Tensor, "n k"]]:
        """n >= 1 points (float32), their labels, and the true posterior: 1, or 1/2 for each of a pair."""
        if n < 1:
            raise InputError(f"OverlapDistribution: n={n}; expected at least 1")
        g, k = torch_rng(seed, "overlap"), self.classes
        y = torch.randint(k, (n,), generator=g)
        shared = torch.rand(n, generator=g) < self.alpha
        direction = torch.nn.functional.normalize(torch.randn(n, self.dim, generator=g).double(), dim=1)
        length = self.radius * torch.rand(n, 1, generator=g).double() ** (1 / self.dim)
        ball = torch.where(shared, k + y // 2, y)
        posterior = torch.nn.functional.one_hot(y, k).double()
        both = (posterior + torch.nn.functional.one_hot(y ^ 1, k)) / 2
        x = self.centres[ball] + length * direction
        return x.float(), y, torch.where(shared[:, None], both, posterior)


def two_point_nll(q: float, k: int) -> float:
    """Negative log-likelihood of confident predictions at their best temperature: -q ln q - (1 - q) ln((1 - q) / (k -
    1)).

    One logit is M and the others 0, and the label is the class of M with probability ``q`` >= 1 / ``k``: the best a
    temperature can do is q for that class and equal parts for the others, whichever of them is likely. On
    OverlapDistribution an interpolator has q = 1 - alpha / 2; Bayes has alpha ln 2, so the gap grows with ln(k - 1).
    """
    _check_share("two_point_nll", q, k)
    return -_xlogy(q, q) - _xlogy(1 - q, (1 - q) / (k - 1))


def two_point_nll_noise(eta: float, k: int) -> float:
    """As ``two_point_nll`` for labels replaced by a fixed other class with probability ``eta`` in training and
    calibration, and clean test labels.

    The interpolator repeats a label that is noisy with probability eta. Its temperature makes the confidence q = (1 -
    eta)^2 + eta^2, how often two noisy labels agree; on clean labels that costs -(1 - eta) ln q - eta ln((1 - q) / (k -
    1)), where the true noisy posterior would cost -ln(1 - eta). Derived for this form of the paper's protocol.
    """
    if not 0 <= eta < 1:
        raise InputError(f"two_point_nll_noise: eta={eta}; expected a probability in [0, 1)")
    q = (1 - eta) ** 2 + eta**2
    _check_share("two_point_nll_noise", q, k)
    return -_xlogy(1 - eta, q) - _xlogy(eta, (1 - q) / (k - 1))


def oracle_temperature(
    logits: Float[Tensor, "n c"], y: Int[Tensor, " n"], *, bounds: tuple[float, float] = (1e-2, 1e3)
) -> float:
    """The temperature of least negative log-likelihood on the samples that are judged; it may lie on a bound.

    InputError for bounds not 0 < low <= 1 <= high, and for other shapes.
    """
    fitted = TemperatureScaling(lowest=bounds[0], highest=bounds[1]).fit(Outputs(logits), y)
    assert isinstance(fitted, FittedTemperature)
    return fitted.temperature_


def paired_label_noise(
    y: Int[Tensor, " n"], eta: float, k: int, *, seed: int
) -> tuple[Int[Tensor, " n"], Int[Tensor, " k"]]:
    """Labels of which each is replaced by map[y] with probability ``eta``, and the map: for each class a fixed random
    other class (as in the code of Chidambaram & Ge, 2024)."""
    check_labels("paired_label_noise", y, len(y), k)
    if not 0 <= eta <= 1 or k < 2:
        raise InputError(f"paired_label_noise: eta={eta}, k={k}; expected a probability and k >= 2")
    g = torch_rng(seed, "paired noise")
    other = (torch.arange(k) + torch.randint(1, k, (k,), generator=g)) % k
    return torch.where(torch.rand(len(y), generator=g) < eta, other[y], y), other


def _check_share(where: str, q: float, k: int) -> None:
    if k < 2 or not 1 / k <= q <= 1:
        raise InputError(f"{where}: q={q}, k={k}; expected k >= 2 and 1 / k <= q <= 1")


def _xlogy(x: float, y: float) -> float:
    return x * math.log(y) if x > 0 else 0.0
