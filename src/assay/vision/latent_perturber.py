"""Perturbation along a generator's images, as long as an oracle still sees the same label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks.base import Goal, Untargeted
from assay.attacks.engine import Climb, IterativeAttack
from assay.runtime.inference import evaluating
from assay.runtime.random import Draws
from assay.vision.conv_ae import ImageGenerator


def labels_of(outputs: Tensor) -> Int[Tensor, " n"]:
    """Labels, of logits (n, c) or of labels (n,)."""
    return outputs.argmax(1) if outputs.dim() == 2 else outputs


class Decoded(nn.Module):
    """A model behind a generator's decoder: logits of latents. It keeps the ``image`` that it saw last."""

    def __init__(self, generator: ImageGenerator, model: nn.Module) -> None:
        super().__init__()
        self.generator, self.model = generator, model
        self.image: Tensor = torch.empty(0)

    def forward(self, z: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        image = self.generator.decode(z)
        self.image = image.detach()
        return self.model(image)


@dataclass(frozen=True, kw_only=True)
class LatentPerturber(IterativeAttack):
    """z_{b+1} = z_b + ``step_size`` x grad_z CE(model(D(z_b)), y), until the oracle rejects D(z_{b+1}) or ``steps``.

    Zhang et al. (2023, arXiv:2308.10632, algorithm 1). Points of the engine are latents; the last one accepted counts,
    and ``value`` is its number (0: the start, of which nothing is recorded). ``oracle`` gives labels or logits.
    ``mask``, of the shape of one latent, leaves the others where they are. ``stop=False`` takes all steps.
    """

    contract: ClassVar[bool] = True

    oracle: nn.Module
    step_size: float = 0.1
    mask: Tensor | None = None
    stop: bool = True

    def objective(self, logits: Float[Tensor, "n c"], goal: Goal) -> Float[Tensor, " n"]:
        return F.cross_entropy(logits, goal.labels(), reduction="none")

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        return run.x

    def rejected(self, image: Tensor, y: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Where the oracle sees another label."""
        if not self.stop:
            return torch.zeros_like(y, dtype=torch.bool)
        with torch.no_grad():
            return labels_of(self.oracle(image)) != y

    def settle(self, run: Climb) -> Bool[Tensor, " n"]:
        if run.step == 0:
            return torch.zeros_like(run.met)
        assert isinstance(run.model, Decoded)
        out = self.rejected(run.model.image, run.goal.labels())
        run.record(~out, torch.full_like(run.level, run.step))
        return out

    def shift(self, run: Climb) -> Float[Tensor, "n ..."]:
        """How far the latents move."""
        return self.step_size * run.grad

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        shift = self.shift(run)
        return run.z + (shift if self.mask is None else shift * self.mask)

    def perturb(
        self, generator: ImageGenerator, model: nn.Module, x: Tensor, y: Tensor, draws: Draws
    ) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]:
        """The last accepted images, decoded (for step 0: those of the start), and the number of their step (n,)."""
        net = Decoded(generator, model)
        with evaluating(net), evaluating(self.oracle):
            with torch.no_grad():
                z = generator.encode(x)
            climb = Climb(self, net, z, Untargeted(y), draws)
            climb.run()
            with torch.no_grad():
                image = generator.decode(climb.x_adv)
        return image, climb.value.clamp_min(0).long()
