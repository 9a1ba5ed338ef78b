"""Networks sampled along one training are surrogates from which attacks transfer further.

What decides here is exact: on a Gaussian posterior the sampler's draws have its variance; with the official scale of
the noise its steps are those of the official code's loss under torch's SGD; the rate follows the cosine cycles; the
light attack on one sample is I-FGSM, and on many it costs one gradient a step.

That the samples transfer further is a claim about deep networks: with small MLPs on digits any ensemble gains a few
points at most. So at claim scale it is only supported: what is sampled with little noise transfers no worse than one
network of the same training and is nearly as accurate, and with the noise of the official scale, which on so few images
is over ten times as hot as on CIFAR-10, it transfers worse. The paper's own comparison, with the number of independent
networks that it is worth, is run at gpu scale on CIFAR-10 (reported: up to 83 points over one network).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import (
    L2,
    BNNTransferAttack,
    CyclicalSGLD,
    DeepEnsembleSurrogate,
    Langevin,
    Linf,
    SnapshotSurrogate,
    Surrogates,
    SWAGSurrogate,
    cosine_cycle,
    deep_ensemble_equivalent,
    transfer_success,
)
from assay.data import Batch, Data, load_data
from assay.nets import MLP, ResNet, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import device_of, pick_device, predict
from assay.runtime.random import derive, seeded, torch_rng
from assay.training import Plan, State, Supervised, fit

SINGLE, SNAPSHOT, SAMPLED, HOT, SWAG = "one network", "snapshots", "cSGLD", "cSGLD, hot", "SWAG"
CHAINS, BURN, KEPT = 3000, 60, 700
TARGET_VARIANCE = 0.7  # the posterior's, of each coordinate
PULL = 0.1  # rate over variance: how much of a deviation a step takes back
SHORT = {"cycles": 4, "each": 4, "samples": 2, "lr": 0.5, "heat": 0.1, "eps": 0.08, "targets": 1, "learn": 5}
LONG = {"cycles": 5, "each": 10, "samples": 3, "lr": 0.5, "heat": 1.0, "eps": 4 / 255, "targets": 3, "learn": 50}
DIGIT_SIZES = {"data": "digits:train", "train": 400, "images": 60, "hidden": (32,), "steps": 10}
MNIST_SIZES = {"data": "mnist:test", "train": 3000, "images": 500, "hidden": (128, 128), "steps": 20}
CIFAR_SIZES = {"data": "cifar10:train", "train": 20_000, "images": 2000, "hidden": (), "steps": 50}

PAPER = Paper(
    slug="bnn-surrogate",
    title="Efficient and Transferable Adversarial Examples from Bayesian Neural Networks",
    authors="Martin Gubri, Maxime Cordy, Mike Papadakis, Yves Le Traon, Koushik Sen",
    year=2022,
    arxiv="2011.05074",
    room="attacks",
    also=("dynamics",),
    kind="method",
    implements=(
        "attacks.CyclicalSGLD",
        "attacks.BNNTransferAttack",
        "attacks.Langevin",
        "attacks.SnapshotSurrogate",
        "attacks.DeepEnsembleSurrogate",
        "attacks.SWAGSurrogate",
        "attacks.Surrogates",
        "attacks.transfer_success",
        "attacks.deep_ensemble_equivalent",
    ),
    claim="Attacks on networks that cyclical SGLD samples in one training transfer further than those on one network.",
    headline="Up to 83.2 points over one network; on ImageNet 94% with 2.4 exaflops of training instead of 11.6.",
    peers=("Framartin/transferable-bnn-adv-ex", "torchattacks.BIM", "torch.optim.SGD"),
    baselines=(SINGLE, SNAPSHOT),
    shams={
        "missing-two": "the noise has deviation sqrt(l T / n) instead of sqrt(2 l T / n)",
        "frozen-noise": "one draw of the noise is made a cycle and used again at each of its steps",
    },
    scales=(
        Scale("smoke", 1, {**SHORT, **DIGIT_SIZES, "curve": (1,)}),
        Scale("claim", 5, {**SHORT, **MNIST_SIZES, "curve": (1,)}),
        Scale("gpu", 5, {**LONG, **CIFAR_SIZES, "curve": (1, 2, 5)}),
    ),
)


class _MissingTwo(Langevin):
    def deviation(self, rate: float, group: dict[str, Any]) -> float:
        return super().deviation(rate, group) / math.sqrt(2)


class _FrozenNoise(Langevin):
    def noise(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        cycle = group["count"] // group["cycle"] if group["cycle"] else 0
        held = self.state[parameter]
        if held.get("cycle") != cycle:
            held["cycle"], held["noise"] = cycle, super().noise(parameter, group)
        return held["noise"]


class _MissingTwoSGLD(CyclicalSGLD):
    sampler = _MissingTwo


class _FrozenNoiseSGLD(CyclicalSGLD):
    sampler = _FrozenNoise


RULES: Mapping[str | None, type[CyclicalSGLD]] = {
    None: CyclicalSGLD,
    "missing-two": _MissingTwoSGLD,
    "frozen-noise": _FrozenNoiseSGLD,
}


class _Point(nn.Module):
    """One parameter a coordinate, whatever the input."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), -1)


