"""Hyp-OC: spoofs that were never seen are told from real captures by a head in a Poincare ball.

Exact: the ball's maps are inverse to each other, its distance is the closed form of the model, and as the curvature
goes to 0 everything becomes Euclidean. Learned, on digits that stand for faces: an encoder trained on the digits 0 to
4; real captures are clean digits 5 to 9, spoofs simulated recaptures of others. The head, trained on real captures
alone, has to find the spoofs; one that was not trained, or on shuffled labels, must not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.data.filters import gaussian_blur
from assay.detect import HypOC, OneClassSVM, eer_threshold, fas_metrics
from assay.detect.base import FittedDetector
from assay.papers.model import Claim, Paper, Scale, Table
from assay.represent import HyperbolicMLR, dist, expmap0, gromov_delta, logmap0, mobius_add
from assay.runtime.inference import features
from assay.runtime.random import Draws, derive, numpy_rng, seeded, torch_rng
from assay.runtime.statistics import point
from assay.training import State, Supervised

KNOWN = 5  # digits below train the encoder, those from here on stand for faces
SPOOFS = ("print", "replay", "mask")
FLAT = 1e-8  # a curvature at which the ball is flat but for about 1e-7
HEADS = 2

PAPER = Paper(
    slug="hyp-oc",
    title="Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing",
    authors="Kartik Narayan, Vishal M. Patel",
    year=2024,
    arxiv="2404.14406",
    room="detect",
    also=("represent", "losses"),
    kind="method",
    implements=(
        "detect.HypOC",
        "detect.OneClassSVM",
        "detect.fas_metrics",
        "losses.HypPairwiseConfusion",
        "losses.HypCrossEntropy",
        "represent.HyperbolicMLR",
        "represent.ToPoincare",
        "represent.dist",
        "represent.expmap0",
        "represent.mobius_add",
        "represent.poincare_mean",
        "represent.gromov_delta",
    ),
    claim="A hyperbolic head trained on real captures against pseudo-negatives around their mean finds unseen spoofs.",
    headline="Lower error rates than one-class baselines within and across five sets of face captures.",
    peers=("sklearn.svm.OneClassSVM", "geoopt.PoincareBall"),
    baselines=("untrained", "euclidean", "svm"),
    shams={
        "labels-by-position": "real and pseudo features are shuffled together, the targets stay by position",
        "missing-curvature": "d(x, y) = 2 artanh(|-x (+) y|): sqrt(c) is lost in both places",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 150, "real": 100, "test": 60, "encoder": 3, "epochs": 2}),
        Scale("claim", 5, {"data": "mnist", "train": 1000, "real": 1000, "test": 200, "encoder": 4, "epochs": 6}),
        Scale("gpu", 6, {"data": "mnist", "train": 30_000, "real": 20_000, "test": 2000, "encoder": 10, "epochs": 20}),
    ),
)


class _Encoder(nn.Module):
    """Two convolutions averaged over space, 64 features of unit variance, and the classifier that trains them."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 24, 3, 1, 1), nn.Conv2d(24, 40, 3, 2, 1)
        self.features = nn.BatchNorm1d(64, affine=False)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.avg_pool2d(self.first(x).relu(), 2)
        coarse = self.second(fine).relu()
        return self.head(self.features(torch.cat((fine.mean((2, 3)), coarse.mean((2, 3))), 1)))


class _ByPosition(HypOC):
    def joined(self, real: Tensor, pseudo: Tensor, state: State) -> Tensor:
        both = super().joined(real, pseudo, state)
        return both[torch.randperm(len(both), generator=torch_rng(state.seed, "shuffled", state.step))]


def _flat_artanh(x: Tensor, y: Tensor, c: float) -> Tensor:
    return 2 * torch.atanh(mobius_add(-x, y, c).norm(dim=-1).clamp(max=1 - 1e-5))


class _MissingCurvature(HypOC):
    def pull(self, real: Tensor) -> Tensor:
        a, b = real.chunk(2)
        return _flat_artanh(a, b, self.c).mean()


