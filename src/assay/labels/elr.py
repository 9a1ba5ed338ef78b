"""Early-learning regularisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.training import State, Trainer

CLAMP = 1e-4  # keeps <t, p> away from 1, where the logarithm diverges


@dataclass(frozen=True, kw_only=True)
class ELR(Trainer):
    """Cross-entropy + ``strength`` x mean log(1 - <t, p>) (Liu et al., 2020, arXiv:2007.00151, eq. 6-8).

    p is the softmax, clamped to [1e-4, 1 - 1e-4]; t is the sample's running average of p, of decay ``beta`` in [0, 1).
    It starts at zero, so that it sums to less than 1 in the first epochs and the term sets in gradually. ``strength``
    >= 0 is the paper's lambda; the defaults are those for CIFAR-10 under symmetric noise (0.9 and 7 for CIFAR-100).
    The memory holds n x c floats. Raises InputError for other parameters, for a data set that names two samples alike,
    and for logits without exactly one finite column a class.
    """

    needs: ClassVar[tuple[str, ...]] = ("index",)

    beta: float = 0.7
    strength: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise InputError(f"ELR: beta={self.beta}; expected a decay in [0, 1)")
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise InputError(f"ELR: strength={self.strength}; expected a finite number >= 0")

    def term(self, logits: Float[Tensor, "b c"], index: Int[Tensor, " b"], state: State) -> Float[Tensor, ""]:
        """The regulariser, at most 0; it moves the averages of the samples that ``index`` names."""
        p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1).clamp(CLAMP, 1 - CLAMP)
        now = p.detach()
        target = state.ema("elr", index, now / now.sum(1, keepdim=True), self.beta)
        return self.strength * (1 - (target * p).sum(1)).log().mean()

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        logits = model(batch.x)
        classes = len(state.data.classes)
        if logits.shape != (len(batch.y), classes):
            raise InputError(f"ELR: logits have shape {tuple(logits.shape)}; expected ({len(batch.y)}, {classes})")
        if not torch.isfinite(logits).all():
            raise InputError(f"ELR: logits hold NaN or infinite values at step {state.step}; expected finite")
        return F.cross_entropy(logits, batch.y) + self.term(logits, batch.index, state)

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        distinct = len(data.index.unique())
        if distinct < len(data):
            raise InputError(f"ELR: data {data.name!r} has {distinct} names for {len(data)} samples; expected one each")
        return super().fit(model, data, seed=seed, **options)
