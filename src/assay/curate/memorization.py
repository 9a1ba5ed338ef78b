"""Memorisation: how much a prediction depends on having seen the sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.random import derive, torch_rng


class FitPredict(Protocol):
    """Trains on labelled samples and predicts the labels (m,) of others."""

    def __call__(self, x: Tensor, y: Tensor, at: Tensor, *, seed: int) -> Int[Tensor, " m"]: ...


@dataclass(frozen=True)
class Memorization:
    """What ``memorization_scores`` found.

    mem_ (n,) in [-1, 1] with standard errors se_ (n,); infl_ (n, m) of each sample on each test point, or None; masks_
    (t, n): which model trained on which sample; correct_ (t, n): which predicted its label.
    """

    mem_: Float[Tensor, " n"]
    se_: Float[Tensor, " n"]
    infl_: Float[Tensor, "n m"] | None
    masks_: Bool[Tensor, "t n"]
    correct_: Bool[Tensor, "t n"]


def subset_masks(n: int, trials: int, rate: float, *, seed: int) -> Bool[Tensor, "t n"]:
    """Random subsets of round(rate n) samples, one a trial."""
    if not (0 < rate < 1 and trials >= 2 and n >= 2):
        raise InputError(f"memorization: n={n}, T={trials}, rate={rate}; expected n, T >= 2 and a rate in (0, 1)")
    size = min(max(round(rate * n), 1), n - 1)
    rank = torch.rand(trials, n, generator=torch_rng(seed, "subsets")).argsort(1).argsort(1)
    return rank < size


def memorization_of(
    correct: Bool[Tensor, "t n"], masks: Bool[Tensor, "t n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """For each sample the share of models right on it among those that saw it, less that among the others; and its
    standard error sqrt(v_1 / T_1 + v_0 / T_0), v the variances of right and wrong in both groups.

    Raises InputError for a sample that all models saw, or none, and for shapes that differ.
    """
    if correct.shape != masks.shape:
        raise InputError(f"memorization: correct {tuple(correct.shape)}; expected {tuple(masks.shape)}, as the masks")
    seen, right = masks.double(), correct.double()
    inside, outside = _groups(seen)
    p1, p0 = (seen * right).sum(0) / inside, ((1 - seen) * right).sum(0) / outside
    return p1 - p0, (p1 * (1 - p1) / inside + p0 * (1 - p0) / outside).sqrt()


def influence_scores(correct: Bool[Tensor, "t m"], masks: Bool[Tensor, "t n"]) -> Float[Tensor, "n m"]:
    """For each sample i and point j the share of models right on j among those that saw i, less that among the others.

    Raises InputError for a sample that all models saw, or none, and for another number of models.
    """
    if correct.dim() != 2 or len(correct) != len(masks):
        raise InputError(f"influence: correct {tuple(correct.shape)}; expected ({len(masks)}, m), a row for each mask")
    seen, right = masks.double(), correct.double()
    inside, outside = _groups(seen)
    return seen.T @ right / inside[:, None] - (1 - seen).T @ right / outside[:, None]


def _groups(seen: Float[Tensor, "t n"]) -> tuple[Tensor, Tensor]:
    """How many models saw each sample and how many did not."""
    inside = seen.sum(0)
    outside = len(seen) - inside
    lone = int(((inside == 0) | (outside == 0)).sum())
    if lone:
        raise InputError(
            f"memorization: {lone} of {seen.shape[1]} samples are in all {len(seen)} subsets or in none; "
            "expected both (raise T, or take a rate nearer 1/2)"
        )
    return inside, outside


def memorization_scores(
    fit_predict: FitPredict,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    T: int = 60,
    rate: float = 0.7,
    seed: int = 0,
    test: tuple[Tensor, Int[Tensor, " m"]] | None = None,
    masks: Bool[Tensor, "t n"] | None = None,
) -> Memorization:
    """mem_i = P[h(x_i) = y_i | i in S] - P[h(x_i) = y_i | i not in S] over random subsets S of the share ``rate``
    (Feldman, 2020, arXiv:1906.05271, definition of mem; estimator of Feldman & Zhang, 2020, arXiv:2008.03703).

    ``T`` models are trained (the paper's 2,000; 50 or more on a laptop). What is memorised is a label: predictions
    count as right or wrong, not by their loss. Subsets of rate n samples estimate memorisation at that size. ``test``
    (points, labels) adds the influence of every sample on every point. ``masks`` gives other subsets, such as all but
    one. Raises InputError for a rate outside (0, 1), for a sample that all or no subsets hold, and where what is
    predicted is not one label a point.
    """
    if len(x) != len(y) or y.dtype != torch.int64:
        raise InputError(f"memorization: x {tuple(x.shape)}, y {y.dtype} {tuple(y.shape)}; expected n rows, int64 (n,)")
    masks = subset_masks(len(y), T, rate, seed=seed) if masks is None else masks
    if masks.dtype != torch.bool or masks.dim() != 2 or masks.shape[1] != len(y) or not masks.any(1).all():
        raise InputError(
            f"memorization: masks {masks.dtype} {tuple(masks.shape)}; expected bool (t, {len(y)}), none empty"
        )
    at = x if test is None else torch.cat([x, test[0]])
    labels = y if test is None else torch.cat([y, test[1]])
    if len(at) != len(labels):
        raise InputError(
            f"memorization: {len(at) - len(x)} test points, {len(labels) - len(y)} labels; expected one each"
        )
    found = torch.stack([fit_predict(x[s], y[s], at, seed=derive(seed, "subset", t)) for t, s in enumerate(masks)])
    if found.shape[1:] != labels.shape:
        given = tuple(found.shape[1:])
        raise InputError(f"memorization: fit_predict gives {given} for {len(at)} points; expected labels ({len(at)},)")
    correct = found == labels
    own = correct[:, : len(y)]
    mem, se = memorization_of(own, masks)
    infl = None if test is None else influence_scores(correct[:, len(y) :], masks)
    return Memorization(mem, se, infl, masks, own)
