"""RCAL: Gaussians of label-free representations, cleaned and lent from head to tail, balance a noisy long tail.

Simulated classes under the paper's Assumption 3.1 (one covariance, labels flipped in proportion to class sizes): with
the head classes at distance 4 from a tail class the calibrated mean lies nearer to the true one than the tail class's
own, with them at 12 it lies farther off, and both decide, since what the transfer needs is heads that are near. On
MNIST with sizes 1000 to 10 and 30% wrong labels, logistic regression on PCA representations and sampled points is set
against the same on the noisy samples alone. Exact: the protocol's number of wrong labels. PCA stands in for the
contrastive encoder of the paper, which keeps the steps on representations as they are; the transfer does not bring the
mean nearer there, so that no claim is made on it. The loop with mixup and the kept representation starts from the same
projection and supports. The bound on heads at 12 was raised from 1.05 to 1.1 after a recorded run in which the farthest
heads reached 1.03 (the nearest 1.17), too near to 1.05 to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from assay.curate import flip_labels, flip_matrix, make_noisy_longtail, redraw_matrix
from assay.data import Data, load_data
from assay.labels import RCAL, RobustClassGaussians, mean_error_bound
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded, torch_rng
from assay.runtime.statistics import point
from assay.training import Supervised, Trainer

NOISE, TAIL = 0.3, 5
PLAIN, BALANCED, CLEANED, LENT, MILD = "plain", "class-balanced", "gaussians", "gaussians, gamma=0.3", "gaussians, 0.1"
NAIVE, NET, NET_RCAL = "gaussians, outliers kept", "network, cross-entropy", "network, rcal"

PAPER = Paper(
    slug="rcal",
    title="When Noisy Labels Meet Long Tail Dilemmas: A Representation Calibration Method",
    authors="Manyi Zhang, Xuyang Zhao, Jun Yao, Chun Yuan, Weiran Huang",
    year=2023,
    arxiv="2211.10955",
    room="labels",
    also=("represent", "curate"),
    kind="method",
    implements=("labels.RobustClassGaussians", "labels.RCAL", "curate.make_noisy_longtail"),
    claim="Class statistics without outliers, lent from near head classes, balance a noisy long-tailed set.",
    headline="CIFAR-10/100, imbalance 10 and 100, 10 to 50% wrong labels: best accuracy among methods for noise, "
    "for long tails and for both.",
    peers=("sklearn.neighbors.LocalOutlierFactor", "sklearn.covariance.LedoitWolf"),
    baselines=(PLAIN, BALANCED, CLEANED),
    shams={
        "farthest-heads": "a tail class draws on the q head classes with the farthest means",
        "missing-normaliser": "a new label is drawn with n_j / n in place of n_j / (n - n_i): it may be the old one",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {"data": "digits", "largest": 80, "ratio": 8, "dim": 20, "points": 50, "test": 300, "sims": 6, "epochs": 2},
        ),
        Scale(
            "claim",
            5,
            {
                "data": "mnist",
                "largest": 1000,
                "ratio": 100,
                "dim": 50,
                "points": 1000,
                "test": 5000,
                "sims": 100,
                "epochs": 20,
            },
        ),
    ),
)


class _Farthest(RobustClassGaussians):
    def nearest(self, distance: Tensor) -> Tensor:
        return distance.topk(self.q, 1).indices


class _Projected(nn.Module):
    """A linear encoder, which starts as the projection on principal components, and a linear head."""

    def __init__(self, pca: PCA, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(*pca.components_.T.shape), nn.Linear(len(pca.components_), classes)
        with torch.no_grad():
            self.encoder.weight.copy_(torch.from_numpy(pca.components_))
            self.encoder.bias.copy_(torch.from_numpy(-pca.components_ @ pca.mean_))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.flatten(1)))


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _gaussians(sham: str | None, gamma: float, **options: Any) -> RobustClassGaussians:
    rule = _Farthest if sham == "farthest-heads" else RobustClassGaussians
    return rule(gamma=gamma, shrinkage=None, **{"alpha": 0.05, **options})


def simulated(sham: str | None, distance: float, sims: int, seed: int) -> dict[str, float]:
    """Mean of |mu' - mu| / |naive - mu| for one tail class, and the largest excess over the triangle bound.

    Ten classes in 50 dimensions with covariance I and means of norm 8, five of 1000 and five of 10 samples; three heads
    stand at ``distance`` from the first tail class. Labels flip under Assumption 3.1; gamma 0.3, no outlier removal.
    """
    counts = torch.tensor([1000] * 5 + [10] * 5)
    y = torch.arange(10).repeat_interleave(counts)
    method, ratios, excess = _gaussians(sham, 0.3, lof_neighbors=None, alpha=0.0), [], []
    for k in range(sims):
        g = torch_rng(seed, "simulation", distance, k)
        means = 8 * _directions(10, g)
        means[:3] = means[5] + distance * _directions(3, g)
        z = means[y] + torch.randn(len(y), 50, generator=g, dtype=torch.float64)
        chances = redraw_matrix(counts, "assumption")
        noisy = flip_labels(y, NOISE, chances, exact=False, seed=derive(seed, "flips", distance, k))
        fitted = method.fit(z, noisy)
        own = torch.stack([z[noisy == c].mean(0) for c in range(10)])
        chosen = fitted.neighbors_[5]
        naive, error = ((m[5] - means[5]).norm() for m in (own, fitted.means_))
        far, wrong = ((m[chosen] - means[c]).norm(dim=1).max() for m, c in ((means, [5]), (own, chosen)))
        ratios.append(float(error / naive))
        excess.append(float(error) - mean_error_bound(0.3, float(far), float(wrong), float(naive)))
    return {"ratio": float(np.mean(ratios)), "excess": max(excess)}


def _directions(n: int, g: torch.Generator) -> Tensor:
    z = torch.randn(n, 50, generator=g, dtype=torch.float64)
    return z / z.norm(dim=1, keepdim=True)


def protocol(sham: str | None, y: Tensor, ratio: float, largest: int, seed: int) -> dict[str, Any]:
    """How far the number of wrong labels is from int(noise n), and the largest error of a row sum of flip_matrix."""
    rows, noisy = make_noisy_longtail(y, ratio, NOISE, largest=largest, seed=seed)
    true = y[rows]
    counts = torch.bincount(true)
    if sham == "missing-normaliser":
        noisy = flip_labels(true, NOISE, redraw_matrix(counts, "assumption"), exact=True, seed=seed)
    sums = flip_matrix(counts, NOISE).sum(1)
    off = int((noisy != true).sum()) - int(NOISE * len(rows))
    return {"arm": "labels", "off": abs(off), "rows": float((sums - 1).abs().max())}


def _scores(guess: np.ndarray, y: Tensor) -> dict[str, float]:
    """Accuracy averaged over classes, of all and of the last five."""
    both = np.stack((guess == y.numpy(), y.numpy()), 1).astype(float)
    return {"balanced": point("balanced", both), "tail": point("balanced", both[y.numpy() >= 10 - TAIL])}


def _logistic(given: Mapping[str, Any], arm: str, points: RobustClassGaussians | None, seed: int) -> dict[str, Any]:
    """Logistic regression on the representations, and on as many points of each class where there are Gaussians."""
    z, y = given["z"], given["noisy"]
    if points is not None:
        drawn, labels = points.fit(z, y).sample(given["points"], seed=seed)
        z, y = torch.cat((z, drawn)), torch.cat((y, labels))
    weight = "balanced" if arm == BALANCED else None
    fitted = LogisticRegression(C=0.1, max_iter=300, class_weight=weight).fit(z.numpy(), y.numpy())
    return {"arm": arm, **_scores(fitted.predict(given["test_z"].numpy()), given["test"].y)}


def _network(given: Mapping[str, Any], arm: str, method: Trainer, seed: int) -> dict[str, Any]:
    model = method.fit(given["start"], given["train"], seed=seed)
    return {"arm": arm, **_scores(predict(model, given["test"].x).argmax(1).numpy(), given["test"].y)}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Noisy long-tailed images with their representations, and the arms that no sham changes."""
    whole, test = _images(scale["data"])
    rows, noisy = make_noisy_longtail(whole.y, scale["ratio"], NOISE, largest=scale["largest"], seed=seed)
    train, test = whole[rows].with_y(noisy), test.limit(scale["test"], seed=seed)
    pca = PCA(scale["dim"], svd_solver="full").fit(train.x.flatten(1).double().numpy())
    z, test_z = (torch.from_numpy(pca.transform(d.x.flatten(1).double().numpy())) for d in (train, test))
    given: dict[str, Any] = {"train": train, "test": test, "noisy": noisy, "z": z, "test_z": test_z}
    given["points"], given["labels"] = scale["points"], whole.y
    with seeded(seed, "head"):
        given["start"] = _Projected(pca, len(train.classes))
    given["rows"] = [
        _logistic(given, PLAIN, None, seed),
        _logistic(given, BALANCED, None, seed),
        _logistic(given, NAIVE, _gaussians(None, 0.0, lof_neighbors=None), seed),
        _logistic(given, CLEANED, _gaussians(None, 0.0), seed),
        _logistic(given, MILD, _gaussians(None, 0.1), seed),
        _network(given, NET, Supervised(epochs=scale["epochs"]), seed),
        _network(given, NET_RCAL, RCAL(gaussians=_gaussians(None, 0.3), epochs=scale["epochs"]), seed),
    ]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The simulation at both distances, the protocol's labels, and every classifier."""
    near, far = (simulated(sham, d, scale["sims"], seed) for d in (4.0, 12.0))
    return Table.of(
        [
            *given["rows"],
            _logistic(given, LENT, _gaussians(sham, 0.3), seed),
            {"arm": "heads at 4", **near},
            {"arm": "heads at 12", **far},
            protocol(sham, given["labels"], scale["ratio"], scale["largest"], seed),
        ]
    )


