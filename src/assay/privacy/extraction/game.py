"""Data-free extraction as a game of two players in the training engine: generators against clones."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.privacy.extraction.base import CloneEnsemble, Evaluate, ExtractionResult, Extractor, Victim
from assay.privacy.extraction.generator_ensemble import (
    GeneratorEnsemble,
    balance_loss,
    clone_probs,
    disagreement_loss,
    grey,
)
from assay.privacy.extraction.growing_classifier import GrowingClassifier
from assay.privacy.extraction.hard_sample_replay import HardSampleReplay
from assay.privacy.extraction.selective_query import difficulty
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.random import derive, seeded, torch_rng
from assay.subject.access import Access, Oracle
from assay.subject.subject import fresh
from assay.training.engine import Plan, Player, State, fit_players

DROPS = (0.4, 0.8)  # of the budget, where the clones' learning rate falls


@dataclass(frozen=True, kw_only=True)
class _Dropping(Plan):
    """The rate times 0.3 at 0.4 and again at 0.8 of the steps, as DisGUIDE's run scripts have it."""

    def factor(self, step: int, total: int) -> float:
        return 0.3 ** sum(step >= part * total for part in DROPS)


@dataclass(frozen=True, kw_only=True)
class DataFreeExtractor(Extractor):
    """Generators make the queries; clones learn from the answers, and tell the generators where they disagree.

    An iteration: one step of every generator; then ``fresh`` batches of ``batch`` queries, each with a step of the
    clones; then ``replay`` steps on batches from the memory. A subclass states the generators' loss, which candidates
    are asked (of ``pool_factor`` times as many), and the weights of the memory. ``n_generators`` of width ``width``
    and code length ``nz`` by Adam at ``lr_gen``; ``n_clones`` by SGD at ``lr_clone``, momentum 0.9, weight decay 5e-4,
    times 0.3 at 0.4 and 0.8 of the budget; ``clip`` bounds the norm of its gradient, for clones without normalisation.
    ``grayscale_every`` > 0: every so many queries have all channels copied from one that is drawn. Further options,
    shapes and errors: see Extractor.
    """

    contract: ClassVar[bool] = True

    n_generators: int = 1
    n_clones: int = 2
    nz: int = 256
    width: int = 64
    batch: int = 64
    pool_factor: int = 1
    fresh: int = 1
    replay: int = 3
    replay_size: int = 100_000
    gamma: float = 0.0
    floor: float = 0.05
    lam_balance: float = 0.2
    lr_clone: float = 0.1
    lr_gen: float = 1e-4
    clip: float | None = None
    grayscale_every: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = (self.n_generators, self.n_clones, self.nz, self.width, self.pool_factor, self.fresh, self.replay_size)
        if min(counts) < 1 or self.batch < 2 or self.replay < 0 or self.grayscale_every < 0:
            raise InputError(f"{type(self).__name__}: expected counts of at least 1, batch >= 2, replay >= 0")
        if min(self.lr_clone, self.lr_gen) <= 0 or self.lam_balance < 0 or (self.clip is not None and self.clip <= 0):
            raise InputError(f"{type(self).__name__}: expected learning rates and clip above 0 and lam_balance >= 0")
        HardSampleReplay(1, self.gamma, self.floor)

    @property
    def cost(self) -> int:
        """Queries an iteration."""
        return self.batch * self.fresh

    def made(self, shape: tuple[int, int, int], seed: int) -> GeneratorEnsemble:
        """The generators that a run starts with."""
        return GeneratorEnsemble(shape, self.n_generators, self.nz, self.width, seed=seed)

    def choose(self, probs: Float[Tensor, "p c"], generator: torch.Generator) -> Int[Tensor, " b"]:
        """Which candidates of the pool are asked, by the clones' mean predictions."""
        return torch.arange(self.batch, device=probs.device)

    def generator_loss(self, game: Game, member: nn.Module, clones: list[nn.Module], z: Tensor) -> Tensor:
        """What one generator descends: disagreement and balance (Rosenthal et al., 2023, DisGUIDE, code)."""
        probs = clone_probs(clones, game.grey(member(z)))
        return disagreement_loss(probs) + self.lam_balance * balance_loss(probs)

    def renewals(self, game: Game) -> list[int]:
        """Which generators are begun anew before the next queries."""
        return []

    def extract(
        self,
        victim: Victim | Oracle,
        clone: nn.Module,
        shape: tuple[int, int, int],
        *,
        budget: int,
        seed: int,
        evaluate: Evaluate | None = None,
    ) -> ExtractionResult:
        iterations = budget // self.cost
        if iterations < 1:
            raise InputError(f"{type(self).__name__}: budget is {budget}; expected at least {self.cost}, one iteration")
        oracle = victim if isinstance(victim, Oracle) else Oracle(victim, access=Access.SCORE, budget=budget)
        game = Game(self, oracle, iterations * (self.fresh + self.replay), seed, evaluate, shape)
        still = evaluating(oracle.model) if isinstance(oracle.model, nn.Module) else nullcontext()
        with still, torch.enable_grad():
            trained = fit_players(game.players(clone), game.turns, seed=seed)["clones"]
        game.look(trained, last=True)
        return game.result(trained)


