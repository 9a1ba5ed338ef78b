"""QuScore: a surrogate's gradients save nearly all the queries of a genetic attack that sees scores alone.

On MNIST a second network, of another architecture and trained on other images, is the surrogate. What counts is the
median number of queries against that of the same genetic algorithm from random bits, at the paper's mutation rate or at
five times that, whichever asks less; an attack that fails counts with its whole budget. Exact, on linear fitness: the
best value never falls, the fittest individual is never touched, one individual is evaluated a generation, and the
algorithm gets close to the optimum, all recomputed in NumPy from the populations seen; and the attack stays in its ball
and counts its queries.

Support: success, and the attribution map of the attacked network: its change with the map's weight chosen on other
images, over that with weight 0. The signs alone are kept of a displacement, so that part of that gain is lost. ImageNet
networks, class activation maps of them, and input transformations as a defence are not run here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import MIFGSM, AttackResult, Linf, MicrobialGA, QuScore, Untargeted
from assay.data import Data, load_data
from assay.explain import attribution_similarity, gradient_saliency
from assay.nets import MLP, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import evaluating, predict
from assay.runtime.random import Draws, derive, numpy_rng, seeded
from assay.subject import Oracle
from assay.training import Supervised

PROBLEMS, POP, BITS, BUDGET = 20, 5, 30, 200  # of the linear fitness
WEIGHTS = (1e-3, 0.1, 1.0)  # of the map, of which one is chosen on other images
TUNING = 100  # queries of each attack that the choice takes
OPTIONS: dict[str, dict[str, Any]] = {"paper": {}, "five times": {"mutation": 0.005}}

PAPER = Paper(
    slug="quscore",
    title="QuScore: Microbial Genetic Algorithm-based Black-box Attack against Interpretable Deep Learning Systems",
    authors="Eldor Abdukhamidov, Mohammed Abuhamad, Simon S. Woo, Eric Chan-Tin, Tamer Abuhmed",
    year=2023,
    arxiv="2307.06496",
    room="attacks",
    also=("explain",),
    kind="method",
    implements=(
        "attacks.QuScore",
        "attacks.MicrobialGA",
        "attacks.InterpretationPreservingMIFGSM",
        "explain.gradient_saliency",
        "explain.cam",
        "explain.attribution_iou",
        "explain.attribution_similarity",
    ),
    claim="Started from a surrogate's adversarial examples, a genetic attack on scores succeeds with very few queries.",
    headline="ImageNet and CIFAR-10: success of 95 to 100 %, with a median of few queries; maps like the benign ones.",
    baselines=("random bits, paper", "random bits, five times", "transfer"),
    shams={
        "permuted-pixels": "the pixels of the surrogate's individuals are permuted before the genetic algorithm starts",
        "random-winner": "a coin says which of two individuals wins, whatever their values",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 300, "epochs": 4, "eps": 0.2, "images": 5, "budget": 30}),
        Scale("claim", 5, {"data": "mnist", "train": 8000, "epochs": 2, "eps": 0.15, "images": 40, "budget": 600}),
        Scale(
            "gpu",
            5,
            {"data": "cifar10", "train": 25_000, "epochs": 30, "eps": 8 / 255, "images": 500} | {"budget": 10_000},
        ),
    ),
)


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _networks(scale: Scale, seed: int) -> tuple[nn.Module, nn.Module]:
    """The surrogate, a convolutional network, and the one to be attacked, of a hidden layer, on different images."""
    train = _images(scale["data"])[0]
    first = train.limit(scale["train"], seed=seed)
    second = train.without(first.index).limit(scale["train"], seed=seed)
    with seeded(seed, "init"):
        cnn = SmallCNN(train.shape, len(train.classes), (8, 16), 32)  # type: ignore[arg-type]
        mlp = MLP(train.shape, len(train.classes), (128,))
    plan = Supervised(epochs=scale["epochs"], lr=4e-3)
    return plan.fit(cnn, first, seed=derive(seed, "surrogate")), plan.fit(mlp, second, seed=derive(seed, "target"))


class _Permuted(QuScore):
    """QuScore whose individuals come in another order of pixels."""

    def encode(self, delta: Tensor) -> Tensor:
        bits = super().encode(delta)
        return bits[:, :, torch.from_numpy(numpy_rng(0, "pixels").permutation(bits.shape[2]))]


class _Coin(MicrobialGA):
    """Tournaments that a coin decides."""

    def first_wins(self, first: Tensor, second: Tensor, draws: Draws) -> Tensor:
        return draws.integers(2, 1)[:, 0] == 1


class _Flipped(QuScore):
    """QuScore on tournaments that a coin decides."""

    def evolution(self) -> MicrobialGA:
        return _Coin(crossover=self.crossover, mutation=self.mutation, budget=self.budget)


SHAMS: dict[str | None, type[QuScore]] = {None: QuScore, "permuted-pixels": _Permuted, "random-winner": _Flipped}


def _row(arm: str, result: AttackResult, given: dict[str, Any], asked: int, eps: float) -> dict[str, Any]:
    """Queries (failures at the budget), success, distances and the change of the attacked network's map."""
    with evaluating(given["target"]):
        before, after = (gradient_saliency(given["target"], z, given["y"]) for z in (given["x"], result.x_adv))
    return {
        "arm": arm,
        "median": float(result.queries.double().median()),
        "mean": float(result.queries.double().mean()),
        "success": float(result.success.double().mean()),
        "beyond": float((result.x_adv - given["x"]).abs().max()) - eps,
        "miscount": abs(asked - int(result.queries.sum())),
        "l1": float(attribution_similarity(before, after).l1.mean()),
    }


