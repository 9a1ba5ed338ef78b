"""Mixup that ends before training does."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch
from assay.labels.mixup import Mixup
from assay.runtime.errors import InputError
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class EarlyStoppedMixup(Mixup):
    """Mixup in the first ``stop`` of the steps, then plain cross-entropy (Zou et al., 2023, arXiv:2303.08433).

    The optimiser's state and the schedule go on. What Mixup adds to the features is learned early, so that the rest of
    training may fit the samples as they are; the paper stops after a half to three quarters. InputError for ``stop``
    outside [0, 1], and as Mixup.
    """

    stop: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.stop <= 1:
            raise InputError(f"EarlyStoppedMixup: stop={self.stop}; expected a share of the steps in [0, 1]")

    def over(self, state: State) -> bool:
        """Whether samples are no longer mixed at this step."""
        return state.step >= self.stop * state.total

    def mixed_logits(
        self, model: nn.Module, batch: Batch, state: State
    ) -> tuple[Float[Tensor, "k c"], Int[Tensor, " k"], Int[Tensor, " k"], float]:
        if self.over(state):
            return model(batch.x), batch.y, batch.y, 1.0
        return super().mixed_logits(model, batch, state)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        if self.over(state):
            return F.cross_entropy(model(batch.x), batch.y)
        return super().objective(model, batch, state)
