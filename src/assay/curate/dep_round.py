"""Random subsets of a fixed size with given inclusion probabilities."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

TOLERANCE = 1e-6


def inclusion_probabilities(q: Float[Tensor, " n"], b: int) -> Float[Tensor, " n"]:
    """min(1, s q_i) with the scale s at which they sum to ``b``: what exceeds 1 goes to the others in proportion.

    ``q`` (n,) >= 0 with at least ``b`` >= 1 positive entries; else InputError.
    """
    positive = int((q > 0).sum())
    if q.dim() != 1 or not torch.isfinite(q).all() or bool((q < 0).any()) or not 1 <= b <= positive:
        raise InputError(
            f"inclusion probabilities: b={b} of {positive} positive weights of shape {tuple(q.shape)}; "
            "expected finite weights (n,) >= 0, at least b of them positive, b >= 1"
        )
    order = q.double().argsort(descending=True)
    sorted_q = q.double()[order]
    rest = sorted_q.flip(0).cumsum(0).flip(0)  # the mass from each position on
    # With the c largest at 1 the others share b - c; c is the least count that leaves none of them above 1.
    count = torch.arange(b, dtype=torch.float64)
    fits = sorted_q[:b] * (b - count) <= rest[:b]  # true of the last count, whatever q
    capped = int(fits.to(torch.uint8).argmax())
    pi = torch.ones_like(sorted_q)
    pi[capped:] = sorted_q[capped:] * ((b - capped) / rest[capped])
    out = torch.empty_like(pi)
    out[order] = pi.clamp(max=1.0)
    return out


def dep_round(pi: Float[Tensor, "*runs n"], *, seed: int) -> Bool[Tensor, "*runs n"]:
    """A random subset of exactly sum(pi) points that holds point i with probability pi_i; inclusions are negatively
    correlated (Srinivasan, 2001, "Distributions on level-sets with applications to approximation algorithms").

    Two fractional coordinates (p, r) become (p + a, r - a) with probability c / (a + c), a = min(1 - p, r), c =
    min(p, 1 - r), else (p - c, r + c): one of them is then 0 or 1, the other goes on. Pairs meet as in a tournament in
    random order, all of one round at once: O(n). Leading axes are independent runs. Raises InputError for values
    outside [0, 1] or a sum that is no integer.
    """
    total = pi.double().sum(-1)
    whole = bool((total - total.round()).abs().max() <= TOLERANCE) if pi.numel() else False
    if not whole or not torch.isfinite(pi).all() or pi.min() < 0 or pi.max() > 1:
        raise InputError(
            f"dep_round: probabilities {tuple(pi.shape)}; expected values in [0, 1] that sum to an integer"
        )
    runs, n = pi.reshape(-1, pi.shape[-1]).double(), pi.shape[-1]
    g = torch_rng(seed, "dep_round")
    carrier = torch.rand(runs.shape, generator=g, dtype=torch.float64).argsort(1)
    value = runs.gather(1, carrier)
    chosen = torch.zeros_like(runs)
    while value.shape[1] > 1:
        odd = value.shape[1] % 2
        left, right = slice(0, value.shape[1] - odd, 2), slice(1, None, 2)
        p, r = value[:, left], value[:, right]
        done, on, stays = _meet(p, r, torch.rand(p.shape, generator=g, dtype=torch.float64))
        one, other = carrier[:, left], carrier[:, right]
        chosen.scatter_(1, torch.where(stays, other, one), done)
        last = slice(value.shape[1] - odd, None)
        value = torch.cat([on, value[:, last]], 1)
        carrier = torch.cat([torch.where(stays, one, other), carrier[:, last]], 1)
    chosen.scatter_(1, carrier, value.round())
    return (chosen > 0.5).reshape(*pi.shape[:-1], n)


def _meet(p: Tensor, r: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Bool[Tensor, ...]]:
    """One meeting of each pair: the value that is now 0 or 1, the one that goes on, and whether that is the first's."""
    total = p + r
    low = total < 1
    # Below 1 one of them drops to 0 and the other takes all; from 1 on one rises to 1 and the other keeps the rest.
    weight = torch.where(low, p, 1 - r)
    scale = torch.where(low, total, 2 - total)
    first_wins = u * scale < weight
    done = torch.where(low, 0.0, 1.0).to(p)
    on = torch.where(low, total, total - 1)
    return done, on, torch.where(low, first_wins, ~first_wins)
