"""Online pickers: rules written again from the papers' text, exact ratios over every order, the attack on a stream."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations, product
from math import e, exp, floor, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.attacks import (
    FGSM,
    PGD,
    Linf,
    OfflineTopK,
    OnlineAttack,
    Optimistic,
    RandomK,
    SingleRef,
    Virtual,
    VirtualPlus,
    attack_values,
    capacity_curve,
    competitive_ratio,
    competitive_ratios,
    optimal_threshold,
    run_stream,
    virtual_plus_limit,
    virtual_plus_ratio,
    virtual_ratio,
)
from assay.attacks.online.single_ref import RANK_ENDS, SHARES
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng, torch_rng
from assay.subject import Subject


def reference(name: str, values: list[int], k: int, t: int, rank: int) -> list[int]:
    """The four rules as their texts have them, on sorted lists of (value, position)."""
    refs: list[tuple[float, int]] = sorted(((float(v), i) for i, v in enumerate(values[:t])), key=lambda r: -r[0])[:k]
    refs += [(-np.inf, -1)] * (k - len(refs))
    picked: list[int] = []
    for i, v in enumerate(values[t:], start=t):
        value, seen = refs[-1] if name != "SingleRef" else refs[rank - 1]
        if v <= value:
            continue
        if len(picked) < k and (name != "Virtual" or seen < t):
            picked.append(i)
            if name == "Optimistic":
                refs.pop()
                refs = refs or [(np.inf, -1)]
        if name.startswith("Virtual"):
            refs = sorted([*refs, (v, i)], key=lambda r: -r[0])[:k]
    return picked


@given(
    values=st.lists(st.integers(0, 12), min_size=2, max_size=18),
    k=st.integers(1, 18),
    t=st.integers(0, 18),
    rank=st.integers(1, 18),
)
@settings(max_examples=150)
def test_picks_are_those_of_the_text(values: list[int], k: int, t: int, rank: int) -> None:
    n = len(values)
    k, t, rank = min(k, n), min(t, n), min(rank, k, n)
    for rule in (
        VirtualPlus(n=n, k=k, threshold=t),
        Virtual(n=n, k=k, threshold=t),
        Optimistic(n=n, k=k, threshold=t),
        SingleRef(n=n, k=k, threshold=t, rank=rank),
    ):
        found = run_stream(torch.tensor(values).double(), rule).tolist()
        assert found == reference(type(rule).__name__, values, k, t, rank), rule


def orders(n: int) -> Tensor:
    return torch.tensor(list(permutations(range(n)))).double()


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_ratios_are_exact_over_every_order(k: int) -> None:
    every = orders(6)
    for t in range(7):
        for rule, ratio in ((VirtualPlus, virtual_plus_ratio), (Virtual, virtual_ratio)):
            picked = rule(n=6, k=k, threshold=t).pick(every)
            measured = float(competitive_ratios(picked, every, k).mean())
            assert measured == pytest.approx(ratio(6, k, t), abs=1e-12), (rule, t)


def test_capacity_curve_is_the_sum_over_every_outcome() -> None:
    rates = numpy_rng(0, "rates").uniform(size=7)
    for k in (1, 2, 3):
        for t in range(8):
            total = 0.0
            for i in range(t, 7):
                for outcome in product((0, 1), repeat=i - t):
                    p = np.prod([r if o else 1 - r for r, o in zip(rates[t:i], outcome, strict=True)])
                    total += p * (sum(outcome) < k)
            assert capacity_curve(rates, k)[t] == pytest.approx(total / 7, abs=1e-12)


@pytest.mark.parametrize("k", [2, 5, 10])
def test_ratio_by_simulation_and_under_the_recursion_with_record_rates(k: int) -> None:
    """4,000 random orders of 100 items: within 4 standard errors of the recursion, and far from one with rates 1/j."""
    values = torch.rand(4000, 100, generator=torch_rng(0, "values"), dtype=torch.float64)
    shares = competitive_ratios(VirtualPlus(n=100, k=k, threshold=37).pick(values), values, k)
    error = float(shares.std()) / 4000**0.5
    assert abs(float(shares.mean()) - virtual_plus_ratio(100, k, 37)) < 4 * error
    assert abs(float(shares.mean()) - capacity_curve(1 / np.arange(1, 101), k)[37]) > 10 * error


@given(seed=st.integers(0, 100), n=st.integers(3, 60), share=st.floats(0, 1))
@settings(max_examples=25)
def test_all_coincide_at_k_1(seed: int, n: int, share: float) -> None:
    """One pick: the classical secretary's."""
    values = torch.rand(20, n, generator=torch_rng(seed, "values"), dtype=torch.float64)
    masks = [
        rule(n=n, k=1, threshold=round(share * n)).pick(values)
        for rule in (VirtualPlus, Virtual, Optimistic, SingleRef)
    ]
    assert all(torch.equal(m, masks[0]) for m in masks)


