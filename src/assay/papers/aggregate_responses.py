"""Learning from mean responses of bags: between bag-level and instance-level losses there is a better one.

Linear regression on Gaussian features: the simulated risk of the interpolated estimator follows our formula for the
proportional limit in six settings, and at the best interpolation it is far below both ends. Exact: the estimator is
least squares on augmented rows, the loss has no gradient at it, and the bag size that is best under label privacy is
that of a search which shares no code with the method. Support: the identity between the losses, diabetes, digits from
class shares, and the simulated choice of the bag size. Noise variance is 1 and |theta| = 1 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.optimize import brentq
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from assay.data import Batch, Data, load_data
from assay.losses import (
    AggregateLinearRegression,
    BagLoss,
    InstanceBagLoss,
    InterpolatedBagLoss,
    interpolated_risk,
    optimal_interpolation,
)
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.privacy import AggregateLaplace, optimal_bag_size
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.training import Plan, State, fit

# Dimensions, bags, bag size, rho.
SETTINGS = (
    (100, 300, 4, 0.3),
    (100, 300, 4, 1.0),
    (100, 150, 3, 0.05),
    (200, 120, 4, 0.5),
    (50, 200, 5, 0.1),
    (100, 80, 10, 0.02),
)
INTERIOR = (100, 300, 10)
EPS = (0.5, 1.0, 2.0, 5.0)
PRIVATE = (3000, 100, 3.0)  # samples, dimensions, clip
DIABETES = {"bag": 0.0, "rho=0.02": 0.02, "rho=0.05": 0.05, "instance": 1.0}
SHARES = {"bag": 0.0, "rho=0.05": 0.05, "rho=0.2": 0.2, "instance": 1.0}

PAPER = Paper(
    slug="aggregate-responses",
    title="Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions",
    authors="Adel Javanmard, Lin Chen, Vahab Mirrokni, Ashwinkumar Badanidiyuru, Gang Fu",
    year=2024,
    arxiv="2401.11081",
    room="losses",
    also=("privacy",),
    kind="method + theory",
    implements=(
        "losses.InterpolatedBagLoss",
        "losses.BagLoss",
        "losses.InstanceBagLoss",
        "losses.AggregateLinearRegression",
        "losses.interpolated_risk",
        "losses.optimal_interpolation",
        "privacy.AggregateLaplace",
        "privacy.optimal_bag_size",
    ),
    claim="Instance level is bag level plus within-bag shrinkage; an interior mix of the two has a far lower risk.",
    headline="Theory meets simulation; the interpolating estimator is best on tabular data; a best bag size under DP.",
    peers=("numpy.linalg.lstsq",),
    shams={
        "missing-bag-size": "the scatter within bags counts rho / m in the normal equations: its 1 / k is lost",
        "per-user-noise": "the noise on a bag's mean has scale 2 C / eps: the sensitivity is not divided by k",
    },
    baselines=("bag", "instance"),
    scales=(
        Scale("smoke", 1, {"trials": 2, "splits": 2, "private": 1, "steps": 10}),
        Scale("claim", 8, {"trials": 30, "splits": 20, "private": 3, "steps": 250}),
    ),
)


class _MissingBagSize(AggregateLinearRegression):
    def shrinkage(self, size: np.ndarray) -> np.ndarray:
        return np.ones_like(size)


class _PerUserNoise(AggregateLaplace):
    def scale(self, size: np.ndarray) -> np.ndarray:
        return np.full_like(size, 2 * self.clip / self.eps, dtype=float)


def _trial(d: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, responses and true coefficients of norm 1."""
    rng = numpy_rng(seed, "trial", d, n)
    theta = rng.normal(size=d)
    theta /= np.linalg.norm(theta)
    x = rng.normal(size=(n, d))
    return x, x @ theta + rng.normal(size=n), theta


def _bags(n: int, k: int) -> np.ndarray:
    """n // k bags of k, in order: the samples are exchangeable."""
    return np.arange(n) // k


def _risks(
    rule: type[AggregateLinearRegression], d: int, m: int, k: int, rho: float, trials: int, seed: int
) -> Float[np.ndarray, " trials"]:
    """Squared distances of the estimate from the truth."""
    found, bag = [], _bags(m * k, k)
    for i in range(trials):
        x, y, theta = _trial(d, m * k, derive(seed, "risk", m, k, i))
        fitted = rule(rho=rho, intercept=False).fit(x, bag, y.reshape(m, k).mean(1))
        found.append(((fitted.coef_ - theta) ** 2).sum())
    return np.array(found)


