"""What trainers share that first look for a worst point of each sample and then learn from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch
from assay.defenses.base import AdversarialTrainer
from assay.training import State

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class WorstCaseTrainer(AdversarialTrainer):
    """A subclass states ``worst``, the inner maximisation, and ``outer``, the loss of what it found."""

    contract: ClassVar[bool] = True

    def worst(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, "n ..."]:
        """The worst points found, in the ball and the bounds; the model runs in evaluation mode."""
        raise TypeError(f"{type(self).__name__} states no inner maximisation")

    def outer(
        self, network: Network, x: Float[Tensor, "n ..."], x_adv: Float[Tensor, "n ..."], y: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """The loss at ``x`` and ``x_adv``; ``network`` gives logits."""
        raise TypeError(f"{type(self).__name__} states no loss")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return self.outer(model, batch.x, self.worst(model, batch, state), batch.y)
