"""The audit as a whole: what it measures, keeps, skips, refuses, and leaves alone."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from assay.audit import audit, plan
from assay.audit import run as running
from assay.audit.property import Section
from assay.audit.registry import properties, select
from assay.audit.shards import Shards
from assay.runtime.errors import InputError
from assay.runtime.store import Store
from assay.subject import Access, Subject
from assay.subject.subject import model_hash

TWO = ["accuracy", "calibration"]


class Told:
    """Keeps what progress says."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, int]] = []

    def __call__(self, name: str, done: int, total: int) -> None:
        self.lines.append((name, done, total))


class Linear(nn.Module):
    """Logits from pixels, with ``outputs`` classes, or a constant where ``fill`` is given."""

    def __init__(self, outputs: int = 10, fill: float | None = None) -> None:
        super().__init__()
        self.layer, self.fill = nn.Linear(64, outputs), fill

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x.flatten(1))
        return out if self.fill is None else out.where(x.flatten(1).sum(1, keepdim=True) < 0, self.fill)


@pytest.fixture
def small(digits: Subject) -> Subject:
    assert digits.train is not None
    return replace(digits, test=digits.test[:120], train=digits.train[:100])


def computed(subject: Subject, store: Store, monkeypatch: pytest.MonkeyPatch, **options: object) -> int:
    """How many properties an audit measured rather than found."""
    calls: list[str] = []
    whole = running.run_property

    def counting(name: str, *rest: object) -> Section:
        calls.append(name)
        return whole(name, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(running, "run_property", counting)
        audit(subject, store=store, **{"only": ["accuracy"], **options})  # type: ignore[arg-type]
    return len(calls)


def test_every_property_of_the_profile_is_measured_or_says_why_not(
    digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "run_property", lambda name, s, c: Section(notes=[name]))
    parts: list[str] = []

    def part(shards: Shards, name: str, *rest: object) -> dict[str, np.ndarray]:
        parts.append(name)
        return {"skipped": np.array(f"{name} in parts"), "seconds": np.array(0.0)}

    monkeypatch.setattr(Shards, "run", part)
    result = audit(digits, store=None, seed=977)
    assert list(result.sections) == [p.name for p in select("quick", None)]
    assert all(s.notes == [n] or s.skipped for n, s in result.sections.items())
    cut = {n for n, s in result.sections.items() if s.skipped == f"{n} in parts"}
    assert cut == set(parts) == {"robustness.linf", "robustness.l2", "corruption"}
    assert all(parts.count(n) > 1 for n in cut)
    assert result.meta["hashes"]["test"] == digits.test.hash


def test_only_takes_names_and_prefixes_in_the_order_of_the_report() -> None:
    names = [p.name for p in select("quick", ["calibration", "accuracy"])]
    assert names == ["accuracy", "calibration"]
    prefix = next(n.partition(".")[0] for n in properties() if "." in n)
    below = [n for n in properties() if n == prefix or n.startswith(prefix + ".")]
    assert [p.name for p in select("quick", [prefix])] == below
    with pytest.raises(InputError, match=r"unknown property 'acuracy'; did you mean 'accuracy'\?"):
        select("quick", ["acuracy"])
    with pytest.raises(InputError, match="unknown property 'accu'"):
        select("quick", ["accu"])


def test_a_second_identical_audit_measures_nothing(
    small: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, first, second = Store(tmp_path), Told(), Told()
    a = audit(small, only=TWO, store=store, progress=first)
    assert first.lines == [("", 0, 2), ("accuracy", 1, 2), ("calibration", 2, 2)]

    def never(*_: object) -> Section:
        raise AssertionError("measured again")

    monkeypatch.setattr(running, "run_property", never)
    again = replace(small, model=copy.deepcopy(small.model), name="another name")
    b = audit(again, only=TWO, store=Store(tmp_path), progress=second)
    assert second.lines == [("", 2, 2)]
    assert a.to_dict()["sections"] == b.to_dict()["sections"]
    assert b.name == "another name"
    for name, s in a.samples.items():
        kept = b.samples[name]
        assert s.statistic == kept.statistic
        assert np.array_equal(s.values, kept.values)
        assert np.array_equal(s.index, kept.index)


def test_whatever_a_result_depends_on_makes_it_new(
    small: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    assert computed(small, store, monkeypatch) == 1
    assert computed(small, store, monkeypatch) == 0
    other = copy.deepcopy(small.model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert small.train is not None
    assert small.holdout is not None
    relabelled = small.test.with_y((small.test.y + 1) % 10)
    changed: list[tuple[Subject, dict[str, object]]] = [
        (small.with_model(other), {}),
        (replace(small, test=relabelled), {}),
        (replace(small, test=small.test[:119]), {}),
        (replace(small, train=small.train[:99]), {}),
        (replace(small, holdout=small.holdout[:50]), {}),
        (replace(small, access=Access.SCORE), {}),
        (small, {"seed": 1}),
        (small, {"profile": "standard"}),
        (small, {"limit": 60}),
    ]
    for subject, options in changed:
        assert computed(subject, store, monkeypatch, **options) == 1
        assert computed(subject, store, monkeypatch, **options) == 0
    monkeypatch.setattr(running, "code_hash", lambda module: "other code")
    assert computed(small, store, monkeypatch) == 1


@pytest.mark.parametrize("access", [Access.DECISION, Access.SCORE])
def test_what_the_access_does_not_allow_is_skipped_with_its_reason(
    small: Subject, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "run_property", lambda name, s, c: Section(notes=["ran"]))
    result = audit(replace(small, access=access), seed=int(access) + 4000)
    skipped = {n: s.skipped for n, s in result.sections.items() if s.skipped}
    too_much = {p.name: p.needs for p in select("quick", None) if p.needs > access}
    assert too_much
    assert result.sections["accuracy"].notes == ["ran"]
    for name, needs in too_much.items():
        assert skipped[name] == f"needs {needs.name} access; the subject grants {access.name}"


def test_without_training_data_or_recipe_the_reason_says_so(small: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "run_property", lambda name, s, c: Section(notes=["ran"]))
    bare = audit(replace(small, train=None), seed=5000)
    asked = [p.name for p in select("quick", None) if p.needs_train]
    assert asked
    for name in asked:
        assert "training data" in str(bare.sections[name].skipped)
    unplanned = audit(replace(small, recipe=None), seed=5000)
    for p in select("quick", None):
        if p.needs_recipe:
            assert "recipe" in str(unplanned.sections[p.name].skipped)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Linear(fill=float("nan")), "not finite on 120 of 120"),
        (Linear(fill=float("inf")), "not finite"),
        (Linear(7), r"gives \(2, 7\); expected logits of shape \(2, 10\)"),
        (nn.Linear(9, 10), "fails on inputs of shape"),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 10)), "fails on inputs of shape"),
        (nn.Flatten(0), r"gives \(128,\)"),
        (nn.Module(), "fails on inputs of shape"),
        (nn.LSTM(8, 10), "fails|gives tuple"),
        (nn.Identity(), r"gives \(2, 1, 8, 8\)"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(small: Subject, model: nn.Module, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as error:
        audit(small.with_model(model), only=["accuracy"], store=Store(tmp_path))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*/*.npz"))


class Rude(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("pixel_values")


def test_a_model_may_raise_anything(small: Subject) -> None:
    with pytest.raises(InputError, match=r"fails on inputs of shape .*'pixel_values'"):
        audit(small.with_model(Rude()), only=["accuracy"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"profile": "quik"}, "did you mean 'quick'"),
        ({"limit": 0}, "limit=0"),
        ({"limit": 1}, "limit=1"),
        ({"jobs": 0}, "jobs=0"),
        ({"on": "rai"}, "unknown executor 'rai'; did you mean 'ray'"),
        ({"device": "gpu"}, "--device 'gpu'"),
        ({"device": "meta"}, "--device 'meta'"),
        ({"device": "cuda:99"}, "--device 'cuda:99'"),
    ],
)
def test_bad_options_are_one_line(small: Subject, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        audit(small, only=["accuracy"], **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_limit_caps_the_test_samples_and_is_seeded(small: Subject, tmp_path: Path) -> None:
    sizes = {
        n: audit(small, only=["accuracy"], limit=n, store=Store(tmp_path)).samples["accuracy.top1"] for n in (40, 999)
    }
    assert len(sizes[40].index) == 40
    assert len(sizes[999].index) == 120
    assert set(sizes[40].index) <= set(sizes[999].index)
    other = audit(small, only=["accuracy"], limit=40, seed=1, store=Store(tmp_path)).samples["accuracy.top1"]
    assert set(other.index) != set(sizes[40].index)


def test_model_data_and_random_states_are_left_alone(small: Subject, tmp_path: Path) -> None:
    model = copy.deepcopy(small.model).train()
    next(model.parameters()).requires_grad_(False)
    subject = small.with_model(model)
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    weights, data = model_hash(model), small.test.hash
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    audit(subject, only=[*TWO, "cost"], limit=60, store=Store(tmp_path), device="cpu")
    assert model_hash(model) == weights
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert replace(small.test).hash == data
    assert torch.get_rng_state().equal(torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_results_read_as_json_frame_and_findings(small: Subject) -> None:
    result = audit(small, only=TWO)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (plain["schema"], plain["kind"], plain["profile"], plain["seed"]) == ("assay/1", "audit", "quick", 0)
    assert list(plain["sections"]) == TWO
    frame = result.to_frame()
    assert frame.loc["accuracy.top1", "value"] == result["accuracy.top1"].value
    assert list(frame.index) == list(result.metrics)
    every = {t for s in result.sections.values() for _, t in s.findings}
    assert 1 <= len(result.findings()) <= len(TWO)
    assert set(result.findings()) <= every
    assert result.findings(1)[0] == max(f for s in result.sections.values() for f in s.findings)[1]


def test_a_plan_runs_nothing(small: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "run_shared", lambda *a, **k: pytest.fail("ran"))
    monkeypatch.setattr(running, "run_property", lambda *a, **k: pytest.fail("ran"))
    rows = {r.name: r for r in plan(replace(small, access=Access.SCORE))}
    assert list(rows) == [p.name for p in select("quick", None)]
    assert rows["accuracy"].forward == 120
    assert rows["accuracy"].skipped is None
    assert all(r.seconds == 0 for r in rows.values() if r.skipped)
    assert any(r.skipped for r in rows.values())


def test_a_property_that_cannot_be_measured_leaves_the_rest(
    small: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Section:
        raise InputError("hygiene: too few samples; expected more")

    monkeypatch.setattr(running, "properties", lambda: properties() | {"hygiene": replaced})
    replaced = replace(properties()["hygiene"], measure=refuse)
    found = audit(small, only=["accuracy", "hygiene"], limit=40, store=Store(tmp_path))
    assert found.sections["hygiene"].skipped == "hygiene: too few samples; expected more"
    assert found.sections["accuracy"].metrics


class Blind(nn.Module):
    """A network that nothing can be differentiated through."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("name", ["robustness.linf", "robustness.l2", "adversarial_detection", "sharpness"])
def test_a_model_without_gradients_is_said_to_have_none(small: Subject, name: str, tmp_path: Path) -> None:
    found = audit(small.with_model(Blind()), only=["accuracy", name], limit=8, store=Store(tmp_path))
    assert "accuracy.top1" in found.metrics
    assert "do not depend differentiably" in str(found.sections[name].skipped)


def test_frozen_weights_have_a_sharpness(small: Subject, tmp_path: Path) -> None:
    frozen = small.with_model(Linear().requires_grad_(False))
    assert audit(frozen, only=["sharpness"], limit=8, store=Store(tmp_path)).sections["sharpness"].skipped is None


def test_outputs_that_are_unusable_end_the_audit(small: Subject, tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 10), torch.nan)

    with pytest.raises(InputError):
        audit(small.with_model(Broken()), only=["accuracy", "hygiene"], store=Store(tmp_path))


def test_training_data_of_a_wider_range_and_single_samples_of_classes(small: Subject, tmp_path: Path) -> None:
    rows = torch.stack([(small.train.y == k).nonzero()[0, 0] for k in range(10)])  # type: ignore[union-attr]
    train = small.train[torch.cat((rows, rows[:3] + 0))]  # type: ignore[index]
    train = replace(train, x=train.x * 2, bounds=(0.0, 2.0))
    found = audit(replace(small, train=train), only=["privacy", "ood"], limit=20, store=Store(tmp_path))
    assert [s.skipped for s in found.sections.values()] == [None, None]
    assert found["ood.shuffled.mahalanobis.auroc"].value is not None


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_model_of_another_precision_is_audited(small: Subject, kind: torch.dtype, tmp_path: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(small.model).to(kind)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.model(x.to(kind)).float()
            return out

    found = audit(small.with_model(Other().eval()), only=["ood", "certified.linf"], limit=20, store=Store(tmp_path))
    assert all(found[f"ood.shuffled.{name}.auroc"].value is not None for name in ("msp", "mahalanobis", "knn"))
    assert str(kind).removeprefix("torch.") in (found.sections["certified.linf"].skipped or "")
