from __future__ import annotations

import pytest
import torch

from assay.data import make_long_tail
from assay.runtime.errors import InputError

Y = torch.arange(1000) % 10


def sizes(kind: str, **options: object) -> list[int]:
    rows = make_long_tail(Y, kind=kind, **options)  # type: ignore[arg-type]
    assert rows.tolist() == sorted(set(rows.tolist()))
    return torch.bincount(Y[rows], minlength=10).tolist()


def test_sizes_are_those_of_the_profile() -> None:
    assert sizes("step", ratio=20, seed=0) == [100] * 5 + [5] * 5
    assert sizes("exp", ratio=100, seed=0) == [round(100 * 100 ** (-c / 9)) for c in range(10)]
    assert sizes("exp", ratio=1, seed=0, largest=30) == [30] * 10


def test_the_draw_follows_the_seed() -> None:
    first, again, other = (make_long_tail(Y, 10, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"ratio": 2, "largest": 200}, {"ratio": 2, "kind": "flat"}])
def test_bad_input(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        make_long_tail(Y, seed=0, **options)  # type: ignore[arg-type]
