"""Long-tailed subsets of balanced data."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from assay.runtime.errors import InputError, unknown
from assay.runtime.random import torch_rng


def make_long_tail(
    y: Int[Tensor, " n"],
    ratio: float,
    kind: Literal["exp", "step"] = "exp",
    *,
    largest: int | None = None,
    seed: int,
) -> Int[Tensor, " m"]:
    """Positions, sorted, of a random subset whose class sizes fall by ``ratio`` from the first class to the last.

    "exp": class c of C keeps ``largest`` / ratio^(c / (C - 1)); "step": the first half of the classes (the larger half
    of an odd number) keeps ``largest``, the rest ``largest`` / ratio (Cao et al., 2019, arXiv:1906.07413, section 4).
    Sizes are rounded, at least 1. ``largest`` is the size of the smallest class unless given; classes are 0 to the
    largest label. InputError for a ratio below 1 and for a class with fewer samples than it should keep.
    """
    if kind not in ("exp", "step"):
        raise unknown("kind of make_long_tail", str(kind), ("exp", "step"))
    counts = torch.bincount(y)
    most = largest if largest is not None else int(counts.min()) if len(counts) else 0
    if not ratio >= 1 or most < 1 or len(counts) < 2:
        found = f"ratio={ratio}, largest={most}, {len(counts)} classes"
        raise InputError(f"make_long_tail: {found}; expected ratio >= 1, at least one sample a class, two classes")
    place = torch.arange(len(counts), dtype=torch.float64) / (len(counts) - 1)
    share = ratio ** -(place if kind == "exp" else (place > 0.5).double())
    sizes = (most * share).round().long().clamp_min(1)
    short = (sizes > counts).nonzero()[:, 0]
    if len(short):
        k = int(short[0])
        raise InputError(f"make_long_tail: class {k} has {int(counts[k])} samples; expected at least {int(sizes[k])}")
    order = torch.randperm(len(y), generator=torch_rng(seed, "long-tail"))
    ranked = order[y[order].argsort(stable=True)]
    rank = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[ranked]]
    return ranked[rank < sizes[y[ranked]]].sort().values
