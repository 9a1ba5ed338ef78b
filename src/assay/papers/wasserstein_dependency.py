"""Lipschitz critics keep contrastive coding learning: WPC captures more of the shared factors than CPC.

Grids of four handwritten digits, each followed by its successor in the other view: the mutual information, 9.2 nats, is
above log N for batches of N = 64, so that CPC can solve its task with few factors and by heart. Two fully connected
encoders; a ridge probe reads every cell off the representation of drawings that nobody has seen. Deciding: WPC(1)
exceeds CPC in mean and in worst cell, and the gradient penalty of a linear critic is (|(a, b)| - 1)^2 exactly. Support:
J <= log N with equality for a dominant diagonal, the penalty's derivative by finite differences, a learned dependency
against the linear program's value, WPC above untrained encoders, nine cells, and one cell, where both should do alike.
The penalty is that of WGAN-GP between y and y', in pixels in [0, 1]; lambda, encoders and interpolation are ours. Sizes
are those of a laptop: 2,000 pairs, 128 hidden units, 1,000 steps; the rate of Adam was tuned for CPC and WPC each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.losses import CPCLoss, WPCLoss, gradient_penalty
from assay.losses.dependency import inner_critic
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.represent import (
    EncoderPair,
    PredictiveCoding,
    SpatialMultiGrid,
    WassersteinDependency,
    completeness_probe,
    exact_wdm,
)
from assay.runtime.random import derive, seeded, torch_rng

RANDOM, CPC, WPC, STRONG = "untrained", "CPC", "WPC(1)", "WPC(10)"
BATCH = 64
CPC_RATE, WPC_RATE = 3e-4, 1e-3  # of Adam: each the best of 1e-4, 3e-4 and 1e-3 in a pilot
DECAY = 2.5e-3  # of the sham, at which the training J is near that of WPC(1)

PAPER = Paper(
    slug="wasserstein-dependency",
    title="Wasserstein Dependency Measure for Representation Learning",
    authors="Sherjil Ozair, Corey Lynch, Yoshua Bengio, Aaron van den Oord, Sergey Levine, Pierre Sermanet",
    year=2019,
    arxiv="1903.11780",
    room="represent",
    also=("losses",),
    kind="method + measure",
    implements=(
        "losses.CPCLoss",
        "losses.WPCLoss",
        "losses.gradient_penalty",
        "represent.PredictiveCoding",
        "represent.WassersteinDependency",
        "represent.exact_wdm",
        "represent.SpatialMultiGrid",
        "represent.completeness_probe",
        "represent.spectral_encoder",
    ),
    claim="Contrastive coding with a Lipschitz critic learns more of the factors that two views share.",
    headline="SpatialMultiOmniglot, fully connected encoders, 3, 5 and 9 characters: WPC .966, .828, .581, CPC .705, "
    ".352, .135.",
    peers=("scipy.optimize.linear_sum_assignment", "benrhodes26/tre_code"),
    baselines=(CPC, RANDOM),
    shams={
        "parameter-penalty": "the gradient penalty is replaced by weight decay on both encoders",
        "one-sided-input": "the penalty takes the gradient by x alone, that by y is left out",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {"pairs": 200, "probe": 150, "hidden": 32, "width": 16, "steps": {1: 0, 4: 12, 9: 0}, "critic": 20,
             "n": 48},
        ),
        Scale(
            "claim",
            5,
            {"pairs": 2000, "probe": 1500, "hidden": 128, "width": 64, "steps": {1: 200, 4: 1000, 9: 300},
             "critic": 300, "n": 256},
        ),
    ),
)  # fmt: skip


class _ParameterPenalty(WPCLoss):
    def penalty(self, phi: nn.Module, psi: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        weights = [p for net in (phi, psi) for p in net.parameters()]
        return DECAY * torch.stack([w.square().sum() for w in weights]).sum()


class _OneSidedInput(WPCLoss):
    def penalty(self, phi: nn.Module, psi: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        critic = inner_critic(phi, psi)

        def blind(left: Tensor, right: Tensor) -> Tensor:
            return critic(left, right.detach()) + 0 * right.flatten(1).sum(1)

        return gradient_penalty(blind, x, y, y.roll(1, 0))


RULES: Mapping[str | None, type[WPCLoss]] = {
    None: WPCLoss,
    "parameter-penalty": _ParameterPenalty,
    "one-sided-input": _OneSidedInput,
}


def penalty_gap(seed: int, sham: str | None = None) -> float:
    """|penalty - (|(a, b)| - 1)^2| for f(x, y) = a.x + b.y, as phi = (a.x, 1) and psi = (1, b.y), in float64."""
    g = torch_rng(seed, "linear")
    a, b = torch.randn(2, 7, generator=g, dtype=torch.float64)
    x, y = torch.rand(2, 20, 7, generator=g, dtype=torch.float64)
    encoders = []
    for row, weight in enumerate((a, b)):
        layer = nn.utils.skip_init(nn.Linear, 7, 2, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.zero_()[row] = weight
            layer.bias.copy_(torch.tensor([row, 1.0 - row]))
        encoders.append(layer)
    with seeded(seed, "eps"):
        found = RULES[sham](1.0).penalty(encoders[0], encoders[1], x, y)
    return abs(found.item() - (math.sqrt(float(a @ a + b @ b)) - 1) ** 2)


def bound_gaps(seed: int) -> dict[str, float]:
    """Largest J - log N over random scores, and |J - log N| for a dominant diagonal."""
    g, loss = torch_rng(seed, "scores"), CPCLoss()
    excess = [
        -loss(scale * torch.randn(n, n, generator=g, dtype=torch.float64)).item() - math.log(n)
        for n in (2, 16, 64)
        for scale in (0.1, 1.0, 30.0)
    ]
    dominant = -loss(100 * torch.eye(32, dtype=torch.float64)).item() - math.log(32)
    return {"excess": max(excess), "attained": abs(dominant)}


def derivative_gap(seed: int) -> float:
    """Largest difference of the penalty's gradient by the critic's weights from central differences."""
    g = torch_rng(seed, "derivative")
    x, y, other = torch.randn(3, 6, 3, generator=g, dtype=torch.float64)
    weight, out = torch.randn(5, 6, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    eps = torch.rand(6, generator=g, dtype=torch.float64)

    def penalty(w: Tensor) -> Tensor:
        return gradient_penalty(lambda a, b: torch.tanh(torch.cat((a, b), 1) @ w.T) @ out, x, y, other, eps=eps)

    at = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(at), at)
    steps = 1e-6 * torch.eye(30, dtype=torch.float64).view(30, 5, 6)
    numeric = torch.stack([(penalty(weight + s) - penalty(weight - s)).detach() / 2e-6 for s in steps])
    return float((gradient.flatten() - numeric).abs().max())


class _PairCritic(nn.Module):
    """A network of both inputs together."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.net = MLP((2,), 1, (hidden, hidden))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat((x, y), 1))[:, 0]


