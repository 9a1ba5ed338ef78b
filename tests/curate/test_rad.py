"""Robust active distillation: the game, its rounding and the loop, against closed forms and brute force."""

from __future__ import annotations

import time
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from assay.curate import (
    ActiveDistillation,
    CoresetQuery,
    Pool,
    RADSampler,
    RandomQuery,
    UncertaintyMixup,
    UncertaintyQuery,
    confidence_gains,
    dep_round,
    entropy_gains,
    inclusion_probabilities,
    margin_gains,
    rad_distribution,
)
from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import derive
from assay.subject import fresh
from assay.training import Supervised

numbers = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=12)


def game(g: np.ndarray, m: float) -> float:
    """The value of the game from the adversary's side: min over l of max_i g_i (1 - l_i), by linear programming."""
    n = len(g)
    rows = np.hstack([-np.diag(g), -np.ones((n, 1))])
    budget = np.concatenate([np.ones(n), [0.0]])[None]
    solved = linprog(
        np.concatenate([np.zeros(n), [1.0]]),
        np.vstack([rows, budget]),
        np.concatenate([-g, [m]]),
        bounds=[(0, 1)] * n + [(0, None)],
    )
    return float(solved.fun)


def worst(q: np.ndarray, g: np.ndarray, m: float) -> float:
    terms = np.sort(q * g)[::-1]
    return float(terms.sum() - terms[: int(m)].sum() - (m - int(m)) * terms[min(int(m), len(g) - 1)])


class TestDistribution:
    @given(numbers, st.floats(0, 0.99))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_is_the_value_of_the_game(self, gains: list[float], share: float) -> None:
        g, m = np.array(gains), share * len(gains)
        found = rad_distribution(torch.tensor(gains, dtype=torch.float64), m)
        assert found.value == pytest.approx(game(g, m), abs=1e-8)
        assert worst(found.q.numpy(), g, m) == pytest.approx(found.value, abs=1e-9)
        assert float(found.q.sum()) == pytest.approx(1)

    def test_closed_forms(self) -> None:
        g = torch.tensor([0.2, 0.9, 0.5, 0.9], dtype=torch.float64)
        assert torch.allclose(rad_distribution(g, 0).q, torch.tensor([0, 0.5, 0, 0.5], dtype=torch.float64))
        for m in range(4):
            even = rad_distribution(torch.full((4,), 0.3), m)
            assert torch.allclose(even.q, torch.full((4,), 0.25, dtype=torch.float64))
            assert even.value == pytest.approx(0.3 * (4 - m) / 4)
            half = rad_distribution(g / 2, m)
            assert half.value == pytest.approx(rad_distribution(g, m).value / 2)
            assert torch.allclose(half.q, rad_distribution(g, m).q)

    def test_within_the_top_the_least_informative_is_drawn_most(self) -> None:
        q = rad_distribution(torch.tensor([0.5, 1.0, 0.8, 0.01]), 1.0).q
        assert q[0] > q[2] > q[1] > 0
        assert q[3] == 0

    @given(numbers)
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_parameter_free_variants_by_brute_force(self, gains: list[float]) -> None:
        g = np.sort(gains)[::-1]
        n = len(g)
        k, m = np.arange(1, n + 1)[:, None], np.arange(n // 2 + 1)[None]
        h = np.maximum(k - m, 0) / np.cumsum(1 / g)[:, None]
        ratio, gap = (h / h.max(0)).min(1), (h.max(0) - h).max(1)
        x = torch.tensor(gains, dtype=torch.float64)
        relative, regret = (rad_distribution(x, method=name) for name in ("relative", "regret"))
        assert relative.value == pytest.approx(ratio.max(), abs=1e-9)
        assert ratio[relative.k - 1] == pytest.approx(ratio.max(), abs=1e-9)
        assert regret.value == pytest.approx(gap.min(), abs=1e-9)
        assert gap[regret.k - 1] == pytest.approx(gap.min(), abs=1e-9)

    def test_a_million_points_in_a_second(self) -> None:
        g = torch.rand(1_000_000, dtype=torch.float64).clamp(min=1e-3)
        start = time.process_time()
        found = rad_distribution(g, 1e5)
        assert time.process_time() - start < 1
        assert found.k > 1e5

    def test_small_gains_are_raised_with_a_warning(self) -> None:
        with pytest.warns(RuntimeWarning, match="1 gains"):
            assert rad_distribution(torch.tensor([0.0, 0.5]), 0).k == 1

    @pytest.mark.parametrize("m", [None, 3, -1, float("nan")])
    def test_bad_m(self, m: float | None) -> None:
        with pytest.raises(InputError, match="m="):
            rad_distribution(torch.rand(3), m)

    def test_bad_gains(self) -> None:
        for bad in (torch.tensor([0.5, torch.nan]), torch.rand(2, 2), torch.tensor([0.5, 1.5]), torch.rand(0)):
            with pytest.raises(InputError, match="gains"):
                rad_distribution(bad, 0)
        with pytest.raises(InputError, match="minimax"):
            rad_distribution(torch.rand(3), 1, "median")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="m=1"):
            rad_distribution(torch.rand(3), 1, "regret")


