"""Unlearning by random labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import Draws
from assay.subject import Subject
from assay.training import State
from assay.unlearn.base import joined
from assay.unlearn.passes import Pass, PassLoss, PassUnlearner


def random_labels(
    y: Int[Tensor, " n"], classes: int, draws: Draws, relabel: Literal["exclude", "uniform"]
) -> Int[Tensor, " n"]:
    """A random class for each label: any other one ("exclude", which needs two classes) or any ("uniform")."""
    if relabel == "uniform":
        return draws.integers(classes, 1)[:, 0]
    if classes < 2:
        raise InputError(f"random labels: {classes} class; expected at least two to exclude the true one")
    return (y + 1 + draws.integers(classes - 1, 1)[:, 0]) % classes


@dataclass(frozen=True, kw_only=True)
class RandomLabel(PassUnlearner):
    """Fine-tune with random labels on what is forgotten (Golatkar et al., 2020, arXiv:1911.04933, section 6, "random
    labels"; the "RL" of Fan et al., 2024, arXiv:2310.12508, equation 5).

    E_forget[CE(x, y')] + ``alpha`` E_retain[CE(x, y)], with y' drawn anew every epoch: another class than y ("exclude")
    or any ("uniform", as the official code of Fan et al. does). ``mode`` as there: "sequential" passes over all of
    ``forget``, then over all of ``retain``; "mixed" shuffles them together. ``control`` keeps the true labels. Other
    options: see PassUnlearner.
    """

    epochs: int = 10
    lr: float = 0.013
    weight_decay: float = 5e-4
    batch_size: int = 256
    alpha: float = 1.0
    mode: Literal["sequential", "mixed"] = "sequential"
    relabel: Literal["exclude", "uniform"] = "exclude"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha >= 0:
            raise InputError(f"{type(self).__name__}: alpha={self.alpha}; expected at least 0")
        for name, value, known in (
            ("mode", self.mode, ("sequential", "mixed")),
            ("relabel", self.relabel, ("exclude", "uniform")),
        ):
            if value not in known:
                raise unknown(f"{name} of {type(self).__name__}", str(value), known)

    def passes(self, forget: Data, retain: Data, *, seed: int) -> list[list[Pass]]:
        """Every epoch goes over ``forget`` and then ``retain``, or over both together."""
        if self.mode == "sequential":
            return [[(f"forget {e}", forget), ("retain", retain)] for e in range(self.epochs)]
        return [[(f"both {e}", joined(forget, retain))] for e in range(self.epochs)]

    def losses(self, subject: Subject, forget: Data, retain: Data, *, seed: int, control: bool) -> PassLoss:
        """Cross-entropy with random labels where a sample is to be forgotten."""
        lost, classes = forget.index.sort().values, len(forget.classes)

        def loss(model: nn.Module, name: str, batch: Batch, state: State) -> Tensor:
            forgotten = torch.isin(batch.index, lost.to(batch.index.device))
            drawn = random_labels(batch.y, classes, Draws(seed, f"labels/{name}", batch.index), self.relabel)
            y = batch.y if control else torch.where(forgotten, drawn, batch.y)
            each = F.cross_entropy(model(batch.x), y, reduction="none")
            return (each * torch.where(forgotten, 1.0, self.alpha)).mean()

        return loss
