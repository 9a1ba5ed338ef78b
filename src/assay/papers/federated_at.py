"""Federated adversarial learning: clients attack their own data at every local step, and the shared model is robust.

Eight clients with few digits each (Dirichlet 0.3) train a small convolution from the weights of a short plain
federation. FAL is set against the same federation without attacks, by accuracy under PGD on held-out images, and beside
it stands training by PGD on the pooled data with as many steps. Exact: one client with one local step is central
training, N clients with K local steps attack N K times a round, and a round of two local steps is that by hand.
Support, the theory: a wide two-layer network on pairs of points with opposite labels at distance delta, one label a
client. No linear function has a mean robust |f - y| below 2 rho / delta there; where rho is delta / 2 none has below 1.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import PGD, Linf, RandomNoise
from assay.attacks.engine import GradientAttack
from assay.data import Data, dirichlet_split, load_data
from assay.defenses import FALTheoryReport, FedAvg, FederatedAT, PGDTraining, fal_theory_report
from assay.dynamics import TwoLayerReLU, separable_sphere
from assay.nets import MLP, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded
from assay.training import Plan

FAL, PLAIN, CENTRAL = "FAL", "FedAvg", "central"
EPS = 0.15
SGD: dict[str, Any] = {"optimizer": "sgd", "batch_size": 32, "lr": 0.05, "momentum": 0.9, "schedule": "constant"}
FULL: dict[str, Any] = {"optimizer": "sgd", "batch_size": 1000, "lr": 0.1, "momentum": 0.0}
DELTA, RHO = 0.6, 0.1  # of the theory's points

PAPER = Paper(
    slug="federated-at",
    title="Federated Adversarial Learning: A Framework with Convergence Analysis",
    authors="Xiaoxiao Li, Zhao Song, Jiaming Yang",
    year=2022,
    arxiv="2208.03635",
    room="defenses",
    also=("dynamics", "science"),
    kind="method + theory",
    implements=(
        "defenses.FederatedAT",
        "defenses.FedAvg",
        "defenses.fedavg",
        "defenses.fal_theory_report",
        "data.dirichlet_split",
        "dynamics.TwoLayerReLU",
        "dynamics.separability",
        "dynamics.margin",
    ),
    claim="Local adversarial training with averaging gives a robust shared model, also for clients with unlike data.",
    headline="A theorem: for wide two-layer ReLU networks and separable data the least global robust loss falls below "
    "any eps, with several local steps and clients that are not alike.",
    peers=("torch.optim.SGD", "adap/flower"),
    baselines=(PLAIN, CENTRAL),
    shams={
        "stale-attack": "the examples are made once a round, at the global weights, and used in all local steps",
        "random-perturbation": "the examples are uniform draws from the same ball instead of attacks",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits:test", "train": 200, "test": 50, "clients": 3, "warm": 1, "rounds": 1,
                           "theory": 2, "widths": (50, 100), "networks": 1}),
        Scale("claim", 5, {"data": "mnist:test", "train": 3000, "test": 300, "clients": 8, "warm": 60, "rounds": 10,
                           "theory": 40, "widths": (200, 800, 3200), "networks": 4}),
        Scale("gpu", 5, {"data": "mnist:train", "train": 40_000, "test": 2000, "clients": 10, "warm": 60, "rounds": 100,
                         "theory": 300, "widths": (200, 800, 3200, 12_800), "networks": 4}),
    ),
)  # fmt: skip


class _Stale(FederatedAT):
    def local(self, model: nn.Module, client: Data, plan: Plan, *, seed: int, **options: Any) -> nn.Module:
        worst = self.craft(model, client.x, client.y, client.index, client, derive(seed, "stale"))
        return self.plain().local(model, client.with_x(worst), plan, seed=seed, **options)


def method(sham: str | None, attack: GradientAttack, **options: Any) -> FederatedAT:
    """FAL with the inner attack, or what the sham makes of it."""
    if sham == "random-perturbation":
        attack = RandomNoise(ball=attack.ball)
    return (_Stale if sham == "stale-attack" else FederatedAT)(attack=attack, **options)


@cache
def _images(source: str) -> Data:
    return load_data(source)


def _row(arm: str, model: nn.Module, test: Data, seed: int) -> dict[str, Any]:
    worst = PGD(ball=Linf(EPS), steps=20)(model, test.x, test.y, seed=seed)
    rates = [float((predict(model, x).argmax(1) == test.y).float().mean()) for x in (test.x, worst)]
    return {"arm": arm, "clean": rates[0], "robust": rates[1]}


def pairs(n: int, d: int, *, seed: int) -> list[Data]:
    """Two clients, labels 1 and 0: n points (n, d) on the sphere each, every one with a partner at distance DELTA."""
    base = separable_sphere(n, d - 1, DELTA, seed=seed)
    rest = base[:, :-1] * ((0.75 - DELTA**2 / 4) / 0.75) ** 0.5
    clients = []
    for label in (1, 0):
        side = torch.full((n, 1), (2 * label - 1) * DELTA / 2, dtype=torch.float64)
        x = torch.cat((side, rest, base[:, -1:]), 1)
        clients.append(Data(x, torch.full((n,), label), ("-1", "1"), (-2.0, 2.0)))
    return clients


def _report(scale: Scale, seed: int, width: int, rho: float = RHO, steps: int = 5, **run: Any) -> FALTheoryReport:
    """A run of the theory; the product of local steps and rate is always the same."""
    fal = FederatedAT(
        loss="absolute", norm="l2", eps=rho, attack_steps=2, step_size=1.0, rounds=scale["theory"], local_steps=steps,
        optimizer="sgd", momentum=0.0, lr=0.5 / steps, schedule="cosine", batch_size=1000,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # balls that meet are part of what is measured
        return fal_theory_report(
            fal, TwoLayerReLU(10, width, seed), pairs(10, 10, seed=seed), seed=derive(seed, "theory"), **run
        )


def _theory(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Losses by round; the least one, with touching balls too, with one local step; the gap's slope over width."""
    widths = scale["widths"]
    run, meeting = _report(scale, seed, widths[1]), _report(scale, seed, widths[1], rho=DELTA / 2)
    single = _report(scale, seed, widths[1], steps=1)
    drawn = [derive(seed, k) for k in range(scale["networks"])]
    gaps = [np.mean([_report(scale, k, m, until=0.6).coupling_gap for k in drawn]) for m in widths]
    rows: list[dict[str, Any]] = [
        {"arm": name, "round": t, "loss": loss}
        for name, report in (("apart", run), ("touching", meeting))
        for t, loss in enumerate(report.losses)
    ]
    slope = np.polyfit(np.log(widths), np.log(gaps), 1)[0]
    ratio = run.losses[-1] / single.losses[-1]
    return [*rows, {"arm": "theory", "least": run.min_loss, "met": meeting.min_loss, "slope": slope, "ratio": ratio}]


