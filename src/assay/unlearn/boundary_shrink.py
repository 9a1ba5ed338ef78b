"""Unlearning by moving the decision boundary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from assay.attacks import FGSM, Linf, Untargeted
from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.subject import Subject
from assay.training import State
from assay.unlearn.passes import Pass, PassLoss, PassUnlearner
from assay.unlearn.single import outputs_of


def nearest_labels(model: nn.Module, data: Data, eps: float) -> Int[Tensor, " n"]:
    """The class nearest to each sample besides its own: the arg max over the others at x + eps sign(gradient)."""
    attack = FGSM(ball=Linf(eps), bounds=data.bounds, early_stop=False)
    moved = attack.run(model, data.x, Untargeted(data.y), seed=0).x_adv
    return predict(model, moved).scatter(1, data.y[:, None], -torch.inf).argmax(1)


@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(PassUnlearner):
    """Give what is forgotten to the nearest other class (Chen et al., 2023, arXiv:2303.11570, equations 4 and 5).

    x' = x + ``eps`` sign(gradient of CE(x, y)) under the subject, within the data's bounds; y' is the most likely class
    at x' other than y (the paper's "nearest but incorrect label"; the official code takes the most likely one, which is
    y where the step does not fool); then cross-entropy with y' on ``forget`` alone. The paper's rate of 1e-5 goes with
    its networks. ``control`` trains with the true labels. Other options: see PassUnlearner.
    """

    epochs: int = 10
    lr: float = 1e-5
    eps: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eps > 0:
            raise InputError(f"BoundaryShrink: eps={self.eps}; expected a step > 0")

    def passes(self, forget: Data, retain: Data, *, seed: int) -> list[list[Pass]]:
        """Every epoch goes over ``forget``."""
        return [[("forget", forget)]] * self.epochs

    def losses(self, subject: Subject, forget: Data, retain: Data, *, seed: int, control: bool) -> PassLoss:
        """Cross-entropy with the nearest other labels."""
        given = forget.y if control else nearest_labels(subject.model, forget, self.eps)
        order = forget.index.argsort()
        known, labels = forget.index[order], given[order]

        def loss(model: nn.Module, name: str, batch: Batch, state: State) -> Tensor:
            y = labels[torch.searchsorted(known, batch.index.cpu())].to(batch.x.device)
            return F.cross_entropy(outputs_of(model, batch.x), y)

        return loss
