"""The Z-loss: invariant to shift and scale of the scores, and trained at a cost that does not grow with the classes.

Exact: fifty steps of the implicit output layer end at the weights of dense SGD by automatic differentiation, for the
Z-loss with 1,000 to 100,000 classes and for the other spherical losses; a step writes as many numbers whatever the
number of classes; the loss is invariant, and its gradient is the closed form, orthogonal to 1. Time per step is
measured at claim scale. Support: digits, and the next of the 2,000 most frequent words of a text after three words,
where every loss has its options chosen on held-out samples.
"""

from __future__ import annotations

import re
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.data import Batch, Data, load_data, load_text
from assay.losses import OneHotSquaredLoss, SphericalLinear, SphericalSoftmaxLoss, TaylorSoftmaxLoss, ZLoss
from assay.losses.spherical import SphericalLoss
from assay.nets import MLP
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.allocations import allocated
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import numpy_rng, seeded, torch_rng
from assay.training import Plan, State, fit

WIDTH, BATCH, CONTEXT = 64, 16, 3
CE, Z, SPHERICAL, TAYLOR = "cross-entropy", "Z-loss", "spherical softmax", "Taylor softmax"
TOPS = (1, 5, 10, 50)
SMALL = {
    "layer": {"classes": (50, 200), "steps": 20, "timed": 0},
    "images": {"source": "digits", "train": 400, "test": 300, "hidden": 32, "epochs": 2},
    "words": {"source": "markov", "vocabulary": 60, "train": 1500, "epochs": 1},
}
LARGE = {
    "layer": {"classes": (1000, 10_000, 100_000), "steps": 50, "timed": 60},
    "images": {"source": "mnist", "train": 10_000, "test": 5000, "hidden": 256, "epochs": 6},
    "words": {"source": "tinyshakespeare", "vocabulary": 2000, "train": 20_000, "epochs": 2},
}

PAPER = Paper(
    slug="z-loss",
    title="The Z-loss: a shift and scale invariant classification loss belonging to the Spherical Family",
    authors="Alexandre de Brébisson, Pascal Vincent",
    year=2016,
    arxiv="1604.08859",
    room="losses",
    kind="method",
    implements=("losses.ZLoss", "losses.SphericalLinear", "losses.SphericalSoftmaxLoss", "losses.TaylorSoftmaxLoss"),
    claim="A loss of the target's z-score is shift and scale invariant and can be trained exactly, by SGD, at a cost "
    "that does not depend on the number of classes.",
    headline="One Billion Word, 793,471 classes: 40 times faster than the softmax, 4 times faster than a hierarchical "
    "one; better top-k errors for k of 5 to 10 and more, and far better ones than other spherical losses.",
    peers=("torch.nn.AdaptiveLogSoftmaxWithLoss",),
    baselines=(CE, SPHERICAL, TAYLOR),
    shams={
        "old-inverse": "the targets' rows are moved through the inverse of U from before the step",
        "uncentred": "the target's score is divided by the root mean square, the mean is not subtracted",
    },
    scales=(Scale("smoke", 1, SMALL), Scale("claim", 5, LARGE)),
)


class _OldInverse(SphericalLinear):
    def _row_inverse(self, old: Tensor) -> Tensor:
        return old


class _Uncentred(ZLoss):
    def prepared(self, logits: Tensor) -> Tensor:
        return logits

    def value(self, s: Tensor, q: Tensor, own: Tensor, classes: int) -> Tensor:
        return super().value(0 * s, q, own, classes)


LAYERS: Mapping[str | None, type[SphericalLinear]] = {"old-inverse": _OldInverse}
RULES: Mapping[str | None, type[ZLoss]] = {"uncentred": _Uncentred}


# The output layer


