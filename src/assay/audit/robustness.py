"""Robustness: accuracy under PGD against the size of the perturbation, beside random noise of the same size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from assay.attacks import (
    L2,
    PGD,
    Attack,
    AutoAttack,
    Ball,
    Columns,
    Linf,
    RandomNoise,
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
SEARCH = (200, 1000, 5000)  # queries a sample of a table, by profile
HEADLINE = {"linf": 0.1, "l2": 1.0}
STRONGEST = 256  # samples that AutoAttack takes, in the deep profile


@dataclass(frozen=True)
class Robustness:
    """The property of one norm. Sizes are in units of the data's range (bounds[1] - bounds[0]).

    Of a table each column counts in units of its own range; immutable columns stay and integer ones stay whole. Where
    gradients are not granted a table is attacked by a search that takes scores, beside them by both.
    """

    norm: str

    def attacked(self, subject: Subject, context: Context) -> Data:
        """The samples that are attacked."""
        n = context.pick(256, 512, None)
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

    def cost(self, subject: Subject, context: Context) -> Cost:
        """At most this: fooled samples leave early."""
        n, (steps, restarts) = len(self.attacked(subject, context)), self.attack(context)
        passes = n * len(SIZES[self.norm]) * steps * restarts
        if isinstance(subject.test, TabularData):
            rounds = n * len(SIZES[self.norm])
            slopes = passes if subject.access >= Access.GRADIENT else 0
            return Cost(forward=n + rounds * (2 + context.pick(*SEARCH)), backward=slopes)
        few = context.pick(0, 0, min(n, STRONGEST))
        # AutoAttack: 100 steps of APGD and of FAB toward each of 9 targets and 5,000 queries; four runs of PGD besides.
        return Cost(
            forward=n * (1 + 2 * len(SIZES[self.norm])) + few * (9 * 100 + 5000),
            backward=passes + few * (19 * 100 + 4 * steps * restarts),
        )

    def measure(self, subject: Subject, context: Context) -> Section:
        """Accuracy under attack and under noise at each size."""
        data, (steps, restarts) = self.attacked(subject, context), self.attack(context)
        name, table = f"robustness.{self.norm}", isinstance(data, TabularData)
        section = Section(headline=[f"{name}.accuracy@{HEADLINE[self.norm]:g}"])
        clean = predict(subject.model, data.x).argmax(1) == data.y
        holds, curves = (
            clean.clone(),
            {"PGD": [float(clean.float().mean())], "random noise": [float(clean.float().mean())]},
        )
        bands: dict[str, list[tuple[float, float]]] = {"PGD": [], "random noise": []}
        masked: list[float] = []
        eot, climb = gradient_draws(subject.model, data.x), TabularPGD if table else PGD
        if eot > 1:
            section.notes.append(f"The model answers at random: each gradient is the mean of {eot} passes (EOT).")
        for eps in SIZES[self.norm]:
            ball = self.ball(data, eps)
            pgd = climb(ball=ball, bounds=data.bounds, steps=steps, restarts=restarts, eot=eot)
            rows = holds.nonzero()[:, 0]
            # What a smaller perturbation breaks, a larger one breaks too: only the others are attacked.
            if len(rows) and subject.access >= Access.GRADIENT:
                holds[rows] = ~self._fooled(pgd, subject, data[rows], context)
            rows = holds.nonzero()[:, 0]
            if table and len(rows):
                search = TabularSearch(ball=ball, bounds=data.bounds, budget=context.pick(*SEARCH))
                holds[rows] = ~self._fooled(search, subject, data[rows], context)
            if eps == HEADLINE[self.norm]:
                holds &= around_and_through(section, subject.model, data, pgd, context, name=name, eps=eps)
            noisy = clean & ~self._fooled(RandomNoise(ball=ball, bounds=data.bounds), subject, data, context)
            how = f"{self._means(subject, data, context)}, eps {eps:g} of the range, on {len(data)} samples"
            self._add(section, f"{name}.accuracy@{eps:g}", holds, data, how, curves["PGD"], bands["PGD"])
            how = f"one uniform draw from the ball, eps {eps:g} of the range, on {len(data)} samples"
            self._add(section, f"{name}.noise@{eps:g}", noisy, data, how, curves["random noise"], bands["random noise"])
            if int((holds & ~noisy).sum()) > int((noisy & ~holds).sum()):
                masked.append(eps)
        if context.profile == "deep" and not table:
            self._strongest(section, subject, data, context)
        section.plots.append(self._plot(curves, bands, "attack" if table else "PGD"))
        self._find(section, curves, masked)
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

    def _means(self, subject: Subject, data: Data, context: Context) -> str:
        """The attack in words."""
        steps, restarts = self.attack(context)
        pgd = f"PGD-{steps} x {restarts} restart(s)"
        if not isinstance(data, TabularData):
            return pgd
        search = f"a search of {context.pick(*SEARCH)} queries"
        means = f"{pgd} and {search}" if subject.access >= Access.GRADIENT else search
        kept = f"{len(data.immutable)} immutable and {len(data.integer)} integer of {len(data.columns)} columns kept so"
        return f"{means}, {kept}, each column in units of its range"

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

    def _plot(self, curves: dict[str, list[float]], bands: dict[str, list[tuple[float, float]]], means: str) -> Plot:
        sizes = [0.0, *SIZES[self.norm]]
        series = {}
        for key, y in curves.items():
            low, high = np.array([(y[0], y[0]), *bands[key]]).T
            label = means if key == "PGD" else key
            series[label] = {"x": sizes, "y": y, "low": low.tolist(), "high": high.tolist()}
        return Plot(
            "line", f"Accuracy under {SYMBOL[self.norm]} perturbations", series, "eps (of the range)", "accuracy"
        )

    def _find(self, section: Section, curves: dict[str, list[float]], masked: list[float]) -> None:
        at = SIZES[self.norm].index(HEADLINE[self.norm]) + 1
        clean, broken, noise = curves["PGD"][0], curves["PGD"][at], curves["random noise"][at]
        section.findings.append(
            (
                max(clean - broken, 0.0),
                f"A worst-case {SYMBOL[self.norm]} perturbation of {HEADLINE[self.norm]:g} of the range takes accuracy "
                f"from {clean:.1%} to {broken:.1%}; random noise of that size takes it to {noise:.1%}.",
            )
        )
        if masked:
            section.findings.append(
                (
                    0.9,
                    f"Random {SYMBOL[self.norm]} noise breaks more samples than PGD at eps "
                    f"{', '.join(f'{e:g}' for e in masked)}: gradients mislead, so robustness is overstated.",
                )
            )


linf = Property(
    "robustness.linf",
    "Robustness (l-infinity)",
    Robustness("linf").measure,
    Robustness("linf").cost,
    needs=Access.GRADIENT,
    needs_of_tables=Access.SCORE,
    moves="columns",
)
l2 = Property(
    "robustness.l2",
    "Robustness (l2)",
    Robustness("l2").measure,
    Robustness("l2").cost,
    needs=Access.GRADIENT,
    needs_of_tables=Access.SCORE,
    moves="columns",
)
PROPERTIES = (linf, l2)
