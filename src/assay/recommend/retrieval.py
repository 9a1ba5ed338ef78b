"""How well scores tell relevant passages from others, with one threshold for all queries and query by query."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.statistics import point

BINS = 50
RESOLVED = 10  # a rate of false positives is told from this many negatives on


@dataclass(frozen=True)
class Separation:
    """auc over all (query, passage) pairs; per_query_auc, the mean within queries, and their difference gap; tpr_1e3
    and tpr_1e2, the share of positives above the threshold that 0.1% and 1% of the negatives exceed (NaN with fewer
    than ten of them beyond it); overlap of the two histograms of scores in [0, 1]; mrr.
    """

    auc: float
    per_query_auc: float
    gap: float
    tpr_1e3: float
    tpr_1e2: float
    overlap: float
    mrr: float


def pairwise_auc(pos: Float[Tensor, " p"], neg: Float[Tensor, " n"]) -> float:
    """The share of (positive, negative) pairs in order, ties counting half; exact, O((p + n) log(p + n)).

    Raises InputError for empty or non-finite scores.
    """
    for name, scores in (("positives", pos), ("negatives", neg)):
        if scores.dim() != 1 or len(scores) == 0 or not torch.isfinite(scores).all():
            raise InputError(f"pairwise_auc: {name} {tuple(scores.shape)}; expected finite scores (n,), n >= 1")
    label = torch.cat((torch.ones(len(pos)), torch.zeros(len(neg)))).double()
    return point("auroc", torch.stack((torch.cat((pos, neg)).double(), label), 1).detach().cpu().numpy())


def global_auc(scores: Float[Tensor, "b m"], relevance: Bool[Tensor, "b m"]) -> float:
    """AUC over the pairs of all queries together: what a single threshold meets."""
    _check("global_auc", scores, relevance)
    return pairwise_auc(scores[relevance], scores[~relevance])


def per_query_auc(scores: Float[Tensor, "b m"], relevance: Bool[Tensor, "b m"]) -> float:
    """The mean over queries of the AUC among a query's own passages; queries without both kinds are left out."""
    _check("per_query_auc", scores, relevance)
    relevant = relevance.cpu().numpy()
    p, n = relevant.sum(1), (~relevant).sum(1)
    both = (p > 0) & (n > 0)
    if not both.any():
        raise InputError("per_query_auc: no query has relevant and other passages; expected at least one")
    ranks = rankdata(scores.detach().double().cpu().numpy(), axis=1)
    wins = (ranks * relevant).sum(1) - p * (p + 1) / 2
    return float((wins[both] / (p[both] * n[both])).mean())


def pooled_topk_auc(scores: Float[Tensor, "b m"], relevance: Bool[Tensor, "b m"], k: int = 500) -> float:
    """AUC over each query's relevant passages and its ``k`` best-scored others, pooled over queries.

    The protocol of Sheikholeslami et al. (2025, arXiv:2510.00137), with k = 500. Queries with fewer others give all.
    """
    _check("pooled_topk_auc", scores, relevance)
    if k < 1:
        raise InputError(f"pooled_topk_auc: k={k}; expected at least 1")
    best = scores.masked_fill(relevance, -torch.inf).topk(min(k, scores.shape[1]), 1).values
    return pairwise_auc(scores[relevance], best[torch.isfinite(best)])


def mean_reciprocal_rank(scores: Float[Tensor, "b m"], relevance: Bool[Tensor, "b m"], k: int | None = None) -> float:
    """Mean over queries of 1 / rank of the best relevant passage, 0 beyond rank ``k``; ties count against it."""
    _check("mean_reciprocal_rank", scores, relevance)
    if k is not None and k < 1:
        raise InputError(f"mean_reciprocal_rank: k={k}; expected at least 1, or None")
    best = scores.masked_fill(~relevance, -torch.inf).amax(1, keepdim=True)
    rank = 1 + ((scores >= best) & ~relevance).sum(1)
    gain = torch.where(relevance.any(1) & (rank <= (k or scores.shape[1])), 1 / rank.double(), 0.0)
    return float(gain.mean())


def separation_report(scores: Float[Tensor, "b m"], relevance: Bool[Tensor, "b m"]) -> Separation:
    """Global and per-query AUC, true-positive rates at small false-positive rates, overlap of histograms, MRR.

    ``scores`` (b, m) finite, ``relevance`` (b, m) bool, with passages of both kinds. InputError otherwise.
    """
    _check("separation_report", scores, relevance)
    pos, neg = (scores[mask].detach().double().cpu().numpy() for mask in (relevance, ~relevance))
    overall, within = global_auc(scores, relevance), per_query_auc(scores, relevance)
    low, high = (_tpr(pos, neg, rate) for rate in (1e-3, 1e-2))
    edges = np.histogram_bin_edges(np.concatenate((pos, neg)), BINS)
    shares = [np.histogram(part, edges)[0] / len(part) for part in (pos, neg)]
    overlap = float(np.minimum(*shares).sum())
    return Separation(overall, within, within - overall, low, high, overlap, mean_reciprocal_rank(scores, relevance))


def _tpr(pos: np.ndarray, neg: np.ndarray, rate: float) -> float:
    if rate * len(neg) < RESOLVED:
        return float("nan")
    above = math.floor(rate * len(neg) + 1e-9)  # 1e-9: a whole number is not lowered by rounding
    return float((pos > np.partition(neg, len(neg) - 1 - above)[len(neg) - 1 - above]).mean())


def _check(where: str, scores: Tensor, relevance: Tensor) -> None:
    if scores.dim() != 2 or scores.numel() == 0 or not scores.is_floating_point() or not torch.isfinite(scores).all():
        shape = f"{scores.dtype} of shape {tuple(scores.shape)}"
        raise InputError(f"{where}: scores are {shape}; expected finite floats (b, m)")
    if relevance.dtype != torch.bool or relevance.shape != scores.shape:
        shape = f"{relevance.dtype} {tuple(relevance.shape)}"
        raise InputError(f"{where}: relevance is {shape}; expected bool {tuple(scores.shape)}")
    if not relevance.any() or relevance.all():
        raise InputError(f"{where}: {int(relevance.sum())} relevant of {relevance.numel()}; expected both kinds")