METHODS: dict[str | None, type[HypOC]] = {
    None: HypOC,
    "labels-by-position": _ByPosition,
    "missing-curvature": _MissingCurvature,
}


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def spoofed(kind: str, x: Tensor, seed: int) -> Tensor:
    """Recaptures of images (n, 1, h, w): paper blurred and pale with grain, a screen with moire, a mask with holes."""
    n, _, height, width = x.shape
    if kind == "print":
        grain = 0.05 * Draws(seed, "grain", torch.arange(n)).normal(*x.shape[1:])
        return (0.6 * gaussian_blur(x, height / 28) + grain).clamp(0, 1)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    if kind == "replay":
        return (x**1.6 + 0.2 * torch.sin(2 * np.pi * (0.31 * rows + 0.17 * columns))).clamp(0, 1)
    paper = torch.maximum(x, torch.tensor(0.3))
    side = height // 7
    hole = (rows // side == 2) & ((columns // side == 2) | (columns // side == 4))
    return paper.masked_fill(hole, 0.0)


def exact(seed: int, sham: str | None, n: int = 200, d: int = 6) -> dict[str, Any]:
    """Largest errors of the ball's identities at c = 0.1 and 1.7, and of its limits at c = 1e-8; float64."""
    distance: Callable[[Tensor, Tensor, float], Tensor] = _flat_artanh if sham == "missing-curvature" else dist
    rng = numpy_rng(seed, "ball")
    found = {"inverse": 0.0, "distance": 0.0, "origin": 0.0}
    for c in (0.1, 1.7):
        unit = rng.normal(size=(2, n, d))
        radius = rng.uniform(0.01, 0.9, (2, n, 1)) / np.sqrt(c)
        x, y = radius * unit / np.linalg.norm(unit, axis=2, keepdims=True)
        a, b = torch.from_numpy(x), torch.from_numpy(y)
        there = expmap0(logmap0(a, c), c) - a
        back = mobius_add(-a, mobius_add(a, b, c), c) - b
        xx, yy, gap = ((z**2).sum(1) for z in (x, y, x - y))
        ratio = 2 * c * gap / ((1 - c * xx) * (1 - c * yy))
        far = 2 / np.sqrt(c) * np.arctanh(np.sqrt(c * xx))
        worst = {
            "inverse": float(torch.maximum(there.abs().max(), back.abs().max())),
            "distance": float(np.abs(distance(a, b, c).numpy() - np.arccosh(1 + ratio) / np.sqrt(c)).max()),
            "origin": float(np.abs(distance(torch.zeros_like(a), a, c).numpy() - far).max()),
        }
        found = {k: max(v, worst[k]) for k, v in found.items()}
    x, y = rng.normal(size=(2, n, d))
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    with seeded(seed, "mlr"):
        mlr = HyperbolicMLR(d, 3, FLAT).double()
    with torch.no_grad():
        logits = mlr(a).numpy()
    normal, place = (p.detach().numpy() for p in (mlr.normal, mlr.point))
    planes = 4 * (x @ normal.T - (normal * place).sum(1))
    found["flat"] = max(
        float((mobius_add(a, b, FLAT) - a - b).abs().max()),
        float(np.abs(distance(a, b, FLAT).numpy() - 2 * np.linalg.norm(x - y, axis=1)).max()),
        float(np.abs(logits - planes).max()),
    )
    return {"arm": "exact", **found}


def _measured(arm: str, fitted: FittedDetector, given: dict[str, Any]) -> dict[str, Any]:
    """AUC on each kind of spoof and their mean; HTER over all at the threshold of real and printed validation data."""
    real = fitted.score(given["real"]).numpy()
    spoof = {kind: fitted.score(x).numpy() for kind, x in given["spoofs"].items()}
    row: dict[str, Any] = {"arm": arm}
    for kind, s in spoof.items():
        columns = np.column_stack((np.r_[real, s], np.repeat([0.0, 1.0], [len(real), len(s)])))
        row[kind] = point("auroc", columns)
    row["auc"] = float(np.mean([row[kind] for kind in SPOOFS]))
    x, y = given["validation"]
    threshold = eer_threshold(fitted.score(x), y)
    scores = torch.from_numpy(np.concatenate((real, *spoof.values())))
    label = (torch.arange(len(scores)) >= len(real)).long()
    return {**row, "hter": fas_metrics(scores, label, threshold)["hter"]}


def _averaged(arm: str, method: HypOC, given: dict[str, Any], heads: int, seed: int) -> dict[str, Any]:
    """Means over heads that start from different weights."""
    rows = [
        _measured(arm, replace(method, seed=derive(seed, "head", k)).fit(given["model"], given["train"]), given)
        for k in range(heads)
    ]
    return {"arm": arm, **{k: float(np.mean([r[k] for r in rows])) for k in rows[0] if k != "arm"}}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The encoder, real captures and spoofs of other images, and the arms that no sham changes."""
    train, test = _images(scale["data"])
    known, count = train[train.y < KNOWN].limit(scale["train"], seed=seed), scale["test"]
    with seeded(seed, "init"):
        start = _Encoder(train.shape[0], len(train.classes))
    model = Supervised(epochs=scale["encoder"]).fit(start, known, seed=derive(seed, "encoder"))
    real = train[train.y >= KNOWN].limit(scale["real"], seed=derive(seed, "real"))
    held = test[test.y >= KNOWN].limit(3 * count, seed=derive(seed, "held")).x.split(count)
    half = held[2].split(count // 2)
    check = torch.cat((half[0], spoofed("print", half[1], derive(seed, "check"))))
    given: dict[str, Any] = {
        "model": model,
        "train": real,
        "real": held[0],
        "spoofs": {kind: spoofed(kind, held[1], seed) for kind in SPOOFS},
        "validation": (check, (torch.arange(len(check)) >= len(half[0])).long()),
    }
    method = HypOC(layer="features", epochs=scale["epochs"], train_batch=64)
    arms = {
        "euclidean": replace(method, geometry="euclidean"),
        "no clipping": replace(method, clip_r=None),
        "no confusion": replace(method, confusion=0.0),
        "around 0": replace(method, centre="origin"),
    }
    few = real[: min(len(real), 300)].x
    delta = gromov_delta(features(model, few, ["features"])["features"], tries=2, seed=seed)
    given["rows"] = [
        _averaged("untrained", replace(method, epochs=0), given, 4 * HEADS, seed),
        *(_averaged(arm, other, given, 1, seed) for arm, other in arms.items()),
        _measured("svm", OneClassSVM(layer="features").fit(model, real), given),
        {"arm": "features", "delta": delta},
    ]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The method under the sham, the exact part, and the arms of the setup."""
    method = METHODS[sham](layer="features", epochs=scale["epochs"], train_batch=64)
    return Table.of([_averaged("hyp-oc", method, given, HEADS, seed), exact(seed, sham), *given["rows"]])


def _exact_claims(table: Table) -> list[Claim]:
    parts: dict[str, tuple[str, float, tuple[str, ...]]] = {
        "inverse": ("exp_0 of log_0, and -x (+) (x (+) y), give back what they were given", 1e-9, ()),
        "distance": ("d is arcosh(1 + 2c|x-y|^2 / ((1-c|x|^2)(1-c|y|^2))) / sqrt(c)", 1e-7, ("missing-curvature",)),
        "origin": ("d(0, x) is 2 / sqrt(c) artanh(sqrt(c) |x|)", 1e-9, ("missing-curvature",)),
        "flat": ("at c = 1e-8: x (+) y is x + y, d is 2|x-y|, logits are 4<a, x-p>", 1e-4, ("missing-curvature",)),
    }
    return [
        Claim(f"{text}: largest error", table.per_seed(k, np.max), at_most=limit, rule="exact", refuted_by=shams)
        for k, (text, limit, shams) in parts.items()
    ]


def claims(table: Table) -> list[Claim]:
    """AUC over three kinds of spoof, its gain over a head that was not trained, and the exact part decide."""
    shuffled = ("labels-by-position",)
    return [
        Claim(
            "digits 5 to 9 against print, replay and mask: mean AUC is at least 0.80",
            table.per_seed("auc", arm="hyp-oc"),
            at_least=0.80,
            refuted_by=shuffled,
        ),
        Claim(
            "it exceeds that of heads that were not trained by at least 0.05",
            table.gain("hyp-oc", "untrained", "auc"),
            at_least=0.05,
        ),
        *_exact_claims(table),
        Claim(
            "it is within 0.02 of the Euclidean twin's, or above",
            table.gain("hyp-oc", "euclidean", "auc"),
            at_least=-0.02,
            key=False,
        ),
        Claim(
            "it is within 0.02 of the one-class SVM's on the same features, or above",
            table.gain("hyp-oc", "svm", "auc"),
            at_least=-0.02,
            key=False,
        ),
        *(
            Claim(
                f"{arm} gains no more than 0.03",
                table.gain(arm, "hyp-oc", "auc"),
                at_most=0.03,
                key=False,
            )
            for arm in ("no clipping", "no confusion")
        ),
    ]


def figure(table: Table) -> Figure:
    """AUC on each kind of spoof by arm, one dot a seed."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    arms = list(dict.fromkeys(str(r["arm"]) for r in table.rows if "auc" in r))
    for axes, kind in zip(drawing.subplots(1, len(SPOOFS), sharey=True), SPOOFS, strict=True):
        for k, arm in enumerate(arms):
            values = table.per_seed(kind, arm=arm)
            axes.plot(np.full(len(values), k), values, "o", ms=3, color="0.6")
            axes.plot(k, values.mean(), "_", ms=14, color="C0")
        axes.set_xticks(range(len(arms)), arms, rotation=60)
        axes.set(title=kind)
    drawing.axes[0].set_ylabel("AUC")
    return drawing
