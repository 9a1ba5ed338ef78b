"""Mixup."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng, torch_rng
from assay.training import State, Trainer


@dataclass(frozen=True, kw_only=True)
class Mixup(Trainer):
    """Training on lambda x + (1 - lambda) x' and the labels mixed alike (Zhang et al., 2017, arXiv:1710.09412, eq. 1).

    x' are the samples of the batch in another order; lambda ~ Beta(``alpha``, ``alpha``), one a batch as in the
    authors' code. Under label noise alpha is large (the paper's section 3.4: 8 for half of the labels wrong); 1 is
    its value for clean CIFAR-10. InputError for an alpha that is not positive and finite.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise InputError(f"{type(self).__name__}: alpha={self.alpha}; expected a finite number > 0")

    def drawn(self, n: int, state: State) -> tuple[float, Int[Tensor, " n"]]:
        """lambda in [0, 1] and the partner of each of ``n`` samples at this step."""
        name = type(self).__name__
        share = float(numpy_rng(state.seed, name, state.step).beta(self.alpha, self.alpha))
        return share, torch.randperm(n, generator=torch_rng(state.seed, name, state.step))

    def mixed(
        self, x: Float[Tensor, "b ..."], other: Float[Tensor, "b ..."], share: float, state: State
    ) -> tuple[Float[Tensor, "b ..."], float]:
        """The mixed inputs, and the part that the first ones have in them."""
        return share * x + (1 - share) * other, share

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        share, partner = self.drawn(len(batch.y), state)
        x, share = self.mixed(batch.x, batch.x[partner], share, state)
        logits = model(x)
        return share * F.cross_entropy(logits, batch.y) + (1 - share) * F.cross_entropy(logits, batch.y[partner])
