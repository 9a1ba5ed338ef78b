"""Worst-case forget sets: some data can be left out and are known all the same.

CIFAR-10 (16 x 16): of a trained network, a tenth of the training images is chosen so that its loss stays small after
they were unlearned, or large. A network trained anew without the first, with a new seed, must get far fewer of them
wrong than of a random tenth, and one without the second many more. Exact: the projection is the solution of its
quadratic program, found by sorting; sign descent ends at the same weights, bit for bit, when one sample's weight moves
by 1e-6; on twelve points the chosen three are among the best twentieth of all triples. Support: membership, test
accuracy, the images of lowest loss (as hard: no lower error is claimed), another architecture, a class of digits.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded, torch_rng
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import WorstCaseForgetSet, project_capped_simplex, random_forget_sets, stress_test

RANDOM = 3

PAPER = Paper(
    slug="worst-case-forget",
    title="Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine Unlearning",
    authors="Chongyu Fan, Jiancheng Liu, Alfred Hero, Sijia Liu",
    year=2024,
    arxiv="2403.07362",
    room="unlearn",
    kind="method + benchmark",
    implements=(
        "unlearn.WorstCaseForgetSet",
        "unlearn.project_capped_simplex",
        "unlearn.SignSGD",
        "unlearn.random_forget_sets",
        "unlearn.stress_test",
    ),
    claim="Bi-level selection by sign descent finds data that even retraining without them does not forget.",
    headline="ResNet-18, CIFAR-10: retraining gets about 5% of a random tenth wrong, and about 0% of the worst case.",
    peers=("OPTML-Group/Unlearn-WorstCase", "scipy.optimize.minimize"),
    shams={
        "shuffled-ids": "in every round the losses go to samples in a new random order, not to their own",
        "rescale-projection": "the weights are clipped to [0, 1] and scaled to the sum m, not shifted",
    },
    baselines=("random 1", "random 2", "random 3", "lowest loss"),
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 200, "test": 200, "side": 8, "widths": (4, 8), "epochs": 3}),
        Scale(
            "claim",
            5,
            {"data": "cifar10", "train": 2500, "test": 1200, "side": 16, "widths": (16, 32, 32), "epochs": 15},
        ),
        Scale(
            "gpu",
            5,
            {"data": "cifar10", "train": 45_000, "test": 10_000, "side": 32, "widths": (64, 128, 256), "epochs": 60},
        ),
    ),
)


class _ShuffledIds(WorstCaseForgetSet):
    """Each round's losses belong to other samples."""

    def losses(self, model: nn.Module, data: Data, turn: int, seed: int) -> Tensor:
        each = super().losses(model, data, turn, seed)
        return each[torch.randperm(len(each), generator=torch_rng(seed, "shuffled", turn))]


def _rescaled(a: Tensor, m: float) -> Tensor:
    w = a.double().clamp(0, 1)
    return w * m / w.sum() if w.any() else torch.full_like(w, m / len(w))


class _Rescaled(WorstCaseForgetSet):
    """Its step ends by scaling."""

    def project(self, a: Tensor) -> Tensor:
        return _rescaled(a, self.m)


@cache
def _images(source: str, side: int) -> tuple[Data, Data]:
    parts = (load_data(source, "train"), load_data(source, "test"))
    train, test = (p.with_x(F.adaptive_avg_pool2d(p.x, side)) if p.shape[-1] != side else p for p in parts)
    return train, test


def _net(channels: int, widths: tuple[int, ...], seed: int) -> nn.Module:
    """3x3 convolutions with batch norm and ReLU, halved maps between them, a global average and a linear layer."""
    layers: list[nn.Module] = []
    with seeded(seed, "init"):
        for a, b in pairwise((channels, *widths)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
        layers[-1] = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1], 10))


