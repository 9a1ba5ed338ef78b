"""Backdoor detection at inference: conformal thresholds on a score of the suspicious model's latents.

Thresholds: networks are trained on poisoned images, and clean images are drawn again and again as the defender's
validation set. Half of each draw fits the shrunk Mahalanobis score, half sets the threshold; the false-positive rate on
other clean images must be as promised: on average (marginal), or in nearly every draw (PAC). Exact: the level at the
threshold, the promise under the law of order statistics, p-values written out, distances of scikit-learn's shrunk
covariance. Support: power on triggered images, STRIP beside it, what shrinkage changes, powers in Gaussian models.
Images of digits are told apart almost wholly by every score, so they show that the thresholds are right, not that this
score is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from sklearn.covariance import OAS
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from assay.attacks import badnets, blended, poison, sinusoidal, wanet_like
from assay.data import Data, load_data
from assay.detect import (
    STRIP,
    ShrunkMahalanobis,
    conformal_pvalues,
    conformal_rank,
    lr_power,
    mahalanobis_power,
    optimal_lr_score,
)
from assay.detect.layers import chosen_layers, latents
from assay.detect.shrunk_mahalanobis import own_distances
from assay.nets import ResNet, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.training import Supervised

CLASSES, TARGET, RATE = 10, 0, 0.05
ALPHA, DELTA = 0.1, 0.05
LEVEL_SIZES = (300, 738, 1000, 5000)  # large enough for ALPHA and DELTA
OAS_SCM, PINV_SCM = ShrunkMahalanobis(), ShrunkMahalanobis(shrinkage=0.0)
Latents = tuple[Tensor, Tensor]

PAPER = Paper(
    slug="backdoor-detection",
    title="A Unified Detection Framework for Inference-Stage Backdoor Defenses",
    authors="Xun Xian, Ganghua Wang, Jayanth Srinivasa, Ashish Kundu, Xuan Bi, Mingyi Hong, Jie Ding",
    year=2023,
    arxiv="OpenReview 4zWEyYGGfI",
    room="detect",
    also=("attacks",),
    kind="method + theory",
    implements=(
        "detect.ConformalDetector",
        "detect.ShrunkMahalanobis",
        "detect.STRIP",
        "detect.optimal_lr_score",
        "detect.lr_power",
        "detect.mahalanobis_power",
        "attacks.poison",
        "attacks.badnets",
        "attacks.blended",
        "attacks.sinusoidal",
        "attacks.wanet_like",
    ),
    claim="A threshold from clean samples bounds a backdoor detector's false-positive rate, whatever its score.",
    headline="14 attacks on images and text: false-positive rates as set, AUROC up to 300% above other detectors' on "
    "adaptive attacks.",
    peers=("sklearn.covariance.OAS", "BackdoorBench (STRIP)"),
    baselines=("strip", "unshrunk"),
    shams={
        "reused-validation": "the samples that fitted mean and covariance also give the scores of the threshold",
        "missing-slack": "the PAC threshold is where F_n reaches 1 - alpha: sqrt(ln(2 / delta) / (2 n)) is lost",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {
                "data": "digits",
                "net": "cnn",
                "triggers": ("badnets",),
                "train": 1000,
                "epochs": 4,
                "large": 200,
                "small": 80,
                "queries": 200,
                "resamples": 20,
                "overlays": 10,
                "draws": 5000,
            },
        ),
        Scale(
            "claim",
            5,
            {
                "data": "mnist",
                "net": "cnn",
                "triggers": ("badnets", "blended", "sinusoidal"),
                "train": 8000,
                "epochs": 4,
                "large": 1000,
                "small": 80,
                "queries": 1000,
                "resamples": 200,
                "overlays": 20,
                "draws": 50_000,
            },
        ),
        Scale(
            "gpu",
            5,
            {
                "data": "cifar10",
                "net": "resnet",
                "triggers": ("badnets", "blended", "sinusoidal", "wanet"),
                "train": 50_000,
                "epochs": 30,
                "large": 1000,
                "small": 80,
                "queries": 1000,
                "resamples": 200,
                "overlays": 100,
                "draws": 50_000,
            },
        ),
    ),
)


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _trigger(name: str, seed: int) -> Callable[[Tensor], Tensor]:
    triggers: dict[str, Callable[[Tensor], Tensor]] = {
        "badnets": badnets,
        "blended": partial(blended, seed=seed),
        "sinusoidal": sinusoidal,
        "wanet": partial(wanet_like, seed=seed),
    }
    return triggers[name]


def _net(scale: Scale, data: Data, seed: int) -> nn.Module:
    channels, height, width = data.shape
    with seeded(seed, "init"):
        if scale["net"] == "resnet":
            return ResNet((channels, height, width), len(data.classes))
        return SmallCNN((channels, height, width), len(data.classes), widths=(16, 16))


def _case(scale: Scale, seed: int, train: Data, pool: Data, name: str) -> dict[str, Any]:
    """A network with a backdoor, latents and predictions of the clean pool and of triggered images, STRIP's scores."""
    mark, own = _trigger(name, seed), derive(seed, name)
    x, y, _ = poison(train.x, train.y, mark, TARGET, RATE, own)
    plan = Supervised(epochs=scale["epochs"], lr=6e-3)
    model = plan.fit(_net(scale, train, own), replace(train, x=x, y=y), seed=own)
    marked = mark(pool.x[pool.y != TARGET][: scale["queries"] // 2])
    (layer,) = chosen_layers(model, "penultimate", pool.x[:32])
    clean, bad = ((f, out.argmax(1)) for f, out in (latents(model, z, layer) for z in (pool.x, marked)))
    queries = pool.x[scale["large"] :][: scale["queries"]]
    strip = STRIP(overlays=scale["overlays"], seed=seed).fit(model, pool[: scale["large"]])
    return {
        "clean": clean,
        "bad": bad,
        "strip": (strip.score(queries), strip.score(marked)),
        "asr": float((bad[1] == TARGET).double().mean()),
        "accuracy": float((predict(model, pool.x).argmax(1) == pool.y).double().mean()),
    }


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """For every trigger a poisoned network and its latents of clean and triggered images, and what no sham changes."""
    train, test = _images(scale["data"])
    train = train.limit(scale["train"], seed=seed)
    pool = test[torch.randperm(len(test), generator=torch_rng(seed, "pool"))[: 3 * scale["queries"] + scale["large"]]]
    cases = {name: _case(scale, seed, train, pool, name) for name in scale["triggers"]}
    return {
        "cases": cases,
        "few": {name: _few(scale, seed, name, case) for name, case in cases.items()},
        "gaussian": gaussian(scale["draws"], seed),
    }


def rank(n: int, sham: str | None) -> int:
    """Rank of the PAC threshold among n scores."""
    if sham == "missing-slack":
        return math.ceil(n * (1 - ALPHA))
    return conformal_rank(n, ALPHA, delta=DELTA, method="pac")


def _scored(method: ShrunkMahalanobis, val: Latents, others: list[Latents], sham: str | None) -> list[np.ndarray]:
    """Scores that set the threshold, then those of every other set: fitted on one half of ``val``, read off the other.

    The sham fits to all of them and reads off all of them.
    """
    half = len(val[0]) // 2
    first, second = (slice(0, half), slice(half, None)) if sham != "reused-validation" else (slice(None), slice(None))
    fitted, _ = method.gaussian(val[0][first], val[1][first], CLASSES)
    parts = [(val[0][second], val[1][second]), *others]
    return [own_distances(fitted, f, p).numpy() for f, p in parts]


def _draws(scale: Scale, seed: int, clean: Latents, n: int, k: int) -> Iterator[tuple[Latents, Latents]]:
    """``k`` times n validation samples and other clean queries, drawn from the pool without replacement."""
    rng = torch_rng(seed, "resample", n)
    for _ in range(k):
        order = torch.randperm(len(clean[0]), generator=rng)
        val, rest = order[:n], order[n : n + scale["queries"]]
        yield (clean[0][val], clean[1][val]), (clean[0][rest], clean[1][rest])


def _rates(scale: Scale, seed: int, given: dict[str, Any], size: str, sham: str | None) -> dict[str, Any]:
    """Mean false-positive rate of the marginal threshold, and how often that of the PAC threshold is at most ALPHA."""
    n, marginal, pac = scale[size], [], []
    for name, case in given["cases"].items():
        share = scale["resamples"] // len(given["cases"])
        for val, rest in _draws(scale, derive(seed, name), case["clean"], n, share):
            held, fresh = _scored(OAS_SCM, val, [rest], sham)
            held = np.append(np.sort(held), np.inf)
            m = len(held) - 1
            marginal.append((fresh > held[conformal_rank(m, ALPHA, method="marginal") - 1]).mean())
            pac.append((fresh > held[min(rank(m, sham), m + 1) - 1]).mean())
    kept = float(np.mean(np.array(pac) <= ALPHA))
    return {"arm": f"conformal {size}", "marginal": np.mean(marginal), "kept": kept, "pac": np.mean(pac)}


def _power(scale: Scale, name: str, case: dict[str, Any], sham: str | None) -> Iterator[dict[str, Any]]:
    """AUROC of every score on one trigger, and the share of triggered images above the marginal threshold."""
    n, q = scale["large"], scale["queries"]
    clean = case["clean"]
    val, fresh = (clean[0][:n], clean[1][:n]), (clean[0][n : n + q], clean[1][n : n + q])
    for arm, method in (("scm", OAS_SCM), ("unshrunk", PINV_SCM), ("pooled", replace(OAS_SCM, per_class=False))):
        held, a, b = _scored(method, val, [fresh, case["bad"]], sham)
        limit = np.sort(held)[conformal_rank(len(held), ALPHA, method="marginal") - 1]
        yield {"arm": arm, "trigger": name, "auroc": _auroc(a, b), "tpr": (b > limit).mean(), "fpr": (a > limit).mean()}
    a, b = (s.numpy() for s in case["strip"])
    yield {"arm": "strip", "trigger": name, "auroc": _auroc(a, b), "tpr": (b > np.quantile(a, 1 - ALPHA)).mean()}


def _few(scale: Scale, seed: int, name: str, case: dict[str, Any]) -> dict[str, Any]:
    """AUROC with and without shrinkage from few validation samples, all of which fit mean and covariance."""
    found: dict[str, list[float]] = {"oas": [], "pinv": []}
    k = max(scale["resamples"] // 10, 2)
    for val, rest in _draws(scale, derive(seed, name, "few"), case["clean"], scale["small"], k):
        for key, method in (("oas", OAS_SCM), ("pinv", PINV_SCM)):
            fitted, _ = method.gaussian(*val, CLASSES)
            found[key].append(_auroc(*(own_distances(fitted, *part).numpy() for part in (rest, case["bad"]))))
    return {"arm": "few", "trigger": name, **{key: np.mean(v) for key, v in found.items()}}


def _auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    return float(roc_auc_score(np.repeat([0, 1], [len(inside), len(outside)]), np.r_[inside, outside]))


def gaussian(n: int, seed: int, d: int = 20, size: float = 3.25) -> dict[str, float]:
    """In a Gaussian with a known shift of Mahalanobis length ``size``: AUROCs, and powers against closed forms.

    The axes' variances go from 0.1 to 10, and the whitened shift is equally long along each.
    """
    rng = numpy_rng(seed, "gaussian")
    root = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.geomspace(0.1, 10, d) ** 0.5
    covariance, delta = root @ root.T, root @ rng.choice([-1.0, 1.0], d) * (size / math.sqrt(d))
    clean, bad = rng.normal(size=(n, d)) @ root.T, rng.normal(size=(n, d)) @ root.T + delta
    known = [torch.from_numpy(a) for a in (np.zeros(d), covariance, delta)]
    ratio = [optimal_lr_score(torch.from_numpy(z), *known).numpy() for z in (clean, bad)]
    distance = [np.einsum("nd,dn->n", z, np.linalg.solve(covariance, z.T)) for z in (clean, bad)]
    most = stats.norm.isf(ALPHA) * size  # the ratio's deviation is the shift's length
    return {
        "lr": _auroc(*ratio),
        "lr_error": abs(_auroc(*ratio) - stats.norm.cdf(size / math.sqrt(2))),
        "lr_power_error": abs((ratio[1] > most).mean() - lr_power(size, ALPHA)),
        "maha": _auroc(*distance),
        "maha_power_error": abs((distance[1] > stats.chi2.isf(ALPHA, d)).mean() - mahalanobis_power(size, d, ALPHA)),
        "euclid": _auroc(*((z**2).sum(1) for z in (clean, bad))),
    }


def exact(clean: Latents, seed: int, *, sham: str | None = None) -> dict[str, float]:
    """The level at the threshold, the least exact probability that the PAC promise is kept, and largest differences.

    The share of clean inputs above the k-th of n scores is Beta(n + 1 - k, k), whatever the score.
    """
    kept = [stats.beta.cdf(ALPHA, n + 1 - rank(n, sham), rank(n, sham)) for n in LEVEL_SIZES]
    level = 1 - ALPHA + math.sqrt(math.log(2 / DELTA) / 2000)
    held = np.sort(numpy_rng(seed, "level").normal(size=1000))
    drawn = numpy_rng(seed, "scores").normal(size=(2, 200)).round(1)
    p = [(1 + sum(v >= s for v in drawn[0])) / 201 for s in drawn[1]]
    f, predicted = clean[0][:200], clean[1][:200]
    count = predicted.bincount()
    means = [f[predicted == c].mean(0) if count[c] > 1 else f.mean(0) for c in predicted]
    centred = (f - torch.stack(means)).numpy()
    expected = OAS(assume_centered=True).fit(centred).mahalanobis(centred)
    mine = own_distances(OAS_SCM.gaussian(f, predicted, CLASSES)[0], f, predicted).numpy()
    return {
        "level": abs(held[rank(1000, sham) - 1] - np.quantile(held, level, method="inverted_cdf")),
        "promise": min(kept),
        "pvalue": float(np.abs(conformal_pvalues(drawn[0], drawn[1]) - p).max()),
        "distance": float(np.abs(mine - expected).max() / expected.max()),
    }


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Exact checks, false-positive rates over the draws of validation sets, and power on every trigger."""
    cases = given["cases"]
    rows: list[dict[str, Any]] = [{"arm": "exact", **exact(next(iter(cases.values()))["clean"], seed, sham=sham)}]
    rows += [_rates(scale, seed, given, size, sham) for size in ("large", "small")]
    for name, case in cases.items():
        rows += _power(scale, name, case, sham)
        rows.append(given["few"][name])
        rows.append({"arm": "model", "trigger": name, "asr": case["asr"], "accuracy": case["accuracy"]})
    return Table.of([*rows, {"arm": "gaussian", **given["gaussian"]}])


def _exact_claims(table: Table) -> list[Claim]:
    def claim(
        text: str,
        column: str,
        shams: tuple[str, ...] = (),
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Claim:
        values = table.per_seed(column, arm="exact")
        return Claim(text, values, at_least, at_most, rule="exact", key=bool(shams), refuted_by=shams)

    slack = ("missing-slack",)
    return [
        claim(
            "n = 1000, alpha = .1, delta = .05: the PAC threshold is the .9429 quantile of the scores (difference)",
            "level",
            slack,
            at_most=1e-12,
        ),
        claim(
            "exact probability that the false-positive rate is at most .1, least over n = 300, 738, 1000, 5000",
            "promise",
            slack,
            at_least=1 - DELTA,
        ),
        claim("p-values are (1 + #{V >= v}) / (n + 1): largest difference", "pvalue", at_most=1e-12),
        claim("distances are, relatively, those of scikit-learn's OAS covariance", "distance", at_most=1e-6),
    ]


def _rate_claims(table: Table) -> list[Claim]:
    text = "marginal threshold: mean false-positive rate over the draws lies in [.085, .115], n_val = "
    large, small = (table.per_seed("marginal", arm=f"conformal {size}") for size in ("large", "small"))
    return [
        Claim(f"{text}1000", large, at_least=0.085, at_most=0.115),
        Claim(f"{text}80, d = 64", small, at_least=0.085, at_most=0.115, refuted_by=("reused-validation",)),
        Claim(
            "PAC threshold, n_val = 1000: share of draws whose false-positive rate is at most .1",
            table.per_seed("kept", arm="conformal large"),
            at_least=0.95,
            refuted_by=("missing-slack",),
        ),
    ]


def claims(table: Table) -> list[Claim]:
    """Levels and false-positive rates decide; power, STRIP, shrinkage and the Gaussian models support."""
    triggers = list(dict.fromkeys(r["trigger"] for r in table.rows if "trigger" in r))
    least = np.min([table.per_seed("tpr", arm="scm", trigger=t) for t in triggers], 0)
    over = np.min([table.where(trigger=t).gain("scm", "strip", "auroc") for t in triggers], 0)
    few = [table.per_seed("oas", trigger=t) - table.per_seed("pinv", trigger=t) for t in triggers]
    errors = [table.per_seed(c, arm="gaussian") for c in ("lr_error", "lr_power_error", "maha_power_error")]
    order = [table.per_seed(a, arm="gaussian") - table.per_seed(b, arm="gaussian") for a, b in ORDER]
    support: dict[str, tuple[np.ndarray, float | None, float | None]] = {
        "attack success, least over triggers": (table.per_seed("asr", np.min, arm="model"), 0.9, None),
        "clean accuracy of the poisoned networks": (table.per_seed("accuracy", arm="model"), 0.95, None),
        "triggered images above the marginal threshold (alpha = .1), least over triggers": (least, 0.8, None),
        "AUROC over STRIP's, least over triggers": (over, -0.05, None),
        "AUROC over the unshrunk score's, mean over triggers, n_val = 1000": (
            table.gain("scm", "unshrunk", "auroc"),
            -0.005,
            None,
        ),
        "AUROC over the unshrunk score's, mean over triggers, n_val = 80": (np.mean(few, 0), -0.005, None),
        "Gaussian: AUROC and powers against closed forms, largest difference": (np.max(errors, 0), None, 0.01),
        "Gaussian: AUROC of the ratio over Mahalanobis, of that over Euclid, the lesser": (
            np.min(order, 0),
            0.0,
            None,
        ),
    }
    return [
        *_exact_claims(table),
        *_rate_claims(table),
        *(Claim(text, values, low, high, key=False) for text, (values, low, high) in support.items()),
    ]


ORDER = (("lr", "maha"), ("maha", "euclid"))


def figure(table: Table) -> Figure:
    """False-positive rates by threshold and size of the validation set; AUROC by trigger."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    sizes = ("conformal small", "conformal large")
    for k, (column, label) in enumerate((("marginal", "marginal"), ("pac", "PAC"))):
        values = [table.per_seed(column, arm=size) for size in sizes]
        left.bar(np.arange(2) + 0.35 * k, [v.mean() for v in values], 0.3, label=label)
        for i, v in enumerate(values):
            left.plot(np.full(len(v), i + 0.35 * k), v, ".", color="0.3", ms=4)
    left.axhline(ALPHA, color="0.5", lw=1, ls="--")
    left.set_xticks(np.arange(2) + 0.175, ["80 clean samples", "1000"])
    left.set(ylabel="false-positive rate", title="Promised: at most 0.1")
    left.legend(frameon=False)
    triggers = list(dict.fromkeys(str(r["trigger"]) for r in table.rows if "trigger" in r))
    for k, arm in enumerate(("strip", "pooled", "unshrunk", "scm")):
        values = [table.per_seed("auroc", arm=arm, trigger=t) for t in triggers]
        for i, v in enumerate(values):
            right.plot(np.full(len(v), i + 0.15 * k), v, "o", ms=3, color=f"C{k}", label=arm if i == 0 else None)
    right.set_xticks(np.arange(len(triggers)) + 0.2, triggers)
    right.set(ylabel="AUROC", title="Triggered against clean (one dot a seed)")
    right.legend(frameon=False)
    return drawing
