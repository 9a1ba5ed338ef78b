"""SmoothAdv: adversarial training of a smoothed classifier."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks import L2, PGD
from assay.certify.gaussian_training import SmoothingTrainer, noisy_cross_entropy
from assay.certify.smoothed_classifier import SmoothedClassifier
from assay.data import Batch
from assay.runtime.errors import InputError
from assay.runtime.random import derive
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class SmoothAdv(SmoothingTrainer):
    """Cross-entropy on noisy copies of the point that PGD finds against the *smoothed* classifier.

    Salman et al., 2019, arXiv:1906.04584, section 3. The attack climbs
    -log(mean over m copies of softmax(f(x' + noise))_y) over the l2 ball of radius ``eps`` in ``attack_steps`` steps of
    ``step_size`` x eps (None: 2 / steps, as in the official code), cut to the data's bounds; the same ``m`` draws of
    noise serve all of its steps and the training step that follows. With m = 1 and sigma = 0 it is PGD training.
    Raises InputError on options out of range.
    """

    m: int = 2
    eps: float = 0.25
    attack_steps: int = 2
    step_size: float | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            not 0 < self.eps < float("inf")
            or self.attack_steps < 1
            or not (self.step_size is None or self.step_size > 0)
        ):
            given = f"eps = {self.eps}, attack_steps = {self.attack_steps}, step_size = {self.step_size}"
            raise InputError(f"SmoothAdv: {given}; expected positive numbers")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        noise = self.noise(batch.x)
        copies = self.worst(model, batch, state, noise) + noise
        return noisy_cross_entropy(model(copies.flatten(0, 1)).unflatten(0, copies.shape[:2]), batch.y)

    def worst(
        self, model: nn.Module, batch: Batch, state: State, noise: Float[Tensor, "m n ..."]
    ) -> Float[Tensor, "n ..."]:
        """The point of the ball at which the classifier smoothed with ``noise`` is attacked."""
        attack = PGD(
            ball=L2(self.eps),
            steps=self.attack_steps,
            step_size=2 / self.attack_steps if self.step_size is None else self.step_size,
            random_start=self.random_start,
            early_stop=False,
            bounds=state.data.bounds,
        )
        smoothed = SmoothedClassifier(model, noise)
        return attack(smoothed, batch.x, batch.y, seed=derive(state.seed, state.step), index=batch.index)
