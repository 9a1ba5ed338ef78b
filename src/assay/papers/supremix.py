"""SupReMix: contrastive pairs mixed in the embedding order it by a numeric label.

MNIST sevens turned by 0 to 89 degrees, 300 for training. Encoders are trained on the angle by the supervised
contrastive loss, by the same with negatives weighted by distance in angle, and by SupReMix, which adds mixed negatives
and mixed positives; Spearman's correlation of distances in embedding and in angle on test images decides. Exact: a
mixed positive has the anchor's label, similarities from the Gram matrix are those of the mixtures written out, without
mixtures and weights the loss is the supervised contrastive one, and mixtures carry no gradient. Support: the error of a
ridge regression on the frozen embedding against that of the contrastive loss. Reported without a claim: regression
trained end to end on the same network, which a linear probe does not beat at this size, and the second stage, the
encoder trained further with the regressor. Training takes 60 epochs on images of 28 x 28; a recorded run of 40 epochs
on 14 x 14 left 0.108 (0.077 to 0.138) over the contrastive loss, where 0.15 is asked. The effect is about as large as
the bound: on ten seeds the margin was 0.126 (0.106 to 0.147), 0.165 (0.124 to 0.206) on a fresh base seed, and 0.157
(0.142 to 0.172) on thirty; their number was then set to 160, for every claim, which left 0.157 (0.149 to 0.166). More
seeds of a perceptron are a poor way to decide it: the gpu scale asks the same of a residual network, 5,000 images and
the official script's 100 epochs. At claim scale 32 seeds remain, other ones: 0.162 (0.144 to 0.179).
"""

from __future__ import annotations

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
from assay.losses import MixIndex, SupConLoss, SupReMixLoss, WeightedSupConRegressionLoss
from assay.losses.supremix import similarities
from assay.nets import MLP, ResNet
from assay.papers.model import Claim, Paper, Pilot, Scale, Table
from assay.represent import ContrastiveRegressionPretrainer, continuity, embedding_regressor, ordinality
from assay.runtime.inference import pick_device, predict
from assay.runtime.random import Draws, seeded, torch_rng
from assay.training import Plan

DIGIT, ANGLES, WINDOW, TAU = 7, 90, 10.0, 0.1
L1, SUPCON, WEIGHTED, BOTH, TUNED = "l1", "supcon", "weighted supcon", "supremix", "supremix, tuned"

PAPER = Paper(
    slug="supremix",
    title="Mixup Your Own Pairs: Supervised Contrastive Learning for Regression with Mixup",
    authors="Yilei Wu, Zijian Dong, Chongyao Chen, Wangchunshu Zhou, Juan Helen Zhou",
    year=2023,
    arxiv="2309.16633",
    room="represent",
    also=("losses",),
    kind="method",
    implements=(
        "losses.SupReMixLoss",
        "losses.WeightedSupConRegressionLoss",
        "losses.make_mixtures",
        "represent.ContrastiveRegressionPretrainer",
        "represent.embedding_regressor",
        "represent.ordinality",
        "represent.continuity",
    ),
    claim="Mixed negatives and positives order a contrastive embedding by a numeric label.",
    headline="AgeDB, IMDB-WIKI, STS-B, UCI-airfoil, UK Biobank, HCP-Aging: lower error than supervised and other "
    "contrastive regression, more so with few samples and under imbalance.",
    peers=("yilei-wu/SupReMix", "pytorch-metric-learning SupConLoss"),
    baselines=(L1, SUPCON, WEIGHTED),
    shams={
        "random-partners": "the partners of mixtures are drawn at random from the batch, whatever their labels",
        "mirrored-alpha": "alpha = (y_i - y_j) / (y_k - y_j): the mixture's label is y_j + y_k - y_i",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 64, "test": 60, "side": 8, "hidden": 32, "epochs": 2}),
        Scale("claim", 32, {"data": "mnist", "train": 300, "test": 500, "side": 28, "hidden": 256, "epochs": 60}),
        Scale("gpu", 10, {"data": "mnist", "train": 5000, "test": 1000, "side": 28, "width": 64, "epochs": 100}),
    ),
    needs_gpu=Pilot(
        "d6a77fe840c6b1b1",
        "with a perceptron and 300 images SupReMix orders the embedding 0.157 (0.149 to 0.166) better than the "
        "contrastive loss over 160 seeds, where 0.15 is asked; several hundred seeds would decide, or a larger network",
    ),
)


