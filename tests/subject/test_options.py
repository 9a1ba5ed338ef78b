"""Two models that differ in an option only are two models; the same one made twice is one."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.subject.options import options_hash


class Holder(nn.Module):
    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.inner = nn.Identity()
        vars(self.inner)["thing"] = thing

    def forward(self, x: Tensor) -> Tensor:
        return x


@dataclass
class Settings:
    size: int
    names: tuple[str, ...] = ("a",)


def scaled(by: float) -> Any:
    return lambda x: x * by


PAIRS = {
    "number": (0.1, 0.2),
    "none": (None, 0),
    "text": ("median", "blur"),
    "tensor": (torch.zeros(2), torch.tensor([0.0, 1.0])),
    "bfloat16": (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
    "array": (np.zeros(2), np.ones(2)),
    "dtype": (np.zeros(2), np.zeros(2, dtype=np.float32)),
    "list": ([1, [2, 3]], [1, [2, 4]]),
    "dict": ({"a": 1}, {"a": 2}),
    "closure": (scaled(1.0), scaled(2.0)),
    "code": (lambda x: x + 1, lambda x: x - 1),
    "partial": (functools.partial(scaled, 1), functools.partial(scaled, 2)),
    "object": (Settings(1), Settings(2)),
    "nested": (Settings(1, ("a", "b")), Settings(1, ("a", "c"))),
    "hidden module": ([nn.Dropout(0.1)], [nn.Dropout(0.2)]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_another_option_is_another_hash(name: str) -> None:
    a, b = PAIRS[name]
    assert options_hash(Holder(a)) == options_hash(Holder(a)) != options_hash(Holder(b))


def test_it_is_the_content_that_counts() -> None:
    def make() -> Holder:
        return Holder({"b": [1.0, torch.ones(3)], "a": Settings(3), "f": scaled(2.0), "s": {"x", "y", "z"}})

    assert options_hash(make()) == options_hash(make())
    same = [1, 2]
    loop: list[Any] = [1]
    loop.append(loop)
    assert options_hash(Holder([same, same])) == options_hash(Holder([same, same]))
    assert options_hash(Holder(loop)) == options_hash(Holder(loop))


def test_weights_mode_and_hooks_do_not_count() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.eval().register_forward_hook(lambda *_: None)
    assert options_hash(a) == options_hash(b) != options_hash(nn.Linear(3, 2))
