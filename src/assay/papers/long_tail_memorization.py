"""A long tail makes memorisation necessary: what a learner loses on points seen once is tau_1 for each of them.

Points with Gamma frequencies, uniform labels: over many draws the mean frequency of points seen l times is tau_l, and
the error of a table and of a table that ignores what it saw once are both the optimum plus sum_l tau_l errn(l). On
digits with 5% wrong labels, the memorisation that a nearest neighbour shows over random subsets finds the wrong labels.
Exact: tau against Gauss-Jacobi quadrature, and a nearest neighbour's memorisation left one out. Support: the cost of
randomised response on labels, Zipf and short tails, and what removing memorised samples costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from scipy.special import roots_jacobi
from torch import Tensor, nn

from assay.curate import memorization_of, memorization_scores, subset_masks
from assay.data import Data, load_data
from assay.dynamics import LongTailProblem, excess_error_of_not_fitting, lookup_learner, tail_weight, tau
from assay.nets import ResNet
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import pick_device, predict
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.runtime.statistics import point
from assay.training import Supervised

SHAPE, CLASSES, WRONG = 0.05, 10, 0.05
EPS = (0.5, 1.0, 2.0, 4.0)
LEARNERS = {"table": 0, "ignores singletons": 1}  # points seen that often or less are guessed
SEEN = 4  # tau is compared for 0 to 3

PAPER = Paper(
    slug="long-tail-memorization",
    title="Does Learning Require Memorization? A Short Tale about a Long Tail",
    authors="Vitaly Feldman",
    year=2020,
    arxiv="1906.05271",
    room="dynamics",
    also=("privacy", "curate"),
    kind="theory",
    implements=(
        "dynamics.tau",
        "dynamics.tail_weight",
        "dynamics.LongTailProblem",
        "dynamics.lookup_learner",
        "dynamics.excess_error_of_not_fitting",
        "curate.memorization_scores",
        "curate.influence_scores",
    ),
    claim="Error exceeds the optimum by tau_l for each point seen l times that is mislabelled; tau_1 is of order 1/n.",
    headline="Theorem; companion study: a third of ImageNet has memorisation of 0.3 or more, and accuracy needs it.",
    shams={
        "shifted-moment": "the moments in tau are one power of the frequency too low, above and below",
        "rolled-masks": "the inclusion masks are moved on by one model before the means are formed",
    },
    scales=(
        Scale("smoke", 1, {"N": 300, "n": 150, "draws": 30, "private": 4, "train": 150, "trials": 60, "net": None}),
        Scale("claim", 8, {"N": 2000, "n": 1000, "draws": 400, "private": 60, "train": 600, "trials": 60, "net": None}),
        Scale("gpu", 5, {"N": 2000, "n": 1000, "draws": 400, "private": 60, "train": 5000, "trials": 400, "net": 2000}),
    ),
)


def _shifted(counts: Any, n: int, *, prior: tuple[str, float], N: int) -> Float[np.ndarray, " l"]:
    """E[a^l (1-a)^(n-l)] / E[a^(l-1) (1-a)^(n-l+1)] for a Gamma prior."""
    return np.maximum(0.0, prior[1] + np.asarray(counts) - 1) / (N * prior[1] + n)


class _ShiftedProblem(LongTailProblem):
    def tau(self, counts: Any) -> Float[np.ndarray, " l"]:
        return _shifted(counts, self.n, prior=("gamma", SHAPE), N=self.N)


TAUS: Mapping[bool, Callable[..., np.ndarray]] = {False: tau, True: _shifted}


def _problem(scale: Scale, sham: str | None = None) -> LongTailProblem:
    rule = _ShiftedProblem if sham == "shifted-moment" else LongTailProblem
    return rule(prior=("gamma", SHAPE), N=scale["N"], n=scale["n"], n_classes=CLASSES)


def _draw(problem: LongTailProblem, seed: int) -> dict[str, np.ndarray]:
    """Of one sample: how many points were seen l times and their frequency, l < SEEN; errors and errn of the learners.

    errn (2, n + 1): l from 0 to n.
    """
    sample = problem.sample(seed=seed)
    counts = sample.counts
    learners = [lookup_learner(sample, CLASSES, ignore=i, seed=derive(seed, i)) for i in LEARNERS.values()]
    return {
        "points": np.bincount(counts, minlength=SEEN)[:SEEN],
        "mass": np.bincount(counts, sample.frequency, minlength=SEEN)[:SEEN],
        "error": np.array([sample.error(h) for h in learners]),
        "errn": np.array([np.bincount(counts, h != sample.labels, minlength=problem.n + 1) for h in learners]),
    }


def _apart(values: Float[np.ndarray, " d"]) -> float:
    """How many standard errors the mean is from 0."""
    return float(abs(values.mean()) / (values.std(ddof=1) / len(values) ** 0.5))


def _theorem(problem: LongTailProblem, draws: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Distances in standard errors, and the gap between the learners over what the theorem says that it is."""
    taus = problem.tau(np.arange(problem.n + 1))
    rows: list[dict[str, Any]] = []
    for seen in range(SEEN):
        mass, points = draws["mass"][:, seen], draws["points"][:, seen]
        row = {"arm": f"seen {seen}", "frequency": mass.sum() / points.sum(), "tau": taus[seen]}
        rows.append({**row, "apart": _apart(mass - taus[seen] * points)})
    opt = (1 - 1 / CLASSES) * draws["points"][:, 0] * taus[0]
    for i, name in enumerate(LEARNERS):
        excess = np.array([excess_error_of_not_fitting(taus[1:], e[1:]) for e in draws["errn"][:, i]])
        row = {"arm": name, "error": draws["error"][:, i].mean(), "predicted": (opt + excess).mean()}
        rows.append({**row, "apart": _apart(draws["error"][:, i] - opt - excess)})
    gap = (draws["error"][:, 1] - draws["error"][:, 0]).mean()
    rows.append({"arm": "gap", "ratio": gap / (taus[1] * draws["errn"][:, 1, 1].mean())})
    return rows


