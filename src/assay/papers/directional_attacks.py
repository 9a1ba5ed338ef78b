"""Directional attacks: a network's inputs optimised by attacks along a direction of its outputs and by direct search.

Exact, on drawn linear maps: the attack operator is the closed form x + r W^T u / |W^T u| or x + r sign(W^T u). Learned,
counterfactuals of tumours (30 features): the nearest input that a network gives to the other class with a margin of 1,
from the nearest training point that has it. Hybrid and covering direct search (DFO) have the same budget of
evaluations, gradients charged as such; a gain is the share by which the hybrid's squared distance is the smaller.

Attacks alone are compared at the gpu scale only: in pilots the two tie (the hybrid is the better one on 62% of 16
starts after 1000 evaluations), as attacks that slide along the margin do not get stuck here. Not run: the
diabetes regressor (P1), whose starts split evenly, and pixels with a bound on their total variation (P3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from assay.attacks import AttackOperator, GradientAttack
from assay.attacks.attack_operator import DirectionalAscent, DirectionalStep
from assay.attacks.engine import Climb
from assay.data import Data
from assay.decide import CDSM, AttackSearch, HybridAttackSearch, NetworkObjective, OptResult
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.training import Supervised

MARGIN = 1.0
ATTACKS: tuple[Literal["fgsm", "pgd"], ...] = ("fgsm", "pgd")
READ = (100, 300, 1000)  # evaluations after which the best value is read off

PAPER = Paper(
    slug="directional-attacks",
    title="Optimization by Directional Attacks: Solving Problems with Neural Network Surrogates",
    authors="Pierre-Yves Bouchet, Thibaut Vidal",
    year=2025,
    arxiv="2510.01461",
    room="decide",
    also=("attacks",),
    kind="method + theory",
    implements=(
        "attacks.AttackOperator",
        "attacks.Direction",
        "decide.HybridAttackSearch",
        "decide.AttackSearch",
        "decide.CDSM",
        "decide.NetworkObjective",
        "decide.OptResult",
    ),
    claim="Attacks along a direction of the outputs, put before a covering direct search, find better inputs sooner.",
    headline="Three problems with networks in them: the hybrid beats derivative-free search, attacks alone get stuck.",
    baselines=("dfo",),
    shams={
        "random-direction": "each attack goes along a random direction instead of J^T u: same radius and charge",
        "wrong-sign": "the attack descends <u, Phi> instead of climbing it: same radius and charge",
    },
    scales=(
        Scale("smoke", 1, {"epochs": 5, "starts": 2, "early": 1, "evals": 100, "maps": 2, "attacks": False}),
        Scale("claim", 5, {"epochs": 30, "starts": 6, "early": 12, "evals": 1000, "maps": 20, "attacks": False}),
        Scale("gpu", 10, {"epochs": 30, "starts": 20, "early": 20, "evals": 1000, "maps": 50, "attacks": True}),
    ),
)


class _Aside:
    """Goes to the edge of the ball along one random direction, whatever the gradients are; the end counts."""

    def move(self: Any, run: Climb) -> Tensor:
        if "aside" not in run.memory:
            run.memory["aside"] = run.draws.normal(*run.z.shape[1:]).to(run.z)
        run.grad = run.memory["aside"]
        return GradientAttack.move(self, run)

    def settle(self: Any, run: Climb) -> Tensor:
        return GradientAttack.settle(self, run)


class _Away:
    """Climbs the negative of the objective."""

    def objective(self: Any, logits: Tensor, goal: Any) -> Tensor:
        return -goal.likelihood(logits)


@dataclass(frozen=True, kw_only=True)
class _AsideStep(_Aside, DirectionalStep):
    contract: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class _AsideAscent(_Aside, DirectionalAscent):
    contract: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class _AwayStep(_Away, DirectionalStep):
    contract: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class _AwayAscent(_Away, DirectionalAscent):
    contract: ClassVar[bool] = True


SHAMMED: dict[str, tuple[type[DirectionalStep], type[DirectionalAscent]]] = {
    "random-direction": (_AsideStep, _AsideAscent),
    "wrong-sign": (_AwayStep, _AwayAscent),
}


@dataclass(frozen=True, kw_only=True)
class _Operator(AttackOperator):
    """AttackOperator, or one of its shams."""

    sham: str | None = None

    def climber(self, radius: float) -> GradientAttack:
        real = super().climber(radius)
        if self.sham is None:
            return real
        step, ascent = SHAMMED[self.sham]
        if isinstance(real, DirectionalAscent):
            return ascent(ball=real.ball, steps=real.steps, bounds=real.bounds)
        return step(ball=real.ball, bounds=real.bounds)


def linear(count: int, seed: int, sham: str | None) -> float:
    """The largest distance of the operator from its closed form, over drawn linear maps, norms, attacks and radii."""
    g, worst = torch_rng(seed, "linear"), 0.0
    for number in range(count):
        phi = nn.utils.skip_init(nn.Linear, 6, 4, dtype=torch.float64)
        weight, bias, x, u = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((4, 6), (4,), (6,), (4,)))
        phi.load_state_dict({"weight": weight, "bias": bias})
        pulled = weight.T @ u
        steepest = {2: pulled / pulled.norm(), math.inf: pulled.sign()}
        for norm, radius, kind in product((2, math.inf), (0.01, 1.0), ATTACKS):
            found = _Operator(attack=kind, norm=norm, sham=sham)(phi, x, u, radius, seed=derive(seed, number))
            worst = max(worst, float((found - x - radius * steepest[norm]).norm()) / radius)
    return worst


class Counterfactual(nn.Module):
    """x (k, d) to (k, 1 + d): the margin by which a network gives x to ``wanted`` of two classes, and x."""

    def __init__(self, net: nn.Module, wanted: int) -> None:
        super().__init__()
        self.net, self.wanted = net, wanted

    def forward(self, x: Float[Tensor, "k d"]) -> Float[Tensor, "k e"]:
        logits = self.net(x)
        return torch.cat((logits[:, self.wanted, None] - logits[:, 1 - self.wanted, None], x), 1)


@cache
def _tumours() -> Data:
    """Standardised features (569, 30) and labels."""
    table = load_breast_cancer()
    x = torch.from_numpy((table.data - table.data.mean(0)) / table.data.std(0)).float()
    return Data(x, torch.from_numpy(table.target).long(), ("malignant", "benign"), (-20.0, 20.0), "tumours")


@dataclass(frozen=True)
class _Problem:
    """One input to change: the network's outputs, the input, a feasible start and the box of the data."""

    phi: Counterfactual
    query: Tensor
    start: Tensor
    box: tuple[Tensor, Tensor]

    def nearness(self, y: Tensor) -> Tensor:
        return -(y[1:] - self.query).square().sum()

    def shortfall(self, y: Tensor) -> Tensor:
        return MARGIN - y[:1]


