"""WAD: unlabelled images of unknown classes get small weights, the margin between a teacher's two nearest classes.

MNIST at 14x14: ten labels each of the first three classes, as the paper takes the first two of CIFAR-10, a thousand
unlabelled images of these classes and 1,500 of the other seven (mismatch 0.6). A small encoder trained by SimCLR on all
of them is the teacher. Its pseudo labels carry the weight s_1 - s_2 of the two largest similarities to a class; with
unit weights the unknown classes have the share of the weight that they have of the samples. How much less they have,
and how well a weight tells a target class from an unknown one, decide. Exact: weights and the schedule of
promotion against their formulas. Error of the pseudo labels and test accuracy support.

Against the dossier: target classes 0, 1, 2 in place of 3, 5, 8, among which the margin of a target sample is as small
as that of an unknown one (AUROC 0.47 to 0.65 for pixels, principal components and SimCLR after 10 epochs, in
pilots), so that it cannot tell them; the teacher's embedding is what enters its projection head, where cosines are
large as the second sham supposes; half of the images. Labels of the unlabelled images are logged, never learnt from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.labels import Shift, WeightAwareDistillation, make_mismatch_pool
from assay.labels.semi_supervised import TRUTH
from assay.losses import InfoNCE
from assay.nets import SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.represent import Augmentation, ContrastivePretraining
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded, torch_rng
from assay.runtime.statistics import point
from assay.training import Supervised

TARGETS, PER_CLASS, MISMATCH = (0, 1, 2), 10, 0.6
WAD, UNIT, STUDENT, LABELS = "WAD", "unit weights", "student's weights", "labels alone"
ALPHAS = (0.064, 0.036, 0.016, 0.004, 0.0)  # 0.1 (1 - i/5)^2, i = 1 to 5

PAPER = Paper(
    slug="wad",
    title="Semi-Supervised Learning via Weight-aware Distillation under Class Distribution Mismatch",
    authors="Pan Du, Suyun Zhao, Zisen Sheng, Cuiping Li, Hong Chen",
    year=2023,
    arxiv="2308.11874",
    room="labels",
    also=("adapt", "represent"),
    kind="method",
    implements=(
        "labels.WeightAwareDistillation",
        "labels.prototype_scores",
        "labels.margin_weights",
        "labels.make_mismatch_pool",
        "labels.mismatch_errors",
    ),
    claim="A teacher's margin between classes keeps samples of unknown classes out of semi-supervised learning.",
    headline="CIFAR-10 with two target classes, mismatch 0.2 to 0.8: above semi-supervised baselines at every ratio.",
    peers=("RUC-DWBI-ML/research WAD-master",),
    baselines=(UNIT, STUDENT, LABELS),
    shams={
        "shuffled-weights": "weights are exchanged at random among the samples of one pseudo label",
        "no-runner-up": "the weight is s_1, without the factor 1 - s_2 / s_1",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "targets": 120, "test": 200, "epochs": 2, "steps": 4, "rows": 200}),
        Scale("claim", 5, {"data": "mnist", "targets": 1000, "test": 2000, "epochs": 8, "steps": 50, "rows": 2000}),
    ),
)


class _Shuffled(WeightAwareDistillation):
    def knowledge(
        self, student: nn.Module, teacher: nn.Module | None, labelled: Data, pool: Data, seed: int
    ) -> tuple[Tensor, Tensor]:
        pseudo, weight = super().knowledge(student, teacher, labelled, pool, seed)
        order = torch.randperm(len(pool), generator=torch_rng(seed, "shuffle"))
        drawn = order[pseudo[order].argsort(stable=True)]  # by pseudo label, at random within it
        other = weight.clone()
        other[pseudo.argsort(stable=True)] = weight[drawn]
        return pseudo, other


class _Nearest(WeightAwareDistillation):
    def weigh(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        highest, pseudo = scores.max(1)
        return pseudo, highest.clamp_min(0)


RULES: Mapping[str | None, type[WeightAwareDistillation]] = {
    None: WeightAwareDistillation,
    "shuffled-weights": _Shuffled,
    "no-runner-up": _Nearest,
}


@cache
def _images(source: str) -> tuple[Data, Data]:
    """Training and test images, at half the resolution where that is 14x14."""
    parts = [load_data(source, split) for split in ("train", "test")]
    train, test = (d.with_x(F.avg_pool2d(d.x, 2)) if d.shape[1] == 28 else d for d in parts)
    return train, test


def _named(data: Data) -> Data:
    """The data with labels 0 .. 2 of the target classes; other classes are -1 in the field of the truth and 0 in y."""
    places = torch.full((len(data.classes),), -1)
    places[list(TARGETS)] = torch.arange(len(TARGETS))
    truth = places[data.y]
    return replace(data, y=truth.clamp_min(0), classes=tuple(data.classes[k] for k in TARGETS), fields={TRUTH: truth})


def _drawn(scale: Scale, seed: int) -> dict[str, Any]:
    """The labelled images, the pool, and test images of the target classes."""
    whole, held = _images(scale["data"])
    order = torch.randperm(len(whole), generator=torch_rng(seed, "images"))
    inside = torch.isin(whole.y[order], torch.tensor(TARGETS))
    labels = PER_CLASS * len(TARGETS)
    chosen = torch.cat((order[inside][: scale["targets"] + labels], order[~inside]))
    known, rest = make_mismatch_pool(whole.y[chosen], TARGETS, labels, MISMATCH, seed=seed, balanced=True)
    named = _named(whole)
    test = _named(held)
    return {
        "labelled": replace(named[chosen[known]], fields={}),
        "pool": named[chosen[rest]],
        "test": test[test.fields[TRUTH] >= 0].limit(scale["test"], seed=seed),
    }


def _teacher(given: Mapping[str, Any], epochs: int, seed: int) -> nn.Module:
    """What SimCLR learns from labelled and unlabelled images: the encoder below its projection head."""
    x = torch.cat((given["labelled"].x, given["pool"].x))
    data = Data(x, torch.zeros(len(x), dtype=torch.int64), ("image", "none"))
    width = 32 * (-(-data.shape[1] // 4)) ** 2
    with seeded(seed, "encoder"):
        body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(width, 128), nn.BatchNorm1d(128), nn.ReLU()),
        )
        head = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))
    views = Augmentation(scale=(0.3, 1.0), rotation=15.0, flip=False, grayscale=0.0)
    simclr = ContrastivePretraining(
        loss=InfoNCE(0.5, "views", symmetric=True),
        augment=views,
        epochs=epochs,
        optimizer="adam",
        lr=2e-3,
        weight_decay=1e-6,
    )
    trained = simclr.fit(nn.Sequential(OrderedDict(body=body, head=head)), data, seed=seed)
    return dict(trained.named_children())["body"]


def _accuracy(model: nn.Module, test: Data) -> float:
    return float((predict(model, test.x).argmax(1) == test.y).float().mean())


def _arm(arm: str, method: WeightAwareDistillation, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The first round's weights against the truth, the invasion over all rounds, and the student's test accuracy."""
    options = {"unlabelled": given["pool"], "teacher": given["teacher"]}
    found = method.distil(given["start"], given["labelled"], seed=seed, **options)
    first = found.rounds[0]
    known = given["pool"].fields[TRUTH] >= 0
    return {
        "arm": arm,
        "auroc": point("auroc", torch.stack((first.weight, known.float()), 1).double().numpy()),
        "invasion": first.invasion_error,
        "pseudo": first.pseudo_error,
        "later": float(np.mean([r.invasion_error for r in found.rounds])),
        "accuracy": _accuracy(found.model, given["test"]),
    }