def _follows(rule: type[AggregateLinearRegression], scale: Scale, seed: int) -> Iterator[dict[str, Any]]:
    """Simulated and predicted risk; their distance in units of what is allowed, max(3 standard errors, 5%)."""
    for d, m, k, rho in SETTINGS:
        risks = _risks(rule, d, m, k, rho, scale["trials"], seed)
        theory = sum(interpolated_risk(d, m, k, rho))
        allowed = max(3 * risks.std(ddof=1) / len(risks) ** 0.5, 0.05 * theory)
        where = {"arm": "interpolated", "d": d, "m": m, "k": k, "rho": rho}
        yield {**where, "simulated": risks.mean(), "theory": theory, "distance": abs(risks.mean() - theory) / allowed}


def _interior(rule: type[AggregateLinearRegression], rho: float, scale: Scale, seed: int) -> float:
    return float(_risks(rule, *INTERIOR, rho, scale["trials"], seed).mean())


def _augmented(rule: type[AggregateLinearRegression], seed: int) -> dict[str, float]:
    """Distance from least squares on augmented rows, and the gradient of the loss at the estimate; unequal bags."""
    rng = numpy_rng(seed, "augmented")
    size = rng.integers(1, 7, 30)
    bag, m, rho, d = np.repeat(np.arange(30), size), 30, 0.3, 12
    x, y = rng.normal(size=(size.sum(), d)), rng.normal(size=size.sum())
    ybar = np.array([y[bag == a].mean() for a in range(m)])
    xbar = np.array([x[bag == a].mean(0) for a in range(m)])
    rows = [xbar / m**0.5, np.sqrt(rho / (m * size[bag]))[:, None] * (x - xbar[bag])]
    target = np.concatenate([ybar / m**0.5, np.zeros(len(x))])
    direct = np.linalg.lstsq(np.concatenate(rows), target, rcond=None)[0]
    found = rule(rho=rho, intercept=False).fit(x, bag, ybar).coef_
    theta = torch.tensor(found, requires_grad=True)
    loss = InterpolatedBagLoss(rho)(torch.tensor(x) @ theta, torch.tensor(ybar), torch.tensor(bag))
    (gradient,) = torch.autograd.grad(loss, theta)
    return {"lstsq": float(np.abs(found - direct).max()), "gradient": float(gradient.abs().max())}


def _identity(seed: int) -> dict[str, Any]:
    """Instance loss less bag loss less the variance within bags, and Jensen's inequality for cross-entropy."""
    g = torch_rng(seed, "identity")
    size = torch.randint(1, 6, (25,), generator=g)
    bag = torch.repeat_interleave(torch.arange(25), size)
    f, y = (torch.randn(n, generator=g, dtype=torch.float64) for n in (len(bag), 25))
    within = torch.stack([f[bag == a].var(correction=0) for a in range(25)]).mean()
    gap = InstanceBagLoss()(f, y, bag) - BagLoss()(f, y, bag) - within
    logits = torch.randn(len(bag), 4, generator=g, dtype=torch.float64)
    shares = torch.rand(25, 4, generator=g, dtype=torch.float64).softmax(1)
    jensen = InstanceBagLoss("cross-entropy")(logits, shares, bag) - BagLoss("cross-entropy")(logits, shares, bag)
    return {"arm": "identity", "identity": abs(float(gap)), "jensen": float(jensen)}


def _searched(eps: float) -> int:
    """The best bag size by a fine grid over rho and a bracketed root: none of the method's code."""
    n, d, clip = PRIVATE
    least: dict[int, float] = {}
    for k in (k for k in range(1, n + 1) if n % k == 0):
        m, noise = n // k, 1 + 2 * k * (2 * clip / (k * eps)) ** 2
        for rho in np.geomspace(1e-4, 1.0, 250):
            q = m * (k - 1) * rho

            def excess(u: float, m: int = m, q: float = q, rho: float = rho) -> float:
                t = np.exp(u)
                return m * t / (1 + t) + q * t / (1 + rho * t) - d

            t = np.exp(brentq(excess, -30, 30))
            slope = m / (1 + t) ** 2 + q / (1 + rho * t) ** 2
            f = m * m * (1 - t) / (1 + t) ** 3 + m * d / (1 + t) ** 2
            risk = noise * m * t / (1 + t) ** 2 / slope + 1 - (2 * m * t / (1 + t) - f * t / slope) / d
            least[k] = min(least.get(k, np.inf), risk)
    return min(least, key=lambda k: least[k])


SEARCHED = cache(_searched)


