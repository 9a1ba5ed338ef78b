"""How much new memory a computation writes: a measure of cost that no other process disturbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Allocations(TorchDispatchMode):
    """Counts the numbers in every tensor that an operation makes anew, not those written in place or seen as a view."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.count += sum(t.numel() for t in made if t.untyped_storage().data_ptr() not in given)
        return out


def allocated(step: Callable[[], object]) -> int:
    """The numbers that ``step`` writes to new memory."""
    with _Allocations() as counted:
        step()
    return counted.count