def _problems(scale: Scale, seed: int) -> list[_Problem]:
    """A trained network, and inputs that each start from the nearest one of the other class."""
    data = _tumours()
    with seeded(seed, "init"):
        start = MLP(data.shape, 2, (64, 64))
    net = Supervised(epochs=scale["epochs"], batch_size=32).fit(start, data, seed=seed).double().eval()
    x = data.x.double()
    with torch.no_grad():
        logits = net(x)
    box = (x.amin(0), x.amax(0))
    found = []
    for i in numpy_rng(seed, "queries").permutation(len(x))[: scale["starts"] + scale["early"]]:
        wanted = 1 - int(logits[i].argmax())
        there = x[logits[:, wanted] - logits[:, 1 - wanted] >= MARGIN]
        near = there[(there - x[i]).square().sum(1).argmin()]
        found.append(_Problem(Counterfactual(net, wanted), x[i], near, box))
    return found


def _solve(arm: str, p: _Problem, evals: int, seed: int, sham: str | None = None) -> OptResult:
    cdsm = CDSM(max_evals=evals)
    if arm == "dfo":
        return cdsm.maximize(NetworkObjective(p.phi, p.nearness, p.shortfall), p.start, p.box, seed=seed)
    search = AttackSearch if arm == "attacks only" else HybridAttackSearch
    method = search(operator=_Operator(steps=5, sham=sham), cdsm=cdsm)
    return method.maximize(p.phi, p.nearness, p.start, p.shortfall, p.box, seed=seed)


