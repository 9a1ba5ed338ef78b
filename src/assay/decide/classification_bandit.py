"""A classification data set as a contextual bandit: name a class, learn only whether it was right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


class ClassificationBandit:
    """One pass over x (n, d) with labels y (n,) of K classes; the wrong class costs 1 and the right one 0.

    The features of arm a are x at block a of dK numbers, zero elsewhere (as in Zhou et al., 2020, arXiv:1911.04462,
    section 7); the context is given as x itself, (b, d). Each seed is a lane with its own order of the samples;
    ``shuffle=False`` keeps the order given in all lanes. InputError for labels outside [0, K), K < 2, NaN or no seed.
    """

    def __init__(
        self,
        x: Float[Tensor, "n d"],
        y: Int[Tensor, " n"],
        *,
        seeds: Sequence[int],
        classes: int | None = None,
        shuffle: bool = True,
    ) -> None:
        check_inputs("ClassificationBandit", x, y)
        self.arms = int(y.max()) + 1 if classes is None else classes
        check_labels("ClassificationBandit", y, len(x), self.arms)
        if x.dim() != 2 or self.arms < 2 or len(seeds) == 0:
            raise InputError(
                f"ClassificationBandit: x {tuple(x.shape)}, {self.arms} classes, {len(seeds)} seeds; "
                "expected (n, d), >= 2 and >= 1"
            )
        self.x, self.y, self.seeds = x, y, tuple(seeds)
        self.features, self.rounds = self.arms * x.shape[1], len(x)
        order = [torch.randperm(len(x), generator=torch_rng(s, "bandit")) for s in self.seeds]
        self.order = torch.stack(order) if shuffle else torch.arange(len(x)).expand(len(self.seeds), -1)

    def context(self, t: int) -> Float[Tensor, "b d"]:
        """The samples of round ``t``."""
        return self.x[self.order[:, t]]

    def costs(self, t: int) -> Float[Tensor, "b k"]:
        """1 for every class but the right one."""
        return (torch.arange(self.arms) != self.y[self.order[:, t], None]).double()
