"""Sharpness: the curvature of the loss at the trained weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from assay.audit.property import CLASSIFIERS, MOST, Context, Cost, Property, Section
from assay.data import Data
from assay.dynamics import Hessian
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating
from assay.runtime.metric import measured, resampled
from assay.runtime.random import numpy_rng
from assay.subject import Access, Subject

RESAMPLES = 400


def _data(subject: Subject, context: Context) -> Data:
    whole = subject.train if subject.train is not None else subject.test
    data = whole.limit(context.pick(256, 1024, 4096), seed=context.seed)
    return data.limit(context.limit, seed=context.seed)


def _budget(context: Context) -> tuple[int, int]:
    """Lanczos steps and Hutchinson probes."""
    return context.pick((20, 20), (40, 60), (60, 200))


def measure(subject: Subject, context: Context) -> Section:
    """Top eigenvalue and trace of the Hessian of the mean cross-entropy in all weights."""
    data, section = _data(subject, context), Section(headline=["sharpness.top_eigenvalue", "sharpness.trace"])
    steps, probes = _budget(context)
    try:
        _check_gradient(subject.model, data.x)
        hessian = Hessian(model=subject.model, x=data.x, y=data.y)
        top = hessian.top_eigenvalue(seed=context.seed, steps=steps)
        trace = hessian.trace(seed=context.seed, probes=probes)
    except InputError as error:
        return Section(skipped=str(error))
    if subject.train is None:
        section.notes.append("The subject has no training data: the loss is that of the test set.")
    index, how = data.index.numpy(), f"cross-entropy on {len(data)} samples of {data.name}, {hessian.size} weights"
    section.add(
        measured(
            "sharpness.top_eigenvalue",
            hessian.forms(top.vector).numpy(),
            index,
            how=f"{how}; {top.steps} Lanczos steps, residual {top.residual:.2g}; curvature along the Ritz vector",
            seed=context.seed,
        )
    )
    rng = numpy_rng(context.seed, "sharpness")
    n = len(data)
    again = [
        rng.multinomial(probes, [1 / probes] * probes) @ trace.forms @ rng.multinomial(n, [1 / n] * n)
        for _ in range(RESAMPLES)
    ]
    section.add(
        resampled(
            "sharpness.trace",
            trace.value,
            np.array(again) / (probes * n),
            data.hash,
            how=f"{how}; {probes} Hutchinson probes, standard error {trace.error:.2g}",
            n=n,
            seed=context.seed,
        )
    )
    return section


def _check_gradient(model: nn.Module, x: Tensor) -> None:
    """Raise InputError where the logits of ``x`` (n, ...) have no gradient in the weights, frozen or not."""
    free = {k: p.detach().requires_grad_() for k, p in model.named_parameters() if p.is_floating_point()}
    with evaluating(model), torch.enable_grad():
        found = functional_call(model, free, (x[:1].to(device_of(model)),))
    if free and not found.requires_grad:
        raise InputError("the logits do not depend differentiably on the weights; expected a gradient")


def _cost(subject: Subject, context: Context) -> Cost:
    return Cost(backward=2 * len(_data(subject, context)) * sum(_budget(context)))


PROPERTY = Property(
    "sharpness", "Curvature of the loss", measure, _cost, needs=Access.WEIGHTS, tasks=CLASSIFIERS, most=MOST
)
