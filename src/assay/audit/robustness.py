"""Robustness: accuracy under attack against the size of the perturbation, beside random noise of the same size.

The attack is PGD; where no gradients are granted it is Square, which asks for scores. Tables have their own two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from assay.attacks import (
    L2,
    PGD,
    Attack,
    AutoAttack,
    Ball,
    Columns,
    Linf,
    RandomNoise,
    Square,
    TabularL2,
    TabularLinf,
    TabularPGD,
    TabularSearch,
    Untargeted,
)
from assay.audit.defence import around_and_through, gradient_draws
from assay.audit.masking import signs_of_masking
from assay.audit.property import Context, Cost, Plot, Property, Section
from assay.data import Data
from assay.data.tabular import TabularData
from assay.runtime.inference import predict
from assay.runtime.metric import Metric, measured
from assay.subject import Access, Subject

SIZES = {"linf": (0.02, 0.05, 0.1, 0.2), "l2": (0.25, 0.5, 1.0, 2.0)}
BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2}
TABLE_BALLS: dict[str, type[TabularLinf] | type[TabularL2]] = {"linf": TabularLinf, "l2": TabularL2}
SYMBOL = {"linf": "l-infinity", "l2": "l2"}
QUERIES = (200, 1000, 5000)  # of a search, for each sample and size, by profile
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


def _label(subject: Subject) -> str:
    """The attack's name in the figure."""
    if isinstance(subject.test, TabularData):
        return "search" if _searched(subject) else "PGD and search"
    return "Square" if _searched(subject) else "PGD"