def _attacked(
    arm: str, scale: Scale, seed: int, given: dict[str, Any], cls: type[QuScore] = QuScore, **options: Any
) -> dict[str, Any]:
    """One arm of QuScore on the images in ``given``."""
    eps, oracle = scale["eps"], Oracle(given["target"])
    attack = cls(ball=Linf(eps), step=eps / 4, budget=scale["budget"], **options)
    result = attack.run(oracle, given["x"], Untargeted(given["y"]), seed=seed)
    return _row(arm, result, given, oracle.queries, eps)


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Both networks, images that the attacked one gets right, the weight of the map, and the arms no sham changes."""
    surrogate, target = _networks(scale, seed)
    test, n, eps = _images(scale["data"])[1].limit(20 * scale["images"], seed=seed), scale["images"], scale["eps"]
    test = test[predict(target, test.x).argmax(1) == test.y]
    given: dict[str, Any] = {"target": target, "x": test.x[:n], "y": test.y[:n], "surrogates": (surrogate,)}
    held = {**given, "x": test.x[n : 2 * n], "y": test.y[n : 2 * n]}
    own: dict[str, Any] = {"surrogates": (surrogate,)}
    short = replace(scale, sizes={**scale.sizes, "budget": min(scale["budget"], TUNING)})
    without = _attacked("held out", short, seed, held, lam_int=0.0, **own)
    tried = [(_attacked("held out", short, seed, held, lam_int=w, **own), w) for w in WEIGHTS]
    level = [(row["l1"], w) for row, w in tried if row["success"] >= without["success"] - 0.05]
    given["weight"] = min(level)[1] if level else WEIGHTS[0]
    rows = [_attacked(f"random bits, {name}", scale, seed, given, **options) for name, options in OPTIONS.items()]
    rows.append(_attacked("weight 0", scale, seed, given, lam_int=0.0, **own))
    moved = MIFGSM(ball=Linf(eps))(surrogate, given["x"], given["y"], seed=seed)
    rows.append({"arm": "transfer", "success": float((predict(target, moved).argmax(1) != given["y"]).double().mean())})
    return given | {"rows": rows}


def linear(seed: int, sham: str | None = None) -> dict[str, Any]:
    """What the algorithm does on linear fitness, recomputed from the populations that it showed."""
    weights = numpy_rng(seed, "weights").normal(size=(PROBLEMS, BITS))
    values, asked, seen = torch.from_numpy(weights), [0], []

    def fitness(rows: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        asked[0] += len(bits)
        return (values[rows] * bits).sum(1), torch.zeros(len(bits), dtype=torch.bool)

    algorithm = (_Coin if sham == "random-winner" else MicrobialGA)(mutation=0.02, budget=BUDGET)
    init = torch.from_numpy(numpy_rng(seed, "bits").random((PROBLEMS, POP, BITS)) < 0.5)
    end = algorithm.run(
        fitness, init, Draws(seed, "linear", torch.arange(PROBLEMS)), lambda _, p: seen.append(p.clone())
    )
    shown = torch.stack(seen).numpy()  # (generations + 1, problems, individuals, bits)
    worth = np.einsum("tnpd,nd->tnp", shown, weights)
    best, changed = worth.max(2), (shown[1:] != shown[:-1]).any(3)
    alone = (worth[:-1] == best[:-1, :, None]).sum(2, keepdims=True) == 1  # of equals, any may lose a tournament
    fittest = (worth[:-1] == best[:-1, :, None]) & alone
    low, high = np.minimum(weights, 0).sum(1), np.maximum(weights, 0).sum(1)
    spent = PROBLEMS * (POP + len(shown) - 1)
    return {
        "drop": float((best[:-1] - best[1:]).max()),
        "touched": int((changed & fittest).sum()),
        "together": int(changed.sum(2).max()),
        "uncounted": abs(asked[0] - spent) + abs(int(end.queries.sum()) - spent),
        "share": float(((best[-1] - low) / (high - low)).mean()),
    }


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The linear fitness, and QuScore with the chosen weight."""
    own = {"surrogates": given["surrogates"], "lam_int": given["weight"]}
    row = _attacked("quscore", scale, seed, given, SHAMS[sham], **own)
    return Table.of([{"arm": "linear", **linear(seed, sham)}, row | {"weight": given["weight"]}, *given["rows"]])


