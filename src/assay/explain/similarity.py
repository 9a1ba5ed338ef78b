"""How alike two attribution maps are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError


@dataclass(frozen=True, eq=False)
class AttributionSimilarity:
    """For n pairs of maps: mean absolute difference ``l1`` (n,), root mean square difference ``l2`` (n,), both in
    [0, 1], and ``iou`` (n, t), the overlap of what is above each of t thresholds."""

    l1: Float[Tensor, " n"]
    l2: Float[Tensor, " n"]
    iou: Float[Tensor, "n t"]


def attribution_iou(m1: Float[Tensor, "n h w"], m2: Float[Tensor, "n h w"], thr: float = 0.5) -> Float[Tensor, " n"]:
    """Intersection over union (n,) of what is above ``thr`` in two maps (n, h, w) in [0, 1]; 1 where nothing is.

    Raises InputError for maps of different shapes or other values.
    """
    _check(m1, m2)
    a, b = (m.flatten(1) > thr for m in (m1, m2))
    union = (a | b).sum(1)
    return torch.where(union > 0, (a & b).sum(1) / union.clamp_min(1), 1.0)


def attribution_similarity(
    m1: Float[Tensor, "n h w"], m2: Float[Tensor, "n h w"], thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
) -> AttributionSimilarity:
    """Differences and overlaps of two maps (n, h, w) in [0, 1], as Abdukhamidov et al. (2023, arXiv:2307.06496) compare
    the maps of benign and adversarial inputs. Raises InputError for maps of different shapes or other values."""
    _check(m1, m2)
    if not thresholds:
        raise InputError("attribution_similarity: no thresholds; expected at least one")
    off = (m1 - m2).flatten(1)
    iou = torch.stack([attribution_iou(m1, m2, thr) for thr in thresholds], 1)
    return AttributionSimilarity(off.abs().mean(1), off.square().mean(1).sqrt(), iou)


def _check(m1: Tensor, m2: Tensor) -> None:
    if m1.shape != m2.shape or m1.dim() != 3 or not m1.numel():
        raise InputError(f"attribution maps: shapes {tuple(m1.shape)}, {tuple(m2.shape)}; expected the same (n, h, w)")
    if not (m1.is_floating_point() and m2.is_floating_point()):
        raise InputError(f"attribution maps: {m1.dtype} and {m2.dtype}; expected floating-point tensors")
    if not all(((m >= 0) & (m <= 1)).all() for m in (m1, m2)):
        raise InputError("attribution maps: a value is not in [0, 1]; expected maps stretched to it")
