"""What the temperature of the softmax contrastive loss does: how the push is shared among the negatives.

Exact: the gradient of every similarity is its softmax weight over the temperature, and those of the negatives sum to
that of the positive; the entropy of the shares grows by the variance over the temperature cubed; near 0 the loss is the
triplet loss on the hardest negative, at 1000 all negatives weigh alike, and with the negatives of both views the loss
is SimCLR's. One network per temperature on handwritten digits: a lower temperature should spread the embeddings more
evenly, and so should restricting a temperature of 1 to the hardest negatives. Support: tolerance (similarity within a
class) and nearest neighbours. All networks see the same views, a pool of eight an image, and take the same Adam steps;
Adam makes the 1 / tau in the size of the gradient harmless.

What training does is not reproduced. From 0.1 to 1 the embeddings are less even the higher the temperature (log
potential -2.6 to -2.3), but at 0.05 they are the least even (-2.1); and the hardest negatives alone bring the embedding
to a point in nearly every run (-0.1 to -0.9). Pilots of one seed with batch norm, larger batches, other rates and
stronger views changed neither. The paper trains residual networks for 200 epochs on four natural image sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.losses import HardContrastive, InfoNCE, SimpleContrastive
from assay.losses.contrastive import ContrastiveLoss, off_diagonal
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.represent import Augmentation, ContrastivePretraining, penalty_entropy
from assay.represent.contrastive_report import representation_report
from assay.runtime.random import Draws, seeded, torch_rng

TAUS = (0.05, 0.1, 0.2, 0.5, 1.0)
SHARE = 0.0819  # of the negatives that the hard loss keeps
VIEWS = 8  # of each image, drawn once for all arms
CROPS = Augmentation(scale=(0.5, 1.0), rotation=20.0, flip=False, jitter=0.0, noise=0.1)

PAPER = Paper(
    slug="contrastive-temperature",
    title="Understanding the Behaviour of Contrastive Loss",
    authors="Feng Wang, Huaping Liu",
    year=2021,
    arxiv="2012.09740",
    room="represent",
    also=("losses",),
    kind="theory + measure",
    implements=(
        "losses.InfoNCE",
        "losses.HardContrastive",
        "losses.SimpleContrastive",
        "represent.ContrastivePretraining",
        "represent.penalty_distribution",
        "represent.penalty_entropy",
        "represent.uniformity",
        "represent.tolerance",
        "represent.temperature_sweep",
    ),
    claim="The temperature sets how the push concentrates on the hardest negatives: low ones give uniform embeddings.",
    headline="CIFAR-10, SVHN, ImageNet-100: uniformity falls and tolerance rises with the temperature, accuracy peaks "
    "between; explicit hard negatives keep large temperatures uniform.",
    peers=("pytorch_metric_learning.losses.NTXentLoss", "SsnL/align_uniform"),
    baselines=("tau=1",),
    shams={
        "outer-temperature": "the similarities go undivided into the softmax and the loss as a whole is divided by tau",
        "random-negatives": "the hard loss keeps a random subset of the same size in place of the hardest negatives",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 128, "test": 200, "epochs": 2, "batch": 64, "hidden": 32}),
        Scale("claim", 5, {"data": "mnist", "train": 2048, "test": 1000, "epochs": 10, "batch": 128, "hidden": 128}),
    ),
)


class _Outer(InfoNCE):
    """tau outside the softmax."""

    def of_scores(self, positive: Tensor, negative: Tensor) -> Tensor:
        return InfoNCE(1.0).of_scores(positive, negative) / self.temperature


class _RandomNegatives(HardContrastive):
    def select(self, negative: Tensor) -> Tensor:
        kept = torch.rand_like(negative).topk(super().select(negative).shape[1], dim=1).indices
        return negative.gather(1, kept)


def _loss(tau: float, sham: str | None) -> InfoNCE:
    return _Outer(tau) if sham == "outer-temperature" else InfoNCE(tau)


def _scores(seed: int) -> tuple[Tensor, Tensor]:
    """Similarities of 30 positives and of 40 negatives each, as of points on a sphere, in float64."""
    g = torch_rng(seed, "scores")
    z = F.normalize(torch.randn(30, 6, generator=g, dtype=torch.float64), dim=1)
    others = F.normalize(torch.randn(40, 6, generator=g, dtype=torch.float64), dim=1)
    near = F.normalize(z + 0.3 * torch.randn(30, 6, generator=g, dtype=torch.float64), dim=1)
    return (z * near).sum(1), z @ others.T


def _gradients(loss: ContrastiveLoss, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample's loss, by its positive's and by its negatives' similarities."""
    p, s = positive.clone().requires_grad_(), negative.clone().requires_grad_()
    first, second = torch.autograd.grad(loss.of_scores(p, s).sum(), (p, s))
    return first, second


