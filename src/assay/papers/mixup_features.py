"""What Mixup learns and standard training does not: the rare feature of a class.

Data have a common and a rare feature a class, beside patches of noise. Exact: Mixup with lambda = 1 trains as standard
training does, loss by loss, and its loss over all ordered pairs is the mean over cyclic shifts of the samples. A
quadratic network under full-batch gradient descent, and noise that a sample fits faster than the rare samples their
feature: standard training fits every sample and errs on fresh rare data, Mixup (lambda = 0.6) learns the rare feature.
Support: common data, Mixup stopped at half, no gap where the noise is weak, and on images labels that are not mixed as
the inputs.

Departures from the plan, after pilots on seeds of their own. It had d = 2000, n = 200, rho = 0.1, sigma_p = 0.1 and 8
filters (sigma_p^2 d / n = 0.1, rho / 2 = 0.05). There Mixup within the classes learned the rare feature as Mixup did
(accuracy 1.00 and 1.00; Mixup 0.98 and 1.00, standard training 0.64 and 0.77): that sham survived. With noise of 0.3
against 0.04 it loses the gain in accuracy. It does not lose the ratio of energies: the plan expected about 1, and it
was 5 to 10, as the loss of mixed samples vanishes later than that of the samples. The ratio is left to a second sham,
labels mixed without the inputs, which was added; with one partner's label at a time, whose noise moves the filters, it
kept part of the gain at a rate of 1, so that it takes the mean over partners. The rate is 0.5 in place of 0.2, with
fewer steps: accuracies agree to 0.01. On images Mixup stayed below standard training in the pilot, by 0.004 to 0.018.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Batch, Data, load_data
from assay.dynamics import FeatureNoiseModel, QuadraticCNN, train_feature_model
from assay.labels import EarlyStoppedMixup, Mixup
from assay.nets import SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded
from assay.training import State, Supervised, Trainer

RHO, SHARE = 0.08, 0.6
ERM, MIXUP, STOPPED = "erm", "mixup", "mixup, stopped at half"
WEAK, IMAGES = ", weak noise", ", images"
FIXED, INDEPENDENT = "labels 3/4 and 1/4", "labels of their own"

PAPER = Paper(
    slug="mixup-features",
    title="The Benefits of Mixup for Feature Learning",
    authors="Difan Zou, Yuan Cao, Yuanzhi Li, Quanquan Gu",
    year=2023,
    arxiv="2303.08433",
    room="dynamics",
    also=("adapt", "training"),
    kind="theory + method",
    implements=(
        "dynamics.FeatureNoiseModel",
        "dynamics.QuadraticCNN",
        "dynamics.FeatureDynamics",
        "dynamics.train_feature_model",
        "labels.Mixup",
        "labels.EarlyStoppedMixup",
    ),
    claim="Mixup learns a feature that few samples have; standard training fits those samples by their noise.",
    headline="Standard training errs on rare data, Mixup does not; stopping Mixup early keeps or raises accuracy.",
    peers=("torchvision.transforms.v2.MixUp", "timm.data.Mixup"),
    baselines=(ERM, ERM + WEAK, ERM + IMAGES),
    shams={
        "same-class-mix": "a sample is mixed with one of its own class: labels are never mixed",
        "labels-only": "labels are mixed with the mean label of all partners, inputs are left as they are",
    },
    scales=(
        Scale(
            "smoke", 1,
            {"d": 60, "n": 40, "noise": 0.4, "weak": 0.1, "filters": 4, "steps": 40, "weak_steps": 20, "fresh": 200,
             "every": 20, "data": "digits", "images": 150, "test": 300, "epochs": 2},
        ),
        Scale(
            "claim", 10,
            {"d": 1500, "n": 100, "noise": 0.02**0.5, "weak": 0.02, "filters": 32, "steps": 1000, "weak_steps": 250,
             "fresh": 2000, "every": 50, "data": "mnist", "images": 1000, "test": 5000, "epochs": 15},
        ),
    ),
)  # fmt: skip


class _SameClass(Mixup):
    """The samples of each class are permuted among themselves; of all pairs, those of one class are left."""

    def partners(self, batch: Batch, state: State) -> tuple[Tensor, Tensor]:
        first, second = super().partners(batch, state)
        if self.pairs == "all":
            kept = batch.y[first] == batch.y[second]
            return first[kept], second[kept]
        found = torch.empty_like(second)
        found[batch.y.argsort(stable=True)] = second[batch.y[second].argsort(stable=True)]
        return first, found


class _LabelsOnly(Mixup):
    """The mean over all partners of the labels, for inputs as they are."""

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        labels, share = F.one_hot(batch.y, len(state.data.classes)).to(batch.x), self.share(state)
        return F.cross_entropy(model(batch.x), share * labels + (1 - share) * labels.mean(0))


RULES: Mapping[str | None, type[Mixup]] = {None: Mixup, "same-class-mix": _SameClass, "labels-only": _LabelsOnly}


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def fixed_labels(share: float) -> float:
    """3/4 for the sample with the larger share."""
    return 0.75 if share >= 0.5 else 0.25


def descent(scale: Scale, steps: str = "steps") -> dict[str, Any]:
    """Full-batch gradient descent at a constant rate."""
    plan = {"steps": scale[steps], "batch_size": scale["n"], "optimizer": "sgd", "momentum": 0.0, "lr": 0.5}
    return {**plan, "schedule": "constant"}


def _features(scale: Scale, arm: str, method: Trainer, seed: int, noise: float) -> list[dict[str, Any]]:
    """What the quadratic network learns of data whose noise has that size: along training, and at its end."""
    problem = FeatureNoiseModel(d=scale["d"], rho=RHO, sigma_p=noise)
    train = problem.sample(scale["n"], seed=derive(seed, "train"))
    fresh = problem.sample(scale["fresh"], rho=0.5, seed=derive(seed, "fresh"))
    start = QuadraticCNN(scale["d"], scale["filters"], seed=derive(seed, "init"))
    found = train_feature_model(method, start, problem, train, fresh, every=scale["every"], seed=seed)
    rows = [
        {"arm": arm, "step": int(step), "feature": rare, "noise": noise, "curve": accuracy}
        for step, rare, noise, accuracy in zip(
            found.steps, found.rare.mean(1), np.nanmean(found.memorised, 1), found.rare_accuracy, strict=True
        )
    ]
    end = {
        "rare": found.rare_accuracy[-1],
        "common": found.common_accuracy[-1],
        "fitted": found.train_accuracy[-1],
        "energy": found.rare[-1].mean(),
    }
    return [*rows, {"arm": arm, **end}]


def _image_rows(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Test accuracy on images of a small convolutional network without augmentation."""
    whole, held = _images(scale["data"])
    train, test = whole.limit(scale["images"], seed=seed), held.limit(scale["test"], seed=seed)
    plan: dict[str, Any] = {"epochs": scale["epochs"], "batch_size": 100, "lr": 3e-3}
    with seeded(seed, "images"):
        channels, height, width = train.shape
        start = SmallCNN((channels, height, width), len(train.classes), (8, 16))
    methods: dict[str, Trainer] = {
        ERM: Supervised(**plan),
        MIXUP: Mixup(**plan),
        FIXED: Mixup(label_map=fixed_labels, **plan),
        INDEPENDENT: Mixup(label_map="independent", **plan),
        STOPPED: EarlyStoppedMixup(**plan),
    }
    rows = []
    for arm, method in methods.items():
        right = predict(method.fit(start, train, seed=seed), test.x).argmax(1) == test.y
        rows.append({"arm": arm + IMAGES, "accuracy": float(right.double().mean())})
    return rows


