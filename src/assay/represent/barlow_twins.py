"""Barlow Twins: two views of an image agree, and no two dimensions say the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.represent.augment import Augmentation
from assay.represent.simsiam import SelfSupervised
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import batched, device_of, evaluating
from assay.runtime.random import seeded
from assay.training import Plan, State, fit


def barlow_twins_loss(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"], lam: float = 5e-3) -> Float[Tensor, ""]:
    """sum_i (1 - C_ii)^2 + lam sum over i != j of C_ij^2, C the cross-correlation of the two views' dimensions over the
    batch (Zbontar et al., 2021, arXiv:2103.03230, eq. 1 and 2).

    Every dimension is centred and scaled by its standard deviation (with 1e-5 beside the variance, as batch norm). At
    least 0. Raises InputError unless both are (n, d) with n >= 2 and lam >= 0.
    """
    if z1.dim() != 2 or z1.shape != z2.shape or len(z1) < 2 or not (math.isfinite(lam) and lam >= 0):
        raise InputError(
            f"barlow_twins_loss: {tuple(z1.shape)} and {tuple(z2.shape)}, lam={lam}; expected the same (n, d), n >= 2, "
            "lam >= 0"
        )
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z1, z2))
    c = a.T @ b / len(a)
    own = (1 - c.diagonal()).square().sum()
    return own + lam * (c.square().sum() - c.diagonal().square().sum())


@dataclass(frozen=True, kw_only=True)
class BarlowTwins:
    """``fit(backbone, data, *, seed)`` -> SelfSupervised (Zbontar et al., 2021, arXiv:2103.03230, algorithm 1).

    Two views of each image by ``augment``; ``projector`` are the widths of the layers on top, with batch norm and ReLU
    between them (empty: the loss is on the backbone's outputs). ``backbone`` maps (n, ...) to (n, w) and stays as it
    is; labels are not used. The paper trains by LARS over 1,000 epochs of batches of 2,048; here ``optimizer`` names
    one of torch's. InputError for data that cannot be used.
    """

    kind: ClassVar[str] = "function"

    lam: float = 5e-3
    projector: tuple[int, ...] = (8192, 8192, 8192)
    augment: Augmentation = Augmentation()
    epochs: int = 1000
    steps: int | None = None
    batch_size: int = 2048
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 1e-6

    def fit(self, backbone: nn.Module, data: Data, *, seed: int) -> SelfSupervised:
        """The trained encoder, in evaluation mode."""
        check_inputs("BarlowTwins", data.x, data.y, data.bounds)
        if len(data) < 2 or min(self.projector, default=1) < 1:
            raise InputError(
                f"BarlowTwins: {len(data)} samples, projector={self.projector}; expected at least 2 and widths >= 1"
            )
        with evaluating(backbone):
            width = batched(backbone, data.x[:1], device=device_of(backbone)).shape[1]
        with seeded(seed, "projector"):
            layers: list[nn.Module] = []
            for a, b in pairwise((width, *self.projector)):
                layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
            start = SelfSupervised(backbone, nn.Sequential(*layers[:-2])).to(device_of(backbone))
        plan = Plan(
            epochs=self.epochs,
            steps=self.steps,
            batch_size=min(self.batch_size, len(data)),
            optimizer=self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            drop_last=True,
        )
        trained = fit(start, data, self.objective, plan, seed=seed)
        assert isinstance(trained, SelfSupervised)
        return trained

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of one batch."""
        z1, z2 = (model(self.augment(batch.x, state.draws(name, batch.index))) for name in ("one", "two"))
        return barlow_twins_loss(z1, z2, self.lam)
