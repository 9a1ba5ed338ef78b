"""A guard for safety-critical vision and language: trust index, excess of optimal risk, signed miscalibration.

The thesis plan has no experiment of its own; the claims are those of its component papers and of what its measures are
by definition. Exact: the trust index is 1 and the excess area 0 for a perfect order, both have closed forms for one
that knows nothing; signed miscalibration is bounded by ECE, reached only where all bins err to one side, and tells
under- from over-confidence. Simulated: the trust index falls as noise is added to the uncertainty. Support: MNIST with
classes thinned from 1 to 0.1, where class-wise temperatures (MSC-TS) stand against one temperature by the same grid, as
in the official code; trust and accuracy of six networks; a curriculum; a small two-tower model that answers questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn

from assay.adapt import ConfidenceCurriculum
from assay.calibrate import (
    MSCTemperatureScaling,
    Outputs,
    TemperatureScaling,
    classwise_miscalibration,
    ece,
    miscalibration_score,
    reliability,
)
from assay.data import Data, load_data
from assay.decide import (
    Safeguard,
    e_auopt_rc,
    ood_auroc,
    optimal_area,
    perturbation_panel,
    random_excess,
    trust_index,
)
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import numpy_rng, seeded, torch_rng
from assay.training import Supervised, Trainer

NETWORKS = ((8, 2), (8, 20), (64, 2), (64, 20), (256, 2), (256, 20))  # width and epochs
MAIN = 3
NOISES, REPEATS = (0.1, 0.3, 0.6, 1.0, 1.6, 2.5), 5
ANSWERS = ("one", "two", "red", "green", "blue")
RISK = 0.1
TS, MSC, LIKELIHOOD = "TS", "MSC-TS", "TS, likelihood"

PAPER = Paper(
    slug="safe-vlp",
    title="Building Safe and Reliable AI systems for Safety Critical Tasks with Vision-Language Processing",
    authors="Shuang Ao",
    year=2023,
    arxiv="2308.03176",
    room="calibrate",
    also=("detect", "decide"),
    kind="survey",
    implements=(
        "calibrate.miscalibration_score",
        "calibrate.classwise_miscalibration",
        "calibrate.MSCTemperatureScaling",
        "decide.risk_coverage",
        "decide.e_auopt_rc",
        "decide.trust_index",
        "decide.Safeguard",
        "decide.perturbation_panel",
        "decide.answer_logits",
        "decide.sequence_confidence",
        "adapt.ConfidenceCurriculum",
    ),
    claim="Accuracy and calibration error do not say whom to trust: the trust index ranks by what can be rejected, and "
    "signed class-wise miscalibration tells over- from under-confidence.",
    headline="Component papers: MSC-TS below temperature scaling in ECE and class-wise ECE on CIFAR-10/100, "
    "Tiny-ImageNet and ImageNet; more accurate models can have a lower trust index.",
    peers=("AoShuang92/miscalibration_TS", "AoShuang92/Confidence_Calibration_CL", "netcal", "torch-uncertainty"),
    baselines=(TS, LIKELIHOOD),
    shams={
        "unsorted-coverage": "the retained set is the first samples by position, not by ascending uncertainty",
        "unsigned-miscalibration": "|conf - acc| of each bin in place of the signed difference, in all and by class",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 300, "val": 200, "test": 300, "gammas": 41, "samples": 2000,
                           "questions": 120, "epochs": 2}),
        Scale("claim", 6, {"data": "mnist", "train": 3000, "val": 3000, "test": 7000, "gammas": 1001,
                           "samples": 100_000, "questions": 600, "epochs": 20}),
    ),
)  # fmt: skip


def unsigned(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sham's class-wise score: sum over bins of n_b |conf_b - acc_b| / n within each true class."""
    return np.array([reliability(p[y == k], y[y == k]).ece if (y == k).any() else 0.0 for k in range(p.shape[1])])


