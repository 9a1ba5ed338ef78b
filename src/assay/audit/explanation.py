"""Explanation: do attributions find the pixels that the prediction rests on, better than chance does?"""

from __future__ import annotations

from assay.audit.property import MOST, Context, Cost, Plot, Property, Section
from assay.data import Data
from assay.explain import (
    Curve,
    Explainer,
    Gradient,
    GradientInput,
    IntegratedGradients,
    RandomAttribution,
    SmoothGrad,
    deletion,
    insertion,
)
from assay.runtime import statistics
from assay.runtime.inference import predict
from assay.runtime.metric import measured
from assay.subject import Access, Subject

SIGN = {"deletion": -1, "insertion": 1}


def _methods(baseline: float, context: Context) -> dict[str, Explainer]:
    """The attributions by the names that the metrics bear; the last is what they have to beat."""
    steps = context.pick(20, 50, 100)
    return {
        "gradient": Gradient(),
        "gradient_input": GradientInput(),
        "integrated_gradients": IntegratedGradients(steps=steps, baseline=baseline),
        "smooth_grad": SmoothGrad(samples=steps),
        "random": RandomAttribution(),
    }


def _data(subject: Subject, context: Context) -> Data:
    data = subject.test.limit(context.pick(64, 256, 1000), seed=context.seed)
    return data.limit(context.limit, seed=context.seed)


def measure(subject: Subject, context: Context) -> Section:
    """Areas under the deletion and insertion curves of the predicted class, with the lower bound as the baseline."""
    data, baseline, steps = _data(subject, context), subject.test.bounds[0], context.pick(16, 32, 50)
    section = Section(headline=["explanation.deletion.integrated_gradients", "explanation.deletion.random"])
    target = predict(subject.model, data.x).argmax(1)
    curves: dict[str, dict[str, Curve]] = {"deletion": {}, "insertion": {}}
    for name, method in _methods(baseline, context).items():
        a = method.attribute(subject.model, data.x, target, seed=context.seed, index=data.index)
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
    curves = 10 * (context.pick(16, 32, 50) + 1)
    return Cost(forward=n * (1 + curves), backward=n * (2 + 2 * steps))


PROPERTY = Property(
    "explanation", "Faithfulness of explanations", measure, _cost, needs=Access.GRADIENT, most=MOST, moves="scaled"
)
