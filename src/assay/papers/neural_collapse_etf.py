"""Collapse to a simplex: the layer-peeled model against its closed form, and what imbalance does to it.

Exact: the solved model attains log(1 + (K-1) exp(-K/(K-1) sqrt(E_W E_H))) for balanced classes; five classes a thousand
times rarer than five others share one classifier row, five as frequent do not, and a convex certificate bounds what
any other solution could gain. Frames and measures are checked on drawn features. Learned, on digits: the measures fall
in training, though far from 0 at this size; and on a long tail a fixed ETF with dot regression is set against a learned
head, both with features that may be negative and rates chosen on held-out data. Long-tailed MNIST is the gpu scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Batch, Data, load_data
from assay.dynamics import Collapse, FixedETF, LayerPeeledModel, head_inputs, neural_collapse, simplex_etf
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.training import Plan, State, Supervised, Trainer, fit

BALANCED = (3, 10, 20)
DIM = 32
RATIOS = (1, 10, 100, 1000)
E_H = 5.0  # of the imbalanced model, so that logits can grow
FRAMES = ((2, 1), (4, 3), (10, 9), (10, 32), (50, 64))
RATES = (3e-3, 1e-2)
SCALE = 100.0  # e_h of cross-entropy on a fixed ETF: logits within +-10

PAPER = Paper(
    slug="neural-collapse-etf",
    title="Collapse and simplex ETF (neural collapse, layer-peeled model, fixed-ETF classifier)",
    authors="Ziqing Fan, Ruipeng Zhang, Jiangchao Yao, Bo Han, Ya Zhang, Yanfeng Wang",
    year=2023,
    arxiv="2405.18972",
    room="dynamics",
    also=("losses", "represent"),
    kind="measure + method",
    implements=(
        "dynamics.neural_collapse",
        "dynamics.simplex_etf",
        "dynamics.LayerPeeledModel",
        "dynamics.ETFClassifier",
        "dynamics.attach_etf",
        "dynamics.FixedETF",
        "losses.DotRegressionLoss",
    ),
    claim="Free features and classifier form a simplex where classes are balanced; rare classes merge beyond a ratio.",
    headline="Collapse on 7 data sets x 3 networks (2008.08186); rare classes merge (2101.12699); a fixed ETF with dot "
    "regression beats a learned classifier on long-tailed data (2203.09081).",
    peers=("tding1/Neural-Collapse",),
    baselines=("learned",),
    shams={
        "missing-factor": "the closed form goes without K/(K-1) in its exponent",
        "count-blind": "the layer-peeled model weights every class by 1/K instead of n_k/N",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "marks": (1, 2), "plain": 2, "many": 40, "few": 4, "epochs": 2}),
        Scale(
            "claim",
            5,
            {"data": "digits", "marks": (3, 10, 30, 60, 80), "plain": 100, "many": 70, "few": 4, "epochs": 40},
        ),
        Scale(
            "gpu",
            5,
            {"data": "mnist", "marks": (3, 10, 30, 60, 80), "plain": 300, "many": 1000, "few": 10, "epochs": 60},
        ),
    ),
)


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _drawn(seed: int, c: int = 5, d: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy float64 features (n, d) of classes of 10, 20 .. 10 c samples (n,), and a head (c, d)."""
    g = torch_rng(seed, "features")
    y = torch.arange(c).repeat_interleave(10 * torch.arange(1, c + 1))
    centres, head = torch.randn(2, c, d, generator=g, dtype=torch.float64)
    return centres[y] + 0.5 * torch.randn(len(y), d, generator=g, dtype=torch.float64), y, head


def _numbers(found: Collapse) -> np.ndarray:
    names = ("nc1", "norms", "angles", "head_norms", "head_angles", "head_gram", "nc3", "product", "nc4")
    return np.array([getattr(found, name) for name in names])