def identities(seed: int, sham: str | None = None) -> dict[str, float]:
    """Largest differences from the paper's gradient, the derivative of the entropy, both limits and NT-Xent."""
    positive, negative = _scores(seed)
    gradient = slope = 0.0
    for tau in TAUS:
        first, second = _gradients(_loss(tau, sham), positive, negative)
        weight = (torch.cat((positive[:, None], negative), 1) / tau).softmax(1)[:, 1:] / tau
        gradient = max(gradient, float((second - weight).abs().max()), float((second.sum(1) + first).abs().max()))
        step = 1e-4 * tau
        rise = (penalty_entropy(negative, tau + step) - penalty_entropy(negative, tau - step)) / (2 * step)
        r = (negative / tau).softmax(1)
        variance = (r * negative.square()).sum(1) - (r * negative).sum(1).square()
        slope = max(slope, float((rise - variance / tau**3).abs().max()))
    cold = 1e-3 * _loss(1e-3, sham).of_scores(positive, negative)
    triplet = (negative.max(1).values - positive).clamp_min(0)
    even = _gradients(_loss(1e3, sham), positive, negative)[1]
    return {
        "gradient": gradient,
        "slope": slope,
        "triplet": float((cold - triplet).abs().max()),
        "even": float((even.max(1).values / even.min(1).values - 1).max()),
        "nt_xent": nt_xent_gap(seed),
    }


def nt_xent_gap(seed: int) -> float:
    """Difference of InfoNCE with both views' negatives from SimCLR's loss, cross-entropy over all 2n embeddings."""
    g = torch_rng(seed, "nt-xent")
    z1, z2 = torch.randn(2, 16, 5, generator=g, dtype=torch.float64)
    unit = F.normalize(torch.cat((z1, z2)), dim=1)
    logits = (unit @ unit.T / 0.3).fill_diagonal_(-np.inf)
    expected = F.cross_entropy(logits, (torch.arange(32) + 16) % 32)
    return float((InfoNCE(0.3, negatives="views", symmetric=True)(z1, z2) - expected).abs())


class _Pool:
    """Views drawn once: a training step picks one of an image's VIEWS, so that all arms share them at no cost."""

    def __init__(self, data: Data, seed: int) -> None:
        views = [CROPS(data.x, Draws(seed, f"view/{k}", data.index)) for k in range(VIEWS)]
        self.views = torch.stack(views, 1)
        self.rows = torch.full((int(data.index.max()) + 1,), -1)
        self.rows[data.index] = torch.arange(len(data))

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        return self.views[self.rows[draws.index], draws.integers(VIEWS, 1)[:, 0]]


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _trained(scale: Scale, seed: int, given: Mapping[str, Any], arm: str, tau: float, loss: Any) -> dict[str, Any]:
    method = ContrastivePretraining(
        loss=loss,
        augment=given["pool"],
        epochs=scale["epochs"],
        batch_size=scale["batch"],
        optimizer="adam",
        lr=1e-3,
        weight_decay=0.0,
    )
    encoder: nn.Module = method.fit(given["start"], given["data"], seed=seed)
    report = representation_report(encoder, tau, given["data"], given["test"])
    return {"arm": arm, "tau": tau, **report}


def _sweep(scale: Scale, seed: int, given: Mapping[str, Any], sham: str | None) -> list[dict[str, Any]]:
    return [_trained(scale, seed, given, f"tau={tau:g}", tau, _loss(tau, sham)) for tau in TAUS]


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Images, their views, the network's start, and each group of arms, which one sham alone changes."""
    train, test = (d.limit(scale[k], seed=seed) for d, k in zip(_images(scale["data"]), ("train", "test"), strict=True))
    with seeded(seed, "init"):
        start = MLP(train.shape, 32, (scale["hidden"],))
    given: dict[str, Any] = {"data": train, "test": test, "start": start, "pool": _Pool(train, seed)}
    pixels = F.normalize(test.x.flatten(1) - test.x.flatten(1).mean(0), dim=1)[:200].double()
    given["fixed"] = torch.ones(len(pixels), dtype=torch.float64), off_diagonal(pixels @ pixels.T)
    given["sweep"] = _sweep(scale, seed, given, None)
    given["hard"] = _trained(scale, seed, given, "hard tau=1", 1.0, HardContrastive(1.0, SHARE))
    simple = _trained(scale, seed, given, "simple", 1.0, SimpleContrastive(1 / (scale["batch"] - 1)))
    hard_simple = SimpleContrastive(1 / (SHARE * scale["batch"]), SHARE)
    given["others"] = [simple, _trained(scale, seed, given, "hard simple", 1.0, hard_simple)]
    return given