class TestRounding:
    @given(st.lists(st.floats(0, 1), min_size=3, max_size=9), st.data())
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_water_filling(self, weights: list[float], data: st.DataObject) -> None:
        q = torch.tensor(weights, dtype=torch.float64)
        positive = int((q > 1e-300).sum())
        if positive < 1 or int((q > 0).sum()) != positive:
            return
        b = data.draw(st.integers(1, positive))
        pi = inclusion_probabilities(q, b)
        assert float(pi.sum()) == pytest.approx(b)
        assert float(pi.max()) <= 1
        free = (pi < 1 - 1e-9) & (q > 0)
        if free.any():  # one scale for all that are below 1, and at that scale the others reach 1
            scale = pi[free] / q[free]
            assert torch.allclose(scale, scale[:1].expand_as(scale), rtol=1e-6)
            assert (q[~free & (q > 0)] * scale[0] >= 1 - 1e-6).all()

    def test_marginals_size_and_negative_correlation(self) -> None:
        pi = torch.tensor([0.1, 0.9, 0.5, 0.5, 1.0, 0.0, 0.35, 0.65], dtype=torch.float64)
        draws = dep_round(pi.expand(20_000, -1), seed=0).double()
        assert (draws.sum(1) == 4).all()
        error = (pi * (1 - pi) / 20_000).sqrt()
        assert ((draws.mean(0) - pi).abs() <= 4 * error).all()
        for i, j in combinations(range(8), 2):
            both = (draws[:, i] * draws[:, j]).mean()
            assert float(both) <= float(pi[i] * pi[j]) + 4 * 0.5 / 20_000**0.5

    def test_certain_points_stay_and_errors(self) -> None:
        assert dep_round(torch.tensor([1.0, 0.0, 1.0]), seed=0).tolist() == [True, False, True]
        for bad in ([0.5, 0.6], [1.2, 0.8], [torch.nan, 1.0]):
            with pytest.raises(InputError, match="sum to an integer"):
                dep_round(torch.tensor(bad), seed=0)
        for q, b in (([0.5, 0.0], 2), ([0.5, 0.5], 0), ([-0.1, 1.1], 1)):
            with pytest.raises(InputError, match="expected finite weights"):
                inclusion_probabilities(torch.tensor(q), b)