def _subject(scale: Scale, seed: int) -> Subject:
    whole, held = _images(scale["data"], scale["side"])
    train, test = whole.limit(scale["train"], seed=seed), held.limit(scale["test"], seed=seed)
    recipe = Supervised(epochs=scale["epochs"], batch_size=128, optimizer="sgd", lr=0.1, weight_decay=5e-4)
    model = recipe.fit(_net(train.shape[0], scale["widths"], seed), train, seed=seed)
    return Subject(model, test, train, holdout=test[:2], recipe=recipe)


def _method(cls: type[WorstCaseForgetSet], data: Data, direction: str) -> WorstCaseForgetSet:
    """The choice of a tenth: 4 rounds of 2 epochs of sign descent at 2e-4, in batches of 128."""
    m = len(data) // 10
    return cls(m=m, rounds=4, inner_epochs=2, inner_lr=2e-4, batch_size=128, direction=direction)  # type: ignore[arg-type]


def _chosen(given: dict[str, Any], sham: str | None, seed: int) -> list[dict[str, Any]]:
    """The hardest and the easiest tenth: a network retrained without each, and the losses of the rounds."""
    cls = {"shuffled-ids": _ShuffledIds, "rescale-projection": _Rescaled}.get(sham or "", WorstCaseForgetSet)
    subject: Subject = given["subject"]
    train, rows = subject.training("worst-case-forget"), []
    for direction in ("hardest", "easiest"):
        found = _method(cls, train, direction).fit(subject.model, train, seed=seed)
        parts = {direction: found.parts(train)}
        (row,) = stress_test({}, subject, parts, seed=derive(seed, "retrain"))
        history = {"fall": found.history_[-1] / found.history_[0]} if direction == "hardest" else {}
        rows.append({"arm": direction, **row, "ratio": row["ua"] / given["random"]["ua"], **history})
        if direction == "hardest":
            rows[0]["mia_ratio"] = row["mia"] / given["random"]["mia"]
            (moved,) = stress_test({}, given["other"], parts, seed=derive(seed, "retrain"))
            rows.append({"arm": "transfer", **moved, "ratio": moved["ua"] / given["other random"]})
    return rows


def _sorted_projection(a: np.ndarray, m: float) -> np.ndarray:
    """The projection by sorting: sum clip(a - mu, 0, 1) is linear in mu between the sorted a and a - 1."""
    knots = np.sort(np.concatenate([a, a - 1]))
    sums = np.array([np.clip(a - k, 0, 1).sum() for k in knots])
    return np.clip(a - np.interp(-m, -sums, knots), 0, 1)


def _projections(seed: int, sham: str | None) -> dict[str, float]:
    """Largest distance from the projection by sorting, of the sum from m, of a second one, and above 1."""
    project = _rescaled if sham == "rescale-projection" else project_capped_simplex
    worst = {"projection": 0.0, "total": 0.0, "again": 0.0}
    cases = [(torch.tensor([3.0, 0.2, 0.1, 0.0, 0.0], dtype=torch.float64), 2)]
    for k, (n, m) in enumerate(((5, 2), (40, 4), (300, 30), (7, 6), (1000, 3))):
        cases.append((torch.randn(n, generator=torch_rng(seed, "project", k), dtype=torch.float64) * 3, m))
    for a, m in cases:
        w = project(a, m)
        off = {
            "projection": np.abs(w.numpy() - _sorted_projection(a.numpy(), m)).max(),
            "total": abs(float(w.sum()) - m),
            "again": float((project(w, m) - w).abs().max()),
        }
        worst = {key: max(worst[key], float(off[key])) for key in worst}
    return worst


def _unmoved(seed: int) -> float:
    """The share of samples whose weight can move by 1e-6 and leave the unlearned network as it is, bit for bit."""
    g, n = torch_rng(seed, "unmoved"), 60
    x = torch.rand(n, 1, 4, 4, generator=g, dtype=torch.float64)
    data = Data(x, torch.randint(0, 3, (n,), generator=g), ("a", "b", "c"))
    w = torch.rand(n, generator=g, dtype=torch.float64)
    with seeded(seed, "unmoved"):
        model = MLP((1, 4, 4), 3, (8,)).double()
    method = WorstCaseForgetSet(m=6, inner_epochs=4, batch_size=n)

    def weights(w: Tensor) -> Tensor:
        return torch.cat([p.detach().flatten() for p in method.unlearned(model, data, w, seed).parameters()])

    base = weights(w)
    return float(np.mean([torch.equal(weights(w + 1e-6 * e), base) for e in torch.eye(n, dtype=torch.float64)]))


