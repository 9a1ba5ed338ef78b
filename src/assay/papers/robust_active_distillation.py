"""Robust active distillation: ask a teacher about points that are informative and likely to be labelled rightly.

The game: for random gains and every number m of wrong labels, the sampler's worst case is the value of the game by
linear programming. The student: a linear classifier with 60 labels asks a convolutional network trained on the same 60,
three times about 60 points of the pool; m follows from the teacher's true error. Points drawn by the sampler are more
often labelled rightly than those of least margin and more informative than random ones. Support: the worst case against
uniform draws, and the student's test accuracy, which differs little at this size. Arms of other samplers (entropy,
k-center, mixtures, and the two distributions that need no m) are reported. The student takes large steps: the less sure
it is of everything, the less the gains differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import linprog
from torch import Tensor, nn

from assay.curate import (
    ActiveDistillation,
    CoresetQuery,
    QuerySampler,
    RADSampler,
    RandomQuery,
    UncertaintyMixup,
    UncertaintyQuery,
    rad_distribution,
)
from assay.data import Data, load_data
from assay.nets import MLP, ResNet, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import pick_device, predict
from assay.runtime.random import numpy_rng, seeded, torch_rng
from assay.training import Supervised

# Labelled points, size of the pool, points a round; the pool's labels are used for reporting only.
SIZES = {"digits": (60, 900, 60), "cifar10": (5000, 40_000, 5000)}
REST = {
    "entropy": UncertaintyQuery(gain="entropy"),
    "k-center": CoresetQuery(),
    "mixtures": UncertaintyMixup(),
    "rad, relative": RADSampler(method="relative"),
    "rad, regret": RADSampler(method="regret"),
}
BASELINES: Mapping[str, QuerySampler] = {"uniform": RandomQuery(), "margin": UncertaintyQuery()}

PAPER = Paper(
    slug="robust-active-distillation",
    title="Robust Active Distillation (RAD)",
    authors="Cenk Baykal, Khoa Trinh, Fotis Iliopoulos, Gaurav Menghani, Erik Vee",
    year=2022,
    arxiv="2210.01213",
    room="curate",
    also=("compress",),
    kind="method",
    implements=(
        "curate.RADSampler",
        "curate.rad_distribution",
        "curate.inclusion_probabilities",
        "curate.dep_round",
        "curate.margin_gains",
        "curate.ActiveDistillation",
        "curate.UncertaintyQuery",
        "curate.CoresetQuery",
        "curate.UncertaintyMixup",
        "curate.RandomQuery",
    ),
    claim="Inverse-gain sampling on the top k* is the best reply to m wrong labels; it errs less than margin does.",
    headline="CIFAR-10/100, SVHN, ImageNet: matches or beats margin, entropy, k-center, UNIXKD and uniform queries.",
    peers=("scipy.optimize.linprog", "modAL"),
    shams={
        "proportional-gain": "on the same top k* points are drawn in proportion to their gain, not to its inverse",
        "permuted-index": "the distribution over the sorted pool is read as one over the pool as it lies",
    },
    baselines=("uniform", "margin"),
    scales=(
        Scale("smoke", 1, {"vectors": 3, "source": "digits", "steps": 20, "teacher": 30, "lr": 0.05}),
        Scale("claim", 10, {"vectors": 20, "source": "digits", "steps": 80, "teacher": 120, "lr": 0.05}),
        Scale("gpu", 5, {"vectors": 20, "source": "cifar10", "steps": 20_000, "teacher": 20_000, "lr": 1e-3}),
    ),
)


class _Proportional(RADSampler):
    def weights(self, gains: Tensor, k: int) -> Tensor:
        q = torch.zeros_like(gains)
        top = gains.argsort(descending=True, stable=True)[:k]
        q[top] = gains[top]
        return q / q.sum()


class _Permuted(RADSampler):
    def weights(self, gains: Tensor, k: int) -> Tensor:
        return super().weights(gains.sort(descending=True).values, k)


RULES: Mapping[str | None, type[RADSampler]] = {
    None: RADSampler,
    "proportional-gain": _Proportional,
    "permuted-index": _Permuted,
}


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _student(data: Data) -> nn.Module:
    """Its weights are never used: every round starts from new ones."""
    with seeded(0, "student"):
        if data.name.startswith("cifar10"):
            return SmallCNN((3, 32, 32), len(data.classes), (32, 64)).to(pick_device())
        return MLP(data.shape, len(data.classes), ())


def _teacher(scale: Scale, data: Data, seed: int) -> nn.Module:
    """A larger network, trained on the labelled points alone."""
    channels, height, width = data.shape
    with seeded(seed, "teacher"):
        if data.name.startswith("cifar10"):
            start: nn.Module = ResNet((channels, height, width), len(data.classes), 64, (2, 2, 2, 2)).to(pick_device())
        else:
            start = SmallCNN((channels, height, width), len(data.classes), (16, 32), 64)
    return Supervised(steps=scale["teacher"], batch_size=20 if len(data) < 1000 else 128).fit(start, data, seed=seed)


def _setting(scale: Scale, seed: int) -> dict[str, Any]:
    """Labelled points, pool, test set and teacher, and which points of the pool the teacher gets right."""
    train, test = _images(scale["source"])
    labelled, pool, budget = SIZES[scale["source"]]
    order = torch.randperm(len(train), generator=torch_rng(seed, "labelled"))
    known, rest = train[order[:labelled]], train[order[labelled : labelled + pool]]
    teacher = _teacher(scale, known, seed)
    right = predict(teacher, rest.x).argmax(1) == rest.y
    return {"known": known, "pool": rest, "test": test, "teacher": teacher, "right": right, "budget": budget}


def _arm(scale: Scale, given: Mapping[str, Any], name: str, sampler: QuerySampler, seed: int) -> dict[str, Any]:
    """Shares of right labels among the queried, their mean margin gain when chosen, the student's test accuracy."""
    method = ActiveDistillation(
        sampler=sampler,
        budget=given["budget"],
        trainer=Supervised(steps=scale["steps"], lr=scale["lr"]),
    )
    error = 1 - float(given["right"].double().mean())
    known, pool, test = given["known"], given["pool"], given["test"]
    found = method.fit(_student(known), given["teacher"], known, pool, seed=seed, error=error)
    p = torch.cat([r.student for r in found.rounds_]).sort(1).values.numpy()
    row = {"arm": name, "accuracy": float((predict(found.student_, test.x).argmax(1) == test.y).double().mean())}
    row["gain"] = float(np.mean(1 - (p[:, -1] - p[:, -2])))
    if not isinstance(sampler, UncertaintyMixup):  # a mixture has no label to be right about
        row["right"] = float(given["right"][found.rows_].double().mean())
    return row


