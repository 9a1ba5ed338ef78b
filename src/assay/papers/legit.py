"""Legibility of visually perturbed words: a model trained on comparisons of two perturbations ranks unseen ones.

The paper's readers are people. Here a machine reads: each character becomes the letter whose picture it correlates
with most under noise, and a reading that is one letter off a word counts as that word. So the claims are about learning
from comparisons, not about people; words and substitutes of the test are not those of the training. Objective and
counters are checked against hand formulas. The published model on people's comparisons, and attacks on a victim, are
left out: they need the network, or more time than the claim scale has.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from matplotlib.figure import Figure
from scipy.spatial.distance import cdist
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor

from assay.data import Data
from assay.language import (
    LegibilityLoss,
    LegibilityModel,
    LegibilityPair,
    Perturbation,
    SimilaritySpace,
    VisualPerturber,
    WordRenderer,
    distance_score,
    edit_score,
    legibility_metrics,
    parameter_score,
)
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.random import numpy_rng

LETTERS = "abcdefghijklmnopqrstuvwxyz"
KS = tuple(range(1, 21))
SHARES = (0.25, 0.5, 0.75, 1.0)
READS = 5
MODEL = "trained on comparisons"
BASELINES = {"-n k": parameter_score, "cosine distance": distance_score, "edit distance": edit_score}

PAPER = Paper(
    slug="legit",
    title="Learning the Legibility of Visual Text Perturbations",
    authors="Dev Seth, Rickard Stureborg, Danish Pruthi, Bhuwan Dhingra",
    year=2023,
    arxiv="2303.05077",
    room="language",
    also=("vision",),
    kind="method + benchmark",
    implements=(
        "language.SimilaritySpace",
        "language.VisualPerturber",
        "language.WordRenderer",
        "language.LegibilityModel",
        "language.LegibilityLoss",
        "language.legibility_metrics",
        "language.LegibleAttack",
    ),
    baselines=tuple(BASELINES),
    claim="Models trained on pairwise judgements predict whether a perturbed word is legible, and rank perturbations.",
    headline="F1 up to 0.91 and ranking accuracy 0.86 on people's judgements; legible perturbations hurt NLP models "
    "more than the best known attacks.",
    peers=("dvsth/learning-legibility-2023",),
    shams={
        "rolled-renders": "in training the pictures of pair i stand beside the choice of pair i + 1",
        "unlabelled-negative": "the word that was not chosen counts as illegible, though nobody said so",
    },
    scales=(
        Scale("smoke", 1, {"font": "pillow", "train": 240, "test": 150, "epochs": 8}),
        Scale("claim", 5, {"font": "dejavu", "train": 2000, "test": 1000, "epochs": 5}),
        Scale("gpu", 5, {"font": "dejavu", "train": 20_000, "test": 4000, "epochs": 20}),
    ),
)


class _Rolled(LegibilityModel):
    def data(self, pairs: Sequence[LegibilityPair]) -> Data:
        made = super().data(pairs)
        return made.with_y(made.y.roll(-1))


class _NegativeLoss(LegibilityLoss):
    def known(self, choice: Int[Tensor, " n"]) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
        return torch.ones_like(choice, dtype=torch.bool), torch.ones_like(choice, dtype=torch.bool)


class _Negative(LegibilityModel):
    def loss(self) -> LegibilityLoss:
        return _NegativeLoss()


MODELS: dict[str | None, type[LegibilityModel]] = {
    None: LegibilityModel,
    "rolled-renders": _Rolled,
    "unlabelled-negative": _Negative,
}
LOSSES: dict[str | None, type[LegibilityLoss]] = {"unlabelled-negative": _NegativeLoss}


@cache
def words() -> tuple[str, ...]:
    """Common English words of four to ten letters: scikit-learn's list, the same everywhere."""
    return tuple(sorted(w for w in ENGLISH_STOP_WORDS if 4 <= len(w) <= 10 and set(w) <= set(LETTERS)))


@cache
def substitutes(font: str) -> tuple[str, ...]:
    """Characters that are no small letters: of Latin, Greek and Cyrillic; of ASCII too where the font has no others."""
    renderer = WordRenderer(font=font)
    wide = [chr(c) for c in (*range(0xC0, 0x250), *range(0x370, 0x530), *range(0x1E00, 0x2000))]
    drawn = [c for c in wide if unicodedata.category(c)[0] == "L" and renderer.draws(c)]
    return tuple(drawn or (chr(c) for c in range(33, 127) if chr(c) not in LETTERS))


