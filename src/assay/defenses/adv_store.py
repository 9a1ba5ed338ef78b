"""Adversarial examples of fixed sources, made once and kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks import Untargeted
from assay.attacks.base import Attack
from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.random import derive

Pair = tuple[str, str]
KEPT = (torch.uint8, torch.float16, torch.float32)


@dataclass(frozen=True)
class AdvStore:
    """``kept`` (p, k, n, ...): k copies of n samples by each of p pairs (source, attack), in the data's ``bounds``.

    As uint8 a number is rounded to one of 256 levels over the bounds, so it is off by at most (high - low) / 510;
    float16 and float32 hold numbers as they are. InputError where nothing is stored, or shapes do not fit.
    """

    pairs: tuple[Pair, ...]
    kept: Tensor
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.pairs or 0 in self.kept.shape:
            raise InputError(f"AdvStore: {len(self.pairs)} pairs, {tuple(self.kept.shape)}; expected a store not empty")
        if self.kept.dim() < 4 or len(self.kept) != len(self.pairs) or self.kept.dtype not in KEPT:
            found = f"{self.kept.dtype} of shape {tuple(self.kept.shape)} for {len(self.pairs)} pairs"
            raise InputError(f"AdvStore: {found}; expected uint8, float16 or float32 (pairs, copies, n, ...)")

    @classmethod
    def pack(
        cls,
        pairs: Iterable[Pair],
        x: Float[Tensor, "p k n ..."],
        bounds: tuple[float, float] = (0.0, 1.0),
        dtype: torch.dtype = torch.uint8,
    ) -> AdvStore:
        """The store of examples ``x``. InputError for uint8 where they leave the bounds."""
        if dtype not in KEPT:
            raise InputError(f"AdvStore: dtype {dtype}; expected uint8, float16 or float32")
        low, high = bounds
        if dtype == torch.uint8 and (x.min() < low - 1e-6 or x.max() > high + 1e-6):
            found = f"examples span [{x.min():.4g}, {x.max():.4g}]"
            raise InputError(f"AdvStore: {found}; expected values in {list(bounds)}, as uint8 holds no others")
        levels = ((x - low) * (255 / (high - low))).round() if dtype == torch.uint8 else x
        return cls(tuple(pairs), levels.to(dtype), bounds)

    @property
    def copies(self) -> int:
        """Examples a pair and sample."""
        return self.kept.shape[1]

    def check(self, data: Data) -> None:
        """InputError unless the store holds the samples of ``data``, one row each."""
        held, expected = tuple(self.kept.shape[2:]), (len(data), *data.shape)
        if held != expected:
            raise InputError(f"AdvStore: holds samples of shape {held}; expected {expected}, as {data.name!r} has them")

    def take(self, pair: int | Int[Tensor, " b"], copy: int | Int[Tensor, " b"], rows: Tensor | slice) -> Tensor:
        """The examples of the samples at positions ``rows`` by one pair and copy, or by one for each; floats."""
        found = self.kept[pair, copy, rows]
        if found.dtype != torch.uint8:
            return found.float()
        low, high = self.bounds
        return low + found.float() * ((high - low) / 255)


def generate(
    sources: Mapping[str, nn.Module],
    attacks: Mapping[str, Attack],
    data: Data,
    *,
    seed: int,
    copies: int = 1,
    dtype: torch.dtype = torch.uint8,
) -> AdvStore:
    """Every source attacked by every attack on ``data``, ``copies`` times with draws of their own.

    Nothing depends on the model that is to be defended (Sitawarin et al., 2023, arXiv:2310.17645). Attacks
    are used with the bounds of the data as they stand in the attack. InputError where there is no source or attack.
    """
    if not sources or not attacks or copies < 1:
        found = f"{len(sources)} sources, {len(attacks)} attacks, {copies} copies"
        raise InputError(f"generate: {found}; expected at least one of each")
    pairs = [(s, a) for s in sources for a in attacks]
    goal = Untargeted(data.y)

    def example(source: str, attack: str, copy: int) -> Tensor:
        drawn = derive(seed, source, attack, copy)
        return attacks[attack].run(sources[source], data.x, goal, seed=drawn, index=data.index).x_adv

    x = torch.stack([torch.stack([example(s, a, c) for c in range(copies)]) for s, a in pairs])
    return AdvStore.pack(pairs, x, data.bounds, dtype)
