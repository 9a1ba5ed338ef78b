"""GD-UAP: one perturbation for all inputs, made without data by driving up the activations of the convolutions.

Exact, on a single drawn convolution: no coordinate of what is found can move within [-xi, xi] and raise ||W delta||, by
evaluating every such move. Learned: on MNIST, without any image but the data's mean, the perturbation changes the
predictions of a network far more often than random signs of the same size. Support: share of the optimum over all
sign patterns, objective, range and data priors, transfer to a second network. ImageNet networks are not run here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import GDUAP, ActivationAttack, FastFeatureFool, Perturbation, fooling_rate
from assay.attacks.conv_stages import ConvStages
from assay.data import Data, load_data
from assay.nets import SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.training import Supervised

EPS = 0.2  # xi, of inputs in [0, 1]
LENGTH, FILTERS, XI = 10, 8, 0.1  # of the drawn convolutions

PAPER = Paper(
    slug="gd-uap",
    title="Generalizable Data-free Objective for Crafting Universal Adversarial Perturbations",
    authors="Konda Reddy Mopuri, Aditya Ganeshan, R. Venkatesh Babu",
    year=2018,
    arxiv="1801.08092",
    room="attacks",
    kind="method",
    implements=(
        "attacks.GDUAP",
        "attacks.FastFeatureFool",
        "attacks.Perturbation",
        "attacks.fooling_rate",
        "attacks.generalized_fooling_rate",
    ),
    claim="A perturbation that makes convolutional activations large fools a network on many inputs, without any data.",
    headline="ImageNet, xi = 10: VGG-16 fooled on 45 % without data, 63 % with their range, 78 % with data.",
    baselines=("random signs", "uniform noise"),
    shams={
        "scrambled-signs": "each entry of the gradient is multiplied by a fixed random sign before the Adam step",
        "wrong-sign": "the objective is made small: activations shrink",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 600, "test": 200, "epochs": 3, "iters": 30, "starts": 2}),
        Scale("claim", 6, {"data": "mnist", "train": 6000, "test": 1000, "epochs": 4, "iters": 80, "starts": 4}),
        Scale("gpu", 5, {"data": "mnist", "train": 60_000, "test": 10_000, "epochs": 10, "iters": 4000, "starts": 6}),
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Shammed(GDUAP):
    """GDUAP, or one of its shams."""

    sham: str | None = None

    def gradient(self, value: Tensor, delta: Tensor) -> Tensor:
        grad = super().gradient(value, delta)
        if self.sham == "wrong-sign":
            return -grad
        if self.sham == "scrambled-signs":
            signs = numpy_rng(0, "signs").choice((-1.0, 1.0), tuple(grad.shape))
            return grad * torch.from_numpy(signs).to(grad)
        return grad


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _network(train: Data, epochs: int, seed: int) -> nn.Module:
    with seeded(seed, "init"):
        start = SmallCNN(train.shape, len(train.classes), (16, 32), 64)  # type: ignore[arg-type]
    return Supervised(epochs=epochs).fit(start, train, seed=seed)


def _fixed(delta: Tensor) -> Perturbation:
    return Perturbation(delta, (0.0, 1.0), ())


def _row(arm: str, given: dict[str, Any], found: Perturbation) -> dict[str, Any]:
    """Fooling rates on the attacked and on a second network, and the objective at the data's mean."""
    first, second = given["networks"]
    with torch.no_grad():
        base = torch.full_like(found.delta_, given["mean"])
        objective = float(GDUAP().objective(ConvStages(first, base)(base + found.delta_)))
    rates = [fooling_rate(net, given["test"].x, found) for net in (first, second)]
    return {"arm": arm, "rate": rates[0], "transfer": rates[1], "objective": objective}


