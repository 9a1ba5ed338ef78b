"""How an attack's scores are judged: the area under the ROC curve, and the true positives at a low false-positive rate.

The latter is what matters (Carlini et al., 2022, arXiv:2112.03570): an attack that is sure of a few.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from assay.runtime.errors import InputError
from assay.runtime.metric import Metric, Samples, measured
from assay.runtime.statistics import wilson


def _check(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, member = np.asarray(scores, dtype=float), np.asarray(member, dtype=bool)
    if scores.shape != member.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise InputError(
            f"roc: scores {scores.shape} and members {member.shape}; expected finite scores, one for each member flag"
        )
    if not member.any() or member.all():
        raise InputError(f"roc: {member.sum()} members of {len(member)}; expected members and non-members")
    return scores, member


def curve(
    scores: Float[np.ndarray, " n"], member: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """False- and true-positive rates at every distinct threshold, from (0, 0) to (1, 1)."""
    scores, member = _check(scores, member)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true, false = np.cumsum(member[order])[last], np.cumsum(~member[order])[last]
    return np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1])


def auc(
    name: str, scores: Float[np.ndarray, " n"], member: Bool[np.ndarray, " n"], index: Int[np.ndarray, " n"], how: str
) -> tuple[Metric, Samples]:
    """The metric with its samples (columns: score, member)."""
    scores, member = _check(scores, member)
    table = np.stack([scores, member.astype(float)], 1)
    return measured(name, table, index, statistic="auroc", better="lower", how=how)


def tpr_at(name: str, scores: Float[np.ndarray, " n"], member: Bool[np.ndarray, " n"], fpr: float, how: str) -> Metric:
    """Members found at a threshold that at most ``fpr`` of the non-members exceed, with Wilson's interval.

    Below 10 / (number of non-members) it cannot be resolved: the value is None and ``how`` says why. The interval
    holds the threshold fixed.
    """
    scores, member = _check(scores, member)
    outside, inside = np.sort(scores[~member]), scores[member]
    if not 0 < fpr < 1:
        raise InputError(f"{name}: fpr is {fpr}; expected 0 < fpr < 1")
    if fpr * len(outside) < 10 * (1 - 1e-9):
        needed = int(np.ceil(10 / fpr - 1e-6))
        why = f"{how}; not resolved: {len(outside)} non-members, at least {needed} needed for FPR {fpr:g}"
        return Metric(name, None, n=len(inside), better="lower", how=why)
    allowed = int(fpr * len(outside) + 1e-9)
    found = inside > outside[len(outside) - 1 - allowed]
    low, high = wilson(int(found.sum()), len(found))
    return Metric(name, float(found.mean()), low, high, "Wilson 95%", len(found), "", "lower", how)
