"""Magnitude pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from assay.compress.base import weights_of
from assay.compress.pruning import Masks, Pruning, select


@dataclass(frozen=True, kw_only=True)
class MagnitudePruning(Pruning):
    """Drop the weights of smallest magnitude (Han et al., 2015, arXiv:1506.02626, section 3), then fine-tune.

    With ``structured`` whole filters or rows are dropped by their mean magnitude (Li et al., 2017, arXiv:1608.08710,
    section 3.1, with the L1 norm divided by the fan-in so that layers compare); the last layer, whose rows are the
    classes, is then left alone and ``sparsity`` is the fraction of filters. Han's learning rate is a tenth of the
    original. Fields, ranges and errors: see Pruning.
    """

    structured: bool = False

    def scores(self, weights: Mapping[str, nn.Parameter], *, seed: int) -> dict[str, Tensor]:
        return {name: w.detach().abs() for name, w in weights.items()}

    def masks(self, model: nn.Module, *, seed: int) -> Masks:
        """For each weight by name: which of its entries stay."""
        if not self.structured:
            return super().masks(model, seed=seed)
        weights = dict(list(weights_of(model).items())[:-1])
        if not weights:
            return super().masks(model, seed=seed) if not weights_of(model) else {}
        filters = {name: s.flatten(1).mean(1) for name, s in self.scores(weights, seed=seed).items()}
        kept = select(filters, self.sparsity, self.scope)
        return {
            name: kept[name].view(-1, *[1] * (w.dim() - 1)).expand_as(w).contiguous() for name, w in weights.items()
        }
