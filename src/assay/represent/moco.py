"""MoCo: a view finds its partner among a queue of keys that a slowly moving encoder made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.losses import InfoNCE
from assay.represent.simsiam import SelfSupervised
from assay.represent.two_views import Followed, TwoViews, follow
from assay.runtime.errors import InputError
from assay.training import State
from assay.training.engine import Hook


@dataclass(frozen=True, kw_only=True)
class MoCo(TwoViews):
    """He et al., 2020, arXiv:1911.05722, algorithm 1, with the head of version 2 (arXiv:2003.04297); ``fit`` as in
    TwoViews.

    The loss is cross-entropy of a query's key among itself and the ``queue`` latest keys of former batches (at first
    random directions), cosines divided by ``temperature`` (0.07; 0.2 in version 2). The encoder of keys follows that
    of queries with ``momentum`` m (eq. 2). Batch norm shuffles nothing: on one device there is one batch.
    """

    norm: ClassVar[bool] = False

    queue: int = 65_536
    momentum: float = 0.999
    temperature: float = 0.07
    optimizer: str = "sgd"
    lr: float = 0.03
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.queue < 1 or not 0 <= self.momentum <= 1:
            given = f"queue={self.queue}, momentum={self.momentum}"
            raise InputError(f"MoCo: {given}; expected queue >= 1, momentum in [0, 1]")

    def network(self, encoder: SelfSupervised, features: Float[Tensor, "1 w"]) -> nn.Module:
        return Followed(encoder, nn.Identity())

    def hooks(self) -> Sequence[Hook]:
        return (lambda models, state: follow(models["model"], self.momentum),)

    def loss(self, model: nn.Module, one: Tensor, two: Tensor, state: State) -> Tensor:
        assert isinstance(model, Followed)
        query = model.encoder(one)
        with torch.no_grad():
            key = F.normalize(model.target(two), dim=1)
        if "queue" not in state.memory:
            state.memory["queue"] = F.normalize(torch.randn(self.queue, key.shape[1]).to(key), dim=1)
        loss = InfoNCE(self.temperature, "queue")(query, key, state.memory["queue"])
        state.memory["queue"] = torch.cat((key, state.memory["queue"]))[: self.queue]
        return loss
