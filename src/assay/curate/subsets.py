"""From scores to subsets."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


def ranking(scores: Float[Tensor, " n"], *, seed: int = 0) -> Int[Tensor, " n"]:
    """Positions from the highest score to the lowest; ties in a random order. Infinity may be a score, NaN not."""
    if scores.dim() != 1 or len(scores) == 0 or not scores.is_floating_point():
        raise InputError(f"scores: {scores.dtype} {tuple(scores.shape)}; expected floats (n,), n >= 1")
    bad = int((scores.isnan() | (scores == -torch.inf)).sum())
    if bad:
        raise InputError(f"scores: {bad} of {len(scores)} are NaN or -infinity; expected numbers (or +infinity)")
    shuffled = torch.randperm(len(scores), generator=torch_rng(seed, "ties"))
    return shuffled[scores.cpu()[shuffled].argsort(descending=True, stable=True)]


def within_classes(scores: Float[Tensor, " n"], y: Int[Tensor, " n"], *, seed: int = 0) -> Float[Tensor, " n"]:
    """Scores as shares of the class that rank lower, in [0, 1): by these every class loses the same share."""
    check_labels("within_classes", y, len(scores))
    lowest_first = ranking(scores, seed=seed).flip(0)
    by_class = lowest_first[y[lowest_first].argsort(stable=True)]
    size = torch.bincount(y)
    start = size.cumsum(0) - size
    share = torch.empty(len(y), dtype=torch.float64)
    share[by_class] = (torch.arange(len(y)) - start[y[by_class]]) / size[y[by_class]].double()
    return share


def offset_subset(scores: Float[Tensor, " n"], keep: float, offset: float = 0.0, *, seed: int = 0) -> Int[Tensor, " k"]:
    """Positions, ascending, of the share ``keep`` that comes after the share ``offset`` of highest scores (Paul et al.,
    2021, arXiv:2107.07075, section 4, figure 3): with wrong labels the hardest samples are the wrong ones.

    At least one is kept. Raises InputError unless 0 < keep, 0 <= offset and keep + offset <= 1.
    """
    if not (math.isfinite(keep) and math.isfinite(offset) and keep > 0 and offset >= 0 and keep + offset <= 1 + 1e-9):
        raise InputError(f"keep={keep}, offset={offset}; expected keep in (0, 1], offset >= 0, keep + offset <= 1")
    n = len(scores)
    k = min(max(round(keep * n), 1), n)
    skip = min(round(offset * n), n - k)
    return ranking(scores, seed=seed)[skip : skip + k].sort().values


def prune_by_score(scores: Float[Tensor, " n"], keep: float, *, seed: int = 0) -> Int[Tensor, " k"]:
    """Positions, ascending, of the share ``keep`` with the highest scores; errors as of ``offset_subset``."""
    return offset_subset(scores, keep, seed=seed)
