"""Deciding when not to answer: risk over coverage, its excess over the best possible, and the trust index."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError, unknown

Curve = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


def risk_coverage(
    correct: Any,
    uncertainty: Any,
    *,
    risk: Literal["error", "macro_f1"] = "error",
    y: Any = None,
    predicted: Any = None,
) -> Curve:
    """Coverage j/n and the risk of the j samples of least uncertainty, j = 1 to n (Geifman & El-Yaniv, 2017,
    arXiv:1705.08500, eq. 1 and 2).

    ``correct`` (n,) in {0, 1}, ``uncertainty`` (n,). The risk is the share of errors, samples of equal uncertainty
    counting with their mean, which is the expectation over their orders; or 1 - macro F1 of the retained labels ``y``
    and ``predicted``, over the classes that occur among them, ties in the order given. InputError for other arrays.
    """
    right, u = _checked("risk_coverage", correct, uncertainty)
    n = len(right)
    coverage = np.arange(1, n + 1) / n
    order = np.argsort(u, kind="stable")
    if risk == "error":
        _, group = np.unique(u, return_inverse=True)
        errors = np.bincount(group, 1 - right) / np.bincount(group)
        return coverage, np.cumsum(errors[group][order]) / np.arange(1, n + 1)
    if risk != "macro_f1":
        raise unknown("risk of risk_coverage", risk, ("error", "macro_f1"))
    if y is None or predicted is None or len(y) != n or len(predicted) != n:
        raise InputError(f"risk_coverage: macro_f1 without {n} labels and predictions; expected y and predicted")
    classes, codes = np.unique(np.concatenate((y, predicted)), return_inverse=True)
    truth, guess = (np.equal(part[order][:, None], np.arange(len(classes))) for part in np.split(codes, 2))
    both, either = np.cumsum(truth & guess, 0), np.cumsum(truth.astype(int) + guess, 0)
    return coverage, 1 - (2 * both / np.maximum(either, 1)).sum(1) / (either > 0).sum(1)


def aurc(correct: Any, uncertainty: Any) -> float:
    """Area under the risk-coverage curve: its mean risk, in [0, 1] (Geifman et al., 2019, arXiv:1805.08206)."""
    return float(risk_coverage(correct, uncertainty)[1].mean())


def e_aurc(correct: Any, uncertainty: Any) -> float:
    """AURC less that of the order which has every right sample before every wrong one (Geifman et al., 2019,
    arXiv:1805.08206, eq. 4, with its sum in place of the integral). At least 0."""
    right, u = _checked("e_aurc", correct, uncertainty)
    return aurc(right, u) - aurc(right, 1 - right)


def e_auopt_rc(correct: Any, uncertainty: Any) -> float:
    """E-AUoptRC = integral from c* = a to 1 of r(c) - (c - a) / c, a the accuracy (Ao, 2023, arXiv:2308.03176, section
    on empirical optimal risk): the area between the curve and the best possible one, where that has to err.

    By the trapezoidal rule over coverages j/n; whether the paper divides by 1 - c* is not known, here it does not. 0
    for the perfect order, about (1 - a)^2 - ((1 - a) + a ln a) for a random one. 0 where all are right or all wrong.
    """
    right, u = _checked("e_auopt_rc", correct, uncertainty)
    a, start = float(right.mean()), int(right.sum())
    if start in (0, len(right)):
        return 0.0
    coverage, risk = risk_coverage(right, u)
    excess = (risk - (coverage - a) / coverage)[start - 1 :]
    return float(np.trapezoid(excess, coverage[start - 1 :]))


def optimal_area(accuracy: float) -> float:
    """(1 - a) + a ln a: the area under the best possible risk-coverage curve. InputError unless 0 < a <= 1."""
    if not 0 < accuracy <= 1:
        raise InputError(f"optimal_area: accuracy={accuracy}; expected a number in (0, 1]")
    return (1 - accuracy) + accuracy * math.log(accuracy)


def random_excess(accuracy: float) -> float:
    """(1 - a)^2 - ((1 - a) + a ln a): the E-AUoptRC of an order that knows nothing."""
    return (1 - accuracy) ** 2 - optimal_area(accuracy)


def trust_index(correct: Any, uncertainty: Any, *, coverage: float | None = None) -> float:
    """TI = 1 - r(c*): the accuracy of the samples kept at the best operating point c* = a (Ao, 2023, arXiv:2308.03176),
    or at a ``coverage`` in (0, 1], rounded to a number of samples.

    max(0, (2a - 1) / a) <= TI <= 1; 1 for the perfect order, a on average for a random one. c* comes from the accuracy
    on these samples: an evaluation, not a rule for deciding. Where all are right or all are wrong TI is the accuracy,
    with a RuntimeWarning. InputError for other numbers.
    """
    right, u = _checked("trust_index", correct, uncertainty)
    n = len(right)
    if coverage is not None and not 0 < coverage <= 1:
        raise InputError(f"trust_index: coverage={coverage}; expected a share in (0, 1]")
    kept = int(right.sum()) if coverage is None else max(round(coverage * n), 1)
    if coverage is None and kept in (0, n):
        warnings.warn("trust_index: all samples right or all wrong: the index is the accuracy", RuntimeWarning, 2)
        return float(right.mean())
    return float(1 - risk_coverage(right, u)[1][kept - 1])


def _checked(where: str, correct: Any, uncertainty: Any) -> tuple[np.ndarray, np.ndarray]:
    """0 or 1 and finite scores, one each a sample, in float64."""
    given = (v.detach().cpu().double() if isinstance(v, Tensor) else v for v in (correct, uncertainty))
    right, u = (np.asarray(v, float) for v in given)
    if right.ndim != 1 or len(right) == 0 or u.shape != right.shape or not np.isfinite(u).all():
        raise InputError(f"{where}: correct {right.shape}, uncertainty {u.shape}; expected finite (n,) both, n >= 1")
    if not np.isin(right, (0, 1)).all():
        raise InputError(f"{where}: correct holds other numbers than 0 and 1; expected right or wrong")
    return right, u
