"""Pervasive label errors: confident learning finds wrong test labels, people confirm them, and rankings change.

The workflow is followed link by link: suspects from out-of-sample probabilities under known flips, the rule's
definition sample by sample in exact fractions, the released human votes and lists for the test sets of CIFAR-10 and
MNIST, the errors that people confirmed as a model of ours ranks them, and accuracy over prevalence. How many suspects
are right depends on the probabilities: with half the images F1 only just reaches its bound.
"""

from __future__ import annotations

import json
import os
import warnings
from fractions import Fraction
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score

from assay.data import Data, load_data
from assay.labels import (
    ConfidentLearning,
    consensus_from_votes,
    cross_probabilities,
    crossover_prevalence,
    label_quality,
    noise_prevalence_curve,
)
from assay.nets import SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import numpy_rng, seeded
from assay.subject import fresh
from assay.training import Supervised

FLIPPED = 0.1
FOLDS = 5
PROBLEMS = 50
RELEASED = {"cifar10": 54, "mnist": 15}  # confirmed errors among the judged items
Problem = tuple[np.ndarray, np.ndarray]

PAPER = Paper(
    slug="label-errors",
    title="Pervasive Label Errors in Test Sets Destabilize Machine Learning Benchmarks",
    authors="Curtis G. Northcutt, Anish Athalye, Jonas Mueller",
    year=2021,
    arxiv="2103.14749",
    room="labels",
    kind="measure + benchmark",
    implements=(
        "labels.ConfidentLearning",
        "labels.cross_probabilities",
        "labels.label_quality",
        "labels.consensus_from_votes",
        "labels.corrected_benchmark",
        "labels.noise_prevalence_curve",
        "labels.crossover_prevalence",
    ),
    claim="Confident learning on out-of-sample probabilities finds wrong labels; people confirm 54 and 15 test errors.",
    headline="At least 3.3% wrong labels on average in ten test sets: 0.54% of CIFAR-10, 0.15% of MNIST, 5.83% of "
    "ImageNet; a few points more of them reverse rankings.",
    peers=("cleanlab.filter.find_label_issues",),
    shams={
        "transposed-joint": "pruning reads the calibrated joint with rows as guessed and columns as given labels",
        "in-sample": "probabilities come from one model fitted on all given labels, with as many gradient steps",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 300, "epochs": 5, "released": False}),
        Scale("claim", 5, {"data": "mnist", "train": 8000, "epochs": 8, "released": True}),
        Scale("gpu", 5, {"data": "mnist", "train": 60_000, "epochs": 10, "released": True}),
    ),
)


class _Transposed(ConfidentLearning):
    def _suspects(
        self, y: np.ndarray, p: np.ndarray, confident: np.ndarray, calibrated: np.ndarray, ahead: np.ndarray
    ) -> np.ndarray:
        return super()._suspects(y, p, confident, calibrated.T, ahead)


@cache
def _load(source: str, split: str) -> Data:
    return load_data(source, split)


def _problem(rng: np.random.Generator) -> Problem:
    """Given labels (n,) of which a fifth are the next class, and probabilities (n, c) that mostly tell the true one."""
    c, n = int(rng.integers(3, 6)), int(rng.integers(60, 120))
    true = rng.permutation(np.arange(n) % c)
    given = np.where(rng.random(n) < 0.2, (true + 1) % c, true)
    z = np.exp(rng.normal(size=(n, c)) + 3 * np.eye(c)[true])
    return given, z / z.sum(1, keepdims=True)


def _confident_counts(y: np.ndarray, p: np.ndarray) -> list[list[int]]:
    c = p.shape[1]
    bars = [np.mean([p[k, j] for k in range(len(y)) if y[k] == j]) for j in range(c)]
    counts = [[0] * c for _ in range(c)]
    for k in range(len(y)):
        passed = [j for j in range(c) if p[k, j] >= bars[j]]
        if passed:
            counts[y[k]][max(passed, key=lambda j: p[k, j])] += 1
    return counts


