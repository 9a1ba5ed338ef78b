"""CaBaGe: stealing a classifier through its labels, without data, by asking about hard and balanced samples only.

Decided: what is asked is harder than the pool that it is chosen from, in nearly every iteration of a real extraction;
the selection equals an enumeration on random tables; replay frequencies follow the weights (chi-square); the queries
that are reported are those that the victim counted; and classes that are appended leave the others' outputs alone.
Support: the clone against DisGUIDE's at the same budget, and the entropy of the classes asked. Small digits with a
budget of 1600 labels here; accuracy as the paper reports it, uniform noise, an unknown number of classes and the parts
one by one are arms of the gpu scale. Only the abstract of the paper was at hand: see ``CaBaGe`` for what is
reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.nets import SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.privacy import (
    CaBaGe,
    DataFreeExtractor,
    DisGUIDE,
    ExtractionResult,
    GeneratorEnsemble,
    GrowingClassifier,
    HardSampleReplay,
    NoiseQueries,
    SelectiveQuery,
    agreement,
)
from assay.privacy.extraction.generator_ensemble import ImageGenerator
from assay.runtime.inference import predict
from assay.runtime.random import numpy_rng, seeded, torch_rng
from assay.subject.access import Access, Oracle
from assay.training import Supervised

PAPER = Paper(
    slug="cabage",
    title="CaBaGe: Data-Free Model Extraction using ClAss BAlanced Generator Ensemble",
    authors="Jonathan Rosenthal, Shanchao Liang, Kevin Zhang, Lin Tan",
    year=2024,
    arxiv="2409.10643",
    room="privacy",
    also=("generate",),
    kind="method",
    implements=(
        "privacy.CaBaGe",
        "privacy.DisGUIDE",
        "privacy.DFME",
        "privacy.NoiseQueries",
        "privacy.GeneratorEnsemble",
        "privacy.HardSampleReplay",
        "privacy.SelectiveQuery",
        "privacy.GrowingClassifier",
    ),
    claim="Asking about hard, balanced samples of several generators, and replaying the hard ones, steals better.",
    headline="Up to 43.13 points more accuracy than earlier extraction, up to 75.7 % fewer queries to match it.",
    peers=("lin-tan/disguide", "cake-lab/datafree-model-extraction"),
    baselines=("disguide",),
    shams={
        "in-name-only": "random samples of the pool are asked, replay is uniform, generators share one seed for good",
        "easiest-first": "of every class, and of what is left, the most certain samples are asked",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {"source": "digits", "train": 400, "epochs": 3, "widths": (8, 16), "budget": 224, "batch": 32, "nz": 16}
            | {"width": 8, "lr_gen": 3e-3, "tables": 50, "draws": 20_000, "parts": False},
        ),
        Scale(
            "claim",
            5,
            {"source": "digits", "train": 1000, "epochs": 10, "widths": (16, 32), "budget": 1600, "batch": 32, "nz": 32}
            | {"width": 16, "lr_gen": 3e-3, "tables": 500, "draws": 50_000, "parts": False},
        ),
        Scale(
            "gpu",
            5,
            {"source": "cifar10", "train": 50_000, "epochs": 40, "widths": (64, 128, 256), "budget": 2_000_000}
            | {"batch": 256, "nz": 256, "width": 64, "lr_gen": 1e-4, "tables": 500, "draws": 50_000, "parts": True},
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class _RandomQuery(SelectiveQuery):
    """Any b of the pool; which, follows from the pool."""

    def select(self, probs: Float[Tensor, "p c"], b: int) -> Int[Tensor, " b"]:
        generator = torch_rng(0, "pick", float(probs.double().square().sum()))
        return torch.randperm(len(probs), generator=generator)[:b].sort().values


@dataclass(frozen=True, kw_only=True)
class _EasiestQuery(SelectiveQuery):
    """The most certain of every class, then of what is left."""

    def score(self, probs: Float[Tensor, "p c"]) -> Float[Tensor, " p"]:
        return -super().score(probs)


class _Twins(GeneratorEnsemble):
    """All generators begin with the same weights."""

    def _made(self, j: int) -> ImageGenerator:
        return super()._made(0)


@dataclass(frozen=True, kw_only=True)
class _InNameOnly(CaBaGe):
    """CaBaGe with the same steps and costs and none of its choices."""

    def made(self, shape: tuple[int, int, int], seed: int) -> GeneratorEnsemble:
        return _Twins(shape, self.n_generators, self.nz, self.width, seed=seed)


def method(scale: Scale, sham: str | None, classes: int | None = 10) -> CaBaGe:
    """The extraction, or one of its shams."""
    own = _options(scale) | {"num_classes": classes}
    if sham == "in-name-only":
        return _InNameOnly(selection=_RandomQuery(), gamma=0.0, renew_share=0.0, renew_entropy=0.0, **own)
    return CaBaGe(selection=_EasiestQuery() if sham == "easiest-first" else SelectiveQuery(), **own)


def _options(scale: Scale) -> dict[str, Any]:
    sizes = {name: scale[name] for name in ("batch", "nz", "width", "lr_gen")}
    return {**sizes, "lr_clone": 0.1 if scale["source"] == "digits" else 0.03, "clip": 1.0, "looks": 5}


def enumerated(probs: Float[np.ndarray, "p c"], b: int) -> set[int]:
    """What selective querying has to choose, one class and one place after the other."""
    p, classes = probs.shape
    left = sorted(range(p), key=lambda i: (probs[i].max(), i))
    chosen: list[int] = []
    for c in range(classes):
        own = [i for i in left if int(probs[i].argmax()) == c]
        chosen += own[: b // classes]
    rest = [i for i in left if i not in chosen]
    return set(chosen + rest[: b - len(chosen)])


def selection_errors(selection: SelectiveQuery, tables: int, seed: int) -> float:
    """Share of random tables on which the selection is not the enumerated one; some have ties, some lack a class."""
    rng, wrong = numpy_rng(seed, "tables"), 0
    for _ in range(tables):
        p, classes = int(rng.integers(8, 40)), int(rng.integers(2, 6))
        probs = rng.dirichlet(np.full(classes, 0.7), p)
        probs[rng.integers(p, size=2)] = probs[0]
        b = int(rng.integers(1, p + 1))
        found = selection.select(torch.from_numpy(probs), b)
        wrong += set(found.tolist()) != enumerated(probs, b) or len(found) != b
    return wrong / tables


def replay_fit(gamma: float, floor: float, draws: int, seed: int) -> float:
    """p of the chi-square test of replay frequencies against (difficulty + 0.05) / sum, after an overwritten memory."""
    g, memory = torch_rng(seed, "memory"), HardSampleReplay(60, gamma, floor)
    hard = torch.rand(90, generator=g, dtype=torch.float64)
    memory.add(torch.arange(90.0)[:, None], torch.zeros(90, dtype=torch.int64), hard)
    memory.update(torch.tensor([3, 7]), torch.tensor([1.0, 0.0], dtype=torch.float64))
    held = torch.cat((hard[60:], hard[30:60])).numpy()  # the newest 30 lie over the oldest
    held[[3, 7]] = 1.0, 0.0
    expected = (held + 0.05) / (held + 0.05).sum() * draws
    rows = memory.sample(draws, torch_rng(seed, "draws"))[2]
    counts = np.bincount(rows.numpy(), minlength=60)
    return float(stats.chisquare(counts, expected).pvalue)


def growth_difference(seed: int) -> float:
    """Largest change of the outputs of old classes as classes are appended, one and several at a time."""
    with seeded(seed, "growing"):
        net = GrowingClassifier(nn.Sequential(nn.Linear(6, 12), nn.ReLU()), 12, 2)
    x, worst = torch.randn(40, 6, generator=torch_rng(seed, "inputs")), 0.0
    for classes in (3, 4, 9):
        with torch.no_grad():
            before = net(x)
            net.grow(classes, torch_rng(seed, "grow", classes))
            after = net(x)
        assert after.shape[1] == classes
        worst = max(worst, float((after[:, : before.shape[1]] - before).abs().max()))
    return worst


def _data(scale: Scale) -> tuple[Data, Data]:
    train, test = (load_data(scale["source"], part) for part in ("train", "test"))
    return train.limit(scale["train"]), test


def _row(
    arm: str, extractor: DataFreeExtractor, scale: Scale, given: dict[str, Any], seed: int
) -> list[dict[str, Any]]:
    """One extraction: how the clone fares on the way, and how its queries compare with their pools."""
    victim, test, labels = given["victim"], given["test"], given["labels"]

    def evaluate(result: ExtractionResult) -> dict[str, float]:
        return {"accuracy": agreement(result, test.y, test.x), "agreement": agreement(result, labels, test.x)}

    oracle = Oracle(victim, access=Access.DECISION, budget=scale["budget"])
    with seeded(0, "architecture"):
        clone = SmallCNN(test.shape, len(test.classes), scale["widths"])
    found = extractor.extract(oracle, clone, test.shape, budget=scale["budget"], seed=seed, evaluate=evaluate)
    last = found.history[-1]
    harder = np.mean([step["asked"] > step["pool"] for step in found.history])
    looks = [{"arm": arm, "queries": r["queries"], "curve": r["accuracy"]} for r in found.history if "accuracy" in r]
    total = {"arm": arm, "accuracy": last["accuracy"], "agreement": last["agreement"], "harder": float(harder)}
    total |= {"entropy": last["entropy"] / np.log(10), "miscounted": abs(found.queries - oracle.queries)}
    return [{**total, "found": int((found.labels_seen >= 0).sum())}, *looks]


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """The victim, and the arms that no sham changes."""
    train, test = _data(scale)
    with seeded(seed, "victim"):
        start = SmallCNN(train.shape, len(train.classes), scale["widths"])  # type: ignore[arg-type]
    victim = Supervised(epochs=scale["epochs"]).fit(start, train, seed=seed)
    given: dict[str, Any] = {"victim": victim, "test": test, "labels": predict(victim, test.x).argmax(1)}
    own = _options(scale) | {"num_classes": 10}
    arms: dict[str, DataFreeExtractor] = {"disguide": DisGUIDE(**own)}
    if scale["parts"]:
        full = method(scale, None)
        arms |= {"noise": NoiseQueries(**own), "unknown classes": method(scale, None, None)}
        arms |= {"uniform replay": replace(full, gamma=0.0), "one generator": replace(full, n_generators=1)}
        arms |= {"no selection": replace(full, pool_factor=1)}
    given["rows"] = [row for arm, m in arms.items() for row in _row(arm, m, scale, given, seed)]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The exact checks of the parts, and an extraction."""
    cabage = method(scale, sham)
    checks = {
        "arm": "parts",
        "selection": selection_errors(cabage.selection, scale["tables"], seed),
        "replay": replay_fit(cabage.gamma, cabage.floor, scale["draws"], seed),
        "growth": growth_difference(seed),
    }
    return Table.of([*_row("cabage", cabage, scale, given, seed), checks, *given["rows"]])


