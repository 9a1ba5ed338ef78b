"""How attacks on texts are judged: area under the curve and true positives at low false-positive rates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from assay.privacy.roc import curve
from assay.runtime.errors import InputError
from assay.runtime.statistics import auroc, resamples

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def tpr_at_fpr(y: Bool[np.ndarray, " n"], s: Float[np.ndarray, " n"], fpr: float) -> float:
    """The largest share of members (y = 1) that a threshold on the scores finds while it takes at most a share ``fpr``
    of the others. InputError below 1 / (number of others), where it is not resolved."""
    false, true = curve(np.asarray(s), np.asarray(y, dtype=bool))
    others = int((~np.asarray(y, dtype=bool)).sum())
    if not 1 / others - 1e-12 <= fpr <= 1:
        raise InputError(f"tpr_at_fpr: fpr={fpr} with {others} non-members; expected 1/{others} to 1")
    return float(true[false <= fpr + 1e-12].max())


def _tpr(y: np.ndarray, s: np.ndarray, weights: np.ndarray, fpr: float) -> np.ndarray:
    """``tpr_at_fpr`` under each row of sample weights (b, n)."""
    order = np.argsort(-s, kind="stable")
    last = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)
    inside, outside = weights[:, order] * y[order], weights[:, order] * ~y[order]
    true = (inside.cumsum(1) / inside.sum(1, keepdims=True))[:, last]
    false = (outside.cumsum(1) / outside.sum(1, keepdims=True))[:, last]
    return np.where(false <= fpr + 1e-12, true, 0.0).max(1)


def membership_rates(
    y: Bool[np.ndarray, " n"], s: Float[np.ndarray, " n"], fprs: Sequence[float] = RATES, *, seed: int = 0
) -> dict[str, tuple[float, float, float] | None]:
    """ "auc" and "tpr@F" for each F of ``fprs``: the value with a bootstrap interval (95%, 1,000 resamples of the
    samples); None where F is below 1 / (number of others)."""
    y, s = np.asarray(y, dtype=bool), np.asarray(s, dtype=float)
    curve(s, y)
    weights = resamples(len(y), seed)
    weights = weights[(weights[:, y].sum(1) > 0) & (weights[:, ~y].sum(1) > 0)]
    table, one = np.stack([s, y.astype(float)], 1), np.ones((1, len(y)))
    found: dict[str, tuple[float, float, float] | None] = {
        "auc": _with_interval(*(auroc(table, w) for w in (one, weights)))
    }
    for fpr in fprs:
        known = fpr >= 1 / int((~y).sum()) - 1e-12
        found[f"tpr@{fpr:g}"] = _with_interval(*(_tpr(y, s, w, fpr) for w in (one, weights))) if known else None
    return found


def _with_interval(value: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(value[0]), float(low), float(high)
