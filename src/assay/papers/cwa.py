"""The common weakness attack: an inner pass over the surrogates one after the other hits also the hardest of them.

Exact: with momentum 0 and nothing cut off, the inner pass by steps b moves, averaged over all orders of the models, by
b sum_i u_i + (b^2 / 2) sum_{i != j} J_i u_j + O(b^3), where u_i is the unit gradient of model i at the start, J_i its
derivative. The second term is the gradient of pairwise similarity; a plain sum of gradients has none. Checked by
automatic differentiation on smooth networks, as the slope of what is left over b on logarithmic axes.

Learned: three plain networks and an adversarially trained one as surrogates, and how often the latter is fooled, at two
radii, beside the momentum attack (MI) on mean logits with as many steps or with as many gradients, the better of both.
The rate at which other networks are fooled is a claim of the gpu scale: networks as small as these differ by a point.
Similarity of gradients, flatness, distance to optima and the mean cross-entropy of the surrogates are reported; here
they do not tell the methods apart (in pilots the mean was below that of MI with 20 steps by .06 to .19).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import grad, jvp

from assay.attacks import CSE_MI, CWA, MIFGSM, SAM_MI, Ensemble, Linf, Untargeted, common_weakness_stats
from assay.attacks.engine import Climb
from assay.data import Data, load_data
from assay.defenses import PGDTraining
from assay.nets import MLP, ResNet
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import Draws, derive, seeded, torch_rng
from assay.training import Supervised

STEPS = (0.04, 0.02, 0.01, 0.005)  # b of the expansion
HARD = 3  # the place of the surrogate that is trained adversarially
REPORTED = 20  # images that flatness is measured on
ARMS = {"mi": "MI", "mi-20": "MI, 20 steps", "sam": "MI-SAM", "cse": "MI-CSE", "cwa": "MI-CWA"}

SMALL = {"targets": False, "deep": False}
PAPER = Paper(
    slug="cwa",
    title="Rethinking Model Ensemble in Transfer-based Adversarial Attacks",
    authors="Huanran Chen, Yichi Zhang, Yinpeng Dong, Xiao Yang, Hang Su, Jun Zhu",
    year=2023,
    arxiv="2303.09105",
    room="attacks",
    kind="method + theory",
    implements=(
        "attacks.CWA",
        "attacks.CSE_MI",
        "attacks.SAM_MI",
        "attacks.Ensemble",
        "attacks.gradient_cosine",
        "attacks.common_weakness_stats",
    ),
    claim="A pass over the surrogates in turn raises their gradients' similarity and hits the hardest of them, too.",
    headline="ImageNet: up to 30 points more than the momentum attack on adversarially trained black boxes.",
    peers=("huanranchen/AdversarialAttacks", "torchattacks", "TransferAttack"),
    baselines=("mi", "mi-20", "sam"),
    shams={
        "stuck-index": "every gradient of the inner pass is that of the first surrogate; their number and steps stay",
        "simultaneous-pass": "the gradients of the inner pass are all taken where it starts; number and steps stay",
    },
    scales=(
        Scale("smoke", 1, {**SMALL, "data": "digits:test", "train": 300, "epochs": 6, "hardening": 3, "images": 30,
                           "at": 0.15, "eps": (0.16, 0.2)}),
        Scale("claim", 6, {**SMALL, "data": "mnist:test", "train": 2000, "epochs": 25, "hardening": 6, "images": 400,
                           "at": 0.15, "eps": (0.16, 0.2)}),
        Scale("gpu", 5, {"targets": True, "deep": True, "data": "cifar10:train", "train": 20_000, "epochs": 30,
                         "hardening": 30, "images": 1000, "at": 4 / 255, "eps": (8 / 255, 16 / 255)}),
    ),
)  # fmt: skip


class _Stuck:
    """Sees the first surrogate only."""

    def order(self, model: nn.Module) -> list[nn.Module]:
        first, *rest = super().order(model)  # type: ignore[misc]
        return [first] * (1 + len(rest))


class _Simultaneous:
    """Takes all gradients where the pass starts."""

    def unit(self, run: Climb, z: Tensor, model: nn.Module) -> Tensor:
        return super().unit(run, run.memory["start"], model)  # type: ignore[misc]

    def sweep(self, run: Climb, z: Tensor) -> Tensor:
        run.memory["start"] = z
        return super().sweep(run, z)  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class _StuckCWA(_Stuck, CWA):
    contract: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class _StuckCSE(_Stuck, CSE_MI):
    contract: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class _SimultaneousCWA(_Simultaneous, CWA):
    contract: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class _SimultaneousCSE(_Simultaneous, CSE_MI):
    contract: ClassVar[bool] = True


METHODS: dict[str | None, dict[str, type[CWA]]] = {
    None: {"cse": CSE_MI, "cwa": CWA},
    "stuck-index": {"cse": _StuckCSE, "cwa": _StuckCWA},
    "simultaneous-pass": {"cse": _SimultaneousCSE, "cwa": _SimultaneousCWA},
}


def _smooth(seed: int) -> tuple[list[nn.Module], Tensor, Tensor]:
    """Three networks of 8 numbers without kinks, float64, and points with labels."""
    with seeded(seed, "smooth"):
        models: list[nn.Module] = [
            nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)).double() for _ in range(3)
        ]
    g = torch_rng(seed, "points")
    points = torch.randn(6, 8, generator=g, dtype=torch.float64)
    return models, points, torch.randint(3, (6,), generator=g)


def expansion(models: Sequence[nn.Module], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i u_i and sum_{i != j} J_i u_j / 2 at ``x``, by automatic differentiation; the models' parameters stay."""

    def unit(k: int, z: Tensor) -> Tensor:
        g = grad(lambda w: F.cross_entropy(models[k](w), y, reduction="sum"))(z)
        return g / g.flatten(1).norm(dim=1, keepdim=True)

    units = [unit(k, x).detach() for k in range(len(models))]
    total = sum(units[1:], units[0])
    turned = [jvp(lambda z, k=k: unit(k, z), (x,), (total - units[k],))[1].detach() for k in range(len(models))]
    return total, sum(turned[1:], turned[0]) / 2