def dependency(seed: int, n: int, steps: int) -> dict[str, float]:
    """The learned dependency of correlated Gaussians over its exact value; that of independent ones over its floor."""
    g = torch_rng(seed, "gaussians")
    x, noise, apart = torch.randn(3, n, 1, generator=g)
    y = x + 0.1 * noise
    perm = torch.randperm(n, generator=g)
    with seeded(seed, "critic"):
        start = _PairCritic(64)
    method = WassersteinDependency(lam=10.0, steps=steps, batch_size=n, lr=1e-2)
    learned = method.fit(start, x, y, seed=seed, perm=perm).value_
    free = exact_wdm(x.numpy(), apart.numpy(), perm.numpy())
    floor = exact_wdm(x.numpy(), apart[torch.randperm(n, generator=g)].numpy(), perm.numpy())
    return {"learned": learned / exact_wdm(x.numpy(), y.numpy(), perm.numpy()), "floor": free / floor}


def _train(scale: Scale, seed: int, cells: int, loss: WPCLoss | None) -> dict[str, Any]:
    """What a ridge probe reads off the encoder, trained by ``loss`` or not at all, and J on training pairs."""
    side = math.isqrt(cells)
    grid = SpatialMultiGrid(rows=side, cols=side)
    x, y, _ = grid.sample(scale["pairs"], "train", seed=seed)
    with seeded(seed, "init", cells):
        phi, psi = (MLP(tuple(x.shape[1:]), scale["width"], (scale["hidden"],) * 2) for _ in range(2))
    pair: EncoderPair = EncoderPair(phi, psi).eval()
    if loss is not None:
        rate = WPC_RATE if loss.lam else CPC_RATE
        method = PredictiveCoding(loss=loss, steps=scale["steps"][cells], batch_size=BATCH, lr=rate)
        pair = method.fit(phi, psi, x, y, seed=seed)
    read = completeness_probe(pair.phi, grid, seed=derive(seed, "probe"), n=scale["probe"], test=scale["probe"])
    with torch.no_grad():
        scores = [pair.phi(a) @ pair.psi(b).T for a, b in zip(x[:640].split(BATCH), y[:640].split(BATCH), strict=True)]
        nce = float(np.mean([-CPCLoss()(s).item() for s in scores if len(s) == BATCH]))
    return {"cells": cells, "mean": read.mean, "least": read.least, "captured": read.captured, "nce": nce}


