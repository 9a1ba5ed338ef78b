"""What pre-training on two views of each image shares: data, heads, plan. A method states its loss."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.represent.augment import Augmentation
from assay.represent.simsiam import SelfSupervised, first_features
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of
from assay.runtime.random import seeded
from assay.training import Plan, State, fit
from assay.training.engine import Hook


def head(widths: Sequence[int], norm: bool = True) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them, after batch norm where ``norm``; the last one is plain."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=not norm), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers[: -3 if norm else -2], *(nn.Linear(a, b) for a, b in pairwise(widths[-2:])))


class Followed(nn.Module):
    """An encoder, its ``predictor``, and a ``target`` that follows the encoder's weights and takes no gradient."""

    def __init__(self, encoder: SelfSupervised, predictor: nn.Module) -> None:
        super().__init__()
        self.encoder, self.predictor, self.target = encoder, predictor, copy.deepcopy(encoder).requires_grad_(False)


@torch.no_grad()
def follow(model: nn.Module, momentum: float) -> None:
    """target <- momentum target + (1 - momentum) encoder, weights only: each has batch statistics of its own."""
    assert isinstance(model, Followed)
    for mean, weight in zip(model.target.parameters(), model.encoder.parameters(), strict=True):
        mean.lerp_(weight, 1 - momentum)


@dataclass(frozen=True, kw_only=True)
class TwoViews:
    """``fit(backbone, data, *, seed)`` -> SelfSupervised, from two views of each image by ``augment``.

    ``backbone`` maps (n, ...) to (n, w) and stays as it is; ``projector`` are the widths of the layers on top of it
    (empty: the loss is on the backbone's outputs). Labels are not used. ``steps`` overrides ``epochs``; ``optimizer``
    names one of torch's (the papers use LARS for batches of thousands). Raises InputError for data or options that
    cannot be used.
    """

    kind: ClassVar[str] = "function"
    norm: ClassVar[bool] = True

    projector: tuple[int, ...] = (2048, 128)
    augment: Augmentation = Augmentation()
    epochs: int = 200
    steps: int | None = None
    batch_size: int = 256
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 1e-6

    def loss(self, model: nn.Module, one: Tensor, two: Tensor, state: State) -> Tensor:
        """The loss of the two views (n, ...) of a batch."""
        raise TypeError(f"{type(self).__name__} states no loss")

    def network(self, encoder: SelfSupervised, features: Float[Tensor, "1 w"]) -> nn.Module:
        """What is trained: the encoder, with what the loss needs besides, in the width and type of ``features``, which
        the backbone gives for one sample.
        """
        return encoder

    def hooks(self) -> Sequence[Hook]:
        """What happens after every step."""
        return ()

    def fit(self, backbone: nn.Module, data: Data, *, seed: int) -> SelfSupervised:
        """The trained encoder, in evaluation mode."""
        who = type(self).__name__
        check_inputs(who, data.x, data.y, data.bounds)
        if min(len(data), self.batch_size) < 2 or min(self.projector, default=1) < 1:
            given = f"{len(data)} samples, batch_size={self.batch_size}, projector={self.projector}"
            raise InputError(f"{who}: {given}; expected at least 2, batches of 2, widths >= 1")
        features = first_features(who, backbone, data.x)
        with seeded(seed, "heads"):
            projector = head((features.shape[1], *self.projector), self.norm).to(features.dtype)
            start = self.network(SelfSupervised(backbone, projector), features).to(device_of(backbone))
        plan = Plan(
            epochs=self.epochs,
            steps=self.steps,
            batch_size=min(self.batch_size, len(data)),
            optimizer=self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            drop_last=True,
        )
        trained = fit(start, data, self.objective, plan, seed=seed, hooks=self.hooks())
        found = trained if isinstance(trained, SelfSupervised) else trained.get_submodule("encoder")
        assert isinstance(found, SelfSupervised)
        return found

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of one batch."""
        one, two = (self.augment(batch.x, state.draws(name, batch.index)) for name in ("one", "two"))
        return self.loss(model, one, two, state)