def residual_slope(method: type[CWA], seed: int) -> float:
    """The slope, over the step b on logarithmic axes, of what the expansion leaves of the mean displacement."""
    models, x, y = _smooth(seed)
    first, second = expansion(models, x, y)
    left = []
    for b in STEPS:
        attack = method(ball=Linf(10), bounds=(-np.inf, np.inf), inner_step=b, momentum=0, reverse_step=0)
        moved = []
        for order in permutations(models):
            run = Climb(attack, Ensemble(order), x, Untargeted(y), Draws(seed, "order", torch.arange(len(x))))
            moved.append(attack.sweep(run, x) - x)
        mean = torch.stack(moved).mean(0)
        left.append(float((mean - b * first - b**2 * second).norm()))
    return float(np.polyfit(np.log(STEPS), np.log(left), 1)[0])


@cache
def _images(source: str) -> Data:
    return load_data(source)


def _network(data: Data, k: int, scale: Scale, seed: int) -> nn.Module:
    """The k-th network before training; every fourth is to be trained adversarially."""
    channels, height, width = data.shape
    shape, classes = (channels, height, width), len(data.classes)
    with seeded(derive(seed, k), "init"):
        if scale["deep"]:
            return ResNet(shape, classes, (16, 24, 32, 16)[k % 4], ((1, 1, 1), (2, 2, 2))[k % 2])
        return MLP(shape, classes, ((64,), (128, 64), (64, 64, 64), (128,))[k % 4])


def _trained(data: Data, k: int, scale: Scale, seed: int) -> nn.Module:
    start = _network(data, k, scale, seed)
    if k % 4 != HARD:
        return Supervised(epochs=scale["epochs"]).fit(start, data, seed=derive(seed, k))
    hardening = PGDTraining(epochs=scale["hardening"], eps=scale["at"], attack_steps=3, step_size=0.5)
    return hardening.fit(start, data, seed=derive(seed, k))