def _arm(name: str, cells: int) -> str:
    return name if cells == 4 else f"{name}, {cells} cells"


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The arms that no sham changes, and what is exact or learned about the measure itself."""
    losses: dict[str, Callable[[], WPCLoss | None]] = {CPC: lambda: WPCLoss(0.0), WPC: lambda: WPCLoss(1.0)}
    rows = [
        {"arm": _arm(name, cells), **_train(scale, seed, cells, make())}
        for cells in (1, 9)
        for name, make in losses.items()
    ]
    for name, loss in ((RANDOM, None), (CPC, WPCLoss(0.0)), (STRONG, WPCLoss(10.0))):
        rows.append({"arm": name, **_train(scale, seed, 4, loss)})
    measure = {**bound_gaps(seed), "derivative": derivative_gap(seed), **dependency(seed, scale["n"], scale["critic"])}
    return {"rows": [*rows, {"arm": "measure", **measure}]}


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """All arms; shams change the penalty of WPC(1) at four cells, and so the penalty of the linear critic."""
    rows = [*given["rows"], {"arm": WPC, **_train(scale, seed, 4, RULES[sham](1.0))}]
    return Table.of([*rows, {"arm": "linear critic", "penalty": penalty_gap(seed, sham)}])


def claims(table: Table) -> list[Claim]:
    """WPC against CPC at four cells and the penalty of a linear critic decide; the rest supports."""
    decay = ("parameter-penalty",)
    return [
        Claim(
            "four cells: mean probe accuracy of WPC(1) exceeds that of CPC by 0.03 or more",
            table.gain(WPC, CPC, "mean"),
            at_least=0.03,
            refuted_by=decay,
        ),
        Claim(
            "four cells: accuracy in the worst cell is higher under WPC(1) than under CPC, by",
            table.gain(WPC, CPC, "least"),
            at_least=0.0,
        ),
        Claim(
            "the penalty of f(x, y) = a.x + b.y is (|(a, b)| - 1)^2: largest difference",
            table.per_seed("penalty", np.max),
            at_most=1e-9,
            rule="exact",
            refuted_by=("parameter-penalty", "one-sided-input"),
        ),
        *_exact_support(table),
        *_support(table),
    ]


def _exact_support(table: Table) -> list[Claim]:
    texts = {
        "excess": ("J never exceeds log N: largest excess", 1e-9),
        "attained": ("J is log N for a dominant diagonal: difference", 1e-9),
        "derivative": ("the penalty's gradient by the weights is that of central differences: largest gap", 1e-5),
    }
    return [
        Claim(text, table.per_seed(name, np.max), at_most=bound, rule="exact", key=False)
        for name, (text, bound) in texts.items()
    ]


def _support(table: Table) -> list[Claim]:
    one = table.gain(_arm(WPC, 1), _arm(CPC, 1), "mean")
    learned, floor = table.per_seed("learned"), table.per_seed("floor")
    nine = table.gain(_arm(WPC, 9), _arm(CPC, 9), "mean")
    over, strong = table.gain(WPC, RANDOM, "mean"), table.gain(STRONG, CPC, "mean")
    return [
        Claim("four cells: WPC(1) exceeds an untrained encoder by 0.1", over, at_least=0.1, key=False),
        Claim("four cells: WPC(10) exceeds CPC by 0.03", strong, at_least=0.03, key=False),
        Claim("nine cells: WPC(1) exceeds CPC by 0.03", nine, at_least=0.03, key=False),
        Claim("one cell: WPC(1) and CPC are within 0.03", one, at_least=-0.03, at_most=0.03, key=False),
        Claim("learned dependency over its exact value", learned, at_least=0.9, at_most=1.1, key=False),
        Claim("independent: exact dependency over its floor", floor, at_least=0.8, at_most=1.2, key=False),
    ]


def figure(table: Table) -> Figure:
    """Accuracy by arm at four cells, and over the number of cells (one dot a seed)."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for at, arm in enumerate((RANDOM, CPC, WPC, STRONG)):
        values = table.per_seed("mean", arm=arm)
        left.plot([at] * len(values), values, "o", ms=3)
    left.set_xticks(range(4), (RANDOM, CPC, WPC, STRONG))
    left.set(ylabel="probe accuracy, mean over cells", title="Four cells")
    for arm in (CPC, WPC):
        right.plot((1, 4, 9), [table.per_seed("mean", arm=_arm(arm, k)).mean() for k in (1, 4, 9)], "-o", label=arm)
    right.set(xlabel="cells (2.3 nats each)", title="Means over seeds")
    right.legend(frameon=False)
    return drawing