def _whole(shares: list[Fraction]) -> list[int] | None:
    """The whole numbers of the same sum nearest to ``shares``; None where equal remainders leave a choice."""
    floors = [s.numerator // s.denominator for s in shares]
    rest = [s - f for s, f in zip(shares, floors, strict=True)]
    missing, order = int(sum(rest)), sorted(rest, reverse=True)
    if missing == 0:
        return floors
    if order[missing - 1] == order[missing]:
        return None
    return [f + (r >= order[missing - 1]) for f, r in zip(floors, rest, strict=True)]


def by_definition(y: np.ndarray, p: np.ndarray) -> np.ndarray | None:
    """The suspects (n,) of pruning by noise rate, one sample and one pair of classes at a time.

    For given i and guessed j: the n Q_ij samples of label i with the largest p_j - p_i, unless i is the most probable.
    None where the definition leaves a choice: two cells compete for a sample, or no sample of a label is confident.
    """
    found = np.zeros(len(y), bool)
    for i, row in enumerate(_confident_counts(y, p)):
        members = [k for k in range(len(y)) if y[k] == i]
        take = _whole([Fraction(v * len(members), sum(row)) for v in row]) if row[i] else None
        if take is None:
            return None
        for j, count in enumerate(take):
            if j != i:
                found[sorted(members, key=lambda k, i=i, j=j: p[k, i] - p[k, j])[:count]] = True  # type: ignore[misc]
    return found & (p.argmax(1) != y)


def problems(seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The first PROBLEMS drawn labels and probabilities that the definition decides, with its suspects."""
    rng = numpy_rng(seed, "problems")
    made: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    while len(made) < PROBLEMS:
        y, p = _problem(rng)
        mask = by_definition(y, p)
        if mask is not None:
            made.append((y, p, mask))
    return made


def _flipped(data: Data, seed: int) -> np.ndarray:
    """Which labels (n,) are wrong: a tenth, at random."""
    wrong = np.zeros(len(data), bool)
    wrong[numpy_rng(seed, "flips").choice(len(data), round(FLIPPED * len(data)), replace=False)] = True
    return wrong


def _net(data: Data) -> SmallCNN:
    with seeded(0, "init"):
        return SmallCNN(data.shape, len(data.classes))  # type: ignore[arg-type]


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The training images with flipped labels, their out-of-sample probabilities, and small random problems."""
    clean = _load(scale["data"], "train").limit(scale["train"], seed=seed)
    wrong = _flipped(clean, seed)
    shift = torch.from_numpy(wrong.astype(np.int64))
    data = clean.with_y((clean.y + shift) % len(clean.classes))
    probs = cross_probabilities(_net(data), Supervised(epochs=scale["epochs"]), data, folds=FOLDS, seed=seed)
    return {
        "data": data,
        "wrong": wrong,
        "probs": probs.numpy(),
        "problems": problems(seed),
        "released": [*map(_released, RELEASED), _own_ranking(scale, clean, seed)] if scale["released"] else [],
        "standing": {"gap": _crossings(seed), "curve": curve_gap(seed)},
    }


def _in_sample(scale: Scale, data: Data, seed: int) -> np.ndarray:
    recipe = Supervised(epochs=scale["epochs"] * (FOLDS - 1))  # as many steps as all folds together
    model = recipe.fit(fresh(_net(data), seed=seed), data, seed=seed)
    return predict(model, data.x).softmax(1).numpy()


def _votes(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m,) of the judged test items, and which of them (m,) people did not confirm."""
    root = os.environ.get("ASSAY_DATA")
    path = Path(root or ".") / kind / "label_error_votes.json"
    if root is None or not path.is_file():
        raise InputError(f"label-errors: no released votes; expected $ASSAY_DATA/{kind}/label_error_votes.json")
    items = json.loads(path.read_text(encoding="utf-8"))
    verdicts = consensus_from_votes([i["mturk"] for i in items])
    return np.array([i["id"] for i in items]), np.array([v != "given" for v in verdicts])


def _released(kind: str) -> dict[str, Any]:
    """Errors by human vote, and how many judged items are not among as many of the smallest margins."""
    (rows, errors), test = _votes(kind), _load(kind, "test")
    quality = label_quality(test.y.numpy(), test.fields["cv_probs"].double().numpy(), "normalized-margin")
    lowest = np.argsort(quality, kind="stable")[: len(rows)]
    elsewhere = len(np.setdiff1d(rows, lowest))
    return {"arm": f"released {kind}", "judged": len(rows), "errors": int(errors.sum()), "elsewhere": elsewhere}


def _own_ranking(scale: Scale, train: Data, seed: int) -> dict[str, Any]:
    """How a model of ours, which saw no test image, ranks the errors that people confirmed in MNIST's test set.

    Average precision over the errors' prevalence, and the share of them inside the lowest hundredth of the margins.
    """
    (rows, errors), test = _votes("mnist"), _load("mnist", "test")
    model = Supervised(epochs=scale["epochs"]).fit(fresh(_net(train), seed=seed), train, seed=seed)
    quality = label_quality(test.y.numpy(), predict(model, test.x).softmax(1).numpy(), "normalized-margin")
    wrong = np.zeros(len(test), bool)
    wrong[rows[errors]] = True
    lowest = np.argsort(quality, kind="stable")[: len(test) // 100]
    return {
        "arm": "own ranking",
        "lift": average_precision_score(wrong, -quality) / wrong.mean(),
        "inside": wrong[lowest].sum() / wrong.sum(),
    }


def curve_gap(seed: int) -> float:
    """Largest difference of the curve from the accuracy averaged over every way to keep k of 8 benign items."""
    rng, worst = numpy_rng(seed, "curve"), 0.0
    for _ in range(20):
        benign, errors = rng.random(8) < 0.8, rng.random(3) < 0.5
        for k in range(1, 9):
            every = [(benign[list(kept)].sum() + errors.sum()) / (k + 3) for kept in combinations(range(8), k)]
            expected = noise_prevalence_curve(benign.mean(), errors.mean(), np.array([3 / (k + 3)]))
            worst = max(worst, abs(np.mean(every) - expected[0]))
    return float(worst)


def _crossings(seed: int) -> float:
    """Largest difference in accuracy at the crossover of random pairs of models; infinite if the order stays."""
    rng, worst = numpy_rng(seed, "crossings"), 0.0
    for _ in range(200):
        (low, high), (less, more) = np.sort(rng.random(2)), np.sort(rng.random(2))
        n = crossover_prevalence(high, less, low, more)
        at = np.array([n / 2, n, (1 + n) / 2])
        gap = noise_prevalence_curve(high, less, at) - noise_prevalence_curve(low, more, at)
        worst = max(worst, abs(gap[1]) if gap[0] > 0 > gap[2] else np.inf)
    return float(worst)


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Suspects against the known flips, for the method and for argmax != given; masks against the definition."""
    finder = _Transposed() if sham == "transposed-joint" else ConfidentLearning()
    y = given["data"].y.numpy()
    probs = _in_sample(scale, given["data"], seed) if sham == "in-sample" else given["probs"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # in-sample probabilities are what the sham is about
        noise = finder.fit(y, probs)
    rows = [
        {"arm": "confident learning", **_scores(noise.suspects_, given["wrong"]), "rate": noise.error_rate_},
        {"arm": "argmax", **_scores(probs.argmax(1) != y, given["wrong"])},
    ]
    differing = [int((finder.fit(labels, p).suspects_ != mask).sum()) for labels, p, mask in given["problems"]]
    rows += [{"arm": "definition", "differing": d} for d in differing]
    rows.append({"arm": "prevalence", **given["standing"]})
    return Table.of(rows + given["released"])


def _scores(found: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    hits = float((found & wrong).sum())
    return {
        "f1": 2 * hits / (found.sum() + wrong.sum()),
        "precision": hits / max(found.sum(), 1),
        "recall": hits / wrong.sum(),
    }


def claims(table: Table) -> list[Claim]:
    """F1 and noise rate under flips, the rule's definition and the votes decide; margins and order support."""
    ours: dict[str, Any] = {"arm": "confident learning"}
    made = [
        Claim(
            "F1 of the suspects, a tenth of the labels moved to the next class",
            table.per_seed("f1", **ours),
            at_least=0.85,
            refuted_by=("transposed-joint", "in-sample"),
        ),
        Claim(
            "estimated share of wrong labels, true share 0.10",
            table.per_seed("rate", **ours),
            at_least=FLIPPED - 0.02,
            at_most=FLIPPED + 0.02,
            refuted_by=("in-sample",),
        ),
        Claim(
            "samples judged otherwise than by the rule's definition, 50 random problems",
            table.per_seed("differing", np.sum),
            at_most=0,
            rule="exact",
            refuted_by=("transposed-joint",),
        ),
        Claim(
            "precision of the suspects over that of argmax != given",
            table.gain("confident learning", "argmax", "precision"),
            at_least=0.05,
            key=False,
        ),
        Claim(
            "accuracy over prevalence is the mean over every way to drop benign items: largest difference",
            table.per_seed("curve"),
            at_most=1e-12,
            rule="exact",
            key=False,
        ),
        Claim(
            "two models that change places have the same accuracy at the crossover: largest difference",
            table.per_seed("gap"),
            at_most=1e-9,
            rule="exact",
            key=False,
        ),
    ]
    return made + (_released_claims(table) if table.where(arm="own ranking").rows else [])


def _released_claims(table: Table) -> list[Claim]:
    made = []
    for kind, errors in RELEASED.items():
        found, elsewhere = (table.per_seed(c, arm=f"released {kind}") for c in ("errors", "elsewhere"))
        lists = f"{kind}: judged items that are not among as many of the smallest margins"
        made += [
            Claim(f"{kind}: errors by human vote", found, errors, errors, rule="exact"),
            Claim(lists, elsewhere, at_most=0, rule="exact", key=False),
        ]
    return [
        *made,
        Claim(
            "mnist: average precision of our margins for the confirmed errors, over their prevalence",
            table.per_seed("lift", arm="own ranking"),
            at_least=20,
            key=False,
        ),
        Claim(
            "mnist: share of the confirmed errors inside the lowest hundredth of our margins",
            table.per_seed("inside", arm="own ranking"),
            at_least=0.6,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Scores of the suspects under flips, and the estimated share of wrong labels, one dot a seed."""
    drawing = Figure(figsize=(7.6, 3.2), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=(3, 1))
    scores = ("f1", "precision", "recall")
    for offset, (arm, name) in enumerate(
        {"confident learning": "confident learning", "argmax": "argmax ≠ given"}.items()
    ):
        values = np.stack([table.per_seed(s, arm=arm) for s in scores])
        at = np.arange(len(scores))[:, None] + 0.2 * (offset - 0.5)
        left.plot(np.broadcast_to(at, values.shape).ravel(), values.ravel(), "o", ms=4, label=name)
    left.set(xticks=range(len(scores)), xticklabels=scores, ylim=(0, 1.02), title="Finding flipped labels")
    left.legend(frameon=False)
    rate = table.per_seed("rate", arm="confident learning")
    right.plot(np.zeros(len(rate)), rate, "o", ms=4)
    right.axhline(FLIPPED, color="0.6", lw=1)
    right.set(xticks=[], xlim=(-1, 1), ylim=(0, 2 * FLIPPED), title="Estimated share")
    return drawing