def claims(table: Table) -> list[Claim]:
    """The mechanism and the exact checks decide; accuracy supports."""
    both = ("in-name-only", "easiest-first")
    return [
        Claim(
            "share of the iterations in which what is asked is harder than its pool",
            table.per_seed("harder", arm="cabage"),
            at_least=0.9,
            refuted_by=both,
        ),
        Claim(
            "share of random tables on which the selection differs from an enumeration",
            table.per_seed("selection"),
            at_most=0.0,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "replay frequencies follow the weights: p of the chi-square test",
            table.per_seed("replay"),
            at_least=1e-4,
            rule="exact",
            refuted_by=("in-name-only",),
        ),
        Claim(
            "queries reported less those that the victim counted, all arms",
            table.per_seed("miscounted", np.max),
            at_most=0.0,
            rule="exact",
        ),
        Claim(
            "outputs of old classes when classes are appended: largest change",
            table.per_seed("growth"),
            at_most=1e-6,
            rule="exact",
        ),
        Claim(
            "accuracy of the clone over DisGUIDE's at the same budget",
            table.gain("cabage", "disguide", "accuracy"),
            at_least=0.03,
            key=False,
        ),
        Claim(
            "entropy of the classes asked, as a share of the largest",
            table.per_seed("entropy", arm="cabage"),
            at_least=0.9,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Accuracy over queries, and how often what is asked is harder than its pool."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    names = {"cabage": "CaBaGe", "disguide": "DisGUIDE"}
    for arm, name in names.items():
        part = Table(tuple(r for r in table.where(arm=arm).rows if "curve" in r))
        queries = np.unique(part.values("queries"))
        curves = [part.values("curve", queries=int(q)).mean() for q in queries]
        left.plot(queries, curves, "-o", ms=3, label=name)
    left.set(xlabel="queries", ylabel="test accuracy of the clone", title="Labels only, no data", ylim=(0, 1))
    left.legend(frameon=False)
    values = [table.per_seed("harder", arm=arm) for arm in names]
    right.plot(range(2), [v.mean() for v in values], "_", ms=24)
    for k, v in enumerate(values):
        right.plot(np.full(len(v), k), v, "o", ms=3, color="0.5")
    right.set_xticks(range(2), list(names.values()))
    right.set(ylabel="share of iterations", ylim=(-0.05, 1.05), title="Asked is harder than its pool")
    return drawing