def _shares(given: Mapping[str, Any], sham: str | None) -> list[dict[str, Any]]:
    """Mean entropy of the negatives' shares of the loss's gradient on one fixed embedding, the centred pixels."""
    rows = []
    for tau in TAUS:
        own, others = given["fixed"]
        first, second = _gradients(_loss(tau, sham), own, others)
        share = second / first.abs()[:, None]
        rows.append({"arm": "fixed embedding", "tau": tau, "spread": float(torch.special.entr(share).sum(1).mean())})
    return rows


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Reports of all networks, the entropies on the fixed embedding and the identities."""
    sweep = _sweep(scale, seed, given, sham) if sham == "outer-temperature" else given["sweep"]
    hard = given["hard"]
    if sham == "random-negatives":
        hard = _trained(scale, seed, given, "hard tau=1", 1.0, _RandomNegatives(1.0, SHARE))
    shares = _shares(given, sham)
    even, near = ([r[c] for r in sweep] for c in ("uniformity", "tolerance"))
    summary = {
        "arm": "sweep",
        "evenness": _order([-u for u in even]),
        "nearness": _order(near),
        "growth": float(np.diff([r["spread"] for r in shares]).min()),
    }
    exact = {"arm": "identities", **identities(seed, sham)}
    return Table.of([*sweep, hard, *given["others"], *shares, summary, exact])


def _order(values: list[float]) -> float:
    """Spearman's correlation with the temperatures; 0 where all values are the same."""
    return float(spearmanr(TAUS, values).statistic) if len(set(values)) > 1 else 0.0


def claims(table: Table) -> list[Claim]:
    """Uniformity against temperature, growing entropy, the hard loss's gain and the identities decide."""
    outer, both = ("outer-temperature",), ("uniformity falls", "tolerance rises")
    gain = table.gain("tau=1", "hard tau=1", "uniformity")
    return [
        Claim(
            f"{both[0]} with the temperature: Spearman's correlation of tau and the negative log potential",
            table.per_seed("evenness"),
            at_most=-0.9,
            refuted_by=outer,
        ),
        Claim(
            "on one fixed embedding the entropy of the negatives' shares rises with the temperature: least step",
            table.per_seed("growth", np.min),
            at_least=1e-6,
            rule="exact",
            refuted_by=outer,
        ),
        Claim(
            "at tau = 1 the hardest negatives alone give a log potential lower by 0.3 nats or more",
            gain,
            at_least=0.3,
            refuted_by=("random-negatives",),
        ),
        *_identity_claims(table),
        Claim(
            f"{both[1]} with the temperature: Spearman's correlation of tau and the similarity within a class",
            table.per_seed("nearness"),
            at_least=0.9,
            key=False,
        ),
        Claim(
            "at tau = 1 the hardest negatives alone give more accurate nearest neighbours, by",
            table.gain("hard tau=1", "tau=1", "neighbours"),
            at_least=0.01,
            key=False,
        ),
    ]


def _identity_claims(table: Table) -> list[Claim]:
    outer = ("outer-temperature",)
    texts = {
        "gradient": ("the gradient by s_ik is P_ik / tau, and the positive's is less their sum", 1e-10, outer),
        "slope": ("the entropy of the shares grows by Var(s) / tau^3", 1e-5, ()),
        "triplet": ("at tau = 0.001, tau L is the triplet loss on the hardest negative", 1e-2, outer),
        "even": ("at tau = 1000 a sample's negatives have equal gradients: largest ratio less 1", 0.01, ()),
        "nt_xent": ("with the negatives of both views the loss is SimCLR's", 1e-10, ()),
    }
    return [
        Claim(
            text if "ratio" in text else f"{text}: largest difference",
            table.per_seed(name, np.max),
            at_most=bound,
            rule="exact",
            key=name in ("gradient", "slope", "triplet"),
            refuted_by=shams,
        )
        for name, (text, bound, shams) in texts.items()
    ]


def figure(table: Table) -> Figure:
    """Uniformity, tolerance and accuracy over the temperature; the hard loss at 1 as a cross (means over seeds)."""
    drawing = Figure(figsize=(10.5, 3.2), layout="constrained")
    names = {"uniformity": "- log potential", "tolerance": "similarity within a class", "neighbours": "accuracy, 5-NN"}
    for panel, (column, label) in zip(drawing.subplots(1, 3), names.items(), strict=True):
        sign = -1 if column == "uniformity" else 1
        values = [sign * table.per_seed(column, arm=f"tau={tau:g}").mean() for tau in TAUS]
        panel.semilogx(TAUS, values, "-o", ms=3, label="softmax")
        panel.plot(1.0, sign * table.per_seed(column, arm="hard tau=1").mean(), "x", label="hardest negatives")
        panel.set(xlabel="temperature τ", ylabel=label)
    drawing.axes[0].legend(frameon=False)
    return drawing