def _batches(classes: int, steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Hidden layers (BATCH, WIDTH) of norm about 1, with a common part, and targets, of which some are drawn twice."""
    g = torch_rng(seed, "batches", classes)
    common = torch.randn(WIDTH, generator=g, dtype=torch.float64)
    found = []
    for _ in range(steps):
        h = (torch.randn(BATCH, WIDTH, generator=g, dtype=torch.float64) + 0.5 * common) / WIDTH**0.5
        y = torch.randint(classes, (BATCH,), generator=g)
        y[-2:] = y[:2]
        found.append((h, y))
    return found


def dense(weight: Tensor, batches: Sequence[tuple[Tensor, Tensor]], loss: nn.Module, lr: float) -> Tensor:
    """The weights (D, d) after plain SGD on all scores by automatic differentiation."""
    w = weight.clone().requires_grad_()
    optimizer = torch.optim.SGD([w], lr)
    for h, y in batches:
        optimizer.zero_grad()
        loss(h @ w.T, y).backward()
        optimizer.step()
    return w.detach()


def _seconds(step: Callable[[int], object], times: int) -> float:
    """The median CPU time of a call, which is told its number."""
    spent = []
    for k in range(times):
        begun = time.process_time()
        step(k)
        spent.append(time.process_time() - begun)
    return statistics.median(spent)


def _dense_end(classes: int, loss: nn.Module, scale: Scale, seed: int) -> tuple[Tensor, float, int]:
    """Weights of dense SGD, its median CPU time a step (0 where not timed), and the numbers that a step writes."""
    start = SphericalLinear(WIDTH, classes, seed=seed).weight()
    batches = _batches(classes, scale["layer"]["steps"], seed)
    written = allocated(lambda: dense(start, batches[:1], loss, 0.1))
    took = _seconds(lambda k: dense(start, batches[k : k + 1], loss, 0.1), 5) if scale["layer"]["timed"] else 0.0
    return dense(start, batches, loss, 0.1), took, written


def _layer_row(
    scale: Scale, name: str, loss: SphericalLoss, classes: int, end: Tensor, sham: str | None, seed: int
) -> dict[str, Any]:
    """How far the layer's weights end from dense SGD's, relative to the largest; what a step writes and takes."""
    layer = LAYERS.get(sham, SphericalLinear)(WIDTH, classes, loss, lr=0.1, seed=seed)
    batches = _batches(classes, scale["layer"]["steps"], seed)
    for h, y in batches:
        layer.step(h, y)
    row = {"arm": name, "classes": classes, "gap": float((layer.weight() - end).abs().max() / end.abs().max())}
    row["written"] = allocated(lambda: layer.step(*batches[0]))
    if scale["layer"]["timed"]:
        row["seconds"] = _seconds(lambda k: layer.step(*batches[k % len(batches)]), scale["layer"]["timed"])
    return row


def _layers(scale: Scale, given: dict[str, Any], sham: str | None, seed: int) -> list[dict[str, Any]]:
    """The Z-loss for every number of classes, the other losses for the smallest."""
    z, ends = RULES.get(sham, ZLoss)(), given["ends"]
    rows = []
    for classes in scale["layer"]["classes"]:
        end = _dense_end(classes, z, scale, seed)[0] if sham in RULES else ends[Z, classes][0]
        rows.append(_layer_row(scale, Z, z, classes, end, sham, seed))
        _, took, written = ends[Z, classes]
        rows.append({"arm": "dense", "classes": classes, "dense_written": written, "dense_seconds": took})
    least = scale["layer"]["classes"][0]
    return rows + [_layer_row(scale, n, loss, least, ends[n, least][0], sham, seed) for n, loss in _others().items()]


def _others() -> dict[str, SphericalLoss]:
    return {SPHERICAL: SphericalSoftmaxLoss(), TAYLOR: TaylorSoftmaxLoss(), "squared error": OneHotSquaredLoss()}


# The loss


def invariance(rule: type[ZLoss], seed: int) -> dict[str, float]:
    """Largest changes under a shift and a scale, and of the gradient from its closed form and from orthogonality."""
    rng = numpy_rng(seed, "invariance")
    o = torch.from_numpy(rng.normal(size=(500, 20)))
    y = torch.from_numpy(rng.integers(0, 20, 500))
    factor, shift = (torch.from_numpy(v)[:, None] for v in (10 ** rng.uniform(-2, 2, 500), rng.uniform(-100, 100, 500)))
    loss, plain = rule(2.0, 1.5, "none"), nn.CrossEntropyLoss(reduction="none")
    z = (o - o.mean(1, keepdim=True)) / o.std(1, keepdim=True, correction=0)
    own = z.gather(1, y[:, None])
    slope = torch.sigmoid(2 * (1.5 - own)) / o.std(1, keepdim=True, correction=0)
    expected = -slope * (F.one_hot(y, 20).double() - 1 / 20 - own * z / 20)
    at = o.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(at, y).sum(), at)
    return {
        "shifted": float((loss(o + shift, y) - loss(o, y)).abs().max()),
        "scaled": float((loss(factor * o, y) - loss(o, y)).abs().max()),
        "ce_scaled": float((plain(factor * o, y) - plain(o, y)).abs().max()),
        "orthogonal": float(found.sum(1).abs().max()),
        "gradient": float((found - expected).abs().max()),
    }


# Accuracy


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


@cache
def _text(source: str) -> tuple[str, ...]:
    """The words of a text; "markov" is a made-up one in which a word depends on the one before it."""
    if source == "markov":
        rng, words = numpy_rng(0, "markov"), [0]
        for jump in rng.geometric(0.2, 6000):
            words.append((words[-1] * 7 + int(jump)) % 80)
        return tuple(map(str, words))
    return tuple(re.findall(r"[a-z']+", load_text(source).lower()))


def _next_words(scale: Scale, seed: int) -> tuple[Data, Data, Data]:
    """Contexts of three words with the next one, where that is among the most frequent: train, held out, test.

    The parts are stretches of the text, from a random place on; a rarer word of the context has the last number.
    """
    source, size, n = (scale["words"][name] for name in ("source", "vocabulary", "train"))
    words = _text(source)
    known = {w: k for k, (w, _) in enumerate(Counter(words).most_common(size))}
    ids = torch.tensor([known.get(w, size) for w in words])
    ids = ids.roll(-int(numpy_rng(seed, "place").integers(len(ids))))
    contexts, following = ids.unfold(0, CONTEXT, 1)[:-1], ids[CONTEXT:]
    rows = (following < size).nonzero()[:, 0][: n * 3 // 2]
    if len(rows) < n * 3 // 2:
        raise InputError(f"z-loss: {len(rows)} words in {source}; expected {n * 3 // 2} at least")
    names = tuple(map(str, range(size)))
    data = Data(contexts[rows].float(), following[rows], names, (0.0, float(size)), source)
    return data[:n], data[n : n * 5 // 4], data[n * 5 // 4 :]


class _NextWord(nn.Module):
    """Embeddings of the context, a tanh layer, scores of the next word."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary + 1, WIDTH)
        self.hidden = nn.Linear(CONTEXT * WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.tanh(self.hidden(self.embedding(x.long()).flatten(1))))


def _errors(model: nn.Module, data: Data) -> dict[str, float]:
    """The share of samples whose label is not among the k largest scores, for each k; ties count against it."""
    scores = predict(model, data.x)
    rank = (scores >= scores.gather(1, data.y[:, None])).sum(1) - 1
    return {f"top{k}": float((rank >= k).float().mean()) for k in TOPS}


def _best(
    start: nn.Module, parts: tuple[Data, Data, Data], tried: Sequence[tuple[nn.Module, Plan]], k: int, seed: int
) -> dict[str, float]:
    """Test errors of the network whose loss and plan have the lowest top-``k`` error on held-out samples."""
    train, held, test = parts
    models = []
    for loss, plan in tried:

        def objective(model: nn.Module, batch: Batch, state: State, loss: nn.Module = loss) -> Tensor:
            return loss(model(batch.x), batch.y)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a position that no z-score of a few classes reaches
            models.append(fit(start, train, objective, plan, seed=seed))
    return _errors(min(models, key=lambda m: _errors(m, held)[f"top{k}"]), test)


def _rows(
    scale: Scale, given: Mapping[str, Any], task: str, tried: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """Test errors on "images" or "words" of each arm, from its losses and rates."""
    (start, parts), epochs, rows = given[task], scale[task]["epochs"], []
    for arm, options in tried.items():
        sgd = [(loss, Plan(epochs=epochs, optimizer="sgd", lr=lr, schedule="constant")) for loss, lr in options]
        adam = [(loss, Plan(epochs=epochs, batch_size=128, lr=lr)) for loss, lr in options]
        plans, k = (sgd, 1) if task == "images" else (adam, 10)
        rows.append({"arm": arm, "task": task, **_best(start, parts, plans, k, seed)})
    return rows


def _z_rows(scale: Scale, given: Mapping[str, Any], rule: type[ZLoss], seed: int) -> list[dict[str, Any]]:
    words = [(rule(a, 20.0), lr) for a, lr in ((0.1, 3e-3), (0.3, 3e-3), (0.3, 1e-2))]
    images = _rows(scale, given, "images", {Z: [(rule(5.0, 2.5), 0.1)]}, seed)
    return images + _rows(scale, given, "words", {Z: words}, seed)


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Dense SGD's weights, the data and starts, and the rows of the arms that no sham changes."""
    sizes, vocabulary, least = scale["images"], scale["words"]["vocabulary"], scale["layer"]["classes"][0]
    whole, test = _images(sizes["source"])
    train, held = whole.limit(sizes["train"], seed=seed).split(0.9, seed=seed)
    with seeded(seed, "init"):
        nets = MLP(whole.shape, len(whole.classes), (sizes["hidden"],)), _NextWord(vocabulary)
    given: dict[str, Any] = {"images": (nets[0], (train, held, test.limit(sizes["test"], seed=seed)))}
    given["words"] = (nets[1], _next_words(scale, seed))
    given["ends"] = {(Z, n): _dense_end(n, ZLoss(), scale, seed) for n in scale["layer"]["classes"]}
    given["ends"] |= {(name, least): _dense_end(least, loss, scale, seed) for name, loss in _others().items()}
    losses = {CE: nn.CrossEntropyLoss(), SPHERICAL: SphericalSoftmaxLoss(), TAYLOR: TaylorSoftmaxLoss()}
    rates = {CE: (0.1,), SPHERICAL: (0.003, 0.01, 0.03), TAYLOR: (0.1,)}
    images = {name: [(loss, lr) for lr in rates[name]] for name, loss in losses.items()}
    words = {name: [(loss, lr) for lr in (1e-3, 3e-3, 1e-2)] for name, loss in losses.items()}
    given["rows"] = _rows(scale, given, "images", images, seed) + _rows(scale, given, "words", words, seed)
    given["z"] = _z_rows(scale, given, ZLoss, seed)
    return given


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The layer against dense SGD, the loss's invariances, and errors; shams change the layer or the loss."""
    z = _z_rows(scale, given, RULES[sham], seed) if sham in RULES else given["z"]
    exact = {"arm": "exact", **invariance(RULES.get(sham, ZLoss), seed)}
    return Table.of([*_layers(scale, given, sham, seed), *given["rows"], *z, exact])


def _ratio(table: Table, column: str, arm: str) -> np.ndarray:
    """A column at the largest over that at the smallest number of classes, one number a seed; NaN where absent."""
    sizes = sorted(set(table.values("classes", arm=arm)))
    if not any(column in r for r in table.rows):
        return np.full(len(table.per_seed("shifted")), np.nan)
    most, least = (table.per_seed(column, arm=arm, classes=size) for size in (sizes[-1], sizes[0]))
    return np.where(least > 0, most / np.maximum(least, 1e-12), np.nan)


def claims(table: Table) -> list[Claim]:
    """Equality with dense SGD, its cost and the invariances decide; errors on digits and words support."""

    def identity(text: str, column: str, at_most: float, refuted_by: tuple[str, ...] = (), **cells: Any) -> Claim:
        observed = table.per_seed(column, np.max, **cells)
        return Claim(text, observed, at_most=at_most, rule="exact", refuted_by=refuted_by)

    old, off = ("old-inverse",), ("uncentred",)
    same = "weights of the layer and of dense SGD, largest relative difference"
    return [
        *(identity(f"{name}: {same}", "gap", 1e-8, old, arm=name) for name in (Z, *_others())),
        Claim(
            "numbers that a step writes: most classes over fewest",
            _ratio(table, "written", Z),
            at_most=1.0,
            rule="exact",
        ),
        Claim("CPU time of a step: most classes over fewest", _ratio(table, "seconds", Z), at_most=1.5),
        Claim(
            "CPU time of a dense step: most classes over fewest",
            _ratio(table, "dense_seconds", "dense"),
            at_least=20,
            key=False,
        ),
        identity("change of the loss under a shift of all scores", "shifted", 1e-6, off),
        identity("change of the loss under a positive scale", "scaled", 1e-6),
        Claim(
            "largest change of cross-entropy under the same scales",
            table.per_seed("ce_scaled"),
            at_least=0.1,
            rule="exact",
            key=False,
        ),
        identity("inner product of the gradient with 1", "orthogonal", 1e-10, off),
        identity("gradient against its closed form, largest difference", "gradient", 1e-10, off),
        *_support(table),
    ]


def _support(table: Table) -> list[Claim]:
    over = [(CE, "images", 0.005), (SPHERICAL, "images", 0.0)]
    over += [(CE, "words", 0.005), (SPHERICAL, "words", -0.02), (TAYLOR, "words", -0.02)]
    names = {"images": ("digits: test error", "top1"), "words": ("next word: top-10 error", "top10")}
    return [
        Claim(
            f"{names[task][0]} of the Z-loss less that of {arm}",
            table.where(task=task).gain(Z, arm, names[task][1]),
            at_most=bound,
            key=False,
        )
        for arm, task, bound in over
    ]


def figure(table: Table) -> Figure:
    """Numbers that a step writes over the number of classes, and top-k errors on words."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = drawing.subplots(1, 2)
    sizes = sorted(set(table.values("classes", arm=Z)))
    for name, arm, column in (("implicit", Z, "written"), ("dense", "dense", "dense_written")):
        left.plot(sizes, [table.values(column, arm=arm, classes=n).mean() for n in sizes], "-o", ms=4, label=name)
    left.set(xscale="log", yscale="log", xlabel="classes", ylabel="numbers", title="Written by one step")
    left.legend(frameon=False)
    for arm in (CE, Z, SPHERICAL, TAYLOR):
        right.plot(TOPS, [table.values(f"top{k}", arm=arm, task="words").mean() for k in TOPS], "-o", ms=4, label=arm)
    right.set(xscale="log", xticks=TOPS, xticklabels=TOPS, xlabel="k", ylabel="top-k error", title="Next word")
    right.legend(frameon=False)
    return drawing