def reference_nc1(h: np.ndarray, y: np.ndarray) -> float:
    """tr(S_W pinv(S_B)) / c from the matrices themselves, all averages but S_B's over samples."""
    classes = np.unique(y)
    between = np.stack([h[y == k].mean(0) - h.mean(0) for k in classes])
    within = sum((y == k).mean() * np.cov(h[y == k].T, bias=True) for k in classes)
    return float(np.trace(within @ np.linalg.pinv(between.T @ between / len(classes), rcond=1e-8)) / len(classes))


def exact(seed: int) -> dict[str, float]:
    """Errors of what holds identically, of frames and of measures."""
    gram = 0.0
    for k, d in FRAMES:
        rows = simplex_etf(k, d, seed=seed).numpy()
        gram = max(gram, float(np.abs(rows @ rows.T - (np.eye(k) - 1 / k) * k / (k - 1)).max()))
    h, y, head = _drawn(seed)
    rng = numpy_rng(seed, "turn")
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(h.shape[1],) * 2))[0])
    order = torch.from_numpy(rng.permutation(len(h)))
    frame = simplex_etf(len(head), h.shape[1], seed=seed)
    collapsed = neural_collapse(7 * frame[y] + 1, y, 3 * frame, -3 * frame.sum(1))
    turned = neural_collapse((4 * h @ turn)[order], y[order], 9 * head @ turn)
    nc1 = neural_collapse(h, y, weighting="sample").nc1
    return {
        "gram": gram,
        "collapsed": float(np.abs(_numbers(collapsed)).max()),
        "turned": float(np.abs(_numbers(turned) - _numbers(neural_collapse(h, y, head))).max()),
        "nc1_error": abs(nc1 / reference_nc1(h.numpy(), y.numpy()) - 1),
    }


def _measured(model: nn.Module, data: Data) -> dict[str, float]:
    fed, head = head_inputs(model, data.x)
    found = neural_collapse(fed, data.y, head.weight, head.bias)
    return {"nc1": found.nc1, "angles": found.angles, "nc3": found.nc3, "nc4": found.nc4}


def _sgd(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr, 0.9, weight_decay=5e-4)


