"""Adversarial error grows like the size of the perturbation: logits crowd next to the largest with a constant density.

Exact: the gaps below the largest of uniform logits have Beta laws, the first with a constant density next to 0, the
next with powers 1 and 2; and under FGSM the error of an affine model of two classes is the share of samples within eps
of its boundary, as found and as predicted. Learned, on MNIST, for three networks each with true and with shuffled
labels: the exponent of the error under FGSM, and the error that the gaps and their slopes predict (the paper's
mean-field argument, s the signs of the loss's gradient). Nothing is clipped, and what counts is that a prediction
changed, so that the clean error has no part in it. Sizes are spread around that which is predicted to flip a tenth;
networks with shuffled labels see as many images as the others, but fewer different ones: what they learn is by heart.

Support: the density of the gaps next to 0, one step toward the least likely class, and cross-entropy with a penalty on
entropy. Its gain is small here, as attacks follow the log-odds; where they follow a cross-entropy that rounds to 0, it
looks larger. The paper's other data sets, adversarially trained networks and architecture search are not run here.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from scipy import integrate, stats
from torch import Tensor, nn

from assay.attacks import (
    FGSM,
    PGD,
    Linf,
    LogitGapDistribution,
    ScalingResult,
    Untargeted,
    adversarial_scaling,
    fit_power_law,
    flip_distance,
    logit_gaps,
    predicted_error,
)
from assay.data import Batch, Data, load_data
from assay.losses import PredictionEntropyLoss
from assay.nets import MLP, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import Draws, derive, seeded, torch_rng
from assay.training import Plan, State, fit

LOGITS, LEVELS, NEAR = 10, (0.05, 0.1, 0.2, 0.4), 0.02  # how many uniform logits, and the sizes of gaps looked at
DIMENSIONS, POINTS = 30, 4000  # of the affine model
RATES = {"true": {"cnn": 6e-3, "mlp": 4e-3, "linear": 1e-2}, "shuffled": {"cnn": 2e-3, "mlp": 2e-3, "linear": 2e-3}}
PARTS = (0.05, 0.1, 0.2)  # of the median gap, where its density is looked at
EPS = 0.1  # of the attacks on the entropy arms

PAPER = Paper(
    slug="intriguing-scaling",
    title="Intriguing Properties of Adversarial Examples",
    authors="Ekin D. Cubuk, Barret Zoph, Samuel S. Schoenholz, Quoc V. Le",
    year=2017,
    arxiv="1711.02846",
    room="losses",
    also=("attacks",),
    kind="measure + theory + method",
    implements=(
        "attacks.adversarial_scaling",
        "attacks.fit_power_law",
        "attacks.predicted_error",
        "attacks.flip_distance",
        "attacks.logit_gaps",
        "attacks.LogitGapDistribution",
        "attacks.architecture_sensitivity",
        "losses.PredictionEntropyLoss",
    ),
    claim="Adversarial error is a power law of the perturbation with exponent near 1, whatever the model and labels.",
    headline="MNIST, CIFAR-10, ImageNet, random data, shuffled labels: exponents of about 0.9 to 1.3.",
    baselines=("cross-entropy",),
    shams={
        "kept-errors": "all samples that are wrong count, so that the clean error stays in; attack and window are kept",
        "random-sign": "the attack steps along random signs in place of those of the gradient",
        "unsorted-logits": "gaps are distances from the first logit, not from the largest",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 500, "images": 600, "epochs": 4, "logits": 40_000, "sizes": 6}),
        Scale(
            "claim",
            8,
            {"data": "mnist", "train": 10_000, "images": 12_000, "epochs": 2, "logits": 200_000} | {"sizes": 8},
        ),
        Scale(
            "gpu",
            5,
            {"data": "cifar10", "train": 25_000, "images": 25_000, "epochs": 20, "logits": 1_000_000} | {"sizes": 16},
        ),
    ),
)


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _network(kind: str, data: Data, plan: Plan, seed: int, lam: float = 0.0) -> nn.Module:
    """A network trained under cross-entropy + ``lam`` x entropy."""
    with seeded(seed, "init", kind):
        if kind == "cnn":
            start: nn.Module = SmallCNN(data.shape, len(data.classes), (8, 16), 32)  # type: ignore[arg-type]
        else:
            start = MLP(data.shape, len(data.classes), (128,) if kind == "mlp" else ())
    loss = PredictionEntropyLoss(lam)

    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        return loss(model(batch.x), batch.y)

    return fit(start, data, objective, plan, seed=seed)


def _networks(train: Data, epochs: int, seed: int) -> dict[tuple[str, str], nn.Module]:
    """Each network with true labels, and with the shuffled labels of a fifth of the images for five times as long."""
    part = train.limit(len(train) // 5, seed=seed)
    shuffled = part.with_y(part.y[torch.randperm(len(part), generator=torch_rng(seed, "labels"))])
    made = {}
    for labels, data, rounds in (("true", train, epochs), ("shuffled", shuffled, 5 * epochs)):
        for kind, lr in RATES[labels].items():
            made[kind, labels] = _network(kind, data, Plan(epochs=rounds, lr=lr), derive(seed, labels))
    return made


def _measured(
    model: nn.Module, x: Tensor, eps: Tensor, signs: Tensor | None = None, attack: Any = "fgsm"
) -> ScalingResult:
    """The model under an attack, or under steps along ``signs``."""
    if signs is not None:
        attack = lambda _model, z, _reference, size: z + size * signs  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no size in the window: the NaN is what is measured
        return adversarial_scaling(model, x, None, eps, attack, "prediction", bounds=None, bootstrap=1)


def _sizes(distance: Float[Tensor, " n"], count: int) -> Float[Tensor, " e"]:
    """Sizes from a thirtieth of that which is predicted to flip a tenth of the samples to four times that."""
    return float(distance.quantile(0.1)) * torch.logspace(-1.5, 0.6, count, dtype=torch.float64)


def _density(model: nn.Module, x: Tensor) -> dict[str, float]:
    """The median gap, and the largest over the least mean density of gaps up to parts of the median."""
    logits = predict(model, x)
    found, median = LogitGapDistribution.fit(logits), float(logit_gaps(logits).median())
    density = [found.cumulative(part * median) / part for part in PARTS]
    return {"median": median, "plateau": max(density) / max(min(density), 1e-12)}


def _entropy_arms(train: Data, test: Data, epochs: int, seed: int) -> list[dict[str, Any]]:
    """Cross-entropy with and without the penalty: gap, accuracy, and errors under attacks of size EPS."""
    rows, some = [], test.limit(1000, seed=seed)
    attacks = {"fgsm": FGSM(ball=Linf(EPS)), "pgd": PGD(ball=Linf(EPS), steps=10)}
    for arm, lam in (("cross-entropy", 0.0), ("entropy", 1.0)):
        model = _network("mlp", train, Plan(epochs=epochs, lr=RATES["true"]["mlp"]), derive(seed, "true"), lam)
        logits = predict(model, test.x)
        row: dict[str, Any] = {"arm": arm, "median": float(logit_gaps(logits).median())}
        row["accuracy"] = float((logits.argmax(1) == test.y).float().mean())
        for name, attack in attacks.items():
            result = attack.run(model, some.x, Untargeted(some.y), seed=seed)
            row[name] = float(result.success.float().mean())
        rows.append(row)
    return rows


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The networks, their errors under FGSM over sizes, and the rows of what no sham changes."""
    images, test = _images(scale["data"])
    train = images.limit(scale["train"], seed=seed)
    unseen = images.without(train.index).limit(scale["images"], seed=seed)
    signs = Draws(seed, "signs", unseen.index).signs(*unseen.shape)
    given: dict[str, Any] = {"arms": {}, "rows": _entropy_arms(train, test, scale["epochs"], seed)}
    for (kind, labels), model in _networks(train, scale["epochs"], seed).items():
        some = unseen[: len(unseen) // 2] if kind == "cnn" else unseen  # it takes the most time
        distance, arm = flip_distance(model, some.x), f"{kind}, {labels} labels"
        eps = _sizes(distance, scale["sizes"])
        predicted = (distance < eps[:, None]).double().mean(1)  # predicted_error, its distances being known
        result = _measured(model, some.x, eps)
        given["arms"][arm] = (labels, model, some, signs[: len(some)], result, predicted)
        given["rows"].append({"arm": f"gaps of {arm}", **_density(model, some.x)})
        if (kind, labels) == ("mlp", "true"):
            least = _measured(model, some.x, 4 * eps, attack="step_ll")
            given["rows"].append({"arm": "least likely class", "exponent": known(least.exponent)})
    return given


def known(value: float) -> float | None:
    """The value, None where it is NaN."""
    return None if np.isnan(value) else value


def law(error: Bool[Tensor, "e n"], result: ScalingResult, predicted: Tensor, arm: str) -> list[dict[str, Any]]:
    """The exponent of an error over sizes, |log(error / predicted)| in the window (mean, largest), and the curve."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = fit_power_law(result.eps, error, bootstrap=1)
    rate = error.double().mean(1)
    away = (rate / predicted).log().abs()[found.mask]
    curve = zip(result.eps.tolist(), rate.tolist(), predicted.tolist(), strict=True)
    off = {"off": float(away.mean()), "most": float(away.max())} if len(away) else {"off": None, "most": None}
    return [{"arm": arm, "exponent": known(found.exponent), **off}] + [
        {"arm": arm, "eps": e, "error": r, "predicted": p} for e, r, p in curve
    ]


def affine(seed: int, sham: str | None = None) -> dict[str, Any]:
    """For a drawn affine model of two classes: the errors found and predicted, less |w x + b| < eps |w|_1 in NumPy."""
    with seeded(seed, "affine"):
        model = MLP((DIMENSIONS,), 2, ()).double()
    g = torch_rng(seed, "points")
    x = torch.randn(POINTS, DIMENSIONS, generator=g, dtype=torch.float64)
    signs = 2.0 * torch.randint(2, x.shape, generator=g) - 1
    (w0, w1), (b0, b1) = (p.detach().numpy() for p in model.parameters())
    distance = np.abs(x.numpy() @ (w1 - w0) + b1 - b0) / np.abs(w1 - w0).sum()
    eps = torch.from_numpy(np.quantile(distance, 0.1) * np.logspace(-1.7, 0.7, 9))
    expected = (distance < eps.numpy()[:, None]).mean(1)
    result = _measured(model, x, eps, signs if sham == "random-sign" else None)
    y = torch.where(torch.rand(POINTS, generator=g) < 0.05, 1 - result.reference, result.reference)
    error = (result.predictions != (y if sham == "kept-errors" else result.reference)).double().mean(1).numpy()
    predicted = predicted_error(model, x, eps).numpy()
    return {"found": np.abs(error - expected).max(), "mean_field": np.abs(predicted - expected).max()}


def uniform(count: int, seed: int, sham: str | None = None) -> dict[str, Any]:
    """Standard errors by which gaps of uniform logits are off their laws: the j-th is Beta(j - 1, LOGITS - j + 2)."""
    logits = torch.rand(count, LOGITS, generator=torch_rng(seed, "uniform"), dtype=torch.float64)
    found = LogitGapDistribution.fit(logits)
    if sham == "unsorted-logits":
        found = LogitGapDistribution((logits[:, :1] - logits[:, 1:]).abs())
    shares, slopes, exponents = [], [], []
    for j in (2, 3, 4):
        beta = stats.beta(j - 1, LOGITS - j + 2)
        for q in LEVELS:
            p = beta.cdf(q)
            shares.append(abs(found.cumulative(q, j) - p) / np.sqrt(p * (1 - p) / count))
        # Hill's estimate is one over the mean of log(q / gap), whose expectation is the integral of cdf(t) / t over
        # cdf(q); the log is close to exponential, so that its standard deviation is about its mean.
        mean = integrate.quad(lambda t, law=beta: law.cdf(t) / t, 0, NEAR)[0] / beta.cdf(NEAR)
        exponents.append(found.local_exponent(j, NEAR))
        slopes.append(abs(1 / exponents[-1] / mean - 1) * np.sqrt(count * beta.cdf(NEAR)))
    return {"shares": max(shares), "slopes": max(slopes)} | {f"power{k}": e for k, e in enumerate(exponents, 1)}


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The exact laws, and exponent, curve and prediction of each network."""
    rows = [{"arm": "uniform", **uniform(scale["logits"], seed, sham)}, {"arm": "affine", **affine(seed, sham)}]
    for arm, (labels, model, data, signs, result, predicted) in given["arms"].items():
        if sham == "random-sign" and labels == "true":
            result = _measured(model, data.x, result.eps, signs)
        reference = data.y if sham == "kept-errors" and labels == "true" else result.reference
        rows += law(result.predictions != reference, result, predicted, arm)
    return Table.of([*rows, *given["rows"]])


def _worst(table: Table, column: str, reduce: Any, labels: str) -> np.ndarray:
    """One number a seed over the networks with these labels."""
    return reduce(np.stack([table.per_seed(column, arm=f"{kind}, {labels} labels") for kind in RATES[labels]]), axis=0)


def claims(table: Table) -> list[Claim]:
    """The laws of uniform logits and of the affine model, exponents and predictions decide; the rest supports."""
    both, true, shuffled = ("kept-errors", "random-sign"), "with true labels", "with shuffled labels"
    names = {"true": true, "shuffled": shuffled}
    sorting = ("unsorted-logits",)
    return [
        Claim(
            "gaps of uniform logits: standard errors by which shares below q are off the Beta laws, largest",
            table.per_seed("shares"),
            at_most=5,
            rule="exact",
            refuted_by=sorting,
        ),
        Claim(
            "gaps of uniform logits: standard errors by which Hill's exponents are off those laws, largest",
            table.per_seed("slopes"),
            at_most=5,
            rule="exact",
            refuted_by=sorting,
        ),
        Claim(
            "affine model: error under FGSM less the share of samples within eps of the boundary, largest",
            table.per_seed("found"),
            at_most=1e-9,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "affine model: predicted error less that share, largest",
            table.per_seed("mean_field"),
            at_most=1e-9,
            rule="exact",
        ),
        *(
            Claim(
                f"{which} exponent of three networks {names[labels]}",
                _worst(table, "exponent", reduce, labels),
                at_least=0.85,
                at_most=1.2,
                refuted_by=("kept-errors",) if labels == "true" else (),
            )
            for labels in RATES
            for which, reduce in (("least", np.min), ("largest", np.max))
        ),
        *(
            Claim(
                f"|log(error / predicted error)|, mean over the window, of three networks {names[labels]}: largest",
                _worst(table, "off", np.max, labels),
                at_most=0.25,
                refuted_by=both if labels == "true" else (),
            )
            for labels in RATES
        ),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    plateau = np.stack([table.per_seed("plateau", arm=f"gaps of {kind}, true labels") for kind in RATES["true"]])
    median = np.stack([table.per_seed("median", arm=a) for a in ("entropy", "cross-entropy")])
    return [
        Claim(
            "gaps of uniform logits to the third: Hill's exponent below 0.02",
            table.per_seed("power2"),
            at_least=1.8,
            at_most=2.1,
            key=False,
            refuted_by=("unsorted-logits",),
        ),
        Claim(
            "mean density of gaps up to .05, .1 and .2 of their median, true labels: largest over least",
            plateau.max(0),
            at_most=1.6,
            key=False,
        ),
        Claim(
            "|log(error / predicted error)|, largest in the window, of three networks with true labels: largest",
            _worst(table, "most", np.max, "true"),
            at_most=0.25,
            key=False,
            refuted_by=("kept-errors", "random-sign"),
        ),
        Claim(
            "one step toward the least likely class, MLP: exponent",
            table.per_seed("exponent", arm="least likely class"),
            at_least=0.85,
            key=False,
        ),
        Claim(
            "penalty on entropy: median gap over that of cross-entropy",
            median[0] / median[1],
            at_least=1.3,
            key=False,
        ),
        Claim(
            "penalty on entropy: accuracy over that of cross-entropy",
            table.gain("entropy", "cross-entropy", "accuracy"),
            at_least=-0.01,
            key=False,
        ),
        Claim(
            f"penalty on entropy: error under FGSM of {EPS} less that of cross-entropy",
            table.gain("entropy", "cross-entropy", "fgsm"),
            at_most=0,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Error over size with the prediction, one curve a network (mean over seeds), and the exponents."""
    drawing = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = drawing.subplots(1, 2)
    arms = [f"{kind}, {labels} labels" for labels in RATES for kind in RATES[labels]]
    seed = table.rows[0]["seed"]
    for k, arm in enumerate(arms):
        curve = {name: table.values(name, arm=arm, seed=seed) for name in ("eps", "error", "predicted")}
        (line,) = left.loglog(curve["eps"], np.maximum(curve["error"], 1e-4), "o", ms=3)
        left.loglog(curve["eps"], np.maximum(curve["predicted"], 1e-4), color=line.get_color(), lw=1)
        values = table.per_seed("exponent", arm=arm)
        right.plot(values, np.full(len(values), k), "o", ms=3, color=line.get_color())
        right.plot([values.mean()], [k], "|", ms=14, color=line.get_color())
    left.set(xlabel="size of the step", ylabel="error", title="FGSM (dots) and prediction (lines), one seed")
    right.set_yticks(range(len(arms)), arms)
    right.axvspan(0.85, 1.2, color="0.92", zorder=0)
    right.set(xlabel="exponent", xlim=(0.7, 1.35), title="Exponents (one dot a seed)")
    right.invert_yaxis()
    return drawing
