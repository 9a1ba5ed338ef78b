"""Which probe to trust at which label budget: naive Bayes needs O(log n) samples, logistic regression O(n).

The paper's simulation, Gaussian classes on n features: the least number of samples at which each probe errs by the
Bayes error + 0.01. Logistic regression as in the paper's code (C = 1) on the features as they are. Brought to [0, 1]
first, as the paper does on learned features, its penalty weighs more and two classes take it as few samples as naive
Bayes: that arm is shown and no claim is made of it. Exact: the scores are those of scikit-learn's linear discriminant
with a diagonal covariance, any split of ``partial_fit`` gives the fit of the whole, and with variances by class they
are scikit-learn's naive Bayes. Support: a network trained on digits 0 to 4, frozen and probed for all ten, and the
principal components of the images.

The sizes are geometric where the official code takes steps of ceil(log n). "hard" covariances are left to the tests:
there naive Bayes has an asymptote of its own. Here the two coincide, so that m counts towards both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.naive_bayes import GaussianNB

from assay.data import Data, load_data
from assay.losses import conditional_regret, logistic_h_bound
from assay.nets import SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.represent import (
    GaussianClasses,
    LogisticProbe,
    NaiveBayesProbe,
    compare_probes,
    sample_complexity,
    two_regimes,
)
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, seeded
from assay.training import Supervised

NB, LR, SCALED = "naive bayes", "logistic", "logistic, min-max"
CLASSES = (2, 5)
GROWTH, LARGEST = 1.5, 20  # of the sizes: their ratio, and the largest in multiples of n

PAPER = Paper(
    slug="generative-probe",
    title="Revisiting Discriminative vs. Generative Classifiers: Theory and Implications",
    authors="Chenyu Zheng, Guoqiang Wu, Fan Bao, Yue Cao, Chongxuan Li, Jun Zhu",
    year=2023,
    arxiv="2302.02334",
    room="represent",
    also=("vision", "decide", "losses"),
    kind="theory + method + measure",
    implements=(
        "represent.NaiveBayesProbe",
        "represent.LogisticProbe",
        "represent.compare_probes",
        "represent.two_regimes",
        "represent.GaussianClasses",
        "represent.sample_complexity",
        "losses.logistic_h_bound",
    ),
    claim="Naive Bayes comes near its best error with O(log n) samples where logistic regression needs O(n).",
    headline="Simulations with 2 to 7 classes; on features of pre-trained networks naive Bayes converges faster "
    "everywhere and leads with few labels, logistic regression with many (two regimes).",
    peers=("sklearn.naive_bayes.GaussianNB", "sklearn.discriminant_analysis.LinearDiscriminantAnalysis"),
    baselines=(LR,),
    shams={
        "full-covariance": "the pooled variances are replaced by the full pooled covariance (its pseudo-inverse)",
        "per-class-variance": "each class is scored by its own variances in place of the pooled ones",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {"data": "digits", "naive": (8, 16), "logistic": {2: (8, 16), 5: (8,)}, "repeats": 1, "train": 150,
             "pool": 400, "test": 300, "sizes": (20, 100), "draws": 2, "components": 16},
        ),
        Scale(
            "claim",
            5,
            {"data": "mnist", "naive": (50, 100, 200, 400), "logistic": {2: (50, 100, 200), 5: (100, 200)},
             "repeats": 2, "train": 3000, "pool": 8000, "test": 2000, "sizes": (20, 50, 100, 200, 500, 2000, 5000),
             "draws": 4, "components": 100},
        ),
    ),
)  # fmt: skip


class _FullCovariance(NaiveBayesProbe):
    """Independence dropped: one full covariance of all classes."""

    def fit(self, X: Any, y: Any) -> NaiveBayesProbe:
        super().fit(X, y)
        within = X - self.mean_[np.searchsorted(self.classes_, y)]
        self.precision_ = np.linalg.pinv(within.T @ within / len(within), hermitian=True)
        return self

    def scores(self, X: Any) -> np.ndarray:
        weight = self.mean_ @ self.precision_
        return X @ weight.T + np.log(self._priors()) - 0.5 * (weight * self.mean_).sum(1)


def _probe(sham: str | None, floor: float = 1e-9) -> NaiveBayesProbe:
    if sham == "full-covariance":
        return _FullCovariance(floor)
    return NaiveBayesProbe(floor, shared_variance=sham is None)


class _Diagonal(EmpiricalCovariance):
    """The variances of the features, for scikit-learn's linear discriminant."""

    def fit(self, X: Any, y: Any = None) -> _Diagonal:
        self.covariance_ = np.diag(np.var(X, axis=0))
        return self


