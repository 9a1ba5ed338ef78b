"""NMTune: a head on frozen features of noisy pre-training, with terms that reshape their spectrum.

Encoders learn digits 0 to 4 in four rotations under 0, 10 and 30% wrong labels; digits 5 to 9 are the downstream task,
with 200 labels, and the same digits noisy, shifted and of half contrast are out of distribution. What decides is the
mechanism: the three terms are the official formulas, the covariance term is 0 for a whitened batch, and it takes
correlation out of Z on test features. Support: the spectrum under noise, and accuracies against linear probing and the
same head without terms. Batches hold all 200 labelled samples: of fewer than there are dimensions, the covariance of
shuffled columns is that of noise, a penalty on variances that takes correlation out as well. The bound on correlation
is not the paper's: 0.8 was proposed before any run; a pilot gave 0.36, and 0.69 to the sham, and it is now 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from assay.adapt import FeatureTuner, LinearTuning, MLPTuning, NMTune, nmtune_losses
from assay.data import Data, load_data
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.represent import largest_singular_value_ratio, singular_value_entropy
from assay.runtime.inference import predict
from assay.runtime.random import Draws, derive, seeded, torch_rng
from assay.training import Supervised

NOISES = (0.0, 0.1, 0.3)
NOISE, CONTRAST = 0.3, 0.5  # of the images out of distribution
LP, MLP_HEAD, NM, NO_COV = "linear probe", "MLP", "NMTune", "NMTune, w_cov = 0"
WITHOUT = {"mse": 1.0, "cov": 0.0, "svd": 0.001}

PAPER = Paper(
    slug="nmtune",
    title="Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks",
    authors="Hao Chen, Jindong Wang, Ankit Shah, Ran Tao, Hongxin Wei, Xing Xie, Masashi Sugiyama, Bhiksha Raj",
    year=2024,
    arxiv="2309.17002",
    room="adapt",
    also=("represent", "labels"),
    kind="method + measure",
    implements=(
        "adapt.NMTune",
        "adapt.NMTuneHead",
        "adapt.nmtune_losses",
        "adapt.MLPTuning",
        "adapt.LinearTuning",
        "represent.singular_value_entropy",
        "represent.largest_singular_value_ratio",
    ),
    claim="A small head that reshapes the features of an encoder pre-trained on noisy labels improves on linear "
    "probing in and out of distribution.",
    headline="ResNet-50 and CLIP, 0 to 30% noise: linear probing gains in distribution up to 5-10% noise, then loses, "
    "and always loses out of distribution; NMTune improves both at every ratio.",
    peers=("Hhhhhhao/Noisy-Model-Learning",),
    baselines=(f"{LP} 0.3", f"{MLP_HEAD} 0.3", NO_COV),
    shams={
        "shuffled-columns": "each column of Z is permuted by itself over the batch before the covariance is formed",
        "diagonal-kept": "the covariance term sums over all i and j: the condition i != j is lost",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 400, "epochs": 2, "hidden": (32, 24), "labels": 60, "test": 150,
                           "tuning": 3}),
        Scale("claim", 5, {"data": "mnist", "train": 12_000, "epochs": 4, "hidden": (256, 128), "labels": 200,
                           "test": 2000, "tuning": 100}),
    ),
)  # fmt: skip


class _ShuffledColumns(NMTune):
    def losses(self, z: Tensor, features: Tensor) -> dict[str, Tensor]:
        shuffled = z.gather(0, torch.rand(z.shape).argsort(0))
        return super().losses(z, features) | {"cov": super().losses(shuffled, features)["cov"]}


class _DiagonalKept(NMTune):
    def losses(self, z: Tensor, features: Tensor) -> dict[str, Tensor]:
        return super().losses(z, features) | {"cov": z.T.cov().square().sum() / z.shape[1]}


RULES: Mapping[str | None, type[NMTune]] = {
    None: NMTune,
    "shuffled-columns": _ShuffledColumns,
    "diagonal-kept": _DiagonalKept,
}


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _source(scale: Scale, noise: float, seed: int) -> Data:
    """Digits 0 to 4, each image in one of four rotations: 20 classes, a share ``noise`` of labels drawn from the 19
    others."""
    whole = _images(scale["data"])[0]
    data = whole[whole.y < 5].limit(scale["train"], seed=seed)
    turns = torch.arange(len(data)) % 4
    x = torch.stack([torch.rot90(data.x, k, (2, 3)) for k in range(4)])[turns, torch.arange(len(data))]
    y, g = data.y * 4 + turns, torch_rng(seed, "source")
    wrong = (y + torch.randint(1, 20, y.shape, generator=g)) % 20
    return replace(data, x=x, classes=tuple(map(str, range(20)))).with_y(
        torch.where(torch.rand(len(y), generator=g) < noise, wrong, y)
    )


def _shifted(x: Tensor, seed: int) -> Tensor:
    """Images moved by up to a seventh of their width, at half contrast, with normal noise, clipped to [0, 1]."""
    n, _, h, w = x.shape
    draws, most = Draws(seed, "shift", torch.arange(n)), max(h // 7, 1)
    by = draws.integers(2 * most + 1, 2) - most
    rows, columns = (torch.arange(size) - by[:, k, None] for k, size in enumerate((h, w)))
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None]
    moved = x[torch.arange(n)[:, None, None], 0, rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None]]
    spoiled = CONTRAST * (moved * inside)[:, None] + (1 - CONTRAST) / 2
    return (spoiled + NOISE * draws.normal(*x.shape[1:])).clamp(0, 1)


def _features(scale: Scale, noise: float, seed: int) -> dict[str, Any]:
    """Features of the downstream digits, from an encoder pre-trained under this noise."""
    source = _source(scale, noise, seed)
    with seeded(seed, "init"):
        start = MLP(source.shape, 20, scale["hidden"])
    trained = Supervised(epochs=scale["epochs"], batch_size=128, lr=1e-3).fit(start, source, seed=seed)
    assert isinstance(trained, MLP)
    known, new = _images(scale["data"])
    train, test = known[known.y >= 5].limit(scale["labels"], seed=seed), new[new.y >= 5].limit(scale["test"], seed=seed)
    inputs = {"train": train.x, "id": test.x, "ood": _shifted(test.x, derive(seed, "ood"))}
    found: dict[str, Any] = {name: predict(trained.body, x) for name, x in inputs.items()}
    return found | {"y": train.y.numpy(), "y_test": test.y.numpy()}


def correlation(z: np.ndarray) -> float:
    """Mean squared correlation of different columns of Z; a constant column correlates with none."""
    c = np.cov(z, rowvar=False)
    d = np.sqrt(np.diag(c))
    r = c / np.where(np.outer(d, d) > 0, np.outer(d, d), 1.0)
    return float((np.square(r).sum() - np.square(np.diag(r)).sum()) / (len(r) * (len(r) - 1)))


def _row(arm: str, method: FeatureTuner, features: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Accuracy in and out of distribution, and correlation and spectrum of Z on the test features."""
    fitted = method.fit(features["train"], features["y"], seed=seed)
    z = fitted.transform(features["id"])
    return {
        "arm": arm,
        "id": fitted.score(features["id"], features["y_test"]),
        "ood": fitted.score(features["ood"], features["y_test"]),
        "correlation": correlation(z),
        "sve": singular_value_entropy(z),
        "lsvr": largest_singular_value_ratio(z),
    }


