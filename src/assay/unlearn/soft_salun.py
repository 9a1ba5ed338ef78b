"""Unlearning that lets a growing share of the weights move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from assay.data import Data
from assay.runtime.errors import InputError
from assay.subject import Subject
from assay.training import State
from assay.training.engine import Hook
from assay.unlearn.random_label import RandomLabel


def shrunk(change: Float[Tensor, " p"], k: int) -> Float[Tensor, " p"]:
    """``change`` drawn towards 0 by its ``k``-th smallest magnitude, so that at least ``k`` entries are 0."""
    if k == 0:
        return change
    return change.sign() * (change.abs() - change.abs().kthvalue(k).values).clamp_min(0)


@dataclass(frozen=True, kw_only=True)
class SoftSalUn(RandomLabel):
    """Random labels on what is forgotten under an l1 penalty on the change of the weights (Fan et al., 2024,
    arXiv:2310.12508, "SalUn-soft").

    After every step the change from the subject's weights, over all of them together, is drawn towards 0 by its k-th
    smallest magnitude, as in the official code: there is no mask, and the strength of the paper's penalty follows
    from k = ``mask_ratio`` (1 - step / steps) N of N weights, which falls to 0. ``mask_ratio`` in [0, 1]; 0 is
    RandomLabel. Other options and ``control``: see there.
    """

    mask_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_ratio <= 1:
            raise InputError(f"SoftSalUn: mask_ratio={self.mask_ratio}; expected a share in [0, 1]")

    def train(
        self,
        subject: Subject,
        forget: Data,
        retain: Data,
        *,
        seed: int,
        control: bool = False,
        hooks: Sequence[Hook] = (),
    ) -> nn.Module:
        """See PassUnlearner; the change is shrunk after every step, before ``hooks``."""
        start = parameters_to_vector(subject.model.parameters()).detach().clone()

        def shrink(models: Mapping[str, nn.Module], state: State) -> None:
            k = math.floor(self.mask_ratio * (1 - state.step / state.total) * len(start))
            with torch.no_grad():
                moved = parameters_to_vector(models["model"].parameters())
                vector_to_parameters(start + shrunk(moved - start, k), models["model"].parameters())

        return super().train(subject, forget, retain, seed=seed, control=control, hooks=[shrink, *hooks])
