"""The layer-peeled model: closed forms, a convex reference, and its certificate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.dynamics import LayerPeeledModel, simplex_etf
from assay.runtime.errors import InputError


def off_diagonal(cos: torch.Tensor) -> torch.Tensor:
    return cos[~torch.eye(len(cos), dtype=torch.bool)]


@given(k=st.integers(2, 12), e_w=st.floats(0.2, 6), e_h=st.floats(0.2, 6), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_balanced_classes_attain_the_closed_form(k: int, e_w: float, e_h: float, seed: int) -> None:
    model = LayerPeeledModel(counts=(3,) * k, dim=k + 2, e_w=e_w, e_h=e_h)
    rows = simplex_etf(k, k + 2)
    frames = float(F.cross_entropy(math.sqrt(e_w * e_h) * rows @ rows.T, torch.arange(k)))
    found = model.solve(seed=seed)
    assert found.optimum_balanced == pytest.approx(frames, rel=1e-12)
    assert found.loss == pytest.approx(frames, rel=1e-8)
    assert off_diagonal(found.cos + 1 / (k - 1)).abs().max() < 1e-4
    assert off_diagonal(found.feature_cos + 1 / (k - 1)).abs().max() < 1e-4
    assert float((found.weight / math.sqrt(e_w) - found.feature / math.sqrt(e_h)).abs().max()) < 1e-3


@given(
    counts=st.lists(st.integers(1, 500), min_size=2, max_size=7),
    e_h=st.floats(0.5, 8),
    classifier=st.sampled_from(["learned", "etf"]),
)
@settings(max_examples=25)
def test_the_certificate_is_tight_and_the_constraints_are_kept(counts: list[int], e_h: float, classifier: str) -> None:
    k = len(counts)
    found = LayerPeeledModel(counts=tuple(counts), dim=2 * k, e_h=e_h, classifier=classifier).solve()
    assert -1e-10 < found.gap < 1e-5
    assert float(found.weight.square().sum()) <= k + 1e-9
    assert float(found.feature.square().sum()) <= k * e_h + 1e-8


def simplex_projection(values: np.ndarray, radius: float) -> np.ndarray:
    """The nearest point with non-negative entries of sum ``radius`` to values in descending order."""
    excess = (np.cumsum(values) - radius) / np.arange(1, len(values) + 1)
    return np.maximum(values - excess[np.flatnonzero(values > excess)[-1]], 0)


def convex_reference(counts: tuple[int, ...], radius: float, steps: int = 4000) -> float:
    """The least loss over logits in the nuclear-norm ball, by accelerated projected gradient on the logits."""
    share, k = np.array(counts) / sum(counts), len(counts)
    z, y, t = np.zeros((k, k)), np.zeros((k, k)), 1.0
    for _ in range(steps):
        p = np.exp(y - y.max(1, keepdims=True))
        u, s, v = np.linalg.svd(y - share[:, None] * (p / p.sum(1, keepdims=True) - np.eye(k)) / share.max())
        new = u * (simplex_projection(s, radius) if s.sum() > radius else s) @ v
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        y, z, t = new + (t - 1) / following * (new - z), new, following
    return float(share @ F.cross_entropy(torch.from_numpy(z), torch.arange(k), reduction="none").numpy())


@pytest.mark.parametrize("counts", [(1, 1, 1), (20, 20, 1, 1), (9, 3, 1)])
def test_a_convex_solver_on_the_logits_agrees(counts: tuple[int, ...]) -> None:
    found = LayerPeeledModel(counts=counts, dim=len(counts), e_w=2.0, e_h=3.0).solve(seed=1)
    assert found.loss == pytest.approx(convex_reference(counts, len(counts) * math.sqrt(6)), rel=1e-5)


def test_the_gap_bounds_what_a_stopped_run_lacks() -> None:
    model = LayerPeeledModel(counts=(30, 30, 1, 1), dim=8, e_h=5.0)
    best = model.solve().loss
    stopped = [model.solve(steps=k) for k in (1, 3, 10)]
    assert all(0 <= s.loss - best <= s.gap for s in stopped)
    assert stopped[0].gap > 1e-2


def test_rare_classes_merge_beyond_a_ratio_and_not_under_a_fixed_frame() -> None:
    means = []
    for ratio in (1, 10, 100, 1000):
        counts = (ratio,) * 5 + (1,) * 5
        means.append(float(off_diagonal(LayerPeeledModel(counts=counts, dim=32, e_h=5.0).solve().cos[5:, 5:]).mean()))
        held = LayerPeeledModel(counts=counts, dim=32, e_h=5.0, classifier="etf").solve()
        assert off_diagonal(held.feature_cos + 1 / 9).abs().max() < 1e-4
        assert off_diagonal(held.cos + 1 / 9).abs().max() < 1e-12
    assert means == pytest.approx([-1 / 9, 0.5175, 1, 1], abs=1e-3)


def test_same_seed_same_result_and_global_randomness_is_left_alone() -> None:
    model, state = LayerPeeledModel(counts=(5, 2, 1), dim=4), torch.get_rng_state()
    first, second, other = (model.solve(seed=s) for s in (0, 0, 1))
    assert torch.equal(first.weight, second.weight)
    assert not torch.allclose(first.weight, other.weight)
    assert first.loss == pytest.approx(other.loss, abs=1e-9)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "bad",
    [{"counts": (3,)}, {"counts": (3, 0, 1)}, {"dim": 1}, {"e_w": 0.0}, {"e_h": math.inf}, {"classifier": "none"}],
)
def test_bad_options(bad: dict) -> None:
    with pytest.raises(InputError):
        LayerPeeledModel(**{"counts": (1, 1, 1), "dim": 4, **bad})
    with pytest.raises(InputError, match="steps"):
        LayerPeeledModel(counts=(1, 1), dim=2).solve(steps=0)