def reference_losses(z: np.ndarray, f: np.ndarray) -> dict[str, float]:
    """The official formulas in NumPy, entry by entry where they are sums over entries."""
    unit = [[row / np.sqrt((row**2).sum()) for row in m] for m in (z[-len(f) :], f)]
    c = np.cov(z, rowvar=False)
    off = sum(c[i, j] ** 2 for i in range(len(c)) for j in range(len(c)) if i != j)
    s = np.sqrt(np.clip(np.linalg.eigvalsh(z.T @ z if len(z) >= len(c) else z @ z.T), 0, None))[::-1]
    return {
        "mse": float(np.mean([(a - b) ** 2 for a, b in zip(*unit, strict=True)])),
        "cov": float(off / len(c)),
        "svd": -float(np.mean(s[:5] / s.sum())),
    }


def exact(rule: type[NMTune], seed: int) -> dict[str, float]:
    """Errors, in float64: the terms against the formulas, of one view and of two; the covariance of a whitened batch;
    weights of 0 against the head without terms; the slope of the singular values against differences."""
    g, method = torch_rng(seed, "exact"), rule()
    gaps = dict.fromkeys(("mse", "cov", "svd"), 0.0)
    with seeded(seed, "shuffle"):
        for n, views in ((40, 1), (24, 2), (6, 1)):
            f = torch.randn(n, 8, generator=g, dtype=torch.float64)
            z = torch.randn(n * views, 8, generator=g, dtype=torch.float64) @ torch.randn(8, 8, generator=g).double()
            found, expected = method.losses(z, f), reference_losses(z.numpy(), f.numpy())
            gaps = {k: max(gaps[k], abs(float(found[k]) - expected[k])) for k in gaps}
        x = torch.randn(50, 8, generator=g, dtype=torch.float64)
        x = x - x.mean(0)
        white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
        whitened = float(method.losses(white, white)["cov"])
    y = torch.arange(60) % 3
    f = torch.randn(60, 6, generator=g)
    zero = dict.fromkeys(("mse", "cov", "svd"), 0.0)
    plain, none = (
        m(f) for m in (_heads(MLPTuning(epochs=2), f, y, seed), _heads(rule(epochs=2, weights=zero), f, y, seed))
    )
    z = torch.randn(12, 5, generator=g, dtype=torch.float64)
    slope = _slope_gap(z)
    return {**gaps, "whitened": whitened, "zero": float((plain - none).abs().max()), "slope": slope}