class TestSamplers:
    def test_gains_by_hand(self) -> None:
        p = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
        assert margin_gains(p).tolist() == pytest.approx([0.8, 0.0, 1.0], abs=1e-6)
        assert confidence_gains(p).tolist() == pytest.approx([0.75, 0.0, 1.0], abs=1e-6)
        expected = -(p[0] * p[0].log()).sum() / np.log(3)
        assert entropy_gains(p).tolist() == pytest.approx([float(expected), 0.0, 1.0], abs=1e-6)

    def test_rad_draws_with_its_inclusion_probabilities(self) -> None:
        p = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)).double()
        pool = Pool(p / p.sum(1, keepdim=True), error=0.3)
        expected = inclusion_probabilities(rad_distribution(margin_gains(pool.probs), 9).q, 4)
        counts = torch.zeros(30)
        for seed in range(500):
            query = RADSampler().select(pool, 4, seed=seed)
            counts[query.rows] += 1
            assert torch.equal(query.inclusion, expected[query.rows])
        assert ((counts / 500 - expected).abs() < 4 * (0.25 / 500) ** 0.5).all()

    def test_m_as_count_share_or_from_the_error(self) -> None:
        pool = Pool(torch.rand(40, 3).softmax(1), error=0.25)
        rows = [RADSampler(m=m).select(pool, 5, seed=1).rows for m in (10, 0.25, "auto")]
        assert torch.equal(rows[0], rows[1])
        assert torch.equal(rows[0], rows[2])
        with pytest.raises(InputError, match="auto"):
            RADSampler().select(Pool(pool.probs), 5, seed=1)
        for bad in (1.0, -1, "all", float("nan")):
            with pytest.raises(InputError, match="m="):
                RADSampler(m=bad)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="gain"):
            UncertaintyQuery(gain="loss")  # type: ignore[arg-type]

    def test_without_wrong_labels_a_batch_is_the_top(self) -> None:
        pool = Pool(torch.randn(50, 4).softmax(1))
        top = UncertaintyQuery().select(pool, 7, seed=0)
        assert torch.equal(RADSampler(m=0).select(pool, 7, seed=5).rows, top.rows)

    def test_k_center_by_hand(self) -> None:
        x = torch.tensor([[0.0], [1.0], [5.0], [9.0], [10.0]])
        pool = Pool(torch.full((5, 2), 0.5), x, torch.tensor([[0.0]]))
        assert CoresetQuery().select(pool, 2, seed=0).rows.tolist() == [2, 4]
        with pytest.raises(InputError, match="features"):
            CoresetQuery().select(Pool(pool.probs), 2, seed=0)

    def test_mixtures_by_hand(self) -> None:
        x = torch.eye(6)[:, None]
        pool = Pool(torch.tensor([[0.5, 0.5]] * 3 + [[0.9, 0.1]] * 3))
        shown = UncertaintyMixup().inputs(x, pool, torch.arange(6), seed=0)[:, 0]
        assert torch.equal(shown[:3], torch.eye(6)[:3])  # the most uncertain is not mixed
        assert torch.allclose(shown.sum(1), torch.ones(6))
        assert (shown.diagonal()[3:] >= 0.6 - 1e-6).all()
        assert torch.equal(UncertaintyMixup(strength=0).inputs(x, pool, torch.arange(6), seed=0), x)
        with pytest.raises(InputError, match="strength"):
            UncertaintyMixup(strength=0.7)


