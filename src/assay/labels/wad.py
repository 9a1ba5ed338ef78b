"""Weight-aware distillation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.labels.mismatch import mismatch_errors
from assay.labels.semi_supervised import TRUTH, SemiSupervised
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched, predict
from assay.runtime.random import Draws, derive
from assay.training import State, fit
from assay.training.engine import Augment


def prototype_scores(
    z_u: Float[Tensor, "n d"],
    z_l: Float[Tensor, "m d"],
    y_l: Int[Tensor, " m"],
    n_classes: int,
    reduce: Literal["max", "mean"] = "max",
) -> Float[Tensor, "n k"]:
    """The cosine similarity of each embedding to each class: to its nearest labelled member, or the mean over them (Du
    et al., 2023, arXiv:2308.11874, as in their code).

    In [-1, 1]. Raises InputError for fewer than two classes, a class without a member, and embeddings that are 0, not
    finite or of other shapes.
    """
    if reduce not in ("max", "mean"):
        raise unknown("reduce of prototype_scores", reduce, ("max", "mean"))
    if z_u.dim() != 2 or z_l.dim() != 2 or z_u.shape[1] != z_l.shape[1] or min(len(z_u), len(z_l)) == 0:
        raise InputError(
            f"prototype_scores: embeddings {tuple(z_u.shape)} and {tuple(z_l.shape)}; expected (n, d) and (m, d)"
        )
    check_labels("prototype_scores", y_l, len(z_l), n_classes)
    counts = torch.bincount(y_l, minlength=n_classes)
    if n_classes < 2 or not counts.all():
        raise InputError(
            f"prototype_scores: labelled members by class {counts.tolist()}; expected two classes, one each"
        )
    for z in (z_u, z_l):
        if not torch.isfinite(z).all() or not z.any(1).all():
            raise InputError("prototype_scores: embeddings hold zero rows or NaN; expected finite rows other than 0")
    members = F.normalize(z_l, dim=1)

    def scores(z: Tensor) -> Tensor:
        cosine = F.normalize(z, dim=1) @ members.T
        empty = cosine.new_zeros(len(z), n_classes)
        how = "amax" if reduce == "max" else "mean"
        return empty.scatter_reduce(1, y_l.expand(len(z), -1), cosine, how, include_self=False)

    return batched(scores, z_u)


def margin_weights(scores: Float[Tensor, "n k"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The nearest class and how clearly it is the nearest: s_1 (1 - s_2 / s_1) = s_1 - s_2 of the two largest scores.

    Du et al., 2023, arXiv:2308.11874; the difference is defined where s_1 <= 0 too. In [0, 2] for cosines. Raises
    InputError for fewer than two classes.
    """
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise InputError(f"margin_weights: scores {tuple(scores.shape)}; expected (n, k) with k >= 2")
    best = scores.topk(2, dim=1)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1]


@dataclass(frozen=True)
class Round:
    """One round: pseudo labels and weights of the unlabelled samples named by ``index``, and whom it promoted.

    ``pseudo_error`` and ``invasion_error`` (see mismatch_errors) are None where the truth is not known.
    """

    index: Int[Tensor, " n"]
    pseudo: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    promoted: Int[Tensor, " p"]
    pseudo_error: float | None
    invasion_error: float | None


@dataclass(frozen=True)
class Distilled:
    """The student, and the rounds it went through."""

    model: nn.Module
    rounds: tuple[Round, ...]