def identities(seed: int, sham: str | None = None) -> dict[str, float]:
    """Largest differences: scores from LDA's, fits in parts from the whole, variances by class from GaussianNB."""
    rng = numpy_rng(seed, "identities")
    y = rng.permutation(np.arange(240) % 4)
    x = rng.normal(size=(240, 12)) * rng.uniform(0.5, 2, (4, 12))[y] + rng.normal(size=(4, 12))[y] + 3
    fresh = rng.normal(size=(50, 12)) + 3
    peer = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_Diagonal()).fit(x, y)
    linear = _relative(_probe(sham, 0.0).fit(x, y).scores(fresh)) - _relative(fresh @ peer.coef_.T + peer.intercept_)
    whole, parts = NaiveBayesProbe().fit(x, y), NaiveBayesProbe()
    for rows in np.array_split(np.arange(240), np.sort(rng.choice(np.arange(1, 240), 6, replace=False))):
        parts.partial_fit(x[rows], y[rows], classes=np.arange(4))
    split = max(np.abs(getattr(whole, n) - getattr(parts, n)).max() for n in ("mean_", "variance_", "class_count_"))
    naive = GaussianNB().fit(x, y)
    own = NaiveBayesProbe(var_smoothing=float(naive.epsilon_), shared_variance=False).fit(x, y).scores(fresh)
    apart = _relative(own) - _relative(naive.predict_joint_log_proba(fresh))
    return {"linear": float(np.abs(linear).max()), "split": float(split), "gaussian_nb": float(np.abs(apart).max())}


def _relative(scores: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "m k"]:
    return scores - scores[:, :1]


def bound_slack(seed: int) -> float:
    """Least of sqrt(2 logistic excess) less the zero-one excess over random class distributions and scores."""
    rng = numpy_rng(seed, "bound")
    p, scores = rng.dirichlet(np.full(4, 0.7), 2000), rng.normal(size=(2000, 4)) * 10.0 ** rng.uniform(-2, 1, (2000, 1))
    excess = p.max(1) - p[np.arange(2000), scores.argmax(1)]
    return float((logistic_h_bound(np.maximum(conditional_regret(p, scores, 1), 0)) - excess).min())


def _sizes(classes: int, n: int) -> list[int]:
    """From 2 K, each GROWTH times the last and one more at least, to LARGEST n."""
    sizes = [2 * classes]
    while sizes[-1] * GROWTH < LARGEST * n:
        sizes.append(max(sizes[-1] + 1, int(sizes[-1] * GROWTH)))
    return sizes


def _needed(seed: int, arm: str, probe: Any, classes: int, n: int, repeats: int) -> list[dict[str, Any]]:
    """The samples that a probe needs, the largest size where none is enough, in each repeat."""
    simulator, sizes = GaussianClasses(classes=classes, features=n), _sizes(classes, n)
    rows = []
    for repeat in range(repeats):
        found = sample_complexity(simulator, probe, seed=derive(seed, classes, n, repeat), sizes=sizes)
        rows.append(
            {"arm": arm, "classes": classes, "n": n, "m": found or sizes[-1], "log_m": np.log(found or sizes[-1])}
        )
    return rows


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _representations(scale: Scale, seed: int) -> tuple[Mapping[str, tuple[np.ndarray, np.ndarray]], Data, Data]:
    """Features of the pool and of the test images: of a network that knows digits 0 to 4, and principal components."""
    train, test = _images(scale["data"])
    first, second = train.split(0.4, seed=seed)
    known, pool, test = first[first.y < 5].limit(scale["train"]), second.limit(scale["pool"]), test.limit(scale["test"])
    with seeded(seed, "init"):
        start = SmallCNN((1, train.shape[1], train.shape[2]), 10, (8, 16), 128)
    body = Supervised(epochs=3).fit(start, known, seed=seed).get_submodule("body")
    flat, held = (d.x.flatten(1).numpy().astype(float) for d in (pool, test))
    components = PCA(scale["components"], random_state=0).fit(flat)
    network = predict(body, pool.x).numpy(), predict(body, test.x).numpy()
    return {"network": network, "components": (components.transform(flat), components.transform(held))}, pool, test


