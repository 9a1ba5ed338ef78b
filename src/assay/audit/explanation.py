"""Explanation: do attributions find the pixels that the prediction rests on, better than chance does?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.audit.property import MOST, Context, Cost, Plot, Property, Section
from assay.data import Data
from assay.explain import (
    Curve,
    Explainer,
    Gradient,
    GradientInput,
    IntegratedGradients,
    LocalFunctionApproximation,
    RandomAttribution,
    SmoothGrad,
    deletion,
    insertion,
)
from assay.explain.lfa import lime, occlusion
from assay.runtime import statistics
from assay.runtime.inference import predict
from assay.runtime.metric import measured
from assay.subject import Access, Subject

BLOCKS = 256
SIGN = {"deletion": -1, "insertion": 1}


def _methods(subject: Subject, baseline: float, context: Context) -> dict[str, Explainer]:
    """The attributions by the names that the metrics bear; the last is what they have to beat."""
    if subject.access < Access.GRADIENT:
        masks = lime(width=None, baseline=baseline, n_samples=_masks(subject, context))
        return {"occlusion": occlusion(baseline=baseline), "lime": masks, "random": RandomAttribution()}
    steps = context.pick(20, 50, 100)
    return {
        "gradient": Gradient(),
        "gradient_input": GradientInput(),
        "integrated_gradients": IntegratedGradients(steps=steps, baseline=baseline),
        "smooth_grad": SmoothGrad(samples=steps),
        "random": RandomAttribution(),
    }


def _blocks(x: Tensor) -> Tensor:
    """A number for each element (n, ...), shared by a block where there are more than 256: so many are asked about."""
    shape = tuple(x.shape[1:])
    if len(shape) == 3:
        side = math.ceil((shape[1] * shape[2] / BLOCKS) ** 0.5)
        rows, columns = torch.arange(shape[1]) // side, torch.arange(shape[2]) // side
        number = (rows[:, None] * (int(columns[-1]) + 1) + columns).expand(shape)
    else:
        number = (torch.arange(math.prod(shape)) // math.ceil(math.prod(shape) / BLOCKS)).reshape(shape)
    return number.expand(x.shape).contiguous()


def _masks(subject: Subject, context: Context) -> int:
    """Samples of LIME: some for each block."""
    return int(_blocks(subject.test.x[:1]).max() + 1) * int(context.pick(4, 8, 16))


def _data(subject: Subject, context: Context) -> Data:
    data = subject.test.limit(context.pick(64, 256, 1000), seed=context.seed)
    return data.limit(context.limit, seed=context.seed)


def measure(subject: Subject, context: Context) -> Section:
    """Areas under the deletion and insertion curves of the predicted class, with the lower bound as the baseline."""
    data, baseline, steps = _data(subject, context), subject.test.bounds[0], context.pick(16, 32, 50)
    asked = subject.access < Access.GRADIENT
    section = Section(
        headline=[f"explanation.deletion.{'lime' if asked else 'integrated_gradients'}", "explanation.deletion.random"]
    )
    if asked:
        section.notes.append("No gradients are granted: attributions by occlusion and by LIME, from scores alone.")
    target = predict(subject.model, data.x).argmax(1)
    curves: dict[str, dict[str, Curve]] = {"deletion": {}, "insertion": {}}
    for name, method in _methods(subject, baseline, context).items():
        options = {"feature_mask": _blocks(data.x)} if isinstance(method, LocalFunctionApproximation) else {}
        a = method.attribute(subject.model, data.x, target, seed=context.seed, index=data.index, **options)
        curves["deletion"][name] = deletion(subject.model, data.x, target, a, steps=steps, baseline=baseline)
        curves["insertion"][name] = insertion(subject.model, data.x, target, a, steps=steps, baseline=baseline)
    how = f"area under the predicted class's probability, {steps} steps, {len(data)} samples of {data.name}"
    for game, found in curves.items():
        better = "lower" if game == "deletion" else "higher"
        for name, curve in found.items():
            values, index = curve.auc.numpy(), data.index.numpy()
            section.add(
                measured(
                    f"explanation.{game}.{name}",
                    values,
                    index,
                    better=None if name == "random" else better,  # type: ignore[arg-type]
                    how=how,
                    seed=context.seed,
                )
            )
        areas = [float(c.auc.mean()) for c in found.values()]
        bars = {"area": {"x": list(found), "y": areas}}
        title = f"{game.capitalize()}: {better} is more faithful"
        section.plots.append(Plot("bar", title, bars, "method", "area", reference=areas[-1]))
        section.findings.append(_finding(game, found, context.seed))
    return section


def _finding(game: str, found: dict[str, Curve], seed: int) -> tuple[float, str]:
    """Which methods are not shown to beat the random ranking on the same samples."""
    chance = found["random"].auc.numpy()[:, None]
    methods, weak = [m for m in found if m != "random"], []
    for name in methods:
        values = SIGN[game] * found[name].auc.numpy()[:, None]
        _, low, _, _ = statistics.paired("mean", SIGN[game] * chance, values, seed=seed)
        if low <= 0:
            weak.append(name)
    if not weak:
        return 0.0, f"By {game}, all {len(methods)} attributions are more faithful than a random ranking."
    return 0.5 * len(weak) / len(methods), (
        f"By {game}, {', '.join(weak)} {'is' if len(weak) == 1 else 'are'} no more faithful than a random ranking."
    )


def _cost(subject: Subject, context: Context) -> Cost:
    n, steps = len(_data(subject, context)), context.pick(20, 50, 100)
    if subject.access < Access.GRADIENT:
        asked = int(_blocks(subject.test.x[:1]).max() + 2) + _masks(subject, context)
        return Cost(forward=n * (1 + asked + 6 * (context.pick(16, 32, 50) + 1)))
    curves = 10 * (context.pick(16, 32, 50) + 1)
    return Cost(forward=n * (1 + curves), backward=n * (2 + 2 * steps))


PROPERTY = Property(
    "explanation", "Faithfulness of explanations", measure, _cost, needs=Access.SCORE, most=MOST, moves="scaled"
)