class Memory(nn.Module):
    """A teacher that knows every label, and counts what it is asked."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.known = {tuple(x.flatten().tolist()): int(y) for x, y in zip(data.x, data.y, strict=True)}
        self.asked = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += len(x)
        return 20.0 * torch.eye(10)[[self.known[tuple(v.flatten().tolist())] for v in x]]


class TestLoop:
    @pytest.fixture(scope="class")
    def parts(self) -> tuple[Data, Data, Data]:
        train = load_data("digits:train")
        return train[:40], train[40:400], load_data("digits:test")

    def test_asks_what_it_says_and_learns(self, parts: tuple[Data, Data, Data]) -> None:
        labelled, pool, test = parts
        teacher = Memory(load_data("digits:train"))
        plan = Supervised(steps=100, lr=0.02)
        method = ActiveDistillation(rounds=2, budget=50, trainer=plan)
        found = method.fit(MLP(hidden=()), teacher, labelled, pool.with_y(pool.y * 0), seed=0)
        assert teacher.asked == 40 + 100
        assert len(found.rows_.unique()) == 100
        assert torch.equal(found.rounds_[0].teacher.argmax(1), pool.y[found.rounds_[0].rows])
        alone = plan.fit(MLP(hidden=()), labelled, seed=0)
        accuracy, before = ((predict(m, test.x).argmax(1) == test.y).float().mean() for m in (found.student_, alone))
        assert accuracy > before + 0.05
        again = method.fit(MLP(hidden=()), teacher, labelled, pool, seed=0)
        assert all(
            torch.equal(a, b) for a, b in zip(found.student_.parameters(), again.student_.parameters(), strict=True)
        )

    def test_one_round_is_training_on_the_teachers_probabilities(self, parts: tuple[Data, Data, Data]) -> None:
        """One full batch of plain SGD, stepped by hand: labels at temperature 1, queries at 2, times 4."""
        labelled, pool, _ = parts
        with torch.random.fork_rng():
            torch.manual_seed(0)
            teacher, start = MLP(hidden=()), MLP(hidden=())
        plan = Supervised(steps=1, batch_size=100, optimizer="sgd", momentum=0.0, lr=0.5, schedule="constant")
        method = ActiveDistillation(
            sampler=RandomQuery(), rounds=1, budget=20, trainer=plan, temperature=2.0, restart=False, weighted=True
        )
        found = method.fit(start, teacher, labelled, pool, seed=0)
        rows = found.rows_
        first = method.fit(start, teacher, labelled, pool, seed=0)
        assert torch.equal(first.rows_, rows)
        soft = (teacher(pool.x[rows]).detach() / 2).softmax(1)
        assert torch.allclose(found.rounds_[0].teacher, soft, atol=1e-6)
        model = plan.fit(fresh(start, seed=derive(0, "student")), labelled, seed=0)
        hard = nn.functional.cross_entropy(model(labelled.x), labelled.y, reduction="sum")
        query = 4 * nn.functional.cross_entropy(model(pool.x[rows]) / 2, soft, reduction="sum")
        gradient = torch.autograd.grad((hard + query) / 60, list(model.parameters()))
        for p, g, after in zip(model.parameters(), gradient, found.student_.parameters(), strict=True):
            assert torch.allclose(p - 0.5 * g, after, atol=1e-6)

    def test_features_of_a_layer(self, parts: tuple[Data, Data, Data]) -> None:
        labelled, pool, _ = parts
        method = ActiveDistillation(
            sampler=CoresetQuery(), rounds=1, budget=5, trainer=Supervised(steps=1), layer="body"
        )
        assert len(method.fit(MLP(), MLP(), labelled, pool, seed=0).rows_) == 5

    def test_errors(self, parts: tuple[Data, Data, Data]) -> None:
        labelled, pool, _ = parts
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(InputError, match="at least 3 x 200"):
                ActiveDistillation().fit(MLP(), MLP(), labelled, pool, seed=0)
            with pytest.raises(InputError, match="teacher gives"):
                ActiveDistillation(budget=5).fit(MLP(), MLP(classes=4), labelled, pool, seed=0)
        for bad in ({"rounds": 0}, {"budget": 0}, {"temperature": 0.0}):
            with pytest.raises(InputError, match="rounds"):
                ActiveDistillation(**bad)  # type: ignore[arg-type]


def test_coreset_distances_do_not_depend_on_a_shift() -> None:
    features = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = [
        CoresetQuery().select(Pool(torch.full((50, 2), 0.5), features[:50] + s, features[50:] + s), 1, seed=0).rows
        for s in (0.0, 1e8)
    ]
    assert torch.equal(*chosen)


def test_coreset_holds_few_distances_and_refuses_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    probs, features, known = torch.full((700, 2), 0.5), torch.rand(700, 3, generator=g), torch.rand(40, 3, generator=g)
    plain, rows = torch.cdist, []

    def counted(a: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        rows.append(len(a))
        return plain(a, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "cdist", counted)
    chosen = CoresetQuery().select(Pool(probs, features, known), 1, seed=0).rows
    assert sum(rows) == 700
    assert max(rows) <= 512
    assert int(chosen) == int(plain(features.double(), known.double()).amin(1).argmax())
    for bad in (Pool(probs, features / 0, known), Pool(probs, features, known * torch.nan)):
        with pytest.raises(InputError, match="finite"):
            CoresetQuery().select(bad, 1, seed=0)
