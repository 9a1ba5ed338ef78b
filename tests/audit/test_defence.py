"""Robustness of a model behind a purifier: what an attack sees when it knows of it, and when not."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.audit.defence import gradient_draws, purifier_of
from assay.audit.property import Context, Section
from assay.audit.robustness import Robustness
from assay.defenses import InputMap, Median, Purified
from assay.subject import Subject, load


class Staircase(InputMap):
    """Rounding so fine that it changes nothing, with a stand-in that leads nowhere: masked gradients, no defence."""

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        return (x * 1000).round() / 1000

    def backward_map(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        return 0 * x


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


@pytest.fixture(scope="module")
def digits() -> Subject:
    return load("digits")


def linf(subject: Subject) -> tuple[dict[str, float], Section]:
    section = Robustness("linf").measure(subject, Context(limit=64))
    return {m.name.removeprefix("robustness.linf."): float(m.value or 0) for m in section.metrics}, section


def test_a_defence_against_those_who_do_not_know_of_it_is_shown_as_such(digits: Subject) -> None:
    defended = digits.with_model(Median(size=3).repair(digits, seed=0))
    found, section = linf(defended)
    assert found["adaptive@0.1"] <= found["greybox@0.1"]
    assert found["accuracy@0.1"] <= found["adaptive@0.1"]
    assert any("Behind the purifier (median)" in text and "(BPDA)" in text for _, text in section.findings)
    how = next(m.how for m in section.metrics if m.name.endswith("adaptive@0.1"))
    assert "through the purifier" in how
    assert "Square" in how


def test_masked_gradients_do_not_pass_for_robustness(digits: Subject) -> None:
    found, _ = linf(digits.with_model(Purified(Staircase(), digits.model)))
    bare, _ = linf(digits)
    assert found["greybox@0.1"] <= bare["accuracy@0.1"] + 0.1
    assert found["accuracy@0.1"] <= bare["accuracy@0.1"] + 0.1
    assert found["accuracy@0.05"] > found["accuracy@0.1"]


def test_a_model_without_a_purifier_has_none_of_these(digits: Subject) -> None:
    found, _ = linf(digits)
    assert not any(name.startswith(("greybox", "adaptive", "undefended")) for name in found)
    assert purifier_of(digits.model) is None


def test_the_purifier_is_found_inside_other_parts(digits: Subject) -> None:
    inner = Purified(Staircase(), digits.model)
    assert purifier_of(nn.Sequential(inner, nn.Identity())) is inner


def test_random_models_get_averaged_gradients(digits: Subject) -> None:
    x = digits.test.x
    assert gradient_draws(digits.model, x) == 1
    assert gradient_draws(nn.Sequential(Noise(), digits.model), x) > 1
