"""Robustness: accuracy under attack against the size of the perturbation, beside random noise of the same size.

The attack is PGD; where no gradients are granted it is Square, which asks for scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from assay.attacks import L2, PGD, Attack, AutoAttack, Ball, Linf, RandomNoise, Square, Untargeted
from assay.audit.defence import around_and_through, gradient_draws
from assay.audit.masking import signs_of_masking
from assay.audit.property import Context, Cost, Plot, Property, Section
from assay.data import Data
from assay.runtime.inference import predict
from assay.runtime.metric import Metric, measured
from assay.subject import Access, Subject

SIZES = {"linf": (0.02, 0.05, 0.1, 0.2), "l2": (0.25, 0.5, 1.0, 2.0)}
BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2}
SYMBOL = {"linf": "l-infinity", "l2": "l2"}
HEADLINE = {"linf": 0.1, "l2": 1.0}
STRONGEST = 256  # samples that AutoAttack takes, in the deep profile


class AsImages(nn.Module):
    """A model of samples of any shape as one of images (n, 1, 1, d): what a search that draws windows takes."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.shape = model, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.reshape(len(x), *self.shape))


def _searched(subject: Subject) -> bool:
    """Whether only scores are granted, so that the attack has to ask."""
    return subject.access < Access.GRADIENT