def claims(table: Table) -> list[Claim]:
    """The simulation in both directions, the gain over noisy samples alone and the number of wrong labels decide."""
    far = ("farthest-heads",)
    return [
        Claim(
            "simulation, heads at 4: error of the calibrated mean over that of the tail class's own",
            table.per_seed("ratio", arm="heads at 4"),
            at_most=0.88,
            refuted_by=far,
        ),
        Claim(
            "simulation, heads at 12: the same, where the transfer harms",
            table.per_seed("ratio", arm="heads at 12"),
            at_least=1.1,
            refuted_by=far,
        ),
        Claim(
            "accuracy averaged over classes: sampled points with transfer over the noisy samples alone",
            table.gain(LENT, PLAIN, "balanced"),
            at_least=0.07,
        ),
        Claim(
            "wrong labels of the protocol: difference from int(noise n)",
            table.per_seed("off", np.max),
            at_most=0,
            rule="exact",
            refuted_by=("missing-normaliser",),
        ),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    def over(text: str, arm: str, other: str, column: str, at_least: float) -> Claim:
        return Claim(text, table.gain(arm, other, column), at_least=at_least, key=False)

    return [
        over("averaged accuracy: over class-balanced regression", LENT, BALANCED, "balanced", 0.008),
        over("accuracy of the five tail classes: over the noisy samples alone", LENT, PLAIN, "tail", 0.2),
        over("accuracy of the five tail classes: over class-balanced regression", LENT, BALANCED, "tail", 0.02),
        over("averaged accuracy: gamma = 0.3 over gamma = 0", LENT, CLEANED, "balanced", 0.0),
        over("averaged accuracy of a network: RCAL over cross-entropy", NET_RCAL, NET, "balanced", 0.03),
        Claim(
            "simulation: error of the calibrated mean less its triangle bound, largest",
            table.per_seed("excess", np.max),
            at_most=1e-9,
            rule="exact",
            key=False,
        ),
        Claim(
            "rows of the flip matrix sum to 1: largest difference",
            table.per_seed("rows", np.max),
            at_most=1e-12,
            rule="exact",
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Averaged and tail accuracy of every arm, one dot a seed."""
    drawing = Figure(figsize=(8.8, 3.4), layout="constrained")
    arms = (PLAIN, BALANCED, NAIVE, CLEANED, MILD, LENT, NET, NET_RCAL)
    titles = {"balanced": "mean accuracy over classes", "tail": "accuracy of the five tail classes"}
    for axes, (column, title) in zip(drawing.subplots(1, 2), titles.items(), strict=True):
        values = np.stack([table.per_seed(column, arm=arm) for arm in arms])
        axes.plot(values, np.arange(len(arms)), "o", ms=4, color="0.55")
        axes.plot(values.mean(1), np.arange(len(arms)), "|", ms=16, mew=2)
        axes.set(yticks=range(len(arms)), title=title)
        axes.set_yticklabels(arms if column == "balanced" else [])
        axes.invert_yaxis()
    return drawing
