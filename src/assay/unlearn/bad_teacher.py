"""Unlearning with an incompetent teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import derive, torch_rng
from assay.subject import Subject, fresh
from assay.training import State
from assay.unlearn.base import joined
from assay.unlearn.passes import Pass, PassLoss, PassUnlearner
from assay.unlearn.single import outputs_of


def divergence(teacher: Float[Tensor, "n c"], student: Float[Tensor, "n c"], temperature: float) -> Float[Tensor, ""]:
    """Mean over samples of KL(softmax(teacher / T) || softmax(student / T)), from logits, in nats."""
    p, q = ((z / temperature).log_softmax(1) for z in (teacher, student))
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


@dataclass(frozen=True, kw_only=True)
class BadTeacher(PassUnlearner):
    """Learn from a random network on what is forgotten and from the subject on the rest (Chundawat et al., 2023,
    arXiv:2205.08096, equation 3, "Bad-T").

    (1 - l) KL(T_s || S) + l KL(T_d || S) with l = 1 on ``forget``, the subject as competent teacher T_s and new random
    weights as incompetent T_d, at ``temperature``, over ``forget`` and a random ``retain_share`` in (0, 1] of
    ``retain``, shuffled together. The divergence is averaged over samples; the official code averages over classes
    too, which divides the rate by their number. ``control`` has the competent teacher throughout. Other options: see
    PassUnlearner.
    """

    epochs: int = 1
    lr: float = 1e-4
    batch_size: int = 256
    optimizer: Literal["sgd", "adam"] = "adam"
    temperature: float = 1.0
    retain_share: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or not 0 < self.retain_share <= 1:
            raise InputError(
                f"BadTeacher: temperature={self.temperature}, retain_share={self.retain_share}; "
                "expected temperature > 0 and a share in (0, 1]"
            )

    def passes(self, forget: Data, retain: Data, *, seed: int) -> list[list[Pass]]:
        """Every epoch goes over ``forget`` and the same share of ``retain`` together."""
        order = torch.randperm(len(retain), generator=torch_rng(seed, "share"))
        share = retain[order[: max(round(self.retain_share * len(retain)), 1)].sort().values]
        return [[("both", joined(forget, share))]] * self.epochs

    def losses(self, subject: Subject, forget: Data, retain: Data, *, seed: int, control: bool) -> PassLoss:
        """The divergence from the teacher of each sample."""
        teacher = fresh(subject.model, seed=derive(seed, "incompetent"))
        both = joined(forget, retain)
        order = both.index.argsort()
        known = both.index[order]
        targets = predict(subject.model, both.x)
        if not control:
            targets[: len(forget)] = predict(teacher, forget.x)

        def loss(model: nn.Module, name: str, batch: Batch, state: State) -> Tensor:
            taught = targets[order[torch.searchsorted(known, batch.index.cpu())]].to(batch.x.device)
            return divergence(taught, outputs_of(model, batch.x), self.temperature)

        return loss
