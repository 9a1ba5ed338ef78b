"""Robustness: accuracy under attack against the size of the perturbation, beside random noise of the same size.

The attack is PGD; where no gradients are granted it is Square, which asks for scores. Tables have their own two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool
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
from assay.attacks.square import AsImages
from assay.audit.defence import around_and_through, gradient_draws, purifier_of, report
from assay.audit.masking import SIGNS, sentences, signs_of_masking
from assay.audit.property import Context, Cost, Plot, Property, Section, check_gradient
from assay.audit.shards import Arrays, Shards
from assay.data import Data
from assay.data.tabular import TabularData
from assay.runtime.inference import predict
from assay.runtime.metric import Metric, measured
from assay.runtime.throughput import exact, reduced
from assay.subject import Access, Subject

SIZES = {"linf": (0.02, 0.05, 0.1, 0.2), "l2": (0.25, 0.5, 1.0, 2.0)}
BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2}
TABLE_BALLS: dict[str, type[TabularLinf] | type[TabularL2]] = {"linf": TabularLinf, "l2": TabularL2}
SYMBOL = {"linf": "l-infinity", "l2": "l2"}
QUERIES = (200, 1000, 5000)  # of a search, for each sample and size, by profile
HEADLINE = {"linf": 0.1, "l2": 1.0}
STRONGEST = 256  # samples that AutoAttack takes, in the deep profile


def _searched(access: Access) -> bool:
    """Whether only scores are granted, so that the attack has to ask."""
    return access < Access.GRADIENT


def _label(data: Data, access: Access) -> str:
    """The attack's name in the figure."""
    if isinstance(data, TabularData):
        return "search" if _searched(access) else "PGD and search"
    return "Square" if _searched(access) else "PGD"