def _row(arm: str, attack: MIFGSM, given: dict[str, Any], seed: int, *, report: bool = True) -> dict[str, Any]:
    """How often the hardened surrogate and the targets are fooled, and the cross-entropies of the surrogates."""
    models, x, y = given["models"], given["x"], given["y"]
    x_adv = attack(Ensemble(models), x, y, seed=seed)
    logits = [predict(m, x_adv) for m in models]
    losses = [float(F.cross_entropy(z, y)) for z in logits]
    row = {"arm": arm, "eps": attack.ball.eps, "mean_ce": np.mean(losses), "least_ce": min(losses)}
    row["hardest"] = float((logits[HARD].argmax(1) != y).double().mean())
    if report:
        few = slice(0, REPORTED)
        there = (x[few], x_adv[few], y[few])
        stats = common_weakness_stats(models, *there, seed=seed, ball=attack.ball, probes=3, steps=10)
        row["cosine"], row["flatness"] = float(stats.closeness.mean()), float(stats.flatness.mean())
        row["distance"] = float(stats.distance.mean())
    if given["targets"]:
        fooled = [(predict(m, x_adv).argmax(1) != y).double().mean() for m in given["targets"]]
        row["transfer"] = float(torch.stack(fooled).mean())
    return row


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Surrogates, targets, images that all classify correctly, and the rows of the arms that no sham changes."""
    parts = 1 + scale["targets"]
    data = _images(scale["data"])
    order = torch.randperm(len(data), generator=torch_rng(seed, "parts"))
    data = data[order[: parts * scale["train"] + 4 * scale["images"]]]
    train, rest = data[: scale["train"]], data[parts * scale["train"] :]
    models = [_trained(train, k, scale, seed) for k in range(4)]
    targets = []
    if scale["targets"]:
        others = data[scale["train"] : 2 * scale["train"]]
        targets = [_trained(others, k, scale, seed) for k in range(4, 8)]
    right = torch.stack([predict(m, rest.x).argmax(1) == rest.y for m in (*models, *targets)]).all(0)
    images = rest[right].limit(scale["images"])
    given: dict[str, Any] = {"models": models, "targets": targets, "x": images.x, "y": images.y}
    given["references"] = []
    for eps in scale["eps"]:
        arms = {
            "mi": MIFGSM(ball=Linf(eps), step_size=1 / 5),
            "mi-20": MIFGSM(ball=Linf(eps), step_size=1 / 5, steps=20),
            "sam": SAM_MI(ball=Linf(eps)),
        }
        given["references"] += [_row(arm, attack, given, seed) for arm, attack in arms.items()]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The slope of the residual; at each radius each method's rates, and its gains over the better of the MI arms."""
    rows: list[dict[str, Any]] = [{"arm": "expansion", "slope": residual_slope(METHODS[sham]["cwa"], seed)}]
    for arm, method in METHODS[sham].items():
        for eps in scale["eps"]:
            row = _row(arm, method(ball=Linf(eps)), given, seed, report=sham is None)
            peers = [r for r in given["references"] if r["eps"] == eps and r["arm"] in ("mi", "mi-20")]
            for column in ("hardest", "least_ce", "cosine", "transfer"):
                if column in row:
                    row[f"gain {column}"] = row[column] - max(r[column] for r in peers)
            rows.append(row)
    return Table.of([*rows, *given["references"]])


def claims(table: Table) -> list[Claim]:
    """The expansion and the hardest surrogate decide; cross-entropies support, and transfer where targets were run."""
    found = [
        Claim(
            "what the expansion leaves of the displacement of the inner pass falls as b^3: slope over b",
            table.per_seed("slope", np.min),
            at_least=2.8,
            rule="exact",
            refuted_by=("stuck-index", "simultaneous-pass"),
        )
    ]
    for arm in ("cse", "cwa"):
        found += [
            Claim(
                f"{ARMS[arm]} fools the adversarially trained surrogate more often than MI: gain, mean of both radii",
                table.per_seed("gain hardest", arm=arm),
                at_least=0.01,
                refuted_by=("stuck-index",),
            ),
            Claim(
                f"{ARMS[arm]}: gain over MI in the lowest of the surrogates' cross-entropies",
                table.per_seed("gain least_ce", arm=arm),
                at_least=0.03,
                key=False,
                refuted_by=("stuck-index",),
            ),
        ]
    return found + _transfer(table)


def _transfer(table: Table) -> list[Claim]:
    """Where targets were run: MI-CWA fools them more often, and has surrogates whose gradients are more alike."""
    if not any("transfer" in r for r in table.rows):
        return []
    bounds = {"transfer": 0.03, "cosine": 0.0}
    texts = {"transfer": "networks that it has not seen are fooled", "cosine": "cosine of the surrogates' gradients"}
    return [
        Claim(
            f"MI-CWA: {texts[column]}: gain over MI, mean of both radii",
            table.per_seed(f"gain {column}", arm="cwa"),
            at_least=bound,
            key=False,
        )
        for column, bound in bounds.items()
        if any(f"gain {column}" in r for r in table.rows)
    ]


def figure(table: Table) -> Figure:
    """How often the hardest surrogate is fooled by attack and radius, and the lowest of the cross-entropies."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    radii = np.unique(table.values("eps"))
    for axes, column in ((left, "hardest"), (right, "least_ce")):
        for k, eps in enumerate(radii):
            heights = [table.per_seed(column, arm=arm, eps=eps).mean() for arm in ARMS]
            axes.bar(np.arange(len(ARMS)) + 0.4 * (k - 0.5), heights, 0.36, label=f"eps = {eps:.3g}")
        axes.set_xticks(range(len(ARMS)), [a.replace(", ", ",\n") for a in ARMS.values()])
    left.set(title="adversarially trained surrogate", ylabel="share fooled")
    right.set(title="lowest cross-entropy of a surrogate", ylabel="nats")
    left.legend(frameon=False)
    return drawing
