"""Compression: how far accuracy survives pruned and coarsely quantised weights."""

from __future__ import annotations

import copy

from torch import nn

from assay.audit.property import CLASSIFIERS, Context, Cost, Plot, Property, Section
from assay.compress import MagnitudePruning, Quantisation
from assay.compress.base import weights_of
from assay.compress.pruning import apply
from assay.runtime.inference import predict
from assay.runtime.metric import Metric, measured
from assay.subject import Access, Subject

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
FINE_SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
BITS = (8, 6, 4, 3, 2)
KEY_SPARSITY, KEY_BITS = 0.9, 4


def measure(subject: Subject, context: Context) -> Section:
    """Accuracy on the test set after pruning by magnitude, and after rounding the weights; nothing is trained."""
    model, data = subject.model, subject.test
    if not weights_of(model):
        return Section(skipped="the model has no convolutional or linear layer to compress")
    section = Section(
        headline=[f"compression.sparsity.accuracy@{KEY_SPARSITY}", f"compression.bits.accuracy@{KEY_BITS}"]
    )

    def accuracy(name: str, compressed: nn.Module, how: str) -> Metric:
        correct = (predict(compressed, data.x).argmax(1) == data.y).numpy().astype(float)
        return section.add(measured(name, correct, data.index.numpy(), better="higher", how=how))

    full = float((predict(model, data.x).argmax(1) == data.y).double().mean())
    tail = f"no fine-tuning; {len(data)} samples of {data.name}"
    pruned = []
    for s in _sparsities(context):
        # The masks alone: a sparsity that empties a layer is a result here, not an error.
        masks = MagnitudePruning(sparsity=s).masks(model, seed=context.seed)
        how = f"global magnitude pruning of {s:.0%} of the conv and linear weights, {tail}"
        pruned.append(accuracy(f"compression.sparsity.accuracy@{s}", apply(masks, copy.deepcopy(model)), how))
    rounded = []
    for b in BITS:
        how = f"weights rounded to {b} bits, symmetric with one scale an output channel, {tail}"
        coarse = Quantisation(bits=b).compress(model, None, seed=context.seed)
        rounded.append(accuracy(f"compression.bits.accuracy@{b}", coarse, how))
    sparsities = list(_sparsities(context))
    section.plots.append(_line("Accuracy against sparsity", sparsities, pruned, "fraction of weights zero", full))
    section.plots.append(_line("Accuracy against weight precision", list(BITS), rounded, "bits a weight", full))
    values = {m.name: m.value or 0.0 for m in (*pruned, *rounded)}
    for name, words in zip(
        section.headline, (f"Without {KEY_SPARSITY:.0%} of its weights", f"With {KEY_BITS}-bit weights"), strict=True
    ):
        # Compressing is an option, not a fault: a loss weighs half of what it would as an error of the model itself.
        loss = full - values[name]
        section.findings.append(
            (max(loss, 0.0) / 2, f"{words} the accuracy is {values[name]:.1%} instead of {full:.1%}.")
        )
    return section


def _sparsities(context: Context) -> tuple[float, ...]:
    return context.pick(SPARSITIES, FINE_SPARSITIES, FINE_SPARSITIES)


def _line(title: str, x: list[float] | list[int], metrics: list[Metric], label: str, full: float) -> Plot:
    series = {
        "x": x,
        "y": [m.value for m in metrics],
        "low": [m.low for m in metrics],
        "high": [m.high for m in metrics],
    }
    return Plot("line", title, {"accuracy": series}, label, "accuracy", reference=full)


def _cost(subject: Subject, context: Context) -> Cost:
    return Cost(forward=len(subject.test) * (1 + len(_sparsities(context)) + len(BITS)))


PROPERTY = Property("compression", "Compression", measure, _cost, needs=Access.WEIGHTS, tasks=CLASSIFIERS)
