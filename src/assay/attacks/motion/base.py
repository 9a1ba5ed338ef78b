"""The contract of no-box attacks: no victim, none of its data, no labels; an encoder and unlabelled samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class FittedNoBox:
    """What ``NoBoxAttack.fit`` returns: ``fitted(x, seed=...) -> x_adv``."""

    attack: NoBoxAttack
    encoder: nn.Module

    def __call__(
        self,
        x: Float[Tensor, "n ..."],
        *,
        seed: int,
        index: Int[Tensor, " n"] | None = None,
        frames: Int[Tensor, " n"] | None = None,
        mask: Bool[Tensor, ...] | None = None,
    ) -> Float[Tensor, "n ..."]:
        """``x`` (n, ...) moved within eps in every coordinate and within the bounds.

        ``frames`` (n,) are the real frames of each clip, which the rest of it repeats (None: all). Entries where
        ``mask`` (broadcast to x) is False stay; so do absent persons, the last dimension of five, where all is 0.
        """
        where = type(self.attack).__name__
        check_inputs(where, x, None, self.attack.bounds)
        index = torch.arange(len(x)) if index is None else index
        check_labels(f"{where}: index", index, len(x))
        if frames is not None:
            check_labels(f"{where}: frames", frames, len(x))
        moved = torch.ones_like(x) if mask is None else mask.to(x).expand_as(x)
        if x.dim() == 5:
            moved = moved * (x != 0).flatten(1, 3).any(1)[:, None, None, None]
        frames = torch.full((len(x),), -1) if frames is None else frames
        return self.perturb(x.detach(), moved, frames, seed=seed, index=index)

    def perturb(
        self, x: Tensor, moved: Tensor, frames: Int[Tensor, " n"], *, seed: int, index: Int[Tensor, " n"]
    ) -> Float[Tensor, "n ..."]:
        """Checked inputs; ``moved`` (as x) is 1 where an entry may move, ``frames`` -1 where all are real."""
        raise TypeError(f"{type(self).__name__} states no perturbation")


@dataclass(frozen=True, kw_only=True)
class NoBoxAttack:
    """``fit(encoder, pool, *, seed) -> FittedNoBox``; ``fitted(x, *, seed) -> x_adv`` within ``eps`` in l-infinity.

    encoder: maps samples to features (n, d); pool (m, ...): unlabelled samples like those to attack, which may be these
    themselves. eps is in the data's units, metres for motions. The result of a sample depends on the seed and its
    ``index`` (its position where none is given), not on the batch that it is in. InputError for unusable input.
    """

    kind: ClassVar[str] = "no-box"
    contract: ClassVar[bool] = True

    eps: float = 0.01
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise InputError(f"{type(self).__name__}: eps is {self.eps}; expected a finite number >= 0")
        if len(self.bounds) != 2 or not self.bounds[0] < self.bounds[1]:
            raise InputError(f"{type(self).__name__}: bounds are {self.bounds}; expected (low, high) with low < high")

    def fit(self, encoder: nn.Module, pool: Float[Tensor, "m ..."], *, seed: int) -> FittedNoBox:
        """Learn from the unlabelled ``pool`` what the attack needs. Nothing given is changed."""
        check_inputs(f"{type(self).__name__}: pool", pool, None, self.bounds)
        return self.learn(encoder, pool.detach(), seed=seed)

    def learn(self, encoder: nn.Module, pool: Tensor, *, seed: int) -> FittedNoBox:
        """The fitted attack of a pool that has been checked."""
        raise TypeError(f"{type(self).__name__} states no learn")