def _heads(method: FeatureTuner, f: Tensor, y: Tensor, seed: int) -> Any:
    return method.fit(f, y, seed=seed).model_.eval().requires_grad_(False)


def _slope_gap(z: Tensor, step: float = 1e-6) -> float:
    """Largest difference of the slope of the singular value term from central differences, over the entries of z."""
    slope = torch.func.grad(lambda a: nmtune_losses(a, a)["svd"])(z)
    moves = step * torch.eye(z.numel(), dtype=z.dtype).reshape(-1, *z.shape)
    up, down = (torch.stack([nmtune_losses(z + sign * m, z)["svd"] for m in moves]) for sign in (1, -1))
    return float((slope.flatten() - (up - down) / (2 * step)).abs().max())


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Features by noise, their spectrum, and every arm that no sham changes."""
    features = {noise: _features(scale, noise, seed) for noise in NOISES}
    rows: list[dict[str, Any]] = []
    for noise, found in features.items():
        spectrum = {"sve": singular_value_entropy(found["id"]), "lsvr": largest_singular_value_ratio(found["id"])}
        rows.append({"arm": f"features {noise:g}", "noise": noise, **spectrum})
        arms = {LP: LinearTuning, MLP_HEAD: MLPTuning} | ({NM: NMTune} if noise < NOISES[-1] else {})
        rows += [_row(f"{name} {noise:g}", _tuner(scale, kind), found, seed) for name, kind in arms.items()]
    rows.append(_row(NO_COV, _tuner(scale, NMTune, weights=WITHOUT), features[NOISES[-1]], seed))
    return {"features": features[NOISES[-1]], "rows": rows}


def _tuner(scale: Scale, kind: type[FeatureTuner], **options: Any) -> FeatureTuner:
    return kind(epochs=scale["tuning"], batch_size=scale["labels"], normalize=True, **options)


def experiment(scale: Scale, seed: int, given: Mapping[str, Any], sham: str | None) -> Table:
    """NMTune under 30% noise, beside the other arms, and the exact checks; shams change the covariance term."""
    arm = _row(f"{NM} {NOISES[-1]:g}", _tuner(scale, RULES[sham]), given["features"], seed)
    return Table.of([*given["rows"], arm, {"arm": "exact", **exact(RULES[sham], seed)}])


def claims(table: Table) -> list[Claim]:
    """The formulas, the whitened batch and the correlation taken out of Z decide; spectra and accuracies support."""
    worst = NOISES[-1]
    nm, mlp, lp = (f"{name} {worst:g}" for name in (NM, MLP_HEAD, LP))
    left = table.per_seed("correlation", arm=nm) / table.per_seed("correlation", arm=NO_COV)
    both = ("shuffled-columns", "diagonal-kept")
    return [
        Claim(
            "mean squared correlation of Z on test features, NMTune over the same with w_cov = 0",
            left,
            at_most=0.5,
            refuted_by=("shuffled-columns",),
        ),
        _identity(table, "covariance term against the official formula, largest difference", "cov", 1e-6, both),
        _identity(table, "mse term against the official formula, largest difference", "mse", 1e-6),
        _identity(table, "singular value term against the official formula, largest difference", "svd", 1e-6),
        _identity(table, "covariance term of a whitened batch", "whitened", 1e-9, ("diagonal-kept",)),
        _identity(table, "weights of 0 against the head without terms, largest difference of logits", "zero", 0.0),
        _identity(table, "slope of the singular value term against central differences", "slope", 1e-6),
        Claim(
            "entropy of the features' singular values under 30% noise exceeds that without noise, 4 of 5",
            table.gain(f"features {worst:g}", "features 0", "sve"),
            at_least=0.0,
            rule="k-of-n",
            k=4,
            key=False,
        ),
        Claim("out of distribution, NMTune over linear probing, 30% noise", table.gain(nm, lp, "ood"), 0.01, key=False),
        Claim("out of distribution, NMTune over the MLP, 30% noise", table.gain(nm, mlp, "ood"), 0.0, key=False),
        *(
            Claim(
                f"in distribution, NMTune over linear probing, {noise:.0%} noise",
                table.gain(f"{NM} {noise:g}", f"{LP} {noise:g}", "id"),
                at_least=0.0,
                key=False,
            )
            for noise in NOISES
        ),
        Claim("entropy of Z's singular values, NMTune over the MLP", table.gain(nm, mlp, "sve"), 0.0, key=False),
        Claim(
            "-log of the largest share of Z's singular values, NMTune over the MLP: the share does not fall",
            table.gain(nm, mlp, "lsvr"),
            at_most=0.0,
            key=False,
        ),
    ]


def _identity(table: Table, text: str, column: str, at_most: float, refuted_by: tuple[str, ...] = ()) -> Claim:
    key = column in ("cov", "mse", "svd", "whitened")
    return Claim(
        text, table.per_seed(column, np.max, arm="exact"), at_most=at_most, rule="exact", key=key, refuted_by=refuted_by
    )


def figure(table: Table) -> Figure:
    """Accuracy over the noise of pre-training, in and out of distribution, and the correlation of Z under 30%."""
    drawing = Figure(figsize=(9.6, 3.2), layout="constrained")
    inside, outside, right = drawing.subplots(1, 3)
    for name in (LP, MLP_HEAD, NM):
        for axes, column in ((inside, "id"), (outside, "ood")):
            axes.plot(NOISES, [table.per_seed(column, arm=f"{name} {e:g}").mean() for e in NOISES], "-o", label=name)
    inside.set(xlabel="wrong labels in pre-training", ylabel="accuracy", title="Downstream digits")
    outside.set(xlabel="wrong labels in pre-training", title="Noisy, shifted, half contrast")
    inside.legend(frameon=False, fontsize=8)
    arms = [f"{MLP_HEAD} {NOISES[-1]:g}", NO_COV, f"{NM} {NOISES[-1]:g}"]
    values = np.stack([table.per_seed("correlation", arm=arm) for arm in arms])
    right.plot(values, np.arange(len(arms)), "o", ms=4, color="0.55")
    right.plot(values.mean(1), np.arange(len(arms)), "|", ms=16, mew=2)
    right.set(
        yticks=range(len(arms)), yticklabels=["MLP", "w_cov = 0", "NMTune"], title="Mean squared correlation of Z"
    )
    right.set_xlim(0)
    return drawing
