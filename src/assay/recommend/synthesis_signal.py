"""The synthesis determinant signal: whether a user follows the list or takes an item of the pool."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class SynthesisSignal(nn.Module):
    """sigma_t = sigmoid(w . h_t + b), h_t the attention state of the prefix (Zhang and Liu, 2024, arXiv:2411.11677).

    ``signal(states (*n, e)) -> (*n)`` in (0, 1), the probability that the next item comes from the victim's list. Its
    target is whether real users' next item was on it: how often they follow is learned, not set.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, states: Float[Tensor, "*n e"]) -> Float[Tensor, " *n"]:
        return self.layer(states)[..., 0].sigmoid()

    def loss(self, states: Float[Tensor, "n e"], followed: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
        """Mean binary cross-entropy."""
        return F.binary_cross_entropy_with_logits(self.layer(states)[..., 0], followed.float())
