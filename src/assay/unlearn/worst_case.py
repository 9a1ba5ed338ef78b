"""Forget sets that are hardest to forget, and the test of unlearners on them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict
from assay.runtime.random import derive, torch_rng
from assay.subject import Subject, fresh
from assay.training import Plan, State, fit
from assay.unlearn.base import Unlearner
from assay.unlearn.capped_simplex import project_capped_simplex
from assay.unlearn.evaluation_relearn import right
from assay.unlearn.evaluation_rows import mia_efficacy
from assay.unlearn.forget_sets import random_set
from assay.unlearn.retrain import Retrain
from assay.unlearn.sign_sgd import SignSGD

Inner = Callable[[nn.Module, Data, Tensor, int], nn.Module]
Parts = tuple[Data, Data]
MEASURES = ("ua", "mia", "ra", "ta")
AUTO = 5.0


@dataclass(frozen=True)
class ForgetSet:
    """``indices_`` (m,): positions in the data, or classes, ascending. ``weights_`` (n,): the relaxed choice, in [0, 1]
    with sum m. ``history_``: the upper-level loss of every round, before its step.
    """

    level: Literal["sample", "class"]
    indices_: Int[Tensor, " m"]
    weights_: Float[Tensor, " n"]
    history_: Sequence[float]

    def parts(self, data: Data) -> Parts:
        """What is forgotten of the ``data`` that was chosen from, and the rest."""
        place = data.y if self.level == "class" else torch.arange(len(data))
        chosen = torch.isin(place, self.indices_)
        return data[chosen], data[~chosen]


@dataclass(frozen=True, kw_only=True)
class WorstCaseForgetSet:
    """The ``m`` samples or classes that are predicted best after they were unlearned (Fan et al., 2024,
    arXiv:2403.07362, "worst-case forget set").

    min over w in [0, 1]^n, sum w = m, of sum_i w_i l_i(theta(w)) + ``gamma`` ||w||^2, where theta(w) is what minimising
    sum_i (1 - w_i) l_i from the model's weights (``reinit``: from new ones) leads to. A *small* loss on what was left
    out is the worst case: it is still known. Each of ``rounds`` starts anew, trains ``inner_epochs`` at ``inner_lr``,
    takes the losses l_i of all samples in evaluation mode (classes: their means), and moves w by -``w_lr`` (l + 2 gamma
    w), projected (see project_capped_simplex); every ``binarise``-th round leaves the m largest at 1, the others at 0.
    w starts at a random choice; the m largest are returned.

    The step is the whole gradient only with ``inner_opt`` "signsgd": then dtheta / dw = 0 almost everywhere. Of it are
    ``inner_momentum``, ``inner_decay`` and ``inner_rand_zero`` (the official code's 0.9, 5e-4 and true; see SignSGD).
    With "sgd" and "adam" the implicit term is dropped. ``unlearner(model, data, w, seed) -> model`` stands in for the
    training; w (n,) says how far each sample is left out. ``w_lr`` "auto" is 5 / the mean loss of the first round: w
    has to concentrate within the rounds (the official 0.01 takes many more). ``direction`` "easiest" turns the step
    round, as the official code does. Losses are matched by sample, without augmentation.

    ``fit(model, data, *, seed) -> ForgetSet``. Raises InputError for m outside [1, n - 1], a class without samples
    where classes are chosen, and losses that are not finite; warns where a class is left without samples.
    """

    m: int
    level: Literal["sample", "class"] = "sample"
    rounds: int = 10
    unlearner: Inner | None = None
    inner_epochs: int = 2
    inner_lr: float = 1e-3
    inner_opt: Literal["signsgd", "sgd", "adam"] = "signsgd"
    inner_momentum: float = 0.0
    inner_decay: float = 0.0
    inner_rand_zero: bool = False
    batch_size: int = 256
    w_lr: float | Literal["auto"] = "auto"
    gamma: float = 0.0
    binarise: int = 20
    direction: Literal["hardest", "easiest"] = "hardest"
    reinit: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("level", ("sample", "class")),
            ("inner_opt", ("signsgd", "sgd", "adam")),
            ("direction", ("hardest", "easiest")),
        ):
            if getattr(self, name) not in choices:
                raise unknown(f"{name} of WorstCaseForgetSet", str(getattr(self, name)), choices)
        if self.unlearner is not None and not callable(self.unlearner):
            kind = type(self.unlearner).__name__
            raise InputError(f"WorstCaseForgetSet: unlearner is {kind}; expected a function of model, data, w, seed")
        if self.inner_opt != "signsgd" and (self.inner_momentum or self.inner_decay or self.inner_rand_zero):
            raise InputError(
                f"WorstCaseForgetSet: inner_momentum={self.inner_momentum}, inner_decay={self.inner_decay}, "
                f"inner_rand_zero={self.inner_rand_zero} with {self.inner_opt!r}; expected them with 'signsgd' alone"
            )
        rate = 1.0 if self.w_lr == "auto" else self.w_lr
        whole = (
            isinstance(self.m, Integral)
            and min(self.m, self.rounds, self.batch_size, self.binarise) >= 1
            and self.inner_epochs >= 0
        )
        if not (whole and self.inner_lr > 0 and rate > 0 and math.isfinite(self.gamma) and self.gamma >= 0):
            raise InputError(
                f"WorstCaseForgetSet: m={self.m}, rounds={self.rounds}, inner_epochs={self.inner_epochs}, "
                f"inner_lr={self.inner_lr}, w_lr={self.w_lr}, gamma={self.gamma}, binarise={self.binarise}; "
                "expected a whole m, rounds, batch_size, binarise >= 1, inner_epochs, gamma >= 0, rates > 0"
            )
        self._sign([torch.zeros(1)])

    def fit(self, model: nn.Module, data: Data, *, seed: int) -> ForgetSet:
        """The forget set, chosen from ``data`` for ``model``."""
        n = self._check(data)
        w = self._largest(torch.rand(n, generator=torch_rng(seed, "start"), dtype=torch.float64))
        history, rate = list[float](), self.w_lr
        for k in range(self.rounds):
            left_out = w[data.y] if self.level == "class" else w
            losses = self.losses(self.unlearned(model, data, left_out, derive(seed, "round", k)), data, k, seed)
            history.append(float(w @ losses + self.gamma * w.square().sum()))
            if rate == "auto":
                rate = AUTO / max(float(losses.mean()), 1e-12)
            step = rate * (losses + 2 * self.gamma * w)
            w = self.project(w - step if self.direction == "hardest" else w + step)
            if (k + 1) % self.binarise == 0:
                w = self._largest(w)
        chosen = ForgetSet(self.level, self._largest(w).nonzero()[:, 0], w, history)
        if len(chosen.parts(data)[1].y.unique()) < len(data.y.unique()) and self.level == "sample":
            warnings.warn("WorstCaseForgetSet: a class is left without samples", RuntimeWarning, stacklevel=2)
        return chosen

    def project(self, a: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The nearest w in [0, 1]^n with sum m."""
        return project_capped_simplex(a, self.m)

    def losses(self, model: nn.Module, data: Data, turn: int, seed: int) -> Float[Tensor, " n"]:
        """The cross-entropy of each sample, or its mean over each class, in round ``turn``; float64."""
        each = F.cross_entropy(predict(model, data.x).double(), data.y, reduction="none")
        if self.level == "sample":
            return each
        return torch.bincount(data.y, each, len(data.classes)) / torch.bincount(data.y, minlength=len(data.classes))

    def unlearned(self, model: nn.Module, data: Data, w: Float[Tensor, " n"], seed: int) -> nn.Module:
        """The model after the lower level, each sample left out as far as ``w`` (n,) says."""
        start = fresh(model, seed=seed) if self.reinit else model
        if self.unlearner is not None:
            return self.unlearner(start, data, w, seed)

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            each = F.cross_entropy(model(batch.x), batch.y, reduction="none")
            return ((1 - w[state.rows(batch.index).cpu()]).to(each) * each).sum()

        return fit(start, data, objective, self._plan(), seed=seed)

    def _sign(self, parameters: Sequence[Tensor]) -> SignSGD:
        return SignSGD(parameters, self.inner_lr, self.inner_momentum, self.inner_decay, self.inner_rand_zero)

    def _plan(self) -> Plan:
        sign = self.inner_opt == "signsgd"
        return Plan(
            epochs=self.inner_epochs,
            batch_size=self.batch_size,
            optimizer=self._sign if sign else self.inner_opt,
            lr=self.inner_lr,
            schedule="constant",
        )

    def _largest(self, w: Tensor) -> Tensor:
        """1 for the m largest, of equals the first, 0 for the others."""
        return torch.zeros_like(w).index_fill_(0, w.argsort(descending=True, stable=True)[: self.m], 1)

    def _check(self, data: Data) -> int:
        """How many samples or classes there are to choose from."""
        check_inputs("WorstCaseForgetSet", data.x, data.y, data.bounds)
        check_labels("WorstCaseForgetSet", data.y, len(data), len(data.classes))
        n = len(data.classes) if self.level == "class" else len(data)
        if self.level == "class" and len(data.y.unique()) < n:
            raise InputError(f"WorstCaseForgetSet: {data.name!r} lacks samples of a class; expected some of each")
        if self.m >= n:
            raise InputError(f"WorstCaseForgetSet: m={self.m} of {n}; expected 1 to {n - 1}")
        return n


def random_forget_sets(train: Data, m: int, count: int, *, seed: int = 0) -> list[Parts]:
    """``count`` independent random choices of ``m`` samples to forget, each with the rest."""
    if count < 1:
        raise InputError(f"random forget sets: count={count}; expected at least 1")
    return [random_set(train, m, seed=derive(seed, "random forget set", k)) for k in range(count)]


def stress_test(
    unlearners: Mapping[str, Unlearner], subject: Subject, sets: Mapping[str, Parts], *, seed: int
) -> list[dict[str, Any]]:
    """One row for retraining, and one for each of ``unlearners``, on every named forget set (with what is retained).

    Shares in [0, 1]: "ua", 1 - accuracy on what is forgotten; "mia", what of it an attack calls outsiders (see
    mia_efficacy); "ra" and "ta", accuracies on what is retained and on test data; "gap", the mean absolute distance of
    the four from retraining, which is the arm "retrain". Raises AccessError without a recipe.
    """
    rows: list[dict[str, Any]] = []
    for name, (forget, retain) in sets.items():
        reference: dict[str, float] | None = None
        for arm, unlearner in {"retrain": Retrain(), **unlearners}.items():
            model = unlearner.forget(subject, forget, retain, seed=seed)
            outside, n = mia_efficacy(model, forget, retain, subject.test)
            found = {"ua": 1 - right(model, forget), "mia": outside / n}
            found |= {"ra": right(model, retain), "ta": right(model, subject.test)}
            reference = found if reference is None else reference
            gap = sum(abs(found[k] - reference[k]) for k in MEASURES) / len(MEASURES)
            rows.append({"set": name, "unlearner": arm, **found, "gap": gap})
    return rows
