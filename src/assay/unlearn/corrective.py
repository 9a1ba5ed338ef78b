"""Corrective unlearning: undo manipulated training data of which only a part has been found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import Draws, derive, torch_rng
from assay.subject import Subject, fresh
from assay.unlearn.base import Unlearner, recipe_of
from assay.unlearn.evaluation_relearn import right
from assay.unlearn.random_label import random_labels

Kind = Literal["patch", "interclass", "random"]
KINDS = ("patch", "interclass", "random")
Row = dict[str, str | float]


def patched(data: Data, size: int) -> Data:
    """The images with a ``size`` x ``size`` square of the highest value in the lower right corner; labels stay."""
    if data.x.dim() != 4 or not 1 <= size <= min(data.shape[1:]):
        raise InputError(f"patch of {size}: samples have shape {data.shape}; expected images at least that large")
    x = data.x.clone()
    x[:, :, -size:, -size:] = data.bounds[1]
    return data.with_x(x)


@dataclass(frozen=True)
class Manipulated:
    """``data`` with ``index`` manipulated among them (field "manipulated" is 1 there), and how."""

    data: Data
    index: Int[Tensor, " m"]
    kind: Kind
    target: int
    patch: int
    classes: tuple[int, int]

    def affected(self, test: Data) -> Data:
        """Where the manipulation shows in ``test``, with the true labels: all images with the patch, the two confused
        classes, or everything where labels were random."""
        if self.kind == "patch":
            return patched(test, self.patch)
        return test[torch.isin(test.y, torch.tensor(self.classes))] if self.kind == "interclass" else test

    def clean(self, test: Data) -> Data:
        """The part of ``test`` that the manipulation is not about: as it is, or without the confused classes."""
        return test[~torch.isin(test.y, torch.tensor(self.classes))] if self.kind == "interclass" else test

    def flagged(self, gamma: float, *, seed: int) -> tuple[Data, Data]:
        """A random share ``gamma`` in (0, 1] of what is manipulated, at least one sample, and all the other data."""
        if not 0 < gamma <= 1:
            raise InputError(f"flagged: gamma={gamma}; expected a share in (0, 1]")
        order = torch.randperm(len(self.index), generator=torch_rng(seed, "flagged"))
        chosen = torch.isin(self.data.index, self.index[order[: max(round(gamma * len(order)), 1)]])
        return self.data[chosen], self.data[~chosen]


def manipulate(
    data: Data,
    *,
    kind: Kind = "patch",
    size: int,
    target: int = 0,
    patch: int = 3,
    classes: tuple[int, int] = (3, 5),
    seed: int,
) -> Manipulated:
    """Manipulate ``size`` random samples (Goel et al., 2024, arXiv:2402.14015, section 4).

    "patch": a square of ``patch`` pixels (see ``patched``) and the label ``target``; "interclass": half of them from
    each of two ``classes``, their labels exchanged; "random": any other label. Raises InputError for sizes that do not
    fit, odd ones of two classes among them.
    """
    check_inputs("manipulate", data.x, data.y, data.bounds)
    if kind not in KINDS:
        raise unknown("manipulation", str(kind), KINDS)
    named = {"patch": [target], "interclass": [*classes], "random": []}[kind]
    check_labels(f"manipulate, {kind}", torch.tensor(named, dtype=torch.int64), len(named), len(data.classes))
    rows = _rows(data, kind, size, classes, seed)
    x, y = data.x.clone(), data.y.clone()
    if kind == "patch":
        x[rows], y[rows] = patched(data[rows], patch).x, target
    elif kind == "interclass":
        y[rows] = sum(classes) - y[rows]
    else:
        y[rows] = random_labels(y[rows], len(data.classes), Draws(seed, "manipulate", data.index[rows]), "exclude")
    mark = torch.zeros(len(data), dtype=torch.int64).index_fill_(0, rows, 1)
    changed = replace(data, x=x, y=y, fields={**data.fields, "manipulated": mark})
    return Manipulated(changed, data.index[rows], kind, target, patch, classes)


def _rows(data: Data, kind: Kind, size: int, classes: tuple[int, int], seed: int) -> Int[Tensor, " m"]:
    """Which samples are manipulated, in their order."""
    if kind != "interclass":
        pools, each = [torch.arange(len(data))], size
    else:
        if size % 2 or classes[0] == classes[1]:
            raise InputError(f"manipulate: size={size}, classes={classes}; expected an even size and two classes")
        pools, each = [(data.y == c).nonzero()[:, 0] for c in classes], size // 2
    if size < 1 or each > min(map(len, pools)):
        raise InputError(f"manipulate: size={size}; expected 1 to {len(pools) * min(map(len, pools))}")
    drawn = [p[torch.randperm(len(p), generator=torch_rng(seed, "manipulate", k))[:each]] for k, p in enumerate(pools)]
    return torch.cat(drawn).sort().values


def corrective_report(model: nn.Module, affected: Data, clean: Data, target: int | None = None) -> dict[str, float]:
    """Accuracies, and how often the manipulation works, in [0, 1].

    "corrected": accuracy on what the manipulation is about, by its true labels; "retain": that on ``clean``; with
    ``target`` also "asr", the share of affected samples of other classes that are called ``target``.
    """
    report = {"corrected": right(model, affected), "retain": right(model, clean)}
    if target is not None:
        others = affected[affected.y != target]
        report["asr"] = right(model, others.with_y(torch.full_like(others.y, target)))
    return report


def known_score(model: nn.Module, subject: Subject, forget: Data, labels: Tensor) -> float:
    """The mean of the accuracy on ``forget`` by the true ``labels`` and of that on held-out data: what a user who has
    looked at what was flagged can know."""
    assert subject.holdout is not None
    return (right(model, forget.with_y(labels)) + right(model, subject.holdout)) / 2


def choose(
    candidates: Sequence[Unlearner], subject: Subject, forget: Data, retain: Data, labels: Tensor, *, seed: int
) -> tuple[Unlearner, nn.Module]:
    """The candidate with the best ``known_score``, the first of equals, and its model."""
    models = [c.forget(subject, forget, retain, seed=seed) for c in candidates]
    scores = [known_score(m, subject, forget, labels) for m in models]
    best = max(range(len(models)), key=scores.__getitem__)
    return candidates[best], models[best]


@dataclass(frozen=True, kw_only=True)
class CorrectiveBenchmark:
    """How much of a manipulation is undone when a share of it is flagged (Goel et al., 2024, arXiv:2402.14015).

    ``run`` manipulates a subject's training data, trains its network anew by its recipe, and gives every unlearner the
    share ``gammas`` of the manipulated samples to forget; the rest of them stays among what is retained. Of several
    candidates of one unlearner the one that ``choose`` picks counts. Training without the flagged samples is no goal
    here: the oracle is training without all that is manipulated.
    """

    kind: Kind = "patch"
    size: int = 200
    gammas: tuple[float, ...] = (0.1, 0.5, 1.0)
    target: int = 0
    patch: int = 3
    classes: tuple[int, int] = (3, 5)

    def spoil(self, subject: Subject, *, seed: int) -> tuple[Subject, Manipulated]:
        """The subject trained anew on manipulated data, and these."""
        recipe, train = recipe_of(subject, "CorrectiveBenchmark"), subject.training("CorrectiveBenchmark")
        found = manipulate(
            train,
            kind=self.kind,
            size=self.size,
            target=self.target,
            patch=self.patch,
            classes=self.classes,
            seed=derive(seed, "manipulate"),
        )
        model = recipe.fit(fresh(subject.model, seed=seed), found.data, seed=seed)
        return subject.with_model(model, train=found.data), found

    def run(self, unlearners: Mapping[str, Sequence[Unlearner]], subject: Subject, *, seed: int) -> list[Row]:
        """One row an unlearner and gamma with the numbers of ``corrective_report`` on the test data, and before them
        the arm "none", the spoiled model."""
        spoiled, found = self.spoil(subject, seed=seed)
        rows: list[Row] = [{"arm": "none", "gamma": 0.0, **self.report(spoiled.model, found, subject.test)}]
        for gamma in self.gammas:
            forget, retain = found.flagged(gamma, seed=derive(seed, "flagged"))
            labels = true_labels(subject.training("CorrectiveBenchmark"), forget)
            for arm, candidates in unlearners.items():
                _, model = choose(candidates, spoiled, forget, retain, labels, seed=seed)
                rows.append({"arm": arm, "gamma": gamma, **self.report(model, found, subject.test)})
        return rows

    def report(self, model: nn.Module, found: Manipulated, test: Data) -> dict[str, float]:
        """``corrective_report`` on ``test``."""
        target = found.target if found.kind == "patch" else None
        return corrective_report(model, found.affected(test), found.clean(test), target)


def true_labels(train: Data, part: Data) -> Int[Tensor, " n"]:
    """The labels in ``train`` of the samples of ``part``. Raises InputError where one is not in it."""
    order = train.index.argsort()
    rows = order[torch.searchsorted(train.index[order], part.index).clamp_max(len(order) - 1)]
    if not torch.equal(train.index[rows], part.index):
        raise InputError(f"true labels: some samples are not in {train.name!r}; expected a part of it")
    return train.y[rows]
