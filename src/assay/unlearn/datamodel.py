"""What a model's outputs would lose without the forget set, as datamodels predict it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jvp

from assay.curate import subset_masks
from assay.curate.attribution import datamodel_weights, projected
from assay.data import Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import derive
from assay.subject import Subject
from assay.unlearn.base import Unlearner, together
from assay.unlearn.references import trained

RULES = ("regression", "trak")


def datamodel_logits(
    logits: Float[Tensor, "q *k c"], beta: Float[Tensor, "f q c"], multiplier: float = 1.0
) -> Float[Tensor, "q *k c"]:
    """f_x(S) - multiplier times the sum of beta_i(x) over the f removed samples: the predicted outputs without them.

    (Georgiev et al., 2024, arXiv:2410.23232, section 4.2.) Nothing removed changes nothing. Raises InputError where
    queries or outputs differ.
    """
    if beta.dim() != 3 or beta.shape[1] != len(logits) or beta.shape[2] != logits.shape[-1]:
        raise InputError(
            f"datamodel: beta {tuple(beta.shape)} for logits {tuple(logits.shape)}; expected (removed, "
            f"{len(logits)}, {logits.shape[-1]}), queries in the same order"
        )
    return less(logits, beta.sum(0), multiplier)


def less(logits: Float[Tensor, "q *k c"], change: Float[Tensor, "q c"], multiplier: float) -> Float[Tensor, "q *k c"]:
    """``logits`` minus ``multiplier`` times a change that all models between share."""
    between = [1] * (logits.dim() - 2)
    return logits - (multiplier * change).view(len(change), *between, -1).to(logits)


class SubsetChange(nn.Module):
    """Sum over what is removed of beta_i(x), for regression datamodels: a weighted sum of the subset models' logits."""

    def __init__(self, models: Sequence[nn.Module], weight: Float[Tensor, " t"]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.weight = nn.Buffer(weight.float())

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return sum((w * m(x) for w, m in zip(self.weight, self.models, strict=True)), start=x.new_zeros(()))


class StepChange(nn.Module):
    """The same for TRAK: the mean over networks of their logits' derivative along a step of the weights."""

    def __init__(self, models: Sequence[nn.Module], steps: Sequence[dict[str, Tensor]]) -> None:
        super().__init__()
        self.models, self.steps = nn.ModuleList(models), list(steps)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        found = []
        for model, step in zip(self.models, self.steps, strict=True):
            free = {k: p.detach() for k, p in model.named_parameters()}
            found.append(jvp(lambda w, model=model: functional_call(model, w, (x,)), (free,), (step,))[1])
        return torch.stack(found).mean(0)


@dataclass(frozen=True, kw_only=True)
class Attributed(Unlearner):
    """An unlearner that predicts by a datamodel what the outputs lose with the forget set.

    ``attribution``: "trak" takes the gradients of ``models`` networks (10), the subject's own and others trained by its
    recipe, projected to ``proj_dim``; "regression" trains ``models`` (4 a training sample; fewer than one are useless)
    on random shares ``rate`` of the data and regresses with ridge ``reg``. ``multiplier`` scales the prediction: TRAK's
    is not calibrated (see ``curate.fitted_multiplier``).
    """

    attribution: Literal["regression", "trak"] | Tensor = "trak"
    multiplier: float = 1.0
    models: int | None = None
    rate: float = 0.5
    reg: float = 100.0
    proj_dim: int = 512

    def __post_init__(self) -> None:
        who = type(self).__name__
        if not isinstance(self.attribution, Tensor) and self.attribution not in RULES:
            raise unknown(f"attribution of {who}", str(self.attribution), RULES)
        good = math.isfinite(self.multiplier) and (self.models is None or self.models >= 1) and self.proj_dim >= 1
        if not (good and 0 < self.rate < 1 and math.isfinite(self.reg) and self.reg >= 0):
            raise InputError(
                f"{who}: multiplier={self.multiplier}, models={self.models}, rate={self.rate}, reg={self.reg}, "
                f"proj_dim={self.proj_dim}; expected finite, at least 1, a share in (0, 1), at least 0, at least 1"
            )

    def change(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """A network whose outputs are the sum of beta_i(x) over ``forget``, in evaluation mode."""
        whole = together(self.check(subject, forget, retain), forget, retain)
        removed = torch.isin(whole.index, forget.index)
        if self.attribution == "trak":
            seeds = [derive(seed, "trak", k) for k in range(1, self.models or 10)]
            models = [subject.model, *(trained(subject, whole, seed=s).model for s in seeds)]
            found = projected(models, whole, self.proj_dim, seed=seed)
            weight = torch.stack([p.lost for p in found]).mean(0) * removed
            return StepChange(models, [p.step(weight) for p in found]).eval()
        masks = subset_masks(len(whole), self.models or 4 * len(whole), self.rate, seed=seed)
        nets = [trained(subject, whole[m], seed=derive(seed, "datamodel", t)).model for t, m in enumerate(masks)]
        return SubsetChange(nets, datamodel_weights(masks, self.reg)[removed].sum(0)).eval()
