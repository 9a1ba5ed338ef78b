"""A random subset: the baseline of every selector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from assay.curate.base import Selector
from assay.data import Data
from assay.runtime.random import torch_rng


@dataclass(frozen=True, kw_only=True)
class RandomSubset(Selector):
    """Keep samples at random, without replacement (the baseline of Paul et al., 2021, arXiv:2107.07075, section 3).

    The first samples of one random order: of one seed a smaller subset lies in a larger one. Errors: see Selector.
    """

    def select(self, model: nn.Module, data: Data, n: int, *, seed: int) -> Int[Tensor, " n"]:
        """Positions of ``n`` random samples."""
        self.check(data, n)
        return torch.randperm(len(data), generator=torch_rng(seed, "random subset"))[:n].sort().values

    def control(self, subject: object, *, seed: int) -> None:
        """None: it is the control of the others, and has none but the model as it was."""
        return None
