"""Long tails: what not fitting rare samples costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp, xlog1py, xlogy

from assay.runtime.errors import InputError, unknown
from assay.runtime.random import numpy_rng

# Frequencies to draw from, the list 1, 1/2, ..., 1/N, or ("gamma", a): independent Gamma(a) variables.
Prior = Float[np.ndarray, " p"] | Sequence[float] | Literal["zipf"] | tuple[Literal["gamma"], float]
CHUNK = 4_000_000


def tau(
    counts: Int[np.ndarray, " l"] | Sequence[int],
    n: int,
    *,
    prior: Prior = "zipf",
    N: int,
    method: Literal["closed", "mc"] = "closed",
    samples: int = 20_000,
    seed: int = 0,
) -> Float[np.ndarray, " l"]:
    """The expected frequency of a point seen l times among n samples, for each l of ``counts`` (Feldman, 2020,
    arXiv:1906.05271, equation before theorem 2.3): E[a^(l+1) (1-a)^(n-l)] / E[a^l (1-a)^(n-l)].

    a has the marginal law of a point's frequency D(x) = p_x / sum p, with p_x drawn independently from ``prior`` for
    each of ``N`` >= 1 points. A Gamma(a) prior makes it Beta(a, (N-1)a), so that tau_l = (a + l) / (N a + n) exactly.
    Otherwise "closed" puts N times the prior's mean for sum p, and "mc" draws ``samples`` sums. All in logarithms.

    Raises InputError for an empty or negative prior, l outside 0 to n, and counts that cannot occur.
    """
    seen = np.asarray(counts)
    if seen.ndim != 1 or seen.dtype.kind not in "iu" or len(seen) == 0 or seen.min() < 0 or seen.max() > n:
        raise InputError(f"tau: counts {counts!r} with n={n}; expected integers (l,) from 0 to n")
    if method not in ("closed", "mc"):
        raise unknown("method of tau", str(method), ("closed", "mc"))
    kind, values = _prior(prior, N)
    if kind == "gamma" and method == "closed":
        return (values[0] + seen) / (N * values[0] + n)
    a = _frequencies(prior, N, samples if method == "mc" else None, seed)
    rest = xlog1py(n - seen[:, None], -a)
    with np.errstate(divide="ignore"):
        top, bottom = (logsumexp(xlogy(seen[:, None] + k, a) + rest, axis=1) for k in (1, 0))
    if not np.isfinite(bottom).all():
        raise InputError(
            f"tau: a point cannot be seen {int(seen[~np.isfinite(bottom)][0])} of {n} times; expected less"
        )
    return np.exp(top - bottom)


def tail_weight(prior: Prior, N: int, low: float, high: float, *, samples: int = 20_000, seed: int = 0) -> float:
    """The expected total frequency of the points whose own frequency is in [low, high]: N E[a 1(low <= a <= high)].

    tau_1 >= tail_weight(1 / (3n), 2 / n) / (5n) (Feldman, 2020, arXiv:1906.05271, lemma 2.5): there a (1-a)^(n-1) >=
    1 / (5n) for n >= 2, and E[a (1-a)^(n-1)] <= E[a] = 1 / N. By drawing ``samples`` frequencies.
    """
    a = _frequencies(prior, N, samples, seed)
    return float(N * np.where((a >= low) & (a <= high), a, 0.0).mean())


def excess_error_of_not_fitting(tau: Float[np.ndarray, " l"], errn: Float[np.ndarray, " l"]) -> float:
    """sum_l tau_l errn_l, over l >= 1: what mislabelling errn_l of the points seen l times adds to the optimal error
    (Feldman, 2020, arXiv:1906.05271, theorem 2.3)."""
    first, second = np.asarray(tau, float), np.asarray(errn, float)
    if first.shape != second.shape or first.ndim != 1 or not (first >= 0).all() or not (second >= 0).all():
        raise InputError(f"excess error: tau {first.shape}, errn {second.shape}; expected numbers >= 0 of one shape")
    return float(first @ second)


@dataclass(frozen=True)
class LongTailSample:
    """Frequencies D (N,), true labels f (N,), and the sample: points (n,) with how often each was seen, counts (N,)."""

    frequency: Float[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"]
    points: Int[np.ndarray, " n"]

    @property
    def counts(self) -> Int[np.ndarray, " N"]:
        """How often each point was seen."""
        return np.bincount(self.points, minlength=len(self.labels))

    def error(self, h: Int[np.ndarray, " N"]) -> float:
        """The probability that the predictions ``h`` of all points are wrong."""
        return float(self.frequency @ (h != self.labels))

    def errn(self, h: Int[np.ndarray, " N"], seen: int) -> int:
        """The number of points seen ``seen`` times that ``h`` mislabels."""
        return int(((self.counts == seen) & (h != self.labels)).sum())


@dataclass(frozen=True, kw_only=True)
class LongTailProblem:
    """Labels of ``N`` unrelated points from ``n`` samples, with frequencies drawn from a prior (Feldman, 2020,
    arXiv:1906.05271, section 2.1).

    p_x is drawn independently from ``prior``, D(x) = p_x / sum p, labels are uniform among ``n_classes``. Errors: see
    ``tau``; n_classes < 2.
    """

    prior: Prior = "zipf"
    N: int = 1000
    n: int = 1000
    n_classes: int = 10

    def __post_init__(self) -> None:
        _prior(self.prior, self.N)
        if self.n < 1 or self.n_classes < 2:
            raise InputError(
                f"LongTailProblem: n={self.n}, n_classes={self.n_classes}; expected n >= 1, n_classes >= 2"
            )

    def sample(self, *, seed: int) -> LongTailSample:
        """Frequencies, labels and a sample of n points."""
        rng = numpy_rng(seed, "long tail")
        kind, values = _prior(self.prior, self.N)
        p = rng.gamma(values[0], size=self.N) if kind == "gamma" else rng.choice(values, self.N)
        if not p.sum() > 0:
            raise InputError(
                "LongTailProblem: all frequencies that were drawn are 0; expected a prior with fewer zeros"
            )
        frequency = p / p.sum()
        labels = rng.integers(self.n_classes, size=self.N)
        return LongTailSample(frequency, labels, rng.choice(self.N, self.n, p=frequency))

    def tau(self, counts: Int[np.ndarray, " l"] | Sequence[int]) -> Float[np.ndarray, " l"]:
        """``tau`` of this problem."""
        return tau(counts, self.n, prior=self.prior, N=self.N)

    def opt(self, sample: LongTailSample) -> float:
        """The least expected error given the sample: guesses on what was not seen, (1 - 1/K) tau_0 for each point."""
        unseen = int((sample.counts == 0).sum())
        return (1 - 1 / self.n_classes) * unseen * float(self.tau([0])[0])

    def excess(self, sample: LongTailSample, h: Int[np.ndarray, " N"]) -> float:
        """sum over l >= 1 of tau_l errn(l) of the predictions ``h``."""
        seen = np.unique(sample.counts[sample.counts > 0])
        return excess_error_of_not_fitting(self.tau(seen), np.array([sample.errn(h, k) for k in seen], float))


def lookup_learner(
    sample: LongTailSample, n_classes: int, *, ignore: int = 0, eps: float | None = None, seed: int
) -> Int[np.ndarray, " N"]:
    """Predictions (N,) of a table of the labels seen; guesses, uniformly, for points seen ``ignore`` times or less.

    With ``eps`` every sample's label first goes through randomised response (kept with probability e^eps / (e^eps +
    K - 1), else one of the others): eps-label-DP. A point gets the label that it shows most often, ties at random.
    """
    rng = numpy_rng(seed, "lookup")
    labels = sample.labels[sample.points]
    if eps is not None:
        if not eps > 0:
            raise InputError(f"lookup_learner: eps={eps}; expected a number > 0")
        flipped = rng.random(len(labels)) >= 1 / (1 + (n_classes - 1) * np.exp(-eps))
        labels = np.where(flipped, (labels + rng.integers(1, n_classes, len(labels))) % n_classes, labels)
    votes = np.zeros((len(sample.labels), n_classes))
    np.add.at(votes, (sample.points, labels), 1.0)
    votes[sample.counts <= ignore] = 0.0
    return (votes + rng.random(votes.shape) * 0.5).argmax(1)


def _prior(prior: Prior, N: int) -> tuple[str, Float[np.ndarray, " p"]]:
    """ "gamma" with its shape, or "list" with its frequencies."""
    if N < 1:
        raise InputError(f"prior: N={N}; expected at least one point")
    if isinstance(prior, tuple) and len(prior) == 2 and prior[0] == "gamma":
        if not (np.isfinite(prior[1]) and prior[1] > 0):
            raise InputError(f"prior: gamma with shape {prior[1]}; expected a number > 0")
        return "gamma", np.array([float(prior[1])])
    if isinstance(prior, str):
        if prior != "zipf":
            raise unknown("prior", prior, ("zipf", "gamma"))
        return "list", 1 / np.arange(1, N + 1)
    values = np.asarray(prior, float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise InputError(f"prior: frequencies {values.shape}; expected finite numbers (p,) >= 0, not all of them 0")
    return "list", values


def _frequencies(prior: Prior, N: int, samples: int | None, seed: int) -> Float[np.ndarray, " s"]:
    """Draws of D(x), or, without ``samples``, the list over N times its mean."""
    kind, values = _prior(prior, N)
    if samples is None:
        return np.minimum(values / (N * values.mean()), 1.0)
    if samples < 1:
        raise InputError(f"tau: samples={samples}; expected at least 1")
    rng = numpy_rng(seed, "frequencies")
    if kind == "gamma":
        return rng.beta(values[0], (N - 1) * values[0], samples) if N > 1 else np.ones(samples)
    own, step = rng.choice(values, samples), max(CHUNK // len(values), 1)
    even = np.full(len(values), 1 / len(values))
    others = np.concatenate(
        [rng.multinomial(N - 1, even, min(step, samples - i)) @ values for i in range(0, samples, step)]
    )
    total = own + others
    return np.divide(own, total, out=np.zeros(samples), where=total > 0)
