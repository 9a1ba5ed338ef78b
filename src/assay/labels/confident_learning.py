"""Confident learning: the joint distribution of given and true labels, and which labels are suspect."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import xlogy

from assay.runtime.errors import InputError, unknown

Collisions = Literal["confident", "any"]
Prune = Literal["noise-rate", "class", "both", "off-diagonal"]
Ranking = Literal["self-confidence", "normalized-margin", "weighted-entropy"]
ABSENT = 2.0  # the threshold of a class that no label names: no probability reaches it
TOLERANCE = 1e-6
BLOCK = 2048


def check(labels: np.ndarray, probs: np.ndarray) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n c"]]:
    """Labels as int64 and probabilities as float64, or InputError; row sums may miss 1 by 0.01 (half precision)."""
    y, p = np.asarray(labels), np.asarray(probs, dtype=np.float64)
    if p.ndim != 2 or len(p) == 0 or p.shape[1] < 2:
        raise InputError(f"confident learning: probabilities have shape {p.shape}; expected (n, c), n >= 1, c >= 2")
    if y.shape != (len(p),) or y.dtype.kind not in "iu":
        raise InputError(f"confident learning: labels are {y.dtype} {y.shape}; expected integers of shape ({len(p)},)")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise InputError(
            f"confident learning: labels span [{y.min()}, {y.max()}]; expected 0 to {p.shape[1] - 1}, a column each"
        )
    if not (p.min() >= -TOLERANCE and p.max() <= 1 + TOLERANCE):  # false for NaN too
        raise InputError("confident learning: probabilities leave [0, 1] or are not finite; expected a softmax's rows")
    off = float(np.abs(p.sum(1) - 1).max())
    if off > 1e-2:
        raise InputError(f"confident learning: a row of probabilities misses a sum of 1 by {off:.3g}; expected <= 0.01")
    return y.astype(np.int64), p


def thresholds(labels: Int[np.ndarray, " n"], probs: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " c"]:
    """Mean probability of each class over the samples that carry its label (equation 2); absent classes get 2."""
    c = probs.shape[1]
    count = np.bincount(labels, minlength=c)
    total = np.bincount(labels, probs[np.arange(len(labels)), labels], minlength=c)
    return np.where(count > 0, np.maximum(total / np.maximum(count, 1), 2 * TOLERANCE), ABSENT)


def confident_class(
    labels: Int[np.ndarray, " n"],
    probs: Float[np.ndarray, "n c"],
    collisions: Collisions = "confident",
    likeliest: Int[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, " n"]:
    """The class that each sample confidently belongs to, -1 for none (equation 1).

    ``likeliest`` is ``probs.argmax(1)``, where it is known already.
    """
    bar = thresholds(labels, probs) - TOLERANCE
    best = probs.argmax(1) if likeliest is None else likeliest.copy()
    rest = np.flatnonzero(probs[np.arange(len(probs)), best] < bar[best])  # the others pass with their largest
    for part in _blocks(len(rest)):
        rows = rest[part]
        left = probs[rows]
        over = left >= bar
        sure = over.any(1)
        chosen = (left[sure] * over[sure]).argmax(1)
        if collisions == "any":
            chosen = np.where(over[sure].sum(1) > 1, best[rows[sure]], chosen)
        best[rows] = -1
        best[rows[sure]] = chosen
    return best


def _blocks(n: int) -> list[slice]:
    """Rows in blocks that a processor's cache holds."""
    return [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]


def _count(labels: Int[np.ndarray, " n"], confident: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, "c c"]:
    sure = confident >= 0
    counts = np.bincount(labels[sure] * classes + confident[sure], minlength=classes * classes)
    joint = counts.reshape(classes, classes)
    np.fill_diagonal(joint, np.maximum(np.diagonal(joint), 1))
    return joint


def confident_joint(
    labels: np.ndarray, probs: np.ndarray, *, collisions: Collisions = "confident"
) -> Int[np.ndarray, "c c"]:
    """Counts of samples with given label i (row) that confidently belong to class j (column); equation 1.

    A sample that passes several thresholds counts for the most probable of the classes it passes (``collisions``
    "any": the most probable of all classes); one that passes none is left out. The diagonal is at least 1.
    """
    y, p = check(labels, probs)
    return _count(y, confident_class(y, p, collisions), p.shape[1])


def apportion(counts: Int[np.ndarray, "r c"], totals: Int[np.ndarray, " r"]) -> Int[np.ndarray, "r c"]:
    """``counts`` scaled so that row i sums to ``totals[i]``, in whole numbers by largest remainders.

    Everything is integer arithmetic, so that equal remainders are seen as equal: of those the last class goes first.
    """
    whole, rest = np.divmod(counts * totals[:, None], counts.sum(1, keepdims=True))
    missing = totals[:, None] - whole.sum(1, keepdims=True)
    rank = np.argsort(np.argsort(rest, axis=1, kind="stable"), axis=1, kind="stable")
    return whole + (rank >= counts.shape[1] - missing)


