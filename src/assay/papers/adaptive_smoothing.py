"""Adaptive smoothing: mixing the probabilities of an accurate and a robust network keeps most of what each has.

Exact: on drawn piecewise linear robust models in one dimension, beside an accurate one that is always sure of a wrong
class, the mixture's answer changes at the radius of the Lipschitz certificate, not before and not after. Learned, on
images: under PGD on the mixture's own output, the accuracies of the mixture lie above the straight line between its two
networks, on which a coin toss between them lies. Of the weights from 1/2 on it is that of the largest sum of both
accuracies on validation images. Support: the other certificate, and logits instead of probabilities.

The margin of the robust network on attacked images, which the paper finds larger where it is right, is only reported:
in pilots with small networks the difference was between -0.03 and 0.05. A mixing network, attacked with and without its
gradient, is trained at gpu scale.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import PGD, Linf
from assay.data import Data, load_data
from assay.defenses import (
    AdaptiveMixedClassifier,
    MixedClassifier,
    MixingNet,
    MixingTraining,
    MixtureScan,
    PGDTraining,
    RandomisedPGD,
    certified_radius_lipschitz,
    certified_radius_smoothing,
)
from assay.nets import MLP, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.training import Supervised

ALPHAS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CERTIFIABLE = tuple(a for a in ALPHAS if 0.5 <= a < 1)
PLAN: dict[str, Any] = {"batch_size": 128, "lr": 6e-3}
LAYERS = ("body.1", "body.3")

PAPER = Paper(
    slug="adaptive-smoothing",
    title="Improving the Accuracy-Robustness Trade-Off of Classifiers via Adaptive Smoothing",
    authors="Yatong Bai, Brendon G. Anderson, Aerin Kim, Somayeh Sojoudi",
    year=2023,
    arxiv="2301.12554",
    room="defenses",
    also=("certify",),
    kind="method",
    implements=(
        "defenses.MixedClassifier",
        "defenses.AdaptiveMixedClassifier",
        "defenses.MixingNet",
        "defenses.MixingTraining",
        "defenses.certified_radius_lipschitz",
        "defenses.certified_radius_smoothing",
    ),
    claim="Mixed probabilities of an accurate and a robust model keep most of the accuracy and most of the robustness.",
    headline="CIFAR-100: 85.2% clean, 38.7% under AutoAttack (linf 8/255); CIFAR-10: 95.2% and 68.1%.",
    peers=("Bai-YT/AdaptiveSmoothing", "RobustBench"),
    baselines=("standard", "robust", "logits"),
    shams={
        "random-switch": "a coin per image answers with the robust network with probability alpha, else the other",
        "missing-offset": "the Lipschitz radius goes without the term alpha - 1 of its numerator",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "pool": 1, "train": 300, "validation": 60, "test": 100, "epochs": 8,
                           "hardening": 10, "eps": 0.15, "widths": (4, 8), "hidden": (32,), "steps": 5, "cases": 10,
                           "mixing": 0}),
        Scale("claim", 6, {"data": "mnist:test", "pool": 4, "train": 2000, "validation": 400, "test": 1000,
                           "epochs": 15, "hardening": 20, "eps": 0.12, "widths": (8, 16), "hidden": (64,), "steps": 20,
                           "cases": 20, "mixing": 0}),
        Scale("gpu", 5, {"data": "cifar10:train", "pool": 1, "train": 40_000, "validation": 2000, "test": 2000,
                         "epochs": 40, "hardening": 40, "eps": 8 / 255, "widths": (64, 128), "hidden": (), "steps": 20,
                         "cases": 200, "mixing": 4}),
    ),
)  # fmt: skip


@cache
def _images(source: str, pool: int) -> Data:
    """The images of a source, ``pool`` x ``pool`` pixels averaged to one."""
    data = load_data(source)
    return data.with_x(F.avg_pool2d(data.x, pool))


class Ramp(nn.Module):
    """log h of a robust model on the line: h_y falls and h_rival grows by ``slope`` a unit of distance from 0.

    Inputs (n, 1); the other classes keep their share. ``start`` (c,) are its probabilities at 0.
    """

    def __init__(self, start: Tensor, y: int, rival: int, slope: float) -> None:
        super().__init__()
        self.start, self.y, self.rival, self.slope = start, y, rival, slope

    def forward(self, x: Tensor) -> Tensor:
        moved = (self.slope * x[:, 0].abs()).clamp(max=float(self.start[self.y]))
        h = self.start.repeat(len(x), 1)
        h[:, self.y] -= moved
        h[:, self.rival] += moved
        return h.log()


class Sure(nn.Module):
    """A model that gives all probability to one class."""

    def __init__(self, classes: int, answer: int) -> None:
        super().__init__()
        self.logits = torch.full((classes,), -math.inf, dtype=torch.float64)
        self.logits[answer] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.repeat(len(x), 1)


class HalfSpace(nn.Module):
    """log h of the indicator of x > 0 smoothed by noise of deviation sigma, on the line."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        z = x[:, 0] / self.sigma
        return torch.stack((torch.special.ndtr(z), torch.special.ndtr(-z)), 1).log()


