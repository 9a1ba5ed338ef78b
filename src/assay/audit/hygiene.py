"""Data hygiene: duplicates within and across the splits, label shift and covariate shift."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from assay.audit.property import CLASSIFIERS, MOST, Context, Cost, Plot, Property, Section
from assay.data import Data
from assay.data.tabular import TabularData
from assay.data.text import TextData
from assay.runtime.metric import Metric, measured
from assay.runtime.random import derive
from assay.subject import Access, Subject

CORRELATION = 0.995  # of mean-free pixels; two images then differ by at most a tenth of their contrast
BLOCK = 2048
COMPONENTS = 50


def exact(x: Tensor, other: Tensor | None = None) -> Bool[np.ndarray, " n"]:
    """Which samples of ``x`` have the same bytes as a sample of ``other``, or as another of ``x``."""
    keys = _digests(x)
    if other is not None:
        return np.isin(keys, _digests(other))
    _, which, count = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray(count[which] > 1)


def _digests(x: Tensor) -> np.ndarray:
    """64 bits for the bytes of each sample: two different samples of millions share them with a chance of 1e-6."""
    rows = (row for k in range(0, len(x), BLOCK) for row in x[k : k + BLOCK].contiguous().numpy())
    short = (int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest()) for row in rows)
    return np.fromiter(short, np.uint64, len(x))


def _unit(x: Tensor) -> Float[Tensor, "n d"]:
    flat = x.flatten(1).float()
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-6)


def nearest(x: Tensor, other: Tensor | None = None) -> Float[np.ndarray, " n"]:
    """The largest correlation of each sample of ``x`` with one of ``other`` (or another of ``x``), in flat memory.

    Samples are flattened and freed of their mean, so brightness and contrast do not count; constant ones give 0.
    """
    a = _unit(x)
    b = a if other is None else _unit(other)
    best = torch.full((len(a),), -1.0)
    for i in range(0, len(a), BLOCK):
        rows = torch.arange(i, min(i + BLOCK, len(a)))
        for j in range(0, len(b), BLOCK):
            similar = a[rows] @ b[j : j + BLOCK].T
            if other is None:
                own = (rows >= j) & (rows < j + BLOCK)
                similar[own.nonzero().flatten(), rows[own] - j] = -1.0
            best[rows] = torch.maximum(best[rows], similar.max(1).values)
    return best.numpy()


def _comparable(test: Data) -> Callable[[Tensor], Tensor]:
    """Inputs as they are; of a table the columns in units of their spread in the test set, about their mean."""
    if not isinstance(test, TabularData):
        return lambda x: x
    mean, spread = test.x.mean(0), test.x.std(0, correction=0)
    return lambda x: (x - mean) / torch.where(spread > 0, spread, torch.ones_like(spread))


def label_shift(a: Data, b: Data) -> tuple[float, float]:
    """Total variation distance of the class frequencies, and the p-value of a chi-square test of homogeneity."""
    table = np.stack([np.bincount(d.y.numpy(), minlength=len(d.classes)) for d in (a, b)])
    table = table[:, table.sum(0) > 0]
    tv = 0.5 * float(np.abs(table[0] / table[0].sum() - table[1] / table[1].sum()).sum())
    return tv, float(stats.chi2_contingency(table, correction=False).pvalue) if table.shape[1] > 1 else 1.0


def two_sample(a: Tensor, b: Tensor, *, seed: int) -> Float[np.ndarray, "m 2"]:
    """Scores and membership (1: from ``b``) of a classifier two-sample test; (n, ...) samples of each.

    The classifier is fitted on one half of both and scores the other half: given the classifier the scores are
    independent, so that an interval of their AUROC covers 0.5 as often as it says where nothing has shifted.
    """
    x = torch.cat([a, b]).flatten(1).numpy().astype(np.float64)
    member = np.repeat([0, 1], len(a))
    halves = {"test_size": 0.5, "stratify": member, "random_state": derive(seed, "shift") % 2**32}
    fitted, scored = train_test_split(np.arange(len(x)), **halves)
    pca = PCA(min(COMPONENTS, x.shape[1], len(fitted)), random_state=derive(seed, "pca") % 2**32)
    model = make_pipeline(pca, StandardScaler(), LogisticRegression(max_iter=300)).fit(x[fitted], member[fitted])
    return np.stack([model.decision_function(x[scored]), member[scored]], 1)


def measure(subject: Subject, context: Context) -> Section:
    """Duplicates, near duplicates and shifts; what needs the training data is left out without them."""
    section = Section(headline=["hygiene.duplicates.test"])
    test, how = subject.test, "identical bytes"
    index = test.index.numpy()
    what = "standardised columns" if isinstance(test, TabularData) else "pixels"
    near_how = f"correlation of mean-free {what} with the nearest neighbour >= {CORRELATION}"
    if len(test) > MOST:
        section.notes.append(f"Near duplicates are sought among at most {MOST:,} random samples of a split.")

    def rate(name: str, flags: np.ndarray, rows: np.ndarray, text: str) -> Metric:
        return section.add(measured(name, flags.astype(float), rows, better="lower", how=text))

    rate("hygiene.duplicates.test", exact(test.x), index, how)
    limit = context.pick(2000, 10_000, MOST)
    some = test.limit(limit, seed=context.seed)
    like, graded = _comparable(test), not isinstance(test, TextData) and subject.task == "classification"
    if graded:
        rate("hygiene.near_duplicates.test", nearest(like(some.x)) >= CORRELATION, some.index.numpy(), near_how)
    else:
        section.notes.append(
            "Near duplicates and covariate shift were not measured: characters and token ids have no size."
        )
    if subject.train is None:
        section.notes.append("Leakage and shift were not measured: the subject has no training data.")
        return section
    train = subject.train
    section.headline.append("hygiene.duplicates.across")
    rate("hygiene.duplicates.train", exact(train.x), train.index.numpy(), how)
    leaked = exact(test.x, train.x)
    across = rate("hygiene.duplicates.across", leaked, index, f"test samples with {how} in the training set")
    worst, text = across.value or 0.0, f"{across.value:.1%} of the test samples are in the training set"
    if graded:
        section.headline += ["hygiene.near_duplicates.across", "hygiene.covariate_shift.auc"]
        part = train.limit(context.pick(10_000, 50_000, MOST), seed=context.seed)
        near = nearest(like(some.x), like(part.x))
        section.plots.append(_histogram(near))
        how = f"{near_how}, {len(some)} test against {len(part)} training samples"
        close = rate("hygiene.near_duplicates.across", near >= CORRELATION, some.index.numpy(), how)
        worst, text = max(worst, close.value or 0.0), f"{text}, {close.value:.1%} nearly so"
    section.findings.append((worst, f"{text}."))
    _label_shift(section, train, test)
    if graded:
        _covariate_shift(section, train, test, context)
    return section


def _histogram(near: np.ndarray) -> Plot:
    counts, edges = np.histogram(near, 20)
    centres = [f"{c:.3f}" for c in (edges[1:] + edges[:-1]) / 2]
    bars = {"test samples": {"x": centres, "y": counts.tolist()}}
    return Plot("bar", "Correlation with the nearest training sample", bars, "correlation", "samples")


def _label_shift(section: Section, train: Data, test: Data) -> None:
    tv, p = label_shift(train, test)
    how = f"class frequencies of {train.name} and {test.name}, chi-square test of homogeneity: p = {p:.3g}"
    section.add(Metric("hygiene.label_shift.tv", tv, n=len(test), better="lower", how=how))
    section.add(Metric("hygiene.label_shift.p", p, n=len(test), how=how))
    if p < 0.01:
        section.findings.append((tv, f"Class frequencies of the splits differ by {tv:.1%} (p = {p:.1g})."))


def _covariate_shift(section: Section, train: Data, test: Data, context: Context) -> None:
    most = context.pick(1000, 4000, 10_000)
    n = min(len(train), len(test), most)
    a, b = (d.limit(n, seed=context.seed) for d in (train, test))
    if n < 10:
        section.notes.append("Covariate shift was not measured: fewer than 10 samples in a split.")
        return
    how = (
        "classifier two-sample test (Lopez-Paz & Oquab, 2017, arXiv:1610.06545): logistic regression on "
        f"{COMPONENTS} principal components, fitted on one half and scored on the other; 0.5 is no shift"
    )
    like = _comparable(test)
    pairs = two_sample(like(a.x), like(b.x), seed=context.seed)
    # The two splits name their samples independently, so no samples are attached.
    name = "hygiene.covariate_shift.auc"
    auc, _ = measured(name, pairs, np.arange(len(pairs)), statistic="auroc", better="lower", how=how)
    section.add(auc)
    if auc.low is not None and auc.low > 0.5:
        text = f"A linear classifier tells test from training samples with an AUC of {auc.value:.2f}."
        section.findings.append((min(1.0, 2 * auc.low - 1), text))


PROPERTY = Property("hygiene", "Data hygiene", measure, lambda s, c: Cost(), needs=Access.DECISION, tasks=CLASSIFIERS)
