"""Local function approximation: eight explanation methods fit a linear g to f, each in a neighbourhood of its own.

Exact: on linear f every method recovers its weights, KernelSHAP over all masks gives Shapley values, integrated
gradients are complete and the three gradient methods are what they are elsewhere known as. Learned, on networks for
tumours (30 features) and diabetes (10): no neighbourhood's g is best elsewhere, and explanations of multiplicative
noise find what does not matter when features are removed, those of additive noise when they are moved a little.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import combinations
from math import factorial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.explain import Gradient, GradientInput, IntegratedGradients
from assay.explain.lfa import (
    Bernoulli,
    Gaussian,
    LocalFunctionApproximation,
    Neighbourhood,
    Path,
    c_lime,
    choose_explanation,
    gradient_input,
    integrated_gradients,
    kernel_shap,
    lime,
    occlusion,
    perturbation_test,
    smoothgrad,
    vanilla_gradient,
)
from assay.explain.lfa.solvers import Coefficients, LocalSample
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.random import Draws, seeded, torch_rng
from assay.training import Plan, State, fit

LOSSES: tuple[Literal["squared", "gradient"], ...] = ("squared", "gradient")
TESTS: tuple[Literal["binary", "continuous"], ...] = ("binary", "continuous")
SPACES: Mapping[str, Neighbourhood] = {
    "Gauss 0.1": Gaussian(sigma=0.1),
    "Gauss 1": Gaussian(sigma=1.0),
    "Bernoulli": Bernoulli(),
    "path": Path(rule="random"),
}
METHODS: Mapping[str, LocalFunctionApproximation] = {
    "vanilla gradient": vanilla_gradient(),
    "SmoothGrad": smoothgrad(),
    "C-LIME": c_lime(),
    "integrated gradients": integrated_gradients(),
    "gradient x input": gradient_input(),
    "occlusion": occlusion(),
    "KernelSHAP": kernel_shap(),
    "LIME, no kernel": lime(width=None),
    "LIME": lime(width=0.75 * 30**0.5),  # the width of the package lime for 30 standardised features
    "LIME, width 1": lime(),  # the paper's, for features in [0, 1]
}
TOO_NARROW = "LIME, width 1"  # on standardised features few masks keep any weight: reported, in no claim
WIDE = 8192  # points in one pass through the small networks

PAPER = Paper(
    slug="lfa",
    title="Which Explanation Should I Choose? A Function Approximation Perspective to Characterizing Post Hoc "
    "Explanations",
    authors="Tessa Han, Suraj Srinivas, Himabindu Lakkaraju",
    year=2022,
    arxiv="2206.01254",
    room="explain",
    kind="theory + method",
    implements=(
        "explain.LocalFunctionApproximation",
        "explain.Neighbourhood",
        "explain.lfa.lime",
        "explain.lfa.c_lime",
        "explain.lfa.kernel_shap",
        "explain.lfa.occlusion",
        "explain.lfa.vanilla_gradient",
        "explain.lfa.gradient_input",
        "explain.lfa.smoothgrad",
        "explain.lfa.integrated_gradients",
        "explain.lfa.faithfulness",
        "explain.lfa.choose_explanation",
        "explain.lfa.perturbation_test",
    ),
    claim="Eight explanation methods are one local linear fit in different neighbourhoods, and none is best in all.",
    headline="WHO and HELOC: attributions equal Captum's; binary noise wins binary tests, continuous noise the others.",
    peers=("captum", "shap.KernelExplainer", "lime"),
    shams={
        "x-gradient": "for multiplicative noise the gradient is taken by x, not by the noise: the factor x0 is missing",
        "stale-mask": "in the squared-error fits the noise is rolled by one row against the outputs of f",
    },
    scales=(
        Scale(
            "smoke", 1, {"epochs": 8, "points": 6, "table_points": 2, "n": 150, "table_n": 100, "stein": (200, 2000)}
        ),
        Scale(
            "claim",
            5,
            {"epochs": 40, "points": 100, "table_points": 30, "n": 1000, "table_n": 1000, "stein": (2000, 200_000)},
        ),
        Scale(
            "gpu",
            5,
            {"epochs": 40, "points": 170, "table_points": 100, "n": 5000, "table_n": 20_000, "stein": (2000, 10**6)},
        ),
    ),
)


class _ByX:
    def slope(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


@dataclass(frozen=True, kw_only=True)
class _PathByX(_ByX, Path):
    pass


@dataclass(frozen=True, kw_only=True)
class _BernoulliByX(_ByX, Bernoulli):
    pass


@dataclass(frozen=True, kw_only=True)
class _StaleMask(LocalFunctionApproximation):
    def solve(self, sample: LocalSample, seed: int) -> Coefficients:
        return super().solve(replace(sample, xi=sample.xi.roll(1, dims=1)), seed)


BY_X = {Path: _PathByX, Bernoulli: _BernoulliByX}


def _options(obj: Any) -> dict[str, Any]:
    return {f.name: getattr(obj, f.name) for f in fields(obj)}


def _under(sham: str | None, method: LocalFunctionApproximation) -> LocalFunctionApproximation:
    """The method with its ingredient removed, where the sham concerns it."""
    space = method.neighbourhood
    if sham == "stale-mask" and method.loss == "squared":
        return _StaleMask(**_options(method))
    if sham == "x-gradient" and method.loss == "gradient" and type(space) in BY_X:
        return replace(method, neighbourhood=BY_X[type(space)](**_options(space)))
    return method


@cache
def _table(name: str) -> tuple[Tensor, Tensor]:
    """Standardised features (n, d) and a target (n,): tumours in {0, 1}, diabetes standardised."""
    bunch = load_breast_cancer() if name == "tumours" else load_diabetes()
    x, y = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).float()
    if name == "diabetes":
        y = (y - y.mean()) / y.std()
    return (x - x.mean(0)) / x.std(0), y


def _network(name: str, epochs: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with one output, d-32-32-1, trained on 70% of a table; it and the other 30% in float64."""
    x, y = _table(name)
    order = torch.randperm(len(x), generator=torch_rng(seed, "split", name))
    train, test = order[: round(0.7 * len(x))], order[round(0.7 * len(x)) :]
    bounds = (float(x.min()), float(x.max()))
    data = Data(x, torch.zeros(len(x), dtype=torch.int64), ("value", "none"), bounds, name, fields={"value": y})[train]

    def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
        output, value = model(batch.x)[:, 0], batch.fields["value"]
        return F.mse_loss(output, value) if name == "diabetes" else F.binary_cross_entropy_with_logits(output, value)

    with seeded(seed, "init", name):
        start = MLP((x.shape[1],), 1, (32, 32))
    return fit(start, data, objective, Plan(epochs=epochs), seed=seed).double(), x[test].double(), y[test]


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64)