class _RandomPartners(SupReMixLoss):
    """As many mixtures, each of its anchor's share alpha; both partners of a positive, and k of a negative, by lot."""

    def mixtures(self, labels: Tensor) -> MixIndex:
        mix = super().mixtures(labels)
        j, k = torch.randint(len(labels), (2, len(mix.anchor)), generator=self.generator)
        return replace(mix, j=torch.where(mix.is_positive, j, mix.j), k=k)


class _MirroredAlpha(SupReMixLoss):
    """alpha and 1 - alpha of the mixed positives change places."""

    def mixtures(self, labels: Tensor) -> MixIndex:
        mix = super().mixtures(labels)
        return replace(mix, alpha=torch.where(mix.is_positive, 1 - mix.alpha, mix.alpha))


RULES: Mapping[str | None, type[SupReMixLoss]] = {
    None: SupReMixLoss,
    "random-partners": _RandomPartners,
    "mirrored-alpha": _MirroredAlpha,
}


@cache
def _images(source: str, part: str) -> Data:
    data = load_data(source, part)
    return data[data.y == DIGIT]


def _turned(data: Data, n: int, side: int, seed: int) -> Data:
    """``n`` images turned by whole degrees that are their labels; images are used again where there are too few."""
    g = torch_rng(seed, "turned", data.name)
    rows = torch.cat([torch.randperm(len(data), generator=g) for _ in range(-(-n // len(data)))])[:n]
    degrees = torch.randint(ANGLES, (n,), generator=g)
    angle = torch.deg2rad(degrees.float())
    flat = torch.zeros_like(angle)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack([torch.stack([cos, -sin, flat], 1), torch.stack([sin, cos, flat], 1)], 1)
    x = data.x[rows]
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    x = F.interpolate(x, (side, side), mode="area").clamp(0, 1)
    return Data(x, degrees, tuple(map(str, range(ANGLES))), name=f"turned {data.name}")


def _view(x: Tensor, draws: Draws) -> Tensor:
    """Noise, and a square of three tenths of the side erased."""
    side = x.shape[2]
    edge = round(0.3 * side)
    corner = draws.integers(side - edge + 1, 2)
    place = torch.arange(side, device=x.device)
    rows, columns = ((place >= corner[:, k : k + 1]) & (place < corner[:, k : k + 1] + edge) for k in (0, 1))
    noisy = x + 0.1 * draws.normal(*x.shape[1:])
    return noisy.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 0.0).clamp(0, 1)


def _read(arm: str, encoder: nn.Module, regressor: nn.Module, test: Data) -> dict[str, Any]:
    z, y = F.normalize(predict(encoder, test.x), dim=1), test.y.float()
    error = float((predict(regressor, test.x)[:, 0] - y).abs().mean())
    return {"arm": arm, "mae": error, "ordinality": ordinality(z, y), "continuity": continuity(z, y)}


def _contrastive(loss: WeightedSupConRegressionLoss, given: Mapping[str, Any], seed: int) -> nn.Module:
    method = ContrastiveRegressionPretrainer(
        loss=loss, augment=_view, projection=None, epochs=given["epochs"], batch_size=32, schedule="constant"
    )
    return method.fit(given["start"], given["train"], seed=seed)


def _row(arm: str, encoder: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    return _read(arm, encoder, embedding_regressor(encoder, given["train"]), given["test"])


def _supervised(arm: str, encoder: nn.Module, given: Mapping[str, Any], epochs: int, seed: int) -> dict[str, Any]:
    plan = Plan(epochs=epochs, batch_size=32, lr=1e-3, schedule="constant", drop_last=True)
    fitted = embedding_regressor(encoder, given["train"], "l1", tune=True, plan=plan, augment=_view, seed=seed)
    return _read(arm, fitted.encoder, fitted, given["test"])


def exact(rule: type[SupReMixLoss], seed: int) -> dict[str, float]:
    """Errors of what holds identically, in float64, on 24 embeddings with whole angles."""
    g = torch_rng(seed, "exact")
    z = F.normalize(torch.randn(24, 6, generator=g, dtype=torch.float64), dim=1)
    y = torch.randint(30, (24,), generator=g).double()
    loss = rule(TAU, WINDOW, generator=torch_rng(seed, "mixtures"))
    mix = loss.mixtures(y)
    at = mix.is_positive
    blend = mix.alpha * y[mix.j] + (1 - mix.alpha) * y[mix.k]
    points = mix.alpha[:, None] * z[mix.j] + (1 - mix.alpha)[:, None] * z[mix.k]
    gram = (similarities(z, mix) - (z[mix.anchor] * points).sum(1)).abs().max()
    other = WeightedSupConRegressionLoss(TAU, weight=None)(z, y) - SupConLoss(TAU)(z, y.long())
    free = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(similarities(free, mix).sum(), free)
    alone = torch.zeros_like(z).index_add(0, mix.anchor, points)
    return {
        "label": float((blend - y[mix.anchor])[at].abs().max()),
        "gram": float(gram),
        "supcon": float(other.abs()),
        "detached": float((gradient - alone).abs().max()),
    }


def _encoder(scale: Scale, shape: tuple[int, ...], seed: int) -> nn.Module:
    """One hidden layer, or where there is a width a residual network, to 128 features."""
    with seeded(seed, "init"):
        if "width" not in scale.sizes:
            return MLP(shape, 128, (scale["hidden"],))
        channels, height, width = shape
        return ResNet((channels, height, width), 128, scale["width"], (2, 2, 2, 2)).to(pick_device())


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Turned images, an untrained encoder, and the arms that no sham changes."""
    parts = ("train", "test")
    given: dict[str, Any] = {
        part: _turned(_images(scale["data"], part), scale[part], scale["side"], seed) for part in parts
    }
    given["epochs"] = scale["epochs"]
    given["start"] = _encoder(scale, given["train"].shape, seed)
    losses = {
        SUPCON: WeightedSupConRegressionLoss(TAU, weight=None),
        WEIGHTED: WeightedSupConRegressionLoss(TAU),
    }
    given["rows"] = [_row(arm, _contrastive(loss, given, seed), given) for arm, loss in losses.items()]
    given["rows"].append(_supervised(L1, given["start"], given, scale["epochs"], seed))
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Every arm's order and error, and the identities; shams change the mixtures."""
    encoder = _contrastive(RULES[sham](TAU, WINDOW), given, seed)
    return Table.of(
        [
            *given["rows"],
            _row(BOTH, encoder, given),
            _supervised(TUNED, encoder, given, max(scale["epochs"] // 4, 1), seed),
            {"arm": "exact", **exact(RULES[sham], seed)},
        ]
    )


def claims(table: Table) -> list[Claim]:
    """Order over both contrastive baselines and the identities decide; the probe's error supports."""
    lots = ("random-partners",)

    def identity(text: str, column: str, at_most: float, refuted_by: tuple[str, ...] = ()) -> Claim:
        observed = table.per_seed(column, np.max)
        return Claim(f"{text}: largest difference", observed, at_most=at_most, rule="exact", refuted_by=refuted_by)

    return [
        Claim(
            "order of the embedding by angle (Spearman): SupReMix over weighted contrastive",
            table.gain(BOTH, WEIGHTED, "ordinality"),
            at_least=0.10,
            refuted_by=lots,
        ),
        Claim(
            "order of the embedding by angle (Spearman): SupReMix over contrastive",
            table.gain(BOTH, SUPCON, "ordinality"),
            at_least=0.15,
            refuted_by=lots,
        ),
        identity("label of a mixed positive against its anchor's", "label", 1e-9, (*lots, "mirrored-alpha")),
        identity("similarities from the Gram matrix against mixtures written out", "gram", 1e-6),
        identity("without mixtures and weights against the supervised contrastive loss", "supcon", 1e-5),
        identity("gradient of the similarities against that through the anchor alone", "detached", 1e-9),
        Claim(
            "mean absolute error of ridge on the frozen embedding, degrees: SupReMix / contrastive",
            table.per_seed("mae", arm=BOTH) / table.per_seed("mae", arm=SUPCON),
            at_most=0.97,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Order and error of every arm, one dot a seed."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    arms = (L1, SUPCON, WEIGHTED, BOTH, TUNED)
    titles = {"ordinality": "order (Spearman)", "mae": "mean absolute error, degrees"}
    for axes, (column, title) in zip(drawing.subplots(1, 2), titles.items(), strict=True):
        values = np.stack([table.per_seed(column, arm=arm) for arm in arms])
        axes.plot(values, np.arange(len(arms)), "o", ms=4, color="0.55")
        axes.plot(values.mean(1), np.arange(len(arms)), "|", ms=16, mew=2)
        axes.set(yticks=range(len(arms)), title=title)
        axes.set_yticklabels(arms if column == "ordinality" else [])
        axes.invert_yaxis()
    return drawing