def _beaten(seed: int) -> float:
    """The share of all triples of twelve points that one sign step of a linear network leaves better known."""
    g, n, m, lr = torch_rng(seed, "triples"), 12, 3, 0.02
    x, y = torch.randn(n, 3, generator=g, dtype=torch.float64), torch.randint(0, 2, (n,), generator=g)
    with seeded(seed, "triples"):
        model = nn.Linear(3, 2).double()
    weight, bias = (p.detach() for p in model.parameters())
    every = torch.tensor(list(combinations(range(n), m)))
    w = torch.zeros(len(every), n, dtype=torch.float64).scatter_(1, every, 1.0)
    error = (1 - w)[:, :, None] * ((x @ weight.T + bias).softmax(1) - F.one_hot(y, 2))
    moved = weight - lr * (error.mT @ x).sign(), bias - lr * error.sum(1).sign()
    logits = x @ moved[0].mT + moved[1][:, None]
    values = (w * F.cross_entropy(logits.mT, y.expand(len(every), n), reduction="none")).sum(1)
    method = WorstCaseForgetSet(m=m, inner_epochs=1, inner_lr=lr, batch_size=n)
    found = method.fit(model, Data(x, y, ("a", "b"), bounds=(-9.0, 9.0)), seed=seed)
    own = values[(every == found.indices_).all(1)]
    return float((values < own - 1e-12).double().mean())


def _class_rank(seed: int) -> int:
    """How many digits a network knows better after sign descent without them than the one that was chosen."""
    train = _images("digits", 8)[0].limit(400, seed=seed)
    with seeded(seed, "class"):
        model = Supervised(epochs=4).fit(MLP((1, 8, 8), 10, (32,)), train, seed=seed)
    method = WorstCaseForgetSet(m=1, level="class", rounds=6, inner_lr=2e-3, batch_size=64)
    chosen = int(method.fit(model, train, seed=seed).indices_[0])
    after = [method.unlearned(model, train, (train.y == c).double(), seed) for c in range(10)]
    losses = torch.stack([method.losses(other, train, 0, seed)[c] for c, other in enumerate(after)])
    return int((losses < losses[chosen]).sum())


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The trained network, and networks retrained without random sets and without the images of lowest loss."""
    subject = _subject(scale, seed)
    train = subject.training("worst-case-forget")
    m, again = len(train) // 10, derive(seed, "retrain")
    each = F.cross_entropy(predict(subject.model, train.x), train.y, reduction="none")
    low = torch.zeros(len(train), dtype=torch.bool).index_fill_(0, each.argsort(stable=True)[:m], True)
    drawn = random_forget_sets(train, m, RANDOM, seed=seed)
    sets = {f"random {k + 1}": parts for k, parts in enumerate(drawn)} | {"lowest loss": (train[low], train[~low])}
    rows = stress_test({}, subject, sets, seed=again)
    mean = {k: float(np.mean([r[k] for r in rows[:RANDOM]])) for k in ("ua", "mia", "ta")}
    with seeded(seed, "other"):
        net = MLP(train.shape, 10, (64,))
    other = replace(subject, model=net, recipe=Supervised(epochs=scale["epochs"]))
    (shifted,) = stress_test({}, other, {"random": drawn[0]}, seed=again)
    exact = {"unmoved": _unmoved(seed), "beaten": _beaten(seed), "class_rank": _class_rank(seed)}
    return {
        "subject": subject,
        "other": other,
        "other random": shifted["ua"],
        "random": mean,
        "rows": [
            *({"arm": row["set"], **row} for row in rows),
            {"arm": "random", **mean},
            {"arm": "transfer, random", **shifted},
            {"arm": "exact", **exact},
        ],
    }


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The hardest and the easiest tenth, and the projection."""
    projection = {"arm": "projection", **_projections(seed, sham)}
    return Table.of([*given["rows"], *_chosen(given, sham, seed), projection])


