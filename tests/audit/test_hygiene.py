"""Planted duplicates and shifts are found; clean splits give none."""

import numpy as np
import pytest
import torch

from assay.audit import hygiene
from assay.audit.property import Context, Section
from assay.data import load_data
from assay.nets import MLP
from assay.runtime.metric import measured
from assay.runtime.random import torch_rng
from assay.runtime.statistics import point
from assay.subject import Subject

TRAIN, TEST = load_data("digits:train"), load_data("digits:test")


def subject(test, train=TRAIN):
    return Subject(MLP(), test, train, holdout=TEST[:20])


def values(section):
    return {m.name: m.value for m in section.metrics}


def test_planted_leaks_are_counted():
    x = TEST.x[:100].clone()
    x[:10] = TRAIN.x[:10]
    x[10:30] = (TRAIN.x[10:30] * 0.9 + 0.02).clamp(0, 1)
    x[99] = x[98]
    section = hygiene.measure(subject(TEST[:100].with_x(x)), Context())
    got = values(section)
    assert got["hygiene.duplicates.across"] == pytest.approx(0.10)
    assert got["hygiene.near_duplicates.across"] == pytest.approx(0.30)
    assert got["hygiene.duplicates.test"] == pytest.approx(0.02)
    assert got["hygiene.duplicates.train"] == 0
    assert max(section.findings)[0] == pytest.approx(0.30)
    assert Section.from_arrays(section.to_arrays()).to_dict() == section.to_dict()


def test_nearest_equals_the_full_matrix(monkeypatch):
    monkeypatch.setattr(hygiene, "BLOCK", 17)
    a = np.corrcoef(TEST.x[:60].flatten(1).numpy())
    np.fill_diagonal(a, -1)
    assert np.allclose(hygiene.nearest(TEST.x[:60]), a.max(1), atol=1e-5)
    both = np.corrcoef(TEST.x[:40].flatten(1).numpy(), TRAIN.x[:50].flatten(1).numpy())[:40, 40:]
    assert np.allclose(hygiene.nearest(TEST.x[:40], TRAIN.x[:50]), both.max(1), atol=1e-5)


def test_label_shift_is_total_variation():
    half = TEST[TEST.y < 5]
    tv, p = hygiene.label_shift(TRAIN, half)
    assert tv == pytest.approx(float((TRAIN.y >= 5).float().mean()))
    assert p < 1e-6
    assert hygiene.label_shift(TRAIN, TRAIN) == (0.0, 1.0)


def test_covariate_shift_shows_and_its_absence_too():
    halves = [TRAIN.split(0.5, seed=k) for k in range(4)]
    clean = [point("auroc", hygiene.two_sample(a.x, b.x, seed=0)) for a, b in halves]
    assert abs(np.mean(clean) - 0.5) < 0.04
    noise = 0.25 * torch.rand(TEST.x.shape, generator=torch_rng(0, "noise"))
    shifted = hygiene.measure(subject(TEST.with_x(TEST.x * 0.75 + noise)), Context())
    assert values(shifted)["hygiene.covariate_shift.auc"] > 0.9
    assert any("AUC" in text for _, text in shifted.findings)


def test_without_a_shift_an_interval_above_one_half_is_rare():
    false = 0
    for k in range(40):
        a, b = TRAIN.split(0.5, seed=k)
        pairs = hygiene.two_sample(a.x[:200], b.x[:200], seed=k)
        auc, _ = measured("auc", pairs, np.arange(len(pairs)), statistic="auroc", better="lower", how="")
        false += auc.low > 0.5
    assert false <= 4  # 1 expected at 2.5%; P(more than 4) = 0.003


def test_without_training_data_the_rest_is_measured():
    section = hygiene.measure(subject(TEST, None), Context())
    assert set(values(section)) == {"hygiene.duplicates.test", "hygiene.near_duplicates.test"}
    assert section.notes
