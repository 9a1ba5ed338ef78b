"""The loss against the population's losses under the same model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.data import Data
from assay.privacy.base import Inference, Reference, losses
from assay.runtime.errors import InputError


def p_values(null: Float[Tensor, " m"], scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """(1 + number of ``null`` at least as high) / (m + 1): at most alpha with probability at most alpha, for a score
    exchangeable with ``null`` (Vovk et al., 2005), in (0, 1]."""
    below = torch.searchsorted(null.sort().values, scores)
    return (1 + len(null) - below).double() / (1 + len(null))


def check_rate(where: str, alpha: float) -> None:
    """A false-positive rate in (0, 1), or InputError."""
    if not 0 < alpha < 1:
        raise InputError(f"{where}: alpha={alpha}; expected a false-positive rate in (0, 1)")


@dataclass(frozen=True)
class FittedAttackP:
    """``population_`` holds samples that the target did not train on."""

    population_: Data
    batch_size: int

    def score(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """See FittedInference: 1 - p-value, in [0, 1), in steps of 1 / (population + 1)."""
        return 1 - self.p_value(model, data)

    def p_value(self, model: nn.Module, data: Data) -> Float[Tensor, " n"]:
        """How rare so low a loss is in the population, in (0, 1]."""
        population = losses("AttackP", model, self.population_, self.batch_size)
        return p_values(-population, -losses("AttackP", model, data, self.batch_size))

    def members(self, model: nn.Module, data: Data, alpha: float) -> Bool[Tensor, " n"]:
        """Who is taken for a member at a false-positive rate of ``alpha``; InputError outside (0, 1)."""
        check_rate("AttackP", alpha)
        return self.p_value(model, data) <= alpha


@dataclass(frozen=True, kw_only=True)
class AttackP(Inference):
    """A member where the loss lies below the population's alpha-quantile under the target (Ye et al., 2022,
    arXiv:2111.09679, section 4, "attack P").

    The quantile is that of conformal p-values, so the false-positive rate on fresh non-members is at most alpha for
    every population size, on average over populations; the paper interpolates between quantiles instead. Samples come
    in the order of LossThreshold: what is gained is the threshold. ``reference.data`` must be unseen by the target.
    """

    def fit(self, reference: Reference | None = None, *, seed: int = 0) -> FittedAttackP:
        return FittedAttackP(self.given(reference).data, self.batch_size)
