"""Weights of classes by their sizes, and when they come into force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError, unknown

WEIGHTINGS = ("cb", "inverse", "none")


def class_balanced_weights(counts: Int[Tensor, " c"], beta: float = 0.9999) -> Float[Tensor, " c"]:
    """(1 - beta) / (1 - beta^n_c), scaled to a mean of 1 (Cui et al., 2019, arXiv:1901.05555, eq. 2), float64.

    The inverse of the effective number of samples: ``beta`` = 0 gives 1 to every class, beta near 1 the inverse of
    its count. InputError for a count below 1, and beta outside [0, 1).
    """
    sizes = torch.as_tensor(counts)
    if sizes.dim() != 1 or len(sizes) == 0 or sizes.min() < 1:
        raise InputError(f"class_balanced_weights: counts {sizes.tolist()}; expected (c,), each at least 1")
    if not 0 <= beta < 1:
        raise InputError(f"class_balanced_weights: beta={beta}; expected a number in [0, 1)")
    # expm1 keeps the digits where beta^n is next to 1.
    effective = -torch.expm1(sizes.double() * torch.tensor(beta, dtype=torch.float64).log())
    return len(sizes) / effective / (1 / effective).sum()


@dataclass(frozen=True, kw_only=True)
class DeferredReweighting:
    """Weights of 1 before epoch ``defer``, then those of the classes (Cao et al., 2019, arXiv:1906.07413, section 3.3).

    ``weighting`` "cb": class_balanced_weights at ``beta``; "inverse": in proportion to 1 / n_c; "none": 1 throughout.
    All have a mean of 1 over the classes that have samples; an empty class, which no batch holds, has weight 1.
    """

    kind: ClassVar[str] = "function"

    weighting: Literal["cb", "inverse", "none"] = "cb"
    beta: float = 0.9999
    defer: int = 160

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise unknown("weighting", str(self.weighting), WEIGHTINGS)
        if not 0 <= self.beta < 1 or self.defer < 0:
            raise InputError(f"DeferredReweighting: beta={self.beta}, defer={self.defer}; expected [0, 1) and >= 0")

    def weights(self, counts: Int[Tensor, " c"], epoch: int) -> Float[Tensor, " c"]:
        """The weights of classes of ``counts`` samples in ``epoch``, float64."""
        found, present = torch.ones(len(counts), dtype=torch.float64), counts > 0
        if self.weighting == "none" or epoch < self.defer:
            return found
        sizes = counts[present]
        inverse = 1 / sizes.double()
        by_count = inverse / inverse.mean()
        found[present] = class_balanced_weights(sizes, self.beta) if self.weighting == "cb" else by_count
        return found