@dataclass(frozen=True)
class Robustness:
    """The property of one norm. Sizes are in units of the data's range (bounds[1] - bounds[0]).

    Of a table each column counts in units of its own range; immutable columns stay and integer ones stay whole. Where
    gradients are not granted a table is attacked by a search that takes scores, beside them by both.
    """

    norm: str

    def attacked(self, subject: Subject, context: Context) -> Data:
        """The samples that are attacked."""
        n = context.pick(64, 256, 512) if _searched(subject.access) else context.pick(256, 512, None)
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

    def attacks(self, data: Data, eps: float, context: Context, eot: int = 1) -> tuple[list[Attack], str]:
        """The attacks at ``eps``, one after the other on what the former left, and what they are in words."""
        table, queries = isinstance(data, TabularData), int(context.pick(*QUERIES))
        ball, (steps, restarts) = self.ball(data, eps), self.attack(context)
        found: list[Attack] = []
        words = []
        if not _searched(context.access):
            climb = TabularPGD if table else PGD
            found.append(climb(ball=ball, bounds=data.bounds, steps=steps, restarts=restarts, eot=eot))
            words.append(f"PGD-{steps} x {restarts} restart(s)")
        if table:
            found.append(TabularSearch(ball=ball, bounds=data.bounds, budget=queries))
            words.append(f"a search of {queries} queries for scores")
        elif _searched(context.access):
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
        if _searched(subject.access):
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

    def rows(self, subject: Subject, context: Context) -> Data:
        """The samples that are attacked; in the deep profile the field "strongest" marks those for AutoAttack."""
        data = self.attacked(subject, context)
        if not self._deep(data, context):
            return data
        chosen = torch.isin(data.index, data.limit(STRONGEST, seed=context.seed).index)
        return replace(data, fields={**data.fields, "strongest": chosen})

    def measure(self, subject: Subject, context: Context) -> Section:
        """Accuracy under attack and under noise at each size."""
        return self.shards.measure(f"robustness.{self.norm}", subject, context)

    @property
    def shards(self) -> Shards:
        """In parts: no sample depends on another."""
        return Shards(self.rows, self.part, self.whole)

    def _deep(self, data: Data, context: Context) -> bool:
        """Whether AutoAttack runs: it takes gradients, and moves all columns."""
        return context.profile == "deep" and not _searched(context.access) and not isinstance(data, TabularData)

    def part(self, model: nn.Module, data: Data, context: Context) -> dict[str, np.ndarray]:
        """Who holds against the attacks and against noise, (n, sizes), and what else is known of each sample."""
        searched = _searched(context.access)
        if not searched:
            check_gradient(model, data.x)
        if searched and not isinstance(data, TabularData) and len(data.shape) != 3:
            model, data = AsImages(model, data.shape), data.with_x(data.x.reshape(len(data), 1, 1, -1))
        with exact(model):
            clean = predict(model, data.x).argmax(1) == data.y
            eot = 1 if searched else gradient_draws(model, data.x)
        holds, found = clean.clone(), {"clean": clean, "eot": torch.full((len(data),), eot)}
        under: dict[str, list[torch.Tensor]] = {"attacked": [], "noise": []}
        for eps in SIZES[self.norm]:
            attacks, _ = self.attacks(data, eps, context, eot)
            for attack in attacks:
                # What a smaller perturbation breaks, a larger one breaks too: only the others are attacked.
                rows = holds.nonzero()[:, 0]
                if len(rows):
                    holds[rows] = ~fooled(attack, model, data[rows], context.seed)
            purified = purifier_of(model) if eps == HEADLINE[self.norm] else None
            if purified is not None and isinstance(attacks[0], PGD):
                with exact(model):
                    found |= around_and_through(purified, model, data, attacks[0], context.seed)
                holds &= found["adaptive"]
            under["attacked"].append(holds.clone())
            noise = RandomNoise(ball=self.ball(data, eps), bounds=data.bounds)
            under["noise"].append(clean & ~fooled(noise, model, data, context.seed))
        found |= {name: torch.stack(columns, 1) for name, columns in under.items()}
        if self._deep(data, context):
            with exact(model):
                found |= self._strongest(model, data, context)
        return {name: rows.numpy() for name, rows in found.items()}

    def _strongest(self, model: nn.Module, data: Data, context: Context) -> dict[str, torch.Tensor]:
        """Whom AutoAttack breaks at the headline's size, and who shows signs that gradients are masked."""
        rows = data.fields["strongest"].nonzero()[:, 0]
        found = {name: torch.zeros(len(data), dtype=torch.bool) for name in ("broken", *SIGNS)}
        if len(rows):
            chosen, ((pgd, *_), _) = data[rows], self.attacks(data, HEADLINE[self.norm], context)
            assert isinstance(pgd, PGD)
            attack = AutoAttack(ball=pgd.ball, bounds=data.bounds)
            result = attack.run(model, chosen.x, Untargeted(chosen.y), seed=context.seed, index=chosen.index)
            signs = signs_of_masking(model, chosen, pgd, result, seed=context.seed)
            for name, shown in {"broken": result.success, **signs}.items():
                found[name][rows] = shown
        return found

    def whole(self, subject: Subject, data: Data, arrays: Arrays, context: Context) -> Section:
        """The section of all samples."""
        name, clean = f"robustness.{self.norm}", float(arrays["clean"].mean())
        section = Section(headline=[f"{name}.accuracy@{HEADLINE[self.norm]:g}"])
        label = _label(data, context.access)
        curves: dict[str, list[float]] = {label: [clean], "random noise": [clean]}
        bands: dict[str, list[tuple[float, float]]] = {label: [], "random noise": []}
        masked, eot, purified = [], int(arrays["eot"].max()), purifier_of(subject.model)
        if eot > 1:
            section.notes.append(f"The model answers at random: each gradient is the mean of {eot} passes (EOT).")
        for column, eps in enumerate(SIZES[self.norm]):
            attacks, what = self.attacks(data, eps, context)
            if purified is not None and eps == HEADLINE[self.norm] and isinstance(attacks[0], PGD):
                report(section, arrays, purified, data, attacks[0], name=name, eps=eps)
            holds, noisy = arrays["attacked"][:, column], arrays["noise"][:, column]
            how = f"{what}, eps {eps:g} of the range, on {len(data)} samples"
            self._add(section, f"{name}.accuracy@{eps:g}", holds, data, how, curves[label], bands[label])
            how = f"one uniform draw from the ball, eps {eps:g} of the range, on {len(data)} samples"
            self._add(section, f"{name}.noise@{eps:g}", noisy, data, how, curves["random noise"], bands["random noise"])
            if int((holds & ~noisy).sum()) > int((noisy & ~holds).sum()):
                masked.append(eps)
        if self._deep(data, context):
            self._suspect(section, data, arrays)
        section.plots.append(self._plot(curves, bands))
        if _searched(context.access):
            text = "No gradients are granted: the attack asks for scores, so accuracy under it is an upper bound that "
            section.notes.append(text + "more queries lower.")
        self._find(section, curves, masked, label)
        return section

    def _suspect(self, section: Section, data: Data, arrays: Arrays) -> None:
        """AutoAttack at the headline's size, and what suggests that gradients are masked."""
        eps, chosen = HEADLINE[self.norm], data.fields["strongest"].numpy()
        n, version = int(chosen.sum()), AutoAttack(ball=BALLS[self.norm](eps), bounds=data.bounds).version
        section.add(
            measured(
                f"robustness.{self.norm}.autoattack@{eps:g}",
                (~arrays["broken"][chosen]).astype(float),
                data.index.numpy()[chosen],
                better="higher",
                how=f"AutoAttack ({version}), eps {eps:g} of the range, on {n} samples",
            )
        )
        signs = sentences({sign: int(arrays[sign].sum()) for sign in SIGNS}, n)
        if signs:
            text = (
                f"Gradients look masked ({SYMBOL[self.norm]}), so robustness is likely overstated: {'; '.join(signs)}."
            )
            section.findings.append((0.9, text))

    def _add(
        self,
        section: Section,
        name: str,
        correct: np.ndarray,
        data: Data,
        how: str,
        curve: list[float],
        band: list[tuple[float, float]],
    ) -> Metric:
        metric = section.add(measured(name, correct.astype(float), data.index.numpy(), better="higher", how=how))
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


def fooled(attack: Attack | RandomNoise, model: nn.Module, data: Data, seed: int) -> Bool[Tensor, " n"]:
    """Whom the attack breaks, by the model in float32.

    Where passes are less precise, what they find is looked at again in float32, and whoever is not broken is attacked
    again in float32: no switch makes a model look more robust than it is.
    """

    def run(rows: Data) -> tuple[Tensor, Tensor]:
        found = attack.run(model, rows.x, Untargeted(rows.y), seed=seed, index=rows.index)
        return found.success, found.x_adv

    broken, x_adv = run(data)
    if not reduced(model):
        return broken
    with exact(model):
        broken &= predict(model, x_adv).argmax(1) != data.y
        left = (~broken).nonzero()[:, 0]
        if len(left):
            broken[left] = run(data[left])[0]
    return broken


def _property(norm: str, title: str) -> Property:
    how = Robustness(norm)
    return Property(
        f"robustness.{norm}",
        f"Robustness ({title})",
        how.measure,
        how.cost,
        needs=Access.SCORE,
        moves="columns",
        shards=how.shards,
        passes=True,
    )


linf, l2 = _property("linf", "l-infinity"), _property("l2", "l2")
PROPERTIES = (linf, l2)