class Game:
    """One extraction while it runs: what was asked and answered, and what the players' objectives share."""

    def __init__(
        self,
        method: DataFreeExtractor,
        oracle: Oracle,
        steps: int,
        seed: int,
        evaluate: Evaluate | None,
        shape: tuple[int, int, int],
    ) -> None:
        self.method, self.oracle, self.seed, self.evaluate, self.shape = method, oracle, seed, evaluate, shape
        self.memory = HardSampleReplay(method.replay_size, method.gamma, method.floor)
        self.history: list[dict[str, float]] = []
        self.labels: list[int] = list(range(method.num_classes or 0))
        self.counts = torch.zeros(0)
        self.since: list[list[int]] = [[] for _ in range(method.n_generators)]
        self.asked_before, self.steps, self.step, self.looked = oracle.queries, steps, 0, 0
        turn = torch.zeros(steps, 1)
        self.turns = Data(turn, torch.zeros(steps, dtype=torch.int64), ("turn", "none"), name="turns")
        self.adam: torch.optim.Optimizer | None = None

    @property
    def queries(self) -> int:
        """Samples asked so far."""
        return self.oracle.queries - self.asked_before

    def random(self, name: str) -> torch.Generator:
        """Random numbers of one use at one step."""
        return torch_rng(self.seed, name, self.step)

    def players(self, clone: nn.Module) -> dict[str, Player]:
        """The generators, which step once an iteration, and the clones, which step at every batch."""
        method = self.method
        seeds = [derive(self.seed, "clone", k) for k in range(method.n_clones)]
        clones = CloneEnsemble([self._clone(clone, s) for s in seeds])
        make = partial(torch.optim.SGD, lr=method.lr_clone, momentum=0.9, weight_decay=5e-4)
        generators = Player(
            model=method.made(self.shape, self.seed),
            objective=self.generators_turn,
            plan=Plan(epochs=1, batch_size=1, optimizer=self._adam, schedule="constant"),
            every=method.fresh + method.replay,
        )
        plan = _Dropping(epochs=1, batch_size=1, optimizer=make, clip=method.clip)
        return {"generators": generators, "clones": Player(model=clones, objective=self.clones_turn, plan=plan)}

    def _adam(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        self.adam = torch.optim.Adam(parameters, self.method.lr_gen)
        return self.adam

    def _clone(self, clone: nn.Module, seed: int) -> nn.Module:
        other = fresh(clone, seed=seed)
        if self.method.num_classes is not None or self.method.soft:
            return other
        body, head = getattr(other, "body", None), getattr(other, "head", None)
        if not isinstance(body, nn.Module) or not isinstance(head, nn.Linear):
            where = f"{type(self.method).__name__}: the clone {type(clone).__name__}"
            raise InputError(f"{where} has no body and linear head; expected both, or num_classes")
        with seeded(seed, "growing head"):
            return GrowingClassifier(body, head.in_features)

    def grey(self, x: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n ch h w"]:
        """Some images with one channel's values in all."""
        channel = int(torch.randint(self.shape[0], (1,), generator=self.random("channel")))
        return grey(x, self.method.grayscale_every, channel)

    def generators_turn(self, models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
        """The sum of the generators' losses; no generator's depends on another."""
        generators, clones = _cast(models)
        self.step = state.step
        with evaluating(clones):
            members = list(clones.members)
            z = [generators.noise(self.method.batch, self.random(f"noise {j}")) for j in range(len(self.since))]
            losses = [
                self.method.generator_loss(self, g, members, n) for g, n in zip(generators.members, z, strict=True)
            ]
        return torch.stack(losses).sum()

    def clones_turn(self, models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
        """The clones' losses on fresh queries, or on a batch of the memory."""
        generators, clones = _cast(models)
        self.step = state.step
        phase = state.step % (self.method.fresh + self.method.replay)
        if phase < self.method.fresh:
            x, answer = self.asked(generators, clones)
            rows = None
        else:
            x, answer, rows = self.memory.sample(self.method.batch, self.random("replay"))
        logits = torch.stack([clone(x) for clone in clones.members])
        if rows is not None:
            self.memory.update(rows, self.hardness(logits, answer))
        return torch.stack([self.clone_loss(each, answer) for each in logits]).sum()

    def asked(self, generators: GeneratorEnsemble, clones: CloneEnsemble) -> tuple[Tensor, Tensor]:
        """A new batch of queries with its answers, which the memory now holds."""
        method = self.method
        self.renew(generators)
        pool, origin = generators.pool(method.batch * method.pool_factor, self.random("pool"))
        pool = self.grey(pool)
        with evaluating(clones), torch.no_grad():
            probs = clones(pool).exp()
        if not torch.isfinite(probs).all():
            where = f"{type(method).__name__}: the clones diverged after {self.queries} queries"
            raise InputError(f"{where}; expected a smaller lr_clone than {method.lr_clone}, or clip")
        rows = method.choose(probs, self.random("choice"))
        x = pool[rows]
        answer = self.indexed(method.ask(self.oracle, x), clones)
        for j, label in zip(origin[rows.cpu()].tolist(), self.decided(answer).tolist(), strict=True):
            self.since[j].append(label)
        with evaluating(clones), torch.no_grad():
            hard = self.hardness(torch.stack([clone(x) for clone in clones.members]), answer)
        self.memory.add(x, answer, hard)
        self.note(difficulty(probs), rows, answer, clones)
        return x, answer

    def renew(self, generators: GeneratorEnsemble) -> None:
        """Begin some generators anew; Adam forgets them."""
        for j in self.method.renewals(self):
            for parameter in generators.renew(j):
                if self.adam is not None:
                    self.adam.state.pop(parameter, None)
            self.since[j] = []

    def indexed(self, answer: Tensor, clones: CloneEnsemble) -> Tensor:
        """Answers in the clones' outputs: labels by the order in which they were first seen, where K is not known."""
        if self.method.soft or self.method.num_classes is not None:
            if not self.labels:
                self.labels = list(range(answer.shape[1]))
            return answer
        self.labels += [label for label in dict.fromkeys(answer.tolist()) if label not in self.labels]
        for k, member in enumerate(clones.members):
            assert isinstance(member, GrowingClassifier)
            member.grow(len(self.labels), self.random(f"grow {k}"))
        known = torch.tensor(self.labels, device=answer.device)
        return (answer[:, None] == known).long().argmax(1)

    @staticmethod
    def decided(answer: Tensor) -> Int[Tensor, " n"]:
        """Labels, of labels or of probabilities."""
        return answer.argmax(1) if answer.dim() == 2 else answer

    def hardness(self, logits: Float[Tensor, "k n c"], answer: Tensor) -> Float[Tensor, " n"]:
        """1 - the clones' mean probability of the answer."""
        probs = logits.detach().softmax(2).mean(0)
        return (1 - probs.gather(1, self.decided(answer)[:, None])[:, 0]).clamp(0, 1)

    def clone_loss(self, logits: Float[Tensor, "n c"], answer: Tensor) -> Tensor:
        """Cross-entropy with labels; the L1 distance of the logits from centred log-probabilities."""
        if answer.dim() == 1:
            return F.cross_entropy(logits, answer)
        return F.l1_loss(logits, centred(answer))

    def note(self, hard: Tensor, rows: Tensor, answer: Tensor, clones: CloneEnsemble) -> None:
        """One row of the history, and a look at the clones where one is due."""
        seen = torch.bincount(self.decided(answer).cpu(), minlength=len(self.counts)).float()
        seen[: len(self.counts)] += self.counts
        self.counts = seen
        share = seen[seen > 0] / seen.sum()
        row = {"queries": self.queries, "pool": float(hard.mean()), "asked": float(hard[rows].mean())}
        self.history.append({**row, "classes": len(self.labels), "entropy": float(-(share * share.log()).sum())})
        due = self.method.looks * self.step / self.steps
        if due >= self.looked + 1:
            self.looked += 1
            self.look(clones)

    def look(self, clones: nn.Module, last: bool = False) -> None:
        """What ``evaluate`` says of the clones as they are."""
        if self.evaluate is not None and self.history:
            still = clones if last else copy.deepcopy(clones).eval()
            self.history[-1] |= dict(self.evaluate(self.result(still)))

    def result(self, clones: nn.Module) -> ExtractionResult:
        """The clones as they are."""
        known = torch.tensor(self.labels)
        growing = [m for m in clones.modules() if isinstance(m, GrowingClassifier)]
        if growing and int(growing[0].active) > len(known):
            known = torch.cat((known, torch.full((int(growing[0].active) - len(known),), -1)))
        return ExtractionResult(clones, self.queries, known, tuple(dict(row) for row in self.history))


def centred(probs: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """log p less its mean over the classes: logits, as far as probabilities tell them."""
    logs = probs.clamp_min(1e-12).log()
    return logs - logs.mean(1, keepdim=True)


def _cast(models: Mapping[str, Any]) -> tuple[GeneratorEnsemble, CloneEnsemble]:
    return models["generators"], models["clones"]
