"""LAF: a network forgets a class without a single label, by its representations.

On MNIST the class 0 is forgotten by 200 pairs of steps, with the official code's network and rates and batches of 64
(it has 32). Key: the class is no longer recognised and the others are, which takes both losses and the right forget
set: without the alignment loss every class is lost, the forgotten one too, so that this sham refutes what is said of
the others alone. Exact: losses by hand, the head untouched, labels unread. Support: a classifier trained on 200 labels
afterwards, and wrong labels forgotten. What the alignment loss does alone is in the figure.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import Draws, derive, seeded, torch_rng
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import LAF, Retrain, forget_set, laf_alignment_loss, laf_extractor_loss, supervised_repair
from assay.unlearn.laf import bounded, head_parameters
from assay.unlearn.random_label import random_labels
from assay.unlearn.representation_vae import RepresentationVAE

FORGOTTEN = 0
FEATURE = "7"
NOISE = 0.2

PAPER = Paper(
    slug="laf",
    title="Label-Agnostic Forgetting: A Supervision-Free Unlearning in Deep Models",
    authors="Shaofei Shen, Chenhao Zhang, Yawen Zhao, Alina Bialkowski, Weitong Tony Chen, Miao Xu",
    year=2024,
    arxiv="2404.00506",
    room="unlearn",
    kind="method",
    implements=(
        "unlearn.LAF",
        "unlearn.RepresentationVAE",
        "unlearn.laf_extractor_loss",
        "unlearn.laf_alignment_loss",
        "unlearn.supervised_repair",
    ),
    claim="Two autoencoders of representations and an alignment loss make a network forget a class without labels.",
    headline="MNIST, class 0: accuracy 0.1 to 0.3% on it and 98 to 99% on the others, without labels.",
    peers=("ShaofeiShen768/LAF",),
    shams={
        "no-alignment": "the step on the alignment loss is a second one on the extractor loss, at the same rate",
        "random-forget": "a random subset of the training data, as large as the class, is forgotten in its place",
    },
    baselines=("retrain",),
    scales=(
        Scale(
            "smoke",
            1,
            {"data": "digits", "train": 300, "test": 300, "side": 8, "widths": (4, 8), "dim": 32, "epochs": 10}
            | {"steps": 5, "labels": 50},
        ),
        Scale(
            "claim",
            5,
            {"data": "mnist", "train": 6000, "test": 2000, "side": 28, "widths": (16, 32), "dim": 256, "epochs": 2}
            | {"steps": 200, "labels": 200},
        ),
        Scale(
            "gpu",
            5,
            {"data": "cifar10", "train": 50_000, "test": 10_000, "side": 32, "widths": (64, 128), "dim": 256}
            | {"epochs": 20, "steps": 4000, "labels": 2000},
        ),
    ),
)


class _NoAlignment(LAF):
    """Both steps of a pair are on the extractor loss."""

    def loss(
        self,
        second: bool,
        vaes: tuple[RepresentationVAE, RepresentationVAE],
        e: dict[str, Tensor],
        old: dict[str, Tensor],
        control: bool,
    ) -> Tensor:
        return super().loss(False, vaes, e, old, control)


class _AlignmentAlone(LAF):
    """Both steps of a pair are on the alignment loss."""

    def loss(
        self,
        second: bool,
        vaes: tuple[RepresentationVAE, RepresentationVAE],
        e: dict[str, Tensor],
        old: dict[str, Tensor],
        control: bool,
    ) -> Tensor:
        return super().loss(True, vaes, e, old, control)


@cache
def _images(source: str, side: int) -> tuple[Data, Data]:
    parts = (load_data(source, "train"), load_data(source, "test"))
    train, test = (p.with_x(F.adaptive_avg_pool2d(p.x, side)) if p.shape[-1] != side else p for p in parts)
    return train, test


def _net(shape: tuple[int, ...], widths: tuple[int, int], dim: int, seed: int) -> nn.Module:
    """The paper's: two 5x5 convolutions with pooling, a linear layer to the representation, two more to the logits."""
    a, b = widths
    with seeded(seed, "init"):
        return nn.Sequential(
            *(nn.Conv2d(shape[0], a, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(b * (shape[1] // 4) * (shape[2] // 4), dim), nn.Linear(dim, dim // 2), nn.Linear(dim // 2, 10)),
        )


def _subject(scale: Scale, train: Data, test: Data, seed: int) -> Subject:
    recipe = Supervised(epochs=scale["epochs"], lr=1e-3, weight_decay=1e-4)
    model = recipe.fit(_net(train.shape, scale["widths"], scale["dim"], seed), train, seed=seed)
    return Subject(model, test, train, holdout=test[:2], recipe=recipe)


def _unlearned(
    scale: Scale, subject: Subject, forget: Data, retain: Data, seed: int, cls: type[LAF] = LAF, **options: Any
) -> nn.Module:
    method = cls(feature=FEATURE, batch_size=64, **{"steps": scale["steps"], **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # at smoke scale the autoencoders learn for a few steps alone
        return method.forget(subject, forget, retain, seed=seed)


def _right(model: nn.Module, data: Data) -> float:
    return float((predict(model, data.x).argmax(1) == data.y).double().mean())


def _row(arm: str, model: nn.Module, test: Data) -> dict[str, Any]:
    """Test accuracy on the forgotten class and on the others, and the mean probability of the class on its own."""
    gone = test.y == FORGOTTEN
    sure = float(predict(model, test.x[gone]).double().softmax(1)[:, FORGOTTEN].mean())
    return {"arm": arm, "forgotten": _right(model, test[gone]), "others": _right(model, test[~gone]), "sure": sure}


def _differing(a: nn.Module, b: nn.Module, names: list[str] | None = None) -> int:
    """How many parameters' entries are not bit for bit the same, of those named."""
    other = dict(b.named_parameters())
    return sum(int((p != other[k]).sum()) for k, p in a.named_parameters() if names is None or k in names)


def _by_hand(seed: int) -> dict[str, float]:
    """Both losses on representations of two and three entries against NumPy, and the range of the bounded error."""
    g = torch_rng(seed, "hand")
    now, before, lost, lost_before = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (2, 2, 4, 4))

    def apart(a: Tensor, b: Tensor) -> np.ndarray:
        u, v = a.numpy(), b.numpy()
        return 1 - (u * v).sum(1) / np.sqrt((u**2).sum(1) * (v**2).sum(1))

    near, far = apart(now, before), apart(lost, lost_before)
    aligned = np.log(np.exp(near) / np.exp(far / 5).sum()).mean()
    errors = [np.square(a.numpy()).sum(1) for a in (now, lost)]
    kept, climbed = (np.exp(u / (u + 1)).mean() for u in errors)
    found = laf_alignment_loss(now, before, lost, lost_before, 5.0)
    extracted = laf_extractor_loss(*(torch.from_numpy(u) for u in errors))
    bound = bounded(torch.logspace(-12, 12, 200, dtype=torch.float64))
    return {
        "alignment": abs(float(found) - aligned),
        "extractor": abs(float(extracted) - (kept - climbed)),
        "outside": float(((bound < 1) | (bound > np.e)).sum()),
    }


def _labels_unread(scale: Scale, given: dict[str, Any], seed: int) -> int:
    """Entries that differ when both sets have random labels (five pairs of steps)."""
    forget, retain, few = given["forget"], given["retain"], {"steps": 5, "vae_epochs": 2}
    draws = [
        torch.randint(10, (len(p),), generator=torch_rng(seed, "garbage", k)) for k, p in enumerate((forget, retain))
    ]
    first = _unlearned(scale, given["subject"], forget, retain, seed, LAF, **few)
    second = _unlearned(scale, given["subject"], forget.with_y(draws[0]), retain.with_y(draws[1]), seed, LAF, **few)
    return _differing(first, second)


def _noisy(scale: Scale, train: Data, test: Data, seed: int) -> list[dict[str, Any]]:
    """Test accuracy after training with a fifth of the labels of 0 to 4 wrong, and after these are forgotten."""
    draws = Draws(seed, "noise", train.index)
    wrong = (train.y < 5) & (draws.uniform(1)[:, 0] < NOISE)
    spoiled = train.with_y(torch.where(wrong, random_labels(train.y, 10, draws, "exclude"), train.y))
    subject = _subject(scale, spoiled, test, derive(seed, "noisy"))
    after = _unlearned(scale, subject, spoiled[wrong], spoiled[~wrong], seed)
    models = {"noisy, original": subject.model, "noisy, laf": after}
    return [{"arm": arm, "accuracy": _right(model, test)} for arm, model in models.items()]


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The trained network, what is forgotten, and the arms that no sham changes."""
    whole, held = _images(scale["data"], scale["side"])
    train, test = whole.limit(scale["train"], seed=seed), held.limit(scale["test"], seed=seed)
    subject = _subject(scale, train, test, seed)
    forget, retain = forget_set(train, f"class={FORGOTTEN}")
    given: dict[str, Any] = {"subject": subject, "forget": forget, "retain": retain, "train": train}
    retrained = Retrain().forget(subject, forget, retain, seed=seed)
    alone = _unlearned(scale, subject, forget, retain, seed, _AlignmentAlone)
    given["rows"] = [
        _row("original", subject.model, test),
        _row("retrain", retrained, test),
        _row("alignment alone", alone, test),
        *_noisy(scale, train, test, seed),
        {"arm": "by hand", **_by_hand(seed), "labels": _labels_unread(scale, given, seed)},
    ]
    given["laf"] = _forgotten(scale, given, LAF, forget, seed)
    return given


def _forgotten(scale: Scale, given: dict[str, Any], cls: type[LAF], forget: Data, seed: int) -> list[dict[str, Any]]:
    """LAF and LAF+R, with how much of the head moved before it was repaired."""
    subject, train = given["subject"], given["train"]
    model = _unlearned(scale, subject, forget, train.without(forget.index), seed, cls)
    head = head_parameters(model, train.x[:1], FEATURE)
    labelled = given["retain"].limit(scale["labels"], seed=seed)
    repaired = supervised_repair(model, labelled, feature=FEATURE, epochs=5, seed=seed)
    moved = _differing(subject.model, model, head)
    return [{**_row("laf", model, subject.test), "head": moved}, _row("laf, repaired", repaired, subject.test)]


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """LAF, and LAF with a few labels after it."""
    own = given["laf"]
    if sham == "no-alignment":
        own = _forgotten(scale, given, _NoAlignment, given["forget"], seed)
    elif sham == "random-forget":
        drawn = given["train"].limit(len(given["forget"]), seed=derive(seed, "random"))
        own = _forgotten(scale, given, LAF, drawn, seed)
    return Table.of([*given["rows"], *own])


def claims(table: Table) -> list[Claim]:
    """The forgotten class, the others and the exact checks decide; labels, noise and the single loss support."""
    others = table.per_seed("others", arm="laf") / table.per_seed("others", arm="original")
    return [
        Claim(
            "test accuracy on the forgotten class",
            table.per_seed("forgotten", arm="laf"),
            at_most=0.15,
            refuted_by=("random-forget",),
        ),
        Claim(
            "test accuracy on the other classes over that of the original",
            others,
            at_least=0.9,
            refuted_by=("no-alignment",),
        ),
        *(
            Claim(text, table.per_seed(column, np.max), at_most=bound, rule="exact")
            for text, column, bound in (
                ("the extractor loss is what NumPy gives: difference", "extractor", 1e-12),
                ("the alignment loss is what NumPy gives: difference", "alignment", 1e-12),
                ("exp(u / (u + 1)) is in [1, e] for u from 1e-12 to 1e12: how many are not", "outside", 0),
                ("the classifier is bit for bit what it was: entries that differ", "head", 0),
                ("random labels of both sets change nothing: entries that differ", "labels", 0),
            )
        ),
        Claim(
            "the original network knows the class: test accuracy on it",
            table.per_seed("forgotten", arm="original"),
            at_least=0.95,
            key=False,
        ),
        Claim(
            "with 200 labels for the classifier afterwards, test accuracy on the others is within 0.02 of retraining",
            table.gain("laf, repaired", "retrain", "others"),
            at_least=-0.02,
            key=False,
        ),
        Claim(
            "wrong labels forgotten: gain of test accuracy",
            table.gain("noisy, laf", "noisy, original", "accuracy"),
            at_least=0.01,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Test accuracy on the forgotten class and on the others, by method."""
    drawing = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = drawing.subplots()
    arms = ("original", "alignment alone", "laf", "laf, repaired", "retrain")
    for k, column in enumerate(("forgotten", "others")):
        heights = [table.per_seed(column, arm=arm).mean() for arm in arms]
        axis.bar(np.arange(len(arms)) + 0.36 * k - 0.18, heights, 0.34, label=column)
    axis.set_xticks(range(len(arms)), arms)
    axis.set(ylabel="test accuracy", title="The class 0 forgotten without labels", ylim=(0, 1))
    axis.legend(frameon=False)
    return drawing
