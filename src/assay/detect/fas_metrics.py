"""The error rates of presentation attack detection."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.statistics import point


def _rates(scores: np.ndarray, y: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of attacks at or below, and of real captures above, each threshold."""
    attack, real = np.sort(scores[y == 1]), np.sort(scores[y == 0])
    missed = np.searchsorted(attack, thresholds, side="right") / len(attack)
    return missed, 1 - np.searchsorted(real, thresholds, side="right") / len(real)


def _checked(scores: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    s, label = scores.detach().cpu().double().numpy(), y.cpu().numpy()
    if s.ndim != 1 or s.shape != label.shape or not np.isfinite(s).all() or set(np.unique(label)) != {0, 1}:
        raise InputError(f"fas_metrics: scores {s.shape}, labels {label.shape}; expected (n,) each, both of 0 and 1")
    return s, label


def eer_threshold(scores: Float[Tensor, " n"], y: Int[Tensor, " n"]) -> float:
    """Of the scores the one, taken as threshold, whose two error rates are nearest to each other. y: 1 is an attack."""
    s, label = _checked(scores, y)
    candidates = np.unique(s)
    missed, refused = _rates(s, label, candidates)
    return float(candidates[np.abs(missed - refused).argmin()])


def fas_metrics(scores: Float[Tensor, " n"], y: Int[Tensor, " n"], threshold: float) -> dict[str, float]:
    """Rates of scores, higher is more of an attack, with label 1 for attacks and 0 for real captures (ISO 30107-3).

    ``apcer`` is the share of attacks let through at ``threshold`` (score <= threshold), ``bpcer`` that of real captures
    refused, ``acer`` and ``hter`` the mean of both; ``eer`` the mean rate at the data's own equal error threshold and
    ``auc`` need no threshold. Take the threshold from validation data (``eer_threshold``), never from those reported.
    """
    s, label = _checked(scores, y)
    missed, refused = (float(r[0]) for r in _rates(s, label, np.array([threshold])))
    own = _rates(s, label, np.array([eer_threshold(scores, y)]))
    return {
        "apcer": missed,
        "bpcer": refused,
        "acer": (missed + refused) / 2,
        "hter": (missed + refused) / 2,
        "eer": float(own[0][0] + own[1][0]) / 2,
        "auc": point("auroc", np.column_stack((s, label))),
    }