def exact(rule: type[Mixup], seed: int) -> dict[str, float]:
    """Largest difference of losses along training with lambda = 1 from standard training's, and the difference of the
    loss over all pairs from the mean over cyclic shifts of the samples, written out, in float64."""
    data = FeatureNoiseModel(d=30, rho=0.3, sigma_p=0.3).sample(24, seed=derive(seed, "exact"))
    net = QuadraticCNN(30, 4, 0.3, derive(seed, "exact"))
    plan: dict[str, Any] = {"steps": 12, "batch_size": 24, "optimizer": "sgd", "momentum": 0.0, "lr": 0.2}
    once, plain = (_losses(method, net, data, seed) for method in (Mixup(fixed_lambda=1.0, **plan), Supervised(**plan)))
    x, y, double = data.x.double(), F.one_hot(data.y, 2).double(), copy.deepcopy(net).double()
    shifted = []
    with torch.no_grad():
        for k in range(len(x)):
            mixed, target = (SHARE * t + (1 - SHARE) * t.roll(k, 0) for t in (x, y))
            shifted.append(float(-(target * double(mixed).log_softmax(1)).sum(1).mean()))
        batch = replace(data.batch(torch.arange(len(x))), x=x)
        every = float(rule(fixed_lambda=SHARE, pairs="all").objective(double, batch, State(seed, data, 1)))
    return {"ones": float(np.abs(once - plain).max()), "shifts": abs(every - float(np.mean(shifted)))}


def _losses(method: Trainer, net: QuadraticCNN, data: Data, seed: int) -> np.ndarray:
    log: list[float] = []
    method.fit(net, data, seed=seed, hooks=[lambda _models, state: log.append(state.log[-1]["model"])])
    return np.array(log)


