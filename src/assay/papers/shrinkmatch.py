"""ShrinkMatch: uncertain samples are learnt from, inside a class space without the rivals of their pseudo label.

Four labels a class, MNIST at 14x14, six thousand images without labels. FixMatch, with soft and aligned targets, uses
the ones whose weak view is predicted with 0.95 or more; ShrinkMatch, from the same weights and on the same draws, adds
those whose pseudo label gets there once its rivals are removed. Two numbers decide beside how many more are used: the
true class of such a sample is the pseudo label or among the removed ones, where the loss says nothing on it, in nine
cases of ten, and so much more often than the pseudo label of an uncertain sample is right. Exact: the class spaces and
the loss are those of a double loop over samples and classes. Test accuracy of the weight average supports, and so does
that of the present weights in the first third, where the average is not at hand. Against the dossier's sizes (28x28,
1,500 steps) image and steps are smaller, and with them the decay of the two running averages, of the weights and of the
share of certain samples that weighs the term: at the paper's 0.999 neither would move in so few steps.
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
from assay.labels import Cutout, FixMatch, FlexMatch, FreeMatch, MixMatch, Shift, ShrinkMatch
from assay.labels.semi_supervised import TRUTH, Consistency, SemiSupervised
from assay.losses import ShrinkLoss, ShrinkResult
from assay.papers.model import Claim, Paper, Scale, Table
from assay.represent import Augmentation
from assay.runtime.inference import predict
from assay.runtime.random import Draws, seeded, torch_rng
from assay.training import State

TAU = 0.95
PER_CLASS = 4
SHRINK, FIX, FLEX, FREE, MIX = "ShrinkMatch", "FixMatch, aligned", "FlexMatch", "FreeMatch", "MixMatch"
KINDS = (3, 10, 100)  # numbers of classes of the exact check

PAPER = Paper(
    slug="shrinkmatch",
    title="Shrinking Class Space for Enhanced Certainty in Semi-Supervised Learning",
    authors="Lihe Yang, Zhen Zhao, Lei Qi, Yu Qiao, Yinghuan Shi, Hengshuang Zhao",
    year=2023,
    arxiv="2308.06777",
    room="labels",
    also=("losses",),
    kind="method",
    implements=(
        "labels.ShrinkMatch",
        "labels.FixMatch",
        "labels.FlexMatch",
        "labels.FreeMatch",
        "labels.MixMatch",
        "losses.ShrinkLoss",
        "losses.shrink_targets",
    ),
    claim="Removing the rivals of an uncertain pseudo label makes it certain, and the sample can be learnt from.",
    headline="CIFAR-10 with 40 labels 94.92 (SimMatch 94.39), CIFAR-100 with 400 labels 64.64 (62.19), STL-10 with 40 "
    "labels 85.98 (FlexMatch 70.85).",
    peers=("LiheYoung/ShrinkMatch", "microsoft/Semi-supervised-learning"),
    baselines=(FIX, FLEX, FREE, MIX),
    shams={
        "lower-threshold": "no class is removed: an uncertain sample keeps the full class space and the weight max q",
        "random-removal": "as many classes are removed, but random ones in place of the strongest rivals",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "pool": 300, "test": 200, "steps": 12, "ema": 0.8, "rows": 60}),
        Scale("claim", 5, {"data": "mnist", "pool": 6000, "test": 2000, "steps": 150, "ema": 0.97, "rows": 2000}),
    ),
)


class _Full(ShrinkMatch):
    def space(self, q: Tensor, state: State) -> ShrinkResult:
        found = super().space(q, state)
        every = torch.ones_like(found.satisfied)
        return replace(
            found, keep=torch.ones_like(found.keep), confidence=q.amax(1), satisfied=every, removed=0 * found.removed
        )


class _Random(ShrinkMatch):
    def space(self, q: Tensor, state: State) -> ShrinkResult:
        found = super().space(q, state)
        order = torch.rand(q.shape, generator=torch_rng(state.seed, "ranks", state.step)).to(q.device)
        order = order.scatter(1, found.top1[:, None], 2.0).argsort(1).argsort(1)
        return replace(found, keep=order >= found.removed[:, None])


RULES: Mapping[str | None, type[ShrinkMatch]] = {None: ShrinkMatch, "lower-threshold": _Full, "random-removal": _Random}


class _Net(nn.Module):
    """Two convolutions and a layer of 64, with batch norm, and the linear head."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        inside = 32 * (-(-side // 4)) ** 2
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(inside, 64), nn.BatchNorm1d(64), nn.ReLU()),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


