"""PubDef: training against transfer attacks from public models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks import PGD, Linf
from assay.attacks.base import Attack
from assay.data import Batch, Data
from assay.defenses.adv_store import AdvStore, generate
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.training import State, Trainer, fit
from assay.training.engine import Augment

MODES = ("random", "all", "topk", "dynamic")


@dataclass(frozen=True, kw_only=True)
class PubDef(Trainer):
    """Cross-entropy on clean inputs and on stored adversarial examples of public models (Sitawarin et al., 2023,
    arXiv:2310.17645): w_0 L(f(x), y) + sum over pairs (s, a) of source and attack of w_sa L(f(x_sa), y).

    ``sources`` are the public models by name, ``attack`` what is run on each: PGD with 10 steps. The examples,
    ``copies`` of each, are made once on the training data and rounded to 8 bits. No source given: the model that
    training starts from, frozen. w_0 is ``clean_weight``; how the rest is spread over the P pairs is the ``mode``:

    - "random": each sample's example is drawn anew over pairs and copies, and has all of it.
    - "all": each pair has (1 - w_0) / P.
    - "topk": of each sample the ``k`` pairs of highest loss; the weights of "all" are scaled to sum to 1 with w_0.
    - "dynamic": in proportion to a running average of the pair's mean loss, or of its error rate where ``track`` is
      "error"; it starts at 1 / (P + 1) and moves by ``alpha`` (the official code: 0.99).

    Clean and adversarial inputs pass the network in one batch. ``augment`` is applied to both alike, with the same
    draws, after the perturbation. The paper starts from a model trained normally, with 50 epochs of SGD at 0.1.
    Modes and weights follow the official code. InputError for other options, for ``k`` not below P, and for a store
    that does not hold the training data.
    """

    sources: Mapping[str, nn.Module] = field(default_factory=dict)
    attack: Attack = PGD(ball=Linf(8 / 255), steps=10, step_size=1 / 4, early_stop=False)
    mode: Literal["random", "all", "topk", "dynamic"] = "random"
    copies: int = 1
    clean_weight: float = 0.5
    k: int | None = None
    alpha: float = 0.1
    track: Literal["loss", "error"] = "loss"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown("mode of PubDef", str(self.mode), MODES)
        if self.track not in ("loss", "error"):
            raise unknown("track of PubDef", str(self.track), ("loss", "error"))
        if self.copies < 1 or not 0 < self.clean_weight < 1 or not 0 < self.alpha <= 1:
            found = f"copies={self.copies}, clean_weight={self.clean_weight}, alpha={self.alpha}"
            raise InputError(f"PubDef: {found}; expected copies >= 1, a weight in (0, 1) and alpha in (0, 1]")
        if (self.mode == "topk") != (self.k is not None) or (self.k is not None and self.k < 1):
            raise InputError(f"PubDef: mode {self.mode!r} with k={self.k}; expected k >= 1 with 'topk' only")

    def store(self, model: nn.Module, data: Data, *, seed: int) -> AdvStore:
        """The examples that training uses, of the sources on ``data``."""
        attack = replace(self.attack, bounds=data.bounds)
        return generate(self.sources or {"start": model}, {"attack": attack}, data, seed=seed, copies=self.copies)

    def fit(
        self,
        model: nn.Module,
        data: Data,
        *,
        seed: int,
        store: AdvStore | None = None,
        augment: Augment | None = None,
        **options: Any,
    ) -> nn.Module:
        """A trained copy of ``model``. ``store``: examples made before, in place of those of the sources."""
        check_inputs("PubDef", data.x, data.y, data.bounds)
        store = self.store(model, data, seed=seed) if store is None else store
        store.check(data)
        if self.k is not None and self.k >= len(store.pairs):
            raise InputError(f"PubDef: k={self.k} of {len(store.pairs)} pairs; expected fewer than there are")

        def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
            return self.loss(net, batch, state, store, augment)

        return fit(model, data, objective, self.plan(), seed=seed, **options)

    def loss(
        self, net: nn.Module, batch: Batch, state: State, store: AdvStore, augment: Augment | None = None
    ) -> Float[Tensor, ""]:
        """The loss of one batch."""
        views = [batch.x, *self.examples(batch, state, store)]
        if augment is not None:
            views = [augment(v, state.draws("augment", batch.index)) for v in views]
        logits = net(torch.cat(views))
        y = batch.y.repeat(len(views))
        losses = F.cross_entropy(logits, y, reduction="none").view(len(views), -1)
        wrong = (logits.detach().argmax(1) != y).float().view(len(views), -1)
        return self.mixed(losses, wrong, state)

    def examples(self, batch: Batch, state: State, store: AdvStore) -> list[Float[Tensor, "b ..."]]:
        """The examples of the batch that count: one view in mode "random", one a pair otherwise."""
        rows, draws = state.rows(batch.index).cpu(), state.draws("pubdef", batch.index.cpu())
        copy = draws.integers(store.copies, 1)[:, 0]
        if self.mode == "random":
            views = [store.take(draws.integers(len(store.pairs), 1)[:, 0], copy, rows)]
        else:
            views = [store.take(torch.full_like(copy, p), copy, rows) for p in range(len(store.pairs))]
        return [v.to(batch.x) for v in views]

    def mixed(self, losses: Float[Tensor, "v b"], wrong: Float[Tensor, "v b"], state: State) -> Float[Tensor, ""]:
        """The weighted loss of views: the clean one and those of the pairs; ``wrong`` is 1 where a view is mistaken."""
        clean, pairs = losses[0], losses[1:]
        if self.mode == "topk":
            share = (1 - self.clean_weight) / len(pairs)
            top = pairs.topk(self.k or 1, 0).values.sum(0)
            return ((self.clean_weight * clean + share * top) / (self.clean_weight + share * (self.k or 1))).mean()
        weights = torch.full_like(pairs[:, 0], (1 - self.clean_weight) / len(pairs))
        if self.mode == "dynamic":
            weights = self.weights(pairs if self.track == "loss" else wrong[1:], state)
        return self.clean_weight * clean.mean() + (weights * pairs.mean(1)).sum()

    def weights(self, level: Float[Tensor, "p b"], state: State) -> Float[Tensor, " p"]:
        """The weights of the pairs, after moving their averages by the means of ``level``; they sum to 1 - w_0."""
        now = level.detach().mean(1)
        average = state.memory.get("pubdef", torch.full_like(now, 1 / (len(now) + 1)))
        state.memory["pubdef"] = average = (1 - self.alpha) * average + self.alpha * now
        # Where no pair has any loss left, all are alike.
        spread = average + torch.finfo(average.dtype).tiny
        return (1 - self.clean_weight) * spread / spread.sum()
