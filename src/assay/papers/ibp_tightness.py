"""IBP tightness: how much looser interval bounds are than need be, at random weights, and after training against them.

Propagation tightness is the radius of the optimal box over that of the layer-wise one. Decided are its theory, by
random linear networks (width, depth, a bottleneck) and by brute force over small integer matrices, and that IBP
training raises it manifold over standard training, the more the larger its radius. Exact: optimal boxes are those of
Jacobians by autograd, layer-wise ones those of our interval bounds, the training loss and its gradient are those of a
loop over the layers. Support: adversarial training does not raise it and SABR raises it less; a wider network is
certified more often; order over the training radius. Images are pooled to 14 x 14 and training is short: accuracies are
far from the paper's. With detached radii tightness still grows a little with the training radius: that sham is refuted
by how much, not by order. At depth L the ratio of means is theta^(L-1), exactly, at Gaussian weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from assay.attacks import PGD, Linf
from assay.certify import (
    IBP,
    SABR,
    IBPTraining,
    Intervals,
    Region,
    box_reconstruction_theory,
    init_tightness_theory,
    is_propagation_invariant,
    layerwise_box,
    optimal_box,
    propagation_boxes,
    propagation_tightness,
    sign_rank_one,
)
from assay.data import Data, load_data
from assay.defenses import PGDTraining
from assay.nets import MLP, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import numpy_rng, seeded, torch_rng
from assay.training import Supervised, Trainer

EPS = 0.1  # the radius of PGD and SABR training, of the tightness measured, and the largest of IBP training
CERTIFIED = 0.05  # the radius of adversarial and certified accuracy, and of the comparison of widths
RAMP: dict[str, Any] = {"ramp_end": 0.5, "ramp_middle": 0.0}  # of the radius: linear over half of the steps
WIDTHS, DRAWS, ENDS = (8, 16, 32, 64, 128, 256, 512), 30, 100
DEPTHS, DEPTH_WIDTH = (2, 3, 4, 5), 64
STD, PGD_ARM, SABR_ARM, NARROW = "standard", "pgd", "sabr", "ibp narrow"

PAPER = Paper(
    slug="ibp-tightness",
    title="Understanding Certified Training with Interval Bound Propagation",
    authors="Yuhao Mao, Mark Niklas Müller, Marc Fischer, Martin Vechev",
    year=2024,
    arxiv="2306.10426",
    room="certify",
    also=("dynamics",),
    kind="theory + measure",
    implements=(
        "certify.propagation_tightness",
        "certify.propagation_boxes",
        "certify.optimal_box",
        "certify.layerwise_box",
        "certify.is_propagation_invariant",
        "certify.sign_rank_one",
        "certify.init_tightness_theory",
        "certify.box_reconstruction_theory",
        "certify.IBPTraining",
        "certify.SABR",
    ),
    claim="Interval bounds loosen as theta(width)^(depth - 1) at random weights; training against them tightens them.",
    headline="CNN3 and CNN7 on MNIST and CIFAR-10: tightness falls with width and depth at initialisation, rises "
    "strongly with IBP training and its radius, less with SABR, not with PGD; wider networks are certified more often.",
    peers=("eth-sri/ibp-propagation-tightness", "auto_LiRPA"),
    baselines=(STD, PGD_ARM),
    shams={
        "wrong-width-power": "theta(d) = pi / (2 d): the square root of sqrt(pi / (2 d)) is forgotten",
        "detached-radius": "IBP training with the radii detached: the loss has their value, gradients pass the centres",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 200, "epochs": 2, "test": 40, "radii": (0.05, 0.1), "narrow": 2,
                           "d": 1000}),
        Scale("claim", 5, {"data": "mnist", "train": 2000, "epochs": 6, "test": 400,
                           "radii": (0.0125, 0.025, 0.05, 0.1), "narrow": 4, "d": 2000}),
        Scale("gpu", 5, {"data": "mnist", "train": 60_000, "epochs": 70, "test": 10_000,
                         "radii": (0.0125, 0.025, 0.05, 0.1), "narrow": 4, "d": 2000}),
    ),
)  # fmt: skip


def reference_loss(model: Any, center: Tensor, radius: Tensor, y: Tensor, *, detached: bool = False) -> Tensor:
    """Cross-entropy of the worst margins of a network ``head(body(x))``, layer by layer; radii detached where asked."""

    def kept(r: Tensor) -> Tensor:
        return r.detach() if detached else r

    for layer in model.body:
        if isinstance(layer, nn.ReLU):
            lower, upper = (center - radius).relu(), (center + radius).relu()
            center, radius = (upper + lower) / 2, (upper - lower) / 2
        elif isinstance(layer, nn.Flatten):
            center, radius = center.flatten(1), radius.flatten(1)
        elif isinstance(layer, nn.Conv2d):
            radius = kept(F.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding))
            center = layer(center)
        else:
            center, radius = layer(center), kept(radius @ layer.weight.abs().T)
    w, b = model.head.weight, model.head.bias
    gaps = w[y][:, None] - w
    middle = torch.einsum("ncd,nd->nc", gaps, center) + b[y][:, None] - b
    return F.cross_entropy(kept(torch.einsum("ncd,nd->nc", gaps.abs(), radius)) - middle, y)


class _Detached(IBPTraining):
    def robust_loss(self, model: nn.Module, center: Tensor, radius: Tensor, y: Tensor) -> Tensor:
        return reference_loss(model, center, radius, y, detached=True)


@cache
def _images(source: str) -> tuple[Data, Data]:
    """Training and test images, larger ones pooled to half their sides."""
    parts = load_data(source, "train"), load_data(source, "test")
    return tuple(d if d.shape[-1] <= 8 else d.with_x(F.avg_pool2d(d.x, 2)) for d in parts)  # type: ignore[return-value]


def _network(data: Data, seed: int, narrow: int = 1) -> nn.Module:
    with seeded(seed, "init"):
        channels, height, width = data.shape
        if height <= 8:
            return MLP(data.shape, hidden=(32 // narrow, 32 // narrow))
        return SmallCNN((channels, height, width), widths=(16 // narrow, 32 // narrow))


def _row(arm: str, trainer: Trainer, start: nn.Module, given: dict[str, Any], seed: int) -> dict[str, Any]:
    """Mean tightness at the test images, and accuracies: clean, under PGD, certified by intervals."""
    test = given["test"]
    model = trainer.fit(start, given["train"], seed=seed)
    best, layered = propagation_boxes(model, test.x, test.y, eps=EPS)
    few = test[: len(test) // 2]
    x_adv = PGD(ball=Linf(CERTIFIED), steps=10)(model, few.x, few.y, seed=seed)
    return {
        "arm": arm,
        "tau": float((best.clamp_min(1e-8) / layered.clamp_min(1e-8)).mean()),
        "dead": float((layered < 1e-8).double().mean()),
        "excess": float((best / layered.clamp_min(1e-8)).max()) - 1,
        "accuracy": float((predict(model, test.x).argmax(1) == test.y).double().mean()),
        "adversarial": float((predict(model, x_adv).argmax(1) == few.y).double().mean()),
        "certified": float(IBP(eps=CERTIFIED).certify(model, test.x, test.y).verdict.double().mean()),
    }


def _ibp_rows(scale: Scale, given: dict[str, Any], seed: int, cls: type[IBPTraining]) -> list[dict[str, Any]]:
    start, plan = given["start"], given["plan"]
    return [_row(f"ibp {r:g}", cls(eps=r, kappa=0.0, **RAMP, **plan), start, given, seed) for r in scale["radii"]]


def chain(seed: int, sizes: Sequence[int], *names: object) -> list[Tensor]:
    """Gaussian matrices from size to size, float64."""
    g = torch_rng(seed, "chain", *names)
    return [torch.randn(b, a, generator=g, dtype=torch.float64) for a, b in itertools.pairwise(sizes)]


def _random_ratio(seed: int, width: int, depth: int) -> float:
    """Mean optimal over mean layer-wise radius of random networks, 100 inputs and outputs."""
    best, layered, e = 0.0, 0.0, torch.ones(ENDS)
    for k in range(DRAWS):
        weights = chain(seed, [ENDS, *[width] * (depth - 1), ENDS], width, depth, k)
        best += float(optimal_box(weights, e).mean())
        layered += float(layerwise_box(weights, e).mean())
    return best / layered


def _slope(rows: list[dict[str, Any]], arm: str, scale: Any = np.asarray) -> float:
    """Least-squares slope of the log ratio over what the arm varies."""
    points = [(r[arm], r["ratio"]) for r in rows if r["arm"] == arm]
    x, y = np.array(points).T
    return float(np.polyfit(scale(x), np.log(y), 1)[0])


def random_networks(seed: int, d: int) -> list[dict[str, Any]]:
    """Random networks over width at two layers and over depth at width 64; bottlenecks of a d-dimensional input."""
    shapes = [*(("width", w, 2) for w in WIDTHS), *(("depth", DEPTH_WIDTH, n) for n in DEPTHS)]
    rows: list[dict[str, Any]] = [
        {"arm": arm, "width": width, "depth": depth, "ratio": _random_ratio(seed, width, depth)}
        for arm, width, depth in shapes
    ]
    for k in (2, 5, 10):
        found = np.zeros(2)
        for draw in range(4):
            g = torch_rng(seed, "haar", k, draw)
            u = torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64)).Q
            found += [float(f([u.T, u], torch.ones(d)).mean()) / 4 for f in (layerwise_box, optimal_box)]
        rows.append({"arm": "bottleneck", "k": k, "off": float(np.abs(found / box_reconstruction_theory(k) - 1).max())})
    return rows


def beside_theory(rows: list[dict[str, Any]], sham: str | None) -> list[dict[str, Any]]:
    """The same rows with what theory says of them, and the slopes."""

    def theta(width: int) -> float:
        return np.pi / (2 * width) if sham == "wrong-width-power" else init_tightness_theory(width)

    more = [{**r, "theory": theta(r["width"]) ** (r["depth"] - 1)} if "width" in r else r for r in rows]
    more = [{**r, "error": abs(r["ratio"] / r["theory"] - 1)} if r["arm"] == "width" else r for r in more]
    depth_slope = _slope(rows, "depth") / np.log(theta(DEPTH_WIDTH))
    return [*more, {"arm": "slopes", "slope": _slope(rows, "width", np.log), "depth_slope": depth_slope}]


def _linear_network(weights: Sequence[Tensor]) -> nn.Sequential:
    """Linear layers with these matrices and no biases."""
    layers = [nn.utils.skip_init(nn.Linear, w.shape[1], w.shape[0], bias=False) for w in weights]
    for layer, w in zip(layers, weights, strict=True):
        layer.load_state_dict({"weight": w})
    return nn.Sequential(*layers)


def invariance(seed: int, pairs: int = 300) -> dict[str, float]:
    """Of small integer pairs: how many are misjudged, or invariant without zeros and with no product of rank-one signs.

    Invariant are those whose products W2[i, k] W1[k, j] have one sign over k. Also how far from 1 the tightness of
    factors of one sign pattern is, and whether the identity beside any signs is told from them.
    """
    rng, wrong, broken = numpy_rng(seed, "integers"), 0, 0
    for number in range(pairs):
        low = 0 if number % 2 else -1  # half of the pairs without zeros
        sizes = (
            rng.integers(1, 4, (2, 2, 2)),
            rng.choice([-1, 1], (2, 2, 2)) if low == 0 else rng.integers(-1, 2, (2, 2, 2)),
        )
        w1, w2 = torch.from_numpy((sizes[0] * sizes[1]).astype(float))
        terms = w2[:, :, None] * w1[None]  # (i, k, j)
        one = bool(((terms.amax(1) <= 0) | (terms.amin(1) >= 0)).all())
        wrong += is_propagation_invariant([w1, w2]) != one
        broken += low == 0 and one and not sign_rank_one(w2 @ w1)
    signs = [torch.from_numpy(rng.choice([-1.0, 1.0], n)) for n in (6, 9, 8, 4)]
    weights = [
        w.abs() * b[:, None] * a
        for w, (a, b) in zip(chain(seed, (6, 9, 8, 4), "signs"), itertools.pairwise(signs), strict=True)
    ]
    model = _linear_network(weights).double()
    loose = (1 - propagation_tightness(model, torch.rand(5, 6, generator=torch_rng(seed, "x")).double(), eps=EPS)).abs()
    odd = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    told = is_propagation_invariant([odd, torch.eye(2)]) and not sign_rank_one(odd)
    return {"misjudged": float(wrong + broken + (not told)), "loose": float(loose.max())}


def _with_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """A loss and its gradient in the parameters, one after the other."""
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([loss.detach()[None], *(g.flatten() for g in slopes)])


def boxes(model: nn.Module, data: Data, seed: int) -> dict[str, float]:
    """Largest relative differences: optimal boxes from Jacobians by autograd; a linear network's layer-wise boxes from
    our interval bounds; the training loss and its gradient from the loop over layers."""
    few = data[:6]
    e = ((few.x + EPS).clamp(max=1) - (few.x - EPS).clamp(min=0)) / 2
    jacobian = torch.func.vmap(torch.func.jacrev(lambda t: model(t[None])[0]))(few.x).detach().double()
    expected = (jacobian.abs() * e[:, None]).flatten(2).sum(2)
    best, _ = propagation_boxes(model, few.x, eps=EPS)
    linear = _linear_network(chain(seed, (20, 30, 25, 8), "linear"))
    x = torch.rand(5, 20, generator=torch_rng(seed, "inputs"))
    _, layered = propagation_boxes(linear, x, eps=EPS)
    lower, upper = Intervals().bounds(linear, x, Region(eps=EPS, bounds=(0, 1)))
    losses = [
        _with_gradient(f(model, few.x, 0.3 * e, few.y), model) for f in (IBPTraining().robust_loss, reference_loss)
    ]
    return {
        "jacobian": float((best / expected - 1).abs().max()),
        "intervals": float((2 * layered / (upper - lower) - 1).abs().max()),
        "loss": float((losses[0] - losses[1]).abs().max() / losses[1].abs().max()),
    }


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Images, starting weights, the rows of every real arm, and the exact checks on a random network."""
    train, test = _images(scale["data"])
    given: dict[str, Any] = {
        "train": train.limit(scale["train"], seed=seed),
        "test": test.limit(scale["test"], seed=seed),
    }
    start = given["start"] = _network(train, seed)
    plan: dict[str, Any] = {"epochs": scale["epochs"], "batch_size": 64, "lr": 5e-3}
    given["plan"] = plan
    attack: dict[str, Any] = {"eps": EPS, "attack_steps": 5, "step_size": 0.4}
    arms: list[tuple[str, Trainer, nn.Module]] = [
        (STD, Supervised(**plan), start),
        (PGD_ARM, PGDTraining(**attack, **plan), start),
        (SABR_ARM, SABR(**RAMP, **attack, **plan), start),
        (NARROW, IBPTraining(eps=CERTIFIED, kappa=0.0, **RAMP, **plan), _network(train, seed, scale["narrow"])),
    ]
    given["rows"] = [_row(arm, trainer, net, given, seed) for arm, trainer, net in arms]
    given["ibp"] = _ibp_rows(scale, given, seed, IBPTraining)
    given["random"] = random_networks(seed, scale["d"])
    given["exact"] = {"arm": "exact", **boxes(start, given["test"], seed), **invariance(seed)}
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Tightness and accuracies of every arm, random networks beside theory, and the exact checks."""
    ibp = _ibp_rows(scale, given, seed, _Detached) if sham == "detached-radius" else given["ibp"]
    return Table.of([*given["rows"], *ibp, *beside_theory(given["random"], sham), given["exact"]])


def _taus(table: Table) -> np.ndarray:
    """Tightness (radii, seeds) after IBP training, by growing radius."""
    names = {str(r["arm"]) for r in table.rows if str(r["arm"]).startswith("ibp ")} - {NARROW}
    return np.stack([table.per_seed("tau", arm=a) for a in sorted(names, key=lambda a: float(a.split()[1]))])


def claims(table: Table) -> list[Claim]:
    """Theory, the exact checks and the gain by IBP training decide; the order of the other arms supports."""
    power, detached = ("wrong-width-power",), ("detached-radius",)
    taus, standard = _taus(table), table.per_seed("tau", arm=STD)
    pgd, sabr = (table.per_seed("tau", arm=a) for a in (PGD_ARM, SABR_ARM))

    def exactly(text: str, column: str, at_most: float, **more: Any) -> Claim:
        return Claim(text, table.per_seed(column, np.max), at_most=at_most, rule="exact", **more)

    return [
        exactly("two layers, width 8 to 512: relative error of theta, largest", "error", 0.03, refuted_by=power),
        Claim("two layers: slope of log tightness over log width", table.per_seed("slope"), -0.55, -0.45, rule="exact"),
        Claim(
            "depth 2 to 5: slope of log tightness over log theta of the width",
            table.per_seed("depth_slope"),
            0.9,
            1.1,
            rule="exact",
            refuted_by=power,
        ),
        exactly("bottleneck: relative error of both radii, largest", "off", 0.02),
        exactly("integer pairs: misjudged, or without the sign pattern that invariance forces", "misjudged", 0.0),
        exactly("factors of one sign pattern: distance of tightness from 1, largest", "loose", 1e-6),
        exactly("optimal boxes against Jacobians by autograd: relative difference, largest", "jacobian", 1e-4),
        exactly("layer-wise boxes against interval bounds: relative difference, largest", "intervals", 1e-4),
        exactly("training loss and gradient against a loop over layers: relative difference", "loss", 1e-4),
        exactly("trained networks: tightness above 1, largest", "excess", 1e-6),
        Claim("tightness after IBP training over standard training", taus[-1] / standard, 5.0, refuted_by=detached),
        Claim(
            "tightness after IBP training with the largest radius, less with the smallest",
            taus[-1] - taus[0],
            0.2,
            refuted_by=detached,
        ),
        Claim(
            "rank correlation of tightness with the radius of IBP training",
            [spearmanr(np.arange(len(t)), t).statistic for t in taus.T],
            0.9,
            rule="k-of-n",
            k=4,
            key=False,
        ),
        Claim("tightness after PGD over standard training", pgd / standard, at_most=2.0, key=False),
        Claim("tightness after SABR over PGD training", sabr / pgd, 2.0, key=False),
        Claim("tightness after SABR over IBP training", sabr / taus[-1], at_most=0.9, key=False),
        Claim(
            "certified accuracy at radius 0.05 after IBP training for it: the network less one a quarter as wide",
            table.gain(f"ibp {CERTIFIED:g}", NARROW, "certified"),
            0.01,
            key=False,
        ),
    ]


def figure(table: Table) -> Figure:
    """Random networks beside theory over width, and tightness and accuracies of the trained ones, one dot a seed."""
    drawing = Figure(figsize=(9.6, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=(2, 3))
    first = table.where(seed=table.rows[0]["seed"]) if "seed" in table.rows[0] else table
    left.loglog(first.values("width", arm="width"), first.values("theory", arm="width"), label="theory")
    left.loglog(
        table.values("width", arm="width"), table.values("ratio", arm="width"), "o", ms=3, label="random networks"
    )
    left.set(xlabel="width", ylabel="tightness", title="Two Gaussian layers")
    left.legend(frameon=False)
    arms = list(dict.fromkeys(str(r["arm"]) for r in table.rows if "tau" in r))
    for k, column in enumerate(("tau", "accuracy", "certified")):
        values = np.stack([table.per_seed(column, arm=a) for a in arms])
        right.plot(np.arange(len(arms)), values.mean(1), "os^"[k], label=column.replace("tau", "tightness"))
        right.plot(np.arange(len(arms)), values, ".", ms=3, color="0.6")
    right.set(ylim=(-0.02, 1.02), title="Trained networks")
    right.set_xticks(range(len(arms)), arms, rotation=30, ha="right")
    right.legend(frameon=False)
    return drawing