class _Unsigned(MSCTemperatureScaling):
    def scores(self, p: np.ndarray, y: np.ndarray) -> np.ndarray:
        return unsigned(p, y)


class Rules:
    """The measures of the real run or of a sham."""

    def __init__(self, sham: str | None) -> None:
        self.unsorted, self.unsigned = sham == "unsorted-coverage", sham == "unsigned-miscalibration"
        self.scaling = _Unsigned if self.unsigned else MSCTemperatureScaling

    def order(self, u: np.ndarray) -> np.ndarray:
        """What samples are retained by."""
        return np.arange(len(u)) if self.unsorted else u

    def trust(self, right: np.ndarray, u: np.ndarray) -> float:
        return trust_index(right, self.order(u))

    def excess(self, right: np.ndarray, u: np.ndarray) -> float:
        return e_auopt_rc(right, self.order(u))

    def score(self, p: np.ndarray, y: np.ndarray) -> float:
        return ece(p, y) if self.unsigned else miscalibration_score(p, y)

    def by_class(self, p: np.ndarray, y: np.ndarray) -> np.ndarray:
        return unsigned(p, y) if self.unsigned else classwise_miscalibration(p, y)


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def ranking_errors(rules: Rules, seed: int, n: int) -> dict[str, float]:
    """Differences from what is known: a perfect order, one that knows nothing (all samples alike, which is the
    expectation over orders), the area under the optimal curve, and four samples by hand."""
    rng = numpy_rng(seed, "ranking")
    right = (rng.random(n) < 0.7).astype(float)
    a, flat = right.mean(), np.zeros(n)
    coverage = np.arange(1, n + 1) / n
    best = np.maximum(coverage - a, 0) / coverage
    hand, u = np.array([1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])  # risks 0, 1/2, 1/3, 1/4; c* = 3/4
    area = (1 / 3 - 0 + 1 / 4 - 1 / 4) / 2 / 4
    return {
        "oracle_trust": abs(rules.trust(right, 1 - right) - 1),
        "oracle_excess": abs(rules.excess(right, 1 - right)),
        "random_trust": abs(rules.trust(right, flat) - a),
        "random_excess": abs(rules.excess(right, flat) - random_excess(a)),
        "optimal": abs(np.trapezoid(best, coverage) - optimal_area(a)),
        "hand": max(abs(rules.trust(hand, u) - 2 / 3), abs(rules.excess(hand, u) - area)),
    }


def noise_correlation(rules: Rules, seed: int, n: int = 2000) -> float:
    """Mean Spearman correlation of the trust index with the noise on a perfect uncertainty, over repeats."""
    rng, found = numpy_rng(seed, "noise"), []
    for _ in range(REPEATS):
        draws = [(rng.random(n) < 0.7).astype(float) for _ in NOISES]
        trust = [
            rules.trust(right, 1 - right + noise * rng.normal(size=n))
            for right, noise in zip(draws, NOISES, strict=True)
        ]
        found.append(spearmanr(NOISES, trust).statistic)
    return float(np.mean(found))


def miscalibration_errors(rules: Rules, seed: int) -> dict[str, float]:
    """``bounded``: least ECE - |MCS| over random outputs; ``mixed``: the same where bins err to both sides; ``one``:
    where all err to one; ``under``: MCS of outputs that say 0.7 and are right 9 times of 10; ``mean``: MCS against mean
    confidence less accuracy, which it telescopes to."""
    rng = numpy_rng(seed, "miscalibration")
    p = rng.dirichlet(np.full(4, 0.4), (30, 200))
    y = rng.integers(4, size=(30, 200))
    gaps = [ece(q, t) - abs(rules.score(q, t)) for q, t in zip(p, y, strict=True)]
    says, right = np.repeat([0.7, 0.95], 200), np.concatenate((np.arange(200) % 10 > 0, np.arange(200) % 2 > 0))
    q = np.column_stack((says, 1 - says))
    mixed = (q, np.where(right, 0, 1))
    low = (q[:200], mixed[1][:200])
    plain = [float(q.max(1).mean() - (q.argmax(1) == t).mean()) for q, t in zip(p, y, strict=True)]
    return {
        "bounded": min(gaps),
        "mixed": ece(*mixed) - abs(rules.score(*mixed)),
        "one": abs(ece(*low) - abs(rules.score(*low))),
        "under": rules.score(*low),
        "mean": max(abs(rules.score(q, t) - m) for q, t, m in zip(p, y, plain, strict=True)),
    }


