"""Data-free model extraction with estimated gradients of the victim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.privacy.extraction.game import DataFreeExtractor, Game, centred
from assay.privacy.extraction.generator_ensemble import ImageGenerator
from assay.runtime.errors import InputError
from assay.subject.access import Access


@dataclass(frozen=True, kw_only=True)
class DFME(DataFreeExtractor):
    """One generator climbs the distance of a clone from the victim's logits (Truong et al., 2021, arXiv:2011.14779).

    The victim's gradient is estimated by forward differences along ``directions`` random unit vectors u in the images
    before tanh: mean over u of d (L(x + eps u) - L(x)) / eps u, d the number of pixels, eps ``step``. These queries
    count: (directions + 1) batches a step of the generator, besides the ``fresh`` batches of the clone. It needs
    probabilities, from which logits are recovered as log p less its mean. Options, shapes and errors: see
    DataFreeExtractor and Extractor.
    """

    access: ClassVar[Access] = Access.SCORE

    soft: bool = True
    n_clones: int = 1
    fresh: int = 5
    replay: int = 0
    lam_balance: float = 0.0
    directions: int = 1
    step: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.soft or self.directions < 1 or not self.step > 0:
            raise InputError("DFME: expected soft=True, directions >= 1 and step above 0")

    @property
    def cost(self) -> int:
        return self.batch * (self.directions + 1 + self.fresh)

    def distance(self, game: Game, clone: nn.Module, x: Float[Tensor, "n ch h w"]) -> Float[Tensor, " n"]:
        """The mean absolute difference of the clone's logits from the victim's, at the price of n queries."""
        target = centred(self.ask(game.oracle, x))
        with torch.no_grad():
            return (clone(x) - target).abs().mean(1)

    def generator_loss(self, game: Game, member: nn.Module, clones: list[nn.Module], z: Tensor) -> Tensor:
        """A linear function of the images whose gradient is the estimate, to be descended."""
        assert isinstance(member, ImageGenerator)
        pixels = member.before(z)
        at = pixels.detach()
        u = torch.randn(self.directions, *at.shape, generator=game.random("directions")).to(at)
        u = u / u.flatten(2).norm(dim=2)[..., None, None, None]
        here = self.distance(game, clones[0], member.squash(at))
        moved = torch.stack([self.distance(game, clones[0], member.squash(at + self.step * each)) for each in u])
        slope = (at[0].numel() * (moved - here) / self.step)[..., None, None, None] * u
        return -(pixels * slope.mean(0)).sum(dim=(1, 2, 3)).mean()