def _gains(count: int, seed: int) -> list[np.ndarray]:
    """Vectors of 2 to 50 gains, from alike to spread, every third with ties."""
    rng, found = numpy_rng(seed, "gains"), []
    for i in range(count):
        a, b = 10.0 ** rng.uniform(-0.3, 0.7, 2)
        g = np.clip(rng.beta(a, b, rng.integers(2, 51)), 0.01, 1.0)
        found.append(np.ceil(g * 10) / 10 if i % 3 == 2 else g)
    return found


def _value(g: np.ndarray, m: int) -> float:
    """max_q min_l sum q g (1 - l), sum l <= m, by linear programming.

    The inner minimum is, by duality, max sum q g - m t - sum u over t, u >= 0 with t + u_i >= q_i g_i.
    """
    n = len(g)
    cost = np.concatenate([-g, [m], np.ones(n)])
    above = np.hstack([np.diag(g), -np.ones((n, 1)), -np.eye(n)])
    simplex = np.concatenate([np.ones(n), np.zeros(n + 1)])[None]
    solved = linprog(cost, above, np.zeros(n), simplex, [1.0])
    return float(-solved.fun)


def _worst(q: np.ndarray, g: np.ndarray, m: int) -> float:
    """What is left of sum q g when the m largest terms are lost."""
    return float(np.sort(q * g)[: len(g) - m].sum())