def _curves(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Errors of both probes by size on both representations, and the two regimes."""
    found, pool, test = _representations(scale, seed)
    rows: list[dict[str, Any]] = []
    for name, (x, held) in found.items():
        curves = compare_probes(
            x, pool.y.numpy(), held, test.y.numpy(), scale["sizes"], seed=seed, repeats=scale["draws"]
        )
        for probe, errors in zip(curves.names, curves.mean, strict=True):
            rows += [
                {"arm": f"{probe} on {name}", "labels": m, "error": e}
                for m, e in zip(curves.sizes, errors, strict=True)
            ]
        few, many = curves.mean[1, 0] - curves.mean[0, 0], curves.mean[0, -1] - curves.mean[1, -1]
        regimes = two_regimes(curves)
        crossed = float(regimes.generative_first and regimes.crossing is not None)
        rows.append({"arm": f"regimes on {name}", "few": few, "many": many, "crossed": crossed})
    return rows


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """What no sham changes: logistic regression in the simulation, and the learned features."""
    rows = _curves(scale, seed)
    for classes, features in scale["logistic"].items():
        for n in features:
            rows += _needed(seed, LR, LogisticProbe(scaler=None), classes, n, 1)
    rows += [r for n in scale["logistic"][2] for r in _needed(seed, SCALED, LogisticProbe(), 2, n, 1)]
    return {"rows": [*rows, {"arm": "bound", "slack": bound_slack(seed)}]}


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Samples needed by both probes, slopes over n, ratios, and the identities; shams change naive Bayes."""
    naive = [
        r for k in CLASSES for n in scale["naive"] for r in _needed(seed, NB, _probe(sham), k, n, scale["repeats"])
    ]
    table = Table.of([*given["rows"], *naive])
    rows: list[dict[str, Any]] = [{"arm": "identities", **identities(seed, sham)}]
    for k in CLASSES:
        for arm in (NB, LR):
            slope = _slope(table.where(arm=arm, classes=k))
            rows.append({"arm": f"{arm} slope", "classes": k, "slope": slope})
        for n in scale["logistic"][k]:
            logs = [table.values("log_m", arm=arm, classes=k, n=n).mean() for arm in (LR, NB)]
            rows.append({"arm": "ratio", "classes": k, "n": n, "ratio": np.exp(logs[0] - logs[1])})
    return Table.of([*table.rows, *rows])


def _slope(table: Table) -> float:
    """Of log m against log n; NaN where n takes one value."""
    n, m = table.values("n"), table.values("log_m")
    return float(np.polyfit(np.log(n), m, 1)[0]) if len(set(n)) > 1 else np.nan


def claims(table: Table) -> list[Claim]:
    """Growth of what naive Bayes needs, the ratio at n >= 100 and the identities decide; the rest supports."""
    exact = {
        "linear": "scores are those of scikit-learn's linear discriminant with a diagonal covariance",
        "split": "partial_fit over random parts gives the fit of the whole",
        "gaussian_nb": "with variances by class, scores are those of scikit-learn's GaussianNB",
    }
    shams = {"linear": ("full-covariance", "per-class-variance")}
    return [
        *(
            Claim(
                f"samples that naive Bayes needs, K = {k}: slope of log m against log n",
                table.per_seed("slope", arm=f"{NB} slope", classes=k),
                at_most=0.35,
                refuted_by=("full-covariance",),
            )
            for k in CLASSES
        ),
        *(
            Claim(
                f"samples that logistic regression needs over those of naive Bayes, K = {k}, least over n >= 100",
                _least_ratio(table, k),
                at_least=8,
                refuted_by=("full-covariance",),
            )
            for k in CLASSES
        ),
        *(
            Claim(
                f"{text}: largest difference",
                table.per_seed(name, np.max),
                at_most=1e-9,
                rule="exact",
                refuted_by=shams.get(name, ()),
            )
            for name, text in exact.items()
        ),
        *_support(table),
    ]


def _least_ratio(table: Table, classes: int) -> np.ndarray:
    """The least ratio of a seed over n >= 100, or over all n where there is none so large."""
    part = table.where(arm="ratio", classes=classes)
    sizes = sorted(set(part.values("n")))
    large = [n for n in sizes if n >= 100] or sizes
    return np.min([part.per_seed("ratio", n=n) for n in large], axis=0)


def _support(table: Table) -> list[Claim]:
    bound = "the zero-one excess is at most sqrt(2 logistic excess) on random distributions and scores: least slack"
    found = [Claim(bound, table.per_seed("slack", np.min), at_least=-1e-9, rule="exact", key=False)]
    for k in CLASSES:
        text = f"samples that logistic regression needs, K = {k}: slope of log m against log n"
        slopes = table.per_seed("slope", arm=f"{LR} slope", classes=k)
        found.append(Claim(text, slopes, at_least=0.6, at_most=1.3, key=False))
    for name in ("network", "components"):
        few, many, crossed = (table.per_seed(c, arm=f"regimes on {name}") for c in ("few", "many", "crossed"))
        found += [
            Claim(f"{name}: with the fewest labels naive Bayes errs less, by", few, at_least=0.02, key=False),
            Claim(f"{name}: with the most labels logistic regression errs less, by", many, at_least=0.01, key=False),
            Claim(f"{name}: naive Bayes leads up to a crossing", crossed, at_least=1, rule="k-of-n", k=5, key=False),
        ]
    return found


def figure(table: Table) -> Figure:
    """Samples needed over n, and errors over labels on learned features (means over seeds)."""
    drawing = Figure(figsize=(11, 3.4), layout="constrained")
    axes = drawing.subplots(1, 3)
    for classes, panel in zip(CLASSES, axes, strict=False):
        for arm in (NB, LR, SCALED):
            part = table.where(arm=arm, classes=classes)
            if part.rows:
                n = sorted(set(part.values("n")))
                panel.loglog(n, [np.exp(part.values("log_m", n=v).mean()) for v in n], "-o", ms=3, label=arm)
        panel.set(xlabel="features n", ylabel="samples needed", title=f"Bayes error + 0.01, {classes} classes")
    axes[0].legend(frameon=False)
    for name, style in (("network", "-"), ("components", "--")):
        for probe in (NB, LR):
            part = table.where(arm=f"{probe} on {name}")
            m = sorted(set(part.values("labels")))
            axes[2].semilogx(m, [part.values("error", labels=v).mean() for v in m], style, label=f"{probe}, {name}")
    axes[2].set(xlabel="labels", ylabel="test error", title="Ten digits on frozen features")
    axes[2].legend(frameon=False, fontsize=7)
    return drawing