def _private(mechanism: type[AggregateLaplace], scale: Scale, seed: int) -> Iterator[dict[str, Any]]:
    """For each eps the best bag size by theory and by search, and by simulation with released means."""
    n, d, clip = PRIVATE
    for eps in EPS:
        method = mechanism(eps=eps, clip=clip)
        best = optimal_bag_size(method, n, d)
        risks = {}
        for k in (1, 2, 3, 4, 6, 8, 12, 24):
            rho = optimal_interpolation(d, n // k, k, AggregateLaplace(eps=eps, clip=clip).effective_noise(k, 1.0)).rho
            total = 0.0
            for i in range(scale["private"]):
                s = derive(seed, "private", i)
                x, y, theta = _trial(d, n, s)
                means = method.release(y, _bags(n, k), seed=derive(s, k, eps))
                fitted = AggregateLinearRegression(rho=rho, intercept=False).fit(x, _bags(n, k), means)
                total += float(((fitted.coef_ - theta) ** 2).sum())
            risks[k] = total
        simulated = min(risks, key=lambda k: risks[k])
        apart = {"simulated_apart": abs(np.log2(simulated / best.k)), "apart": abs(np.log2(best.k / SEARCHED(eps)))}
        yield {"arm": "private", "eps": eps, "best": best.k, "simulated_best": simulated, **apart}


@cache
def _diabetes() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_diabetes(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def _diabetes_rows(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Test error of each rho from bags of 8, averaged over random splits."""
    x, y = _diabetes()
    totals = dict.fromkeys(DIABETES, 0.0)
    for i in range(scale["splits"]):
        order = numpy_rng(seed, "diabetes", i).permutation(len(x))
        train, test = order[:328], order[328:]
        bag = _bags(328, 8)
        means = np.bincount(bag, y[train]) / 8
        for name, rho in DIABETES.items():
            fitted = AggregateLinearRegression(rho=rho).fit(x[train], bag, means)
            totals[name] += float(((fitted.predict(x[test]) - y[test]) ** 2).mean()) / scale["splits"]
    return [{"arm": f"diabetes, {name}", "error": total} for name, total in totals.items()]


def _shares_rows(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Test accuracy on digits of networks trained on the class shares of bags of 8."""
    train, test = load_data("digits", "train"), load_data("digits", "test")
    order = torch.randperm(1000, generator=torch_rng(seed, "bags"))
    x = train.x[order].reshape(125, 8, 1, 8, 8)
    shares = nn.functional.one_hot(train.y[order], 10).float().reshape(125, 8, 10).mean(1)
    data = Data(x, torch.zeros(125, dtype=torch.int64), train.classes, fields={"shares": shares})
    with seeded(seed, "init"):
        start = MLP(train.shape, 10, (64,))
    rows = []
    for name, rho in SHARES.items():
        loss = InterpolatedBagLoss(rho, "cross-entropy")

        def objective(model: nn.Module, batch: Batch, state: State, loss: nn.Module = loss) -> Tensor:
            bag = torch.arange(len(batch.x)).repeat_interleave(8)
            return loss(model(batch.x.flatten(0, 1)), batch.fields["shares"], bag)

        model = fit(start, data, objective, Plan(steps=scale["steps"], batch_size=16, lr=3e-3), seed=seed)
        accuracy = float((predict(model, test.x).argmax(1) == test.y).double().mean())
        rows.append({"arm": f"digits, {name}", "accuracy": accuracy})
    return rows


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """What no sham changes: both ends at the interior setting, identity, diabetes, digits, and the released means."""
    ends = {"bag": 0.0, "instance": 1.0}
    rows = [{"arm": arm, "risk": _interior(AggregateLinearRegression, rho, scale, seed)} for arm, rho in ends.items()]
    rows += [_identity(seed), *_diabetes_rows(scale, seed), *_shares_rows(scale, seed)]
    given = {"rows": rows, "own": _own(AggregateLinearRegression, scale, seed)}
    return given | {"private": list(_private(AggregateLaplace, scale, seed))}


def _own(rule: type[AggregateLinearRegression], scale: Scale, seed: int) -> list[dict[str, Any]]:
    """The estimator's rows: its risk at the best interpolation, the exact checks, and theory against simulation."""
    best = optimal_interpolation(*INTERIOR)
    own = {"arm": "best rho", "risk": _interior(rule, best.rho, scale, seed), "rho": best.rho}
    return [own, {"arm": "exact", **_augmented(rule, seed)}, *_follows(rule, scale, seed)]


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Simulations of the estimator, its exact checks, and the bag size under privacy."""
    own = _own(_MissingBagSize, scale, seed) if sham == "missing-bag-size" else given["own"]
    private = list(_private(_PerUserNoise, scale, seed)) if sham == "per-user-noise" else given["private"]
    return Table.of([*given["rows"], *own, *private])


def claims(table: Table) -> list[Claim]:
    """Simulation against theory, the interior optimum and the exact checks decide."""
    best, bag, instance = (table.per_seed("risk", arm=arm) for arm in ("best rho", "bag", "instance"))
    lost = ("missing-bag-size",)
    return [
        Claim(
            "distance of simulated from predicted risk over max(3 standard errors, 5%): largest of six settings",
            table.per_seed("distance", np.max),
            at_most=1.0,
            refuted_by=lost,
        ),
        Claim("risk at the best rho over that of the bag loss", best / bag, at_most=0.75, refuted_by=lost),
        Claim("risk at the best rho over that of the instance loss", best / instance, at_most=0.5, refuted_by=lost),
        Claim(
            "the estimator is least squares on augmented rows: largest difference",
            table.per_seed("lstsq", np.max),
            at_most=1e-8,
            rule="exact",
            refuted_by=lost,
        ),
        Claim(
            "the gradient of the interpolated loss at the estimate: largest entry",
            table.per_seed("gradient", np.max),
            at_most=1e-8,
            rule="exact",
            refuted_by=lost,
        ),
        Claim(
            "the best bag size under label privacy is that of an independent search, eps 0.5 to 5: octaves apart",
            table.per_seed("apart", np.max),
            at_most=1e-9,
            rule="exact",
            refuted_by=("per-user-noise",),
        ),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    def ratio(arm: str, reference: str) -> np.ndarray:
        return table.per_seed("error", arm=f"diabetes, {arm}") / table.per_seed("error", arm=f"diabetes, {reference}")

    inner = np.maximum(*(table.per_seed("accuracy", arm=f"digits, {a}") for a in ("rho=0.05", "rho=0.2")))
    ends = np.maximum(*(table.per_seed("accuracy", arm=f"digits, {a}") for a in ("bag", "instance")))
    best = np.minimum(ratio("rho=0.02", "bag"), ratio("rho=0.05", "bag"))
    shrunk = np.minimum(ratio("rho=0.02", "instance"), ratio("rho=0.05", "instance"))
    return [
        Claim(
            "instance loss = bag loss + variance within bags, for squares and unequal bags: largest difference",
            table.per_seed("identity", np.max),
            at_most=1e-12,
            rule="exact",
            key=False,
        ),
        Claim(
            "instance loss - bag loss under cross-entropy is not negative",
            table.per_seed("jensen", np.min),
            at_least=0.0,
            rule="exact",
            key=False,
        ),
        Claim("diabetes, bags of 8: test error at rho 0.02 or 0.05 over bag level", best, at_most=0.97, key=False),
        Claim(
            "diabetes, bags of 8: test error at rho 0.02 or 0.05 over instance level", shrunk, at_most=0.8, key=False
        ),
        Claim(
            "digits from class shares: accuracy inside over the better end", inner - ends, at_least=-0.005, key=False
        ),
        Claim(
            "simulated and predicted best bag size under privacy are at most an octave apart, on average over eps",
            table.per_seed("simulated_apart"),
            at_most=1.0,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Risk over rho by theory with the simulated points, and the best bag size over eps."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    d, m, k = INTERIOR
    rhos = np.geomspace(1e-3, 1, 80)
    left.semilogx(rhos, [sum(interpolated_risk(d, m, k, rho)) for rho in rhos], label="theory")
    for arm, rho in {"bag": 1e-3, "best rho": table.values("rho", arm="best rho")[0], "instance": 1.0}.items():
        runs = table.per_seed("risk", arm=arm)
        left.plot(np.full(len(runs), rho), runs, "o", ms=4, label=arm)
    left.set(xlabel="ρ (bag level at the left edge)", ylabel="risk", title=f"d = {d}, {m} bags of {k}")
    left.legend(frameon=False)
    for name, style in {"best": "-o", "simulated_best": "x"}.items():
        found: Mapping[float, np.ndarray] = {eps: table.values(name, arm="private", eps=eps) for eps in EPS}
        right.loglog(EPS, [np.median(v) for v in found.values()], style, label=name.replace("_", " "))
    right.set(xlabel="ε", ylabel="bag size", title="Best bag size under label privacy")
    right.legend(frameon=False)
    return drawing
