"""Operating-point inconsistency: how differently classes fare at one similarity threshold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng
from assay.runtime.statistics import resamples

EXACT = 5000  # samples up to which the calibration range is taken from all pairs
TIE = 1e-9  # a distance this far above a threshold is at it: thresholds that are distances do not hang on rounding


@dataclass(frozen=True)
class OPISResult:
    """``value`` >= 0 and its bootstrap ``standard_error`` over classes, in squared units of utility.

    ``classes`` (k,) labels; ``thresholds`` (t,) distances; ``utility``, ``sensitivity`` and ``specificity`` (k, t), in
    [0, 1]; ``per_class`` (k,) the mean squared divide between a class and the mean class: ``value`` is their mean.
    """

    value: float
    standard_error: float
    classes: Int[np.ndarray, " k"]
    thresholds: Float[np.ndarray, " t"]
    utility: Float[np.ndarray, "k t"]
    sensitivity: Float[np.ndarray, "k t"]
    specificity: Float[np.ndarray, "k t"]
    per_class: Float[np.ndarray, " k"]


def opis(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    far: tuple[float, float] = (1e-2, 1e-1),
    n_thresholds: int = 101,
    c: float = 1.0,
    chunk: int = 2048,
) -> OPISResult:
    """The variance over classes of the utility U_i(d), averaged over distances d in the calibration range (Zhang et
    al., 2024, arXiv:2307.04047, OPIS).

    d is the Euclidean distance of unit embeddings, in [0, 2]. For class i, sensitivity is the share of its pairs with
    distance <= d, specificity that of its pairs with other classes with distance > d, and U_i = (1 + c^2) their product
    over (c^2 specificity + sensitivity), 0 where both are 0; as in F-scores, c > 1 gives sensitivity more weight. The
    range is where the false accept rate of all pairs together goes from ``far[0]`` to ``far[1]``; the integral is a
    mean over ``n_thresholds`` evenly spaced distances. A low value is no merit of its own, collapsed embeddings have
    one too: look at recall beside it. ``chunk`` rows of distances are held at a time. Classes of a single sample are
    left out with a RuntimeWarning. Raises InputError for fewer than two classes, zero vectors and rates not 0 < low <
    high < 1.
    """
    embeddings, labels = _usable(embeddings, labels)
    if n_thresholds < 2 or not 0 < c < math.inf:
        raise InputError(f"opis: n_thresholds={n_thresholds}, c={c}; expected at least 2, and c > 0")
    low, high = calibration_range(embeddings, labels, far=far)
    thresholds = np.linspace(low, high, n_thresholds)
    classes, sensitivity, specificity = utility_curves(embeddings, labels, thresholds, chunk=chunk)
    total = c**2 * specificity + sensitivity
    product = (1 + c**2) * sensitivity * specificity
    utility = np.divide(product, total, out=np.zeros_like(total), where=total > 0)
    per_class = np.square(utility - utility.mean(0)).mean(1)
    weights = resamples(len(classes), 0)
    weights /= weights.sum(1, keepdims=True)
    draws = (weights @ utility**2 - (weights @ utility) ** 2).mean(1)
    return OPISResult(
        float(per_class.mean()), float(draws.std()), classes, thresholds, utility, sensitivity, specificity, per_class
    )


def epsilon_opis(result: OPISResult, eps: float = 0.1) -> float:
    """The squared divide between the mean utility of the ceil(``eps`` k) worst classes and that of the others, averaged
    over the thresholds; 0 where all classes agree.

    The paper names such a measure of the worst classes; this form, with the worst chosen anew at each threshold, is
    ours. Raises InputError where no class is left on one side.
    """
    worst = math.ceil(eps * len(result.classes) - 1e-9)  # 0.07 * 100 is just above 7
    if not 0 < eps < 1 or not 1 <= worst < len(result.classes):
        raise InputError(f"epsilon_opis: eps={eps} of {len(result.classes)} classes; expected a part of them")
    utility = np.sort(result.utility, 0)
    return float(np.square(utility[:worst].mean(0) - utility[worst:].mean(0)).mean())


def calibration_range(
    embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, far: tuple[float, float] = (1e-2, 1e-1)
) -> tuple[float, float]:
    """The distances below which lie the shares ``far`` of all pairs of different labels.

    Of more than 5000 samples, a random 5000 (the same each time) stand for all. Raises InputError as ``opis`` does.
    """
    if not 0 < far[0] < far[1] < 1:
        raise InputError(f"calibration_range: far={far}; expected 0 < low < high < 1")
    embeddings, labels = _usable(embeddings, labels)
    if len(labels) > EXACT:
        rows = torch.randperm(len(labels), generator=torch_rng(0, "opis"))[:EXACT]
        embeddings, labels = embeddings[rows], labels[rows]
    apart = torch.cat([d[labels[rows, None] != labels] for rows, d in _distances(embeddings, 1024)])
    if len(apart) == 0:
        raise InputError("calibration_range: all samples have one label; expected at least two")
    low, high = np.quantile(apart.numpy(), far)
    return float(low), float(high)


def utility_curves(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    thresholds: Float[np.ndarray, " t"],
    *,
    chunk: int = 2048,
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k t"], Float[np.ndarray, "k t"]]:
    """The labels (k,), and the sensitivity and specificity (k, t) of each class at ascending ``thresholds``, t >= 1.

    Raises InputError for thresholds that do not ascend or are not finite, and as ``opis`` does.
    """
    embeddings, labels = _usable(embeddings, labels)
    classes, which = labels.unique(return_inverse=True)
    at = torch.as_tensor(thresholds, dtype=torch.float64) + TIE
    if at.dim() != 1 or len(at) == 0 or not torch.isfinite(at).all() or (at.diff() < 0).any():
        raise InputError(f"utility_curves: thresholds {tuple(at.shape)}; expected finite ascending distances (t,)")
    k, bins = len(classes), len(at) + 1
    counts = torch.zeros(2, k * bins, dtype=torch.int64)
    for rows, distance in _distances(embeddings, chunk):
        place = which[rows, None] * bins + torch.bucketize(distance, at)
        same = which[rows, None] == which
        apart = ~same
        same[torch.arange(len(rows)), rows] = False
        counts += torch.stack([torch.bincount(place[pairs], minlength=k * bins) for pairs in (same, apart)])
    below = counts.view(2, k, bins).double().cumsum(2)
    accepted = (below[:, :, :-1] / below[:, :, -1:]).numpy()
    return classes.numpy(), accepted[0], 1 - accepted[1]


def threshold_report(
    embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, far: float = 0.05, chunk: int = 2048
) -> dict[str, np.ndarray]:
    """At the one distance where the pooled false accept rate is ``far``: arrays (k,) ``class``, ``far`` and ``frr``.

    Raises InputError for a rate outside (0, 1), and as ``opis`` does.
    """
    if not 0 < far < 1:
        raise InputError(f"threshold_report: far={far}; expected a rate in (0, 1)")
    threshold = calibration_range(embeddings, labels, far=(far, (1 + far) / 2))[0]
    classes, sensitivity, specificity = utility_curves(embeddings, labels, np.array([threshold]), chunk=chunk)
    return {"class": classes, "far": 1 - specificity[:, 0], "frr": 1 - sensitivity[:, 0]}


def recall_at(embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, k: int = 1, chunk: int = 2048) -> float:
    """Recall@k: the share of samples with one of their own label among their ``k`` nearest other samples.

    Nearest by cosine similarity. Raises InputError for other shapes, zero vectors, and k outside 1 to n - 1.
    """
    _check("recall_at", embeddings, labels)
    if not 1 <= k < len(labels):
        raise InputError(f"recall_at: k={k} of {len(labels)} samples; expected 1 to {len(labels) - 1}")
    found = []
    for rows, distance in _distances(embeddings, chunk):
        distance[torch.arange(len(rows)), rows] = math.inf
        nearest = labels[distance.topk(k, largest=False).indices]
        found.append((nearest == labels[rows, None]).any(1))
    return float(torch.cat(found).double().mean())


def _distances(embeddings: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions (m,) and the distances (m, n), in float64, of their unit embeddings to all."""
    if chunk < 1:
        raise InputError(f"distances: chunk={chunk}; expected rows to hold at a time, 1 or more")
    unit = F.normalize(embeddings.detach().double(), dim=1)
    for rows in torch.arange(len(unit)).split(chunk):
        yield rows, (2 - 2 * unit[rows] @ unit.T).clamp_min(0).sqrt()


def _check(where: str, embeddings: Tensor, labels: Tensor) -> None:
    check_inputs(where, embeddings)
    check_labels(where, labels, len(embeddings))
    if embeddings.dim() != 2 or not embeddings.any(1).all():
        shape = tuple(embeddings.shape)
        raise InputError(f"{where}: embeddings of shape {shape}; expected (n, d) without zero vectors")


def _usable(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The samples of classes that have two or more."""
    _check("opis", embeddings, labels)
    classes, which, size = labels.unique(return_inverse=True, return_counts=True)
    if (size > 1).sum() < 2:
        raise InputError(f"opis: {int((size > 1).sum())} classes of two or more samples; expected at least two")
    if (size < 2).any():
        lone = classes[size < 2].tolist()
        warnings.warn(f"opis: classes {lone} have a single sample and are left out", RuntimeWarning, 3)
    keep = (size > 1)[which]
    return embeddings[keep], labels[keep]