class _Counter:
    """Counts over all copies of a network."""

    def __init__(self) -> None:
        self.value = 0

    def __deepcopy__(self, _: Any) -> _Counter:
        return self


class _Counted(nn.Module):
    """A network that counts the passes in which a gradient of its input is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.passes = MLP(hidden=(16,)), _Counter()

    def forward(self, x: Tensor) -> Tensor:
        self.passes.value += x.requires_grad
        return self.body(x)


def _by_hand(model: nn.Module, data: Data, steps: int) -> nn.Module:
    """Full-batch SGD, each step on three signed steps of EPS / 3 from the samples, against the present weights."""
    model = copy.deepcopy(model)
    for _ in range(steps):
        worst = data.x
        for _ in range(3):
            z = worst.clone().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(z), data.y, reduction="sum"), z)
            worst = (worst + EPS / 3 * grad.sign() - data.x).clamp(-EPS, EPS) + data.x
            worst = worst.clamp(0, 1)
        model.zero_grad()
        F.cross_entropy(model(worst), data.y).backward()
        torch.optim.SGD(model.parameters(), FULL["lr"]).step()
    return model


def _distance(a: nn.Module, b: dict[str, Tensor]) -> float:
    return max(float((v - b[k]).abs().max()) for k, v in a.state_dict().items())


def exact(seed: int, sham: str | None = None) -> dict[str, float]:
    """Distances from training by hand, attacks a round over N K, and from the linearity of the pseudo-network."""
    attack = PGD(ball=Linf(EPS), steps=3, step_size=1 / 3, random_start=False, early_stop=False)
    data = load_data("digits:train").limit(60, seed=seed)
    clients = [c.with_x(c.x.double()) for c in (data[:20], data[20:40], data[40:])]
    with seeded(seed, "exact"):
        single, counted = MLP(hidden=(16,)), _Counted().double()
    one = method(sham, attack, rounds=1, local_steps=1, **FULL).run(single, [data[:1]], seed=seed, track=False)
    two = method(sham, attack, rounds=1, local_steps=2, **FULL)
    double = copy.deepcopy(counted.body)
    ends = [_by_hand(double, c, 2).state_dict() for c in clients]
    mean = {k: torch.stack([e[k] for e in ends]).mean(0) for k in ends[0]}
    end = two.run(double, clients, seed=seed, track=False).model_
    two.run(counted, clients, seed=seed, track=False)
    a, b, both = (TwoLayerReLU(6, 50, seed) for _ in range(3))
    x = separable_sphere(20, 6, 0.1, seed=seed)
    with torch.no_grad(), seeded(seed, "move"):
        a.u.add_(torch.randn_like(a.u))
        b.u.add_(torch.randn_like(b.u))
        both.u.copy_(a.u + b.u - both.start)
        linear = float((both.pseudo(x) - a.pseudo(x) - b.pseudo(x)).abs().max())
    return {
        "central": _distance(one.model_, _by_hand(single, data[:1], 1).state_dict()),
        "unrolled": _distance(end, mean),
        "calls": counted.passes.value / attack.steps / (len(clients) * two.local_steps),
        "linear": linear,
    }


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Clients, held-out images, the weights that all start from, and what no sham changes."""
    data = _images(scale["data"])
    train, test = data.split(0.5, seed=seed)
    train, test = train.limit(scale["train"], seed=seed), test.limit(scale["test"], seed=seed)
    parts = dirichlet_split(train.y, scale["clients"], 0.3, seed=seed, min_size=32)
    clients = [train[rows] for rows in parts]
    channels, height, width = train.shape
    with seeded(seed, "init"):
        net = SmallCNN((channels, height, width), len(train.classes), (4, 8), 32)
    warm = FedAvg(rounds=scale["warm"], **SGD)
    start = warm.run(net, clients, seed=derive(seed, "warm"), track=False).model_
    plain = FedAvg(rounds=scale["rounds"], **SGD).run(start, clients, seed=seed, track=False).model_
    steps = scale["rounds"] * FedAvg().local_steps
    pooled = PGDTraining(eps=EPS, attack_steps=3, step_size=0.5, steps=steps, **SGD).fit(start, train, seed=seed)
    rows = [_row(arm, model, test, seed) for arm, model in ((PLAIN, plain), (CENTRAL, pooled))]
    return {"clients": clients, "test": test, "start": start, "rows": [*rows, *_theory(scale, seed)]}


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """FAL, or what the sham makes of it, on the clients; the exact checks of the same method."""
    attack = PGD(ball=Linf(EPS), steps=3, step_size=0.5, early_stop=False)
    fal = method(sham, attack, rounds=scale["rounds"], **SGD)
    model = fal.run(given["start"], given["clients"], seed=seed, track=False).model_
    row = _row(FAL, model, given["test"], seed)
    return Table.of([row, *given["rows"], {"arm": "exact", **exact(seed, sham)}])