def _split(scale: Scale, seed: int) -> tuple[Data, Data, Data]:
    """Training images with class k thinned to 1 - 0.1 k, validation images, test images."""
    whole, test = _images(scale["data"])
    order = torch.randperm(len(whole), generator=torch_rng(seed, "split"))
    train, val = whole[order[: scale["train"]]], whole[order[scale["train"] : scale["train"] + scale["val"]]]
    kept = torch.rand(len(train), generator=torch_rng(seed, "thin")) < 1 - 0.1 * train.y
    return train[kept], val, test.limit(scale["test"], seed=seed)


def _trained(data: Data, method: type[Trainer], width: int, epochs: int, seed: int) -> nn.Module:
    with seeded(seed, "init"):
        start = MLP(data.shape, len(data.classes), (width,))
    return method(epochs=epochs, batch_size=64, lr=2e-3).fit(start, data, seed=seed)


def _two_towers(scale: Scale, seed: int) -> dict[str, Any]:
    """Validation and test outputs of a model that answers "how many?" and "which colour?" on noisy 8 x 8 images."""
    n = scale["questions"]
    g = torch_rng(seed, "questions")
    count, colour, question = (torch.randint(k, (3 * n,), generator=g) for k in (2, 3, 2))
    image = torch.zeros(3 * n, 3, 8, 8)
    rows, places = torch.arange(3 * n), torch.rand(3 * n, 4, generator=g).argsort(1)
    for k in range(2):
        shown = (k <= count).float()
        top, left = places[:, k] // 2 * 4 + 1, places[:, k] % 2 * 4 + 1
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            image[rows, colour, top + i, left + j] = shown
    image = (image + 0.4 * torch.randn(image.shape, generator=g)).clamp(-3, 4)
    x = torch.cat((image.flatten(1), nn.functional.one_hot(question, 2).float()), 1)
    y = torch.where(question == 0, count, 2 + colour)
    data = Data(x, y, ANSWERS, (-3.0, 4.0), "questions")
    with seeded(seed, "towers"):
        start = TwoTowers()
    model = Supervised(epochs=scale["epochs"], batch_size=32, lr=5e-3).fit(start, data[:n], seed=seed)
    val, test = data[slice(n, 2 * n)], data[slice(2 * n, None)]
    return {"val": predict(model, val.x), "y_val": val.y, "test": predict(model, test.x), "y_test": test.y}


class TwoTowers(nn.Module):
    """An image of 192 numbers and a question in two: both embedded, multiplied, and mapped to five answers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        self.question = nn.Embedding(2, width)
        self.head = nn.Linear(width, len(ANSWERS))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.image(x[:, :192]) * self.question(x[:, 192:].argmax(1)))


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The networks' outputs, and the arms that no sham changes: curriculum, perturbations, foreign inputs, answers."""
    train, val, test = _split(scale, seed)
    models = [_trained(train, Supervised, width, epochs, seed) for width, epochs in NETWORKS]
    main = models[MAIN]
    taught = _trained(train, ConfidenceCurriculum, *NETWORKS[MAIN], seed)
    rows: list[dict[str, Any]] = []
    for name, model in (("plain", main), ("curriculum", taught)):
        logits = predict(model, test.x)
        rows.append({"arm": name, "accuracy": (logits.argmax(1) == test.y).float().mean().item(),
                     "ece": ece(logits.double().softmax(1), test.y)})  # fmt: skip
    few = test.limit(500, seed=seed)
    rows += [{"arm": "panel", **row} for row in perturbation_panel(main, few, severities=(3,), seed=seed)]
    turned = few.with_x(torch.rot90(few.x, 1, (2, 3)))
    rows.append({"arm": "foreign", **ood_auroc(predict(main, few.x), predict(main, turned.x))})
    asked = _two_towers(scale, seed)
    guard = Safeguard(risk=RISK).fit(Outputs(asked["val"]), asked["y_val"])
    rows.append({"arm": "questions", **guard.report(asked["test"], asked["y_test"])})
    outputs = {"val": predict(main, val.x), "test": predict(main, test.x)}
    return {"rows": rows, "models": [predict(m, test.x) for m in models], **outputs, "y_val": val.y, "y": test.y}


