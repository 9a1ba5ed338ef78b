"""Active distillation: a student learns from a few labels and from what it asks a teacher."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.curate.query import Pool, QuerySampler
from assay.curate.rad import RADSampler
from assay.data import Batch, Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import features, predict
from assay.runtime.random import derive
from assay.subject import fresh
from assay.training import State, Supervised, Trainer, fit


@dataclass(frozen=True)
class QueryRound:
    """One round: positions (b,) in the pool, the student's probabilities for them when it chose, the teacher's."""

    rows: Int[Tensor, " b"]
    student: Float[Tensor, "b c"]
    teacher: Float[Tensor, "b c"]


@dataclass(frozen=True)
class Distilled:
    """The student after the last round, and the rounds that led there."""

    student_: nn.Module
    rounds_: tuple[QueryRound, ...]

    @property
    def rows_(self) -> Int[Tensor, " q"]:
        """All positions asked about, in the order of the rounds."""
        return torch.cat([r.rows for r in self.rounds_])


@dataclass(frozen=True, kw_only=True)
class ActiveDistillation:
    """Train a student on labelled data; ``rounds`` times let ``sampler`` choose ``budget`` points of the pool for the
    teacher to label, and train again (Baykal et al., 2022, arXiv:2210.01213, the loop of its experiments).

    Labelled points count with cross-entropy, queried ones with ``temperature``^2 times the cross-entropy to the
    teacher's softened probabilities (the KL divergence up to a constant). ``trainer`` gives the plan. ``restart``: each
    round trains new weights, else the last ones go on. ``weighted``: a queried point counts with b / (n pi), pi its
    probability of being among the b of n: 1 where all are alike (the default is 1 for every point). ``layer`` names the
    student's layer whose outputs are the features of samplers that use distances (absent: its logits). The labels of
    the pool are never read.
    """

    sampler: QuerySampler = field(default_factory=RADSampler)
    rounds: int = 3
    budget: int = 200
    trainer: Trainer = field(default_factory=Supervised)
    temperature: float = 1.0
    restart: bool = True
    weighted: bool = False
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.budget < 1 or not self.temperature > 0:
            raise InputError(
                f"ActiveDistillation: rounds={self.rounds}, budget={self.budget}, temperature={self.temperature}; "
                "expected rounds and budget >= 1, temperature > 0"
            )

    def fit(
        self,
        student: nn.Module,
        teacher: nn.Module,
        labelled: Data,
        pool: Data,
        *,
        seed: int,
        error: float | None = None,
    ) -> Distilled:
        """A trained student of ``student``'s architecture.

        ``teacher`` maps inputs to logits (n, classes). ``error``: the teacher's error rate (absent: that on
        ``labelled``, which is too small where the teacher trained on them). Raises InputError where the pool holds
        fewer than rounds x budget points or the teacher's outputs have another shape.
        """
        self._check(labelled, pool)
        classes = len(labelled.classes)
        rate = float((_logits(teacher, labelled.x, classes).argmax(1) != labelled.y).double().mean())
        known = _known(labelled.x, F.one_hot(labelled.y, classes).float(), labelled)
        model = self._train(fresh(student, seed=derive(seed, "student")), known, seed)
        left, rounds = torch.arange(len(pool)), []
        for turn in range(self.rounds):
            s, x = derive(seed, "round", turn), pool.x[left]
            here = self._pool(model, x, labelled, rate if error is None else error)
            query = self.sampler.select(here, self.budget, seed=s)
            shown = self.sampler.inputs(x, here, query.rows, seed=s)
            soft = (_logits(teacher, shown, classes) / self.temperature).softmax(1)
            rounds.append(QueryRound(left[query.rows], here.probs[query.rows], soft))
            weight = self.budget / (len(left) * query.inclusion) if self.weighted else None
            known = _joined(known, _known(shown, soft, labelled, temperature=self.temperature, weight=weight))
            left = left[~torch.isin(left, left[query.rows])]
            start = fresh(student, seed=derive(s, "student")) if self.restart else model
            model = self._train(start, known, s)
        return Distilled(model, tuple(rounds))

    def _train(self, start: nn.Module, known: Data, seed: int) -> nn.Module:
        return fit(start, known, _objective, self.trainer.plan(), seed=seed)

    def _pool(self, model: nn.Module, x: Tensor, labelled: Data, rate: float) -> Pool:
        logits = predict(model, x)
        if self.layer is None:
            own, others = logits, predict(model, labelled.x)
        else:
            own, others = (features(model, t, [self.layer], pool=False)[self.layer] for t in (x, labelled.x))
        return Pool(logits.double().softmax(1), own, others, rate)

    def _check(self, labelled: Data, pool: Data) -> None:
        for part in (labelled, pool):
            check_inputs("ActiveDistillation", part.x, None, labelled.bounds)
        check_labels("ActiveDistillation", labelled.y, len(labelled), len(labelled.classes))
        if pool.shape != labelled.shape or self.rounds * self.budget > len(pool):
            raise InputError(
                f"ActiveDistillation: a pool of {len(pool)} points {pool.shape}; expected points {labelled.shape}, at "
                f"least {self.rounds} x {self.budget}"
            )


def _objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
    """Cross-entropy to the targets at each sample's own temperature, times its square and the sample's weight."""
    t, weight = batch.fields["temperature"], batch.fields["weight"]
    log_p = (model(batch.x) / t[:, None]).log_softmax(1)
    return (-(batch.fields["target"] * log_p).sum(1) * t.square() * weight).mean()


def _known(
    x: Tensor, target: Float[Tensor, "n c"], like: Data, *, temperature: float = 1.0, weight: Tensor | None = None
) -> Data:
    """Samples to train on, with what the objective reads; ``like`` lends classes and bounds."""
    ones = torch.ones(len(x))
    columns = {
        "target": target.float(),
        "temperature": temperature * ones,
        "weight": ones if weight is None else weight.float(),
    }
    return Data(x, target.argmax(1), like.classes, like.bounds, "known", fields=columns)


def _joined(first: Data, second: Data) -> Data:
    columns = {k: torch.cat([v, second.fields[k]]) for k, v in first.fields.items()}
    x, y = torch.cat([first.x, second.x]), torch.cat([first.y, second.y])
    return Data(x, y, first.classes, first.bounds, first.name, fields=columns)


def _logits(teacher: nn.Module, x: Tensor, classes: int) -> Float[Tensor, "n c"]:
    logits = predict(teacher, x)
    if logits.shape != (len(x), classes):
        raise InputError(
            f"ActiveDistillation: the teacher gives {tuple(logits.shape)} for {len(x)} points; "
            f"expected logits ({len(x)}, {classes})"
        )
    return logits
