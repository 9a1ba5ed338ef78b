"""Robust active distillation: points that are informative and, in the worst case, still rightly labelled."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.curate.dep_round import dep_round, inclusion_probabilities
from assay.curate.gains import GAINS, Gain, check_gain
from assay.curate.query import Pool, Query, QuerySampler
from assay.runtime.errors import InputError, unknown

FLOOR = 1e-6
Method = Literal["minimax", "relative", "regret"]
METHODS: tuple[Method, ...] = ("minimax", "relative", "regret")


@dataclass(frozen=True)
class RADistribution:
    """``q`` (n,) sums to 1 and lies on the ``k`` points of highest gain; ``value`` is the objective that it attains."""

    q: Float[Tensor, " n"]
    k: int
    value: float


def rad_distribution(gains: Float[Tensor, " n"], m: float | None = None, method: Method = "minimax") -> RADistribution:
    """The distribution over points that does best against a teacher who is wrong where it hurts most (Baykal et al.,
    2022, arXiv:2210.01213).

    "minimax": max over q of the min over losses l in [0, 1]^n, sum(l) <= m, of sum_i q_i g_i (1 - l_i). With g in
    descending order and H_k = (k - m) / sum_{i<=k} 1/g_i, k* is the largest maximiser of H_k, q_i is proportional to
    1/g_i on the top k*, and the value is H_{k*}: all that is chosen contributes alike, so the adversary gains nothing
    by choosing. 0 <= m < n.

    Without an estimate of m (it must then be None) the same family q^(k) is judged over all m in 0, ..., n // 2:
    "relative" maximises the least H_k(m) / max_k' H_k'(m) (the value), "regret" minimises the largest difference (the
    value). These two are a reading of the paper's parameter-free variant, not checked against its text.

    Gains below 1e-6 are raised to it with a RuntimeWarning. Raises InputError for gains that are not finite or exceed
    1, and for m out of range or missing.
    """
    if method not in METHODS:
        raise unknown("method of rad_distribution", str(method), METHODS)
    g = _checked(gains, m, method)
    order = g.argsort(descending=True, stable=True)
    harmonic = (1 / g[order]).cumsum(0)
    if method == "minimax":
        k, value = _minimax(harmonic, float(m or 0))
    else:
        k, value = _free(g[order], harmonic, method)
    return RADistribution(inverse_gains(g, k), k, value)


def inverse_gains(gains: Float[Tensor, " n"], k: int) -> Float[Tensor, " n"]:
    """q^(k): proportional to 1 / gain on the k highest gains, 0 elsewhere."""
    top = gains.argsort(descending=True, stable=True)[:k]
    q = torch.zeros_like(gains)
    q[top] = 1 / gains[top]
    return q / q.sum()


def _checked(gains: Tensor, m: float | None, method: Method) -> Float[Tensor, " n"]:
    if gains.dim() != 1 or len(gains) == 0 or not torch.isfinite(gains).all() or gains.max() > 1 + 1e-9:
        raise InputError(f"rad_distribution: gains {tuple(gains.shape)}; expected finite numbers (n,) of at most 1")
    if (m is None) == (method == "minimax") or (m is not None and not 0 <= m < len(gains)):
        raise InputError(
            f"rad_distribution: m={m} with method {method!r} on {len(gains)} points; expected 0 <= m < n with "
            "'minimax' and none otherwise"
        )
    small = int((gains < FLOOR).sum())
    if small:
        warnings.warn(f"rad_distribution: {small} gains raised to {FLOOR}", RuntimeWarning, stacklevel=3)
    return gains.double().clamp(min=FLOOR)


def _minimax(harmonic: Float[Tensor, " n"], m: float) -> tuple[int, float]:
    """k* and H_{k*}; of equal values the largest k, so that equal gains share the mass."""
    count = torch.arange(1, len(harmonic) + 1, dtype=torch.float64)
    h = (count - m) / harmonic
    best = h.max()
    return int((h >= best - 1e-12 * best.abs()).nonzero()[-1]) + 1, float(best)


def _free(g: Float[Tensor, " n"], harmonic: Float[Tensor, " n"], method: Method) -> tuple[int, float]:
    """The k that is best over all m in 0..n//2, in O(n log n).

    H_k(m) is linear in m down to 0 at m = k, and the best H*(m) convex, so the ratio is least and the difference
    largest at an end: at m = 0, or at m = min(k, n // 2).
    """
    n, half = len(g), len(g) // 2
    count = torch.arange(1, n + 1, dtype=torch.float64)
    last = count.clamp(max=half)
    ends = torch.stack([torch.zeros_like(last), last])
    best = torch.stack([_best(g, harmonic, m) for m in ends])
    own = (count - ends).clamp(min=0) / harmonic
    if method == "relative":
        ratio = torch.where(count > half, (own / best).amin(0), 0.0)
        k = int((ratio >= ratio.max() - 1e-12).nonzero()[-1])
        return k + 1, float(ratio[k])
    gap = (best - own).amax(0)
    k = int((gap <= gap.min() + 1e-12).nonzero()[-1])
    return k + 1, float(gap[k])


def _best(g: Float[Tensor, " n"], harmonic: Float[Tensor, " n"], m: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """max_k H_k(m) for each m: H rises from k to k + 1 as long as m > k - g_{k+1} S_k, which does not fall in k."""
    count = torch.arange(1, len(g), dtype=torch.float64)
    turns = (count - g[1:] * harmonic[:-1]).cummax(0).values if len(g) > 1 else g[:0]
    k = torch.searchsorted(turns, m) + 1
    return (k - m) / harmonic[k - 1]


@dataclass(frozen=True, kw_only=True)
class RADSampler(QuerySampler):
    """Draw a batch by the distribution of ``rad_distribution`` (Baykal et al., 2022, arXiv:2210.01213): inclusion
    probabilities min(1, s q), then dependent rounding.

    ``gain`` says what is informative. ``m``, the number of points that the teacher gets wrong, is a count (int), a
    share of the pool in [0, 1) (float), or "auto": the pool's ``error`` times its size; used by "minimax" only. A batch
    of b distinct points needs b of positive weight, so k is at least b. Errors: see QuerySampler and rad_distribution;
    "auto" without an error rate.
    """

    gain: Gain = "margin"
    m: float | int | Literal["auto"] = "auto"
    method: Method = "minimax"

    def __post_init__(self) -> None:
        check_gain(type(self).__name__, self.gain)
        if self.method not in METHODS:
            raise unknown("method of RADSampler", str(self.method), METHODS)
        share = isinstance(self.m, float) and not (math.isfinite(self.m) and 0 <= self.m < 1)
        if share or (isinstance(self.m, int) and self.m < 0) or (isinstance(self.m, str) and self.m != "auto"):
            raise InputError(f"RADSampler: m={self.m!r}; expected 'auto', a count >= 0 or a share in [0, 1)")

    def select(self, pool: Pool, b: int, *, seed: int) -> Query:
        """``b`` points: their number is fixed, which ones is random."""
        self.check(pool, b)
        gains = GAINS[self.gain](pool.probs).clamp(FLOOR, 1.0)
        pi = inclusion_probabilities(self.weights(gains, self._support(gains, pool, b)), b)
        rows = dep_round(pi, seed=seed).nonzero()[:, 0]
        return Query(rows, pi[rows])

    def weights(self, gains: Float[Tensor, " n"], k: int) -> Float[Tensor, " n"]:
        """The distribution q (n,) on the top ``k``."""
        return inverse_gains(gains, k)

    def _support(self, gains: Tensor, pool: Pool, b: int) -> int:
        m = self._wrong(pool) if self.method == "minimax" else None
        return max(rad_distribution(gains, m, self.method).k, b)

    def _wrong(self, pool: Pool) -> float:
        if self.m != "auto":
            return self.m * len(pool) if isinstance(self.m, float) else self.m
        if pool.error is None or not 0 <= pool.error <= 1:
            raise InputError(f"RADSampler: m='auto', error rate {pool.error}; expected the teacher's rate in [0, 1]")
        return min(pool.error * len(pool), len(pool) - 1.0)