def _dots(n: int) -> Data:
    return Data(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), ("0", "1"))


def variance_ratio(sampler: type[Langevin], seed: int) -> float:
    """The variance of draws along a chain over that of the posterior, a mean over CHAINS coordinates.

    The mean loss theta^2 / (2 n v) of n samples has the posterior N(0, v); each batch has it.
    """
    n, seen = 8, []

    def loss(model: nn.Module, batch: Batch, state: State) -> Tensor:
        return model(batch.x)[0].square().sum() / (2 * n * TARGET_VARIANCE)

    def keep(models: Mapping[str, nn.Module], state: State) -> None:
        if state.step > BURN:
            seen.append(models["model"].get_parameter("theta").detach().clone())

    rate = PULL * TARGET_VARIANCE * n
    plan = Plan(
        steps=BURN + KEPT, batch_size=n, lr=rate, schedule="constant", optimizer=partial(sampler, lr=rate, size=n)
    )
    start = TARGET_VARIANCE**0.5 * torch.randn(CHAINS, generator=torch_rng(seed, "chains"))
    fit(_Point(start), _dots(100 * n), loss, plan, seed=seed, hooks=(keep,))
    return float(torch.stack(seen).double().var(0).mean()) / TARGET_VARIANCE


def official_gap(method: type[CyclicalSGLD], alpha: float, seed: int) -> float:
    """Largest difference of the last sample of a cycle from torch's SGD on the official loss, in float64.

    In the noisy epochs sum(theta noise) / batches is added to the loss, noise of deviation sqrt(2 alpha / rate).
    """
    g = torch_rng(seed, "official")
    x, y = torch.rand(40, 6, generator=g, dtype=torch.float64), torch.randint(3, (40,), generator=g)
    data = Data(x, y, ("0", "1", "2"))
    with seeded(seed, "official"):
        start = MLP((6,), 3, (5,)).double()
    found = method(cycles=1, epochs_per_cycle=3, samples_per_cycle=2, lr=0.3, batch_size=16, alpha=alpha)
    last, batches = found.fit(start, data, seed=seed).samples[-1], 3

    def loss(model: nn.Module, batch: Batch, state: State) -> Tensor:
        total = F.cross_entropy(model(batch.x), batch.y)
        if state.step >= batches:
            rate = 0.15 * (math.cos(math.pi * state.step / state.total) + 1)
            terms = [(p * torch.randn_like(p)).sum() for p in model.parameters()]
            total = total + math.sqrt(2 * alpha / rate) / batches * torch.stack(terms).sum()
        return total

    def official(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.3, momentum=1 - alpha, weight_decay=5e-4)

    theirs = fit(start, data, loss, Plan(epochs=3, batch_size=16, optimizer=official), seed=derive(seed, 0))
    pairs = zip(last.parameters(), theirs.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def schedule_gap(seed: int) -> float:
    """Largest difference of the rate from (cos(pi mod(k - 1, T) / T) + 1) / 2, and from 1 and 0 at a cycle's ends."""
    length = 50 + seed % 50
    k = np.arange(1, 3 * length + 1)
    found = np.array([cosine_cycle(int(i) - 1, length) for i in k])
    expected = (np.cos(np.pi * np.mod(k - 1, length) / length) + 1) / 2
    ends = max(abs(found[0] - 1), abs(found[length] - 1), found[length - 1] - (np.pi / length) ** 2 / 4)
    return max(float(np.abs(found - expected).max()), float(ends))


class _Counted(nn.Module):
    """A network that counts its forward passes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.net(x)


def _batch(seed: int) -> tuple[list[_Counted], Tensor, Tensor]:
    with seeded(seed, "attacked"):
        nets = [_Counted(MLP((12,), 5, (16,)).double()) for _ in range(4)]
    g = torch_rng(seed, "attacked")
    return nets, torch.rand(20, 12, generator=g, dtype=torch.float64), torch.randint(5, (20,), generator=g)


def light_gap(seed: int) -> float:
    """Largest difference of the light attack on one network from I-FGSM and I-FGM written out."""
    nets, x, y = _batch(seed)
    net, worst = nets[0], 0.0
    for ball in (Linf(0.1), L2(0.5)):
        found = BNNTransferAttack(ball=ball, steps=15)(Surrogates([net]), x, y, seed=seed)
        z = x.clone()
        for _ in range(15):
            z.requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)
            if isinstance(ball, Linf):
                moved = z.detach() + 0.1 * ball.eps * slope.sign()
                z = torch.minimum(torch.maximum(moved, x - ball.eps), x + ball.eps).clamp(0, 1)
            else:
                moved = z.detach() + 0.1 * ball.eps * slope / slope.norm(dim=1, keepdim=True) - x
                z = (x + moved * (ball.eps / moved.norm(dim=1, keepdim=True)).clamp(max=1)).clamp(0, 1)
        worst = max(worst, float((found - z).abs().max()))
    return worst


def cost_gap(seed: int) -> float:
    """How far the passes through the networks are from one a step ("light"), in turn, and S a step ("full")."""
    nets, x, y = _batch(seed)
    worst = 0.0
    for mode, steps, expected in (("light", 8, 2), ("full", 5, 5)):
        for net in nets:
            net.passes = 0
        BNNTransferAttack(ball=Linf(0.1), steps=steps, mode=mode)(Surrogates(nets), x, y, seed=seed)  # type: ignore[arg-type]
        worst = max(worst, max(abs(net.passes - expected) for net in nets))
    return worst


@cache
def _images(source: str) -> Data:
    return load_data(source)


def _network(data: Data, scale: Scale, seed: int) -> nn.Module:
    with seeded(seed, "init"):
        if scale["hidden"]:
            return MLP(data.shape, len(data.classes), scale["hidden"])
        return ResNet(data.shape, len(data.classes), 16, (3, 3, 3)).to(pick_device())  # type: ignore[arg-type]


def _targets(data: Data, scale: Scale, seed: int) -> list[nn.Module]:
    """Networks of the surrogates' kind and of another, trained on images that those never see."""
    widths = (8, 16) if scale["hidden"] else (32, 64, 128)
    recipe = Supervised(epochs=scale["learn"], batch_size=64, lr=1e-3)
    found: list[nn.Module] = []
    for k in range(scale["targets"]):
        same = _network(data, scale, derive(seed, "target", k))
        with seeded(seed, "other", k):
            other = SmallCNN(data.shape, len(data.classes), widths, 64).to(device_of(same))  # type: ignore[arg-type]
        found += [recipe.fit(start, data, seed=derive(seed, "target", k)) for start in (same, other)]
    return found


def _cycles(scale: Scale, n: int, heat: float) -> dict[str, Any]:
    """The options of the sampler; ``heat`` is the deviation of its noise as a multiple of the official one."""
    return {
        "cycles": scale["cycles"],
        "epochs_per_cycle": scale["each"],
        "samples_per_cycle": scale["samples"],
        "lr": scale["lr"],
        "temperature": heat**2 * n / math.ceil(n / 64) ** 2,
    }


def _row(arm: str, models: Surrogates, scale: Scale, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Mean transfer to the targets of the light attack, and the mean accuracy of the surrogates."""
    attack, test = BNNTransferAttack(ball=Linf(scale["eps"]), steps=scale["steps"]), given["test"]
    x_adv = attack(models, test.x, test.y, seed=seed)
    rates = [transfer_success(target, test.x, x_adv, test.y) for target in given["targets"]]
    right = [float((predict(net, test.x).argmax(1) == test.y).double().mean()) for net in models.samples]
    return {"arm": arm, "success": float(np.mean(rates)), "accuracy": float(np.mean(right))}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The images in three parts, the targets, the start, and the rows of the arms that no sham changes."""
    whole = _images(scale["data"])
    order = torch.randperm(len(whole), generator=torch_rng(seed, "parts"))
    rows = order[: scale["train"]], order[scale["train"] : 2 * scale["train"]], order[-scale["images"] :]
    train, theirs, test = (whole[r.sort().values] for r in rows)
    given: dict[str, Any] = {"train": train, "test": test, "start": _network(whole, scale, seed)}
    given["targets"] = _targets(theirs, scale, seed)
    start, n, epochs = given["start"], len(train), scale["cycles"] * scale["each"]
    hot = _cycles(scale, n, 1.0)
    arms: dict[str, Any] = {SNAPSHOT: SnapshotSurrogate(**{**hot, "temperature": 0.0})}
    if scale["heat"] != 1:
        arms[HOT] = CyclicalSGLD(**hot)
    if len(scale["curve"]) > 1:
        arms[SWAG] = SWAGSurrogate(samples=15, epochs=epochs // 2, collect=epochs - epochs // 2)
    given["rows"] = [_row(arm, m.fit(start, train, seed=seed), scale, given, seed) for arm, m in arms.items()]
    recipe = {"epochs": epochs, "lr": scale["lr"], "momentum": 0.0}
    nets = DeepEnsembleSurrogate(members=max(scale["curve"]), **recipe).fit(start, train, seed=seed).samples
    for k in scale["curve"]:
        name = SINGLE if k == 1 else f"{k} networks"
        given["rows"].append({**_row(name, Surrogates(list(nets)[:k]), scale, given, seed), "networks": k})
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The exact checks, the sampler's transfer beside that of the other arms, and what it is worth in networks."""
    method = RULES[sham](**_cycles(scale, len(given["train"]), scale["heat"]))
    sampled = _row(SAMPLED, method.fit(given["start"], given["train"], seed=seed), scale, given, seed)
    if len(scale["curve"]) > 1:
        curve = {r["networks"]: r["success"] for r in given["rows"] if "networks" in r}
        sampled["worth"] = deep_ensemble_equivalent(list(curve), list(curve.values()), sampled["success"])
    gaps = {
        "variance": variance_ratio(RULES[sham].sampler, seed),
        "official": max(official_gap(RULES[sham], alpha, seed) for alpha in (1.0, 0.1)),
        "schedule": schedule_gap(seed),
        "light": light_gap(seed),
        "cost": cost_gap(seed),
    }
    exact = [{"arm": f"exact {name}", name: value} for name, value in gaps.items()]
    return Table.of([*given["rows"], sampled, *exact])


def claims(table: Table) -> list[Claim]:
    """The exact checks decide, and the paper's comparison where it is run; otherwise transfer supports."""
    both = ("missing-two", "frozen-noise")
    ratio = "variance of the samples over that of a Gaussian posterior"
    exact: dict[str, tuple[str, tuple[str, ...]]] = {
        "official": ("samples with the official noise against torch's SGD on the official loss: difference", both),
        "schedule": ("rate against its cosine and the ends of its cycles: largest difference", ()),
        "light": ("light attack on one sample against I-FGSM and I-FGM written out: largest difference", ()),
        "cost": ("passes through each network less one in S steps (light) or one a step (full): largest", ()),
    }
    return [
        Claim(ratio, table.per_seed("variance"), 0.9, 1.1, "exact", refuted_by=both),
        *(
            Claim(text, table.per_seed(name), None, 1e-9, "exact", refuted_by=shams)
            for name, (text, shams) in exact.items()
        ),
        *(_comparison(table) if table.where(arm=SWAG).rows else _support(table)),
    ]


def _support(table: Table) -> list[Claim]:
    less, heat = "less that of one network", "transfer with the official heat less that with a hundredth of it"
    sampled, snapshots = (table.gain(arm, SINGLE, "success") for arm in (SAMPLED, SNAPSHOT))
    return [
        Claim(f"transfer of {SAMPLED} {less}", sampled, -0.01, key=False),
        Claim(f"transfer of {SNAPSHOT} {less}", snapshots, -0.01, key=False),
        Claim(f"accuracy of {SAMPLED} {less}", table.gain(SAMPLED, SINGLE, "accuracy"), -0.03, key=False),
        Claim(heat, table.gain(HOT, SAMPLED, "success"), at_most=-0.05, key=False),
    ]


def _comparison(table: Table) -> list[Claim]:
    single, snapshots = (table.gain(SAMPLED, arm, "success") for arm in (SINGLE, SNAPSHOT))
    worth = table.per_seed("worth", arm=SAMPLED)
    return [
        Claim(f"transfer of {SAMPLED} less that of one network", single, 0.08),
        Claim(f"transfer of {SAMPLED} less that of {SNAPSHOT}", snapshots, -0.02, key=False),
        Claim(f"transfer of {SAMPLED} in networks trained apart", worth, 2.0, key=False),
    ]


def figure(table: Table) -> Figure:
    """Transfer and accuracy of each kind of surrogates, one dot a seed."""
    drawing = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = drawing.subplots(1, 2)
    arms = list(dict.fromkeys(r["arm"] for r in table.rows if "success" in r))
    for axis, column, title in zip(axes, ("success", "accuracy"), ("Transfer", "Accuracy"), strict=True):
        values = [table.per_seed(column, arm=arm) for arm in arms]
        for k, v in enumerate(values):
            axis.plot([k] * len(v), v, "o", ms=3, color="0.6")
        axis.plot([v.mean() for v in values], "_", ms=18, color="C0")
        axis.set_xticks(range(len(arms)), [str(a) for a in arms], rotation=20)
        axis.set(ylabel=column, title=title)
    return drawing