def test_limits() -> None:
    for alpha in (0.1, 0.3, 1 / e, 0.7, 1.0):
        assert virtual_plus_limit(alpha, 1) == pytest.approx(alpha * log(1 / alpha), abs=1e-10)
        closed = 3 * alpha - alpha**2 * (3 - 2 * log(alpha))
        assert virtual_plus_limit(alpha, 2) == pytest.approx(closed, abs=1e-10)
    for alpha, k, value in ((0.386, 3, 0.4576), (0.388, 5, 0.4907), (0.388, 10, 0.5272), (0.378, 100, 0.5960)):
        assert virtual_plus_limit(alpha, k) == pytest.approx(value, abs=1e-4)
    assert virtual_plus_limit(0.38, 2) == pytest.approx(virtual_plus_ratio(100_000, 2, 38_000), abs=1e-4)
    assert virtual_ratio(100_000, 5, floor(100_000 / e)) == pytest.approx(exp(-1), abs=1e-4)


def test_the_optimal_threshold() -> None:
    t, ratio = optimal_threshold(2000, 2)
    assert t / 2000 == pytest.approx(0.382, abs=0.002)
    assert ratio == pytest.approx(0.4274, abs=1e-3)
    ratios = [virtual_plus_ratio(30, 3, s) for s in range(31)]
    assert optimal_threshold(30, 3) == (int(np.argmax(ratios)), max(ratios))


def test_defaults() -> None:
    assert VirtualPlus(n=100, k=5).t == Optimistic(n=100, k=5).t == 36
    assert Virtual(n=100, k=5).t == 38
    assert [(SingleRef(n=1000, k=k).r, SingleRef(n=1000, k=k).t) for k in (1, 2, 3, 10, 20, 100)] == [
        (1, 368),
        (1, 255),
        (2, 348),
        (3, 216),
        (5, 196),
        (15, 134),
    ]
    assert RANK_ENDS[-1] == 100
    assert SingleRef(n=1000, k=50).r == 9
    assert SingleRef(n=3000, k=1000).r == 154
    for k in (10, 20, 100):  # where the table says both, c is close to r / (r + k)
        r = SingleRef(n=1000, k=k).r
        assert SHARES[k] == pytest.approx(r / (r + k), abs=0.02)
    with pytest.raises(InputError, match="rank"):
        SingleRef(n=10, k=2, rank=3)


def test_random_picks_are_uniform_over_sets() -> None:
    picked = RandomK(n=5, k=2, seed=3).pick(torch.zeros(20_000, 5))
    assert (picked.sum(1) == 2).all()
    for pair in combinations(range(5), 2):
        assert float(picked[:, list(pair)].all(1).double().mean()) == pytest.approx(0.1, abs=0.01)
    assert not torch.equal(picked, RandomK(n=5, k=2, seed=4).pick(torch.zeros(20_000, 5)))


def test_competitive_ratios() -> None:
    values = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert competitive_ratio(torch.tensor([0, 3]), values, 2) == 0.5
    assert competitive_ratio(torch.tensor([0, 3]), values, 2, "value") == pytest.approx(6 / 7)
    assert competitive_ratio(torch.tensor([], dtype=torch.int64), values, 2) == 0
    assert competitive_ratio(run_stream(values, OfflineTopK(n=4, k=2)), values, 2) == 1
    assert run_stream(torch.ones(4), OfflineTopK(n=4, k=2)).tolist() == [0, 1]
    with pytest.raises(InputError, match="kind"):
        competitive_ratio(torch.tensor([0]), values, 2, "share")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="positions"):
        competitive_ratio(torch.tensor([4]), values, 2)
    with pytest.raises(InputError, match="sum to"):
        competitive_ratio(torch.tensor([0]), -values, 2, "value")
    with pytest.raises(InputError, match="mask of the values' shape"):
        competitive_ratios(torch.zeros(3, dtype=torch.bool), values, 2)
    with pytest.raises(InputError, match="one stream"):
        run_stream(values[None], OfflineTopK(n=4, k=2))