def _fitted(attack: ActivationAttack, given: dict[str, Any], seed: int) -> Perturbation:
    data = given["train"].x if attack.prior == "data" else None
    return attack.fit(given["networks"][0], given["test"].shape, data, seed=seed, val=given["val"].x)


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Two networks, the images, and the rates of noise and of the other priors and objectives."""
    train, test = _images(scale["data"])
    part = train.limit(scale["train"], seed=seed)
    given: dict[str, Any] = {
        "networks": [_network(part, scale["epochs"], derive(seed, k)) for k in range(2)],
        "train": part,
        "val": train.without(part.index).limit(300, seed=seed),
        "test": test.limit(scale["test"], seed=seed),
        "mean": float(part.x.mean()),
    }
    own: dict[str, Any] = {"mean": (given["mean"],), "std": (float(part.x.std()),)}
    given["options"] = {"eps": EPS, "lr": EPS / 10, "max_iter": scale["iters"], "check_every": 20, "batch_size": 16}
    others = {
        "range": GDUAP(prior="range", **own, **given["options"]),
        "data": GDUAP(prior="data", **given["options"]),
        "fast feature fool": FastFeatureFool(mean=own["mean"], **given["options"]),
    }
    given["rows"] = [_row(arm, given, _fitted(a, given, seed)) for arm, a in others.items()]
    uniform = (2 * torch.rand(4, 1, *test.shape, generator=torch_rng(seed, "noise")) - 1) * EPS
    given["rows"] += [_row("uniform noise", given, _fixed(delta)) for delta in uniform]
    given["rows"] += [_row("random signs", given, _fixed(EPS * delta.sign())) for delta in uniform]
    return given


def best_move(weight: Float[np.ndarray, "f d"], delta: Float[np.ndarray, " d"], xi: float) -> float:
    """The largest relative gain of ||W delta||^2 when one coordinate moves a little within [-xi, xi], either way."""
    step = 1e-3 * xi * np.concatenate((np.eye(len(delta)), -np.eye(len(delta))))
    moved = np.clip(delta + step, -xi, xi)
    now = np.square(weight @ delta).sum()
    return float(np.square(moved @ weight.T).sum(1).max() / now - 1)


def best_signs(weight: Float[np.ndarray, "f d"], xi: float) -> float:
    """The largest ||W delta||^2 over all sign patterns: the optimum over the box, as the function is convex."""
    signs = np.array(list(product((-xi, xi), repeat=weight.shape[1])))
    return float(np.square(signs @ weight.T).sum(1).max())


def single(starts: int, seed: int, sham: str | None) -> list[dict[str, Any]]:
    """One drawn convolution from several starts: the best single move left, and the best share of the optimum."""
    weight = numpy_rng(seed, "convolution").normal(size=(FILTERS, LENGTH))
    with seeded(seed, "replaced below"):
        model = nn.Sequential(nn.Conv2d(1, FILTERS, (1, LENGTH), bias=False).double())
    model[0].weight = nn.Parameter(torch.from_numpy(weight).reshape(FILTERS, 1, 1, LENGTH))
    attack = _Shammed(sham=sham, eps=XI, lr=XI / 10, max_iter=200, check_every=200, sat_rate=0.0)
    found = [attack.fit(model, (1, 1, LENGTH), seed=derive(seed, k)).delta_.numpy().ravel() for k in range(starts)]
    shares = [np.square(weight @ delta).sum() / best_signs(weight, XI) for delta in found]
    moves = [best_move(weight, delta, XI) for delta in found]
    return [{"arm": "none", "move": max(moves), "share": max(shares)}]


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The single convolution, and the perturbation without data beside all others."""
    attack = _Shammed(sham=sham, mean=(given["mean"],), **given["options"])
    own = _row("none", given, _fitted(attack, given, seed))
    return Table.of([*single(scale["starts"], seed, sham), own, *given["rows"]])


def claims(table: Table) -> list[Claim]:
    """The local optimum and the fooling rate decide; the rest supports."""
    both = ("scrambled-signs", "wrong-sign")
    rate, random, noise = (table.per_seed("rate", arm=arm) for arm in ("none", "random signs", "uniform noise"))
    transfer, other = (table.per_seed("transfer", arm=arm) for arm in ("none", "random signs"))
    return [
        Claim(
            "one convolution: relative gain of the best move of one coordinate within the box",
            table.per_seed("move", np.max),
            at_most=1e-9,
            rule="exact",
            refuted_by=both,
        ),
        Claim("fooling rate without data", rate, at_least=0.15, refuted_by=("wrong-sign",)),
        Claim(
            "fooling rate without data less 1.5 x that of random signs",
            rate - 1.5 * random,
            at_least=0,
            refuted_by=both,
        ),
        Claim(
            "fooling rate without data less 4 x that of uniform noise",
            rate - 4 * noise,
            at_least=0,
            refuted_by=("wrong-sign",),
        ),
        Claim(
            "one convolution: share of the optimum over all sign patterns, best start",
            table.per_seed("share"),
            at_least=0.8,
            key=False,
            refuted_by=("wrong-sign",),
        ),
        Claim(
            "objective over that of random signs",
            table.gain("none", "random signs", "objective"),
            at_least=0,
            key=False,
            refuted_by=("wrong-sign",),
        ),
        Claim(
            "fooling rate of the range prior over none", table.gain("range", "none", "rate"), at_least=-0.03, key=False
        ),
        Claim(
            "on a second network: fooling rate less 1.5 x that of random signs",
            transfer - 1.5 * other,
            at_least=0,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Fooling rates on the attacked and on the second network, one dot a seed."""
    drawing = Figure(figsize=(7.2, 3.4), layout="constrained")
    panel = drawing.subplots()
    arms = ("uniform noise", "random signs", "fast feature fool", "none", "range", "data")
    for column, shift, label in (("rate", -0.12, "attacked network"), ("transfer", 0.12, "second network")):
        values = [table.per_seed(column, arm=arm) for arm in arms]
        (line,) = panel.plot(np.arange(len(arms)) + shift, [v.mean() for v in values], "_", ms=16, label=label)
        for k, v in enumerate(values):
            panel.plot(np.full(len(v), k + shift), v, "o", ms=3, color=line.get_color())
    panel.set_xticks(range(len(arms)), ["GD-UAP, " + a if a in ("none", "range", "data") else a for a in arms])
    panel.tick_params(axis="x", labelrotation=15)
    panel.set(ylabel="fooling rate", ylim=(0, None), title=f"One perturbation for all inputs, ξ = {EPS}")
    panel.legend(frameon=False)
    return drawing