WEAK = Shift(share=1 / 14)
TURN = Augmentation(scale=(1.0, 1.0), rotation=25.0, flip=False, jitter=0.0, grayscale=0.0)
HOLE = Cutout(share=10 / 28)


def _strong(x: Tensor, draws: Draws) -> Tensor:
    """A shift, a turn of at most 25 degrees, and a hole of 10/28 of the side."""
    return HOLE(TURN(WEAK(x, draws), draws), draws)


@cache
def _images(source: str) -> tuple[Data, Data]:
    """Training and test images, at half the resolution where that is 14x14."""
    parts = [load_data(source, split) for split in ("train", "test")]
    train, test = (d.with_x(F.avg_pool2d(d.x, 2)) if d.shape[1] == 28 else d for d in parts)
    return train, test


def _labelled(data: Data, seed: int) -> Data:
    """PER_CLASS samples of each class."""
    order = torch.randperm(len(data), generator=torch_rng(seed, "labelled"))
    y = data.y[order]
    chosen = [order[y == c][:PER_CLASS] for c in range(len(data.classes))]
    return data[torch.cat(chosen)]


def _spaces(probs: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, float]:
    """The paper's loop over samples and numbers of removed classes: kept classes (b, c) and the mean loss."""
    keep, total = np.ones(probs.shape, bool), 0.0
    for i, q in enumerate(probs):
        if q.max() >= TAU:
            continue
        order = np.argsort(-q, kind="stable")
        for c in range(2, len(q)):
            confidence = q[order[0]] / (q[order[0]] + q[order[c:]].sum())
            if confidence >= TAU or c == len(q) - 1:
                keep[i, order[1:c]] = False
                inside = np.exp(logits[i][keep[i]]).sum()
                weight = q.max() * (confidence >= TAU)
                total += weight * (np.log(inside) - logits[i, order[0]])
                break
    return keep, total / len(probs)


def _drawn(rows: int, seed: int) -> list[dict[str, Any]]:
    """Random predictions, from flat to peaked, and logits, for each number of classes, with what the loop says."""
    found = []
    for c in KINDS:
        g = torch_rng(seed, "rows", c)
        spread = 6 * torch.rand(rows, 1, generator=g, dtype=torch.float64)
        probs = (spread * torch.randn(rows, c, generator=g, dtype=torch.float64)).softmax(1)
        logits = torch.randn(rows, c, generator=g, dtype=torch.float64)
        keep, loss = _spaces(probs.numpy(), logits.numpy())
        found.append({"probs": probs, "logits": logits, "keep": torch.from_numpy(keep), "loss": loss})
    return found


def _exact(method: ShrinkMatch, cases: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Rows whose class space differs from the loop's, and the largest difference of the loss."""
    state = State(seed, Data(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), ("a", "b")), 1)
    wrong, gap, loss = 0, 0.0, ShrinkLoss(TAU)
    for case in cases:
        space = method.space(case["probs"], state)
        wrong += int((space.keep != case["keep"]).any(1).sum())
        gap = max(gap, abs(float(loss.inside(case["logits"], case["probs"], space)) - case["loss"]))
    return {"arm": "exact", "wrong": wrong, "gap": gap}


def _accuracy(model: nn.Module, test: Data) -> float:
    return float((predict(model, test.x).argmax(1) == test.y).float().mean())