@pytest.mark.parametrize("call", [(5, 0, 1), (5, 6, 1), (5, 2, -1), (5, 2, 6)])
def test_ratios_refuse_what_no_stream_can_be(call: tuple[int, int, int]) -> None:
    for ratio in (virtual_plus_ratio, virtual_ratio):
        with pytest.raises(InputError, match="expected"):
            ratio(*call)
    with pytest.raises(InputError, match="alpha"):
        virtual_plus_limit(0.0, 2)


def stream_of(x: Tensor, y: Tensor, size: int, seen: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(x), size):
        seen.append(start)
        yield x[start : start + size], y[start : start + size]


def test_the_attack_decides_item_by_item_whatever_the_batches(digits: Subject) -> None:
    x, y = digits.test.x[:60], digits.test.y[:60]
    attack = PGD(ball=Linf(0.1), steps=3, early_stop=False)
    online = OnlineAttack(attack=attack, surrogate=digits.model, selector=VirtualPlus(n=60, k=6))
    whole = online(stream_of(x, y, 60, []), seed=0)
    for size in (1, 7):
        parts = online(stream_of(x, y, size, []), seed=0)
        assert torch.equal(parts["indices"], whole["indices"])
        assert torch.allclose(parts["x_adv"], whole["x_adv"], atol=1e-5)
        assert torch.allclose(parts["values"], whole["values"], atol=1e-4)
    x_adv = attack(digits.model, x, y, seed=0)
    values = attack_values(digits.model, x_adv, y)
    assert torch.equal(whole["indices"], run_stream(values, VirtualPlus(n=60, k=6)))
    assert torch.equal(whole["x_adv"], x_adv[whole["indices"]])
    assert float((whole["x_adv"] - x[whole["indices"]]).abs().max()) <= 0.1 + 1e-6


def test_the_attack_draws_no_batch_before_the_last_is_decided(digits: Subject) -> None:
    x, y = digits.test.x[:20], digits.test.y[:20]
    seen: list[int] = []
    decided: list[int] = []

    class Watched(VirtualPlus):
        def wants(self, stream, values):  # type: ignore[no-untyped-def]
            decided.append(stream.count)
            assert seen[-1] <= stream.count < seen[-1] + 5
            return super().wants(stream, values)

    rule = Watched(n=20, k=2, threshold=0)
    OnlineAttack(attack=FGSM(ball=Linf(0.1)), surrogate=digits.model, selector=rule)(stream_of(x, y, 5, seen), seed=0)
    assert decided == list(range(20))


def test_values_of_items(digits: Subject) -> None:
    x, y = digits.test.x[:30], digits.test.y[:30]
    logits = digits.model(x).detach().double()
    assert torch.allclose(attack_values(digits.model, x, y), -logits.log_softmax(1)[torch.arange(30), y], atol=1e-6)
    right = attack_values(digits.model, x, y, "margin") < 0
    assert torch.equal(right, logits.argmax(1) == y)


def test_the_attack_refuses_what_it_cannot_use(digits: Subject) -> None:
    x, y = digits.test.x[:5], digits.test.y[:5]
    attack, rule = FGSM(ball=Linf(0.1)), VirtualPlus(n=4, k=1)
    online = OnlineAttack(attack=attack, surrogate=digits.model, selector=rule)
    with pytest.raises(InputError, match="expected n=4 items"):
        online([(x, y)], seed=0)
    with pytest.raises(InputError, match="empty"):
        online([], seed=0)
    with pytest.raises(InputError, match="value_fn"):
        OnlineAttack(attack=attack, surrogate=digits.model, selector=rule, value_fn="loss")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="OnlinePicker"):
        OnlineAttack(attack=attack, surrogate=digits.model, selector=OfflineTopK(n=4, k=1))  # type: ignore[arg-type]