def flip(mixture: nn.Module, y: int, start: float, end: float) -> float:
    """The first distance in [start, end] at which the mixture's answer is no longer y, by bisection; else ``end``."""

    def kept(t: float) -> bool:
        out = mixture(torch.tensor([[t]], dtype=torch.float64))[0]
        return bool(out[y] >= torch.cat((out[:y], out[y + 1 :])).max())

    if kept(end):
        return end
    for _ in range(45):
        middle = (start + end) / 2
        start, end = (middle, end) if kept(middle) else (start, middle)
    return end


def _without_offset(h: Tensor, y: Tensor, alpha: float, slope: float) -> Tensor:
    """The Lipschitz radius whose numerator is alpha (h_y - h_i)."""
    own = h.gather(1, y[:, None])
    return ((own - h) / (2 * slope)).scatter(1, y[:, None], torch.inf).amin(1).clamp_min(0)


def certificates(cases: int, seed: int, sham: str | None = None) -> dict[str, float]:
    """Over drawn cases: how far the flip is from the Lipschitz radius and the closest it is before that of smoothing;
    the largest difference of the radius of smoothing at alpha = 1 from its closed form."""
    rng, law, off, spare, plain = numpy_rng(seed, "certificates"), NormalDist(), 0.0, math.inf, 0.0
    for _ in range(cases):
        c, alpha, slope, sigma = (
            int(rng.integers(2, 6)),
            rng.uniform(0.55, 0.99),
            rng.uniform(0.2, 3),
            rng.uniform(0.1, 1),
        )
        top = rng.uniform(0.5 / alpha, 1)  # its margin is at least (1 - alpha) / alpha, whatever the others have
        rest = rng.dirichlet(np.ones(c - 1)) * (1 - top)
        start, rival = torch.tensor([top, *rest], dtype=torch.float64), 1 + int(rest.argmax())
        h, y = start[None], torch.zeros(1, dtype=torch.int64)
        wrong = _without_offset if sham == "missing-offset" else certified_radius_lipschitz
        radius = float(wrong(h, y, alpha, slope))
        mixture = MixedClassifier(Sure(c, rival).eval(), Ramp(start, 0, rival, slope).eval(), alpha)
        off = max(off, abs(flip(mixture, 0, 0.0, top / slope) - radius))
        x = sigma * law.inv_cdf(top)
        two, line = torch.tensor([[top, 1 - top]], dtype=torch.float64), HalfSpace(sigma).eval()
        kept = x - _down(MixedClassifier(Sure(2, 1).eval(), line, alpha), x)
        spare = min(spare, kept - float(certified_radius_smoothing(two, y, alpha, sigma)))
        closed = sigma / 2 * (law.inv_cdf(top) - law.inv_cdf(1 - top))
        plain = max(plain, abs(float(certified_radius_smoothing(two, y, 1.0, sigma)) - closed))
    return {"off": off, "spare": spare, "plain": plain}