def _rows(arm: str, given: dict[str, Any], scale: Scale, seed: int, sham: str | None = None) -> list[dict[str, Any]]:
    """One row a start and number of evaluations: the squared distance, and by how much the margin is missed.

    Starts beyond the first ``scale["starts"]`` get only the first number of evaluations.
    """
    rows = []
    for number, p in enumerate(given["problems"]):
        reads = READ if number < scale["starts"] else READ[:1]
        budget = min(reads[-1], scale["evals"])
        result = _solve(arm, p, budget, derive(seed, "search", number), sham)
        with torch.no_grad():
            short = float(p.shortfall(p.phi(result.x[None])[0]))
        for read in reads:
            distance = -result.at(min(read, budget))
            rows.append({"arm": arm, "start": number, "evals": read, "distance": distance, "short": short})
    return rows


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The problems, and the rows of the arms that no sham changes."""
    given: dict[str, Any] = {"problems": _problems(scale, seed)}
    arms = ("dfo", "attacks only") if scale["attacks"] else ("dfo",)
    given["references"] = {arm: _rows(arm, given, scale, seed) for arm in arms}
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The closed form, and the hybrid with its gains over the other arms from the same starts."""
    exact = {"arm": "operator", "difference": linear(scale["maps"], seed, sham)}
    hybrid = _rows("hybrid", given, scale, seed, sham)
    for arm, references in given["references"].items():
        for row, reference in zip(hybrid, references, strict=True):
            row[f"gain over {arm}"] = 1 - row["distance"] / reference["distance"]
    return Table.of([exact, *hybrid, *(row for rows in given["references"].values() for row in rows)])


def claims(table: Table) -> list[Claim]:
    """The closed form and the gains over direct search decide; feasibility and attacks alone support."""
    both = ("random-direction", "wrong-sign")
    wins = table.values("gain over dfo", evals=1000)
    return [
        Claim(
            "linear Phi: largest distance of A_r(x) from x + r W^T u / |W^T u| or x + r sign(W^T u), in radii",
            table.per_seed("difference", np.max),
            at_most=1e-9,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "counterfactuals: median gain of the hybrid over direct search after 1000 evaluations",
            table.per_seed("gain over dfo", np.median, evals=1000),
            at_least=0.15,
            refuted_by=both,
        ),
        Claim(
            "counterfactuals: gain in the geometric mean of the distances after 100 evaluations",
            table.per_seed("gain over dfo", lambda gains: -np.expm1(np.log1p(-gains).mean()), evals=100),
            at_least=0.1,
            refuted_by=both,
        ),
        Claim(
            "the hybrid is at least as good as direct search after 1000 evaluations on 90% of the starts: gain",
            wins,
            at_least=0.0,
            rule="k-of-n",
            k=math.ceil(0.9 * len(wins)),
        ),
        Claim(
            "every point found has the margin: largest shortfall",
            table.per_seed("short", np.max),
            at_most=0.0,
            rule="exact",
            key=False,
        ),
        *_attacks_alone(table),
    ]


def _attacks_alone(table: Table) -> list[Claim]:
    """Where attacks alone were run: the hybrid is at least as good on 80% of the starts."""
    if not table.where(arm="attacks only").rows:
        return []
    leads = table.values("gain over attacks only", evals=1000)
    return [
        Claim(
            "the hybrid is at least as good as attacks alone after 1000 evaluations on 80% of the starts: gain",
            leads,
            at_least=0.0,
            rule="k-of-n",
            k=math.ceil(0.8 * len(leads)),
            key=False,
        )
    ]


def figure(table: Table) -> Figure:
    """Median squared distance over the evaluations, one line an arm, and the gain over direct search by start."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    full = {r["start"] for r in table.where(evals=READ[-1]).rows}
    for arm, label in (("dfo", "direct search"), ("attacks only", "attacks only"), ("hybrid", "hybrid")):
        rows = Table(tuple(r for r in table.where(arm=arm).rows if r["start"] in full))
        if rows.rows:
            left.plot(READ, [np.median(rows.values("distance", evals=k)) for k in READ], "-o", label=label)
    left.set(xscale="log", xlabel="evaluations", ylabel="squared distance", title="Counterfactuals, median over starts")
    left.legend(frameon=False)
    gains = np.sort(table.values("gain over dfo", evals=READ[-1]))
    right.bar(range(len(gains)), gains)
    right.set(xlabel="start, sorted", ylabel="gain", title="Hybrid over direct search, 1000 evaluations")
    return drawing
