"""Extraction by asking about noise: the control of every data-free method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.privacy.extraction.game import DataFreeExtractor, Game
from assay.privacy.extraction.generator_ensemble import GeneratorEnsemble


class _Uniform(GeneratorEnsemble):
    """Pixels uniform in [0, 1]; the weights play no part."""

    @torch.no_grad()
    def pool(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = torch.rand(n, *self.shape, generator=generator).to(next(self.parameters()))
        return images, torch.zeros(n, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class NoiseQueries(DataFreeExtractor):
    """The clones learn from the victim's answers to uniform noise, with the steps and the memory of DisGUIDE.

    The floor of Truong et al. (2021, arXiv:2011.14779). Options, shapes and errors: see DataFreeExtractor, Extractor.
    """

    def made(self, shape: tuple[int, int, int], seed: int) -> GeneratorEnsemble:
        return _Uniform(shape, 1, 1, 1, seed=seed)

    def generator_loss(self, game: Game, member: nn.Module, clones: list[nn.Module], z: Tensor) -> Tensor:
        """None: the generator is not used."""
        return 0 * torch.stack([p.sum() for p in member.parameters()]).sum()