def shapley_values(model: nn.Module, x: Tensor) -> Tensor:
    """The definition: mean marginal contributions over all coalitions, absent features zero; x (n, d), one output."""
    d = x.shape[1]
    masks = torch.tensor([[code >> j & 1 for j in range(d)] for code in range(2**d)], dtype=x.dtype)
    with torch.no_grad():
        values = model((x[:, None] * masks).flatten(0, 1)).reshape(len(x), -1)
    out = torch.zeros_like(x)
    for i in range(d):
        others = [j for j in range(d) if j != i]
        for size in range(d):
            weight = factorial(size) * factorial(d - size - 1) / factorial(d)
            codes = [sum(1 << j for j in chosen) for chosen in combinations(others, size)]
            out[:, i] += weight * (values[:, [c | 1 << i for c in codes]] - values[:, codes]).sum(1)
    return out


def drawn(seed: int, n: int = 5, d: int = 8) -> dict[str, Any]:
    """A linear and a smooth network of one output, float64, and inputs (n, d)."""
    with seeded(seed, "drawn"):
        smooth = nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        linear = nn.Linear(d, 1).double()
    return {"linear": linear, "smooth": smooth, "x": Draws(seed, "x", torch.arange(n)).normal(d).double()}


def exact(given: Mapping[str, Any], sham: str | None = None) -> dict[str, float]:
    """Largest differences from weights of a linear f, from completeness, and from the explainers of that name."""
    linear, smooth, x = given["linear"], given["smooth"], given["x"]
    y, weight = _zeros(x), linear.weight.detach()
    gaps: dict[str, list[float]] = {"additive": [], "path": [], "squared": []}
    for method in (m for name, m in METHODS.items() if name != TOO_NARROW):
        found = _under(sham, method).attribute(linear, x, y, seed=0)
        expected = weight if method.neighbourhood.additive else weight * x
        group = "squared" if method.loss == "squared" else "additive" if method.neighbourhood.additive else "path"
        gaps[group].append(float((found - expected).abs().max()))
    path = _under(sham, integrated_gradients(rule="trapezoid", n_samples=200)).attribute(smooth, x, y, seed=0)
    rise = (smooth(x) - smooth(torch.zeros_like(x))).detach()[:, 0]
    known = {"vanilla gradient": Gradient(), "gradient x input": GradientInput()}
    known["integrated gradients"] = IntegratedGradients()
    pairs = ((_under(sham, METHODS[name]), other) for name, other in known.items())
    apart = [
        float((a.attribute(smooth, x, y, seed=0) - b.attribute(smooth, x, y, seed=0)).abs().max()) for a, b in pairs
    ]
    return {
        **{name: max(found) for name, found in gaps.items()},
        "complete": float((path.sum(1) - rise).abs().max()),
        "known": max(apart),
    }


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The two trained networks with their test inputs, and the drawn functions."""
    tumours, x, y = _network("tumours", scale["epochs"], seed)
    diabetes, other, _ = _network("diabetes", scale["epochs"], seed)
    with torch.no_grad():
        accuracy = float(((tumours(x)[:, 0] > 0) == (y > 0.5)).double().mean())
    return {"tumours": (tumours, x), "diabetes": (diabetes, other[:6]), "drawn": drawn(seed), "accuracy": accuracy}


def _apart(model: nn.Module, x: Tensor, n: int, seed: int, sham: str | None) -> float:
    """|C-LIME - SmoothGrad| / |SmoothGrad| over all inputs, on the same n points."""
    pair = (_under(sham, m(n_samples=n, batch_size=WIDE)) for m in (c_lime, smoothgrad))
    a, b = (m.attribute(model, x, _zeros(x), seed=seed) for m in pair)
    return float((a - b).norm() / b.norm())


def _losses(scale: Scale, given: Mapping[str, Any], seed: int, sham: str | None) -> list[dict[str, Any]]:
    """Mean loss in each neighbourhood (row) of the g that was fitted in each (column), under both losses."""
    model, x = given["tumours"][0], given["tumours"][1][: scale["table_points"]]
    rows: list[dict[str, Any]] = []
    for loss in LOSSES:
        options: dict[str, Any] = {"loss": loss, "n_samples": scale["table_n"], "batch_size": WIDE}
        fits = {c: _under(sham, LocalFunctionApproximation(neighbourhood=s, **options)) for c, s in SPACES.items()}
        for row, space in SPACES.items():
            found = choose_explanation(
                model, x, _zeros(x), space, fits, seed=seed, loss=loss, n_samples=scale["table_n"]
            )
            rows += [{"arm": f"{loss}, {c}", "loss": loss, "row": row, "fit": c, "value": found[c]} for c in fits]
    return rows


def _perturbed(scale: Scale, given: Mapping[str, Any], seed: int, sham: str | None) -> list[dict[str, Any]]:
    """Mean |change of f| when the third of the features that a method holds least important is removed or moved."""
    model, x = given["tumours"][0], given["tumours"][1][: scale["points"]]
    y, rows = _zeros(x), []
    for name, method in METHODS.items():
        sized = replace(method, n_samples=min(method.n_samples, scale["n"]), batch_size=WIDE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # few effective points are part of what is measured
            found = _under(sham, sized).attribute(model, x, y, seed=seed)
        row: dict[str, Any] = {"arm": name, "moves": method.neighbourhood.additive}
        for noise in TESTS:
            change = perturbation_test(model, x, y, found, k=x.shape[1] // 3, seed=seed, noise=noise, batch_size=WIDE)
            row[noise] = float(change.mean())
        rows.append(row)
    return rows


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The exact differences, C-LIME against SmoothGrad, the tables of losses, and the perturbation tests."""
    diabetes, x = given["diabetes"]
    shap = _under(sham, kernel_shap()).attribute(diabetes, x, _zeros(x), seed=seed)
    gap = float((shap - shapley_values(diabetes, x)).abs().max())
    rows: list[dict[str, Any]] = [{"arm": "exact", "shapley": gap, **exact(given["drawn"], sham)}]
    rows.append({"arm": "network", "accuracy": given["accuracy"]})
    few, many = (_apart(diabetes, x, n, seed, sham) for n in scale["stein"])
    slope = np.log(many / few) / np.log(scale["stein"][1] / scale["stein"][0])
    rows.append({"arm": "C-LIME, SmoothGrad", "few": few, "many": many, "slope": slope})
    return Table.of([*rows, *_losses(scale, given, seed, sham), *_perturbed(scale, given, seed, sham)])


