"""Nested dropout under label noise: channels ordered by importance, and a prefix of them that is all one needs.

Digits half of whose labels are redrawn uniformly among all classes, a network of two hidden layers. Exact: logits of
all prefixes from one cumulative sum are those of masked passes, drawn widths follow p(k), and at full width nothing is
lost.
Learned, and deciding: a prefix of 20 channels is as accurate as the best one, and the first ten channels are far more
accurate than ten random ones. In accuracy itself dropout ties with nested dropout here, so that the gain over
cross-entropy, the wrong labels fitted and stage 2, co-teaching between two networks, support. Widths are chosen on held
out samples whose labels are noisy too. Sizes are those of a laptop: 3,000 images, 256 and 128 units, 20 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import chisquare
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.labels import (
    NestedClassifier,
    NestedCoTeaching,
    NestedDropout,
    noise_fit_curve,
    prefix_accuracy,
    prefix_logits,
)
from assay.labels.nested_dropout import compressed
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.training import Supervised

NOISE, SIGMA = 0.5, 10.0
FEW, PREFIX, DRAWS = 10, 20, 20  # channels compared with random ones, channels that should be enough, random sets
CE, DROPOUT, WIDE, NESTED, STAGE2 = "cross-entropy", "dropout 0.5", "nested 100", "nested 10", "nested 10, co-teaching"

PAPER = Paper(
    slug="nested-dropout",
    title="Compressing Features for Learning with Noisy Labels",
    authors="Yingyi Chen, Shell Xu Hu, Xi Shen, Chunrong Ai, Johan A. K. Suykens",
    year=2022,
    arxiv="2206.13140",
    room="labels",
    also=("compress",),
    kind="method",
    implements=(
        "labels.NestedDropout",
        "labels.NestedClassifier",
        "labels.NestedCoTeaching",
        "labels.prefix_logits",
        "labels.select_width",
        "labels.noise_fit_curve",
    ),
    claim="Training behind random prefixes of the features orders them: under label noise a few carry all accuracy.",
    headline="ANIMAL-10N 81.3% (cross-entropy 79.4), with co-teaching 84.1; Clothing1M 73.1 (67.2), 74.9.",
    peers=("yingyichen-cyy/Nested-Co-teaching",),
    baselines=(CE, DROPOUT),
    shams={"random-subset": "each batch keeps k random channels, a fresh draw, in place of the first k"},
    scales=(
        Scale(
            "smoke",
            1,
            {"data": "digits", "train": 300, "held": 100, "test": 200, "hidden": 64, "width": 64, "epochs": 4},
        ),
        Scale(
            "claim",
            5,
            {
                "data": "mnist", "train": 3000, "held": 1000, "test": 2000, "hidden": 256, "width": 128, "epochs": 20,
            },
        ),
    ),
)  # fmt: skip


class _RandomSubset(NestedDropout):
    """k from the same p(k), but any k channels."""

    def mask(self, n: int) -> Tensor:
        return super().mask(n)[:, torch.randperm(self.dim)]


def identities(seed: int) -> dict[str, float]:
    """Prefix logits against masked passes, the p-value of drawn widths, and full width against no compression."""
    g = torch_rng(seed, "identities")
    h, weight = torch.randn(40, 24, generator=g), torch.randn(5, 24, generator=g)
    layer = NestedDropout(24).eval()
    apart = 0.0
    for k, found in enumerate(prefix_logits(h, weight), start=1):
        layer.width = k
        apart = max(apart, float((layer(h) @ weight.T - found).abs().max()))
    drawn = layer.sample_width(100_000, generator=g)
    law = np.exp(-((np.arange(1, 25) / SIGMA) ** 2))
    expected = 100_000 * law / law.sum()
    common = expected >= 5
    counts = np.bincount(drawn.numpy(), minlength=25)[1:].astype(float)
    seen, due = (np.append(c[common], c[~common].sum()) for c in (counts, expected))
    keep = due > 0
    full = NestedDropout(24, sigma=np.inf).eval()
    full.width = 24
    even = float((full.probability - 1 / 24).abs().max())
    p_value = chisquare(seen[keep], due[keep] * seen[keep].sum() / due[keep].sum()).pvalue
    return {"prefix": apart, "p_value": float(p_value), "full": max(even, float((full(h) - h).abs().max()))}


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _noisy(y: Tensor, classes: int, seed: int) -> Tensor:
    """Labels of which a share NOISE is drawn anew from all classes (the true one included)."""
    g = torch_rng(seed, "noise")
    drawn = torch.randint(classes, y.shape, generator=g)
    return torch.where(torch.rand(len(y), generator=g) < NOISE, drawn, y)


def _trainer(scale: Scale) -> Supervised:
    return Supervised(epochs=scale["epochs"], batch_size=64, optimizer="sgd", lr=0.1, weight_decay=5e-4)


def _stage1(scale: Scale, given: Mapping[str, Any], compress: nn.Module, seed: int) -> NestedClassifier:
    """The network trained on the noisy labels with this compression of its features."""
    data, width = given["train"], scale["width"]
    with seeded(seed, "init"):
        body = MLP(data.shape, 2, (scale["hidden"], width)).body
        start = NestedClassifier(body, compress, width, len(data.classes))
    trained = _trainer(scale).fit(start, data, seed=seed)
    if not isinstance(trained, NestedClassifier):
        raise TypeError(f"training gave {type(trained).__name__}")
    return trained


def _row(given: Mapping[str, Any], arm: str, model: NestedClassifier, seed: int) -> list[dict[str, Any]]:
    """Accuracy at the width in use, by prefix, and of random channels; the wrong labels fitted at that width."""
    train, test = given["train"], given["test"]
    if isinstance(model.compress, NestedDropout):
        model = model.narrowed(given["held"])
    h, weight = compressed(model, test.x), model.head.weight.detach()
    curve = prefix_accuracy(h, weight, test.y).numpy()
    fitted = noise_fit_curve(model, train.x, given["true"], train.y)
    width = getattr(model.compress, "width", None) or len(curve)
    rng = numpy_rng(seed, "channels")
    some = torch.from_numpy(np.stack([rng.permutation(len(curve))[:FEW] for _ in range(DRAWS)]))
    masks = torch.zeros(DRAWS, len(curve)).scatter_(1, some, 1.0)
    guesses = torch.einsum("nd,cd,md->mnc", h, weight, masks).argmax(2)
    row = {
        "arm": arm,
        "accuracy": float((predict(model, test.x).argmax(1) == test.y).float().mean()),
        "width": width,
        "short": curve.max() - curve[min(PREFIX, len(curve)) - 1],
        "ordered": curve[FEW - 1] - float((guesses == test.y).float().mean()),
        "memorised": fitted.wrong[width - 1],
    }
    points = sorted({1, 2, 5, FEW, PREFIX, 50, 100, len(curve)} & set(range(1, len(curve) + 1)))
    return [row, *({"arm": arm, "k": k, "prefix_accuracy": curve[k - 1]} for k in points)]


def _nested(scale: Scale, given: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Nested dropout, and co-teaching of two such networks."""
    pair = [
        _stage1(scale, given, NestedDropout(scale["width"], SIGMA), s).narrowed(given["held"])
        for s in (seed, derive(seed, "partner"))
    ]
    method = NestedCoTeaching(forget_rate=NOISE * 0.9, epochs=max(scale["epochs"] // 4, 1), batch_size=128, lr=1e-3)
    mean = method.fit(pair[0], given["train"], seed=seed, partner=pair[1])
    test, train = given["test"], given["train"]
    wrong = given["true"] != train.y
    second = {
        "arm": STAGE2,
        "accuracy": float((predict(mean, test.x).argmax(1) == test.y).float().mean()),
        "memorised": float((predict(mean, train.x[wrong]).argmax(1) == train.y[wrong]).float().mean()),
    }
    return [*_row(given, NESTED, pair[0], seed), second]


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Noisy training and held-out images, clean test images, and the arms that no sham changes."""
    whole, test = _images(scale["data"])
    some = whole.limit(scale["train"] + scale["held"], seed=seed)
    noisy = some.with_y(_noisy(some.y, len(some.classes), seed))
    order = torch.randperm(len(some), generator=torch_rng(seed, "held"))
    held, rows = order[: scale["held"]], order[scale["held"] :]
    given: dict[str, Any] = {
        "train": noisy[rows],
        "true": some.y[rows],
        "held": noisy[held],
        "test": test.limit(scale["test"], seed=seed),
    }
    width = scale["width"]
    arms = {CE: nn.Identity(), DROPOUT: nn.Dropout(0.5), WIDE: NestedDropout(width, 100.0)}
    given["rows"] = [r for arm, c in arms.items() for r in _row(given, arm, _stage1(scale, given, c, seed), seed)]
    given["rows"].append({"arm": "identities", **identities(seed)})
    *given["nested"], second = _nested(scale, given, seed)
    given["rows"].append(second)
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """All arms; the sham changes the mask of the nested one."""
    if sham is None:
        return Table.of([*given["rows"], *given["nested"]])
    model = _stage1(scale, given, _RandomSubset(scale["width"], SIGMA), seed)
    return Table.of([*given["rows"], *_row(given, NESTED, model, seed)])


def claims(table: Table) -> list[Claim]:
    """The order of the channels and the exact checks decide; accuracy and what is memorised support."""
    nested = table.where(arm=NESTED)
    return [
        Claim(
            "nested 10: accuracy of the first 20 channels below that of the best prefix, by",
            nested.per_seed("short"),
            at_most=0.02,
        ),
        Claim(
            "nested 10: accuracy of the first 10 channels exceeds that of 10 random ones by",
            nested.per_seed("ordered"),
            at_least=0.3,
            refuted_by=("random-subset",),
        ),
        Claim(
            "prefix logits from one cumulative sum are those of masked passes: largest difference",
            table.per_seed("prefix", np.max),
            at_most=1e-5,
            rule="exact",
        ),
        Claim(
            "100,000 drawn widths follow p(k): p-value of the chi-square test",
            table.per_seed("p_value", np.min),
            at_least=1e-3,
            rule="exact",
        ),
        Claim(
            "sigma = infinity draws evenly and at full width nothing is lost: largest difference",
            table.per_seed("full", np.max),
            at_most=1e-7,
            rule="exact",
            key=False,
        ),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    fitted = table.gain(CE, NESTED, "memorised")
    gain, second = table.gain(NESTED, CE, "accuracy"), table.gain(STAGE2, NESTED, "accuracy")
    short = table.where(arm=CE).per_seed("short")
    return [
        Claim("test accuracy of nested 10 exceeds that of cross-entropy by", gain, at_least=0.05, key=False),
        Claim(
            "wrong training labels predicted: cross-entropy more than nested 10, by", fitted, at_least=0.0, key=False
        ),
        Claim("cross-entropy: first 20 channels below the best prefix, by", short, at_least=0.05, key=False),
        Claim("co-teaching of two nested networks gains in accuracy over one of them", second, at_least=0.0, key=False),
    ]


def figure(table: Table) -> Figure:
    """Accuracy by prefix, and accuracy against the wrong labels fitted (means over seeds)."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for arm in (CE, DROPOUT, WIDE, NESTED):
        part = table.where(arm=arm)
        ks = sorted(set(part.values("k")))
        left.semilogx(ks, [part.values("prefix_accuracy", k=k).mean() for k in ks], "-o", ms=3, label=arm)
    for arm in (CE, DROPOUT, WIDE, NESTED, STAGE2):
        part = table.where(arm=arm)
        right.plot(part.per_seed("memorised"), part.per_seed("accuracy"), "o", ms=3, label=arm)
    left.set(xlabel="channels kept", ylabel="clean test accuracy")
    right.set(xlabel="wrong training labels predicted", ylabel="clean test accuracy")
    for panel in (left, right):
        panel.legend(frameon=False, fontsize=7)
    return drawing