def _joint(counts: Int[np.ndarray, "c c"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, "c c"]:
    """Rows scaled to the shares of the labels (equation 3)."""
    return counts / counts.sum(1, keepdims=True) * np.bincount(labels, minlength=len(counts))[:, None] / len(labels)


def estimate_joint(
    labels: np.ndarray, probs: np.ndarray, *, collisions: Collisions = "confident"
) -> Float[np.ndarray, "c c"]:
    """The joint distribution of given (row) and true (column) labels; row i sums to the share of label i."""
    y, _ = check(labels, probs)
    return _joint(confident_joint(labels, probs, collisions=collisions), y)


def label_quality(labels: np.ndarray, probs: np.ndarray, by: Ranking = "self-confidence") -> Float[np.ndarray, " n"]:
    """How well each given label agrees with the probabilities; the lowest are the most suspect.

    self-confidence: p_given, in [0, 1]. normalized-margin: p_given minus the largest other probability, in [-1, 1].
    weighted-entropy: log(1 + r) / r in (0, 1] for r = normalised entropy / p_given.
    """
    return _quality(*check(labels, probs), by)


def _quality(y: Int[np.ndarray, " n"], p: Float[np.ndarray, "n c"], by: Ranking) -> Float[np.ndarray, " n"]:
    rows = np.arange(len(y))
    own = p[rows, y]
    if by == "self-confidence":
        return own
    if by == "normalized-margin":
        other = np.empty_like(own)
        for part in _blocks(len(p)):
            rivals = p[part].copy()
            rivals[rows[: len(rivals)], y[part]] = -np.inf
            other[part] = rivals.max(1)
        return own - other
    if by == "weighted-entropy":
        ratio = np.maximum(-xlogy(p, np.maximum(p, 0)).sum(1) / np.log(p.shape[1]) / np.maximum(own, 1e-6), 1e-6)
        return np.log1p(ratio) / ratio
    raise unknown("ranking", by, get_args(Ranking))


@dataclass(frozen=True)
class LabelNoise:
    """What confident learning estimates from labels (n,) and probabilities (n, c).

    ``confident_joint_`` counts and ``joint_`` probabilities have given labels in rows, true ones in columns;
    ``calibrated_joint_`` is n times the latter in whole numbers, each row's sum kept: what pruning removes by.
    ``noise_matrix_[i, j]`` is p(given i | true j), ``inverse_noise_matrix_[j, i]`` is p(true j | given i),
    ``prior_`` is p(true); columns of classes without mass are 0. ``suspects_`` (n,) marks wrong labels,
    ``quality_`` (n,) ranks them, lowest first, ``suggested_`` (n,) is the most probable class.
    """

    thresholds_: Float[np.ndarray, " c"]
    confident_joint_: Int[np.ndarray, "c c"]
    calibrated_joint_: Int[np.ndarray, "c c"]
    joint_: Float[np.ndarray, "c c"]
    noise_matrix_: Float[np.ndarray, "c c"]
    inverse_noise_matrix_: Float[np.ndarray, "c c"]
    prior_: Float[np.ndarray, " c"]
    suspects_: Bool[np.ndarray, " n"]
    quality_: Float[np.ndarray, " n"]
    suggested_: Int[np.ndarray, " n"]

    @property
    def error_rate_(self) -> float:
        """The estimated share of wrong labels, 1 - trace of the joint."""
        return max(0.0, 1.0 - float(np.trace(self.joint_)))

    def ranked(self) -> Int[np.ndarray, " m"]:
        """Positions of the suspects, the most suspect first."""
        found = np.flatnonzero(self.suspects_)
        return found[np.argsort(self.quality_[found], kind="stable")]


@dataclass(frozen=True, kw_only=True)
class ConfidentLearning:
    """Find wrong labels (Northcutt et al., 2021, arXiv:1911.00068, section 3).

    ``prune``: "noise-rate" (PBNR: for each pair i != j the n * Q_ij samples of label i with the largest p_j - p_i),
    "class" (PBC: the n * sum_j Q_ij least self-confident samples of label i), "both" (their intersection) or
    "off-diagonal" (the samples that the confident joint counts off its diagonal). ``agree`` lifts the suspicion from
    samples whose most probable class is the given label. Ties are broken by position; n Q is made whole by
    ``apportion``. The paper leaves both open, and so do implementations that round n Q in floating point or by an
    unstable sort: given the same whole numbers they mark the same samples.
    """

    kind: ClassVar[str] = "function"

    prune: Prune = "noise-rate"
    ranking: Ranking = "normalized-margin"
    collisions: Collisions = "confident"
    agree: bool = True

    def __post_init__(self) -> None:
        for what, choices in {"prune": Prune, "ranking": Ranking, "collisions": Collisions}.items():
            value = getattr(self, what)
            if value not in get_args(choices):
                raise unknown(what, value, get_args(choices))

    def fit(self, labels: np.ndarray, probs: np.ndarray) -> LabelNoise:
        """Estimates from given labels (n,) in [0, c) and *out-of-sample* probabilities (n, c)."""
        y, p = check(labels, probs)
        rows, suggested = np.arange(len(y)), p.argmax(1)
        own, top = p[rows, y], p[rows, suggested]
        if own.mean() > 0.999:
            warnings.warn("the mean probability of the given labels is above 0.999: are they in-sample?", stacklevel=2)
        confident = confident_class(y, p, self.collisions, suggested)
        counts = _count(y, confident, p.shape[1])
        calibrated = apportion(counts, np.bincount(y, minlength=len(counts)))
        joint, suspects = _joint(counts, y), self._suspects(y, p, confident, calibrated, top > own)
        if self.agree:
            suspects &= top > own + TOLERANCE
        true, given = joint.sum(0), joint.sum(1)
        return LabelNoise(
            thresholds_=thresholds(y, p),
            confident_joint_=counts,
            calibrated_joint_=calibrated,
            joint_=joint,
            noise_matrix_=np.divide(joint, true[None], out=np.zeros_like(joint), where=true[None] > 0),
            inverse_noise_matrix_=np.divide(joint.T, given[None], out=np.zeros_like(joint), where=given[None] > 0),
            prior_=true,
            suspects_=suspects,
            quality_=_quality(y, p, self.ranking),
            suggested_=suggested,
        )

    def _suspects(
        self,
        y: Int[np.ndarray, " n"],
        p: Float[np.ndarray, "n c"],
        confident: Int[np.ndarray, " n"],
        calibrated: Int[np.ndarray, "c c"],
        ahead: Bool[np.ndarray, " n"],
    ) -> Bool[np.ndarray, " n"]:
        if self.prune == "off-diagonal":
            return (confident >= 0) & (confident != y)
        return _prune(y, p, ahead, _removable(calibrated), self.prune)


def _prune(
    y: Int[np.ndarray, " n"],
    p: Float[np.ndarray, "n c"],
    ahead: Bool[np.ndarray, " n"],
    counts: Int[np.ndarray, "c c"],
    how: Prune,
) -> Bool[np.ndarray, " n"]:
    """The samples that prune by class, by noise rate or both remove; ``counts`` as _removable gives them.

    ``ahead`` marks the samples that some class is more probable for than their own.
    """
    own = p[np.arange(len(y)), y]
    found = np.zeros(len(y), bool)
    order = np.argsort(y, kind="stable")
    ends = np.cumsum(np.bincount(y, minlength=len(counts)))
    for i, (start, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
        rows = order[start:end]
        if len(rows) < 2:
            continue
        marked = np.ones(len(rows), bool)
        if how != "noise-rate":
            marked &= largest(-own[rows][None], np.array([len(rows) - counts[i, i]]))[0]
        if how != "class":
            wrong = np.flatnonzero((counts[i] > 0) & (np.arange(len(counts)) != i))
            marked &= _nearest_pairs(p, rows, own[rows], np.flatnonzero(ahead[rows]), wrong, counts[i, wrong])
        found[rows] = marked
    return found


def _nearest_pairs(
    p: Float[np.ndarray, "n c"],
    rows: Int[np.ndarray, " m"],
    own: Float[np.ndarray, " m"],
    ahead: Int[np.ndarray, " a"],
    wrong: Int[np.ndarray, " w"],
    k: Int[np.ndarray, " w"],
) -> Bool[np.ndarray, " m"]:
    """Marks the ``rows`` of one label that are among the k_j with the largest p_j - ``own``, for any ``wrong`` j.

    Where at least k_j rows have p_j above their own, no other needs to be ranked; ``ahead`` are the positions of those
    that have any above it.
    """
    marked = np.zeros(len(rows), bool)
    gap = p[rows[ahead, None], wrong].T - own[ahead]
    enough = np.count_nonzero(gap > 0, axis=1) >= k
    marked[ahead] = largest(gap[enough], k[enough]).any(0)
    return marked | largest(p[rows[:, None], wrong[~enough]].T - own, k[~enough]).any(0)


def largest(values: Float[np.ndarray, "r n"], k: Int[np.ndarray, " r"]) -> Bool[np.ndarray, "r n"]:
    """Marks the k largest of each row, ties by position."""
    n = values.shape[1]
    if not values.size:
        return np.zeros(values.shape, bool)
    most = int(np.clip(k.max(initial=1), 1, n))
    tail = np.sort(np.partition(values, n - most, 1)[:, n - most :], 1)
    bar = tail[np.arange(len(values)), np.clip(most - k, 0, most - 1)][:, None]
    marked = (values >= bar) & (k > 0)[:, None]
    tied = np.flatnonzero(marked.sum(1) > k)
    above, level = values[tied] > bar[tied], values[tied] == bar[tied]
    marked[tied] = (above | (level & (level.cumsum(1) <= (k[tied] - above.sum(1))[:, None]))) & (k[tied] > 0)[:, None]
    return marked


def _removable(counts: Int[np.ndarray, "c c"]) -> Int[np.ndarray, "c c"]:
    """``counts`` with at least one sample on each diagonal cell, taken evenly from the other cells of its row."""
    kept = np.maximum(np.diagonal(counts), 1)
    taken = (kept - np.diagonal(counts)) / np.maximum(np.count_nonzero(counts, axis=1) - 1, 1)
    lowered = np.maximum(counts - taken[:, None], 0).astype(np.int64)
    np.fill_diagonal(lowered, kept)
    return lowered