@dataclass(frozen=True)
class Robustness:
    """The property of one norm. Sizes are in units of the data's range (bounds[1] - bounds[0]).

    Of a table each column counts in units of its own range; immutable columns stay and integer ones stay whole. Where
    gradients are not granted a table is attacked by a search that takes scores, beside them by both.
    """

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

    def ball(self, data: Data, eps: float) -> Ball:
        """The ball of a size that is a share of the range."""
        if isinstance(data, TabularData):
            return TABLE_BALLS[self.norm](eps, columns=Columns.of(data))
        return BALLS[self.norm](eps * (data.bounds[1] - data.bounds[0]))

    def attacks(self, subject: Subject, data: Data, eps: float, context: Context, eot: int) -> tuple[list[Attack], str]:
        """The attacks at ``eps``, one after the other on what the former left, and what they are in words."""
        table, queries = isinstance(data, TabularData), int(context.pick(*QUERIES))
        ball, (steps, restarts) = self.ball(data, eps), self.attack(context)
        found: list[Attack] = []
        words = []
        if not _searched(subject):
            climb = TabularPGD if table else PGD
            found.append(climb(ball=ball, bounds=data.bounds, steps=steps, restarts=restarts, eot=eot))
            words.append(f"PGD-{steps} x {restarts} restart(s)")
        if table:
            found.append(TabularSearch(ball=ball, bounds=data.bounds, budget=queries))
            words.append(f"a search of {queries} queries for scores")
        elif _searched(subject):
            found.append(Square(ball=ball, bounds=data.bounds, budget=queries))
            words.append(f"Square, {queries} queries for scores")
        how = " and ".join(words)
        if isinstance(data, TabularData):
            fixed, whole, all_ = (len(c) for c in (data.immutable, data.integer, data.columns))
            how += f", {fixed} immutable and {whole} integer of {all_} columns kept so, each in units of its range"
        return found, how

    def cost(self, subject: Subject, context: Context) -> Cost:
        """At most this: fooled samples leave early."""
        n, (steps, restarts) = len(self.attacked(subject, context)), self.attack(context)
        if _searched(subject):
            return Cost(forward=n * (1 + len(SIZES[self.norm]) * (1 + context.pick(*QUERIES))))
        passes = n * len(SIZES[self.norm]) * steps * restarts
        if isinstance(subject.test, TabularData):
            rounds = n * len(SIZES[self.norm])
            slopes = passes if subject.access >= Access.GRADIENT else 0
            return Cost(forward=n + rounds * (2 + context.pick(*QUERIES)), backward=slopes)
        few = context.pick(0, 0, min(n, STRONGEST))
        # AutoAttack: 100 steps of APGD and of FAB toward each of 9 targets and 5,000 queries; four runs of PGD besides.
        return Cost(
            forward=n * (1 + 2 * len(SIZES[self.norm])) + few * (9 * 100 + 5000),
            backward=passes + few * (19 * 100 + 4 * steps * restarts),
        )

    def measure(self, subject: Subject, context: Context) -> Section:
        """Accuracy under attack and under noise at each size."""
        data, searched = self.attacked(subject, context), _searched(subject)
        table = isinstance(data, TabularData)
        if searched and not table and len(data.shape) != 3:
            subject = subject.with_model(AsImages(subject.model, data.shape))
            data = data.with_x(data.x.reshape(len(data), 1, 1, -1))
        name, label = f"robustness.{self.norm}", _label(subject)
        section = Section(headline=[f"{name}.accuracy@{HEADLINE[self.norm]:g}"])
        clean = predict(subject.model, data.x).argmax(1) == data.y
        start = float(clean.float().mean())
        holds, curves = clean.clone(), {label: [start], "random noise": [start]}
        bands: dict[str, list[tuple[float, float]]] = {label: [], "random noise": []}
        masked, eot = [], 1 if searched else gradient_draws(subject.model, data.x)
        if eot > 1:
            section.notes.append(f"The model answers at random: each gradient is the mean of {eot} passes (EOT).")
        for eps in SIZES[self.norm]:
            ball = self.ball(data, eps)
            attacks, what = self.attacks(subject, data, eps, context, eot)
            for attack in attacks:
                # What a smaller perturbation breaks, a larger one breaks too: only the others are attacked.
                rows = holds.nonzero()[:, 0]
                if len(rows):
                    holds[rows] = ~self._fooled(attack, subject, data[rows], context)
            if eps == HEADLINE[self.norm] and isinstance(attacks[0], PGD):
                holds &= around_and_through(section, subject.model, data, attacks[0], context, name=name, eps=eps)
            noisy = clean & ~self._fooled(RandomNoise(ball=ball, bounds=data.bounds), subject, data, context)
            how = f"{what}, eps {eps:g} of the range, on {len(data)} samples"
            self._add(section, f"{name}.accuracy@{eps:g}", holds, data, how, curves[label], bands[label])
            how = f"one uniform draw from the ball, eps {eps:g} of the range, on {len(data)} samples"
            self._add(section, f"{name}.noise@{eps:g}", noisy, data, how, curves["random noise"], bands["random noise"])
            if int((holds & ~noisy).sum()) > int((noisy & ~holds).sum()):
                masked.append(eps)
        if context.profile == "deep" and not (searched or table):
            self._strongest(section, subject, data, context)
        section.plots.append(self._plot(curves, bands))
        if searched:
            text = "No gradients are granted: the attack asks for scores, so accuracy under it is an upper bound that "
            section.notes.append(text + "more queries lower.")
        self._find(section, curves, masked, label)
        return section

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
        found = "A worst-case" if "PGD" in label else "Without gradients, the worst found of any"
        section.findings.append(
            (
                max(clean - broken, 0.0),
                f"{found} {SYMBOL[self.norm]} perturbation of {HEADLINE[self.norm]:g} of the range takes accuracy "
                f"from {clean:.1%} to {broken:.1%}; random noise of that size takes it to {noise:.1%}.",
            )
        )
        if masked:
            why = "gradients mislead" if "PGD" in label else "the search is too short"
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
    moves="columns",
)
l2 = Property(
    "robustness.l2",
    "Robustness (l2)",
    Robustness("l2").measure,
    Robustness("l2").cost,
    needs=Access.SCORE,
    moves="columns",
)
PROPERTIES = (linf, l2)
