"""What every exported extractor promises; a new one joins by being exported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from assay.methods import exported
from assay.nets import MLP
from assay.privacy import ExtractionResult, Extractor, agreement
from assay.runtime.errors import BudgetError, InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded, torch_rng
from assay.subject.access import Access, Oracle

SHAPE = (1, 8, 8)
SHORT = {"nz": 8, "width": 4, "batch": 16, "lr_clone": 0.1, "lr_gen": 3e-3, "clip": 1.0, "num_classes": 3}
METHODS = [c for c in exported("extractor").values() if issubclass(c, Extractor)]  # of classifiers
extractors = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


def made(cls: type[Extractor]) -> Extractor:
    """The extractor at a size that suits a test."""
    known = {f.name for f in fields(cls)}
    return cls(**{k: v for k, v in SHORT.items() if k in known})  # type: ignore[arg-type]


def clone() -> nn.Module:
    with seeded(1, "clone"):
        return MLP(SHAPE, 3, (32,))


class Thirds(nn.Module):
    """Probabilities by the brightness of three bands: what noise already tells much of."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(60.0))

    def forward(self, x: Tensor) -> Tensor:
        bands = torch.stack([x[:, 0, a : a + 2].mean((1, 2)) for a in (0, 3, 6)], 1)
        return (self.scale * bands).softmax(1)


def run(cls: type[Extractor], victim: Callable[[Tensor], Tensor], budget: int = 640, seed: int = 0) -> ExtractionResult:
    return made(cls).extract(victim, clone(), SHAPE, budget=budget, seed=seed)


def test_the_room_exports_extractors() -> None:
    assert {c.__name__ for c in METHODS} >= {"CaBaGe", "DisGUIDE", "DFME", "NoiseQueries"}


@extractors
def test_queries_are_counted_in_range_and_within_the_budget(cls: type[Extractor]) -> None:
    victim, asked = Thirds(), []

    def watched(x: Tensor) -> Tensor:
        assert x.shape[1:] == SHAPE
        assert 0 <= float(x.min()) <= float(x.max()) <= 1
        asked.append(len(x))
        return victim(x).detach()

    found = run(cls, watched, budget=500)
    assert found.queries == sum(asked) <= 500
    assert [row["queries"] for row in found.history] == sorted(row["queries"] for row in found.history)
    assert predict(found.clone, torch.rand(5, *SHAPE)).shape == (5, 3)
    with pytest.raises(BudgetError):
        run(cls, Oracle(victim, access=Access.SCORE, budget=40))


@extractors
def test_same_seed_same_clone_and_nothing_is_touched(cls: type[Extractor]) -> None:
    victim, template = Thirds().train(), clone()
    before = copy.deepcopy(template.state_dict())
    method = made(cls)
    options, state = repr(method), torch.get_rng_state()
    x = torch.rand(20, *SHAPE, generator=torch_rng(0, "x"))
    first, again, other = (
        predict(method.extract(victim, template, SHAPE, budget=260, seed=s).clone, x) for s in (3, 3, 4)
    )
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(state)
    assert repr(method) == options
    assert all(v.equal(before[k]) for k, v in template.state_dict().items())
    assert victim.training
    assert victim.scale.item() == 60.0
    assert victim.scale.requires_grad
    assert victim.scale.grad is None


@extractors
def test_evaluation_costs_nothing_and_changes_nothing(cls: type[Extractor]) -> None:
    x, looks = torch.rand(20, *SHAPE, generator=torch_rng(0, "x")), []

    def evaluate(result: ExtractionResult) -> dict[str, float]:
        looks.append(result.queries)
        return {"ones": float((result.predict(x) == 1).float().mean())}

    plain = run(cls, Thirds())
    seen = made(cls).extract(Thirds(), clone(), SHAPE, budget=640, seed=0, evaluate=evaluate)
    assert predict(seen.clone, x).equal(predict(plain.clone, x))
    assert seen.queries == plain.queries == looks[-1]
    assert len(looks) >= 2
    assert seen.history[-1]["ones"] == float((seen.predict(x) == 1).float().mean())


@extractors
def test_bad_input(cls: type[Extractor]) -> None:
    method = made(cls)
    cases = [
        lambda: run(cls, Thirds(), budget=15),
        lambda: run(cls, lambda x: torch.zeros(len(x), 2, 2)),
        lambda: run(cls, lambda x: torch.full((len(x), 3), torch.nan)),
        lambda: run(cls, lambda x: torch.zeros(len(x) - 1, dtype=torch.int64)),
        lambda: run(cls, lambda x: torch.full((len(x),), 3)),
        lambda: replace(method, num_classes=1),
        lambda: method.extract(Thirds(), clone(), (1, 10, 8), budget=640, seed=0),
    ]
    if not method.soft:
        unknown = replace(method, num_classes=None)
        cases.append(lambda: unknown.extract(Thirds(), nn.Linear(3, 3), SHAPE, budget=640, seed=0))
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)


@extractors
def test_floor_agrees_with_the_victim_more_often_than_by_chance(cls: type[Extractor]) -> None:
    """After a hundred iterations: methods that ask more in one get more queries."""
    x = torch.rand(400, *SHAPE, generator=torch_rng(0, "test"))
    found = run(cls, Thirds(), budget=100 * getattr(made(cls), "cost", 16))
    assert agreement(found, Thirds()(x).argmax(1), x) > 0.45