def _exact(method: WeightAwareDistillation, rows: int, seed: int) -> dict[str, Any]:
    """Largest differences of the weights from s_1 (1 - s_2 / s_1), sample by sample, and of the promoted shares."""
    g = torch_rng(seed, "scores")
    scores = 2 * torch.rand(rows, 4, generator=g, dtype=torch.float64) - 1
    scores = scores[scores.amax(1) > 1e-3]
    weight = method.weigh(scores)[1].tolist()
    gap = 0.0
    for given, row in zip(weight, scores.tolist(), strict=True):
        second, first = sorted(row)[-2:]
        gap = max(gap, abs(given - first * (1 - second / first)))
    shares = [abs(method.promotion(i + 1) - alpha) for i, alpha in enumerate(ALPHAS)]
    return {"arm": "exact", "gap": gap, "shares": max(shares)}


def _plan(scale: Scale) -> dict[str, Any]:
    return {"steps": scale["steps"], "lr": 1e-3, "weak": Shift(share=1 / 14)}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The images, the teacher, the student's start, and the arms that no sham changes."""
    given = _drawn(scale, seed)
    given["teacher"] = _teacher(given, scale["epochs"], seed)
    with seeded(seed, "student"):
        given["start"] = SmallCNN(given["pool"].shape, len(TARGETS), (16, 32), 64)
    plan = _plan(scale)
    rounds = WeightAwareDistillation().rounds + 1
    alone = Supervised(steps=rounds * scale["steps"], lr=plan["lr"], batch_size=32, schedule="constant")
    model = alone.fit(given["start"], given["labelled"], seed=derive(seed, "alone"), augment=plan["weak"])
    given["rows"] = [
        {"arm": LABELS, "accuracy": _accuracy(model, given["test"])},
        _arm(UNIT, WeightAwareDistillation(weights="unit", **plan), given, seed),
        _arm(STUDENT, WeightAwareDistillation(weights="student", **plan), given, seed),
    ]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Every arm, and the exact checks; shams change the weights of WAD."""
    method = RULES[sham](**_plan(scale))
    row = _arm(WAD, method, given, seed)
    row["ratio"] = row["invasion"] / next(r["invasion"] for r in given["rows"] if r["arm"] == UNIT)
    return Table.of([*given["rows"], row, _exact(method, scale["rows"], seed)])


def claims(table: Table) -> list[Claim]:
    """How weights tell target from unknown classes, and the formulas, decide; pseudo labels and accuracy support."""
    return [
        Claim(
            "AUROC of the weight for samples of target classes against unknown ones",
            table.per_seed("auroc", arm=WAD),
            at_least=0.75,
            refuted_by=("shuffled-weights",),
        ),
        Claim(
            "share of the weight on unknown classes, over that under unit weights",
            table.per_seed("ratio", arm=WAD),
            at_most=0.7,
            refuted_by=("shuffled-weights", "no-runner-up"),
        ),
        Claim(
            "the weight is s_1 (1 - s_2 / s_1) of the sorted similarities: largest difference",
            table.per_seed("gap", np.max),
            at_most=1e-7,
            rule="exact",
            refuted_by=("no-runner-up",),
        ),
        Claim(
            "the promoted shares are 0.064, 0.036, 0.016, 0.004 and 0: largest difference",
            table.per_seed("shares", np.max),
            at_most=1e-12,
            rule="exact",
            key=False,
        ),
        Claim(
            "weighted error of the pseudo labels of target samples: WAD less unit weights, in every seed",
            table.gain(WAD, UNIT, "pseudo"),
            at_most=0.0,
            rule="k-of-n",
            k=5,
            key=False,
        ),
        Claim(
            "share of the weight on unknown classes over all rounds: WAD less the student's own probabilities",
            table.gain(WAD, STUDENT, "later"),
            at_most=0.0,
            key=False,
        ),
        *(
            Claim(
                f"test accuracy on the target classes: WAD over {other}",
                table.gain(WAD, other, "accuracy"),
                at_least=bound,
                key=False,
            )
            for other, bound in ((UNIT, 0.01), (LABELS, 0.05))
        ),
    ]


def figure(table: Table) -> Figure:
    """The share of the weight on unknown classes and test accuracy of each arm, one dot a seed."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    titles = {"invasion": "Weight on unknown classes", "accuracy": "Test accuracy on target classes"}
    for axes, (column, title) in zip(drawing.subplots(1, 2), titles.items(), strict=True):
        arms = [a for a in (WAD, UNIT, STUDENT, LABELS) if any(column in r for r in table.where(arm=a).rows)]
        values = np.stack([table.per_seed(column, arm=arm) for arm in arms])
        axes.plot(values, np.arange(len(arms)), "o", ms=4, color="0.55")
        axes.plot(values.mean(1), np.arange(len(arms)), "|", ms=16, mew=2)
        axes.set(yticks=range(len(arms)), title=title)
        axes.set_yticklabels(arms)
        axes.invert_yaxis()
    return drawing
