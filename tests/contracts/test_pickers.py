"""The contract of pickers, over every exported one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import assay.attacks
from assay.attacks import OnlinePicker, Picker, RandomK, competitive_ratios, run_stream
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

METHODS = [
    c
    for c in (getattr(assay.attacks, name) for name in assay.attacks.__all__)
    if isinstance(c, type) and issubclass(c, Picker) and "contract" not in vars(c)
]
ONLINE = [c for c in METHODS if issubclass(c, OnlinePicker)]
pickers = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)
online = pytest.mark.parametrize("cls", ONLINE, ids=lambda c: c.__name__)


@pytest.fixture(scope="module")
def values() -> Tensor:
    """200 runs of 30 values, with ties."""
    return torch.randint(25, (200, 30), generator=torch_rng(0, "values")).double()


def test_the_suite_sees_methods() -> None:
    names = {c.__name__ for c in METHODS}
    assert names >= {"VirtualPlus", "Virtual", "Optimistic", "SingleRef", "RandomK", "OfflineTopK"}


@pickers
@pytest.mark.parametrize("k", [1, 4, 30])
def test_at_most_k_and_input_and_global_randomness_untouched(cls: type[Picker], k: int, values: Tensor) -> None:
    before, state = values.clone(), torch.random.get_rng_state()
    mask = cls(n=30, k=k).pick(values)
    assert mask.dtype == torch.bool
    assert mask.shape == values.shape
    assert int(mask.sum(1).max()) <= k
    assert torch.equal(mask, cls(n=30, k=k).pick(values))
    assert torch.equal(values, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pickers
def test_runs_do_not_affect_each_other(cls: type[Picker], values: Tensor) -> None:
    rule = cls(n=30, k=4)
    together = rule.pick(values)
    assert torch.equal(together[:7], rule.pick(values[:7]))
    assert torch.equal(together.reshape(20, 10, 30), rule.pick(values.reshape(20, 10, 30)))
    assert run_stream(values[0], rule).tolist() == torch.where(together[0])[0].tolist()


@pickers
def test_larger_values_are_wanted(cls: type[Picker], values: Tensor) -> None:
    """More of the top k than by chance, but for random picks."""
    noise = torch.rand(values.shape, generator=torch_rng(1, "noise"), dtype=torch.float64)
    share = float(competitive_ratios(cls(n=30, k=4).pick(values + noise), values + noise, 4).mean())
    assert (share > 0.3) == (cls is not RandomK)


@pickers
@pytest.mark.parametrize("k", [0, 31])
def test_k_is_from_1_to_n(cls: type[Picker], k: int) -> None:
    with pytest.raises(InputError, match="1 <= k <= n"):
        cls(n=30, k=k)


@pickers
def test_bad_values(cls: type[Picker], values: Tensor) -> None:
    with pytest.raises(InputError, match="NaN"):
        cls(n=30, k=4).pick(values.masked_fill(values == 3, float("nan")))
    with pytest.raises(InputError, match="expected 29 values a run"):
        cls(n=29, k=4).pick(values)


@online
@pytest.mark.parametrize("exhaust", [False, True])
@pytest.mark.parametrize("threshold", [None, 0, 2, 11, 30])
def test_item_by_item_is_the_same(
    cls: type[OnlinePicker], threshold: int | None, exhaust: bool, values: Tensor
) -> None:
    """What comes later changes nothing: ``observe`` never sees it. A reset stream begins again."""
    rule = cls(n=30, k=4, threshold=threshold, exhaust=exhaust)
    stream, expected = rule.stream(), rule.pick(values[:1])[0]
    for _ in range(2):
        assert [stream.observe(v) for v in values[0].tolist()] == expected.tolist()
        assert stream.selected == torch.where(expected)[0].tolist()
        stream.reset()
    assert not rule.pick(values)[:, : rule.t].any()


@online
def test_exhaust_uses_all_k_picks(cls: type[OnlinePicker]) -> None:
    falling = torch.arange(30, 0, -1).double()
    assert run_stream(falling, cls(n=30, k=4, threshold=10, exhaust=True)).numel() == 4


@online
def test_bad_streams(cls: type[OnlinePicker]) -> None:
    for threshold in (-1, 31):
        with pytest.raises(InputError, match="0 <= threshold <= n"):
            cls(n=30, k=4, threshold=threshold)
    stream = cls(n=2, k=1).stream()
    with pytest.raises(InputError, match="finite"):
        stream.observe(float("nan"))
    stream.observe(1.0)
    stream.observe(2.0)
    with pytest.raises(InputError, match="item 3; expected n=2"):
        stream.observe(3.0)
    with pytest.raises(InputError, match="expected one"):
        cls(n=2, k=1).stream(3).observe(1.0)
    with pytest.raises(InputError, match="at least 1"):
        cls(n=2, k=1).stream(0)