@dataclass(frozen=True)
class Robustness:
    """The property of one norm. Sizes are in units of the data's range (bounds[1] - bounds[0])."""

    norm: str

    def attacked(self, subject: Subject, context: Context) -> Data:
        """The samples that are attacked."""
        n = context.pick(64, 256, 512) if _searched(subject) else context.pick(256, 512, None)
        return subject.test.limit(
            min(n, context.limit) if n and context.limit else n or context.limit, seed=context.seed
        )

    def attack(self, context: Context) -> tuple[int, int]:
        """Steps and restarts of PGD."""
        steps, restarts = context.pick((10, 1), (40, 2), (100, 5))
        return steps, restarts

    def queries(self, context: Context) -> int:
        """Queries of Square for each sample and size."""
        return int(context.pick(200, 1000, 5000))

    def cost(self, subject: Subject, context: Context) -> Cost:
        """At most this: fooled samples leave early."""
        n, (steps, restarts) = len(self.attacked(subject, context)), self.attack(context)
        if _searched(subject):
            return Cost(forward=n * (1 + len(SIZES[self.norm]) * (1 + self.queries(context))))
        passes = n * len(SIZES[self.norm]) * steps * restarts
        few = context.pick(0, 0, min(n, STRONGEST))
        # AutoAttack: 100 steps of APGD and of FAB toward each of 9 targets and 5,000 queries; four runs of PGD besides.
        return Cost(
            forward=n * (1 + 2 * len(SIZES[self.norm])) + few * (9 * 100 + 5000),
            backward=passes + few * (19 * 100 + 4 * steps * restarts),
        )

    def measure(self, subject: Subject, context: Context) -> Section:
        """Accuracy under attack and under noise at each size."""
        data, searched = self.attacked(subject, context), _searched(subject)
        if searched and len(data.shape) != 3:
            subject = subject.with_model(AsImages(subject.model, data.shape))
            data = data.with_x(data.x.reshape(len(data), 1, 1, -1))
        name, unit = f"robustness.{self.norm}", data.bounds[1] - data.bounds[0]
        section = Section(headline=[f"{name}.accuracy@{HEADLINE[self.norm]:g}"])
        clean = predict(subject.model, data.x).argmax(1) == data.y
        label, start = "Square" if searched else "PGD", float(clean.float().mean())
        holds, curves = clean.clone(), {label: [start], "random noise": [start]}
        bands: dict[str, list[tuple[float, float]]] = {label: [], "random noise": []}
        masked, eot = [], 1 if searched else gradient_draws(subject.model, data.x)
        if eot > 1:
            section.notes.append(f"The model answers at random: each gradient is the mean of {eot} passes (EOT).")
        for eps in SIZES[self.norm]:
            ball = BALLS[self.norm](eps * unit)
            attack, what = self._attack(ball, data, context, eot, searched=searched)
            rows = holds.nonzero()[:, 0]
            # What a smaller perturbation breaks, a larger one breaks too: only the others are attacked.
            if len(rows):
                holds[rows] = ~self._fooled(attack, subject, data[rows], context)
            if eps == HEADLINE[self.norm] and isinstance(attack, PGD):
                holds &= around_and_through(section, subject.model, data, attack, context, name=name, eps=eps)
            noisy = clean & ~self._fooled(RandomNoise(ball=ball, bounds=data.bounds), subject, data, context)
            how = f"{what}, eps {eps:g} of the range, on {len(data)} samples"
            self._add(section, f"{name}.accuracy@{eps:g}", holds, data, how, curves[label], bands[label])
            how = f"one uniform draw from the ball, eps {eps:g} of the range, on {len(data)} samples"
            self._add(section, f"{name}.noise@{eps:g}", noisy, data, how, curves["random noise"], bands["random noise"])
            if int((holds & ~noisy).sum()) > int((noisy & ~holds).sum()):
                masked.append(eps)
        if context.profile == "deep" and not searched:
            self._strongest(section, subject, data, context)
        section.plots.append(self._plot(curves, bands))
        if searched:
            text = "No gradients are granted: Square asks for scores, so accuracy under attack is an upper bound that "
            section.notes.append(text + "more queries lower.")
        self._find(section, curves, masked, label)
        return section

    def _attack(self, ball: Ball, data: Data, context: Context, eot: int, *, searched: bool) -> tuple[Attack, str]:
        """The attack of one size, and what it is called."""
        if searched:
            queries = self.queries(context)
            return Square(ball=ball, bounds=data.bounds, budget=queries), f"Square, {queries} queries for scores"
        steps, restarts = self.attack(context)
        pgd = PGD(ball=ball, bounds=data.bounds, steps=steps, restarts=restarts, eot=eot)
        return pgd, f"PGD-{steps} x {restarts} restart(s)"

    def _strongest(self, section: Section, subject: Subject, data: Data, context: Context) -> None:
        """AutoAttack at the headline's size, and what suggests that gradients are masked."""
        data, (steps, restarts) = data.limit(STRONGEST, seed=context.seed), self.attack(context)
        eps = HEADLINE[self.norm]
        ball = BALLS[self.norm](eps * (data.bounds[1] - data.bounds[0]))
        attack = AutoAttack(ball=ball, bounds=data.bounds)
        result = attack.run(subject.model, data.x, Untargeted(data.y), seed=context.seed, index=data.index)
        section.add(
            measured(
                f"robustness.{self.norm}.autoattack@{eps:g}",
                (~result.success).numpy().astype(float),
                data.index.numpy(),
                better="higher",
                how=f"AutoAttack ({attack.version}), eps {eps:g} of the range, on {len(data)} samples",
            )
        )
        pgd = PGD(ball=ball, bounds=data.bounds, steps=steps, restarts=restarts)
        signs = signs_of_masking(subject.model, data, pgd, result, seed=context.seed)
        if signs:
            text = (
                f"Gradients look masked ({SYMBOL[self.norm]}), so robustness is likely overstated: {'; '.join(signs)}."
            )
            section.findings.append((0.9, text))

    def _fooled(self, attack: Attack, subject: Subject, data: Data, context: Context) -> torch.Tensor:
        return attack.run(subject.model, data.x, Untargeted(data.y), seed=context.seed, index=data.index).success

    def _add(
        self,
        section: Section,
        name: str,
        correct: torch.Tensor,
        data: Data,
        how: str,
        curve: list[float],
        band: list[tuple[float, float]],
    ) -> Metric:
        metric = section.add(
            measured(name, correct.numpy().astype(float), data.index.numpy(), better="higher", how=how)
        )
        assert metric.value is not None
        curve.append(metric.value)
        band.append((metric.low or 0.0, metric.high or 0.0))
        return metric

    def _plot(self, curves: dict[str, list[float]], bands: dict[str, list[tuple[float, float]]]) -> Plot:
        sizes = [0.0, *SIZES[self.norm]]
        series = {}
        for label, y in curves.items():
            low, high = np.array([(y[0], y[0]), *bands[label]]).T
            series[label] = {"x": sizes, "y": y, "low": low.tolist(), "high": high.tolist()}
        return Plot(
            "line", f"Accuracy under {SYMBOL[self.norm]} perturbations", series, "eps (of the range)", "accuracy"
        )

    def _find(self, section: Section, curves: dict[str, list[float]], masked: list[float], label: str) -> None:
        at = SIZES[self.norm].index(HEADLINE[self.norm]) + 1
        clean, broken, noise = curves[label][0], curves[label][at], curves["random noise"][at]
        found = "A worst-case" if label == "PGD" else "Without gradients, the worst found of any"
        section.findings.append(
            (
                max(clean - broken, 0.0),
                f"{found} {SYMBOL[self.norm]} perturbation of {HEADLINE[self.norm]:g} of the range takes accuracy "
                f"from {clean:.1%} to {broken:.1%}; random noise of that size takes it to {noise:.1%}.",
            )
        )
        if masked:
            why = "gradients mislead" if label == "PGD" else "the search is too short"
            section.findings.append(
                (
                    0.9,
                    f"Random {SYMBOL[self.norm]} noise breaks more samples than {label} at eps "
                    f"{', '.join(f'{e:g}' for e in masked)}: {why}, so robustness is overstated.",
                )
            )


linf = Property(
    "robustness.linf",
    "Robustness (l-infinity)",
    Robustness("linf").measure,
    Robustness("linf").cost,
    needs=Access.SCORE,
)
l2 = Property("robustness.l2", "Robustness (l2)", Robustness("l2").measure, Robustness("l2").cost, needs=Access.SCORE)
PROPERTIES = (linf, l2)
