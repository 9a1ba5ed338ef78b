"""Noise that makes the training loss small, so that nothing seems left to be learned."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from assay.attacks import PGD, Targeted
from assay.data import Data
from assay.nets import MLP
from assay.privacy.unlearnable.base import Protected, Protector
from assay.runtime.errors import InputError
from assay.runtime.random import derive
from assay.subject import fresh
from assay.training import Supervised, Trainer


@dataclass(frozen=True, kw_only=True)
class ErrorMinNoise(Protector):
    """min over the network, min over the displacements, of the cross-entropy (Huang et al., 2021, arXiv:2101.04898,
    equation 3, sample-wise): learners take the noise for the class.

    ``rounds`` times a network like ``encoder`` is trained on by ``recipe`` on the data as they are displaced by then,
    and ``pgd_steps`` steps of ``step_size`` (absent: eps / 10) lower each sample's loss, from where it is. The paper
    trains 10 steps and displaces by 20, until the training error is below 1%. Options: see Protector.
    """

    encoder: nn.Module = field(default_factory=MLP)
    recipe: Trainer = field(default_factory=lambda: Supervised(steps=10, optimizer="sgd", lr=0.1, batch_size=128))
    rounds: int = 10
    pgd_steps: int = 20
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1 or self.pgd_steps < 1:
            raise InputError(
                f"ErrorMinNoise: rounds={self.rounds}, pgd_steps={self.pgd_steps}; expected at least 1 of each"
            )

    def fit(self, data: Data, *, seed: int) -> Protected:
        """The data whose labels the network knows at once."""
        self.check(data)
        model, now = fresh(self.encoder, seed=seed), data
        attack = PGD(
            ball=self.ball(),
            steps=self.pgd_steps,
            step_size=self.step_size if self.step_size is not None else max(self.eps / 10, 1e-12),
            early_stop=False,
            random_start=False,
            bounds=data.bounds,
        )
        for k in range(self.rounds):
            model = self.recipe.fit(model, now, seed=derive(seed, "round", k))
            moved = attack.run(model, data.x, Targeted(data.y), seed=derive(seed, "noise", k), start=now.x)
            now = data.with_x(moved.x_adv)
        return Protected(now)