def claims(table: Table) -> list[Claim]:
    """Robust accuracy over plain averaging and the exact checks decide; the theory's measurements support."""
    both = ("stale-attack", "random-perturbation")

    def exactly(text: str, column: str, at_most: float, refuted_by: tuple[str, ...], key: bool = True) -> Claim:
        observed = table.per_seed(column, np.max)
        return Claim(text, observed, at_most=at_most, rule="exact", key=key, refuted_by=refuted_by)

    return [
        Claim(
            "accuracy under PGD-20 of FAL over the federation without attacks",
            table.gain(FAL, PLAIN, "robust"),
            at_least=0.3,
            refuted_by=("random-perturbation",),
        ),
        exactly(
            "one client, one local step, one sample: largest difference from a central step by hand",
            "central", 0.0, ("random-perturbation",),
        ),
        exactly("three clients, two local steps: largest difference from training by hand", "unrolled", 1e-6, both),
        Claim(
            "attacks made in a round of N clients with K local steps, over N K",
            table.per_seed("calls", np.max),
            at_least=1.0,
            at_most=1.0,
            rule="exact",
            refuted_by=both,
        ),
        exactly("the pseudo-network is linear in U: largest difference", "linear", 1e-9, (), key=False),
        Claim(
            "accuracy under PGD-20 of FAL over PGD training on the pooled data, as many steps",
            table.gain(FAL, CENTRAL, "robust"),
            at_least=-0.12,
            key=False,
        ),
        Claim(
            "theory, rho = delta / 6: least global robust loss; a linear function has at least 1/3",
            table.per_seed("least"),
            at_most=1 / 3,
            key=False,
        ),
        Claim(
            "theory, rho = delta / 2: least global robust loss; any function has at least 1",
            table.per_seed("met"),
            at_least=0.7,
            key=False,
        ),
        Claim(
            "theory: final loss with 5 local steps over that with 1 of five times the rate",
            table.per_seed("ratio"),
            at_least=0.8,
            at_most=1.2,
            key=False,
        ),
        Claim(
            "theory: slope of log |f - g| over log width, at robust loss 0.6",
            table.per_seed("slope"),
            at_most=-0.1,
            key=False,
        ),
    ]  # fmt: skip


def figure(table: Table) -> Figure:
    """Clean and robust accuracy of each arm, one dot a seed; the theory's robust loss by round, one line a seed."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for column, shift, mark in (("clean", -0.1, "s"), ("robust", 0.1, "o")):
        for place, arm in enumerate((PLAIN, FAL, CENTRAL)):
            values = table.per_seed(column, arm=arm)
            left.plot(values, np.full(len(values), place + shift), mark, ms=4, color="0.6" if mark == "s" else "C0")
    left.set(yticks=range(3), yticklabels=["FedAvg", "FAL", "PGD training,\npooled data"], xlim=(-0.02, 1))
    left.set(xlabel="accuracy: clean (squares), PGD-20 (dots)", title="Held-out images")
    left.invert_yaxis()
    for arm, color in (("apart", "C0"), ("touching", "C3")):
        for number, seed in enumerate(dict.fromkeys(r["seed"] for r in table.rows)):
            losses = table.values("loss", arm=arm, seed=seed)
            right.plot(losses, color=color, lw=1, label=f"balls {arm}" if number == 0 else None)
    right.axhline(2 * RHO / DELTA, color="0.6", lw=0.8, ls="--")
    right.set(xlabel="round", ylabel="global robust loss", title="Two-layer network", ylim=(0, None))
    right.legend(frameon=False)
    return drawing