def _quadrature(sham: str | None) -> float:
    """Largest relative distance of tau under a Gamma prior from Gauss-Jacobi quadrature of the Beta moments."""
    n, N, worst = 12, 8, 0.0
    for a in (0.05, 0.5, 2.0):
        x, w = roots_jacobi(n, (N - 1) * a - 1, a - 1)  # exact for polynomials up to degree 2n - 1
        x = (x + 1) / 2
        for seen in range(SEEN):
            top, bottom = (float(w @ (x ** (seen + k) * (1 - x) ** (n - seen))) for k in (1, 0))
            found = TAUS[sham == "shifted-moment"]([seen], n, prior=("gamma", a), N=N)[0]
            worst = max(worst, abs(found / (top / bottom) - 1))
    return worst


def _private(problem: LongTailProblem, draws: int, seed: int) -> dict[str, Any]:
    """Tables after randomised response: singletons mislabelled against the formula, and what that adds to the error."""
    taus, rows = problem.tau(np.arange(problem.n + 1)), []
    for eps in EPS:
        singles, wrong, gaps, predicted = 0, 0, [], []
        for i in range(draws):
            s = derive(seed, "private", i)
            sample = problem.sample(seed=s)
            plain, noisy = (lookup_learner(sample, CLASSES, eps=e, seed=derive(s, eps)) for e in (None, eps))
            counts = sample.counts
            errn = np.bincount(counts, noisy != sample.labels, minlength=problem.n + 1)
            singles, wrong = singles + int((counts == 1).sum()), wrong + int(errn[1])
            gaps.append(sample.error(noisy) - sample.error(plain))
            predicted.append(excess_error_of_not_fitting(taus[1:], errn[1:]))
        rate = (CLASSES - 1) / (np.exp(eps) + CLASSES - 1)
        apart = abs(wrong / singles - rate) / (rate * (1 - rate) / singles) ** 0.5
        above = wrong / singles - (1 - np.exp(eps) / CLASSES)
        rows.append((apart, above, np.mean(gaps), np.mean(predicted)))
    found = np.array(rows)
    r2 = np.corrcoef(found[:, 2], found[:, 3])[0, 1] ** 2
    return {"arm": "randomised response", "rr_apart": found[:, 0].max(), "above": found[:, 1].min(), "r2": r2}


