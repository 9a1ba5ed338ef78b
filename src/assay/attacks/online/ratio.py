"""Competitive ratios: measured on picks, and exactly for a stream in random order."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.integrate import quad
from scipy.special import gammaincc
from torch import Tensor

from assay.attacks.online.offline import OfflineTopK
from assay.runtime.errors import InputError, unknown

Kind = Literal["indicator", "value"]


def competitive_ratios(
    picked: Bool[Tensor, "*runs n"], values: Float[Tensor, "*runs n"], k: int, kind: Kind = "indicator"
) -> Float[Tensor, "*runs"]:
    """Each run's share of the optimum, in [0, 1] for "indicator": |picked and top k| / k, as in arXiv:2103.02014.

    "value" (the knapsack form): the sum of the picked values over that of the k largest, which has to be positive.
    ``values`` are the true ones, which a picker may have seen with noise. Raises InputError for other shapes.
    """
    if kind not in get_args(Kind):
        raise unknown("kind of competitive ratio", str(kind), get_args(Kind))
    if picked.dtype != torch.bool or picked.shape != values.shape:
        shapes = f"{picked.dtype} {tuple(picked.shape)} for values {tuple(values.shape)}"
        raise InputError(f"competitive_ratios: picked is {shapes}; expected a mask of the values' shape")
    best = OfflineTopK(n=values.shape[-1], k=k).pick(values)
    if kind == "indicator":
        return (picked & best).sum(-1).double() / k
    total = torch.where(best, values.double(), 0.0).sum(-1)
    if (total <= 0).any():
        raise InputError(f"competitive_ratios: the {k} largest values sum to {float(total.min()):.4g}; expected > 0")
    return torch.where(picked, values.double(), 0.0).sum(-1) / total


def competitive_ratio(
    picked: Int[Tensor, " m"], values: Float[Tensor, " n"], k: int, kind: Kind = "indicator"
) -> float:
    """``competitive_ratios`` of one stream, from the positions picked."""
    mask = torch.zeros(values.shape, dtype=torch.bool)
    if picked.numel() and not 0 <= int(picked.min()) <= int(picked.max()) < len(values):
        raise InputError(f"competitive_ratio: positions {picked.tolist()}; expected 0 to {len(values) - 1}")
    mask[picked] = True
    return float(competitive_ratios(mask, values, k, kind))


def capacity_curve(rates: np.ndarray, k: int) -> np.ndarray:
    """(1/n) sum_{i > t} P(sum_{t < j < i} Bernoulli(rates_j) < k) for t = 0 ... n, (n + 1,), in O(n k).

    The ratio of a rule that wants each of the k best items where it comes, and item j with probability rates_j of its
    own, independently, and that stops after k. By dynamic programming from the last item: with m picks left, item i
    counts 1 where m > 0 and uses up one with probability rates_i.
    """
    n = len(rates)
    curve = np.zeros(n + 1)
    left = np.zeros(k + 1)  # the expected number of items from i on that meet m > 0, for m = 0 ... k
    for i in range(n - 1, -1, -1):
        left[1:] += 1 + rates[i] * (left[:-1] - left[1:])
        curve[i] = left[k] / n
    return curve


def _virtual_plus_curve(n: int, k: int) -> np.ndarray:
    if not 1 <= k <= n:
        raise InputError(f"virtual_plus_ratio: k={k} of n={n}; expected 1 <= k <= n")
    return capacity_curve(np.minimum(1, k / np.arange(1, n + 1)), k)


def virtual_plus_ratio(n: int, k: int, t: int) -> float:
    """The competitive ratio of Virtual+ on n items in random order after t of them (arXiv:2103.02014, theorem 1).

    In the form (1/n) sum_{i > t} P(sum_{t < j < i} Bernoulli(min(1, k/j)) < k): that item j is among the k best of the
    first j has probability min(1, k/j), independently of the other items' and of whether item i is among the k best of
    all. Raises InputError unless 1 <= k <= n and 0 <= t <= n.
    """
    if not 0 <= t <= n:
        raise InputError(f"virtual_plus_ratio: t={t}; expected 0 <= t <= n={n}")
    return float(_virtual_plus_curve(n, k)[t])


def optimal_threshold(n: int, k: int) -> tuple[int, float]:
    """The t that makes Virtual+'s ratio largest (the smallest such t), and that ratio."""
    curve = _virtual_plus_curve(n, k)
    t = int(curve.argmax())
    return t, float(curve[t])


def virtual_plus_limit(alpha: float, k: int) -> float:
    """The limit of ``virtual_plus_ratio(n, k, alpha n)`` as n grows: int_alpha^1 P(Poisson(k log(x/alpha)) < k) dx.

    For k = 1 it is alpha log(1/alpha), for k = 2 it is 3 alpha - alpha^2 (3 - 2 log alpha). Raises InputError unless
    0 < alpha <= 1 and k >= 1.
    """
    if not (0 < alpha <= 1 and k >= 1):
        raise InputError(f"virtual_plus_limit: alpha={alpha}, k={k}; expected 0 < alpha <= 1 and k >= 1")
    return float(quad(lambda x: gammaincc(k, k * math.log(x / alpha)), alpha, 1, epsabs=1e-12)[0])


def virtual_ratio(n: int, k: int, t: int) -> float:
    """The competitive ratio of Virtual on n items in random order: (1/n) sum_{i > t} (t / (i-1), or 1 where i <= k).

    An item of the k best is picked where the k-th best before it was sampled, or where there is none. For k <= t the
    ratio does not depend on k. Raises InputError unless 1 <= k <= n and 0 <= t <= n.
    """
    if not (1 <= k <= n and 0 <= t <= n):
        raise InputError(f"virtual_ratio: n={n}, k={k}, t={t}; expected 1 <= k <= n and 0 <= t <= n")
    before = np.arange(t, n)
    return float(np.where(before < k, 1.0, t / np.maximum(before, 1)).sum() / n)