@dataclass(frozen=True)
class Reader:
    """A machine that reads a word READS times.

    Every character is the letter whose picture correlates most with its own under noise of ``noise`` a pixel (pictures
    of norm 1). A word of the dictionary is read where it is, alone, the nearest of its length and differs in at most
    one letter.
    """

    font: str
    noise: float = 0.12
    size: int = 24

    def frequency(self, made: Sequence[str], originals: Sequence[str], seed: int) -> np.ndarray:
        """How many of READS readings of each word (n,) give the original."""
        rng = numpy_rng(seed, "reader")
        return np.array([self._hits(w, o, rng) for w, o in zip(made, originals, strict=True)])

    def _hits(self, word: str, original: str, rng: np.random.Generator) -> int:
        scores, spread = _correlations(self.font, self.size)
        clean = np.stack([scores(c) for c in word])
        noisy = clean + self.noise * rng.normal(size=(READS, len(word), len(LETTERS))) @ spread.T
        known = _dictionary(len(word))
        off = (noisy.argmax(2)[:, None] != known).sum(2)
        nearest = off == np.minimum(off.min(1, keepdims=True), 1)
        target = words_of(len(word)).index(original)
        return int((nearest[:, target] & (nearest.sum(1) == 1)).sum())


@cache
def words_of(length: int) -> tuple[str, ...]:
    """The words of one length."""
    return tuple(w for w in words() if len(w) == length)


@cache
def _dictionary(length: int) -> np.ndarray:
    return np.array([[LETTERS.index(c) for c in w] for w in words_of(length)])


@cache
def _correlations(font: str, size: int) -> Any:
    """Correlation of a character's picture with every letter's, and a root of the letters' Gram matrix.

    White noise on a picture moves its correlations as Gaussian noise whose covariance is that Gram matrix.
    """
    renderer = WordRenderer(font=font, size=size)

    def unit(chars: Sequence[str]) -> np.ndarray:
        flat = renderer.glyphs(chars).double().flatten(1).numpy()
        flat = flat - flat.mean(1, keepdims=True)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)

    letters = unit(LETTERS)
    values, vectors = np.linalg.eigh(letters @ letters.T)
    root = vectors * np.sqrt(values.clip(0))
    return cache(lambda char: (unit([char]) @ letters.T)[0]), root


@dataclass(frozen=True)
class Pairs:
    """Comparisons: the pairs with choices, and how both words of each were made."""

    pairs: list[LegibilityPair]
    made: tuple[list[Perturbation], list[Perturbation]]

    @property
    def choice(self) -> Tensor:
        return torch.tensor([p.choice for p in self.pairs])


