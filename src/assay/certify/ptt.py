"""Post-training transformation of conformal scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError


@dataclass(frozen=True)
class FittedPTT:
    """The transformation for the sorted scores ``quantiles_`` (v,) float64 of a hold-out set."""

    method: PTT
    quantiles_: Float[Tensor, " v"]

    def transform(self, scores: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Scores of any shape mapped to [0, 1], float64, by a function that never decreases."""
        rank = torch.searchsorted(self.quantiles_, scores.double().contiguous(), right=True) / len(self.quantiles_)
        return torch.sigmoid((rank.double() - self.method.bias) / self.method.temperature)


@dataclass(frozen=True, kw_only=True)
class PTT:
    """Make a score steep where the threshold will lie (Yan et al., 2024, arXiv:2404.19651, section 4.1).

    A score s becomes its rank q = #{v in V: v <= s} / |V| among the hold-out scores V, and this
    sigmoid((q - ``bias``) / ``temperature``). V holds scores at the true label of a hold-out set that is disjoint from
    the calibration set (the paper takes 500 samples), of one noisy copy each: ``RSCP.single_scores``. Any such map
    keeps the guarantee; with bias = 1 - alpha the smoothed scores of most samples lie far from the threshold, so that
    bounds and shift admit few further classes. Raises InputError unless 0 <= bias <= 1 and temperature > 0 is finite.
    """

    kind: ClassVar[str] = "function"

    temperature: float = 1 / 400
    bias: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf or not 0 <= self.bias <= 1:
            raise InputError(
                f"PTT: temperature = {self.temperature}, bias = {self.bias}; expected finite above 0, and within [0, 1]"
            )

    def fit(self, scores: Float[Tensor, " v"]) -> FittedPTT:
        """Keep the hold-out scores (v,). Raises InputError unless they are a non-empty vector of finite numbers."""
        if scores.dim() != 1 or len(scores) == 0 or not torch.isfinite(scores).all():
            raise InputError(f"PTT: hold-out scores of shape {tuple(scores.shape)}; expected (v,) finite, v >= 1")
        return FittedPTT(self, scores.double().sort().values)
