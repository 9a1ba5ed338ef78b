"""QuadAttacK: the k largest logits in a chosen order, by projecting features onto the polyhedron of that order.

Exact, on drawn heads: the projection is that of Lawson and Hanson's least-distance programming by non-negative least
squares, its logits have the order with the margin, and the gradient with the projection held fixed is the slope of
the squared distance. Learned: of pairs of digits side by side (100 classes), the share whose five largest logits take
a random order within 60 steps, against CW^K and adversarial distillation, each with its own best rate and coefficient
of the same grid, chosen on other images. Support: k = 1, and ten classes. ResNet-50 with k = 20 is not run here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
from assay.training import Plan, Supervised

MARGIN = 0.2
RATES, UPPERS = (0.02, 0.05), (20.0, 100.0, 400.0)  # coefficients start at half of these
FEATURES, CLASSES = 16, 10  # of the drawn heads

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
        Scale("smoke", 1, {"data": "digits", "problems": 20, "train": 600, "epochs": 6, "tune": 4, "test": 8}),
        Scale("claim", 5, {"data": "mnist", "problems": 200, "train": 20_000, "epochs": 8, "tune": 32, "test": 96}),
        Scale("gpu", 5, {"data": "mnist", "problems": 200, "train": 100_000, "epochs": 20, "tune": 200, "test": 1000}),
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Shammed(QuadAttack):
    sham: str | None = None

    def projector(self, weight, bias, targets, margin):  # type: ignore[no-untyped-def]
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
    """``count`` pairs of digits side by side, labelled 10 a + b; large digits are averaged over 2 x 2 pixels."""
    g = torch_rng(seed, "pairs")
    left, right = torch.randint(len(data), (2, count), generator=g)
    x = data.x if data.shape[-1] < 20 else F.avg_pool2d(data.x, 2)
    classes = tuple(str(k) for k in range(100))
    return Data(torch.cat((x[left], x[right]), 3), 10 * data.y[left] + data.y[right], classes)


def _right(model: nn.Module, data: Data, count: int) -> Data:
    """The first ``count`` samples that the model gets right."""
    return data[(predict(model, data.x).argmax(1) == data.y).nonzero()[:count, 0]]


def _network(train: Data, epochs: int, seed: int) -> nn.Module:
    with seeded(seed, "init"):
        start = MLP(train.shape, len(train.classes), (256, 128))
    return Supervised(plan=Plan(epochs=epochs, batch_size=128)).fit(start, train, seed=seed)
