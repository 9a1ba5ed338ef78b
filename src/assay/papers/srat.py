"""SRAT: adversarial training fails rare classes, weights help them at a cost, and separated features help all.

Exact: the errors of the weighted rule for two normal classes against draws, how the gap and the price of balance fall
as the classes move apart, the worst case under an adversary, and the separation loss on a collapsed simplex and against
a double loop. Learned, on MNIST at 14 x 14 pixels: five classes are 20 times rarer than the other five. Key is that
SRAT separates the features of adversarial inputs more than reweighted adversarial training; support, the
robust accuracy of the rare classes and overall, and that adversarial training widens the gap between the classes. All
arms have the same plan, whose rate (0.05 and 0.1 tried) is the better one for the reweighted arm in pilots. SRAT's
contrast has a queue: a batch holds one or no sample of a rare class. The network standardises its input: without, runs
of SRAT lost all features to dead units, and the claim was refuted. In no pilot did the lead have a margin: above 0 is
what is asked for.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import PGD, Linf
from assay.data import Data, load_data, make_long_tail
from assay.defenses import SRAT, PGDTraining
from assay.dynamics import feature_separability, head_inputs, simplex_etf
from assay.losses import SupConLoss
from assay.nets import SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import numpy_rng, seeded, torch_rng
from assay.science import adversarial_separability, balance_price, imbalanced_gaussian_risk
from assay.training import Supervised, Trainer

DELTAS, COSTS, K = (1.0, 2.0, 3.0, 4.0, 6.0), (1.0, 10.0), 50.0
SIMPLEX = ((2, 3, 0.1), (5, 4, 0.1), (10, 2, 0.5))  # classes, samples of each, tau
RATIO = 20
NATURAL, PLAIN, WEIGHTED, OURS = "natural", "pgd-at", "reweighted", "srat"

PAPER = Paper(
    slug="srat",
    title="Imbalanced Adversarial Training with Reweighting",
    authors="Wentao Wang, Han Xu, Xiaorui Liu, Yaxin Li, Bhavani Thuraisingham, Jiliang Tang",
    year=2021,
    arxiv="2107.13639",
    room="defenses",
    also=("losses", "science"),
    kind="method + theory",
    implements=(
        "defenses.SRAT",
        "losses.SupConLoss",
        "losses.class_balanced_weights",
        "losses.DeferredReweighting",
        "losses.FocalLoss",
        "losses.LDAMLoss",
        "dynamics.feature_separability",
    ),
    claim="Under imbalance, a loss that separates the classes' features makes reweighted adversarial training work.",
    headline="CIFAR-10 and SVHN, 100 : 1: robust accuracy of rare classes and overall above reweighted adversarial "
    "training, focal and LDAM losses.",
    peers=("HobbitLong/SupContrast", "kaidic/LDAM-DRW"),
    baselines=(NATURAL, PLAIN, WEIGHTED),
    shams={
        "shuffled-labels": "the separation loss sees the labels of its batch in another order",
        "missing-delta": "the threshold moves by ln(K / rho) instead of ln(K / rho) / delta",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "pixels": 8, "largest": 30, "test": 60, "epochs": 2, "draws": 100_000}),
        Scale("claim", 6, {"data": "mnist", "pixels": 14, "largest": 200, "test": 600, "epochs": 8, "draws": 200_000}),
    ),
)


class _Standard(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.13) / 0.3


class _ShuffledLoss(SupConLoss):
    def forward(self, features: Tensor, target: Tensor, keys: Any = None, key_target: Any = None) -> Tensor:
        order = torch.randperm(len(target), generator=torch_rng(0, "shuffled"))
        return super().forward(features, target[order], keys, key_target)


class _Shuffled(SRAT):
    def contrast(self) -> SupConLoss:
        return _ShuffledLoss(self.tau, reduction="none")


@cache
def _images(source: str, pixels: int) -> tuple[Data, Data]:
    """Two disjoint parts, averaged down to ``pixels`` a side."""
    whole = load_data(source, "test")
    data = whole.with_x(F.adaptive_avg_pool2d(whole.x, pixels))
    half = len(data) // 2
    return data[:half], data[half:]


def _trainers(scale: Scale, sham: str | None) -> dict[str, Trainer]:
    plan: dict[str, Any] = {"epochs": scale["epochs"], "batch_size": 64, "optimizer": "sgd", "lr": 0.1}
    hard: dict[str, Any] = {**plan, "weight_decay": 5e-4, "eps": 0.1, "attack_steps": 5, "step_size": 0.25}
    late: dict[str, Any] = {**hard, "defer_epoch": round(0.6 * scale["epochs"])}
    ours = _Shuffled if sham == "shuffled-labels" else SRAT
    return {
        NATURAL: Supervised(**plan, weight_decay=5e-4),
        PLAIN: PGDTraining(**hard),
        WEIGHTED: SRAT(lam=0.0, **late),
        OURS: ours(queue=256, **late),
    }


def _row(arm: str, trainer: Trainer, given: dict[str, Any], seed: int) -> dict[str, Any]:
    """Accuracies of all classes and of the rare half, natural and under PGD, and the separability under PGD."""
    model, test = trainer.fit(given["start"], given["train"], seed=seed), given["test"]
    x_adv = PGD(ball=Linf(0.1), steps=20, step_size=0.1)(model, test.x, test.y, seed=seed)
    rare = test.y >= len(test.classes) // 2
    rates: dict[str, float] = {}
    for name, x in (("natural", test.x), ("robust", x_adv)):
        hit = (predict(model, x).argmax(1) == test.y).double()
        rates |= {name: float(hit.mean()), f"{name}_rare": float(hit[rare].mean())}
        rates[f"{name}_gap"] = float(hit[~rare].mean() - hit[rare].mean())
    found = feature_separability(head_inputs(model, x_adv)[0], test.y)
    separability = found.ratio if math.isfinite(found.ratio) else 0.0
    return {"arm": arm, **rates, "separability": separability, "cosine_margin": found.cosine_margin}


def _risk(delta: float, rho: float, sham: str | None) -> tuple[float, float]:
    if sham == "missing-delta":  # the imbalance at which ln(K' / rho) / delta is ln(K / rho)
        return imbalanced_gaussian_risk(delta, rho * (K / rho) ** delta, rho)
    return imbalanced_gaussian_risk(delta, K, rho)


def _theory(scale: Scale, seed: int, sham: str | None) -> dict[str, Any]:
    """Formulas against draws of the rule that weighs likelihoods, and against the worst move of every coordinate."""
    noise, off = numpy_rng(seed, "normal").normal(size=scale["draws"]), 0.0
    for delta in DELTAS:
        for rho in COSTS:
            for y, formula in zip((1, -1), _risk(delta, rho, sham), strict=True):
                x = y * delta / 2 + noise
                score = math.log(K / rho) - (x - delta / 2) ** 2 / 2 + (x + delta / 2) ** 2 / 2
                off = max(off, abs(float(np.mean(y * score < 0)) - formula))
    gaps = [major_minor[1] - major_minor[0] for major_minor in (_risk(d, 1.0, sham) for d in DELTAS)]
    prices = [balance_price(d, K) for d in DELTAS]
    d, eta, eps = 4, 0.8, 0.3
    points = eta + numpy_rng(seed, "adversary").normal(size=(scale["draws"] // 4, d))
    worst = float(np.mean((points - eps).sum(1) < 0))
    return {
        "arm": "theory",
        "off": off,
        "gap_step": float(np.diff(gaps).max()),
        "price_step": float(np.diff(prices).max()),
        "adversary_off": abs(worst - imbalanced_gaussian_risk(adversarial_separability(d, eta, eps), 1.0)[0]),
    }


def double_loop(h: np.ndarray, y: np.ndarray, tau: float) -> float:
    """The separation loss, one anchor after another."""
    z, found = h / np.linalg.norm(h, axis=1, keepdims=True), []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        below = math.log(sum(math.exp(z[i] @ z[a] / tau) for a in others))
        positives = [z[i] @ z[p] / tau - below for p in others if y[p] == y[i]]
        if positives:
            found.append(-np.mean(positives))
    return float(np.mean(found))


def _contrast(seed: int, sham: str | None) -> dict[str, Any]:
    """The separation loss on collapsed simplices against its closed form, and on draws against the double loop."""
    kind, errors = _ShuffledLoss if sham == "shuffled-labels" else SupConLoss, []
    for c, n, tau in SIMPLEX:
        h, y = simplex_etf(c, c, seed=seed).repeat_interleave(n, 0), torch.arange(c).repeat_interleave(n)
        far = (c * n - n) * math.exp(-1 / ((c - 1) * tau))
        errors.append(abs(float(kind(tau)(h, y)) - math.log((n - 1) * math.exp(1 / tau) + far) + 1 / tau))
    rng = numpy_rng(seed, "contrast")
    h, y = torch.from_numpy(rng.normal(size=(24, 5))), torch.from_numpy(rng.integers(0, 6, 24))
    errors.append(abs(float(kind(0.1)(h, y)) - double_loop(h.numpy(), y.numpy(), 0.1)))
    return {"arm": "separation loss", "contrast_off": max(errors)}


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Images, start, the rows of the arms that no sham changes, and SRAT's own, which one of two shams keeps."""
    train, test = _images(scale["data"], scale["pixels"])
    rows = make_long_tail(train.y, RATIO, "step", largest=scale["largest"], seed=seed)
    with seeded(seed, "init"):
        start = nn.Sequential(_Standard(), SmallCNN((1, scale["pixels"], scale["pixels"]), 10, (8, 16), 64))
    given: dict[str, Any] = {"train": train[rows], "test": test.limit(scale["test"], seed=seed), "start": start}
    given["rows"] = [_row(arm, trainer, given, seed) for arm, trainer in _trainers(scale, None).items()]
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The trained arms, the theory and the separation loss; each sham changes one of them."""
    rows = list(given["rows"])
    if sham == "shuffled-labels":
        rows[-1] = _row(OURS, _trainers(scale, sham)[OURS], given, seed)
    return Table.of([*rows, _theory(scale, seed, sham), _contrast(seed, sham)])


def claims(table: Table) -> list[Claim]:
    """Separability and the exact checks decide."""
    shuffled, apart = ("shuffled-labels",), table.gain(OURS, WEIGHTED, "separability")
    return [
        Claim(
            "trace(S_B) / trace(S_W) of adversarial features, SRAT over reweighted adversarial training",
            apart,
            at_least=0.0,
            refuted_by=shuffled,
        ),
        Claim("SRAT is above in every run", apart, at_least=0.0, rule="k-of-n", k=len(apart), key=False),
        Claim(
            "errors of the weighted rule against draws, all deltas and costs: largest difference",
            table.per_seed("off"),
            at_most=0.01,
            rule="exact",
            refuted_by=("missing-delta",),
        ),
        Claim(
            "the gap between the classes' errors falls from each delta to the next: largest step",
            table.per_seed("gap_step"),
            at_most=-1e-4,
            rule="exact",
        ),
        Claim(
            "so does what full balance costs the majority: largest step",
            table.per_seed("price_step"),
            at_most=-1e-4,
            rule="exact",
        ),
        Claim(
            "the separation loss on collapsed simplices and against a double loop: largest difference",
            table.per_seed("contrast_off"),
            at_most=1e-6,
            rule="exact",
            refuted_by=shuffled,
        ),
        Claim(
            "error under the worst move of every coordinate against the formula at the separability that is left",
            table.per_seed("adversary_off"),
            at_most=0.01,
            rule="exact",
            key=False,
        ),
        Claim(
            "robust accuracy of the rare classes, SRAT over reweighted",
            table.gain(OURS, WEIGHTED, "robust_rare"),
            at_least=0.02,
            key=False,
            refuted_by=shuffled,
        ),
        Claim(
            "robust accuracy of all classes, SRAT over reweighted",
            table.gain(OURS, WEIGHTED, "robust"),
            at_least=-0.005,
            key=False,
        ),
        Claim(
            "accuracy of frequent over rare classes, adversarial over natural training",
            table.gain(PLAIN, NATURAL, "natural_gap"),
            at_least=0.05,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Robust accuracy of rare and of all classes and separability of each arm; errors of the rule over delta."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, middle, right = drawing.subplots(1, 3)
    arms = {NATURAL: "natural", PLAIN: "PGD training", WEIGHTED: "+ weights", OURS: "SRAT"}
    for axes, column, title in ((left, "robust_rare", "rare classes"), (middle, "robust", "all classes")):
        values = np.stack([table.per_seed(column, arm=arm) for arm in arms])
        axes.plot(values, np.arange(len(arms)), "o", ms=4, color="0.55")
        axes.plot(values.mean(1), np.arange(len(arms)), "|", ms=16, mew=2)
        axes.set(yticks=range(len(arms)), title=title, xlabel="robust accuracy", xlim=(-0.02, 1))
        axes.set_yticklabels(arms.values() if axes is left else [])
        axes.invert_yaxis()
    deltas = np.linspace(0.5, 6, 100)
    for rho, style in zip(COSTS, ("-", "--"), strict=True):
        errors = np.array([imbalanced_gaussian_risk(d, K, rho) for d in deltas])
        for k, name in enumerate(("frequent", "rare")):
            right.plot(deltas, errors[:, k], style, color=f"C{k}", label=f"{name}, cost {rho:g}")
    right.set(xlabel="separability", ylabel="error", title="Two normal classes, 50 : 1")
    right.legend(frameon=False, fontsize=7)
    return drawing
