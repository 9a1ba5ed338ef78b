"""Blind spots: at a source's confidence a network can be led to images that look like any other class.

Key: level set traversal ends far nearer to its targets than the last confident point of the straight line, and every
end keeps its confidence to within the allowed drop. Exact: on a linear boundary the walk follows a closed form, its
steps on a trained network are at right angles to the gradient, and on a network of two layers it agrees with a form
of the algorithm in NumPy. The step and number of iterations are the defaults of the authors' program, .05 and 100.
With those of the command in their README, .01 and 400 (support), no step is rejected on MNIST, and in pilots the step
that regains confidence then made up for a missing projection: distances alone would not tell the method from its sham.

That adversarially trained networks have the larger blind spots does not show on MNIST, where the triangles of an
ordinary network are confident already: an arm of the gpu scale, on CIFAR-10, is for that. Networks for ImageNet are
not run.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.defenses import PGDTraining
from assay.dynamics import BlindSpotReport, LevelSetTraversal, blind_spot_report, linear_path_confidence
from assay.nets import MLP, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, seeded
from assay.training import Supervised, Trainer

DROP = 0.2  # of confidence
SIZES = {  # training; sources of the walks, of those with small steps, and steps
    "smoke": {"epochs": 10, "lr": 1e-2, "sources": 20, "small": 15, "steps": 30},
    "claim": {"epochs": 4, "lr": 5e-3, "sources": 30, "small": 15, "steps": 100},
    "gpu": {"epochs": 30, "lr": 1e-3, "sources": 200, "small": 200, "steps": 100},
}
Rows = list[dict[str, Any]]

PAPER = Paper(
    slug="blind-spots",
    title="Exploring Geometry of Blind Spots in Vision Models",
    authors="Sriram Balasubramanian, Gaurang Sriramanan, Vinu Sankar Sadasivan, Soheil Feizi",
    year=2023,
    arxiv="2310.19889",
    room="dynamics",
    also=("vision", "attacks"),
    kind="method + measure",
    implements=(
        "dynamics.LevelSetTraversal",
        "dynamics.blind_spot_report",
        "dynamics.straight_line",
        "dynamics.linear_path_confidence",
        "dynamics.triangle_confidence",
        "dynamics.path_width",
        "dynamics.structural_similarity",
    ),
    claim="Walking across the gradient, a network's level set leads from an image to what looks like any other class.",
    headline="ImageNet: outputs look like the targets at the source's confidence, more so for robust networks.",
    baselines=("straight line",),
    shams={
        "no-projection": "each step goes straight to the target instead of across the gradient; rejection is kept",
        "no-rejection": "every step is taken, whatever it does to the confidence",
    },
    scales=(
        Scale("smoke", 1, {**SIZES["smoke"], "data": "digits", "train": 1000, "robust": 0}),
        Scale("claim", 8, {**SIZES["claim"], "data": "mnist", "train": 6000, "robust": 0}),
        Scale("gpu", 5, {**SIZES["gpu"], "data": "cifar10", "train": 50_000, "robust": 30}),
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Shammed(LevelSetTraversal):
    """LevelSetTraversal, or one of its shams."""

    sham: str | None = None

    def across(self, delta: Tensor, grad: Tensor) -> Tensor:
        return delta if self.sham == "no-projection" else super().across(delta, grad)

    def accepts(self, above: Tensor) -> Tensor:
        return torch.ones_like(above) if self.sham == "no-rejection" else super().accepts(above)


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _network(trainer: Trainer, train: Data, seed: int) -> nn.Module:
    channels, height, width = train.shape
    with seeded(seed, "init"):
        if height < 16:
            start: nn.Module = MLP(train.shape, len(train.classes), (32,))
        else:
            widths, hidden = ((8, 16), 32) if channels == 1 else ((64, 128), 256)
            start = SmallCNN((channels, height, width), len(train.classes), widths, hidden)
    return trainer.fit(start, train, seed=seed)


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """A trained network, images that it was not trained on, and what no sham changes: small steps, robust training."""
    train, test = _images(scale["data"])
    model = _network(
        Supervised(epochs=scale["epochs"], lr=scale["lr"]),
        train.limit(scale["train"], seed=seed),
        derive(seed, "network"),
    )
    given: dict[str, Any] = {"model": model, "test": test.limit(2000, seed=seed), "fixed": []}
    small = LevelSetTraversal(step=1e-2, steps=4 * scale["steps"], conf_drop=DROP)
    given["fixed"].append(_row("small steps", _report(scale, seed, given, small, scale["small"])))
    if scale["robust"]:
        trainer = PGDTraining(norm="linf", eps=8 / 255, attack_steps=7, epochs=scale["robust"], lr=scale["lr"])
        other = given | {"model": _network(trainer, train.limit(scale["train"], seed=seed), derive(seed, "network"))}
        given["fixed"].append(_row("robust", _report(scale, seed, other, _method(scale, None), scale["sources"])))
    return given


def _method(scale: Scale, sham: str | None) -> LevelSetTraversal:
    return _Shammed(sham=sham, step=5e-2, steps=scale["steps"], conf_drop=DROP)


def _report(scale: Scale, seed: int, given: dict[str, Any], method: LevelSetTraversal, n: int) -> BlindSpotReport:
    test = given["test"]
    return blind_spot_report(given["model"], test.x, test.y, n, seed=seed, traversal=method, least=0.6)


def _row(arm: str, report: BlindSpotReport) -> dict[str, Any]:
    """Means over pairs, and the least of confidence less what the walk must keep."""
    found = report.summary()
    kept = ("distance", "gap", "conf", "conf0", "ssim", "rmse", "linear", "triangle", "triangle@0.2")
    return {"arm": arm, **{name: found[name] for name in kept}}


def probability(model: nn.Module, x: Tensor, y: Tensor) -> Float[np.ndarray, " n"]:
    """Softmax probabilities of ``y`` in float64, from logits, by NumPy."""
    z = predict(model, x).double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    return e[np.arange(len(z)), y.numpy()] / e.sum(1)


def _pairs(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Rows:
    """The method and the straight line between the same pairs, and the confidence on the way to where each leads."""
    model, test = given["model"], given["test"]
    report = _report(scale, seed, given, _method(scale, sham), scale["sources"])
    x, y = test.x[report.sources], test.y[report.sources]
    p0 = probability(model, x, y)
    least = min(float((probability(model, r.x, y) - p0 + DROP).min()) for r in report.results)
    gap, line = float(report.gap.mean()), float(report.line.mean())
    rows: Rows = [_row("traversal", report) | {"least": least}, {"arm": "straight line", "distance": line, "gap": gap}]
    ways = {
        "to the output": report.linear.flatten(0, 1),
        "to the target": torch.cat([linear_path_confidence(model, x, test.x[t], y) for t in report.targets]),
    }
    for arm, conf in ways.items():
        rows += [{"arm": arm, "t": t / 10, "on_path": float(c)} for t, c in enumerate(conf.mean(0))]
    return rows


class _Layers(nn.Module):
    """Linear layers with the given weights, each (out, in), tanh between them, no biases."""

    def __init__(self, *weights: np.ndarray) -> None:
        super().__init__()
        self.weights = [torch.from_numpy(w) for w in weights]

    def forward(self, x: Tensor) -> Tensor:
        for w in self.weights[:-1]:
            x = torch.tanh(x @ w.T)
        return x @ self.weights[-1].T


def closed_form(seed: int, sham: str | None, steps: int = 50) -> float:
    """Two linear classes, no box, no step along the gradient: x_m = x_s + (1 - (1 - step)^m) P (x_t - x_s), P the
    projection on the boundary's directions. Largest difference, relative to the largest coordinate."""
    rng = numpy_rng(seed, "closed form")
    weight = rng.normal(size=(2, 12))
    x, target = rng.normal(size=(2, 20, 12))
    y = (x @ weight.T).argmax(1)
    method = _Shammed(sham=sham, step=0.1, steps=steps, adv_step=0.0, jitter=0.0, bounds=(-math.inf, math.inf))
    found = method(_Layers(weight), *map(torch.from_numpy, (x, y, target)), seed=seed).x.numpy()
    normal = weight[1] - weight[0]
    across = (target - x) - np.outer((target - x) @ normal / (normal @ normal), normal)
    expected = x + (1 - 0.9**steps) * across
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def reference(
    first: np.ndarray, last: np.ndarray, x: np.ndarray, y: int, target: np.ndarray, method: LevelSetTraversal
) -> tuple[np.ndarray, list[bool]]:
    """The algorithm for one point x (d,) of the network last @ tanh(first @ x), without jitter: the end, and which
    steps it takes."""

    def softmax(point: np.ndarray) -> np.ndarray:
        logits = last @ np.tanh(first @ point)
        e = np.exp(logits - logits.max())
        return e / e.sum()

    start, a, taken = softmax(x)[y], np.zeros_like(x), []
    for _ in range(method.steps):
        error = softmax(x) - np.eye(len(last))[y]
        gradient = ((error @ last) * (1 - np.tanh(first @ x) ** 2)) @ first
        delta = target - x
        across = delta - gradient * (gradient @ delta) / (gradient @ gradient)
        a = np.clip(a + method.adv_step / 2 * gradient, -method.adv_step, method.adv_step)
        candidate = np.clip(x + method.step * across - a, 0, 1)
        taken.append(bool(start - softmax(candidate)[y] < method.conf_drop))
        x = candidate if taken[-1] else x
    return x, taken


