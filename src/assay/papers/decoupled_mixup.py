"""Decoupled mixup: both classes of a mixed sample are recognised, because they stop competing.

The soft labels of mixup let two classes share one unit of probability; the regulariser scores each without the other.
Exact: its gradient at the competitor's logit is 0, its values are those of a hand example with three classes and of a
reference that drops columns, as the authors' code does, and without weight it is soft cross-entropy. Images: on mixed
test pairs the two largest logits are more often the two classes that are mixed than after mixup alone, at the same
clean accuracy. Mixup itself costs clean accuracy here (few images, a perceptron), so no gain over plain training is
claimed: that belongs to the paper's networks and data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.labels import DecoupledMixup, Mixup
from assay.losses import DecoupledMixupLoss
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import seeded, torch_rng
from assay.runtime.statistics import point
from assay.training import Supervised, Trainer

ERM, MIXUP, WEAK, DM = "plain", "mixup", "decoupled, 0.1", "decoupled, 1"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)

PAPER = Paper(
    slug="decoupled-mixup",
    title="Harnessing Hard Mixed Samples with Decoupled Regularizer",
    authors="Zicheng Liu, Siyuan Li, Ge Wang, Cheng Tan, Lirong Wu, Stan Z. Li",
    year=2023,
    arxiv="2203.10761",
    room="losses",
    also=("adapt",),
    kind="method",
    implements=(
        "losses.DecoupledMixupLoss",
        "losses.DecoupledBCELoss",
        "losses.decoupled_scores",
        "labels.DecoupledMixup",
        "labels.ManifoldMixup",
    ),
    claim="Scoring each mixed class without the other raises the share of mixtures of which both classes are found.",
    headline="CIFAR-100, ResNet-18, 800 epochs: Mixup from about 79.1 to 80.4%, CutMix from about 79.5 to 81.1%.",
    peers=("Westlake-AI/openmixup CrossEntropyLoss(use_mix_decouple=True)",),
    baselines=(ERM, MIXUP),
    shams={
        "kept-competitor": "the decoupled scores keep the other class in their sums: cross-entropy of both labels",
        "wrong-sign": "the regulariser is subtracted",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 300, "test": 300, "hidden": 32, "epochs": 4}),
        Scale("claim", 10, {"data": "mnist", "train": 1500, "test": 5000, "hidden": 256, "epochs": 40}),
    ),
)


class _KeptCompetitor(DecoupledMixupLoss):
    def branches(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -logits.log_softmax(1).gather(1, labels)


class _WrongSign(DecoupledMixupLoss):
    def branches(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -super().branches(logits, labels)


RULES: Mapping[str | None, type[DecoupledMixupLoss]] = {
    None: DecoupledMixupLoss,
    "kept-competitor": _KeptCompetitor,
    "wrong-sign": _WrongSign,
}


@dataclass(frozen=True, kw_only=True)
class _Under(DecoupledMixup):
    """Decoupled mixup under the loss of one of the rules."""

    rule: type[DecoupledMixupLoss] = DecoupledMixupLoss

    def loss(self) -> nn.Module:
        return self.rule(self.eta)


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _row(scale: Scale, given: Mapping[str, Any], arm: str, method: Trainer, seed: int) -> list[dict[str, Any]]:
    """Clean accuracy and calibration error; for each share of the first image, how often the two largest logits are the
    two classes, and the probability of both together."""
    test, partner = given["test"], given["partner"]
    model = method.fit(given["start"], given["train"], seed=seed)
    p = predict(model, test.x).softmax(1)
    right = p.argmax(1) == test.y
    pairs = torch.stack((p.amax(1), right), 1).double().numpy()
    rows: list[dict[str, Any]] = [{"arm": arm, "accuracy": float(right.double().mean()), "ece": point("ece", pairs)}]
    apart = test.y != test.y[partner]
    first, second, labels = test.x[apart], test.x[partner][apart], torch.stack((test.y, test.y[partner]), 1)[apart]
    for share in SHARES:
        mixed = predict(model, share * first + (1 - share) * second).softmax(1)
        found = mixed.topk(2, 1).indices.sort(1).values == labels.sort(1).values
        both = {"top2": float(found.all(1).double().mean()), "mass": float(mixed.gather(1, labels).sum(1).mean())}
        rows.append({"arm": arm, "share": share, **both})
    return rows


def _reference(logits: np.ndarray, a: np.ndarray, b: np.ndarray, lam: float, eta: float) -> float:
    """The loss by loops: the competitor's column is taken out, as the authors' code does."""
    total = 0.0
    for z, i, j in zip(logits, a, b, strict=True):
        p = np.exp(z) / np.exp(z).sum()
        total -= lam * math.log(p[i]) + (1 - lam) * math.log(p[j])
        for own, other in ((i, j), (j, i)):
            left = np.delete(z, other)
            total -= eta * math.log(math.exp(z[own]) / np.exp(left).sum())
    return total / len(a)


def exact(rule: type[DecoupledMixupLoss], seed: int) -> dict[str, float]:
    """Largest gradient of a branch at its competitor; differences from a hand example, loops and soft cross-entropy."""
    g = torch_rng(seed, "exact")
    logits = (2 * torch.randn(50, 10, generator=g, dtype=torch.float64)).requires_grad_()
    a = torch.randint(10, (50,), generator=g)
    b = (a + torch.randint(1, 10, (50,), generator=g)) % 10
    labels = torch.stack((a, b), 1)
    both = rule(1.0).branches(logits, labels)
    reach = [
        torch.autograd.grad(both[:, k].sum(), logits, retain_graph=True)[0].gather(1, labels[:, 1 - k, None])
        for k in (0, 1)
    ]
    z, one, two = (
        torch.tensor([[math.log(3.0), math.log(2.0), 0.0]], dtype=torch.float64),
        torch.tensor([0]),
        torch.tensor([1]),
    )
    hand = -0.3 * math.log(1 / 2) - 0.7 * math.log(1 / 3) - 0.5 * (math.log(3 / 4) + math.log(2 / 3))
    fixed = logits.detach()
    lam = float(torch.rand((), generator=g)) * 0.8 + 0.1
    soft = F.cross_entropy(fixed, lam * F.one_hot(a, 10).double() + (1 - lam) * F.one_hot(b, 10).double())
    looped = _reference(fixed.numpy(), a.numpy(), b.numpy(), lam, 0.7)
    return {
        "reach": float(torch.cat(reach).abs().max()),
        "hand": abs(float(rule(0.5)(z, one, two, 0.3)) - hand),
        "loops": abs(float(rule(0.7)(fixed, a, b, lam)) - looped),
        "soft": abs(float(rule(0.0)(fixed, a, b, lam) - soft)),
    }


def _plan(scale: Scale) -> dict[str, Any]:
    return {"epochs": scale["epochs"], "batch_size": 100, "lr": 1e-3, "schedule": "constant"}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Images, their partners, the start, and the arms that no sham changes."""
    whole, held = _images(scale["data"])
    train, test = whole.limit(scale["train"], seed=seed), held.limit(scale["test"], seed=seed)
    with seeded(seed, "init"):
        start = MLP(train.shape, len(train.classes), (scale["hidden"], scale["hidden"]))
    partner = torch.randperm(len(test), generator=torch_rng(seed, "partner"))
    given: dict[str, Any] = {"train": train, "test": test, "start": start, "partner": partner}
    plan = _plan(scale)
    methods: dict[str, Trainer] = {
        ERM: Supervised(**plan),
        MIXUP: Mixup(**plan),
        WEAK: DecoupledMixup(eta=0.1, **plan),
    }
    given["rows"] = [row for arm, method in methods.items() for row in _row(scale, given, arm, method, seed)]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Decoupled mixup of weight 1 under the sham, the exact checks of its loss, and the other arms."""
    method = _Under(rule=RULES[sham], eta=1.0, **_plan(scale))
    rows = [*given["rows"], *_row(scale, given, DM, method, seed)]
    return Table.of([*rows, {"arm": "exact", **exact(RULES[sham], seed)}])


def _top2(table: Table, arm: str, share: float) -> np.ndarray:
    """By how much a trainer's top-2 accuracy on mixtures exceeds mixup's."""
    return table.per_seed("top2", arm=arm, share=share) - table.per_seed("top2", arm=MIXUP, share=share)


def claims(table: Table) -> list[Claim]:
    """Both classes of hard mixtures, and the gradient at the competitor, decide."""

    def exact_claim(text: str, column: str, at_most: float, **options: Any) -> Claim:
        return Claim(text, table.per_seed(column, np.max), at_most=at_most, rule="exact", **options)

    both = ("kept-competitor", "wrong-sign")
    return [
        Claim(
            "top-2 accuracy on mixtures with 0.3 of one image: decoupled mixup of weight 1 less mixup",
            _top2(table, DM, 0.3),
            at_least=0.02,
            refuted_by=("wrong-sign",),
        ),
        exact_claim(
            "gradient of each branch at its competitor's logit: largest size", "reach", 0.0,
            refuted_by=("kept-competitor",),
        ),
        exact_claim("the loss is that of a hand example, three classes: difference", "hand", 1e-12, refuted_by=both),
        exact_claim("the loss is that of loops that drop columns: difference", "loops", 1e-9, refuted_by=both),
        exact_claim("without weight it is soft cross-entropy: difference", "soft", 1e-12, key=False),
        Claim(
            "top-2 accuracy on even mixtures: decoupled mixup of weight 1 less mixup",
            _top2(table, DM, 0.5),
            at_least=0.01,
            key=False,
            refuted_by=("wrong-sign",),
        ),
        Claim(
            "top-2 accuracy on mixtures with 0.3 of one image: decoupled mixup of weight 0.1 less mixup",
            _top2(table, WEAK, 0.3),
            at_least=0.0,
            key=False,
        ),
        Claim(
            "clean accuracy: decoupled mixup of weight 1 less mixup",
            table.gain(DM, MIXUP, "accuracy"),
            at_least=-0.006,
            key=False,
        ),
        Claim(
            "calibration error on clean images: decoupled mixup of weight 1 less mixup",
            table.gain(DM, MIXUP, "ece"),
            at_most=0.0,
            key=False,
        ),
    ]  # fmt: skip


def figure(table: Table) -> Figure:
    """Top-2 accuracy on mixtures, and the probability of both classes, over the first image's share."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for arm in (ERM, MIXUP, WEAK, DM):
        for axes, column in ((left, "top2"), (right, "mass")):
            axes.plot(SHARES, [table.values(column, arm=arm, share=s).mean() for s in SHARES], "-o", ms=3, label=arm)
    left.set(xlabel="share of the first image", ylabel="top-2 accuracy", title="Both classes of a mixture are found")
    right.set(xlabel="share of the first image", ylabel="probability", title="Probability of the two classes")
    left.legend(frameon=False)
    return drawing
