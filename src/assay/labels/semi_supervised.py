"""The contract of trainers that also learn from samples without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.labels.rand_augment import RandAugment
from assay.labels.views import Shift
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng
from assay.training import State, Trainer, fit
from assay.training.engine import Augment

TRUTH = "truth"  # a field of the unlabelled data with their classes, which is logged against and never learnt from


@dataclass(frozen=True)
class Unlabelled:
    """Some of the unlabelled samples: inputs x (b, ...), their positions among the ``pool``, and their names."""

    x: Tensor
    rows: Int[Tensor, " b"]
    index: Int[Tensor, " b"]
    pool: int
    truth: Int[Tensor, " b"] | None = None


@dataclass(frozen=True, kw_only=True)
class SemiSupervised(Trainer):
    """``fit(model, data, *, seed, unlabelled=None) -> model``, ``data`` being labelled and ``unlabelled`` not.

    An epoch is a pass over the labelled data. With each batch of them come ``mu`` times as many unlabelled samples
    (all of them where there are fewer), drawn at each step anew and without replacement; their labels are not read.
    Absent, the labelled samples serve as unlabelled ones too. ``weak(x, draws)`` makes a view of either kind. A
    subclass states its ``loss``; ``plain()`` is supervised training on the labelled data with the same plan. What
    each step used is in the state's log; where the unlabelled data have a field "truth" of classes, so is how much of
    it was right. The plan's defaults are those of every trainer; papers on images train far longer and return an
    average of the weights (``ema=0.999``). A truth of -1 is a class that is not among the labelled ones: no prediction
    is right. InputError for data that cannot be used.
    """

    contract: ClassVar[bool] = True

    mu: int = 7
    weak: Augment = Shift()

    def __post_init__(self) -> None:
        if self.mu < 1:
            raise InputError(f"{type(self).__name__}: mu={self.mu}; expected at least 1")

    def loss(self, model: nn.Module, labelled: Batch, unlabelled: Unlabelled, state: State) -> Float[Tensor, ""]:
        """The loss of one labelled and one unlabelled batch."""
        raise TypeError(f"{type(self).__name__} states no loss")

    def start(self, model: nn.Module, data: Data, seed: int) -> nn.Module:
        """What is trained: the model, or a network around it."""
        return model

    def finish(self, trained: nn.Module) -> nn.Module:
        """The model again, out of what was trained."""
        return trained

    def view(self, name: str, augment: Augment, x: Tensor, index: Tensor, state: State) -> Tensor:
        """A view of each sample that ``index`` names, by random numbers of its own at this step."""
        return augment(x, state.draws(name, index))

    def drawn(self, pool: Data, batch: Batch, state: State) -> Unlabelled:
        """The unlabelled samples of this step."""
        g = torch_rng(state.seed, "unlabelled", state.step)
        rows = torch.randperm(len(pool), generator=g)[: self.mu * len(batch.y)]
        device = batch.x.device
        truth = pool.fields[TRUTH][rows].to(device) if TRUTH in pool.fields else None
        return Unlabelled(pool.x[rows].to(device), rows.to(device), pool.index[rows].to(device), len(pool), truth)

    def checked(self, data: Data, unlabelled: Data | None) -> Data:
        """The unlabelled data, fit to be used beside ``data``."""
        where, pool = type(self).__name__, data if unlabelled is None else unlabelled
        check_inputs(where, data.x, data.y, data.bounds)
        check_inputs(where, pool.x, bounds=pool.bounds)
        if len(pool) < 2 or pool.shape != data.shape:
            raise InputError(
                f"{where}: {len(pool)} unlabelled samples of shape {pool.shape}; expected at least 2 of {data.shape}"
            )
        return pool

    def fit(
        self, model: nn.Module, data: Data, *, seed: int, unlabelled: Data | None = None, **options: Any
    ) -> nn.Module:
        pool = self.checked(data, unlabelled)

        def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
            return self.loss(net, batch, self.drawn(pool, batch, state), state)

        start = self.start(model, data, seed)
        return self.finish(fit(start, data, objective, self.plan(), seed=seed, **options)).eval()


@dataclass(frozen=True, kw_only=True)
class Consistency(SemiSupervised):
    """The prediction on a weak view as the target of the strong view, where it is certain enough.

    L = CE(labelled) + ``weight`` x (1/b) sum_i certain_i CE(strong_i, argmax q_i), q_i the softmax on the weak view
    of unlabelled sample i, without gradient; the mean is over all b of them. One pass of the network sees labelled,
    weak and strong views together. A subclass says which predictions are ``certain``.
    """

    contract: ClassVar[bool] = True

    strong: Augment = RandAugment()
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight < float("inf"):
            raise InputError(f"{type(self).__name__}: weight={self.weight}; expected a finite number >= 0")

    def outputs(self, model: nn.Module, x: Tensor, strong: int) -> tuple[Tensor, Tensor]:
        """Logits of ``x``, and what else the method reads from its last ``strong`` rows."""
        logits = model(x)
        return logits, logits[-strong:]

    def targets(self, logits: Float[Tensor, "b c"], state: State) -> Float[Tensor, "b c"]:
        """The distributions q of the weak views."""
        return logits.softmax(1)

    def certain(self, q: Float[Tensor, "b c"], unlabelled: Unlabelled, state: State) -> Bool[Tensor, " b"]:
        """Which of the predictions are learnt from."""
        raise TypeError(f"{type(self).__name__} does not say which predictions are certain")

    def consistency(self, logits: Float[Tensor, "b c"], q: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        """The cross-entropy of each strong view under its target."""
        return F.cross_entropy(logits, q.argmax(1), reduction="none")

    def further(
        self, q: Tensor, certain: Tensor, strong: Tensor, extra: Tensor, unlabelled: Unlabelled, state: State
    ) -> Float[Tensor, ""]:
        """What the method adds to the loss."""
        return strong.new_zeros(())

    def loss(self, model: nn.Module, labelled: Batch, unlabelled: Unlabelled, state: State) -> Float[Tensor, ""]:
        n, b = len(labelled.y), len(unlabelled.rows)
        views = (
            self.view("labelled", self.weak, labelled.x, labelled.index, state),
            self.view("weak", self.weak, unlabelled.x, unlabelled.index, state),
            self.view("strong", self.strong, unlabelled.x, unlabelled.index, state),
        )
        logits, extra = self.outputs(model, torch.cat(views), b)
        known, weak, strong = logits.split((n, b, b))
        with torch.no_grad():
            q = self.targets(weak.detach(), state)
            certain = self.certain(q, unlabelled, state)
        state.log.append({"step": state.step, **_counts(q, certain, unlabelled)})
        unsure = (self.consistency(strong, q) * certain).mean()
        added = self.further(q, certain, strong, extra, unlabelled, state)
        return F.cross_entropy(known, labelled.y) + self.weight * unsure + added


def _counts(q: Tensor, certain: Tensor, unlabelled: Unlabelled) -> dict[str, float]:
    """How many of the unlabelled samples are certain, and of these how many right where the truth is known."""
    found = {"seen": float(len(q)), "certain": float(certain.sum())}
    if unlabelled.truth is not None:
        found["certain_right"] = float(((q.argmax(1) == unlabelled.truth) & certain).sum())
    return found


def decayed(state: State, name: str, value: Tensor, start: Tensor, momentum: float) -> Tensor:
    """Move the running average kept under ``name``, which begins at ``start``, to ``value`` and return it."""
    moved = momentum * state.memory.get(name, start) + (1 - momentum) * value
    state.memory[name] = moved
    return moved