def _arm(arm: str, method: SemiSupervised, given: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Test accuracy at the end and at a third of the training, and what the unlabelled samples were used for."""
    log: list[dict[str, float]] = []
    early: list[float] = []

    def watch(models: Mapping[str, nn.Module], state: State) -> None:
        if state.step == state.total // 3:
            early.append(_accuracy(models["model"], given["test"]))
        if state.step == state.total:
            log.extend(state.log)

    model = method.fit(given["start"], given["labelled"], seed=seed, unlabelled=given["pool"], hooks=[watch])
    row: dict[str, Any] = {"arm": arm, "accuracy": _accuracy(model, given["test"]), "early": early[0]}
    if not isinstance(method, Consistency):
        return [row]
    sums = {k: np.array([r[k] for r in log if k in r]) for k in ("seen", "certain", "certain_right")}
    used = sums["certain"].copy()
    if isinstance(method, ShrinkMatch):
        names = ("uncertain", "uncertain_right", "shrunk", "shrunk_right", "contained", "removed")
        more = {k: np.array([r[k] for r in log if k in r]) for k in names}
        used += more["shrunk"]
        unsure, shrunk = max(more["uncertain"].sum(), 1), max(more["shrunk"].sum(), 1)
        row |= {"contained": more["contained"].sum() / shrunk, "right": more["uncertain_right"].sum() / unsure}
        row["excess"] = row["contained"] - row["right"]
        row["removed"] = more["removed"].sum() / shrunk
    row["used"] = used.sum() / sums["seen"].sum()
    parts = zip(np.array_split(used, 12), np.array_split(sums["seen"], 12), strict=True)
    return [row, *({"arm": arm, "part": k, "share": u.sum() / s.sum()} for k, (u, s) in enumerate(parts))]


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The images, the network's start, the loop's results, and the arms that no sham changes."""
    whole, held = _images(scale["data"])
    labelled = _labelled(whole, seed)
    pool = whole.without(labelled.index).limit(scale["pool"], seed=seed)
    with seeded(seed, "init"):
        start = _Net(whole.shape[1], len(whole.classes))
    given: dict[str, Any] = {"start": start, "labelled": labelled, "test": held.limit(scale["test"], seed=seed)}
    given["pool"] = replace(pool, fields={TRUTH: pool.y})
    given["cases"] = _drawn(scale["rows"], seed)
    plan = _plan(scale)
    views: dict[str, Any] = {"strong": _strong, "mu": 4}
    given["rows"] = [
        *_arm(FIX, FixMatch(tau=TAU, soft=True, align=True, **views, **plan), given, seed),
        *_arm(FLEX, FlexMatch(tau=TAU, **views, **plan), given, seed),
        *_arm(FREE, FreeMatch(**views, **plan), given, seed),
        *_arm(MIX, MixMatch(mu=4, rampup=scale["steps"], **plan), given, seed),
    ]
    return given


def _plan(scale: Scale) -> dict[str, Any]:
    return {
        **{"steps": scale["steps"], "ema": scale["ema"], "batch_size": 32, "weak": WEAK},
        **{"optimizer": "sgd", "lr": 0.03, "weight_decay": 5e-4},
    }


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Every arm, and the class spaces against the loop; shams change which classes ShrinkMatch removes."""
    method = RULES[sham](tau=TAU, mu=4, strong=_strong, decay=scale["ema"], **_plan(scale))
    return Table.of([*given["rows"], *_arm(SHRINK, method, given, seed), _exact(method, given["cases"], seed)])


def claims(table: Table) -> list[Claim]:
    """Samples used, where the true class is, and the loop decide; accuracy supports."""
    both = ("lower-threshold", "random-removal")
    return [
        Claim(
            "share of the unlabelled samples that is used, over the training: ShrinkMatch over FixMatch",
            table.gain(SHRINK, FIX, "used"),
            at_least=0.15,
        ),
        Claim(
            "share of the shrunk samples whose true class is the pseudo label or among the removed ones",
            table.per_seed("contained", arm=SHRINK),
            at_least=0.9,
            refuted_by=("random-removal",),
        ),
        Claim(
            "that share over the share of uncertain samples whose pseudo label is right",
            table.per_seed("excess", arm=SHRINK),
            at_least=0.1,
            refuted_by=("lower-threshold",),
        ),
        Claim(
            "random predictions over 3, 10 and 100 classes: rows whose class space differs from that of a double loop",
            table.per_seed("wrong", np.max),
            at_most=0,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "the loss on them is that of the loop: largest difference",
            table.per_seed("gap", np.max),
            at_most=1e-6,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "test accuracy of the weight average: ShrinkMatch over FixMatch",
            table.gain(SHRINK, FIX, "accuracy"),
            at_least=-0.005,
            key=False,
        ),
        Claim(
            "test accuracy after a third of the training: ShrinkMatch over FixMatch",
            table.gain(SHRINK, FIX, "early"),
            at_least=0.01,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """The share of unlabelled samples in use as training goes, and test accuracy of every arm, one dot a seed."""
    drawing = Figure(figsize=(8.8, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for arm in (SHRINK, FIX, FLEX, FREE):
        parts = sorted(set(table.values("part", arm=arm)))
        left.plot(
            [(p + 0.5) / 12 for p in parts], [table.values("share", arm=arm, part=p).mean() for p in parts], label=arm
        )
    left.set(xlabel="part of the training", ylabel="share", ylim=(0, 1.02), title="Unlabelled samples in use")
    left.legend(frameon=False)
    arms = (SHRINK, FIX, FLEX, FREE, MIX)
    accuracy = np.stack([table.per_seed("accuracy", arm=arm) for arm in arms])
    right.plot(accuracy, np.arange(len(arms)), "o", ms=4, color="0.55")
    right.plot(accuracy.mean(1), np.arange(len(arms)), "|", ms=16, mew=2)
    right.set(yticks=range(len(arms)), title="Test accuracy")
    right.set_yticklabels(arms)
    right.invert_yaxis()
    return drawing
