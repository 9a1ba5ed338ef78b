"""Mixup."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

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
    its value for clean CIFAR-10.

    Zou et al. (2023, arXiv:2303.08433) analyse a constant lambda in (1/2, 1), ``fixed_lambda``, on all ordered pairs of
    samples, ``pairs`` "all" (b^2 inputs for a batch of b), and train with labels that are not mixed as the inputs:
    ``label_map`` gives the first label's share for lambda, or is "independent" for another draw from the same
    distribution, reflected where that keeps the larger share with the same sample.

    InputError for an alpha that is not positive and finite, a share outside [0, 1], and other names.
    """

    stream: ClassVar[str] = "Mixup"  # of random numbers

    alpha: float = 1.0
    fixed_lambda: float | None = None
    label_map: Callable[[float], float] | Literal["independent"] | None = None
    pairs: Literal["permutation", "all"] = "permutation"

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not 0 < self.alpha < math.inf:
            raise InputError(f"{where}: alpha={self.alpha}; expected a finite number > 0")
        if self.fixed_lambda is not None and not 0 <= self.fixed_lambda <= 1:
            raise InputError(f"{where}: fixed_lambda={self.fixed_lambda}; expected a number in [0, 1]")
        if not (self.label_map in (None, "independent") or callable(self.label_map)):
            raise InputError(f"{where}: label_map={self.label_map!r}; expected a function of lambda or 'independent'")
        if self.pairs not in ("permutation", "all"):
            raise InputError(f"{where}: pairs={self.pairs!r}; expected permutation or all")

    def share(self, state: State, suffix: str = "") -> float:
        """lambda in [0, 1] at this step."""
        if self.fixed_lambda is not None:
            return self.fixed_lambda
        return float(numpy_rng(state.seed, self.stream + suffix, state.step).beta(self.alpha, self.alpha))

    def partners(self, batch: Batch, state: State) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """The two samples of each mixture, as positions in the batch."""
        n = len(batch.y)
        if self.pairs == "all":
            return torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
        return torch.arange(n), torch.randperm(n, generator=torch_rng(state.seed, self.stream, state.step))

    def mixed(
        self, x: Float[Tensor, "k ..."], other: Float[Tensor, "k ..."], share: float, state: State
    ) -> tuple[Float[Tensor, "k ..."], float]:
        """The mixed inputs, and the part that the first ones have in them."""
        return share * x + (1 - share) * other, share

    def label_share(self, share: float, state: State) -> float:
        """The part that the first label has where the first input has ``share``."""
        if self.label_map is None:
            return share
        if callable(self.label_map):
            mapped = float(self.label_map(share))
            if not 0 <= mapped <= 1:
                raise InputError(f"{type(self).__name__}: label_map({share:.4g}) is {mapped}; expected within [0, 1]")
            return mapped
        drawn = self.share(state, "/labels")
        return drawn if (drawn >= 0.5) == (share >= 0.5) else 1 - drawn

    def mixed_logits(
        self, model: nn.Module, batch: Batch, state: State
    ) -> tuple[Float[Tensor, "k c"], Int[Tensor, " k"], Int[Tensor, " k"], float]:
        """The logits of the mixtures at this step, their two labels, and the first label's share."""
        first, second = self.partners(batch, state)
        x, share = self.mixed(batch.x[first], batch.x[second], self.share(state), state)
        return model(x), batch.y[first], batch.y[second], self.label_share(share, state)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        logits, y, other, share = self.mixed_logits(model, batch, state)
        return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, other)