def against_reference(seed: int, sham: str | None) -> float:
    """Largest difference from ``reference`` over points drawn in the unit cube; infinite for other steps taken."""
    rng = numpy_rng(seed, "reference")
    first, last = 2 * rng.normal(size=(12, 16)), rng.normal(size=(5, 12)) / 2
    x, target = rng.uniform(size=(2, 24, 16))
    y = (np.tanh(x @ first.T) @ last.T).argmax(1)
    method = _Shammed(sham=sham, step=0.2, steps=60, conf_drop=0.01, adv_step=1e-3, jitter=0.0)
    found = method(_Layers(first, last), *map(torch.from_numpy, (x, y, target)), seed=seed)
    expected = [reference(first, last, *one, method) for one in zip(x, y, target, strict=True)]
    if found.accepted.tolist() != [taken for _, taken in expected]:
        return math.inf
    return float(np.abs(found.x.numpy() - np.stack([end for end, _ in expected])).max())


def right_angle(given: dict[str, Any], seed: int, sham: str | None) -> float:
    """Largest |cosine| between a first step on the trained network, in float64 without a box, and the gradient of the
    cross-entropy there."""
    model, test = copy.deepcopy(given["model"]).double(), given["test"]
    x, target = test.x[:20].double(), test.x[20:40].double()
    y = predict(model, x).argmax(1)
    method = _Shammed(sham=sham, steps=1, conf_drop=1.0, adv_step=0.0, jitter=0.0, bounds=(-math.inf, math.inf))
    moved = (method(model, x, y, target, seed=seed).x - x).flatten(1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    return float(F.cosine_similarity(moved, gradient.flatten(1)).abs().max())


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The walks between pairs of images, the exact checks, and what no sham changes."""
    exact = {
        "closed form": closed_form(seed, sham),
        "reference": against_reference(seed, sham),
        "right angle": right_angle(given, seed, sham),
    }
    rows: Rows = [*_pairs(scale, seed, given, sham), *given["fixed"]]
    return Table.of([*rows, *({"arm": name, "exact": value} for name, value in exact.items())])


def claims(table: Table) -> list[Claim]:
    """Distances, the confidence that is kept and the exact checks decide; the rest supports."""
    distance, line = (table.per_seed("distance", arm=arm) for arm in ("traversal", "straight line"))
    both = ("no-projection", "no-rejection")
    return [
        Claim(
            "distance to the target, over that of the straight line's last confident point",
            distance / line,
            at_most=0.7,
            refuted_by=("no-projection",),
        ),
        Claim(
            "confidence at the end less that of the source, plus 0.2: least over all pairs",
            table.per_seed("least", np.min),
            at_least=-1e-6,
            rule="exact",
            refuted_by=("no-rejection",),
        ),
        Claim(
            "two linear classes: relative difference from x_s + (1 - (1 - step)^m) P (x_t - x_s)",
            table.per_seed("exact", arm="closed form"),
            at_most=1e-9,
            rule="exact",
            refuted_by=("no-projection",),
        ),
        Claim(
            "network of two layers: difference from the algorithm in NumPy; infinite where other steps are taken",
            table.per_seed("exact", arm="reference"),
            at_most=1e-6,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "trained network: |cosine| between a step and the gradient",
            table.per_seed("exact", arm="right angle"),
            at_most=1e-6,
            rule="exact",
            refuted_by=("no-projection",),
        ),
        *_support(table, distance),
    ]


def _support(table: Table, distance: np.ndarray) -> list[Claim]:
    def support(text: str, observed: np.ndarray, **bound: float) -> Claim:
        return Claim(text, observed, key=False, **bound)  # type: ignore[arg-type]

    found = [
        support(
            "distance to the target, over that of the source", distance / table.per_seed("gap", arm="traversal"),
            at_most=0.5,
        ),
        support(
            "mean confidence on the straight lines from sources to ends", table.per_seed("linear", arm="traversal"),
            at_least=0.8,
        ),
        support(
            "share of the triangle of a source and two ends with confidence above the source's less 0.2",
            table.per_seed("triangle@0.2", arm="traversal"),
            at_least=0.9,
        ),
        support("400 steps of .01: confidence at the end", table.per_seed("conf", arm="small steps"), at_least=0.9),
        support(
            "400 steps of .01: distance to the target over that of the source",
            table.per_seed("distance", arm="small steps") / table.per_seed("gap", arm="small steps"),
            at_most=0.5,
        ),
    ]  # fmt: skip
    if table.where(arm="robust").rows:
        gain = table.gain("robust", "traversal", "triangle@0.2")
        found.append(support("share of the triangle, adversarially trained over ordinary", gain, at_least=0.0))
    return found


def figure(table: Table) -> Figure:
    """How near to the targets each gets, and the confidence on straight lines."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    gap = table.per_seed("gap", arm="traversal")
    arms = {"straight line": "straight line,\nlast confident", "traversal": "traversal\n(100 x .05)"}
    arms |= {"small steps": "traversal\n(400 x .01)"}
    heights = [gap, *(table.per_seed("distance", arm=arm) for arm in arms)]
    left.bar(range(4), [h.mean() for h in heights], color="0.8")
    for k, h in enumerate(heights):
        left.plot(np.full(len(h), k), h, "o", ms=3)
    left.set_xticks(range(4), ["source", *arms.values()], fontsize=8)
    left.set(ylabel="l2 distance", title="Distance to the target")
    for arm in ("to the output", "to the target"):
        t = np.unique(table.values("t", arm=arm))
        right.plot(t, [table.values("on_path", arm=arm, t=float(k)).mean() for k in t], "-o", ms=3, label=arm)
    right.set(xlabel="way from the source", ylabel="confidence in its class", ylim=(0, 1.02), title="On straight lines")
    right.legend(frameon=False)
    return drawing