def _calibrated(scale: Scale, given: Mapping[str, Any], rules: Rules) -> list[dict[str, Any]]:
    """ECE and class-wise miscalibration after one temperature and after class-wise ones."""
    outputs, test = Outputs(given["val"]), Outputs(given["test"])
    method, y = rules.scaling(gammas=scale["gammas"]), given["y"].numpy()
    base = MSCTemperatureScaling().temperature(outputs.logits.double(), given["y_val"])
    maps = {
        TS: test.logits.double() / base,
        MSC: method.fit(outputs, given["y_val"]).transform(test),
        LIKELIHOOD: TemperatureScaling().fit(outputs, given["y_val"]).transform(test),
    }
    rows = []
    for name, logits in maps.items():
        p = logits.softmax(1).numpy()
        scores = rules.by_class(p, y)
        accuracy = float((p.argmax(1) == y).mean())
        rows.append({"arm": name, "ece": ece(p, y), "size": np.abs(scores).mean(), "least": scores.min(),
                     "accuracy": accuracy})  # fmt: skip
    return rows


def _discordant(given: Mapping[str, Any], rules: Rules) -> list[dict[str, Any]]:
    """Accuracy and trust of each network; Kendall's tau, and how many pairs disagree by more than two errors."""
    y, rows = given["y"].numpy(), []
    for (width, epochs), logits in zip(NETWORKS, given["models"], strict=True):
        right = (logits.argmax(1).numpy() == y).astype(float)
        u = 1 - logits.double().softmax(1).amax(1).numpy()
        trust = rules.trust(right, u)
        error = (trust * (1 - trust) / max(right.sum(), 1)) ** 0.5
        rows.append({"arm": f"{width} wide, {epochs} epochs", "accuracy": right.mean(), "trust": trust, "error": error})
    pairs = [(a, b) if a["accuracy"] > b["accuracy"] else (b, a) for a, b in combinations(rows, 2)]
    found = sum(a["trust"] < b["trust"] - 2 * (a["error"] ** 2 + b["error"] ** 2) ** 0.5 for a, b in pairs)
    tau = kendalltau([r["accuracy"] for r in rows], [r["trust"] for r in rows]).statistic
    return [*rows, {"arm": "networks", "tau": tau, "discordant": found}]


def experiment(scale: Scale, seed: int, given: Mapping[str, Any], sham: str | None) -> Table:
    """Exact checks, simulated noise, calibration and ranking of the networks; shams change the measures."""
    rules = Rules(sham)
    exact = {"arm": "ranking", **ranking_errors(rules, seed, scale["samples"])}
    signs = {"arm": "signs", **miscalibration_errors(rules, seed)}
    noise = {"arm": "noise", "spearman": noise_correlation(rules, seed)}
    return Table.of(
        [exact, signs, noise, *_calibrated(scale, given, rules), *_discordant(given, rules), *given["rows"]]
    )


