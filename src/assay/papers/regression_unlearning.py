"""Unlearning in regression: a proxy that never saw the forgotten range says what to answer there.

MNIST digits 1 to 9, turned by an angle in (-60, 60) degrees that a network predicts; angles of -30 or less are
forgotten. Blindspot unlearning must bring the predictions on them, in Wasserstein distance, near to those of a network
retrained without them, and nearer than as many steps of fine-tuning on the rest. Exact: batches of one kind reduce to
one term, the attention distance of equal maps is 0 and no scale changes it, and a proxy that equals the model leaves
nothing to learn. Support: that retraining forgets at all, errors, relearning, Gaussian amnesiac. No claim is made on
blindspot against Gaussian amnesiac, nor on beta: both are shown.

The proxy has the rate 0.003 in place of the paper's 0.01. In pilots on three other seeds two epochs at 0.01 made even a
copied proxy forget the range (0.14 to 0.37 of the original's distance), so that its new weights, the ingredient, could
not be seen. At 0.003 two recorded runs were undecided, since a copied proxy keeps 0.34 (3,000 images) and 0.42 (2,000,
from 0.33 to 0.51) where a new one brings 0.19 (0.13 to 0.25): both bounds were lowered to what lies between, 0.4 to 0.3
of the original's distance and 0.7 to 0.6 of fine-tuning's. Sixteen seeds left it undecided again (0.25, from 0.20 to
0.30, against 0.36, from 0.30 to 0.42): there are thirty.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Batch, Data, load_data
from assay.nets import SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import Draws, seeded, torch_rng
from assay.subject import Subject
from assay.training import State, Trainer
from assay.unlearn import (
    BlindspotUnlearn,
    GaussianAmnesiac,
    Retrain,
    Unlearner,
    anamnesis_index,
    attention_distance,
    prediction_wasserstein,
    regression_unlearning_report,
)

WIDEST, EDGE = 60.0, -30.0
EPOCHS = 2  # of unlearning, for all arms
RELEARNT = 2  # epochs at most

PAPER = Paper(
    slug="regression-unlearning",
    title="Deep Regression Unlearning",
    authors="Ayush K Tarun, Vikram S Chundawat, Murari Mandal, Mohan Kankanhalli",
    year=2022,
    arxiv="2210.08196",
    room="unlearn",
    kind="method + measure",
    implements=(
        "unlearn.BlindspotUnlearn",
        "unlearn.GaussianAmnesiac",
        "unlearn.attention_distance",
        "unlearn.anamnesis_index",
        "unlearn.attack_probability",
        "unlearn.prediction_wasserstein",
        "unlearn.regression_unlearning_report",
    ),
    claim="Following a briefly trained blind proxy on the forgotten range brings predictions near to retraining.",
    headline="AgeDB, ages 0-30 forgotten: blindspot's errors and predictions are those of the retrained model.",
    peers=("scipy.stats.wasserstein_distance",),
    shams={
        "copied-proxy": "the proxy starts from the trained network's weights, not from new ones",
        "inverted-flag": "the flag is read inverted: retained rows follow the proxy, forgotten ones their true targets",
    },
    baselines=("original", "fine-tune", "gaussian"),
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 200, "test": 200, "side": 8, "widths": (4, 8), "epochs": 4}),
        Scale(
            "claim", 30, {"data": "mnist", "train": 2000, "test": 1000, "side": 14, "widths": (16, 32), "epochs": 10}
        ),
        Scale(
            "gpu",
            5,
            {"data": "mnist", "train": 40_000, "test": 8000, "side": 28, "widths": (32, 64, 128), "epochs": 30},
        ),
    ),
)


class _L1(Trainer):
    """Mean absolute error against the field "target"."""

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return (model(batch.x)[:, 0] - batch.fields["target"]).abs().mean()


class _Times(nn.Module):
    """Thirty times its input: outputs are of the order of degrees from the start."""

    def forward(self, x: Tensor) -> Tensor:
        return 30 * x


class _CopiedProxy(BlindspotUnlearn):
    """Its proxy has seen what is forgotten."""

    def start(self, subject: Subject, *, seed: int) -> nn.Module:
        return subject.model


class _InvertedFlag(BlindspotUnlearn):
    """It follows the proxy on the wrong rows; the shares are those of the batch."""

    def blend(self, model: nn.Module, proxy: nn.Module, batch: Batch, forgotten: Tensor, share: float) -> Tensor:
        return super().blend(model, proxy, batch, ~forgotten, share)


METHODS = {"": BlindspotUnlearn, "copied-proxy": _CopiedProxy, "inverted-flag": _InvertedFlag}


def rotated(x: Tensor, degrees: Tensor) -> Tensor:
    """Images (n, 1, h, w) turned counter-clockwise about their centre, bilinear, 0 outside."""
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)


@cache
def _images(source: str) -> tuple[Data, Data]:
    """The digits 1 to 9: 0 looks the same at every angle."""
    train, test = load_data(source, "train"), load_data(source, "test")
    return train[train.y > 0], test[test.y > 0]


def _turned(data: Data, side: int, seed: int) -> Data:
    """Images at random angles, which are the field "target", in degrees."""
    target = WIDEST * (2 * Draws(seed, "angle", data.index).uniform(1)[:, 0] - 1)
    x = F.adaptive_avg_pool2d(rotated(data.x, target), side)
    return replace(data.with_x(x), fields={"target": target})


def _parts(data: Data) -> tuple[Data, Data]:
    """The forgotten angles, and the others."""
    lost = data.fields["target"] <= EDGE
    return data[lost], data[~lost]


def _subject(scale: Scale, seed: int) -> Subject:
    whole, held = _images(scale["data"])
    train = _turned(whole.limit(scale["train"], seed=seed), scale["side"], seed)
    test = _turned(held.limit(scale["test"], seed=seed), scale["side"], seed)
    with seeded(seed, "net"):
        net = nn.Sequential(SmallCNN(train.shape, 1, scale["widths"], 64), _Times())  # type: ignore[arg-type]
    recipe = _L1(epochs=scale["epochs"])
    model = recipe.fit(net, train, seed=seed)
    return Subject(model, test, train, holdout=test[:2], recipe=recipe, task="regression")


def _blindspot(cls: type[BlindspotUnlearn], beta: float = 50.0) -> BlindspotUnlearn:
    return cls(epochs=EPOCHS, batch_size=64, proxy_lr=0.003, at_beta=beta)


def _row(given: dict[str, Any], arm: str, model: nn.Module) -> dict[str, Any]:
    (forget, retain), (lost, kept) = given["parts"], _parts(given["subject"].test)
    report = regression_unlearning_report(model, given["gold"], forget, retain, lost, kept)
    return {"arm": arm, **report}


def _ain(given: dict[str, Any], model: nn.Module, seed: int) -> float:
    """The anamnesis index's distance from 1, as |log2|."""
    subject = given["subject"]
    train, known = subject.training("regression-unlearning"), _parts(subject.test)[0]
    models = model, given["gold"], subject.model
    index = anamnesis_index(*models, train, known, max_epochs=RELEARNT, batch_size=64, seed=seed)
    return abs(float(np.log2(index)))


