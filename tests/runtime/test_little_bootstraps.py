"""Intervals of large samples agree with the bootstrap's, and parts of the weights with the whole of them."""

import numpy as np
import pytest

from assay.runtime import statistics
from assay.runtime.random import numpy_rng


def table(name: str, n: int) -> np.ndarray:
    rng = numpy_rng(0, "table", name)
    confidence = rng.uniform(0.5, 1, n)
    second = rng.integers(0, 4, n) if name == "balanced" else rng.random(n) < confidence - 0.1
    return np.stack([rng.random(n) < 0.8 if name == "balanced" else confidence, second], 1).astype(float)


@pytest.mark.parametrize("name", ["mean", "ece", "auroc", "balanced"])
def test_little_bootstraps_have_the_width_of_the_bootstrap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = table(name, 6000)
    low, high = statistics.bootstrap(name, values)
    monkeypatch.setattr(statistics, "LARGE", 5000)
    little = statistics.bootstrap(name, values)
    assert "little bootstraps 95%" in statistics.named(name, values)
    assert (little[1] - little[0]) / (high - low) == pytest.approx(1, abs=0.25)
    assert sum(little) / 2 == pytest.approx((low + high) / 2, abs=0.3 * (high - low))


def test_weights_in_parts_are_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    values = table("auroc", 300)
    whole = statistics.STATISTICS["auroc"](values, statistics.resamples(300, 0))
    monkeypatch.setattr(statistics, "WEIGHTS", 300 * 7)
    assert statistics.bootstrap("auroc", values) == pytest.approx(tuple(np.quantile(whole, [0.025, 0.975])))


def test_paired_differences_of_large_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    before = table("mean", 6000)
    after = before + numpy_rng(1, "shift").normal(0.01, 0.1, before.shape)
    exact = statistics.paired_differences("mean", before, after)
    assert exact == statistics.paired("mean", before, after)
    monkeypatch.setattr(statistics, "LARGE", 5000)
    little = statistics.paired_differences("mean", before, after)
    assert little[0] == exact[0]
    assert little[2] - little[1] == pytest.approx(exact[2] - exact[1], rel=0.25)


@pytest.mark.parametrize("name", ["auroc", "balanced", "gap", "ratio", "worst_class"])
def test_rare_groups_keep_their_spread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = numpy_rng(0, "rare")
    group = (rng.permutation(20_000) < 12).astype(float)
    values = np.stack([(rng.random(20_000) < 0.6) if name != "auroc" else rng.normal(size=20_000) + group, group], 1)
    low, high = statistics.bootstrap(name, values)
    monkeypatch.setattr(statistics, "LARGE", 10_000)
    assert statistics.named(name, values) == "bootstrap 95%"
    again = statistics.bootstrap(name, values)
    assert (again[1] - again[0]) / (high - low) == pytest.approx(1, abs=0.3)
    shifted = statistics.paired_differences(name, values, values.copy())
    assert shifted[:3] == (0, 0, 0)