def claims(table: Table) -> list[Claim]:
    """Perfect and random orders, noise on the uncertainty and the signs decide; trained models support."""
    unsorted, unsigned_ = ("unsorted-coverage",), ("unsigned-miscalibration",)
    return [
        _exact(table, "trust index of a perfect order against 1", "oracle_trust", 1e-12, unsorted),
        _exact(table, "E-AUoptRC of a perfect order against 0", "oracle_excess", 1e-9, unsorted),
        _exact(table, "trust index of an order that knows nothing against the accuracy", "random_trust", 1e-3),
        _exact(table, "E-AUoptRC of such an order against its closed form", "random_excess", 1e-3),
        Claim(
            "Spearman correlation of the trust index with the noise on the uncertainty",
            table.per_seed("spearman"),
            at_most=-0.9,
            refuted_by=unsorted,
        ),
        _exact(table, "|MCS| is at most ECE: least difference", "bounded", None),
        _exact(table, "ECE less |MCS| where bins err to both sides is above 0.01", "mixed", None, unsigned_, 0.01),
        _exact(table, "ECE less |MCS| where all bins err to one side", "one", 1e-12),
        _exact(table, "MCS of an under-confident example, 0.7 said and 0.9 right", "under", -0.19, unsigned_),
        *_support(table),
    ]


def _exact(
    table: Table,
    text: str,
    column: str,
    at_most: float | None,
    refuted_by: tuple[str, ...] = (),
    at_least: float | None = None,
) -> Claim:
    """A key claim on every seed; without an upper bound from ``at_least`` (-1e-12) on."""
    low = at_least if at_most is not None or at_least is not None else -1e-12
    values = table.per_seed(column, np.max if at_most is not None else np.min)
    return Claim(text, values, at_least=low, at_most=at_most, rule="exact", refuted_by=refuted_by)


def _support(table: Table) -> list[Claim]:
    ratio = table.per_seed("size", arm=MSC) / table.per_seed("size", arm=TS)

    def claim(text: str, observed: np.ndarray, **more: Any) -> Claim:
        return Claim(text, observed, key=False, **more)

    return [
        claim("area under the optimal curve, closed form", table.per_seed("optimal"), at_most=1e-4, rule="exact"),
        claim("MCS against mean confidence less accuracy", table.per_seed("mean", np.max, arm="signs"), at_most=1e-12,
              rule="exact", refuted_by=("unsigned-miscalibration",)),
        claim("four samples by hand, trust index and E-AUoptRC", table.per_seed("hand"), at_most=1e-12, rule="exact"),
        claim(
            "least class-wise MCS after TS is below -0.005, five of six",
            table.per_seed("least", arm=TS),
            at_most=-0.005,
            rule="k-of-n",
            k=5,
            refuted_by=("unsigned-miscalibration",),
        ),
        claim("mean class-wise |MCS|, MSC-TS over TS", ratio, at_most=0.9),
        claim("ECE of MSC-TS less that of TS", table.gain(MSC, TS, "ece"), at_most=0.003),
        claim("network pairs, of 15, whose accuracy and trust disagree by two errors", table.per_seed("discordant"),
              at_least=1.0),
        claim(f"risk of the questions that the guard answers, target {RISK}", table.per_seed("risk"), at_most=RISK),
    ]  # fmt: skip


def figure(table: Table) -> Figure:
    """Class-wise calibration, and the networks' accuracy against their trust."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = drawing.subplots(1, 2)
    arms = (TS, LIKELIHOOD, MSC)
    values = np.stack([table.per_seed("size", arm=arm) for arm in arms])
    left.plot(values, np.arange(len(arms)), "o", ms=4, color="0.55")
    left.plot(values.mean(1), np.arange(len(arms)), "|", ms=16, mew=2)
    left.set(yticks=range(len(arms)), yticklabels=arms, title="Mean class-wise |MCS|, thinned MNIST")
    for width, epochs in NETWORKS:
        part = table.where(arm=f"{width} wide, {epochs} epochs")
        right.plot(part.values("accuracy"), part.values("trust"), "o", ms=4, label=f"{width} wide, {epochs} epochs")
    right.set(xlabel="accuracy", ylabel="trust index", title="Six networks")
    right.legend(frameon=False, fontsize=7)
    return drawing
