"""Random pruning: the baseline of every pruning score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.compress.pruning import Pruning
from assay.runtime.random import torch_rng


@dataclass(frozen=True, kw_only=True)
class RandomPruning(Pruning):
    """Drop weights at random: what a pruning score must beat (the baseline of Blalock et al., 2020, arXiv:2003.03033).

    Fields, ranges and errors: see Pruning.
    """

    def scores(self, weights: Mapping[str, nn.Parameter], *, seed: int) -> dict[str, Tensor]:
        return {
            name: torch.rand(w.shape, generator=torch_rng(seed, "prune", name), dtype=torch.float64).to(w.device)
            for name, w in weights.items()
        }
