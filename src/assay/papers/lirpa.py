"""Linear relaxation on any graph: sound bounds, and training on them by CROWN-IBP with loss fusion.

Every lower bound on a margin of a network with a residual block and a concatenation lies below what a strong attack
finds; a network trained on the bounds is certified where one trained on cross-entropy is not. Exact: a linear model's
bounds are W x +- eps ||W||_q, two unstable neurons worked by hand, substitutions by enumeration, the fused bound below
the separate ones. Support: the order of the methods, training without fusion, operations with 100 classes (counted, not
timed), and the loss over perturbed weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from assay.attacks import PGD, Linf, Targeted
from assay.certify import (
    IBP,
    BoundedModule,
    CROWNIBPTraining,
    FlatTraining,
    LpBall,
    SynonymSet,
    margins,
    weight_balls,
    weight_loss_bound,
    worst_weight_loss,
)
from assay.certify.bounds import SLACK, Call, Unary
from assay.certify.bounds.module import Method
from assay.certify.bounds.registry import RULES, negative, positive
from assay.certify.loss_fusion import fused_loss
from assay.data import Batch, Data, load_data
from assay.nets import MLP, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded, torch_rng
from assay.training import State, Supervised

METHODS: tuple[Method, ...] = ("IBP", "CROWN-IBP", "CROWN")
EPS, STEPS = 0.05, 50  # soundness and order: radius, steps of the attack
CERTIFIED_EPS, BATCH = 0.1, 64
SMALL_EPS, WEIGHT_EPS = 0.03, 0.1
SPLITS = ("train", "test")
RELU = torch.ops.aten.relu.default

LEAST = {"natural": 1, "flat": 1, "small": 1, "rows": 100, "draws": 20}
SMALL = {"natural": 3, "flat": 100, "small": 15, "rows": 1000, "draws": 200}

PAPER = Paper(
    slug="lirpa",
    title="Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond",
    authors="Kaidi Xu, Zhouxing Shi, Huan Zhang, Yihan Wang, Kai-Wei Chang, Minlie Huang, Bhavya Kailkhura, Xue Lin, "
    "Cho-Jui Hsieh",
    year=2020,
    arxiv="2002.12920",
    room="certify",
    also=("losses", "training"),
    kind="method",
    implements=(
        "certify.BoundedModule",
        "certify.LpBall",
        "certify.SynonymSet",
        "certify.loss_fusion_bound",
        "certify.CROWNIBPTraining",
        "certify.FlatTraining",
    ),
    claim="Linear bounds through any graph are sound, and training on them certifies a network.",
    headline="First certified training on downscaled ImageNet; CIFAR-10 at 8/255: verified error about 66-67% on "
    "DenseNet, ResNeXt and WideResNet; loss fusion trains larger batches, about 50 times as fast with many classes.",
    peers=("auto_LiRPA",),
    baselines=("natural", "small, apart"),
    shams={
        "noise-training": "training takes cross-entropy at a uniform point of the ball in place of the bound",
        "swapped-slopes": "the backward step takes the upper line for positive coefficients, the lower for negative",
    },
    scales=(
        Scale("smoke", 1, {"data": "digits", "train": 600, "test": 100, "images": 5, "epochs": 3, **LEAST}),
        Scale("claim", 5, {"data": "mnist", "train": 10_000, "test": 1000, "images": 50, "epochs": 8, **SMALL}),
        Scale("gpu", 5, {"data": "cifar10", "train": 50_000, "test": 10_000, "images": 200, "epochs": 160, **SMALL}),
    ),
)


class _Swapped(Unary):
    """The sham's rule: each coefficient meets the line of the other side."""

    def backward(self, call: Call, a: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        (x,) = call.inputs
        lines = self.relax(x.lower, x.upper, call)
        up, down = positive(a), negative(a)
        constant = call.dot(up, lines.upper_intercept) + call.dot(down, lines.lower_intercept)
        return (up * lines.upper_slope + down * lines.lower_slope,), constant


@contextmanager
def _rule(sham: str | None) -> Iterator[None]:
    """The rule of ReLU that the sham takes, put back afterwards."""
    kept = RULES[RELU, None]
    assert isinstance(kept, Unary)
    if sham == "swapped-slopes":
        RULES[RELU, None] = _Swapped(kept.relax, bends=kept.bends, rounds=False)
    try:
        yield
    finally:
        RULES[RELU, None] = kept


class _NoiseTraining(CROWNIBPTraining):
    def bound_loss(self, model: nn.Module, batch: Batch, eps: float, state: State) -> Tensor:
        low, high = state.data.bounds
        noise = eps * (2 * state.draws("noise", batch.index).uniform(*batch.x.shape[1:]) - 1)
        return F.cross_entropy(model((batch.x + noise.to(batch.x)).clamp(low, high)), batch.y)


class Branches(nn.Module):
    """A convolution, a residual block, a concatenation of two branches, a linear layer."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 6) -> None:
        super().__init__()
        channels, height, across = shape
        self.stem = nn.Conv2d(channels, width, 3, 2, 1)
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))
        self.left, self.right = nn.Conv2d(width, width, 3, 2, 1), nn.Conv2d(width, width, 1, 2)
        size = math.ceil(height / 4) * math.ceil(across / 4)
        self.head = nn.Linear(2 * width * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        h = (h + self.block(h)).relu()
        return self.head(torch.cat([self.left(h), self.right(h)], 1).relu().flatten(1))


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


def _trainer(scale: Scale, cls: type[CROWNIBPTraining] = CROWNIBPTraining) -> CROWNIBPTraining:
    # the rate stays until the radius is whole: one that falls before it leaves nothing certified
    epochs = scale["epochs"]
    return cls(eps=CERTIFIED_EPS, epochs=epochs, batch_size=BATCH, lr=2e-3, schedule="constant", ramp_end=0.5)


def _attacked(model: nn.Module, data: Data, seed: int) -> Tensor:
    """The margins z_y - z_j (n, c - 1) that PGD-50 towards each other class j reaches."""
    classes = len(data.classes)
    rows = margins(data.y, classes, data.x)
    others = (rows < 0).int().argmax(2).flatten()  # (n (c - 1),)
    x = data.x.repeat_interleave(classes - 1, 0)
    attack = PGD(ball=Linf(EPS), steps=STEPS, step_size=EPS / 10, bounds=data.bounds, early_stop=False, loss="margin")
    near = attack.run(model, x, Targeted(others), seed=derive(seed, "pgd")).x_adv
    logits = predict(model, near).unflatten(0, (len(data), classes - 1))
    return (logits * rows).sum(2)


def _soundness(given: dict[str, Any]) -> list[dict[str, Any]]:
    """For each method what its lower bounds leave below the attack, at least, and their mean; the order by image."""
    model, data = given["branches"], given["few"]
    module = BoundedModule(model, data.x)
    ball = LpBall(eps=EPS, low=data.bounds[0], high=data.bounds[1])
    rows, found = margins(data.y, len(data.classes), data.x.double()), {}
    with torch.no_grad():
        for method in METHODS:
            found[method] = module.compute_bounds(data.x.double(), ball, rows, method, slack=SLACK, nested=False)[0]
    mean = {method: lower.mean(1) for method, lower in found.items()}
    cells = [
        {"arm": m, "room": float((given["attacked"] - lower).min()), "bound": float(lower.mean())}
        for m, lower in found.items()
    ]
    ordered = torch.stack([mean[a] < mean[b] for a, b in itertools.pairwise(METHODS)]).all(0)
    return [*cells, {"arm": "order", "ordered": float(ordered.float().mean())}]


def _fusion(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Small digits: trained on the fused bound and on the separate margins, for the same steps."""
    train, test = (part.limit(scale["rows"], seed=seed) for part in _images("digits"))
    with seeded(seed, "small"):
        start = SmallCNN((1, 8, 8), len(train.classes), (8, 8), 32)
    rows: list[dict[str, Any]] = []
    for arm, fused in (("small, fused", True), ("small, apart", False)):
        trainer = CROWNIBPTraining(eps=SMALL_EPS, epochs=scale["small"], batch_size=50, fused=fused)
        rows.append({"arm": arm, **_certified(trainer.fit(start, train, seed=seed), test, SMALL_EPS)})
    return rows


def _certified(model: nn.Module, data: Data, eps: float = CERTIFIED_EPS) -> dict[str, float]:
    verdict = IBP(eps=eps, bounds=data.bounds).certify(model, data.x, data.y).verdict
    logits = predict(model, data.x)
    clean, loss = (logits.argmax(1) == data.y).float().mean(), F.cross_entropy(logits, data.y)
    return {"certified": float(verdict.float().mean()), "accuracy": float(clean), "loss": float(loss)}


def linear_difference(seed: int) -> float:
    """Largest difference from W x + b +- eps ||W||_q on a linear model, norms 1, 2 and infinity."""
    g = torch_rng(seed, "linear")
    with seeded(seed, "linear"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    x, worst = torch.randn(20, 3, 4, generator=g, dtype=torch.float64), 0.0
    methods: tuple[Method, ...] = ("forward", "CROWN")
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    middle = model(x).detach()
    for norm, dual in ((1.0, float("inf")), (2.0, 2.0), (float("inf"), 1.0)):
        radius = 0.3 * layer.weight.detach().norm(p=dual, dim=1)
        for method in methods:
            lower, upper = BoundedModule(model, x).compute_bounds(x, LpBall(norm, 0.3), method=method)
            gaps = torch.stack([lower - middle + radius, upper - middle - radius]).detach()
            worst = max(worst, float(gaps.abs().max()))
    return worst


class _TwoNeurons(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, :1] + x[:, 1:] + 0.5, x[:, :1] - x[:, 1:] - 0.5
        return a.relu() - b.relu()


def two_neurons_difference() -> float:
    """relu(a) - relu(b), a = x1 + x2 + 1/2 in [-3/2, 5/2], b = x1 - x2 - 1/2 in [-5/2, 3/2], by hand.

    relu(a) lies between a and (5 a + 7.5) / 8, relu(b) between 0 and (3 b + 7.5) / 8: the difference is at least
    5/8 x1 + 11/8 x2 - 1/4 >= -9/4, and at most 5/8 (x1 + x2) + 5/4 <= 5/2.
    """
    x = torch.zeros(1, 2, dtype=torch.float64)
    lower, upper = BoundedModule(_TwoNeurons(), x).compute_bounds(x, LpBall(eps=1.0), method="CROWN-IBP", nested=False)
    return max(abs(lower.item() + 9 / 4), abs(upper.item() - 5 / 2))


def synonyms_difference(seed: int) -> float:
    """Largest difference from the least value over all substitutions: 6 positions, 3 words, 0 to 3 replacements."""
    g = torch_rng(seed, "synonyms")
    x, words = torch.randn(1, 6, 4, generator=g), torch.randn(1, 6, 2, 4, generator=g)
    a, worst = torch.randn(5, 1, 6, 4, generator=g), 0.0
    scores = torch.cat([(a * x)[..., None, :], a[..., None, :] * words], 3).sum(4)[:, 0].numpy()  # (5, 6, 3)
    picks = np.array(list(itertools.product(range(3), repeat=6)))
    totals = scores[:, np.arange(6), picks].sum(2)  # (5, 729)
    for budget in range(4):
        found = SynonymSet(words, torch.ones(1, 6, 2, dtype=torch.bool), budget).least(a, x)[:, 0].numpy()
        worst = max(worst, float(np.abs(found - totals[:, (picks > 0).sum(1) <= budget].min(1)).max()))
    return worst


def fused_excess(given: dict[str, Any]) -> float:
    """The fused bound less cross-entropy of the separate bounds that the same linear forms give, at most."""
    data = given["few"]
    module, x = BoundedModule(given["branches"], data.x), data.x.double()
    with torch.no_grad():
        run = module.run(x, LpBall(eps=EPS, low=data.bounds[0], high=data.bounds[1]), "CROWN-IBP")
        ends = module.ends(run, data.y, "CROWN-IBP")
        apart = torch.cat([torch.zeros(len(x), 1).to(x), ends[1]], 1).logsumexp(1)
        return float((fused_loss(run, data.y, ends=ends) - apart).max())


def operations(classes: int, fused: bool) -> float:
    """Multiplications of the forward and backward pass of one loss on bounds, with ``classes`` classes."""
    with seeded(0, "operations"):
        model = SmallCNN((1, 8, 8), classes, (8, 16), 64)
    x, y = torch.full((4, 1, 8, 8), 0.5), torch.arange(4)
    trainer = CROWNIBPTraining(eps=CERTIFIED_EPS, fused=fused, mixed=False)
    state = State(0, Data(x, y, tuple(map(str, range(classes))), (0.0, 1.0)), 1)
    with FlopCounterMode(display=False) as counter:
        batch = Batch(x, y, torch.arange(4), {})
        torch.autograd.grad(trainer.bound_loss(model, batch, CERTIFIED_EPS, state), list(model.parameters()))
    return float(counter.get_total_flops())


def _flat(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """A network trained on the bound over its weights, and by cross-entropy, on 500 digits."""
    train, test = (part.limit(scale["rows"] // 2, seed=seed) for part in _images("digits"))
    with seeded(seed, "flat"):
        start = MLP(train.shape, len(train.classes), (32, 32))
    options = {"epochs": scale["flat"], "batch_size": 50, "lr": 3e-3}
    arms = {"flat": FlatTraining(eps=WEIGHT_EPS, **options), "erm": Supervised(weight_decay=0.01, **options)}
    rows: list[dict[str, Any]] = []
    for arm, trainer in arms.items():
        model = trainer.fit(start, train, seed=seed).double()
        x, y, balls = test.x[:100].double(), test.y[:100], weight_balls(model, WEIGHT_EPS)
        with torch.no_grad():
            bound = weight_loss_bound(model, x, y, balls)
        worst = worst_weight_loss(model, x, y, balls, scale["draws"], torch_rng(seed, "weights"))
        accuracy = float((model(test.x.double()).argmax(1) == test.y).float().mean())
        rows.append({"arm": arm, "weight_room": float((bound - worst).min()), "weight_accuracy": accuracy})
    return rows


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Data, the network that is bounded with what the attack finds, and every arm that no sham changes."""
    train, test = (
        part.limit(scale[k], seed=seed) for part, k in zip(_images(scale["data"]), ("train", "test"), strict=True)
    )
    (channels, height, width), classes = train.shape, len(train.classes)
    shape = (channels, height, width)
    with seeded(seed, "init"):
        start = SmallCNN(shape, classes, (8, 16), 64)
        branches = Branches(shape, classes)
    natural = Supervised(epochs=scale["natural"], batch_size=BATCH)
    given: dict[str, Any] = {"train": train, "test": test, "start": start, "few": test[torch.arange(scale["images"])]}
    given["branches"] = natural.fit(branches, train, seed=seed)
    given["attacked"] = _attacked(given["branches"], given["few"], seed)
    given["bounds"] = _soundness(given)
    given["arms"] = [
        {"arm": "natural", **_certified(natural.fit(start, train, seed=seed), test)},
        *_fusion(scale, seed),
    ]
    given["certified"] = _certified(_trainer(scale).fit(start, train, seed=seed), test)
    given["flat"] = _flat(scale, seed)
    given["operations"] = operations(100, True) / operations(100, False)
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Certified accuracy, bounds against the attack and the exact checks; a sham changes the training or the rule."""
    certified = given["certified"]
    if sham == "noise-training":
        model = _trainer(scale, _NoiseTraining).fit(given["start"], given["train"], seed=seed)
        certified = _certified(model, given["test"])
    with _rule(sham):
        bounds = _soundness(given) if sham == "swapped-slopes" else given["bounds"]
        exact = {"hand": two_neurons_difference(), "linear": linear_difference(seed)}
    return Table.of(
        [
            *bounds,
            *given["arms"],
            {"arm": "fused", **certified},
            *given["flat"],
            {"arm": "exact", **exact, "synonyms": synonyms_difference(seed), "excess": fused_excess(given)},
            {"arm": "cost", "operations": given["operations"]},
        ]
    )


def claims(table: Table) -> list[Claim]:
    """Soundness, certified accuracy and what holds exactly decide."""
    gain = 100 * (table.per_seed("certified", arm="fused") - table.per_seed("certified", arm="natural"))
    apart = 100 * (table.per_seed("certified", arm="small, fused") - table.per_seed("certified", arm="small, apart"))
    accuracy = 100 * (table.per_seed("weight_accuracy", arm="flat") - table.per_seed("weight_accuracy", arm="erm"))

    def exact(text: str, observed: np.ndarray, **rest: Any) -> Claim:
        return Claim(text, observed, rule="exact", **rest)

    return [
        exact(
            "margin that PGD-50 reaches less its lower bound, least over methods, images and classes",
            table.per_seed("room", np.min),
            at_least=0.0,
            refuted_by=("swapped-slopes",),
        ),
        Claim(
            "certified accuracy (%) at eps 0.1, trained by CROWN-IBP with loss fusion",
            100 * table.per_seed("certified", arm="fused"),
            at_least=75.0,
            refuted_by=("noise-training",),
        ),
        Claim("the same, points above natural training", gain, at_least=60.0, refuted_by=("noise-training",)),
        exact(
            "two unstable neurons against bounds worked by hand, largest difference",
            table.per_seed("hand", np.max),
            at_most=1e-9,
            refuted_by=("swapped-slopes",),
        ),
        exact("linear model against W x +- eps ||W||_q, largest difference", table.per_seed("linear"), at_most=1e-6),
        exact("substitutions against enumeration, largest difference", table.per_seed("synonyms"), at_most=1e-5),
        exact("fused bound less that of separate margins, at most", table.per_seed("excess"), at_most=1e-9),
        Claim(
            "share of images on which IBP < CROWN-IBP < CROWN (mean lower bound)",
            table.per_seed("ordered"),
            at_least=0.95,
            key=False,
        ),
        exact(
            "small digits at eps 0.03: certified accuracy, fused less unfused training (points)",
            apart,
            at_least=-3.0,
            key=False,
        ),
        exact("operations with 100 classes, fused over unfused", table.per_seed("operations"), at_most=0.35, key=False),
        exact(
            "bound on the loss over perturbed weights less the worst of 200 draws, least",
            table.per_seed("weight_room", np.min),
            at_least=0.0,
            key=False,
        ),
        Claim(
            "test accuracy, trained on that bound less by cross-entropy (points)", accuracy, at_least=-0.5, key=False
        ),
    ]


def figure(table: Table) -> Figure:
    """Mean lower bounds by method, and certified against clean accuracy by training."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = drawing.subplots(1, 2)
    values = np.stack([table.per_seed("bound", arm=m) for m in METHODS])
    left.plot(range(3), values, "o", ms=4, color="0.55")
    left.plot(range(3), values.mean(1), "_", ms=20, mew=2)
    left.set(xticks=range(3), ylabel="mean lower bound of the margins", title="Residual network, eps 0.05")
    left.set_xticklabels(METHODS)
    for arm, name in (("natural", "natural"), ("fused", "CROWN-IBP with loss fusion")):
        right.plot(table.per_seed("accuracy", arm=arm), table.per_seed("certified", arm=arm), "o", ms=4, label=name)
    right.set(xlabel="clean accuracy", ylabel="certified accuracy", ylim=(-0.02, 1), title="Trained at eps 0.1")
    right.legend(frameon=False)
    return drawing