def _cross_entropy(model: nn.Module, batch: Batch, state: State) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def _trend(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """The measures over epochs with batch normalisation, on digits; and at the end of a plain network's training."""
    data = load_data("digits", "train")
    sizes = (math.prod(data.shape), 256, 256, 256)
    with seeded(seed, "trend"):
        body = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
        model: nn.Module = nn.Sequential(nn.Flatten(), *body, nn.Linear(sizes[-1], len(data.classes)))
        plain = MLP(data.shape, len(data.classes), (128, 64))
    rows, before, marks = [], 0, scale["marks"]
    for mark in marks:
        rate = 0.01 if mark == marks[-1] else 0.1
        plan = Plan(epochs=mark - before, batch_size=256, optimizer=_sgd(rate), schedule="constant")
        model, before = fit(model, data, _cross_entropy, plan, seed=derive(seed, "trend", mark)), mark
        rows.append({"arm": "trend", "epoch": mark, **_measured(model, data)})
    ratios = {f"{k}_ratio": rows[-1][k] / rows[0][k] for k in ("nc1", "angles", "nc3")}
    rows.append({"arm": "trend", "last_nc4": rows[-1]["nc4"], **ratios})
    plan = Plan(epochs=scale["plain"], batch_size=256, optimizer=_sgd(0.1), schedule="constant")
    last = fit(plain, data, _cross_entropy, plan, seed=seed)
    right = float((predict(last, data.x).argmax(1) == data.y).float().mean())
    return [*rows, {"arm": "plain", "accuracy": right, "plain_nc1": _measured(last, data)["nc1"]}]


def _long_tail(scale: Scale, seed: int) -> tuple[Data, Data, list[int]]:
    """Training data with five rare classes, balanced held-out data, and the rare classes."""
    data, _ = _images(scale["data"])
    rng = numpy_rng(seed, "long tail")
    classes = rng.permutation(len(data.classes))
    rare = sorted(classes[: len(classes) // 2].tolist())
    chosen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    held = scale["many"] // 10
    for k in classes:
        rows = rng.permutation(np.flatnonzero(data.y.numpy() == k))
        chosen[0].append(rows[held : held + scale["few" if k in rare else "many"]])
        chosen[1].append(rows[:held])
    train, holdout = (data[torch.from_numpy(np.sort(np.concatenate(c)))] for c in chosen)
    return train, holdout, rare


def _recalls(model: nn.Module, data: Data) -> np.ndarray:
    right = (predict(model, data.x).argmax(1) == data.y).double()
    return np.array([float(right[data.y == k].mean()) for k in range(len(data.classes))])


def _best(methods: Sequence[Trainer], start: nn.Module, train: Data, holdout: Data, seed: int) -> nn.Module:
    """The model of the method with the best balanced accuracy on held-out data."""
    models = [method.fit(start, train, seed=derive(seed, k)) for k, method in enumerate(methods)]
    return max(models, key=lambda model: _recalls(model, holdout).mean())


def _repair(scale: Scale, seed: int) -> list[dict[str, Any]]:
    train, holdout, rare = _long_tail(scale, seed)
    with seeded(seed, "repair"):
        # The last hidden layer has no ReLU: features without negative coordinates cannot come near a frame.
        body = (nn.Flatten(), nn.Linear(math.prod(train.shape), 256), nn.ReLU(), nn.Linear(256, 64))
        start = nn.Sequential(*body, nn.Linear(64, len(train.classes)))
    plans = [{"epochs": scale["epochs"], "lr": rate} for rate in RATES]
    arms: dict[str, list[Trainer]] = {
        "learned": [Supervised(**p) for p in plans],
        "etf, cross-entropy": [FixedETF(loss="cross-entropy", e_h=SCALE, **p) for p in plans],
        "etf, dot regression": [FixedETF(**p) for p in plans],
    }
    rows = []
    for arm, methods in arms.items():
        recalls = _recalls(_best(methods, start, train, holdout, seed), _images(scale["data"])[1])
        rows.append({"arm": arm, "rare": recalls[rare].mean(), "balanced": recalls.mean()})
    return rows


def setup(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """What no sham touches: identities, the trend over training, and the repair of a long tail."""
    return [{"arm": "exact", **exact(seed)}, *_trend(scale, seed), *_repair(scale, seed)]


def _between(cos: Tensor, rows: slice) -> float:
    """Mean cosine between different classes of a group."""
    part = cos[rows, rows]
    return float(part[~torch.eye(len(part), dtype=torch.bool)].mean())


def experiment(scale: Scale, seed: int, given: list[dict[str, Any]], sham: str | None) -> Table:
    """The solved model over K and over the imbalance ratio, with the classifier learned and fixed."""
    rows = list(given)
    for k in BALANCED:
        found = LayerPeeledModel(counts=(100,) * k, dim=DIM).solve(seed=derive(seed, k))
        exponent = -1.0 if sham == "missing-factor" else -k / (k - 1)
        expected = math.log1p((k - 1) * math.exp(exponent))
        rows.append({"arm": f"K={k}", "loss": found.loss, "form": expected, "gap": found.gap})
        rows.append({"arm": f"K={k}", "relative": abs(found.loss / expected - 1)})
    for ratio in RATIOS:
        counts = (1,) * 10 if sham == "count-blind" else (ratio,) * 5 + (1,) * 5
        model = LayerPeeledModel(counts=counts, dim=DIM, e_h=E_H)
        found = model.solve(seed=derive(seed, "ratio", ratio))
        cells = {"ratio": ratio, "gap": found.gap, "majority": _between(found.cos, slice(5))}
        rows.append({"arm": f"R={ratio}", **cells, "minority": _between(found.cos, slice(5, 10))})
        held = LayerPeeledModel(counts=counts, dim=DIM, e_h=E_H, classifier="etf").solve(seed=derive(seed, ratio))
        cos = held.feature_cos[~torch.eye(10, dtype=torch.bool)]
        rows.append({"arm": f"fixed R={ratio}", "gap": held.gap, "fixed_error": float((cos + 1 / 9).abs().max())})
    return Table.of(rows)


def claims(table: Table) -> list[Claim]:
    """The closed form, the merging of rare classes and the certificate decide; the rest supports."""

    def identity(text: str, column: str, at_most: float, key: bool = False, **more: Any) -> Claim:
        return Claim(text, table.per_seed(column, np.max), at_most=at_most, rule="exact", key=key, **more)

    return [
        identity(
            "balanced classes, K = 3, 10, 20: relative difference of the solved loss and the closed form",
            "relative",
            1e-5,
            key=True,
            refuted_by=("missing-factor",),
        ),
        Claim(
            "five classes 1000 times rarer than five others: mean cosine of their classifier rows",
            table.per_seed("minority", arm="R=1000"),
            at_least=0.99,
            rule="exact",
            refuted_by=("count-blind",),
        ),
        Claim(
            "five classes as frequent as five others: mean cosine of their classifier rows",
            table.per_seed("minority", arm="R=1"),
            at_most=-0.1,
            rule="exact",
        ),
        identity(
            "what any classifier and features could gain on the solved ones, all K and ratios", "gap", 1e-5, key=True
        ),
        identity("classifier fixed to the ETF, all ratios: |cos + 1/9| between features, largest", "fixed_error", 1e-4),
        identity("Gram matrix of drawn frames against K/(K-1) (I - 11^T/K): largest difference", "gram", 1e-12),
        identity("all measures at perfect collapse, unbalanced classes, largest", "collapsed", 1e-8),
        identity("all measures under rotation, scale and order: largest difference", "turned", 1e-8),
        identity("NC1, weighted by sample, against its matrices: relative difference", "nc1_error", 1e-6),
        *_learned(table),
    ]


def _learned(table: Table) -> list[Claim]:
    ratio = "{} on digits, batch normalisation: epoch 80 over epoch 3"
    return [
        Claim(ratio.format("NC1"), table.per_seed("nc1_ratio"), at_most=0.7, key=False),
        Claim(ratio.format("NC2 (angles)"), table.per_seed("angles_ratio"), at_most=0.8, key=False),
        Claim(ratio.format("NC3"), table.per_seed("nc3_ratio"), at_most=0.9, key=False),
        Claim("NC4 on digits, batch normalisation, epoch 80", table.per_seed("last_nc4"), at_most=0.01, key=False),
        Claim(
            "NC1 of a plain network with its training samples right stays large",
            table.per_seed("plain_nc1"),
            at_least=0.1,
            key=False,
        ),
        Claim(
            "long tail: recall of rare classes, fixed ETF with dot regression over a learned head",
            table.gain("etf, dot regression", "learned", "rare"),
            at_least=0.03,
            key=False,
        ),
        Claim(
            "long tail: balanced accuracy, fixed ETF with dot regression over a learned head",
            table.gain("etf, dot regression", "learned", "balanced"),
            at_least=0.0,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Cosines over the ratio, measures over epochs, and recall of rare classes."""
    drawing = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = drawing.subplots(1, 3)
    for group in ("minority", "majority"):
        cos = [table.values(group, arm=f"R={r}").mean() for r in RATIOS]
        left.semilogx(RATIOS, cos, "-o", ms=3, label=group)
    left.axhline(-1 / 9, color="0.6", lw=0.8)
    left.set(xlabel="ratio of class sizes", ylabel="mean cosine of classifier rows", title="Layer-peeled model, 5 + 5")
    left.legend(frameon=False)
    own = Table(tuple(r for r in table.where(arm="trend").rows if r["seed"] == table.rows[0]["seed"]))
    for column, name in {"nc1": "NC1", "angles": "NC2 angles", "nc3": "NC3", "nc4": "NC4"}.items():
        middle.plot(own.values("epoch"), own.values(column), "-o", ms=3, label=name)
    middle.set(xlabel="epoch", title="Digits, batch normalisation (one seed)")
    middle.legend(frameon=False)
    arms = ("learned", "etf, cross-entropy", "etf, dot regression")
    right.plot(
        ["learned", "ETF + CE", "ETF + DR"], [table.per_seed("rare", arm=a) for a in arms], "-o", ms=3, color="0.5"
    )
    right.set(ylabel="recall of rare classes", title="Long tail (one line a seed)")
    return drawing
