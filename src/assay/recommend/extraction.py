"""Few-shot extraction of a sequential recommender from its lists."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch
from assay.recommend.augmentation import AugmentationGeneration, learn_user
from assay.recommend.autoregressive_generation import AutoregressiveGeneration
from assay.recommend.base import Extraction, Extractor
from assay.recommend.bert4rec import BERT4Rec
from assay.recommend.few_shot import FewShot, few_shot_counts
from assay.recommend.generation import Answers, Asked, Generation
from assay.recommend.interaction_sampler import ProbabilisticInteractionSampler
from assay.recommend.items import (
    Victim,
    agreement_at_k,
    allowed,
    check_sequences,
    contained,
    prefixes,
    top_items,
    windows,
)
from assay.recommend.narm import NARM
from assay.recommend.random_generation import RandomGeneration
from assay.recommend.ranking_loss import ListRankingLoss, outside
from assay.recommend.recommender import Recommender, sequence_data
from assay.recommend.repair_loss import BidirectionalRepairLoss
from assay.recommend.sasrec import SASRec
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of
from assay.runtime.random import derive, seeded, torch_rng
from assay.subject.access import Oracle
from assay.training import Plan, State, fit

SURROGATES: dict[str, type[Recommender]] = {"sasrec": SASRec, "narm": NARM, "bert4rec": BERT4Rec}
GENERATIONS = ("augmentation", "uniform-list", "autoregressive", "random", "none")


@dataclass(frozen=True, kw_only=True)
class FewShotExtraction(Extractor):
    """A recommender copied from its lists, by made-up rows and repaired lists (Zhang and Liu, 2024, arXiv:2411.11677).

    The victim is asked after every item of the few real sequences and of ``n_generate`` made-up ones of ``max_len``
    items, one query each. A surrogate is trained on the answers by the ranking loss plus ``lam`` times the
    bidirectional repair of the first ``K`` items (0: without), AdamW, ``steps`` batches of rows, every prefix of a row
    at once; of the checks once an ``every`` steps on a held-out tenth of the real rows the best one counts.

    ``generation``: "augmentation" is the paper's; "uniform-list" the same with the sampler's attention off;
    "autoregressive" and "random" need no data; "none" makes up nothing. ``surrogate`` names a class or is a Recommender
    whose start is used. Fields with no number in the paper's summaries (lam, sizes) are reconstructions. ``ratings``,
    one a listed item, and ``meta`` (n_items + 1, g) serve the sampler; popularity and nothing stand in for them.
    ``repeats`` says that the victim's lists may name items of the sequence; without it the surrogate's do not either.
    """

    n_items: int
    k: int = 100
    max_len: int = 50
    n_generate: int = 5000
    lam: float = 1.0
    margin: float = 0.5
    K: int = 10
    form: Literal["pair", "threshold"] = "pair"
    surrogate: str | Recommender = "sasrec"
    generation: Literal["augmentation", "uniform-list", "autoregressive", "random", "none"] = "augmentation"
    steps: int = 2000
    every: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01
    user_epochs: int = 20
    repeats: bool = False

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not 1 <= self.K <= self.k < self.n_items:
            raise InputError(f"{where}: K {self.K}, k {self.k}, {self.n_items} items; expected 1 <= K <= k < items")
        if min(self.steps, self.every, self.batch_size, self.user_epochs) < 1 or self.n_generate < 0 or self.lam < 0:
            raise InputError(f"{where}: expected steps, every, batch_size, user_epochs >= 1 and n_generate, lam >= 0")
        if not 2 <= self.max_len < self.n_items:
            raise InputError(f"{where}: max_len {self.max_len}; expected 2 to the number of items")
        if self.generation not in GENERATIONS:
            raise unknown(f"generation of {where}", str(self.generation), GENERATIONS)
        given = self.surrogate
        if isinstance(given, str) and given not in SURROGATES:
            raise unknown(f"surrogate of {where}", given, SURROGATES)
        if isinstance(given, Recommender) and (given.n_items != self.n_items or given.length < self.max_len):
            found = f"{given.n_items} items, length {given.length}"
            raise InputError(f"{where}: the surrogate has {found}; expected {self.n_items}, at least {self.max_len}")

    def repair_loss(self) -> BidirectionalRepairLoss:
        """The loss on the difference of the lists."""
        return BidirectionalRepairLoss(self.margin, self.K, self.form)

    def fit(
        self,
        victim: Victim | Oracle,
        few_shot: list[Int[Tensor, " t"]],
        *,
        seed: int,
        ratings: list[Float[Tensor, " t"]] | None = None,
        meta: Float[Tensor, "v g"] | None = None,
    ) -> Extraction:
        """The copy, what was made up, the queries, and the agreement on the way."""
        where = type(self).__name__
        check_sequences(where, few_shot, self.n_items)
        if ratings is not None and [len(r) for r in ratings] != [len(s) for s in few_shot]:
            raise InputError(f"{where}: ratings of other lengths; expected one rating for each item of each sequence")
        asked = Asked(victim, self.n_items, self.k)
        before = asked.oracle.queries
        real = asked.every_prefix(windows(few_shot, self.max_len))
        if not self.repeats and bool(contained(real.lists[real.rows > 0], prefixes(real.rows)).any()):
            raise InputError(f"{where}: the victim lists items of the sequence; expected none, or repeats=True")
        counts = few_shot_counts(few_shot, self.n_items, ratings)
        made = self.generate(asked, real, counts, meta, seed=seed)
        surrogate, history = self.distil(real, made, seed=seed)
        return Extraction(surrogate, made, asked.oracle.queries - before, history)

    def generate(
        self, asked: Asked, real: Answers, counts: FewShot, meta: Float[Tensor, "v g"] | None, *, seed: int
    ) -> Answers | None:
        """The made-up rows with the victim's lists."""
        if self.generation == "none" or not self.n_generate:
            return None
        chosen: Generation
        if self.generation in ("augmentation", "uniform-list"):
            with seeded(seed, "sampler"):
                sampler = ProbabilisticInteractionSampler(self.n_items, self.max_len, meta=meta)
            plan = Plan(epochs=self.user_epochs, batch_size=self.batch_size, optimizer="adamw", lr=3e-3)
            user = learn_user(sampler, real, plan, seed=derive(seed, "user"))
            chosen = AugmentationGeneration(user=user, attentive=self.generation == "augmentation")
        else:
            chosen = RandomGeneration() if self.generation == "random" else AutoregressiveGeneration()
        return chosen.grow(asked, counts, self.n_generate, self.max_len, seed=derive(seed, "generate"))

    def distil(self, real: Answers, made: Answers | None, *, seed: int) -> tuple[Recommender, tuple[float, ...]]:
        """A surrogate trained on the answers, at its best on the held-out rows, and its agreement at every check."""
        order = torch.randperm(len(real), generator=torch_rng(seed, "held out"))
        held, kept = real[order[: max(len(real) // 10, 1)]], real[order[max(len(real) // 10, 1) :]]
        answers = kept if made is None else made if not len(kept) else kept.joined(made)
        if not len(answers):
            raise InputError(f"{type(self).__name__}: one row and nothing made up; expected more to train on")
        with seeded(seed, "surrogate"):
            named = isinstance(self.surrogate, str)
            start = SURROGATES[self.surrogate](self.n_items, self.max_len) if named else self.surrogate  # type: ignore[index, call-arg]
        assert isinstance(start, Recommender)
        plan = Plan(
            steps=self.steps,
            batch_size=self.batch_size,
            optimizer="adamw",
            lr=self.lr,
            weight_decay=self.weight_decay,
        )
        checks = _Best(self, held)
        data = sequence_data(answers.rows, self.n_items, lists=answers.lists)
        surrogate = fit(start, data, self.objective(), plan, seed=derive(seed, "distil"), hooks=(checks,))
        assert isinstance(surrogate, Recommender)
        surrogate.load_state_dict(checks.state)
        return surrogate, tuple(checks.history)

    def objective(self) -> _Distillation:
        """The loss of a batch of rows."""
        return _Distillation(self)

    def agreement(self, model: Recommender, answers: Answers) -> float:
        """The mean agreement of the first K items with the victim's over all prefixes of the rows."""
        device = device_of(model)
        with torch.no_grad():
            scores, lists = self.after_prefixes(model, answers.rows.to(device), answers.lists.to(device))
        return float(agreement_at_k(top_items(scores, self.K), lists, self.K).mean())

    def after_prefixes(
        self, model: Recommender, rows: Int[Tensor, "n l"], lists: Int[Tensor, "n l k"]
    ) -> tuple[Float[Tensor, "m v"], Int[Tensor, "m k"]]:
        """Scores after every prefix, at minus infinity what is not to be recommended, and the victim's lists there."""
        known = rows > 0
        scores = model.score(model.states(rows)[known])
        return (scores if self.repeats else allowed(scores, prefixes(rows))), lists[known]


class _Distillation:
    """ranking + lam * repair over all prefixes of a batch of rows."""

    def __init__(self, method: FewShotExtraction) -> None:
        self.method, self.ranking, self.repair = method, ListRankingLoss(), method.repair_loss()

    def __call__(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, ""]:
        assert isinstance(model, Recommender)
        rows = batch.fields["rows"]
        scores, lists = self.method.after_prefixes(model, rows, batch.fields["lists"])
        count = model.n_items - lists.shape[1]
        ranks = state.draws("negatives", batch.index).integers(count, *batch.fields["lists"].shape[1:])
        loss = self.ranking(scores, lists, outside(lists, ranks.to(rows.device)[rows > 0]))
        return loss + self.method.lam * self.repair(scores, lists) if self.method.lam else loss


class _Best:
    """A hook that keeps the weights of the check that agreed best."""

    def __init__(self, method: FewShotExtraction, held: Answers) -> None:
        self.method, self.held = method, held
        self.history: list[float] = []
        self.state: Mapping[str, Tensor] = {}

    def __call__(self, models: Mapping[str, nn.Module], state: State) -> None:
        if state.step % self.method.every and state.step < state.total:
            return
        model = models["model"]
        assert isinstance(model, Recommender)
        model.eval()
        self.history.append(self.method.agreement(model, self.held))
        model.train()
        if self.history[-1] > max(self.history[:-1], default=-1.0):
            self.state = copy.deepcopy(model.state_dict())