def _ratio(table: Table, column: str) -> np.ndarray:
    """The worst of the methods whose noise fits the test over the best of the others, one number a seed."""
    rows = Table(tuple(r for r in table.rows if "moves" in r and r["arm"] != TOO_NARROW))
    fitting, other = (rows.where(moves=moves) for moves in (column == "continuous", column != "continuous"))
    return fitting.per_seed(column, np.max) / other.per_seed(column, np.min)


def _diagonal(table: Table, loss: str) -> np.ndarray:
    """The smallest over the rows of: least loss of a g that was fitted elsewhere, over that of the row's own g."""
    part = table.where(loss=loss)
    ratios = []
    for name in SPACES:
        others = [part.per_seed("value", row=name, fit=c) for c in SPACES if c != name]
        ratios.append(np.min(others, 0) / part.per_seed("value", row=name, fit=name))
    return np.min(ratios, 0)


def claims(table: Table) -> list[Claim]:
    """Identities, perturbation tests and the diagonals decide; what Stein's lemma says of C-LIME supports."""
    by_x, stale = ("x-gradient",), ("stale-mask",)
    identities: tuple[tuple[str, str, float, tuple[str, ...]], ...] = (
        ("f linear: gradients matched on additive noise give w: largest difference", "additive", 1e-6, ()),
        ("f linear: gradients matched on the path give w x0: largest difference", "path", 1e-6, by_x),
        ("f linear: squared error gives w (C-LIME) or w x0 (masks): largest difference", "squared", 1e-5, stale),
        ("KernelSHAP over all masks of 10 features gives Shapley values: largest difference", "shapley", 1e-8, stale),
        ("matched on the path, 200 points, weights sum to f(x0) - f(0): largest difference", "complete", 1e-3, by_x),
        ("vanilla, x input and integrated gradients are the explainers of that name", "known", 1e-8, by_x),
    )
    return [
        *(
            Claim(text, table.per_seed(column, np.max), at_most=bound, rule="exact", refuted_by=shams, key=bool(shams))
            for text, column, bound, shams in identities
        ),
        *(
            Claim(text, _ratio(table, column), at_most=0.75, refuted_by=by_x)
            for text, column in (
                ("least important third removed: worst multiplicative over best additive |change of f|", "binary"),
                ("least important third moved: worst additive over best multiplicative |change of f|", "continuous"),
            )
        ),
        *(
            Claim(
                f"{loss} loss: each of 4 neighbourhoods is served best by its own g: least ratio of another's loss",
                _diagonal(table, loss),
                at_least=1.0,
                rule="k-of-n",
                k=5,
                refuted_by=shams,
            )
            for loss, shams in (("squared", stale), ("gradient", by_x))
        ),
        Claim(
            "C-LIME and SmoothGrad agree on most points: relative difference",
            table.per_seed("many"),
            at_most=0.05,
            key=False,
            refuted_by=stale,
        ),
        Claim(
            "their relative difference falls as a power of the number of points near -1/2",
            table.per_seed("slope"),
            at_least=-0.7,
            at_most=-0.3,
            key=False,
            refuted_by=stale,
        ),
        Claim(
            "accuracy on tumours of the network that is explained", table.per_seed("accuracy"), at_least=0.93, key=False
        ),
    ]


