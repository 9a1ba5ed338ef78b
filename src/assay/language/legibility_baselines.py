"""Scores of legibility that nothing is learned for: how much was done to a word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from assay.language.visual_perturber import Perturbation
from assay.runtime.errors import InputError


def parameter_score(made: Sequence[Perturbation]) -> Float[Tensor, " n"]:
    """-n k: the share of characters and the number of neighbours that a perturbation was drawn with."""
    return _scores("parameter_score", [-p.n * p.k for p in made])


def distance_score(made: Sequence[Perturbation]) -> Float[Tensor, " n"]:
    """Minus the cosine distance of what stands at each position to what stood there, mean over the word."""
    return _scores("distance_score", [-sum(s.distance for s in p.substitutions) / len(p.original) for p in made])


def edit_score(made: Sequence[Perturbation]) -> Float[Tensor, " n"]:
    """Minus the edit distance to the original word: the number of characters that differ."""
    return _scores("edit_score", [-float(sum(s.old != s.new for s in p.substitutions)) for p in made])


def _scores(where: str, values: list[float]) -> Tensor:
    if not values:
        raise InputError(f"{where}: no perturbations; expected at least one")
    return torch.tensor(values)