def _tails(seed: int) -> dict[str, Any]:
    """n tau_1 of Zipf's law with its lower bound, and what ignoring singletons costs where there is no tail."""
    n = 1000
    zipf = n * float(tau([1], n, prior="zipf", N=n, method="mc", seed=seed)[0])
    lower = tail_weight("zipf", n, 1 / (3 * n), 2 / n, seed=seed) / 5
    short = LongTailProblem(prior=[1.0], N=n // 40, n=n, n_classes=CLASSES)
    sample = short.sample(seed=seed)
    errors = [sample.error(lookup_learner(sample, CLASSES, ignore=i, seed=seed)) for i in LEARNERS.values()]
    return {"arm": "tails", "zipf": zipf, "over_bound": zipf / lower, "short": abs(errors[1] - errors[0])}


def nearest(x: Tensor, y: Tensor, at: Tensor, *, seed: int) -> Tensor:
    """The label of the nearest training sample."""
    return y[torch.cdist(at.flatten(1).double(), x.flatten(1).double()).argmin(1)]


def _network(steps: int, like: Data) -> Callable[..., Tensor]:
    """Trains a ResNet for ``steps``."""

    def fit_predict(x: Tensor, y: Tensor, at: Tensor, *, seed: int) -> Tensor:
        channels, height, width = like.shape
        with seeded(seed, "network"):
            start = ResNet((channels, height, width), len(like.classes), 32, (1, 1, 1, 1)).to(pick_device())
        model: nn.Module = Supervised(steps=steps, batch_size=128).fit(
            start, Data(x, y, like.classes, like.bounds), seed=seed
        )
        return predict(model, at).argmax(1)

    return fit_predict


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _memorised(scale: Scale, seed: int) -> dict[str, Any]:
    """Which models saw which samples and were right on them; which labels are wrong."""
    train, test = (d.limit(scale["train"], seed=seed) for d in _images("digits" if scale["net"] is None else "cifar10"))
    g = torch_rng(seed, "wrong")
    wrong = torch.zeros(len(train), dtype=torch.bool)
    wrong[torch.randperm(len(train), generator=g)[: round(WRONG * len(train))]] = True
    other = (train.y + torch.randint(1, CLASSES, train.y.shape, generator=g)) % CLASSES
    y = torch.where(wrong, other, train.y)
    learner = nearest if scale["net"] is None else _network(scale["net"], train)
    found = memorization_scores(learner, train.x, y, T=scale["trials"], seed=seed)
    return {"train": train, "test": test, "wrong": wrong, "learner": learner, "found": found}


def _removal(given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Test accuracy on right labels, less that without a tenth of the rightly labelled: most, least and any."""
    train, test, clean = given["train"], given["test"], (~given["wrong"]).nonzero()[:, 0]
    order = clean[given["found"].mem_[clean].argsort(descending=True, stable=True)]
    k = len(train) // 10
    shuffled = clean[torch.randperm(len(clean), generator=torch_rng(seed, "removal"))]

    def accuracy(removed: Tensor) -> float:
        keep = torch.ones(len(train), dtype=torch.bool)
        keep[removed] = False
        predicted = given["learner"](train.x[keep], train.y[keep], test.x, seed=seed)
        return float((predicted == test.y).double().mean())

    whole = accuracy(order[:0])
    lost = {n: whole - accuracy(r) for n, r in {"most": order[:k], "least": order[-k:], "any": shuffled[:k]}.items()}
    return {"arm": "removal", **lost}


def _formed(correct: Bool[Tensor, "t n"], masks: Bool[Tensor, "t n"], sham: str | None) -> Tensor:
    """mem (n,)."""
    return memorization_of(correct, masks.roll(1, 0) if sham == "rolled-masks" else masks)[0]


def _left_one_out(seed: int, sham: str | None) -> float:
    """Largest distance of a nearest neighbour's memorisation, each sample left out once, from its closed form."""
    rng = numpy_rng(seed, "points")
    x, y = torch.from_numpy(rng.normal(size=(40, 3))), torch.from_numpy(rng.integers(3, size=40))
    found = memorization_scores(nearest, x, y, masks=~torch.eye(40, dtype=torch.bool))
    apart = ((x[:, None] - x[None]) ** 2).sum(2).fill_diagonal_(torch.inf)
    expected = (y[apart.argmin(1)] != y).double()
    return float((_formed(found.correct_, found.masks_, sham) - expected).abs().max())


def _constant(seed: int) -> float:
    """Largest memorisation of a learner that always says 0."""
    y = torch.arange(30) % 3
    masks = subset_masks(30, 20, 0.7, seed=seed)
    found = memorization_scores(
        lambda x, y, at, *, seed: torch.zeros(len(at)).long(), y[:, None].float(), y, masks=masks
    )
    return float(found.mem_.abs().max())


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Draws of the problem, models on subsets, and what supports."""
    problem = _problem(scale)
    drawn = [_draw(problem, derive(seed, "draw", i)) for i in range(scale["draws"])]
    given: dict[str, Any] = {"draws": {k: np.stack([d[k] for d in drawn]) for k in drawn[0]}}
    given["memorised"] = _memorised(scale, seed)
    given["rows"] = [
        _private(problem, scale["private"], seed),
        _tails(seed),
        _removal(given["memorised"], seed),
        {"arm": "constant", "mem": _constant(seed)},
    ]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The theorem on the draws, and memorisation against wrong labels."""
    wrong, found = given["memorised"]["wrong"], given["memorised"]["found"]
    mem = _formed(found.correct_, found.masks_, sham)
    pairs = torch.stack([mem, wrong.double()], 1).numpy()
    memorised = {"auc": point("auroc", pairs), "difference": float(mem[wrong].mean() - mem[~wrong].mean())}
    return Table.of(
        [
            *given["rows"],
            *_theorem(_problem(scale, sham), given["draws"]),
            {"arm": "memorised", **memorised},
            {"arm": "exact", "quadrature": _quadrature(sham), "left_out": _left_one_out(seed, sham)},
        ]
    )


def claims(table: Table) -> list[Claim]:
    """The theorem, the wrong labels and the exact checks decide."""
    return [
        Claim(
            "standard errors between frequencies seen 0 to 3 times and tau, and between both learners' errors and "
            "opt + sum tau errn: largest of six",
            table.per_seed("apart", np.max),
            at_most=3.0,
            refuted_by=("shifted-moment",),
        ),
        Claim(
            "the error that ignoring singletons adds, over tau_1 times their number",
            table.per_seed("ratio", arm="gap"),
            at_least=0.9,
            at_most=1.1,
            refuted_by=("shifted-moment",),
        ),
        Claim(
            "area under the ROC curve of memorisation for the 5% of labels that are wrong",
            table.per_seed("auc", arm="memorised"),
            at_least=0.9,
            refuted_by=("rolled-masks",),
        ),
        Claim(
            "tau under Gamma priors is the ratio of moments by Gauss-Jacobi quadrature: largest relative difference",
            table.per_seed("quadrature", np.max),
            at_most=1e-10,
            rule="exact",
            refuted_by=("shifted-moment",),
        ),
        Claim(
            "left one out, a nearest neighbour's memorisation is 1 where the nearest other sample has another label, "
            "else 0: largest difference",
            table.per_seed("left_out", np.max),
            at_most=1e-12,
            rule="exact",
            refuted_by=("rolled-masks",),
        ),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    """What else the paper says."""
    removal = {name: table.per_seed(name, arm="removal") for name in ("most", "least", "any")}
    tails, private = "tails", "randomised response"
    return [
        Claim(
            "a learner that always says the same memorises nothing: largest value",
            table.per_seed("mem", np.max),
            at_most=0.0,
            rule="exact",
            key=False,
        ),
        Claim(
            "mean memorisation of wrongly labelled samples exceeds that of the others by 0.3 or more",
            table.per_seed("difference", arm="memorised"),
            at_least=0.3,
            key=False,
            refuted_by=("rolled-masks",),
        ),
        Claim(
            "without the tenth most memorised clean samples test accuracy loses 0.005 more than without any tenth",
            removal["most"] - removal["any"],
            at_least=0.005,
            key=False,
        ),
        Claim("without the tenth least memorised test accuracy loses", removal["least"], at_most=0.002, key=False),
        Claim(
            "randomised response: standard errors between singletons mislabelled and (K-1) / (e^eps + K - 1)",
            table.per_seed("rr_apart", arm=private),
            at_most=3.0,
            key=False,
        ),
        Claim(
            "randomised response: share of singletons mislabelled less the bound 1 - e^eps / K of any private learner",
            table.per_seed("above", arm=private),
            at_least=0.0,
            key=False,
        ),
        Claim(
            "randomised response: squared correlation over eps of added error with sum tau errn",
            table.per_seed("r2", arm=private),
            at_least=0.95,
            key=False,
        ),
        Claim("n tau_1 under Zipf's law", table.per_seed("zipf", arm=tails), at_least=0.4, at_most=0.8, key=False),
        Claim(
            "tau_1 under Zipf's law over the weight of [1/(3n), 2/n] divided by 5n",
            table.per_seed("over_bound", arm=tails),
            at_least=1.0,
            key=False,
        ),
        Claim(
            "25 points of equal frequency, 1000 samples: what ignoring singletons changes in the error",
            table.per_seed("short", arm=tails),
            at_most=1e-3,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Frequency against tau, and the errors of both learners against the theorem."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for seen in range(SEEN):
        runs = table.per_seed("frequency", arm=f"seen {seen}")
        left.plot(np.full(len(runs), seen), runs, "o", ms=4, color="0.5")
        left.plot(seen, table.values("tau", arm=f"seen {seen}")[0], "_", ms=16, color="C0")
    left.set(xlabel="times seen", ylabel="mean frequency", title="τ (bars), measured (dots)", xticks=range(SEEN))
    for name in LEARNERS:
        right.plot(table.per_seed("predicted", arm=name), table.per_seed("error", arm=name), "o", ms=4, label=name)
    ends = [table.values("predicted").min(), table.values("predicted").max()]
    right.plot(ends, ends, "--", color="0.5")
    right.set(xlabel="opt + Σ τ errn", ylabel="error", title="Mean over draws (one dot a seed)")
    right.legend(frameon=False)
    return drawing
