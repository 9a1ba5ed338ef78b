"""Scoring detectors: boxes matched to signs, thresholds, average precision, and what an attack makes them miss.

A detector has ``predict(images) -> list[dict(boxes (k, 4) x1 y1 x2 y2, scores (k,), labels (k,))]``, as torchvision's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.attacks.patch import box_iou
from assay.runtime.errors import InputError

Found = dict[str, Tensor]


@dataclass(frozen=True)
class Matches:
    """What a detector found of one class.

    scores (p,) and hits (p,): its predictions, and which took a sign; sign_scores (m,): the score of the prediction
    that took each sign, minus infinity where none did. Predictions on signs that do not count are left out.
    """

    scores: Float[Tensor, " p"]
    hits: Bool[Tensor, " p"]
    sign_scores: Float[Tensor, " m"]


def match(
    found: list[Found], boxes: Float[Tensor, "m 4"], obj_to_img: Int[Tensor, " m"], label: int, *, iou: float = 0.5,
    counts: Bool[Tensor, " m"] | None = None,
) -> Matches:  # fmt: skip
    """Predictions of class ``label`` to its signs: in order of score each takes the free sign it overlaps most, if by
    ``iou`` or more. ``counts`` (m,) says which signs count (the others are neither hit nor missed)."""
    counts = torch.ones(len(boxes), dtype=torch.bool) if counts is None else counts
    sign_scores = torch.full((len(boxes),), -math.inf)
    scores, hits = [], []
    for image, predicted in enumerate(found):
        own = predicted["labels"].cpu() == label
        value, order = predicted["scores"].detach().cpu().float()[own].sort(descending=True, stable=True)
        signs = (obj_to_img == image).nonzero()[:, 0]
        overlap = box_iou(predicted["boxes"].detach().cpu().float()[own][order], boxes[signs])
        for score, row in zip(value.tolist(), overlap, strict=True):
            free = torch.where(sign_scores[signs] == -math.inf, row, -1.0)
            best = int(free.argmax()) if len(signs) else -1
            taken = best >= 0 and bool(free[best] >= iou)
            if taken:
                sign_scores[signs[best]] = score
            if not taken or counts[signs[best]]:
                scores.append(score)
                hits.append(taken)
    return Matches(torch.tensor(scores), torch.tensor(hits, dtype=torch.bool), sign_scores[counts])


def f1_threshold(matches: Matches) -> float:
    """The score at which 2 TP / (predictions + signs) is largest; infinite without a hit."""
    value, order = matches.scores.sort(descending=True, stable=True)
    if not matches.hits.any():
        return math.inf
    hits = matches.hits[order].double().cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(value) + 1) + len(matches.sign_scores))
    return float(value[torch.where(_last_of_equals(value), f1, -1.0).argmax()])


def _last_of_equals(value: Float[Tensor, " p"]) -> Bool[Tensor, " p"]:
    """Of scores that fall, each last one of equal ones: a threshold lets these pass together."""
    return torch.cat((value[1:] < value[:-1], torch.ones(min(len(value), 1), dtype=torch.bool)))


def fnr_threshold(matches: Matches, fnr: float) -> float:
    """The highest score at which at most the share ``fnr`` of the signs is missed. InputError where none does that."""
    value = matches.sign_scores.sort(descending=True).values
    need = math.ceil((1 - fnr) * len(value) - 1e-9) if 0 <= fnr < 1 else 0
    if not 0 <= fnr < 1 or not len(value) or value[need - 1] == -math.inf:
        raise InputError(f"fnr_threshold: fnr={fnr} is not reached on {len(value)} signs; expected a share that is")
    return float(value[need - 1])


def average_precision(matches: Matches) -> float:
    """Area under precision over recall, precision made non-increasing and read at 101 recalls as COCO does.

    Predictions of equal score count together, so that their order plays no part. NaN without signs.
    """
    if not len(matches.sign_scores):
        return math.nan
    value, order = matches.scores.sort(descending=True, stable=True)
    last = _last_of_equals(value)
    hits = matches.hits[order].double().cumsum(0)[last]
    recall = hits / len(matches.sign_scores)
    precision = hits / torch.arange(1, len(value) + 1)[last]
    precision = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    at = torch.searchsorted(recall, torch.linspace(0, 1, 101, dtype=torch.float64) - 1e-12)
    return float(torch.cat((precision, precision.new_zeros(1)))[at].mean())


def attack_success_rate(clean: Bool[Tensor, " m"], patched: Bool[Tensor, " m"]) -> float:
    """Of the signs detected without the patch the share that is missed with it; NaN where none was detected
    (Hingun et al., 2022, arXiv:2212.05680)."""
    if clean.shape != patched.shape:
        raise InputError(
            f"attack_success_rate: {tuple(clean.shape)} and {tuple(patched.shape)}; expected the same signs"
        )
    return float((clean & ~patched).sum() / clean.sum()) if clean.any() else math.nan