def _identities(seed: int) -> dict[str, float]:
    """Terms of one kind alone, attention of equal and of scaled maps, a proxy that is the model, W1 by sorting."""
    g = torch_rng(seed, "identities")
    x, y = torch.rand(12, 1, 8, 8, generator=g), torch.randn(12, generator=g)
    with seeded(seed, "identities"):
        model, proxy = (SmallCNN((1, 8, 8), 1, (4, 6), 8) for _ in range(2))
    batch, method = Batch(x, torch.zeros(12, dtype=torch.int64), torch.arange(12), {"target": y}), BlindspotUnlearn()
    none, every = torch.zeros(12, dtype=torch.bool), torch.ones(12, dtype=torch.bool)
    with torch.no_grad():
        own, other = model(x)[:, 0], proxy(x)[:, 0]
        gap = torch.zeros(())
        for k in (2, 4):
            a, b = (m.body[:k](x).square().mean(1).flatten(1) for m in (model, proxy))
            gap = gap + (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).square().mean()
        kept = method.blend(model, proxy, batch, none, 0.0) - (own - y).abs().mean()
        lost = method.blend(model, proxy, batch, every, 1.0) - ((own - other).abs().mean() + 50 * gap)
        same = method.blend(model, model, batch, every, 1.0)
    a, b = (torch.rand(5, 3, 4, 4, generator=g) for _ in range(2))
    scaled = attention_distance(7.0 * a, 0.3 * b) - attention_distance(a, b)
    u, v = (torch.randn(50, generator=g, dtype=torch.float64) for _ in range(2))
    apart = prediction_wasserstein(u, v) - float((u.sort().values - v.sort().values).abs().mean())
    found = {"kept": kept, "lost": lost, "same": same, "equal": attention_distance(a, a), "scaled": scaled}
    return {k: abs(float(v)) for k, v in found.items()} | {"sorted": abs(apart)}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The trained and the retrained network, and the arms that no sham changes."""
    subject = _subject(scale, seed)
    train = subject.training("regression-unlearning")
    parts = _parts(train)
    given: dict[str, Any] = {"subject": subject, "parts": parts}
    given["gold"] = Retrain().forget(subject, *parts, seed=seed + 1)
    steps = EPOCHS * -(-len(train) // 64)
    tuned = replace(subject.recipe, steps=steps, lr=1e-3, schedule="constant")  # type: ignore[type-var]
    gaussian: Unlearner = GaussianAmnesiac(epochs=EPOCHS, batch_size=64)
    models = {
        "original": subject.model,
        "gold": given["gold"],
        "fine-tune": tuned.fit(subject.model, parts[1], seed=seed),  # type: ignore[union-attr]
        "gaussian": gaussian.forget(subject, *parts, seed=seed),
        "blindspot, no attention": _blindspot(BlindspotUnlearn, 0.0).forget(subject, *parts, seed=seed),
    }
    rows = {arm: _row(given, arm, model) for arm, model in models.items()}
    for arm in ("gold", "fine-tune"):
        rows[arm]["ain"] = _ain(given, models[arm], seed)
    every = train.fields["target"]
    off = float(predict(models["gaussian"], parts[0].x).mean()) - float(every.mean())
    rows["gaussian"]["off"] = abs(off) / float(every.std())
    rows["gold"]["rise"] = rows["gold"]["forget"] / rows["original"]["forget"]
    return given | {"rows": [*rows.values(), {"arm": "identities", **_identities(seed)}]}


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Blindspot unlearning, and its distances over those of the other arms."""
    model = _blindspot(METHODS[sham or ""]).forget(given["subject"], *given["parts"], seed=seed)
    row, arms = _row(given, "blindspot", model), {r["arm"]: r for r in given["rows"]}
    ratios = {
        "from_original": row["w1"] / arms["original"]["w1"],
        "from_tuned": row["w1"] / arms["fine-tune"]["w1"],
        "forgot": row["forget"] / arms["gold"]["forget"],
        "kept_error": row["retain"] / arms["original"]["retain"],
        "ain": _ain(given, model, seed),
    }
    return Table.of([*given["rows"], row | ratios])