def _game(vectors: list[np.ndarray], values: list[list[float]], rule: RADSampler) -> dict[str, Any]:
    """Largest distance of the sampler's worst case from the game's value, and mean relative gains over other draws."""
    gap, over = 0.0, []
    for g, value in zip(vectors, values, strict=True):
        n, gains = len(g), torch.from_numpy(g)
        for m, best in enumerate(value):
            q = rule.weights(gains, rad_distribution(gains, m).k).numpy()
            found = _worst(q, g, m)
            gap = max(gap, abs(found - best))
            if 0.1 <= m / n <= 0.4:
                over.append(found / _worst(np.full(n, 1 / n), g, m) - 1)
    return {"arm": "game", "gap": gap, "over_uniform": float(np.mean(over)) if over else None}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Gains with the values of their games; the setting, and the arms that no sham changes."""
    vectors = _gains(scale["vectors"], seed)
    given: dict[str, Any] = {"vectors": vectors, "values": [[_value(g, m) for m in range(len(g))] for g in vectors]}
    given["setting"] = _setting(scale, seed)
    given["rows"] = [_arm(scale, given["setting"], n, s, seed) for n, s in {**BASELINES, **REST}.items()]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The game, and the sampler's own arm."""
    rule = RULES[sham]()
    own = _arm(scale, given["setting"], "rad", rule, seed)
    return Table.of([*given["rows"], own, _game(given["vectors"], given["values"], rule)])


def claims(table: Table) -> list[Claim]:
    """The game and the two properties of what is queried decide."""
    both = ("proportional-gain", "permuted-index")
    return [
        Claim(
            "worst case over m wrong labels of the sampler's distribution equals the value of the game by linear "
            "programming, all m: largest difference",
            table.per_seed("gap", np.max),
            at_most=1e-9,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "the share of rightly labelled queries exceeds that of margin sampling by 0.05 or more",
            table.gain("rad", "margin", "right"),
            at_least=0.05,
        ),
        Claim(
            "the mean margin gain of the queries exceeds that of uniform draws by 0.1 or more",
            table.gain("rad", "uniform", "gain"),
            at_least=0.1,
            refuted_by=("permuted-index",),
        ),
        Claim(
            "its worst case exceeds that of uniform draws by 20% or more on average, m / n in [0.1, 0.4]",
            table.per_seed("over_uniform"),
            at_least=0.2,
            key=False,
        ),
        *(
            Claim(
                f"the student's test accuracy is at most 0.005 below that after {other} queries",
                table.gain("rad", other, "accuracy"),
                at_least=-0.005,
                key=False,
            )
            for other in BASELINES
        ),
    ]


def figure(table: Table) -> Figure:
    """Right labels against gain of what each sampler asks, and the student's test accuracy."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    arms = [*BASELINES, *REST, "rad"]
    for arm in arms:
        if arm != "mixtures":
            left.plot(table.per_seed("gain", arm=arm), table.per_seed("right", arm=arm), "o", ms=4, label=arm)
    left.set(xlabel="mean margin gain", ylabel="rightly labelled", title="What is asked (one dot a seed)")
    left.legend(frameon=False, fontsize=7)
    for i, arm in enumerate(arms):
        runs = table.per_seed("accuracy", arm=arm)
        right.plot(runs, np.full(len(runs), i), "o", ms=3, color="0.6")
        right.plot(runs.mean(), i, "|", ms=14)
    right.set(xlabel="test accuracy", title="The student")
    right.set_yticks(range(len(arms)), arms)
    return drawing
