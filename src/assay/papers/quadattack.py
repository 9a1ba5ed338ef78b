"""QuadAttacK: the k largest logits in a chosen order, by projecting features onto the polyhedron of that order.

Exact, on drawn heads: the projection is that of Lawson and Hanson's least-distance programming by non-negative least
squares, its logits have the order with the margin, and the gradient with the projection held fixed is the slope of
the squared distance. Learned: of pairs of digits side by side (100 classes), the share whose five largest logits take
a random order within 60 steps, against CW^K and adversarial distillation, each with its own best rate and coefficient
of the same grid, chosen on other images. Support: k = 1, and ten classes. ResNet-50 with k = 20 is not run here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from scipy.optimize import nnls
from torch import Tensor, nn

from assay.attacks import (
    AdversarialDistillation,
    CWTopK,
    Ordered,
    PenaltyAttack,
    QuadAttack,
    ordered_constraints,
    sample_targets,
)
from assay.data import Data, load_data
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.training import Supervised

MARGIN = 0.2
FEATURES, CLASSES = 16, 10  # of the drawn heads
GRIDS = {  # the same for every attack; a coefficient starts at half of its upper end
    "smoke": {"data": "digits", "steps": 15, "rates": (0.05,), "uppers": (400.0,)},
    "claim": {"data": "mnist", "steps": 60, "rates": (0.05, 0.1), "uppers": (20.0, 100.0, 400.0, 2000.0)},
}

PAPER = Paper(
    slug="quadattack",
    title="QuadAttacK: A Quadratic Programming Approach to Learning Ordered Top-K Adversarial Attacks",
    authors="Thomas Paniagua, Ryan Grainger, Tianfu Wu",
    year=2023,
    arxiv="2312.11510",
    room="attacks",
    kind="method",
    implements=(
        "attacks.QuadAttack",
        "attacks.CWTopK",
        "attacks.AdversarialDistillation",
        "attacks.OrderedQP",
        "attacks.project_ordered",
        "attacks.ordered_constraints",
        "attacks.sample_targets",
    ),
    claim="Pulling features to their projection onto an order of logits puts k classes in that order where losses on "
    "the logits fail.",
    headline="ImageNet, ResNet-50, DenseNet-121, ViT-B, DeiT-S: k = 20 at a budget of 60 steps, CW^K and AD near 0.",
    peers=("scipy.optimize.nnls", "scipy.optimize.minimize (SLSQP)"),
    baselines=("cw", "distillation"),
    shams={
        "sorted-targets": "the targets are sorted by class before the constraints are built: their order is lost",
        "permuted-residual": "the step to the projection has its coordinates permuted: same length, other direction",
    },
    scales=(
        Scale("smoke", 1, {**GRIDS["smoke"], "problems": 27, "train": 2000, "epochs": 5, "tune": 4, "test": 8}),
        Scale("claim", 5, {**GRIDS["claim"], "problems": 198, "train": 20_000, "epochs": 3, "tune": 24, "test": 64}),
        Scale("gpu", 5, {**GRIDS["claim"], "problems": 198, "train": 100_000, "epochs": 20, "tune": 200, "test": 1000}),
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Shammed(QuadAttack):
    """QuadAttack, or one of its shams."""

    sham: str | None = None

    def projector(
        self, weight: Tensor, bias: Tensor, targets: Tensor, margin: float | Tensor
    ) -> Callable[[Tensor], Tensor]:
        if self.sham == "sorted-targets":
            targets = targets.sort(1).values
        nearest = super().projector(weight, bias, targets, margin)
        if self.sham != "permuted-residual":
            return nearest
        order = torch.from_numpy(numpy_rng(0, "permutation").permutation(weight.shape[1]))
        return lambda z: z.double() + (nearest(z) - z.double())[:, order]


ARMS: dict[str, type[PenaltyAttack]] = {"quad": _Shammed, "cw": CWTopK, "distillation": AdversarialDistillation}


@cache
def _digits(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _pairs(data: Data, count: int, seed: int) -> Data:
    """``count`` pairs of digits side by side, labelled 10 a + b."""
    left, right = torch.randint(len(data), (2, count), generator=torch_rng(seed, "pairs", data.name))
    classes = tuple(str(k) for k in range(100))
    return Data(torch.cat((data.x[left], data.x[right]), 3), 10 * data.y[left] + data.y[right], classes)


def _attacked(train: Data, test: Data, scale: Scale, seed: int) -> tuple[nn.Module, Data, Data]:
    """A trained network, and the images to choose settings on and to attack: all of them classified correctly."""
    with seeded(seed, "init"):
        start = MLP(train.shape, len(train.classes), (128, 128))
    model = Supervised(epochs=scale["epochs"], batch_size=128).fit(start, train, seed=seed)
    right = test[predict(model, test.x).argmax(1) == test.y]
    return model, right[: scale["tune"]], right[scale["tune"] : scale["tune"] + scale["test"]]


def _run(attack: PenaltyAttack, model: nn.Module, data: Data, k: int, seed: int) -> tuple[float, float]:
    """The share of ``data`` put into a random order of ``k`` other classes, and the mean distance of those."""
    goal = Ordered(sample_targets(data.y, len(data.classes), k, seed=seed))
    result = attack.run(model, data.x, goal, seed=seed)
    return float(result.success.float().mean()), float(result.distance[result.success].mean())


def _chosen(arm: str, model: nn.Module, tune: Data, scale: Scale, seed: int) -> dict[str, Any]:
    """The rate and the coefficient of the grid with the highest success at k = 5 on the images for tuning."""
    grid = [{"lr": lr, "coef_upper": c, "steps": scale["steps"]} for lr, c in product(scale["rates"], scale["uppers"])]
    rates = [_run(ARMS[arm](**options), model, tune, 5, seed)[0] for options in grid]
    return grid[int(np.argmax(rates))]


def _rates(arm: str, given: dict[str, Any], seed: int, sham: str | None = None) -> list[dict[str, Any]]:
    """Success of one attack on both networks, one row a number of classes and length of the order."""
    options = {**given["chosen"][arm], **({"sham": sham} if sham else {})}
    rows = []
    for classes, k in ((100, 5), (100, 3), (10, 3), (10, 1)):
        model, _, test = given["networks"][classes]
        rate, distance = _run(ARMS[arm](**options), model, test, k, seed)
        name = f"{classes} classes, k = {k}"
        rows.append({"arm": arm, "setting": name, "success": rate, "distance": distance if rate else None})
    return rows


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Networks for 10 and 100 classes, each attack's own best settings, and the baselines' rates."""
    train, test = _digits(scale["data"])
    need = 10 * (scale["tune"] + scale["test"])
    pairs = (_pairs(train, scale["train"], seed), _pairs(test, need, seed))
    single = (train.limit(scale["train"] // 2, seed=seed), test.limit(need, seed=seed))
    given: dict[str, Any] = {"networks": {len(a.classes): _attacked(a, b, scale, seed) for a, b in (pairs, single)}}
    model, tune, _ = given["networks"][100]
    given["chosen"] = {arm: _chosen(arm, model, tune, scale, derive(seed, "tune")) for arm in ARMS}
    given["baselines"] = [row for arm in PAPER.baselines for row in _rates(arm, given, seed)]
    return given


def least_distance(
    z: Float[np.ndarray, " d"], rows: Float[np.ndarray, "m d"], bound: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " d"]:
    """The point u nearest to z with rows u >= bound, by least-distance programming (Lawson and Hanson, 1974)."""
    system = np.vstack((rows.T, (bound - rows @ z)[None]))
    aim = np.eye(len(system))[-1]
    residual = system @ nnls(system, aim, maxiter=10_000)[0] - aim
    return z - residual[:-1] / residual[-1]


def _drawn(k: int, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, a head, and orders of ``k`` classes that do not start with the class that each sample has."""
    g = torch_rng(seed, "head", k)
    shapes = ((CLASSES, FEATURES), (CLASSES,), (count, FEATURES))
    weight, bias, z = (torch.randn(*s, generator=g, dtype=torch.float64) for s in shapes)
    return 2 * z, weight, bias, sample_targets((2 * z @ weight.T + bias).argmax(1), CLASSES, k, seed=seed)


def short_of_order(logits: Float[np.ndarray, "n c"], targets: Int[np.ndarray, "n k"]) -> float:
    """By how much the worst sample misses the margin somewhere in its order."""
    worst = -np.inf
    for s, t in zip(logits, targets, strict=True):
        chain = np.append(s[t], np.delete(s, t).max())
        worst = max(worst, float((MARGIN - (chain[:-1] - chain[1:])).max()))
    return worst


def exact(k: int, count: int, seed: int, sham: str | None) -> dict[str, Any]:
    """How far the attack's projection is from its reference, its order and its slope, for one drawn head."""
    z, weight, bias, targets = _drawn(k, count, seed)
    nearest = _Shammed(sham=sham).projector(weight, bias, targets, MARGIN)
    point = nearest(z)
    table = ordered_constraints(targets, CLASSES).numpy()
    rows = table @ weight.numpy()
    bounds = MARGIN - table @ bias.numpy()
    expected = np.stack([least_distance(*one) for one in zip(z.numpy(), rows, bounds, strict=True)])
    step = 1e-5 * torch.randn(z.shape, generator=torch_rng(seed, "step", k), dtype=torch.float64)
    ahead, behind = ((u - nearest(u)).square().sum(1) for u in (z + step, z - step))
    slope, size = 2 * ((z - point) * step).sum(1), 2 * (z - point).norm(dim=1) * step.norm(dim=1)
    return {
        "arm": "quad",
        "k": k,
        "difference": np.abs(point.numpy() - expected).max(),
        "short": short_of_order((point @ weight.T + bias).numpy(), targets.numpy()),
        "slope": float((((ahead - behind) / 2 - slope).abs() / size).max()),
    }


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The exact checks for k = 1 to 9, and the attack's success beside that of the baselines."""
    rows = [exact(k, scale["problems"] // 9, seed, sham) for k in range(1, CLASSES)]
    return Table.of([*rows, *_rates("quad", given, seed, sham), *given["baselines"]])


def _gain(table: Table, reference: str, classes: int, k: int) -> np.ndarray:
    return table.where(setting=f"{classes} classes, k = {k}").gain("quad", reference, "success")


def claims(table: Table) -> list[Claim]:
    """The projection, its order and its slope, and the gain over both baselines at k = 5; the rest supports."""
    both = ("sorted-targets", "permuted-residual")
    return [
        Claim(
            "the projection is that of least-distance programming for k = 1 to 9: largest difference",
            table.per_seed("difference", np.max),
            at_most=1e-6,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "its logits have the order with a margin of 0.2: largest shortfall",
            table.per_seed("short", np.max),
            at_most=1e-6,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "with the projection held fixed the gradient is the slope of the squared distance: relative difference",
            table.per_seed("slope", np.max),
            at_most=1e-4,
            rule="exact",
            refuted_by=("permuted-residual",),
        ),
        Claim("100 classes, k = 5: success over CW^K", _gain(table, "cw", 100, 5), at_least=0.1, refuted_by=both),
        Claim(
            "100 classes, k = 5: success over adversarial distillation",
            _gain(table, "distillation", 100, 5),
            at_least=0.1,
            key=False,
            refuted_by=both,
        ),
        Claim(
            "100 classes, k = 3: success over CW^K",
            _gain(table, "cw", 100, 3),
            at_least=0.1,
            key=False,
            refuted_by=("permuted-residual",),
        ),
        Claim(
            "10 classes, k = 3: success",
            table.per_seed("success", arm="quad", setting="10 classes, k = 3"),
            at_least=0.9,
            key=False,
            refuted_by=both,
        ),
        Claim(
            "10 classes, k = 1: success over CW^K, either way",
            _gain(table, "cw", 10, 1),
            at_least=-0.05,
            at_most=0.05,
            key=False,
        ),
    ]


def _mean(values: np.ndarray) -> float:
    """The mean of the finite values, 0 where there are none: an attack that never succeeds has no distance."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else 0.0


def figure(table: Table) -> Figure:
    """Success and distance by setting: one group of bars a setting, one bar an attack."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    panels = drawing.subplots(1, 2)
    names = list(dict.fromkeys(str(r["setting"]) for r in table.rows if "setting" in r))
    labels = {"quad": "QuadAttacK", "cw": "CW$^K$", "distillation": "distillation"}
    for column, panel in zip(("success", "distance"), panels, strict=True):
        for i, (arm, label) in enumerate(labels.items()):
            heights = [_mean(table.values(column, arm=arm, setting=n)) for n in names]
            panel.bar(np.arange(len(names)) + 0.27 * (i - 1), heights, 0.25, label=label)
        panel.set_xticks(range(len(names)), [n.replace(", ", "\n") for n in names])
        panel.set(title={"success": "share put in order", "distance": "mean L2 distance of those"}[column])
    panels[0].legend(frameon=False)
    return drawing