def figure(table: Table) -> Figure:
    """Both perturbation tests for every method, and the losses of the two tables relative to their diagonals."""
    drawing = Figure(figsize=(11, 3.6), layout="constrained")
    axes = drawing.subplots(1, 3, width_ratios=(1.6, 1, 1))
    for name, method in METHODS.items():
        marker = "o" if method.neighbourhood.additive else "s"
        x, y = (table.values(c, arm=name).mean() for c in TESTS)
        axes[0].plot(x, y, marker, label=name)
    axes[0].set(xlabel="mean |change|, features removed", ylabel="features moved a little", title="Bottom third")
    axes[0].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    names = list(SPACES)
    for axis, loss in zip(axes[1:], LOSSES, strict=True):
        part = table.where(loss=loss)
        cells = np.array([[part.values("value", row=r, fit=c).mean() for c in names] for r in names])
        relative = cells / cells.diagonal()[:, None]
        axis.imshow(np.log10(relative), cmap="viridis", vmin=0, vmax=2 * np.log10(relative).max())
        for i, j in np.ndindex(*relative.shape):
            axis.text(j, i, f"{relative[i, j]:.3g}", ha="center", va="center", color="w", fontsize=7)
        axis.set_xticks(range(len(names)), names, rotation=30, fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set(xlabel="fitted", ylabel="evaluated", title=f"{loss} loss / diagonal")
    return drawing
