"""Unlearning by gradient ascent that is held by the retained data."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.random import derive
from assay.subject import Subject
from assay.training import State
from assay.unlearn.passes import Pass, PassLoss, PassUnlearner, cycled
from assay.unlearn.single import outputs_of


@dataclass(frozen=True, kw_only=True)
class NegGradPlus(PassUnlearner):
    """Descend the loss of what is retained and climb that of what is forgotten at once (Kurmanji et al., 2023,
    arXiv:2302.09880, section 5, "NegGrad+").

    beta CE(retain) - (1 - beta) CE(forget), ``beta`` in [0, 1]: every step takes a batch of each set; an epoch is one
    pass over ``retain``, beside which ``forget`` is gone over as often as it fits. The ascent has no bound: beta is
    near 1 (the official runs use 0.95 and above). With beta = 1 it is fine-tuning. ``control`` descends on both. Other
    options: see PassUnlearner.
    """

    beta: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise InputError(f"NegGradPlus: beta={self.beta}; expected a share in [0, 1]")

    def passes(self, forget: Data, retain: Data, *, seed: int) -> list[list[Pass]]:
        """Every epoch goes over ``retain``."""
        return [[("retain", retain)]] * self.epochs

    def losses(self, subject: Subject, forget: Data, retain: Data, *, seed: int, control: bool) -> PassLoss:
        """The weighted difference of the two cross-entropies; their weighted sum in the control."""
        sign, forget_seed = 1.0 if control else -1.0, derive(seed, "forget")

        def loss(model: nn.Module, name: str, batch: Batch, state: State) -> Tensor:
            other = cycled(forget, self.batch_size, state.step, seed=forget_seed).to(batch.x.device)
            held, lost = (F.cross_entropy(outputs_of(model, b.x), b.y) for b in (batch, other))
            return self.beta * held + sign * (1 - self.beta) * lost

        return loss
