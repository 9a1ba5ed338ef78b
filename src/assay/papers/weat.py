"""Energies of a classifier: what attacks do to them, and adversarial training that weights samples by them.

Of the points that two attacks of one size find, the targeted ones have the higher energy E(x). Weighted by energy,
samples near the decision boundary count more, at no cost in accuracy under attack. Exact: cross-entropy and divergence
in energies, and the loss against the released formula written out in float64. On which side of E(x) untargeted points
end depends on how far the attack goes past the boundary: at the largest radius they end below it on the ordinary
network, and above it on one trained by PGD, whose loss the attack cannot raise as far. The paper reports large robust
models, where they end below.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr
from torch import Tensor, nn

from assay.attacks import PGD, Linf, Targeted, Untargeted
from assay.data import Data, load_data
from assay.defenses import MART, TRADES, WEAT, PGDTraining
from assay.dynamics import joint_energy, marginal_energy
from assay.losses import WEATLoss
from assay.nets import MLP, ResNet, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import pick_device, predict
from assay.runtime.random import derive, seeded, torch_rng
from assay.training import Supervised, Trainer

Variant = Literal["nat", "adv"]
VARIANTS: dict[Variant, float] = {"nat": 6.0, "adv": 7.0}  # with their published beta
ROWS, CLASSES = 200, 10  # of the exact checks

PAPER = Paper(
    slug="weat",
    title="Shedding More Light on Robust Classifiers under the lens of Energy-based Models",
    authors="Mujtaba Hussain Mirza, Maria Rosaria Briglia, Senad Beadini, Iacopo Masi",
    year=2024,
    arxiv="2407.06315",
    room="losses",
    also=("dynamics", "generate"),
    kind="method + measure",
    implements=(
        "losses.WEATLoss",
        "losses.energy_weights",
        "defenses.WEAT",
        "defenses.RobustSGLD",
        "dynamics.marginal_energy",
        "dynamics.joint_energy",
        "dynamics.energy_gap",
        "dynamics.EnergyTracker",
    ),
    claim="Targeted attacks end at higher energy than untargeted ones; weights by energy favour small margins.",
    headline="CIFAR-100, Tiny-ImageNet: about a point more under AutoAttack than TRADES and MART; untargeted attacks "
    "lower E(x) and targeted ones raise it for all models of RobustBench.",
    peers=("yaodongyu/TRADES", "OmnAI-Lab/Robust-Classifiers-under-the-lens-of-EBM"),
    baselines=("trades", "mart"),
    shams={
        "dropped-reciprocal": "the weight is log(1 + exp |E(x)|) instead of its reciprocal",
        "plus-logsumexp": "E(x) is +logsumexp: its sign is lost",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "pool": 1, "train": 250, "test": 200, "points": 60, "steps": 8, "pgd": 5,
                           "radii": (0.1, 0.2), "ordinary": 6, "epochs": 6, "attack_steps": 3, "eps": 0.1,
                           "residual": False}),
        Scale("claim", 5, {"data": "mnist", "pool": 2, "train": 1600, "test": 2000, "points": 400, "steps": 20,
                           "pgd": 10, "radii": (0.05, 0.1, 0.2), "ordinary": 12, "epochs": 10, "attack_steps": 5,
                           "eps": 0.1, "residual": False}),
        Scale("gpu", 5, {"data": "cifar10", "pool": 1, "train": 50_000, "test": 10_000, "points": 1000, "steps": 20,
                         "pgd": 20, "radii": (2 / 255, 4 / 255, 8 / 255), "ordinary": 50, "epochs": 100,
                         "attack_steps": 10, "eps": 8 / 255, "residual": True}),
    ),
)  # fmt: skip


class _DroppedReciprocal(WEATLoss):
    def weights(self, logits: Tensor) -> Tensor:
        return 1 / super().weights(logits)


class _WeatDropped(WEAT):
    def criterion(self) -> WEATLoss:
        return _DroppedReciprocal(self.variant, self.beta, self.normalize)


def _energy(logits: Tensor, sham: str | None) -> Tensor:
    return logits.logsumexp(1) if sham == "plus-logsumexp" else marginal_energy(logits)


@cache
def _images(source: str, pool: int) -> tuple[Data, Data]:
    train, test = (load_data(source, part) for part in ("train", "test"))
    if pool == 1:
        return train, test
    return train.with_x(F.avg_pool2d(train.x, pool)), test.with_x(F.avg_pool2d(test.x, pool))


def _net(scale: Scale, data: Data, seed: int, wide: bool) -> nn.Module:
    """For the energies a convolutional network, for the comparison of trainers a perceptron (a ResNet on a GPU)."""
    channels, height, width = data.shape
    with seeded(seed, "init", wide):
        if scale["residual"]:
            return ResNet((channels, height, width), len(data.classes), 64, (2, 2, 2, 2)).to(pick_device())
        if wide:
            return SmallCNN((channels, height, width), len(data.classes), (16, 32), 64)
        return MLP(data.shape, len(data.classes), (128, 64))


def _trainers(scale: Scale) -> dict[str, Trainer]:
    """All arms with one plan and one attack."""
    plan: dict[str, Any] = {"epochs": scale["epochs"], "batch_size": 128, "lr": 4e-3, "eps": scale["eps"]}
    plan |= {"attack_steps": scale["attack_steps"], "step_size": 0.3}
    return {
        "trades": TRADES(**plan),
        "mart": MART(**plan),
        "weat": WEAT(**plan),
        "dropped": _WeatDropped(**plan),
        "pgd": PGDTraining(**plan),
    }


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -np.inf).amax(1)


def _row(scale: Scale, arm: str, model: nn.Module, test: Data, seed: int) -> dict[str, Any]:
    attack = PGD(ball=Linf(scale["eps"]), steps=scale["pgd"], bounds=test.bounds)
    found = predict(model, attack(model, test.x, test.y, seed=derive(seed, "pgd")))
    clean = (predict(model, test.x).argmax(1) == test.y).float().mean()
    return {"arm": arm, "clean": float(clean), "pgd": float((found.argmax(1) == test.y).float().mean())}


def _weat_row(scale: Scale, model: nn.Module, rule: WEATLoss, test: Data, seed: int) -> dict[str, Any]:
    """As ``_row``, with the rank correlation of the weights with the margin."""
    logits = predict(model, test.x)
    follows = spearmanr(rule.weights(logits), _margin(logits, test.y))[0]
    return {**_row(scale, "weat", model, test, seed), "follows": float(follows)}


def _logits(scale: Scale, model: nn.Module, test: Data, seed: int) -> dict[str, list[Tensor]]:
    """Logits of points that are classified correctly, and of what each attack makes of them at each radius."""
    right = (predict(model, test.x).argmax(1) == test.y).nonzero()[: scale["points"], 0]
    x, y, c = test.x[right], test.y[right], len(test.classes)
    target = (y + torch.randint(1, c, y.shape, generator=torch_rng(seed, "targets"))) % c
    found: dict[str, list[Tensor]] = {"clean": [predict(model, x)], "untargeted": [], "targeted": []}
    for eps in scale["radii"]:
        attack = PGD(ball=Linf(eps), steps=scale["steps"], early_stop=False, bounds=test.bounds)
        for name, goal in (("untargeted", Untargeted(y)), ("targeted", Targeted(target))):
            result = attack.run(model, x, goal, seed=derive(seed, name))
            found[name].append(predict(model, result.x_adv))
    return found


def _energies(scale: Scale, given: dict[str, Any], sham: str | None) -> list[dict[str, Any]]:
    """For each network and radius the mean changes of E(x), and how far the targeted attack ends above the other."""
    rows = []
    for name, logits in given["logits"].items():
        clean = _energy(logits["clean"][0], sham)
        for eps, plain, aimed in zip(scale["radii"], logits["untargeted"], logits["targeted"], strict=True):
            untargeted, targeted = (_energy(z, sham) - clean for z in (plain, aimed))
            gap = (targeted - untargeted).double()
            row = {"arm": f"energies, {name}", "eps": eps, "gap": float(gap.mean())}
            row["t"] = float(gap.mean() / gap.std() * len(gap) ** 0.5)
            rows.append(row | {"untargeted": float(untargeted.mean()), "targeted": float(targeted.mean())})
    return rows


def released(variant: Variant, beta: float, logits: np.ndarray, logits_adv: np.ndarray, y: np.ndarray) -> float:
    """The released loss written out: mean of w CE + beta w KL, probabilities raised by 1e-12 in the logarithm."""
    energy = -np.log(np.exp(logits).sum(1))
    w = 1 / np.log(1 + np.exp(np.abs(energy)))
    p, log_adv = softmax(logits, 1), np.log(softmax(logits_adv, 1) + 1e-12)
    own = log_softmax(logits if variant == "nat" else logits_adv, 1)[np.arange(len(y)), y]
    return float((w * -own).mean() + beta * (w * (p * (np.log(p) - log_adv)).sum(1)).mean())


def exact(seed: int, sham: str | None) -> dict[str, float]:
    """Errors, in float64: cross-entropy and KL in energies, the loss against the released one, equal energies."""
    g = torch_rng(seed, "exact")
    z, z_adv = (3 * torch.randn(ROWS, CLASSES, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.randint(CLASSES, (ROWS,), generator=g)
    own = log_softmax(z.numpy(), 1)[np.arange(ROWS), y.numpy()]
    p, log_p, log_adv = softmax(z.numpy(), 1), log_softmax(z.numpy(), 1), log_softmax(z_adv.numpy(), 1)
    marginal, marginal_adv = _energy(z, sham), _energy(z_adv, sham)
    every = torch.arange(CLASSES)
    joint, joint_adv = (torch.stack([joint_energy(logits, k.expand(ROWS)) for k in every], 1) for logits in (z, z_adv))
    drift = (z.softmax(1) * (joint_adv - joint)).sum(1) + marginal - marginal_adv
    rule = _DroppedReciprocal if sham == "dropped-reciprocal" else WEATLoss
    losses = [
        abs(float(rule(v, beta, strict_reference=True)(z, y, z_adv)) - released(v, beta, *_arrays(z, z_adv, y)))
        for v, beta in VARIANTS.items()
    ]
    return {
        "cross_entropy": float(np.abs((joint_energy(z, y) - marginal).numpy() + own).max()),
        "divergence": float(np.abs(drift.numpy() - (p * (log_p - log_adv)).sum(1)).max()),
        "released": max(losses),
        "trades": _against_trades(rule, z, z_adv, y),
    }


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.numpy() for t in tensors)


def _against_trades(rule: type[WEATLoss], z: Tensor, z_adv: Tensor, y: Tensor) -> float:
    """With one energy for all samples the gradient is a multiple of that of TRADES: 1 - cosine."""
    level = (z - z.logsumexp(1, keepdim=True) + 2).requires_grad_()
    other = z_adv.clone().requires_grad_()
    trades = F.cross_entropy(level, y) + 6 * F.kl_div(other.log_softmax(1), level.softmax(1), reduction="batchmean")
    pairs = [torch.autograd.grad(loss, (level, other)) for loss in (rule()(level, y, other), trades)]
    a, b = (torch.cat([g.flatten() for g in pair]) for pair in pairs)
    return float((1 - F.cosine_similarity(a, b, dim=0)).abs())


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Data, starts, logits of attacked points of an ordinary and a robust network, and the rows of the trainers."""
    whole, held = _images(scale["data"], scale["pool"])
    train, test = whole.limit(scale["train"], seed=seed), held.limit(scale["test"], seed=seed)
    start, trainers = _net(scale, train, seed, False), _trainers(scale)
    ordinary = Supervised(epochs=scale["ordinary"], batch_size=64).fit(_net(scale, train, seed, True), train, seed=seed)
    robust = trainers["pgd"].fit(start, train, seed=seed)
    given: dict[str, Any] = {"train": train, "test": test, "start": start}
    given["logits"] = {n: _logits(scale, m, test, seed) for n, m in (("ordinary", ordinary), ("robust", robust))}
    fitted = {arm: trainers[arm].fit(start, train, seed=seed) for arm in (*PAPER.baselines, "weat")}
    given["rows"] = [_row(scale, arm, fitted[arm], test, seed) for arm in PAPER.baselines]
    given["weat"] = _weat_row(scale, fitted["weat"], WEATLoss(), test, seed)
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Energies of attacked points, WEAT beside the baselines, how its weights follow the margin, exact checks."""
    row = given["weat"]
    if sham == "dropped-reciprocal":
        model = _trainers(scale)["dropped"].fit(given["start"], given["train"], seed=seed)
        row = _weat_row(scale, model, _DroppedReciprocal(), given["test"], seed)
    rows = [*given["rows"], row, *_energies(scale, given, sham)]
    return Table.of([*rows, {"arm": "exact", **exact(seed, sham)}])


def claims(table: Table) -> list[Claim]:
    """The order of the attacks by energy, the order of the weights and the exact checks decide."""
    ordinary: dict[str, Any] = {"arm": "energies, ordinary"}
    largest = {**ordinary, "eps": max(table.values("eps"))}
    radii = sorted(set(table.values("eps")))
    steps = np.diff([table.per_seed("gap", eps=eps, **ordinary) for eps in radii], axis=0).min(0)

    def identity(text: str, column: str, at_most: float, refuted_by: tuple[str, ...] = (), key: bool = True) -> Claim:
        observed = table.per_seed(column, np.max)
        return Claim(text, observed, at_most=at_most, rule="exact", key=key, refuted_by=refuted_by)

    return [
        Claim(
            "ordinary network, largest radius: E(x) after the targeted attack less that after the untargeted one",
            table.per_seed("gap", **largest),
            at_least=0.5,  # in a pilot 1.7, and -1.7 without the sign
            refuted_by=("plus-logsumexp",),
        ),
        Claim(
            "the same: paired t of the difference over points in each seed (p < 0.01 from 2.34 on)",
            table.per_seed("t", **largest),
            at_least=2.34,
            rule="k-of-n",
            k=5,
            refuted_by=("plus-logsumexp",),
        ),
        Claim(
            "rank correlation of WEAT's weights with the margin of its own network's logits",
            table.per_seed("follows", arm="weat"),
            at_most=-0.3,
            refuted_by=("dropped-reciprocal",),
        ),
        identity(
            "cross-entropy is E(x, y) - E(x), largest difference", "cross_entropy", 1e-12, ("plus-logsumexp",)
        ),
        identity(
            "KL(p || p_adv) is E_p[E(x_adv, y) - E(x, y)] + E(x) - E(x_adv), largest difference",
            "divergence",
            1e-11,
            ("plus-logsumexp",),
        ),
        identity(
            "both variants of the loss against the released formula in float64", "released", 1e-11,
            ("dropped-reciprocal",),
        ),
        identity("one energy for all samples: 1 - cosine to the gradient of TRADES", "trades", 1e-12, key=False),
        Claim("the first difference grows with every radius: least increase", steps, at_least=0.0, key=False),
        Claim(
            "ordinary network, largest radius: change of E(x) under the untargeted attack",
            table.per_seed("untargeted", **largest),
            at_most=0.0,
            key=False,
        ),
        Claim(
            "accuracy under PGD of WEAT over TRADES",
            table.gain("weat", "trades", "pgd"),
            at_least=-0.01,
            key=False,
        ),
    ]  # fmt: skip


def figure(table: Table) -> Figure:
    """Changes of E(x) over the radius of both attacks, and accuracy of the trainers."""
    drawing = Figure(figsize=(9.6, 3.3), layout="constrained")
    axes = drawing.subplots(1, 3)
    radii = sorted(set(table.values("eps")))
    for ax, net in zip(axes, ("ordinary", "robust"), strict=False):
        for goal in ("untargeted", "targeted"):
            runs = np.stack([table.per_seed(goal, arm=f"energies, {net}", eps=eps) for eps in radii])
            (line,) = ax.plot(radii, runs.mean(1), "-o", label=goal)
            ax.plot(radii, runs, ".", ms=4, color=line.get_color(), alpha=0.4)
        ax.axhline(0, color="0.6", lw=0.8)
        ax.set(xlabel="radius", ylabel="change of E(x)", title=f"{net} network")
    axes[0].legend(frameon=False)
    arms = (*PAPER.baselines, "weat")
    for column, marker in (("clean", "s"), ("pgd", "o")):
        values = np.stack([table.per_seed(column, arm=arm) for arm in arms])
        axes[2].plot(values, np.arange(len(arms)), marker, ms=3, color="0.6")
        axes[2].plot(values.mean(1), np.arange(len(arms)), marker, color="C0" if column == "pgd" else "C1")
    axes[2].set(yticks=range(len(arms)), xlabel="test accuracy", title="clean (squares), PGD (dots)")
    axes[2].set_yticklabels([arm.upper() for arm in arms])
    axes[2].invert_yaxis()
    return drawing
