"""Certificates against AutoAttack: deterministic ones are never broken, smoothing's within their binomial bound."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

import assay.certify as room
from assay.attacks import L2, PGD, AutoAttack, Linf, Untargeted
from assay.attacks.balls import Ball
from assay.certify import CROWN, Certificate, Certifier, RandomizedSmoothing, SmoothedClassifier
from assay.runtime.inference import predict
from assay.runtime.random import torch_rng
from assay.subject import Subject

IMAGES, RADII = 24, {"linf": (0.003, 0.03), "l2": (0.05, 0.15)}
BALLS: dict[str, type[Any]] = {"linf": Linf, "l2": L2}


def deterministic() -> list[type[Any]]:
    """Every exported certifier whose guarantees hold with certainty."""
    found = [getattr(room, name) for name in room.__all__]
    found = [m for m in found if getattr(m, "kind", None) == "certifier" and not inspect.isabstract(m)]
    g = torch.Generator().manual_seed(0)
    model, x = nn.Linear(3, 2), torch.rand(1, 3, generator=g)
    return [m for m in found if m().certify(model, x, model(x).argmax(1)).confidence == 1]


def every(radius: float, norm: str) -> dict[str, Certifier]:
    """The deterministic certifiers for balls of this norm, by name; CROWN with and without steps on its slopes."""
    found = {}
    for cls in DETERMINISTIC:
        options = {"norm": norm} if "norm" in cls.__dataclass_fields__ else {}
        if norm == "linf" or options:
            found[cls.__name__] = cls(eps=radius, **options)
    return {**found, "alpha-CROWN": CROWN(eps=radius, norm=norm, alpha_steps=3)}  # type: ignore[arg-type]


class Overstated(CROWN):
    """An unsound certifier: it states four times the radius that it has certified."""

    def certify(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0) -> Certificate:
        found = CROWN(eps=self.eps / 4, bounds=self.bounds).certify(model, x, y, seed=seed)
        return replace(found, radius=4 * found.radius)


DETERMINISTIC = [cls for cls in deterministic() if not issubclass(cls, RandomizedSmoothing)]


def broken(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """Which samples AutoAttack moves to another class."""
    attack = AutoAttack(ball=ball, steps=50, budget=500)
    return attack.run(model, x, Untargeted(y), seed=0).success


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("k", [0, 1])
def test_no_deterministic_certificate_is_broken(digits: Subject, norm: str, k: int) -> None:
    x, y, radius = digits.test.x[:IMAGES], digits.test.y[:IMAGES], RADII[norm][k]
    found = {name: c.certify(digits.model, x, y) for name, c in every(radius, norm).items()}
    certified = torch.stack([c.verdict for c in found.values()]).any(0)
    rows = certified.nonzero()[:, 0]
    assert all((c.radius[c.verdict] == radius).all() for c in found.values())
    lost = torch.zeros(IMAGES, dtype=torch.bool)
    lost[rows] = broken(digits.model, x[rows], y[rows], BALLS[norm](radius))
    violations = {name: int((c.verdict & lost).sum()) for name, c in found.items()}
    assert violations == dict.fromkeys(found, 0)
    assert int(certified.sum()) >= 15, {name: int(c.verdict.sum()) for name, c in found.items()}


def test_an_overstated_radius_is_caught(digits: Subject) -> None:
    x, y = digits.test.x[:IMAGES], digits.test.y[:IMAGES]
    found = Overstated(eps=0.12).certify(digits.model, x, y)
    rows = found.verdict.nonzero()[:, 0]
    assert int(broken(digits.model, x[rows], y[rows], Linf(0.12)).sum()) > 0


@cache
def _noise(draws: int, shape: tuple[int, ...]) -> Tensor:
    return 0.25 * torch.randn(draws, 1, *shape, generator=torch_rng(0, "attack"))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_certificates_of_smoothing_break_no_more_often_than_they_may(digits: Subject, share: float) -> None:
    x, y, alpha = digits.test.x[:30], digits.test.y[:30], 0.05
    method = RandomizedSmoothing(sigma=0.25, n0=50, n=500, alpha=alpha)
    found = method.certify(digits.model, x, y)
    rows = (found.verdict & (found.radius > 0.05)).nonzero()[:, 0]
    assert len(rows) >= 10
    smooth = SmoothedClassifier(digits.model, _noise(64, digits.test.shape)).eval()
    lost = torch.zeros(len(rows), dtype=torch.bool)
    for i, row in enumerate(rows.tolist()):
        eps = share * float(found.radius[row])
        attack = PGD(ball=L2(eps), steps=10, bounds=(-9.0, 9.0), early_stop=False, loss="margin")
        moved = attack(smooth, x[row : row + 1], y[row : row + 1], seed=0)
        counts = method.counts(digits.model, moved, 2000, 1, "check", torch.tensor([row]))[0]
        best = int(counts.argmax())
        # another class where it is the smoothed prediction at level 1e-4, not by the draws of this count
        rivals = int(counts[best]), int(counts[best] + (counts[int(y[row])] if len(counts) > int(y[row]) else 0))
        lost[i] = best != int(y[row]) and binomtest(*rivals, 0.5, alternative="greater").pvalue < 1e-4
    assert binomtest(int(lost.sum()), len(rows), alpha, alternative="greater").pvalue > 1e-3
    assert (predict(digits.model, x[rows]).argmax(1) == y[rows]).float().mean() > 0.8
