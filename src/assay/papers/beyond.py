"""BEYOND: attacked images disagree with their own views in a network that was trained without labels.

On digits: a target that is attacked by PGD, and beside it a SimSiam branch with a linear classifier, which the attack
does not know. The claim is decided by how well the order statistic over 20 views tells attacked images from the same
images before the attack, and by how much rarer the branch gives their views the label that the target gives. With views
that change nothing, every view must be as near as can be.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from assay.attacks import PGD, Linf, Untargeted
from assay.data import Data, load_data
from assay.detect import BEYOND, KNN, MSP, BeyondAdaptiveAttack, OrthogonalPGD, robust_accuracy_with_rejection
from assay.detect.base import FittedDetector
from assay.detect.beyond import FittedBEYOND
from assay.nets import MLP, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.represent import Augmentation, SimSiam, linear_classifier
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, seeded
from assay.runtime.statistics import point
from assay.training import Supervised

IDENTITY = Augmentation(scale=(1.0, 1.0), ratio=1.0, flip=False, jitter=0.0, grayscale=0.0)
VIEWS = Augmentation(scale=(0.9, 1.0), rotation=10.0, flip=False, noise=0.1)  # views that keep a digit's label
EPS = 0.15
ARMS = ("beyond", "beyond, hard", "beyond, counts", "msp", "knn")

PAPER = Paper(
    slug="beyond",
    title="Be Your Own Neighborhood: Detecting Adversarial Example by the Neighborhood Relations Built on "
    "Self-Supervised Learning",
    authors="Zhiyuan He, Yijun Yang, Pin-Yu Chen, Qiang Xu, Tsung-Yi Ho",
    year=2022,
    arxiv="2209.00005",
    room="detect",
    also=("represent", "attacks"),
    kind="method",
    implements=(
        "detect.BEYOND",
        "detect.KNN",
        "detect.BeyondAdaptiveAttack",
        "detect.OrthogonalPGD",
        "detect.robust_accuracy_with_rejection",
        "represent.Augmentation",
        "represent.SimSiam",
        "represent.simsiam_loss",
    ),
    claim="Attacked images agree with their own views in label and representation less than clean ones do.",
    headline="CIFAR-10, ResNet-18, eps 8/255: AUC about 0.98; still useful against attacks that know of it.",
    peers=("sklearn.neighbors.NearestNeighbors",),
    baselines=("msp", "knn"),
    shams={
        "own-label": "views have to agree with the branch's own label of the image, not with the target's",
        "rolled-neighbours": "the views of an image are those of the one before it in the batch",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {
                "data": "digits",
                "train": 250,
                "test": 120,
                "epochs": 6,
                "siamese": 1,
                "views": 1,
                "hidden": 64,
                "k": 6,
                "K": 3,
            },
        ),
        Scale(
            "claim",
            8,
            {
                "data": "digits",
                "train": 1000,
                "test": 400,
                "epochs": 40,
                "siamese": 10,
                "views": 6,
                "hidden": 512,
                "k": 20,
                "K": 8,
            },
        ),
        Scale(
            "gpu",
            5,
            {
                "data": "mnist",
                "train": 60_000,
                "test": 4000,
                "epochs": 20,
                "siamese": 30,
                "views": 4,
                "hidden": 512,
                "k": 50,
                "K": 20,
            },
        ),
    ),
)


class _OwnLabel(FittedBEYOND):
    def decision(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.classifier_(self.backbone_(x)).argmax(1)


class _Rolled(FittedBEYOND):
    def neighbours(self, x: Tensor) -> Tensor:
        return super().neighbours(x).roll(1, 0)


SHAMS: dict[str | None, type[FittedBEYOND]] = {
    None: FittedBEYOND,
    "own-label": _OwnLabel,
    "rolled-neighbours": _Rolled,
}


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _as(cls: type[FittedBEYOND], fitted: FittedDetector) -> FittedBEYOND:
    return cls(**{f.name: getattr(fitted, f.name) for f in fields(fitted)})


def exact(fitted: FittedDetector, x: Tensor, seed: int, sham: str | None) -> dict[str, Any]:
    """With views that change nothing: distance of similarities from 1. Of drawn parts: the score against NumPy's."""
    still = _as(SHAMS[sham], fitted)
    still.augment = IDENTITY
    near = still.details(x)["sim"]
    rng = numpy_rng(seed, "exact")
    n, k, c = 30, still.k, 5
    s, logits, y = rng.uniform(-1, 1, (n, k)), rng.normal(size=(n, k, c)), rng.integers(0, c, n)
    worst = 0.0
    for alpha in (0.0, 0.8, 1.0):
        still.alpha = alpha
        term = still.label_term(torch.from_numpy(logits), torch.from_numpy(y))
        found = still.combined(torch.from_numpy(s), term).numpy()
        cosine = logits[np.arange(n), :, y] / np.sqrt((logits**2).sum(2))
        q = np.sort(alpha * cosine + (1 - alpha) * s, 1)[:, ::-1][:, still.K - 1]
        worst = max(worst, float(np.abs(found + q).max()))
    return {"arm": "exact", "identity": float((near - 1).abs().max()), "order": worst}


