"""The supervised contrastive loss for numeric labels, its negatives weighted by their distance in label."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError, unknown

Weight = Literal["l1_inv", "l1", "l2_inv", "l2"]
WEIGHTS = ("l1_inv", "l1", "l2_inv", "l2")


class WeightedSupConRegressionLoss(nn.Module):
    """-1 / |P(i)| sum over p in P(i) of s_ip - log sum over a in A(i) of w(i, a) exp(s_ia), s = z.z' / tau, averaged
    over the anchors i with a positive (Wu et al., 2023, arXiv:2309.16633; the loss that SupReMix builds on).

    P(i) are the other embeddings whose label is within ``tolerance`` of the anchor's, A(i) all others. With
    d = |y_i - y_a|, w is d + 1 under "l1_inv" ("distance magnifying": far labels are pushed away harder), 1 / (d + 1)
    under "l1", d^2 + 1 and 1 / (d^2 + 1) under "l2_inv" and "l2", and 1 under None, the supervised contrastive loss:
    the unit of the labels matters, standardised ones make all weights nearly alike.

    ``features`` (b, v, d), v views of each sample, or (n, d), are scaled to length 1; ``labels`` (b,) or (n,), integers
    or floats, finite. Returns a scalar, 0 with a gradient of 0 where no anchor has a positive; ``skipped`` counts such
    anchors. Raises InputError for fewer than two embeddings, other shapes and options out of range.
    """

    kind: ClassVar[str] = "function"

    def __init__(self, temperature: float = 0.3, weight: Weight | None = "l1_inv", tolerance: float = 0.0) -> None:
        super().__init__()
        where = type(self).__name__
        if not 0 < temperature < math.inf or not 0 <= tolerance < math.inf:
            given = f"temperature={temperature}, tolerance={tolerance}"
            raise InputError(f"{where}: {given}; expected finite numbers, temperature > 0, tolerance >= 0")
        if weight is not None and weight not in WEIGHTS:
            raise unknown(f"weight of {where}", str(weight), WEIGHTS)
        self.temperature, self.weight, self.tolerance = float(temperature), weight, float(tolerance)
        self.skipped = 0

    def forward(self, features: Float[Tensor, "b v d"], labels: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """The loss of ``features`` under ``labels``."""
        z, y = flattened(type(self).__name__, features, labels)
        near = z @ z.T / self.temperature
        gap = (y[:, None] - y).abs()
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        terms = (near + self.log_weight(gap).to(near)).masked_fill(itself, -math.inf)
        positive = (gap <= self.tolerance) & ~itself
        return self.averaged(terms.logsumexp(1), (near * positive).sum(1), positive.sum(1))

    def averaged(self, total: Float[Tensor, " n"], attraction: Float[Tensor, " n"], count: Tensor) -> Float[Tensor, ""]:
        """Mean over anchors with positives of ``total``, the log of the weighted sum, less the mean of s over them."""
        some = count > 0
        self.skipped += int((~some).sum())
        each = torch.where(some, total - attraction / count.clamp_min(1), 0.0)
        return each.sum() / some.sum().clamp_min(1)

    def log_weight(self, gap: Tensor) -> Tensor:
        """log w of distances in label."""
        if self.weight is None:
            return torch.zeros_like(gap)
        wide = (gap.square() if self.weight.startswith("l2") else gap).log1p()
        return wide if self.weight.endswith("inv") else -wide

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, weight={self.weight!r}"


def flattened(where: str, features: Tensor, labels: Tensor) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """One row of length 1 and one float64 label an embedding; InputError for other shapes and values."""
    if features.dim() == 3 and labels.shape == features.shape[:1]:
        labels = labels.repeat_interleave(features.shape[1])
        features = features.flatten(0, 1)
    if features.dim() != 2 or labels.shape != features.shape[:1] or len(features) < 2 or features.shape[1] < 2:
        shapes = f"{tuple(features.shape)}, labels {tuple(labels.shape)}"
        raise InputError(f"{where}: features {shapes}; expected (b, v, d) and (b,), two embeddings or more, d >= 2")
    if not features.is_floating_point() or labels.dtype == torch.bool or labels.is_complex():
        raise InputError(f"{where}: {features.dtype} features, {labels.dtype} labels; expected floats and numbers")
    if not torch.isfinite(features).all() or not torch.isfinite(labels).all():
        raise InputError(f"{where}: features or labels hold NaN or infinite values; expected finite")
    return F.normalize(features, dim=1), labels.double()