@dataclass(frozen=True, kw_only=True)
class WeightAwareDistillation(SemiSupervised):
    """Pseudo labels of a self-supervised teacher, weighted by how clear they are (Du et al., 2023, arXiv:2308.11874).

    For unlabelled data whose classes are partly not among the labelled ones. In each of ``rounds`` + 1 rounds the
    teacher's embeddings give every unlabelled sample its nearest class and the weight s_1 - s_2 (see prototype_scores,
    margin_weights); the student, from where it stands, minimises CE(labelled) + mean_u w_u CE(u, pseudo label) for the
    ``epochs`` or ``steps`` of the plan; then the ``alpha`` (1 - i / ``rounds``)^2 share of the unlabelled samples on
    which the student agrees most (smallest cross-entropy) joins the labelled ones with their pseudo labels. ``weights``
    "unit" takes w = 1 and "student" the student's probability of the pseudo label as the round begins: what the paper's
    weights are compared with.

    ``fit(..., teacher=None)`` and ``distil(...)``, which also gives the rounds: ``teacher`` maps inputs to embeddings
    (n, d) and is best trained without labels on both sets (ContrastivePretraining with InfoNCE(0.5, "views") is the
    paper's); absent, the inputs themselves are the embeddings. ``teacher_view`` makes the one view that it sees, the
    authors' a random one (absent: the sample as it is), drawn anew in each round. Steps count within a round; a
    ``checkpoint`` gets the round's number added to its name. Adam at 5e-4 in batches of 32 and 1,500 steps a round are
    the authors' for CIFAR-10. InputError for options out of range and a class without labelled samples.
    """

    alpha: float = 0.1
    rounds: int = 5
    weights: Literal["margin", "unit", "student"] = "margin"
    reduce: Literal["max", "mean"] = "max"
    teacher_view: Augment | None = None
    mu: int = 1
    batch_size: int = 32
    lr: float = 5e-4
    schedule: Literal["constant", "cosine", "onecycle", "linear", "multistep"] = "constant"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1 or self.rounds < 1:
            raise InputError(
                f"WeightAwareDistillation: alpha={self.alpha}, rounds={self.rounds}; expected a share in [0, 1], "
                "rounds >= 1"
            )
        for name, choices in (("weights", ("margin", "unit", "student")), ("reduce", ("max", "mean"))):
            if getattr(self, name) not in choices:
                raise unknown(f"{name} of WeightAwareDistillation", getattr(self, name), choices)

    def promotion(self, i: int) -> float:
        """The share of the unlabelled samples that round ``i``, counted from 1, promotes."""
        return self.alpha * max(1 - i / self.rounds, 0.0) ** 2

    def weigh(self, scores: Float[Tensor, "n k"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Pseudo label and weight of each sample, from its similarity to each class."""
        return margin_weights(scores)

    def knowledge(
        self, student: nn.Module, teacher: nn.Module | None, labelled: Data, pool: Data, seed: int
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Pseudo labels and weights of the pool in one round."""
        z, members = (self._embedded(teacher, part, seed) for part in (pool, labelled))
        pseudo, weight = self.weigh(prototype_scores(z, members, labelled.y, len(labelled.classes), self.reduce))
        if self.weights == "unit":
            return pseudo, torch.ones_like(weight)
        if self.weights == "student":
            return pseudo, predict(student, pool.x).softmax(1).gather(1, pseudo[:, None])[:, 0]
        return pseudo, weight

    def _embedded(self, teacher: nn.Module | None, data: Data, seed: int) -> Float[Tensor, "n d"]:
        view = self.teacher_view
        x = data.x if view is None else view(data.x, Draws(derive(seed, "teacher"), "view", data.index))
        return x.flatten(1) if teacher is None else predict(teacher, x)

    def distil(
        self,
        model: nn.Module,
        data: Data,
        *,
        seed: int,
        unlabelled: Data | None = None,
        teacher: nn.Module | None = None,
        checkpoint: Path | None = None,
        **options: Any,
    ) -> Distilled:
        """The student and its rounds."""
        pool, plan = self.checked(data, unlabelled), self.plan()
        found: list[Round] = []
        for i in range(1, self.rounds + 2):
            own = derive(seed, "round", i)
            pseudo, weight = self.knowledge(model, teacher, data, pool, own)
            path = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.{i}")
            objective = partial(self.objective_of, pool, pseudo, weight)
            model = fit(model, data, objective, plan, seed=own, checkpoint=path, **options)
            rows = self.reliable(model, pool, pseudo, i)
            truth = pool.fields.get(TRUTH)
            errors = (None, None) if truth is None else mismatch_errors(pseudo, weight, truth)
            found.append(Round(pool.index, pseudo, weight, pool.index[rows], *errors))
            data, pool = _promoted(data, pool, pseudo, rows)
        return Distilled(model, tuple(found))

    def fit(
        self, model: nn.Module, data: Data, *, seed: int, unlabelled: Data | None = None, **options: Any
    ) -> nn.Module:
        return self.distil(model, data, seed=seed, unlabelled=unlabelled, **options).model

    def objective_of(
        self, pool: Data, pseudo: Tensor, weight: Tensor, net: nn.Module, batch: Batch, state: State
    ) -> Float[Tensor, ""]:
        """The student's loss on a labelled batch and on unlabelled samples, given their pseudo labels and weights."""
        other = self.drawn(pool, batch, state)
        known = net(self.view("labelled", self.weak, batch.x, batch.index, state))
        guessed = net(self.view("weak", self.weak, other.x, other.index, state))
        rows = other.rows.cpu()
        losses = F.cross_entropy(guessed, pseudo[rows].to(known.device), reduction="none")
        return F.cross_entropy(known, batch.y) + (weight[rows].to(known) * losses).mean()

    def reliable(self, model: nn.Module, pool: Data, pseudo: Tensor, i: int) -> Int[Tensor, " p"]:
        """Rows of the pool that round ``i`` promotes: those of smallest cross-entropy under their pseudo label."""
        losses = F.cross_entropy(predict(model, pool.x), pseudo, reduction="none")
        return losses.argsort(stable=True)[: int(self.promotion(i) * len(pool) + 1e-9)]


def _promoted(data: Data, pool: Data, pseudo: Tensor, rows: Tensor) -> tuple[Data, Data]:
    """The labelled data with some of the pool and their pseudo labels, and the pool without them."""
    left = torch.ones(len(pool), dtype=torch.bool)
    left[rows] = False
    grown = replace(
        data,
        x=torch.cat((data.x, pool.x[rows])),
        y=torch.cat((data.y, pseudo[rows])),
        index=torch.cat((data.index, pool.index[rows])),
        fields={},
    )
    return grown, pool[left]
