"""Uncertain points, mixed with others before the teacher sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.curate.gains import GAINS
from assay.curate.query import Pool
from assay.curate.uncertainty_query import UncertaintyQuery
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


@dataclass(frozen=True, kw_only=True)
class UncertaintyMixup(UncertaintyQuery):
    """The most uncertain points, each mixed with another point of the pool: the teacher labels the mixture (after
    UNIXKD, Xu et al., 2020, arXiv:2012.09413).

    Point i becomes w x_i + (1 - w) x_j, w = 1 - (1 - gain_i) ``strength``, j random: what is uncertain already is mixed
    least. A reading of the idea, not that paper's weighting function. ``strength`` in [0, 1/2]; 0 mixes nothing.
    """

    strength: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength <= 0.5:
            raise InputError(f"UncertaintyMixup: strength={self.strength}; expected a number in [0, 1/2]")

    def inputs(self, x: Float[Tensor, "n ..."], pool: Pool, rows: Int[Tensor, " b"], *, seed: int) -> Tensor:
        """The mixtures (b, ...)."""
        weight = (1 - (1 - GAINS[self.gain](pool.probs)[rows]) * self.strength).to(x)
        partner = torch.randint(len(x), (len(rows),), generator=torch_rng(seed, "mixup"))
        weight = weight.view(-1, *[1] * (x.dim() - 1))
        return weight * x[rows] + (1 - weight) * x[partner]
