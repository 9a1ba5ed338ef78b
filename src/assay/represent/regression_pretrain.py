"""Contrastive training of an encoder for a numeric target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.losses import SupReMixLoss, WeightedSupConRegressionLoss
from assay.represent.augment import Augmentation
from assay.represent.simsiam import first_features
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of
from assay.runtime.random import Draws, seeded
from assay.training import Plan, State, fit


@dataclass(frozen=True, kw_only=True)
class ContrastiveRegressionPretrainer:
    """``fit(encoder, data, *, seed)`` -> a trained copy of the encoder (Wu et al., 2023, arXiv:2309.16633, stage 1).

    Two views of each image by ``augment``, and ``loss`` on their embeddings and the targets: the field "target" of the
    data, else their labels, in the unit that the loss's window and weights are meant for. ``projection`` is the width
    of a linear head that the loss sees and that is thrown away (None: the loss sees the embedding itself). The official
    script trains with Adam at 1e-3, batches of 64 and 100 epochs with one drop of the rate, here a schedule of the
    plan. Stage 2 is ``embedding_regressor``. Raises InputError for fewer than two samples and widths below 2.
    """

    kind: ClassVar[str] = "function"

    loss: WeightedSupConRegressionLoss = field(default_factory=SupReMixLoss)
    augment: Callable[[Tensor, Draws], Tensor] = Augmentation(flip=False)
    projection: int | None = 128
    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    schedule: Literal["constant", "cosine", "multistep"] = "cosine"

    def fit(self, encoder: nn.Module, data: Data, *, seed: int) -> nn.Module:
        """The trained encoder, in evaluation mode; ``encoder`` is untouched."""
        check_inputs("ContrastiveRegressionPretrainer", data.x, data.y, data.bounds)
        if len(data) < 2 or (self.projection is not None and self.projection < 2):
            given = f"{len(data)} samples, projection={self.projection}"
            raise InputError(f"ContrastiveRegressionPretrainer: {given}; expected 2 samples or more, widths >= 2")
        head: nn.Module = nn.Identity()
        if self.projection is not None:
            features = first_features("ContrastiveRegressionPretrainer", encoder, data.x)
            with seeded(seed, "projection"):
                head = nn.Linear(features.shape[1], self.projection).to(device_of(encoder), features.dtype)
        plan = Plan(
            epochs=self.epochs,
            batch_size=min(self.batch_size, len(data)),
            lr=self.lr,
            schedule=self.schedule,
            drop_last=True,
        )
        trained: nn.Module = fit(nn.Sequential(encoder, head), data, self.objective, plan, seed=seed)
        return trained.get_submodule("0")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of one batch of pairs of views."""
        views = [model(self.augment(batch.x, state.draws(name, batch.index))) for name in ("one", "two")]
        value: Tensor = self.loss(torch.stack(views, 1), batch.fields.get("target", batch.y))
        return value