def choices(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What a reader prefers: the word that is read more often, 2 where both are alike, 3 where both are mostly lost."""
    need = READS // 2 + 1
    return np.where(np.maximum(first, second) < need, 3, np.where(first == second, 2, (second > first).astype(int)))


def compare(font: str, vocabulary: Sequence[str], chars: Sequence[str], n: int, seed: int) -> Pairs:
    """``n`` pairs of perturbations of words of ``vocabulary`` by substitutes ``chars``, and the reader's choices."""
    space = SimilaritySpace(k=max(KS), renderer=WordRenderer(font=font)).fit("".join(chars), sources=LETTERS)
    perturber, rng = VisualPerturber(space, seed), numpy_rng(seed, "pairs")
    picked = [vocabulary[i] for i in rng.integers(len(vocabulary), size=n)]
    sides, counts = [], []
    for side in (0, 1):
        ks, shares = rng.choice(KS, n), rng.choice(SHARES, n)
        drawn = [
            perturber.perturb(w, int(k), float(s), draw=2 * i + side)
            for i, (w, k, s) in enumerate(zip(picked, ks, shares, strict=True))
        ]
        sides.append(drawn)
        counts.append(Reader(font).frequency([d[0] for d in drawn], picked, seed + side))
    pairs = [LegibilityPair(w, a[0], b[0], int(c)) for w, a, b, c in zip(picked, *sides, choices(*counts), strict=True)]
    return Pairs(pairs, ([a[1] for a in sides[0]], [b[1] for b in sides[1]]))


def halves(items: Sequence[str], seed: int, name: str) -> tuple[list[str], list[str]]:
    """Two disjoint random parts, the first with two thirds of the items."""
    order = numpy_rng(seed, name).permutation(len(items))
    cut = len(items) * 2 // 3
    return [items[i] for i in order[:cut]], [items[i] for i in order[cut:]]


def hand_loss(s0: float, s1: float, choice: int) -> float:
    """The loss of one pair: -log sigmoid(z) of what the choice says is so, summed."""
    said = {0: (s0 - s1, s0), 1: (s1 - s0, s1), 2: (s0, s1), 3: (-s0, -s1)}[choice]
    return sum(math.log1p(math.exp(-abs(z))) + max(-z, 0.0) for z in said)


def hand_metrics(s0: Sequence[float], s1: Sequence[float], choice: Sequence[int]) -> dict[str, float]:
    """The counters, one word at a time."""
    told: list[tuple[bool, bool]] = []  # (said to be legible, is legible) of every word that the choice tells about
    ahead = []
    for a, b, c in zip(s0, s1, choice, strict=True):
        told += [(score > 0, c != 3) for score, at in ((a, 0), (b, 1)) if c in (at, 2, 3)]
        ahead += [(a >= b) if c == 0 else (b >= a)] if c < 2 else []
    hits = sum(said and true for said, true in told)
    said, true = sum(s for s, _ in told), sum(t for _, t in told)
    precision, recall = hits / said if said else 0.0, hits / true if true else 0.0
    return {
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "precision": precision,
        "recall": recall,
        "accuracy": sum(s == t for s, t in told) / len(told),
        "rank_accuracy": sum(ahead) / len(ahead) if ahead else 0.0,
    }


def exact(loss: LegibilityLoss, seed: int, n: int = 400) -> dict[str, float]:
    """Largest differences from the hand formulas, in float64: of the loss by choice, and of the counters."""
    rng = numpy_rng(seed, "exact")
    scores, c = 3 * rng.normal(size=(2, n)), np.arange(n) % 4
    s0, s1, choice = (torch.from_numpy(a) for a in (*scores, c))
    each = loss(s0, s1, choice).numpy()
    off = np.abs(each - [hand_loss(a, b, k) for a, b, k in zip(*scores, c, strict=True)])
    counters = 0.0
    for start in range(0, n, 20):
        part = slice(start, start + 20)
        rounded = np.round(scores[:, part])  # scores of 0 and equal scores are among them
        a, b = rounded
        known = hand_metrics(a.tolist(), b.tolist(), c[part].tolist())
        found = legibility_metrics(torch.from_numpy(a), torch.from_numpy(b), choice[part])
        counters = max(counters, *(abs(found[k] - v) for k, v in known.items()))
    return {**{f"loss {k}": float(off[c == k].max()) for k in range(4)}, "counters": counters}


def perturbations(font: str, chars: Sequence[str], seed: int) -> dict[str, float]:
    """Words with another number of changed characters than int(len n), and how far a substitute's distance is from the
    r-th smallest by scipy."""
    renderer = WordRenderer(font=font)
    perturber = VisualPerturber(
        SimilaritySpace(k=max(KS), renderer=renderer).fit("".join(chars), sources=LETTERS), seed
    )
    pictures = [renderer.glyphs(part).flatten(1).double().numpy() for part in (list(LETTERS), list(chars))]
    distance, place = cdist(*pictures, "cosine"), {c: i for i, c in enumerate(chars)}
    miscounted, off = 0, 0.0
    for word, n in product(words()[::10], SHARES):
        new, record = perturber.perturb(word, max(KS), n)
        miscounted += sum(a != b for a, b in zip(word, new, strict=True)) != int(len(word) * n)
        for s in record.substitutions:
            row = distance[LETTERS.index(s.old)]
            off = max(off, abs(row[place[s.new]] - np.sort(row)[s.rank - 1]))
    return {"miscounted": miscounted, "neighbour": off}


def order(s0: Tensor, s1: Tensor, choice: Tensor) -> float:
    """The share of pairs of choice 0 or 1 whose chosen word scores more; equal scores count half."""
    gap = torch.where(choice == 0, s0 - s1, s1 - s0)[choice < 2]
    return float(((gap > 0).double() + (gap == 0).double() / 2).mean())


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Comparisons to train on, to test on with other words and substitutes, and how well the baselines order those."""
    font = scale["font"]
    vocabularies, chars = halves(words(), seed, "words"), halves(substitutes(font), seed, "substitutes")
    train = compare(font, vocabularies[0], chars[0], scale["train"], seed)
    test = compare(font, vocabularies[1], chars[1], scale["test"], seed + 1)
    first, second = test.made
    rows: list[dict[str, Any]] = [
        {"arm": arm, "order": order(score(first), score(second), test.choice)} for arm, score in BASELINES.items()
    ]
    ones = torch.ones(len(test.pairs))
    always = legibility_metrics(ones, ones, test.choice)
    rows.append({"arm": "all legible", "f1": always["f1"]})
    rows.append({"arm": "perturber", **perturbations(font, chars[0], seed)})
    return {"train": train, "test": test, "rows": rows}


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Metrics of the trained model on the test comparisons, and differences of loss and counters from hand formulas."""
    method = MODELS[sham](renderer=WordRenderer(font=scale["font"]), epochs=scale["epochs"], length=10)
    fitted = method.fit(given["train"].pairs, seed=seed)
    test, whole = given["test"], [p.original for p in given["test"].pairs]
    s0, s1 = (fitted.score(list(made), whole) for made in zip(*[(p.first, p.second) for p in test.pairs], strict=True))
    row = {"arm": MODEL, **legibility_metrics(s0, s1, test.choice), "order": order(s0, s1, test.choice)}
    loss = LOSSES.get(sham, LegibilityLoss)("none")
    return Table.of([row, *given["rows"], {"arm": "exact", **exact(loss, seed)}])


def claims(table: Table) -> list[Claim]:
    """Ranking accuracy and the exact objective and counters decide; baselines and F1 support.

    Choices of other pairs teach an order too, of a random direction: under that sham the accuracy lies anywhere between
    0.2 and 0.8 by seed, so that a count over seeds separates it and an interval of the mean does not. A constant answer
    has an F1 above 0.8 here, so that F1 is compared with it.
    """

    def identity(text: str, column: str, bound: float, key: bool, refuted_by: tuple[str, ...] = ()) -> Claim:
        return Claim(text, table.per_seed(column, np.max), None, bound, "exact", key=key, refuted_by=refuted_by)

    rank, unseen = table.per_seed("rank_accuracy", arm=MODEL), "on words and substitutes that were not trained on"
    said = ("chose the first", "chose the second", "found both alike", "could read neither")
    return [
        Claim(f"ranking accuracy {unseen}, mean", rank, at_least=0.75),
        Claim(
            f"ranking accuracy {unseen}, in most draws",
            rank,
            at_least=0.82,
            rule="k-of-n",
            k=3,
            refuted_by=("rolled-renders",),
        ),
        *(
            identity(
                f"loss where the reader {text}: largest difference from its formula",
                f"loss {k}",
                1e-12,
                True,
                ("unlabelled-negative",) if k < 2 else (),
            )
            for k, text in enumerate(said)
        ),
        identity("counters against a count word by word: largest difference", "counters", 1e-12, True),
        *(
            Claim(
                f"share of comparisons that it orders as the reader, over that of {arm}",
                table.gain(MODEL, arm, "order"),
                at_least=bound,
                key=False,
            )
            for arm, bound in zip(BASELINES, (0.03, -0.01, 0.1), strict=True)
        ),
        Claim(
            "F1 over calling every word legible",
            table.gain(MODEL, "all legible", "f1"),
            at_least=0.01,
            key=False,
            refuted_by=("rolled-renders",),
        ),
        identity("words with another number of changed characters than int(len n)", "miscounted", 0, False),
        identity(
            "distance of substitutes from the r-th smallest by scipy: largest difference", "neighbour", 1e-9, False
        ),
    ]


def figure(table: Table) -> Figure:
    """How often the model and each baseline order two words as the reader does, one dot a seed."""
    drawing = Figure(figsize=(6.4, 2.6), layout="constrained")
    axes, arms = drawing.subplots(), [*BASELINES, MODEL]
    values = np.stack([table.per_seed("order", arm=arm) for arm in arms])
    axes.plot(values, np.arange(len(arms)), "o", ms=4, color="0.55")
    axes.plot(values.mean(1), np.arange(len(arms)), "|", ms=16, mew=2)
    axes.axvline(0.5, color="0.7", lw=1)
    axes.set(yticks=range(len(arms)), yticklabels=arms, xlabel="comparisons ordered as the reader does")
    return drawing
