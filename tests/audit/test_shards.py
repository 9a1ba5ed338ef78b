"""Properties that are measured in parts: cut by the number of samples alone, kept part by part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.audit import audit
from assay.audit.property import Context
from assay.audit.registry import properties
from assay.audit.shards import MOST, Shards
from assay.runtime.store import Store
from assay.subject import Subject

CUT = [p for p in properties().values() if p.shards is not None]


def test_the_attacks_and_corruptions_are_cut() -> None:
    assert {p.name for p in CUT} == {"robustness.linf", "robustness.l2", "robustness.decision", "corruption"}


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200, 4096, 10_000])
def test_cuts_cover_every_row_once(n: int) -> None:
    shards = CUT[0].shards
    assert shards is not None
    cuts = shards.cut(n)
    assert [i for rows in cuts for i in range(rows.start, rows.stop)] == list(range(n))
    assert len(cuts) <= MOST
    assert all(rows.stop - rows.start >= shards.least for rows in cuts[:-1])


@pytest.mark.parametrize("name", ["robustness.linf", "robustness.l2", "corruption"])
def test_a_sample_is_measured_alike_in_any_part(name: str, digits: Subject) -> None:
    p, context = properties()[name], Context(limit=48)
    assert p.shards is not None
    data = p.shards.rows(digits, context)
    assert data is not None
    whole = p.shards.part(digits.model, data, context)
    halves = [p.shards.part(digits.model, data[rows], context) for rows in (slice(0, 17), slice(17, 48))]
    for key, values in whole.items():
        assert (np.concatenate([h[key] for h in halves]) == values).mean() >= 0.995


def test_the_deep_profile_cuts_autoattack_too(digits: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    p, context = properties()["robustness.linf"], Context("deep", limit=6)
    assert p.shards is not None
    monkeypatch.setattr("assay.audit.robustness.STRONGEST", 3)
    data = p.shards.rows(digits, context)
    assert data is not None
    assert int(data.fields["strongest"].sum()) == 3
    section = p.measure(digits, context)
    metric = {m.name: m for m in section.metrics}["robustness.linf.autoattack@0.1"]
    assert metric.n == 3
    assert "on 3 samples" in metric.how
    held = section.samples["robustness.linf.accuracy@0.1"]
    strongest = section.samples["robustness.linf.autoattack@0.1"]
    rows = np.isin(held.index, strongest.index)
    assert (strongest.values <= held.values[rows]).all()


class Stop(Exception):
    pass


def test_an_audit_that_ends_midway_measures_only_the_missing_parts(
    digits: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ran, whole = Store(tmp_path / "a"), list[int](), Shards.run
    options: dict[str, Any] = {"only": ["robustness.linf"]}

    def counted(shards: Shards, name: str, model: nn.Module, data: Any, context: Any, first: int) -> Any:
        ran.append(first)
        return whole(shards, name, model, data, context, first)

    def progress(name: str, done: int, total: int) -> None:
        if "(2 of 4)" in name:
            raise Stop

    monkeypatch.setattr(Shards, "run", counted)
    with pytest.raises(Stop):
        audit(digits, store=store, progress=progress, **options)
    assert ran == [0, 64]
    told: list[str] = []
    resumed = audit(digits, store=store, progress=lambda name, *_: told.append(name), **options)
    assert ran == [0, 64, 128, 192]
    assert told == ["", "robustness.linf (3 of 4)", "robustness.linf"]
    again = audit(digits, store=Store(tmp_path / "b"), **options)
    assert len(ran) == 8
    for name, s in again.samples.items():
        assert np.array_equal(resumed.samples[name].values, s.values)
    audit(digits, store=store, **options)
    assert len(ran) == 8


class Tipsy(nn.Module):
    """Answers at random, from torch's global generator."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x + 0.05 * torch.randn_like(x))
        return out


def test_a_random_model_gives_the_same_numbers_again(digits: Subject, tmp_path: Path) -> None:
    subject = replace(digits, model=Tipsy(digits.model))
    found = []
    for k in range(2):
        torch.manual_seed(k)
        found.append(audit(subject, only=["corruption"], limit=130, store=Store(tmp_path / str(k))))
    for name, s in found[0].samples.items():
        assert np.array_equal(found[1].samples[name].values, s.values)