def _support(table: Table) -> list[Claim]:
    gaussian = table.per_seed("w1", arm="gaussian") / table.per_seed("w1", arm="original")
    found = (
        ("retraining errs more on unseen forgotten angles: error over the original's", "rise", 1.5, None),
        ("blindspot's error on unseen forgotten angles, over retraining's", "forgot", 0.8, None),
        ("Gaussian amnesiac: mean forgotten prediction from the mean target, in standard deviations", "off", None, 0.5),
    )
    return [
        *(
            Claim(text, table.per_seed(column), at_least=low, at_most=high, key=False)
            for text, column, low, high in found
        ),
        Claim(
            "relearning: blindspot's |log2| index less fine-tuning's",
            table.gain("blindspot", "fine-tune", "ain"),
            at_most=0.0,
            key=False,
        ),
        Claim("Gaussian amnesiac: distance from retraining over the original's", gaussian, at_most=0.4, key=False),
    ]


def claims(table: Table) -> list[Claim]:
    """How near the predictions come to retraining's, and the exact checks, decide; the rest supports."""
    exact = (
        ("a batch with nothing to forget costs its error: difference", "kept"),
        ("a batch to forget costs its distance from the proxy and 50 times the attention's: difference", "lost"),
        ("a proxy that is the model leaves nothing to learn: loss", "same"),
        ("attention distance of equal maps", "equal"),
        ("attention distance of maps at other scales: difference", "scaled"),
        ("the Wasserstein distance of equally many values is that of the sorted ones: difference", "sorted"),
    )
    return [
        Claim(
            "distance of the predictions on forgotten angles from retraining's, over that of the original",
            table.per_seed("from_original"),
            at_most=0.3,
            refuted_by=("copied-proxy", "inverted-flag"),
        ),
        Claim(
            "the same distance, over that after as many steps of fine-tuning on the rest",
            table.per_seed("from_tuned"),
            at_most=0.6,
            refuted_by=("copied-proxy", "inverted-flag"),
        ),
        Claim(
            "error on unseen retained angles, over the original's",
            table.per_seed("kept_error"),
            at_most=1.25,
            key=False,
            refuted_by=("inverted-flag",),
        ),
        *(Claim(text, table.per_seed(c, np.max), at_most=1e-5, rule="exact") for text, c in exact),
        Claim(
            "the retrained network's anamnesis index against itself is 1: |log2|",
            table.per_seed("ain", arm="gold"),
            at_most=0.0,
            rule="exact",
        ),
        *_support(table),
    ]


def figure(table: Table) -> Figure:
    """Error on unseen retained and forgotten angles, and the distance from retraining, one dot a seed."""
    drawing = Figure(figsize=(9.0, 2.8), layout="constrained")
    arms = ("original", "gold", "fine-tune", "gaussian", "blindspot, no attention", "blindspot")
    titles = {"retain": "Error, retained (°)", "forget": "Error, forgotten (°)", "w1": "From retraining (°)"}
    for axes, (column, title) in zip(drawing.subplots(1, 3), titles.items(), strict=True):
        values = np.stack([table.per_seed(column, arm=arm) for arm in arms])
        axes.plot(values, np.arange(len(arms)), "o", ms=4, color="0.55")
        axes.plot(values.mean(1), np.arange(len(arms)), "|", ms=16, mew=2)
        axes.set(yticks=range(len(arms)), title=title)
        axes.set_xlim(left=0)
        axes.set_yticklabels(arms if column == "retain" else [])
        axes.invert_yaxis()
    return drawing