def setup(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """The rows of the arms that no sham changes."""
    plan, weak = descent(scale), descent(scale, "weak_steps")
    return [
        *_features(scale, ERM, Supervised(**plan), seed, scale["noise"]),
        *_features(scale, STOPPED, EarlyStoppedMixup(fixed_lambda=SHARE, **plan), seed, scale["noise"]),
        *_features(scale, ERM + WEAK, Supervised(**weak), seed, scale["weak"]),
        *_features(scale, MIXUP + WEAK, Mixup(fixed_lambda=SHARE, **weak), seed, scale["weak"]),
        *_image_rows(scale, seed),
    ]


def experiment(scale: Scale, seed: int, given: list[dict[str, Any]], sham: str | None) -> Table:
    """Mixup under the sham, the exact checks, and the other arms."""
    method = RULES[sham](fixed_lambda=SHARE, **descent(scale))
    rows = _features(scale, MIXUP, method, seed, scale["noise"])
    return Table.of([*given, *rows, {"arm": "exact", **exact(RULES[sham], seed)}])


def _energy_ratio(table: Table) -> np.ndarray:
    """log10 of Mixup's rare energy over standard training's, the mean of the classes."""
    return np.log10(table.per_seed("energy", arm=MIXUP) / table.per_seed("energy", arm=ERM))


def claims(table: Table) -> list[Claim]:
    """Fresh rare data and the rare feature's energy decide, and both identities."""
    return [
        Claim(
            "accuracy on fresh rare data: Mixup less standard training",
            table.gain(MIXUP, ERM, "rare"),
            at_least=0.2,
            refuted_by=("same-class-mix", "labels-only"),
        ),
        Claim(
            "energy of the rare features, log10 of Mixup over standard training (3 times: 0.477)",
            _energy_ratio(table),
            at_least=float(np.log10(3)),
            refuted_by=("labels-only",),
        ),
        Claim(
            "losses along training, Mixup with lambda = 1 and standard training: largest difference",
            table.per_seed("ones", np.max),
            at_most=0.0,
            rule="exact",
        ),
        Claim(
            "the loss over all ordered pairs is the mean over cyclic shifts: difference",
            table.per_seed("shifts", np.max),
            at_most=1e-10,
            rule="exact",
            refuted_by=("same-class-mix", "labels-only"),
        ),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    rare = table.per_seed("rare", arm=ERM)
    kept = table.gain(STOPPED, ERM, "rare") - 0.6 * table.gain(MIXUP, ERM, "rare")
    bounded: list[tuple[str, np.ndarray, float | None, float | None]] = [
        ("accuracy of standard training on fresh rare data", rare, None, 0.75),
        ("gain of Mixup stopped at half on fresh rare data, less 0.6 of Mixup's", kept, 0.0, None),
        (
            "weak noise, accuracy on fresh rare data: Mixup less standard training",
            table.gain(MIXUP + WEAK, ERM + WEAK, "rare"),
            -0.05,
            0.05,
        ),
        *(
            (
                f"images, accuracy: {arm} less labels mixed as the inputs",
                table.gain(arm + IMAGES, MIXUP + IMAGES, "accuracy"),
                -0.01,
                0.01,
            )
            for arm in (FIXED, INDEPENDENT)
        ),
        ("images, accuracy: Mixup stopped at half less Mixup", _images_gain(table, STOPPED, MIXUP), -0.005, None),
        ("images, accuracy: Mixup less standard training", _images_gain(table, MIXUP, ERM), 0.0, None),
    ]
    return [
        Claim(
            "accuracy on fresh common data, the least of standard training, Mixup and Mixup stopped at half",
            np.min([table.per_seed("common", arm=arm) for arm in (ERM, MIXUP, STOPPED)], 0),
            at_least=0.99,
            key=False,
        ),
        Claim(
            "accuracy of standard training on its training data",
            table.per_seed("fitted", arm=ERM),
            at_least=1.0,
            key=False,
        ),
        *(Claim(text, values, at_least=low, at_most=high, key=False) for text, values, low, high in bounded),
    ]


def _images_gain(table: Table, arm: str, reference: str) -> np.ndarray:
    return table.gain(arm + IMAGES, reference + IMAGES, "accuracy")


def figure(table: Table) -> Figure:
    """Accuracy on fresh rare data over steps, and the rare features' energy beside the noise that is fitted."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for k, arm in enumerate((ERM, MIXUP, STOPPED)):
        steps = sorted(set(table.values("step", arm=arm)))
        for axes, column, style in ((left, "curve", "-"), (right, "feature", "-"), (right, "noise", ":")):
            values = [table.values(column, arm=arm, step=s).mean() for s in steps]
            axes.plot(steps, values, style, color=f"C{k}", label=arm if style == "-" else None)
    left.set(xlabel="step", ylabel="accuracy", title="Fresh rare data")
    right.set(xlabel="step", ylabel="energy", yscale="log", title="Rare feature (lines), noise (dots)")
    left.legend(frameon=False)
    return drawing