def _exact(table: Table) -> list[Claim]:
    scaled = ("rescale-projection",)
    return [
        Claim(
            "the projection is the solution of the quadratic program by sorting: largest difference",
            table.per_seed("projection", np.max),
            at_most=1e-6,
            rule="exact",
            refuted_by=scaled,
        ),
        Claim("the weights sum to m: largest difference", table.per_seed("total", np.max), at_most=1e-9, rule="exact"),
        Claim(
            "a projected point stays where it is: largest difference",
            table.per_seed("again", np.max),
            at_most=1e-9,
            rule="exact",
            refuted_by=scaled,
        ),
        Claim(
            "sign descent ends at the same weights when one sample's weight moves by 1e-6: share of samples",
            table.per_seed("unmoved", np.min),
            at_least=0.95,
            rule="exact",
        ),
        Claim(
            "twelve points, one sign step: share of all triples with a lower upper loss than the one found",
            table.per_seed("beaten", np.max),
            at_most=0.05,
            rule="exact",
        ),
    ]


def claims(table: Table) -> list[Claim]:
    """How often retraining is wrong on the chosen sets, and the exact checks, decide; the rest supports."""
    shuffled = ("shuffled-ids",)
    return [
        Claim(
            "retrained without the hardest tenth: share of it wrong, over that of a random tenth",
            table.per_seed("ratio", arm="hardest"),
            at_most=0.4,
            refuted_by=shuffled,
        ),
        Claim(
            "retrained without the easiest tenth: share of it wrong, over that of a random tenth",
            table.per_seed("ratio", arm="easiest"),
            at_least=1.5,
            refuted_by=shuffled,
        ),
        *_exact(table),
        Claim(
            "of the hardest tenth, what a membership attack calls outsiders, over that of a random tenth",
            table.per_seed("mia_ratio"),
            at_most=0.4,
            key=False,
        ),
        *(
            Claim(
                f"test accuracy without the hardest tenth is at most {less} below that without {name}",
                table.gain("hardest", arm, "ta"),
                at_least=-less,
                key=False,
            )
            for less, name, arm in (
                (0.025, "a random tenth", "random"),
                (0.005, "the tenth of lowest loss", "lowest loss"),
            )
        ),
        Claim(
            "the upper loss of the last round over that of the first",
            table.per_seed("fall"),
            at_most=1.0,
            key=False,
        ),
        Claim(
            "another architecture without the hardest tenth: share of it wrong, over that of a random tenth",
            table.per_seed("ratio", arm="transfer"),
            at_most=0.7,
            key=False,
        ),
        Claim(
            "digits: classes that are better known without them than the chosen one is without it",
            table.per_seed("class_rank", np.max),
            at_most=0,
            rule="k-of-n",
            k=4,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Retraining's error and a membership attack on each forget set, one dot a seed."""
    drawing = Figure(figsize=(8.0, 3.0), layout="constrained")
    arms = ("hardest", "lowest loss", "random", "easiest")
    titles = {"ua": "Forgotten images wrong", "mia": "Forgotten images called outsiders"}
    for axes, (column, title) in zip(drawing.subplots(1, 2), titles.items(), strict=True):
        values = np.stack([table.per_seed(column, arm=arm) for arm in arms])
        axes.plot(values, np.arange(len(arms)), "o", ms=4, color="0.55")
        axes.plot(values.mean(1), np.arange(len(arms)), "|", ms=16, mew=2)
        axes.set(xlim=(-0.02, 1.02), yticks=range(len(arms)), title=title, xlabel="share, after retraining")
        axes.set_yticklabels(arms if column == "ua" else [])
        axes.invert_yaxis()
    return drawing
