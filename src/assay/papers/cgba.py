"""CGBA: a decision-based attack that searches the boundary along a semicircle needs few queries.

Exact, on drawn half-spaces: one step along the true normal ends at the orthogonal projection, whatever the start, as
all points of the search lie on the circle over the diameter from input to boundary point (Thales). Learned, on images:
with the start and the queries of HopSkipJump and of the boundary attack, CGBA's median l2 distance is smaller. The
comparison with HopSkipJump decides after 300 queries: with 3000 both come close to the smallest distance that a small
network has, and what is left between them is only reported.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import CGBA, CGBAH, BoundaryAttack, HopSkipJump, Targeted, Untargeted
from assay.attacks.base import AttackResult, Goal
from assay.attacks.cgba import Plane
from assay.attacks.queries import Blending, Probe, QueryAttack
from assay.attacks.subspace import LowFrequency
from assay.data import Data, load_data
from assay.nets import MLP, ResNet, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded, torch_rng
from assay.training import Supervised

POINTS = 12  # before the half-space of the exact part
REACH = 50.0  # its bounds, too wide to clip anything
MARKS = {"start": 2, "100": 100, "300": 300, "500": 500, "1000": 1000, "2000": 2000}  # queries, besides all
WALK = 1000  # queries of the boundary attack

PAPER = Paper(
    slug="cgba",
    title="CGBA: Curvature-aware Geometric Black-box Attack",
    authors="Md Farhamdur Reza, Ali Rahmati, Tianfu Wu, Huaiyu Dai",
    year=2023,
    arxiv="2308.03163",
    room="attacks",
    kind="method",
    implements=("attacks.CGBA", "attacks.CGBAH", "attacks.BoundaryAttack", "attacks.HopSkipJump"),
    claim="Searching the boundary along a semicircle always finds a nearer point, and with few queries a near one.",
    headline="ImageNet and CIFAR-10: lower median l2 than HSJA, GeoDA, TA, QEBA and SurFree at 1,000-20,000 queries.",
    peers=("foolbox.attacks.HopSkipJumpAttack", "foolbox.attacks.BoundaryAttack"),
    baselines=("hopskipjump", "boundary"),
    shams={
        "random-normal": "the normal is a random vector of the subspace; queries are spent, their answers ignored",
        "no-cosine": "points of the search lie at x + r zeta: on a circle around x, not on the semicircle",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "net": "mlp", "train": 500, "epochs": 8, "images": 4, "budget": 400}),
        Scale("claim", 5, {"data": "mnist", "net": "cnn", "train": 15_000, "epochs": 2, "images": 20, "budget": 3000}),
        Scale(
            "gpu",
            5,
            {"data": "cifar10", "net": "resnet", "train": 50_000, "epochs": 30, "images": 100, "budget": 10_000},
        ),
    ),
)
OPTIONS: dict[str, Any] = {"dim_reduction": 2, "sigma": 0.02}


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _model(scale: Scale, seed: int) -> nn.Module:
    train = _images(scale["data"])[0].limit(scale["train"], seed=seed)
    channels, height, width = train.shape
    shape = (channels, height, width)
    with seeded(seed, "init"):
        start = {
            "mlp": lambda: MLP(shape, len(train.classes)),
            "cnn": lambda: SmallCNN(shape, len(train.classes)),
            "resnet": lambda: ResNet(shape, len(train.classes), width=64, blocks=(2, 2, 2, 2)),
        }[scale["net"]]()
    return Supervised(epochs=scale["epochs"]).fit(start, train, seed=seed)


class Counted(nn.Module):
    """A model that counts the samples it is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return self.model(x)


Step = tuple[Tensor, Tensor, Tensor]