def claims(table: Table) -> list[Claim]:
    """The queries over those from random bits, and the checks on linear fitness, decide."""
    random = np.minimum(*(table.per_seed("median", arm=arm) for arm in PAPER.baselines[:2]))
    coin = ("random-winner",)
    return [
        Claim(
            "median queries over those of the genetic algorithm from random bits (the lower of two mutation rates)",
            table.per_seed("median", arm="quscore") / random,
            at_most=0.25,
            refuted_by=("permuted-pixels",),
        ),
        Claim(
            "linear fitness: largest fall of the best value from a generation to the next",
            table.per_seed("drop", np.max),
            at_most=1e-9,
            rule="exact",
            refuted_by=coin,
        ),
        Claim(
            "linear fitness: generations in which an individual fitter than all others was changed",
            table.per_seed("touched", np.max),
            at_most=0,
            rule="exact",
            refuted_by=coin,
        ),
        Claim(
            "linear fitness: individuals changed in one generation, most",
            table.per_seed("together", np.max),
            at_most=1,
            rule="exact",
        ),
        Claim(
            "linear fitness: evaluations less those of the first population and one a generation",
            table.per_seed("uncounted", np.max),
            at_most=0,
            rule="exact",
        ),
        Claim(
            "linear fitness: best value at the end, from the least (0) to the largest (1) that there is",
            table.per_seed("share"),
            at_least=0.8,
            rule="exact",
            refuted_by=coin,
        ),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    l1 = [table.per_seed("l1", arm=arm) for arm in ("quscore", "weight 0")]
    return [
        Claim(
            "distance from the image less eps, largest",
            table.per_seed("beyond", np.max, arm="quscore"),
            at_most=1e-6,
            rule="exact",
            key=False,
        ),
        Claim(
            "queries counted by the attack less those that its oracle counts",
            table.per_seed("miscount", np.max, arm="quscore"),
            at_most=0,
            rule="exact",
            key=False,
        ),
        Claim(
            "success of QuScore within its budget", table.per_seed("success", arm="quscore"), at_least=0.8, key=False
        ),
        Claim(
            "success of QuScore less that of MI-FGSM's transfer alone",
            table.gain("quscore", "transfer", "success"),
            at_least=0,
            key=False,
        ),
        Claim(
            "change of the attacked network's map over that with weight 0",
            l1[0] / l1[1],
            at_most=1,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Median queries and the change of the map, one dot a seed."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    arms = ("quscore", "weight 0", *PAPER.baselines[:2])
    for panel, column, label in (
        (left, "median", "median queries"),
        (right, "l1", "change of the map (mean |m' - m|)"),
    ):
        for k, arm in enumerate(arms):
            values = table.per_seed(column, arm=arm)
            (dots,) = panel.plot(np.full(len(values), k), values, "o", ms=4)
            panel.plot([k], [values.mean()], "_", ms=16, color=dots.get_color())
        panel.set_xticks(range(len(arms)), arms)
        panel.tick_params(axis="x", labelrotation=15)
        panel.set(ylabel=label)
    left.set_yscale("log")
    return drawing