def _down(mixture: nn.Module, x: float) -> float:
    """The point below x at which the mixture leaves class 0."""

    class Mirrored(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return mixture(x - t)

    return x - flip(Mirrored(), 0, 0.0, x + 10)


def ends(mixture: MixedClassifier, x: Tensor) -> float:
    """The largest difference of the mixture at the weights 0 and 1 from its networks' log-softmax."""
    expected = {0.0: mixture.std_model, 1.0: mixture.robust_model}
    return max(
        float((predict(mixture.at(a), x) - predict(m, x).log_softmax(1)).abs().max()) for a, m in expected.items()
    )


def _adaptive(g: nn.Module, h: nn.Module, train: Data, scale: Scale, seed: int) -> AdaptiveMixedClassifier:
    """The mixture with a trained mixing network."""
    first, second = scale["widths"]
    with seeded(seed, "mixing"):
        net = MixingNet((2 * first, 2 * second), (2 * second, 2 * second))
    start = AdaptiveMixedClassifier(g, h, net, alpha_range=(0.5, 1.0), std_layers=LAYERS, robust_layers=LAYERS)
    attack = RandomisedPGD(ball=Linf(scale["eps"]), steps=max(scale["steps"] // 2, 2))
    training = MixingTraining(attack=attack, epochs=scale["mixing"], lr=2e-3)
    return start.fit(train, seed=derive(seed, "mixing"), training=training)


def _adaptive_row(model: AdaptiveMixedClassifier, test: Data, attack: PGD, seed: int) -> dict[str, Any]:
    """Accuracies of the adaptive mixture: under attack those of the worse of full and cut gradients for each image."""
    right = {}
    for name, seen in (("full", model), ("cut", model.detached())):
        right[name] = predict(model, attack(seen, test.x, test.y, seed=seed)).argmax(1) == test.y
    clean = predict(model, test.x).argmax(1) == test.y
    weights = torch.cat([model.eval().alpha(x).detach() for x in test.x.split(256)])
    return {
        "arm": "adaptive",
        "clean": float(clean.double().mean()),
        "robust": float((clean & right["full"] & right["cut"]).double().mean()),
        "cut": float((clean & right["cut"]).double().mean()),
        "weight": float(weights.mean()),
    }


def _confidence(h: nn.Module, test: Data, attack: PGD, seed: int) -> float:
    """Mean margin of h's probabilities on attacked images that it gets right, less that on those it gets wrong."""
    probs = predict(h, replace(attack, early_stop=False)(h, test.x, test.y, seed=seed)).softmax(1)
    best = probs.topk(2, 1).values
    right = probs.argmax(1) == test.y
    margin = best[:, 0] - best[:, 1]
    return float(margin[right].mean() - margin[~right].mean()) if 0 < int(right.sum()) < len(right) else math.nan


def _networks(data: Data, scale: Scale, seed: int) -> tuple[nn.Module, nn.Module]:
    """What the accurate and the robust network start from."""
    channels, height, width = data.shape
    shape, classes, hidden = (channels, height, width), len(data.classes), scale["hidden"]
    with seeded(seed, "init"):
        g = SmallCNN(shape, classes, scale["widths"], 32)
        return g, MLP(shape, classes, hidden) if hidden else SmallCNN(shape, classes, scale["widths"], 32)


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Both networks and their mixtures under attack: of probabilities, of logits, and with a mixing network."""
    data = _images(scale["data"], scale["pool"])
    data = data[torch.randperm(len(data), generator=torch_rng(seed, "parts"))]
    n, v = scale["train"], scale["validation"]
    train, validation, test = data[:n], data[n : n + v], data[n + v : n + v + scale["test"]]
    nets = _networks(data, scale, seed)
    g = Supervised(epochs=scale["epochs"], **PLAN).fit(nets[0], train, seed=seed)
    hardening = PGDTraining(epochs=scale["hardening"], eps=scale["eps"], attack_steps=3, step_size=0.5, **PLAN)
    h = hardening.fit(nets[1], train, seed=derive(seed, "robust"))
    attack = PGD(ball=Linf(scale["eps"]), steps=scale["steps"])
    mixed = MixedClassifier(g, h).eval()
    logits = MixedClassifier(g, h, space="logit").eval()
    drawn = derive(seed, "attack")
    adaptive = [_adaptive(g, h, train, scale, seed)] if scale["mixing"] else []
    return {
        "validation": mixed.scan(validation.x, validation.y, (0.0, *CERTIFIABLE, 1.0), attack, seed=drawn),
        "test": mixed.scan(test.x, test.y, ALPHAS, attack, seed=drawn),
        "logits": logits.scan(test.x, test.y, CERTIFIABLE, attack, seed=drawn),
        "adaptive": [_adaptive_row(model, test, attack, drawn) for model in adaptive],
        "gap": _confidence(h, test, attack, drawn),
        "ends": ends(mixed, test.x),
    }


def _switched(scan: MixtureScan, seed: int, part: str) -> MixtureScan:
    """What a coin for each image answers in place of each mixture: the attack on it is that on the network it picks."""
    first, last = scan.alphas.index(0.0), scan.alphas.index(1.0)
    chance = torch.tensor(scan.alphas)[:, None]
    coin = torch.rand(scan.clean.shape, generator=torch_rng(seed, "coin", part)) < chance
    pick = [torch.where(coin, of[last], of[first]) for of in (scan.clean, scan.robust)]
    return MixtureScan(scan.alphas, *pick)


def heights(table: Table) -> np.ndarray:
    """Robust accuracy of the mixture above the straight line between its networks, one number a seed.

    Each seed counts in proportion to its networks' gap in clean accuracy: what is averaged is the height times the gap,
    over the mean gap. A seed with a small gap has a steep line and says little; of a coin toss the mean is 0.
    """
    gap = table.gain("standard", "robust", "clean")
    up, along = (table.gain("mixture", "standard", column) for column in ("robust", "clean"))
    raised = up * gap + table.gain("robust", "standard", "robust") * along
    return raised / gap.mean() if gap.mean() > 0 else np.full(len(gap), np.nan)


def _logit_robustness(scan: MixtureScan, rows: dict[float, dict[str, float]], clean: float) -> float:
    """Robust accuracy of mixed logits at a clean accuracy, between their measured points and both networks."""
    points = sorted((r["clean"], r["robust"]) for r in (*scan.table(), rows[0.0], rows[1.0]))
    return float(np.interp(clean, [p[0] for p in points], [p[1] for p in points]))


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The mixture at the weight that validation images choose, beside its networks and the other ways to mix."""
    scans = {part: given[part] for part in ("validation", "test")}
    rows = {r["alpha"]: r for r in scans["test"].table()}
    if sham == "random-switch":
        scans = {part: _switched(scan, seed, part) for part, scan in scans.items()}
    judged = {r["alpha"]: r["clean"] + r["robust"] for r in scans["validation"].table()}
    best = max(CERTIFIABLE, key=lambda a: judged[a])
    chosen = {r["alpha"]: r for r in scans["test"].table()}
    table: list[dict[str, Any]] = [
        {"arm": "mixture", **chosen[best]},
        {"arm": "standard", **rows[0.0]},
        {"arm": "robust", **rows[1.0], "gap": given["gap"]},
        {"arm": "logits", "matched": _logit_robustness(given["logits"], rows, rows[best]["clean"])},
        {"arm": "probabilities", "matched": rows[best]["robust"]},
        *given["adaptive"],
        {"arm": "ends", "difference": given["ends"]},
        {"arm": "certificates", **certificates(scale["cases"], seed, sham)},
    ]
    table += [{"arm": "curve", **r} for r in scans["test"].table()]
    table += [{"arm": "logit curve", **r} for r in given["logits"].table()]
    return Table.of(table)


def claims(table: Table) -> list[Claim]:
    """The height above the line and the tight certificate decide."""
    found = [
        Claim(
            "the answer changes at the Lipschitz radius where the accurate model is sure of a wrong class: difference",
            table.per_seed("off", np.max),
            at_most=1e-6,
            rule="exact",
            refuted_by=("missing-offset",),
        ),
        Claim(
            "robust accuracy of the mixture above the straight line between its networks",
            heights(table),
            at_least=0.05,
            refuted_by=("random-switch",),
        ),
        Claim(
            "the answer changes no nearer than the radius of smoothing: least distance beyond it",
            table.per_seed("spare", np.min),
            at_least=-1e-9,
            rule="exact",
            key=False,
        ),
        Claim(
            "at alpha = 1 the radius of smoothing is sigma (Phi^-1(p_1) - Phi^-1(p_2)) / 2: largest difference",
            table.per_seed("plain", np.max),
            at_most=1e-9,
            rule="exact",
            key=False,
        ),
        Claim(
            "at alpha = 0 and 1 the mixture is its networks' log-softmax: largest difference",
            table.per_seed("difference", np.max),
            at_most=1e-6,
            rule="exact",
            key=False,
        ),
        Claim(
            "clean accuracy: mixture over the robust network",
            table.gain("mixture", "robust", "clean"),
            at_least=0.03,
            key=False,
        ),
        Claim(
            "robust accuracy at equal clean accuracy: mixed probabilities over mixed logits",
            table.gain("probabilities", "logits", "matched"),
            at_least=-0.01,
            key=False,
        ),
    ]
    return found + (_adaptive_claims(table) if table.where(arm="adaptive").rows else [])


def _adaptive_claims(table: Table) -> list[Claim]:
    """What the mixing network adds, where the scale trains one."""
    return [
        Claim(
            "clean accuracy: mixing network over the fixed weight",
            table.gain("adaptive", "mixture", "clean"),
            at_least=0.0,
            key=False,
        ),
        Claim(
            "robust accuracy: mixing network over the fixed weight",
            table.gain("adaptive", "mixture", "robust"),
            at_least=-0.05,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Robust over clean accuracy: mixtures of probabilities and of logits, the mixing network, and the line."""
    drawing = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = drawing.subplots()

    def points(arm: str) -> tuple[list[float], list[float]]:
        weights = dict.fromkeys(table.values("alpha", arm=arm))
        found = [[table.values(c, arm=arm, alpha=a).mean() for a in weights] for c in ("clean", "robust")]
        return found[0], found[1]

    clean, robust = points("curve")
    axes.plot(clean, robust, "-o", ms=4, label="mixed probabilities")
    axes.plot(*points("logit curve"), "-s", ms=3, label="mixed logits")
    axes.plot([clean[0], clean[-1]], [robust[0], robust[-1]], "--", color="0.6", label="coin toss")
    if table.where(arm="adaptive").rows:
        adaptive = [[table.values(c, arm="adaptive").mean()] for c in ("clean", "robust")]
        axes.plot(*adaptive, "*", ms=10, label="mixing network")
    axes.set(xlabel="clean accuracy", ylabel="accuracy under PGD")
    axes.legend(frameon=False)
    return drawing