def variant(
    base: type[CGBA], sham: str | None, steps: list[Step] | None = None, told: Tensor | None = None
) -> type[CGBA]:
    """CGBA without a sham's ingredient. It notes (x, old, new boundary point) in ``steps``; ``told`` is the normal."""

    class Variant(base):  # type: ignore[misc]
        def normal(self, probe: Probe, z: Tensor, space: LowFrequency, m: int) -> Blending:
            if told is not None:
                return told
            eta = yield from super().normal(probe, z, space, m)
            return space.normal(probe.draws, 1, z)[0] if sham == "random-normal" else eta

        def point(self, plane: Plane, beta: float) -> Tensor:
            if sham == "no-cosine":
                return (plane.x + plane.radius * plane.direction(beta)).clamp(*self.bounds)
            return super().point(plane, beta)

        def advance(self, probe: Probe, z: Tensor, eta: Tensor) -> Blending:
            new = yield from super().advance(probe, z, eta)
            if steps is not None:
                steps.append((probe.x, z, new))
            return new

    Variant.__name__ = base.__name__  # random streams are named after the class: a sham keeps them
    return Variant


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The model, right test images with a boundary point each, and the rows of what no sham changes.

    Those are the baselines, which start at the same boundary points, CGBA-H, and the targeted runs, which start at an
    image of the class that follows.
    """
    model, test = _model(scale, seed), _images(scale["data"])[1].limit(4000, seed=seed)
    test = test[predict(model, test.x).argmax(1) == test.y]
    n, budget = scale["images"], scale["budget"]
    x, y = test.x[:n], test.y[:n]
    target = (y + 1) % len(test.classes)
    rest, far = test[n:], []
    for k, t in enumerate(target.tolist()):
        pool = rest.x[rest.y == t]
        far.append(pool[k % len(pool)])
    start = CGBA(steps=0, **OPTIONS).run(model, x, Untargeted(y), seed=derive(seed, "start")).x_adv
    given = {"model": model, "x": x, "y": y, "start": start, "seed": seed}
    near, aim, images = Untargeted(y), Targeted(target), torch.stack(far)
    runs: tuple[tuple[str, QueryAttack, Goal, Tensor], ...] = (
        ("hopskipjump", HopSkipJump(budget=budget, initial=30), near, start),
        ("boundary", BoundaryAttack(budget=min(WALK, budget), spherical=0.1, source=0.1), near, start),
        ("cgba-h", CGBAH(budget=budget, **OPTIONS), near, start),
        ("cgba targeted", CGBA(budget=budget, **OPTIONS), aim, images),
        ("cgba-h targeted", CGBAH(budget=budget, **OPTIONS), aim, images),
    )
    rows: list[dict[str, Any]] = []
    for arm, attack, goal, begin in runs:
        result = attack.run(model, x, goal, seed=seed, start=begin)
        rows += _rows(arm, result, attack.budget, attack.measure(begin - x))
    return {**given, "rows": rows}


def _rows(arm: str, result: AttackResult, budget: int, start: Tensor) -> list[dict[str, Any]]:
    """Median and mean of the best distances after the queries of each mark, and of where the search began.

    Until a search has a point of its own, that at distance ``start`` counts which it was given.
    """
    rows = []
    for at, mark in {**MARKS, "end": budget}.items():
        found = [t[t[:, 0] <= mark, 1] for t in result.trace]
        best = [float(t[-1]) if len(t) else first for t, first in zip(found, start.tolist(), strict=True)]
        rows.append(
            {"arm": arm, "at": at, "queries": min(mark, budget), "median": np.median(best), "mean": np.mean(best)}
        )
    return rows


def exact(seed: int, sham: str | None = None, d: int = 20) -> dict[str, float]:
    """Largest relative differences from the closed forms, over drawn points before a half-space in float64.

    A boundary point at distance r lies at angle theta from the normal, so that the half-space is r cos(theta) away:
    where one step of CGBA ends, and CGBA-H at r cos(theta) / cos(theta / 2), as it halves the angle once.
    """
    g = torch_rng(seed, "half-space")
    eta = torch.randn(d, generator=g, dtype=torch.float64)
    eta /= eta.norm()
    x, turn = torch.randn(2, POINTS, d, generator=g, dtype=torch.float64)
    x, turn = (
        x - ((x @ eta) + 0.5 + 2 * torch.rand(POINTS, generator=g))[:, None] * eta,
        turn - (turn @ eta)[:, None] * eta,
    )
    theta, gap = 0.2 + 1.1 * torch.rand(POINTS, generator=g).double(), -(x @ eta)
    z = x + gap[:, None] * (eta + theta.tan()[:, None] * turn / turn.norm(dim=1, keepdim=True))
    found = {}
    for name, base, expected in (("projection", CGBA, gap), ("halved", CGBAH, gap / (theta / 2).cos())):
        attack = variant(base, sham, told=eta)(steps=1, dim_reduction=1, tol=1e-11, bounds=(-REACH, REACH))
        y = torch.zeros(POINTS, dtype=torch.int64)
        end = attack.run(half_space(eta), x, Untargeted(y), seed=seed, start=x + 1.5 * (z - x)).distance
        found[name] = float((end / expected - 1).abs().max())
    searching = variant(CGBA, sham)(bounds=(-REACH, REACH))
    away = [_semicircle(searching, *sample) for sample in zip(x, z, eta.expand_as(x), theta.tolist(), strict=True)]
    return found | {name: max(a[name] for a in away) for name in away[0]}


def half_space(eta: Tensor) -> nn.Linear:
    """Class 1 where ``eta`` x is positive."""
    with seeded(0, "half-space"):
        model = nn.Linear(len(eta), 2, bias=False, dtype=eta.dtype)
    with torch.no_grad():
        model.weight.copy_(torch.stack((-eta, eta)))
    return model


def _semicircle(attack: CGBA, x: Tensor, z: Tensor, eta: Tensor, theta: float) -> dict[str, float]:
    """How far points of the search are off the circle of diameter [x, z], and off the paper's formula, over r.

    The formula: zeta is eta + m v, normalised, m = sin(theta) cot(beta) - cos(theta), and p = x + r (zeta v) zeta.
    """
    plane = Plane.of(x, z, eta)
    if plane is None:
        raise ValueError("the normal lies along the diameter")
    beta = torch.linspace(0.02, math.pi / 2 - 0.02, 50, dtype=torch.float64)
    points = torch.stack([attack.point(plane, b) for b in beta.tolist()])
    r = (z - x).norm()
    v = (z - x) / r
    zeta = eta + (math.sin(theta) / beta.tan() - math.cos(theta))[:, None] * v
    zeta /= zeta.norm(dim=1, keepdim=True)
    expected = x + r * (zeta @ v)[:, None] * zeta
    off = ((points - x - r / 2 * v).norm(dim=1) - r / 2).abs()
    return {"circle": float(off.max() / r), "paper": float((points - expected).abs().max() / r)}


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The exact differences, CGBA's distances over queries, and what each of its steps did."""
    model, x, y, steps = Counted(given["model"]), given["x"], given["y"], list[Step]()
    attack = variant(CGBA, sham, steps)(budget=scale["budget"], **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # under a sham, points far from the boundary are expected
        result = attack.run(model, x, Untargeted(y), seed=seed, start=given["start"])
    old, new = (torch.stack([(s[k] - s[0]).flatten() for s in steps]).norm(dim=1) for k in (1, 2))
    before, after = (predict(given["model"], torch.stack([s[k] for s in steps])) for k in (0, 2))
    watched = {
        "growth": float((new / old).max()) - 1,
        "short": max(0.0, -float(Untargeted(before.argmax(1)).margin(after).min())),
        "miscount": abs(model.asked - int(result.queries.sum())),
    }
    far = attack.measure(given["start"] - x)
    rows = [{"arm": "exact", **exact(seed, sham)}, {"arm": "cgba", **watched}]
    return Table.of([*rows, *_rows("cgba", result, scale["budget"], far), *given["rows"]])


def _ratio(table: Table, arm: str, at: str, reference: str, base: str | None = None) -> np.ndarray:
    """Median distance of an arm at a mark over that of another at the mark ``base``, or at the same."""
    return table.per_seed("median", arm=arm, at=at) / table.per_seed("median", arm=reference, at=base or at)


def claims(table: Table) -> list[Claim]:
    """Thales, the distance against where it began, and that against HopSkipJump's after 300 queries decide."""
    circle, normal = ("no-cosine",), ("random-normal",)
    identities = (
        ("one step along a half-space's normal ends at the orthogonal projection: relative difference", "projection"),
        ("points of the search are half a diameter off its middle: largest difference over the diameter", "circle"),
        ("they are those of the paper's formula, with m = sin(theta) cot(beta) - cos(theta): the same", "paper"),
    )
    return [
        *(
            Claim(text, table.per_seed(column, np.max), at_most=1e-8, rule="exact", refuted_by=circle)
            for text, column in identities
        ),
        Claim(
            "median distance with all queries over that of the starting boundary points is at most 0.45",
            _ratio(table, "cgba", "end", "cgba", "start"),
            at_most=0.45,
            refuted_by=normal,
        ),
        Claim(
            "after 300 queries the median distance over HopSkipJump's is at most 0.85",
            _ratio(table, "cgba", "300", "hopskipjump"),
            at_most=0.85,
            refuted_by=normal,
        ),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    text = "targeted at the next class, the median distance with all queries over that after 100"
    return [
        Claim(
            "with all queries the median distance over HopSkipJump's is at most 1",
            _ratio(table, "cgba", "end", "hopskipjump"),
            at_most=1.0,
            key=False,
        ),
        Claim(
            "after 1000 queries the median distance over the boundary attack's is at most 0.9",
            _ratio(table, "cgba", "1000", "boundary"),
            at_most=0.9,
            key=False,
            refuted_by=("random-normal",),
        ),
        *(
            Claim(f"{text}: {arm}, at most 0.60", _ratio(table, arm, "end", arm, "100"), at_most=0.60, key=False)
            for arm in ("cgba targeted", "cgba-h targeted")
        ),
        Claim(
            "targeted, the median distance of CGBA-H over that of CGBA is at most 1.1",
            _ratio(table, "cgba-h targeted", "end", "cgba targeted"),
            at_most=1.1,
            key=False,
        ),
        Claim(
            "one step of CGBA-H along a half-space's normal halves the angle: relative difference of the distance",
            table.per_seed("halved", np.max),
            at_most=1e-8,
            rule="exact",
            key=False,
        ),
        Claim(
            "no step leads further away: largest growth of the distance",
            table.per_seed("growth", np.max),
            at_most=1e-5,
            rule="exact",
            key=False,
        ),
        Claim(
            "all boundary points are misclassified, to within rounding: largest lead of the right class, in logits",
            table.per_seed("short", np.max),
            at_most=1e-4,
            rule="exact",
            key=False,
        ),
        Claim(
            "queries counted by the attack less those that the model counts",
            table.per_seed("miscount", np.max),
            at_most=0,
            rule="exact",
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Median distance over queries, untargeted and targeted, mean over seeds."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    arms = list(dict.fromkeys(str(r["arm"]) for r in table.rows if "median" in r))
    for axes, targeted in zip(drawing.subplots(1, 2), (False, True), strict=True):
        for arm in arms:
            if arm.endswith("targeted") != targeted:
                continue
            marks = list(dict.fromkeys(int(q) for q in table.values("queries", arm=arm)))
            axes.plot(marks, [table.values("median", arm=arm, queries=q).mean() for q in marks], "-o", ms=3, label=arm)
        axes.set(xlabel="queries", ylabel="median l2 distance", title="targeted" if targeted else "untargeted")
        axes.legend(frameon=False)
    return drawing
