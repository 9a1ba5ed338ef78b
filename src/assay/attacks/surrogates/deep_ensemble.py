"""Deep ensembles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from assay.attacks.surrogates.base import Surrogate, Surrogates
from assay.data import Data
from assay.runtime.random import derive
from assay.subject import fresh
from assay.training import Supervised


@dataclass(frozen=True, kw_only=True)
class DeepEnsembleSurrogate(Surrogate):
    """Networks trained apart from their own random weights (Lakshminarayanan et al., 2017, arXiv:1612.01474).

    Each of the ``members`` has ``epochs`` of stochastic gradient descent at a rate that falls from ``lr`` along a half
    cosine, with ``momentum`` and ``weight_decay``. The first starts at the model's weights, the others at new ones.
    Raises InputError for other options.
    """

    contract: ClassVar[bool] = False

    members: int = 5
    epochs: int = 250
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.members < 1 or self.epochs < 1 or self.batch_size < 1:
            given = self.members, self.epochs, self.batch_size
            self.refuse("members, epochs, batch_size", given, "at least 1 each")
        if not (math.isfinite(self.lr) and self.lr > 0 and self.weight_decay >= 0 and 0 <= self.momentum < 1):
            given_rates = self.lr, self.momentum, self.weight_decay
            self.refuse("lr, momentum, weight_decay", given_rates, "lr > 0, 0 <= momentum < 1, decay >= 0")

    def fit(self, model: nn.Module, data: Data, *, seed: int) -> Surrogates:
        names = ("epochs", "lr", "momentum", "weight_decay", "batch_size")
        recipe = Supervised(optimizer="sgd", **{n: getattr(self, n) for n in names})
        starts = [model, *(fresh(model, seed=derive(seed, "member", k)) for k in range(1, self.members))]
        return Surrogates([recipe.fit(start, data, seed=derive(seed, k)) for k, start in enumerate(starts)]).eval()
