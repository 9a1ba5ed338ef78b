"""Early-learning regularisation: a network kept near its own early predictions does not memorise wrong labels.

Images whose labels are redrawn uniformly with probability 0.6. Cross-entropy first fits the clean pattern and then the
wrong labels; with the regulariser it predicts the right labels and not the wrong ones. That difference decides: a
network that collapses to one class predicts neither. Exact: the term's gradient is its closed form over a per-sample
table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.labels import ELR, ELRPlus
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import seeded, torch_rng
from assay.training import State, Supervised, Trainer

NOISE = 0.6
LAST = 5
CE, MILD, STRONG, PLUS = "cross-entropy", "ELR(0.7, 3)", "ELR(0.9, 7)", "ELR+(0.9, 7)"

PAPER = Paper(
    slug="elr",
    title="Early-Learning Regularization Prevents Memorization of Noisy Labels",
    authors="Sheng Liu, Jonathan Niles-Weed, Narges Razavian, Carlos Fernandez-Granda",
    year=2020,
    arxiv="2007.00151",
    room="labels",
    also=("losses",),
    kind="method",
    implements=("labels.ELR", "labels.ELRPlus"),
    claim="Under 60% symmetric label noise ELR keeps the accuracy of early learning that cross-entropy loses.",
    headline="CIFAR-10, 60% symmetric noise, ResNet-34: accuracy from about 74 to about 86%, wrong labels not learnt.",
    shams={
        "positional-targets": "the running averages are indexed by the position in the batch, not by the sample",
        "wrong-sign": "the regulariser is subtracted: agreement with the running average is minimised",
    },
    baselines=(CE,),
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 600, "test": 300, "hidden": 64, "epochs": 5, "every": 1}),
        Scale("claim", 5, {"data": "mnist", "train": 5000, "test": 2000, "hidden": 256, "epochs": 40, "every": 2}),
    ),
)


class _Positional(ELR):
    def term(self, logits: Tensor, index: Tensor, state: State) -> Tensor:
        return super().term(logits, state.data.index[: len(index)], state)


class _WrongSign(ELR):
    def term(self, logits: Tensor, index: Tensor, state: State) -> Tensor:
        return -super().term(logits, index, state)


RULES: Mapping[str | None, type[ELR]] = {None: ELR, "positional-targets": _Positional, "wrong-sign": _WrongSign}


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _noisy(y: Tensor, classes: int, seed: int) -> Tensor:
    """Labels of which a share NOISE is drawn anew from all classes (the true one included)."""
    g = torch_rng(seed, "noise")
    drawn = torch.randint(classes, y.shape, generator=g)
    return torch.where(torch.rand(len(y), generator=g) < NOISE, drawn, y)


def _curve(scale: Scale, given: Mapping[str, Any], arm: str, method: Trainer, seed: int) -> list[dict[str, Any]]:
    """Test accuracy and the shares of right and wrong labels predicted, as training goes; then the end and the drop.

    The end is the mean of the last LAST measurements: at a constant learning rate single epochs go up and down.
    """
    data, test = given["noisy"], given["test"]
    right = data.y == given["true"]
    per_epoch = method.plan().total(len(data)) // scale["epochs"]
    rows: list[dict[str, Any]] = []

    def measure(models: Mapping[str, nn.Module], state: State) -> None:
        if state.step % (per_epoch * scale["every"]):
            return
        nets = list(models.values())
        accuracy = (_mean_logits(nets, test.x).argmax(1) == test.y).float().mean().item()
        fitted = (_mean_logits(nets, data.x).argmax(1) == data.y).float()
        shares = {"learnt": fitted[right].mean().item(), "memorised": fitted[~right].mean().item()}
        rows.append({"arm": arm, "epoch": state.step // per_epoch, "accuracy": accuracy, **shares})

    method.fit(given["start"], data, seed=seed, hooks=[measure])
    last = {k: float(np.mean([r[k] for r in rows[-LAST:]])) for k in ("accuracy", "learnt", "memorised")}
    best = max(r["accuracy"] for r in rows)
    end = {
        "final": last["accuracy"],
        "kept": last["memorised"],
        "told_apart": last["learnt"] - last["memorised"],
        "drop": best - last["accuracy"],
    }
    return [*rows, {"arm": arm, **end}]


def _mean_logits(nets: Sequence[nn.Module], x: Tensor) -> Tensor:
    return torch.stack([predict(net, x) for net in nets]).mean(0)


def _plan(scale: Scale) -> dict[str, Any]:
    return {"epochs": scale["epochs"], "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "schedule": "constant"}


def _plus(scale: Scale, n: int) -> ELRPlus:
    """ELR+ whose weight averages settle, as the authors', at half of the training."""
    plan = _plan(scale)
    return ELRPlus(beta=0.9, strength=7.0, average_steps=Supervised(**plan).plan().total(n) // 2, **plan)


def gradient_gap(method: ELR, seed: int) -> float:
    """Largest difference of the term's gradient from -lambda p (t - <t, p>) / (1 - <t, p>) / b, in float64.

    Three epochs of shuffled batches over 40 samples with logits of their own; t is kept here, one row a sample.
    """
    n, c, b = 40, 6, 16
    g = torch_rng(seed, "gradient")
    y = torch.zeros(n, dtype=torch.int64)
    data = Data(torch.zeros(n, 1), y, tuple(map(str, range(c))), index=3 * torch.arange(n) + 7)
    state, table, worst = State(seed, data, 9), torch.zeros(n, c, dtype=torch.float64), 0.0
    for _ in range(3):
        for rows in torch.randperm(n, generator=g).split(b):
            z = torch.randn(len(rows), c, generator=g, dtype=torch.float64).requires_grad_()
            (gradient,) = torch.autograd.grad(method.term(z, data.index[rows], state), z)
            p = z.detach().softmax(1)
            table[rows] = t = method.beta * table[rows] + (1 - method.beta) * p
            inner = (t * p).sum(1, keepdim=True)
            expected = -method.strength * p * (t - inner) / (1 - inner) / len(rows)
            worst = max(worst, float((gradient - expected).abs().max()))
    return worst


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The images with noisy labels, the network's start, and the arms that no sham changes."""
    whole, held = _images(scale["data"])
    train, test = whole.limit(scale["train"], seed=seed), held.limit(scale["test"], seed=seed)
    classes = len(train.classes)
    with seeded(seed, "init"):
        start = MLP(train.shape, classes, (scale["hidden"], scale["hidden"]))
    given = {"noisy": train.with_y(_noisy(train.y, classes, seed)), "true": train.y, "test": test, "start": start}
    given["rows"] = [
        *_curve(scale, given, CE, Supervised(**_plan(scale)), seed),
        *_curve(scale, given, MILD, ELR(**_plan(scale)), seed),
        *_curve(scale, given, PLUS, _plus(scale, len(train)), seed),
    ]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Curves of all arms and the error of the gradient; shams change the stronger ELR."""
    method = RULES[sham](beta=0.9, strength=7.0, **_plan(scale))
    rows = [*given["rows"], *_curve(scale, given, STRONG, method, seed)]
    return Table.of([*rows, {"arm": "gradient", "gap": gradient_gap(method, seed)}])


def claims(table: Table) -> list[Claim]:
    """Accuracy, labels told apart and the gradient decide; the other settings, shares and drops support."""
    both = ("positional-targets", "wrong-sign")
    return [
        Claim(
            "final test accuracy of ELR(0.9, 7) exceeds that of cross-entropy by 0.25 or more in every seed",
            table.gain(STRONG, CE, "final"),
            at_least=0.25,
            rule="k-of-n",
            k=5,
            refuted_by=both,
        ),
        Claim(
            "ELR(0.9, 7) predicts right labels and not wrong ones: share of right less share of wrong at the end",
            table.per_seed("told_apart", arm=STRONG),
            at_least=0.6,
            refuted_by=both,
        ),
        Claim(
            "share of wrong labels that cross-entropy predicts at the end is at least 0.5",
            table.per_seed("kept", arm=CE),
            at_least=0.5,
        ),
        Claim(
            "the term's gradient is its closed form over a table with one row a sample: largest difference",
            table.per_seed("gap", np.max),
            at_most=1e-6,
            rule="exact",
            refuted_by=both,
        ),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    wrong = "share of wrong labels that ELR(0.9, 7) predicts at the end is at most 0.25"
    kept = "test accuracy of ELR(0.9, 7) ends at most 0.05 below its best"
    lost = "test accuracy of cross-entropy ends 0.2 or more below its best"
    return [
        Claim(wrong, table.per_seed("kept", arm=STRONG), at_most=0.25, key=False),
        *(
            Claim(
                f"final test accuracy of {arm} exceeds that of cross-entropy by 0.25 or more",
                table.gain(arm, CE, "final"),
                at_least=0.25,
                key=False,
            )
            for arm in (MILD, PLUS)
        ),
        Claim(kept, table.per_seed("drop", arm=STRONG), at_most=0.05, key=False),
        Claim(lost, table.per_seed("drop", arm=CE), at_least=0.2, key=False),
    ]


def figure(table: Table) -> Figure:
    """Test accuracy and the memorised share over epochs, one line an arm (means over seeds)."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for arm in (CE, MILD, STRONG, PLUS):
        epochs = sorted(set(table.values("epoch", arm=arm)))
        for axes, column in ((left, "accuracy"), (right, "memorised")):
            axes.plot(epochs, [table.values(column, arm=arm, epoch=e).mean() for e in epochs], label=arm)
    left.set(xlabel="epoch", ylabel="test accuracy", ylim=(0, 1), title="Accuracy on clean test labels")
    right.set(xlabel="epoch", ylabel="share", ylim=(0, 1), title="Wrong labels that are predicted")
    left.legend(frameon=False)
    return drawing
