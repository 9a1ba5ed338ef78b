"""SupReMix: contrastive regression with pairs made by mixing embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.losses.weighted_sup_con import Weight, WeightedSupConRegressionLoss, flattened
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class MixIndex:
    """m mixtures alpha z_j + (1 - alpha) z_k for their anchors, with label alpha y_j + (1 - alpha) y_k; all (m,)."""

    anchor: Int[Tensor, " m"]
    j: Int[Tensor, " m"]
    k: Int[Tensor, " m"]
    alpha: Float[Tensor, " m"]
    label: Float[Tensor, " m"]
    is_positive: Bool[Tensor, " m"]


def make_mixtures(
    labels: Float[Tensor, " n"],
    *,
    window: float = 5.0,
    beta: tuple[float, float] = (2.0, 8.0),
    mix_neg: bool = True,
    mix_pos: bool = True,
    max_pos: int | None = None,
    tolerance: float = 0.0,
    generator: torch.Generator | None = None,
) -> MixIndex:
    """The mixtures of a batch (Wu et al., 2023, arXiv:2309.16633, and the official training file).

    ``mix_neg``: for every anchor i and every k of another label, j = i and alpha ~ Beta(``beta``), a draw for each.
    ``mix_pos``: for every j, k with y_j < y_i < y_k, both less than ``window`` from y_i, alpha = (y_k - y_i) /
    (y_k - y_j), so that the label is y_i; at most ``max_pos`` of them an anchor, spread evenly over its pairs from a
    random start. Labels within ``tolerance`` count as equal. Memory grows with the number of mixtures: found by
    searching sorted labels, not by going through all triples. ``generator`` draws (torch's own unless given). Raises
    InputError for labels that are not finite or not (n,), and for options out of range.
    """
    _check("make_mixtures", window, beta, max_pos)
    if not 0 <= tolerance < math.inf:
        raise InputError(f"make_mixtures: tolerance={tolerance}; expected a finite number >= 0")
    if labels.dim() != 1 or labels.dtype == torch.bool or not torch.isfinite(labels).all():
        raise InputError(f"make_mixtures: labels {labels.dtype} {tuple(labels.shape)}; expected finite numbers (n,)")
    y = labels.detach().double().cpu()
    seed = int(torch.randint(2**62, (), generator=generator))
    rng = np.random.default_rng(seed)
    parts = []
    if mix_neg:
        anchor, k = ((y[:, None] - y).abs() > tolerance).nonzero().unbind(1)
        parts.append((anchor, anchor, k, torch.from_numpy(rng.beta(*beta, size=len(k)))))
    if mix_pos:
        anchor, j, k = _between(y, window, tolerance, max_pos, rng)
        parts.append((anchor, j, k, (y[k] - y[anchor]) / (y[k] - y[j])))
    if not parts:
        none = torch.zeros(0, dtype=torch.int64)
        parts.append((none, none, none, torch.zeros(0, dtype=torch.float64)))
    anchor, j, k, alpha = (torch.cat(column) for column in zip(*parts, strict=True))
    negatives = len(parts[0][0]) if mix_neg else 0
    positive = torch.arange(len(anchor)) >= negatives
    return MixIndex(anchor, j, k, alpha, alpha * y[j] + (1 - alpha) * y[k], positive)


class SupReMixLoss(WeightedSupConRegressionLoss):
    """The weighted contrastive loss with mixed negatives and mixed positives (Wu et al., 2023, arXiv:2309.16633).

    To P(i) and A(i) of WeightedSupConRegressionLoss join the mixtures of ``make_mixtures``: an anchor mixed with a
    sample of another label is a hard negative, two samples on either side of its label a hard positive, at weight
    w = |y_i - label| + 1, 1 for the latter. As in the official file mixtures carry no gradient of their own (it flows
    through the anchor alone) and keep their length, below 1, unless ``renormalize``. Their similarities are
    combinations of entries of the Gram matrix, O(1) each, whatever the width of the embeddings. One log-sum-exp runs
    over real and mixed terms: the file shifts the two by different maxima before it joins them, which is not followed.

    ``temperature`` 0.3, ``window`` 5 (in units of the labels), ``beta`` (2, 8) and ``weight`` "l1_inv" are the file's;
    without ``mix_neg`` and ``mix_pos`` this is WeightedSupConRegressionLoss. Where no pair lies around an anchor it
    has fewer positives. ``generator`` draws the mixtures (torch's own unless given).
    """

    def __init__(
        self,
        temperature: float = 0.3,
        window: float = 5.0,
        beta: tuple[float, float] = (2.0, 8.0),
        weight: Weight | None = "l1_inv",
        mix_neg: bool = True,
        mix_pos: bool = True,
        max_pos: int | None = None,
        renormalize: bool = False,
        tolerance: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(temperature, weight, tolerance)
        _check("SupReMixLoss", window, beta, max_pos)
        self.window, self.beta, self.max_pos, self.renormalize = float(window), beta, max_pos, renormalize
        self.mix_neg, self.mix_pos, self.generator = mix_neg, mix_pos, generator

    def mixtures(self, labels: Float[Tensor, " n"]) -> MixIndex:
        """The mixtures of a batch with these labels."""
        return make_mixtures(
            labels,
            window=self.window,
            beta=self.beta,
            mix_neg=self.mix_neg,
            mix_pos=self.mix_pos,
            max_pos=self.max_pos,
            tolerance=self.tolerance,
            generator=self.generator,
        )

    def forward(self, features: Float[Tensor, "b v d"], labels: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """The loss of ``features`` under ``labels``."""
        z, y = flattened(type(self).__name__, features, labels)
        mix = self.mixtures(y)
        anchor, positive = mix.anchor.to(z.device), mix.is_positive.to(z.device)
        mixed = similarities(z, mix, self.renormalize) / self.temperature
        near = z @ z.T / self.temperature
        gap = (y[:, None] - y).abs()
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        real = (near + self.log_weight(gap).to(near)).masked_fill(itself, -math.inf)
        away = self.log_weight((y[anchor] - mix.label.to(y)).abs()).to(mixed)
        other = mixed + torch.where(positive, 0.0, away)
        top = real.detach().amax(1).scatter_reduce(0, anchor, other.detach(), "amax")
        total = (real - top[:, None]).exp().sum(1).index_add(0, anchor, (other - top[anchor]).exp())
        same = (gap <= self.tolerance) & ~itself
        attraction = (near * same).sum(1).index_add(0, anchor[positive], mixed[positive])
        count = same.sum(1) + torch.bincount(anchor[positive], minlength=len(z))
        return self.averaged(top + total.log(), attraction, count)


def similarities(z: Float[Tensor, "n d"], mix: MixIndex, renormalize: bool = False) -> Float[Tensor, " m"]:
    """Inner products of anchors with their mixtures, which carry no gradient, from the Gram matrix alone."""
    fixed = z.detach()
    gram = z @ fixed.T
    anchor, j, k = (index.to(z.device) for index in (mix.anchor, mix.j, mix.k))
    alpha = mix.alpha.to(z)
    inner = alpha * gram[anchor, j] + (1 - alpha) * gram[anchor, k]
    if not renormalize:
        return inner
    g = gram.detach()
    size = alpha.square() * g[j, j] + (1 - alpha).square() * g[k, k] + 2 * alpha * (1 - alpha) * g[j, k]
    return inner / size.clamp_min(1e-12).sqrt()


def _between(
    y: Float[Tensor, " n"], window: float, tolerance: float, max_pos: int | None, rng: np.random.Generator
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Anchors with a partner below and one above: ranges of the sorted labels, and their pairs by number."""
    labels, order = y.sort(stable=True)
    low = torch.searchsorted(labels, y - window, right=True)
    below = torch.searchsorted(labels, y - tolerance) - low
    start = torch.searchsorted(labels, y + tolerance, right=True)
    above = torch.searchsorted(labels, y + window) - start
    pairs = below.clamp_min(0) * above.clamp_min(0)
    taken = pairs if max_pos is None else pairs.clamp_max(max_pos)
    anchor = torch.arange(len(y)).repeat_interleave(taken)
    turn = torch.arange(len(anchor)) - (taken.cumsum(0) - taken)[anchor]
    shift = torch.from_numpy(rng.random(len(y)))
    spread = ((turn + shift[anchor]) * (pairs.double() / taken.clamp_min(1))[anchor]).long()
    number = torch.where((pairs == taken)[anchor], turn, spread.minimum(pairs[anchor] - 1))
    j = order[low[anchor] + number // above[anchor]]
    return anchor, j, order[start[anchor] + number % above[anchor]]


def _check(where: str, window: float, beta: tuple[float, float], max_pos: int | None) -> None:
    if not window > 0 or len(beta) != 2 or not 0 < min(beta) <= max(beta) < math.inf:
        raise InputError(f"{where}: window={window}, beta={beta}; expected a window > 0 and two finite numbers > 0")
    if max_pos is not None and max_pos < 1:
        raise InputError(f"{where}: max_pos={max_pos}; expected at least 1, or None")