def _auc(clean: Tensor, attacked: Tensor) -> float:
    label = np.repeat([0.0, 1.0], [len(clean), len(attacked)])
    return point("auroc", np.column_stack((np.r_[clean.numpy(), attacked.numpy()], label)))


def _told(arm: str, fitted: FittedDetector, clean: Tensor, attacked: Tensor) -> dict[str, Any]:
    return {"arm": arm, "auc": _auc(fitted.score(clean), fitted.score(attacked))}


def _adaptive(beyond: FittedBEYOND, data: Data, seed: int) -> list[dict[str, Any]]:
    """AUC over all of ``data``, against PGD and against attacks that know of the detector, and who is fooled."""
    plan: dict[str, Any] = {"ball": Linf(EPS), "steps": 20, "step_size": 0.125, "early_stop": False}
    attacks = {
        "pgd": PGD(**plan),
        "adaptive": BeyondAdaptiveAttack(**plan, detector=beyond, samples=5, targets=1),
        "orthogonal": OrthogonalPGD(**plan, detector=beyond),
    }
    rows, inside = [], beyond.score(data.x)
    for name, attack in attacks.items():
        result = attack.run(beyond.model, data.x, Untargeted(data.y), seed=seed)
        score = beyond.score(result.x_adv)
        handled = robust_accuracy_with_rejection(~result.success, score > beyond.threshold(0.05), True)
        fooled = float(result.success.double().mean())
        rows.append({"arm": f"{name}, all", "auc_all": _auc(inside, score), "fooled": fooled, "handled": handled})
    return rows


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Target, branch, the images that PGD fools the target on, and the arms that no sham changes."""
    train, test = _images(scale["data"])
    train, test = train.limit(scale["train"], seed=seed), test.limit(scale["test"], seed=seed)
    channels, height, width = train.shape
    with seeded(seed, "init"):
        start = MLP(train.shape, len(train.classes), (128,))
        backbone = SmallCNN((channels, height, width), hidden=scale["hidden"]).body
    model = Supervised(epochs=scale["epochs"]).fit(start, train, seed=derive(seed, "target"))
    siamese = SimSiam(
        dim=128, pred_dim=64, augment=VIEWS, epochs=scale["siamese"], batch_size=128, optimizer="adam", lr=3e-4
    )
    encoder = siamese.fit(backbone, train, seed=derive(seed, "siamese"))
    linear = linear_classifier(encoder.backbone, train, seed=seed, epochs=20, augment=VIEWS, views=scale["views"])
    right = test[predict(model, test.x).argmax(1) == test.y]
    attack = PGD(ball=Linf(EPS), steps=20, early_stop=False)
    found = attack.run(model, right.x, Untargeted(right.y), seed=seed)
    clean, attacked = right.x[found.success], found.x_adv[found.success]
    few = train.limit(200, seed=derive(seed, "few"))
    method = BEYOND(
        ssl_backbone=encoder.backbone,
        ssl_projector=encoder.projector,
        ssl_classifier=linear,
        augment=VIEWS,
        k=scale["k"],
        K=scale["K"],
        batch_size=16 * len(test),
    )
    given: dict[str, Any] = {"clean": clean, "attacked": attacked, "fitted": method.fit(model, few)}
    hard = {f.name: getattr(method, f.name) for f in fields(method)}
    others = {
        "beyond, hard": BEYOND(**{**hard, "consistency": "hard"}),
        "beyond, counts": BEYOND(**{**hard, "mode": "counts"}),
        "msp": MSP(),
        "knn": KNN(),
    }
    given["rows"] = [_told(arm, other.fit(model, few), clean, attacked) for arm, other in others.items()]
    given["rows"] += _adaptive(_as(FittedBEYOND, given["fitted"]), right[: scale["test"] // 6], seed)
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """AUC and the agreement of labels of the method, under the sham; the others as they are."""
    fitted, clean, attacked = _as(SHAMS[sham], given["fitted"]), given["clean"], given["attacked"]
    agree = [float(fitted.details(x)["label_agree"].double().mean()) for x in (clean, attacked)]
    row = _told("beyond", fitted, clean, attacked)
    return Table.of(
        [
            {**row, "agree_clean": agree[0], "agree_attacked": agree[1], "gap": agree[0] - agree[1]},
            exact(given["fitted"], clean[:40], seed, sham),
            *given["rows"],
        ]
    )


def claims(table: Table) -> list[Claim]:
    """AUC, the gap in agreement and the exact checks decide; margins and adaptive attacks support."""
    both = ("own-label", "rolled-neighbours")
    best = np.maximum(table.per_seed("auc", arm="msp"), table.per_seed("auc", arm="knn"))
    known = np.maximum(table.per_seed("auc_all", arm="adaptive, all"), table.per_seed("auc_all", arm="orthogonal, all"))
    return [
        Claim(
            "digits, PGD of eps 0.15: AUC of attacked over clean images is at least 0.85",
            table.per_seed("auc", arm="beyond"),
            at_least=0.85,
            refuted_by=both,
        ),
        Claim(
            "the branch gives views of attacked images the target's label by at least 0.3 more rarely",
            table.per_seed("gap", arm="beyond"),
            at_least=0.3,
            refuted_by=("own-label",),
        ),
        Claim(
            "views that change nothing: every similarity is 1, largest difference",
            table.per_seed("identity", np.max),
            at_most=1e-4,
            rule="exact",
            refuted_by=("rolled-neighbours",),
        ),
        Claim(
            "the score of drawn similarities and logits is NumPy's K-th largest: largest difference",
            table.per_seed("order", np.max),
            at_most=1e-12,
            rule="exact",
        ),
        Claim(
            "AUC exceeds the better of the largest softmax probability and nearest neighbours by 0.05",
            table.per_seed("auc", arm="beyond") - best,
            at_least=0.05,
            key=False,
            refuted_by=both,
        ),
        Claim(
            "against attacks that know of it AUC does not exceed that against PGD by more than 0.02",
            known - table.per_seed("auc_all", arm="pgd, all"),
            at_most=0.02,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """AUC of each detector, of BEYOND against attacks that know of it, and the agreement of labels, a dot a seed."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    panels = {
        "AUC on what PGD fooled": [(arm, table.per_seed("auc", arm=arm)) for arm in ARMS],
        "AUC on all, by attack": [
            (name, table.per_seed("auc_all", arm=f"{name}, all")) for name in ("pgd", "adaptive", "orthogonal")
        ],
        "views with the target's label": [
            (name, table.per_seed(f"agree_{name}", arm="beyond")) for name in ("clean", "attacked")
        ],
    }
    for axes, (title, parts) in zip(drawing.subplots(1, 3), panels.items(), strict=True):
        for k, (_, values) in enumerate(parts):
            axes.plot(np.full(len(values), k), values, "o", ms=3, color="0.6")
            axes.plot(k, values.mean(), "_", ms=16, color="C0")
        axes.set_xticks(range(len(parts)), [name for name, _ in parts], rotation=30)
        axes.set(ylim=(0, 1.02), title=title)
    return drawing
