"""Pre-training by a contrastive loss of two views."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.losses import InfoNCE
from assay.losses.contrastive import ContrastiveLoss
from assay.represent.augment import Augmentation
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.training import Plan, State, fit
from assay.training.engine import Augment


@dataclass(frozen=True, kw_only=True)
class ContrastivePretraining:
    """``fit(encoder, data, *, seed) -> encoder`` by ``loss`` on two views of each image; labels are not used.

    Instance discrimination as in Wang & Liu, 2021, arXiv:2012.09740, who train by SGD at 0.03 in batches of 128 over
    200 epochs. ``encoder`` maps (n, ...) to embeddings (n, d) and stays as it is; ``augment(x, draws)`` makes a view.
    A loss with negatives="queue" gets up to ``bank`` samples outside the batch, drawn from a memory of all samples'
    second views (Wu et al., 2018, arXiv:1805.01978): at first what the encoder makes of the images, each moved half
    way to the present embedding whenever its sample is seen, without gradient: an encoder without batch norm may drift
    away from such a memory as a whole. Raises InputError for data or options that cannot be used.
    """

    kind: ClassVar[str] = "function"

    loss: ContrastiveLoss = field(default_factory=InfoNCE)
    augment: Augment = Augmentation()
    bank: int = 4096
    epochs: int = 200
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.03
    weight_decay: float = 5e-4

    def fit(self, encoder: nn.Module, data: Data, *, seed: int) -> nn.Module:
        """The trained encoder, in evaluation mode."""
        check_inputs("ContrastivePretraining", data.x, data.y, data.bounds)
        if len(data) < 2 or self.bank < 1:
            given = f"{len(data)} samples, bank={self.bank}"
            raise InputError(f"ContrastivePretraining: {given}; expected at least 2 samples and a bank >= 1")
        plan = Plan(
            epochs=self.epochs,
            batch_size=min(self.batch_size, len(data)),
            optimizer=self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            drop_last=True,
        )
        return fit(encoder, data, self.objective, plan, seed=seed)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of one batch."""
        views = [self.augment(batch.x, state.draws(name, batch.index)) for name in ("one", "two")]
        z1, z2 = model(torch.cat(views)).chunk(2)
        if self.loss.negatives != "queue":
            return self.loss(z1, z2)
        return self.loss(z1, z2, self._remembered(model, z2.detach(), batch.index, state))

    def _remembered(self, model: nn.Module, z: Tensor, index: Tensor, state: State) -> Tensor:
        """Negatives from the memory, all of them where the batch holds every sample; the batch's own move to ``z``."""
        if "bank" not in state.memory:
            state.memory["bank"] = F.normalize(predict(model, state.data.x).to(z), dim=1)
        bank, rows = state.memory["bank"], state.rows(index)
        others = torch.ones(len(bank), dtype=torch.bool, device=bank.device)
        others[rows] = len(rows) == len(bank)
        free = others.nonzero()[:, 0]
        chosen = bank[free[torch.randperm(len(free))[: self.bank].to(bank.device)]]
        bank[rows] = F.normalize(bank[rows] + F.normalize(z, dim=1), dim=1)
        return chosen
