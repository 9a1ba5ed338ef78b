"""A classifier that learns how many classes there are: a class is appended when its label is first seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError


class GrowingClassifier(nn.Module):
    """``body`` (n, ...) to features (n, d), and a linear head of ``active`` classes of at most ``capacity``.

    A new row is the mean of the rows there are plus N(0, 0.01^2), its bias the least there is (our reconstruction, see
    CaBaGe). Rows not yet active are 0 and get no gradient, so an optimiser keeps no momentum of them: a row starts
    afresh. The outputs of classes that are there do not change. With ``capacity`` None the head has room for 1000.
    """

    active: Tensor

    def __init__(self, body: nn.Module, features: int, classes: int = 2, capacity: int | None = None) -> None:
        super().__init__()
        room = 1000 if capacity is None else capacity
        if not 1 <= classes <= room:
            raise InputError(f"growing classifier: {classes} classes of {room}; expected 1 to {room}")
        self.body = body
        head = nn.Linear(features, room)
        with torch.no_grad():
            head.weight[classes:] = 0
            head.bias[classes:] = 0
        self.head = head
        self.register_buffer("active", torch.tensor(classes))

    @torch.no_grad()
    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Append classes until there are ``classes``. InputError past the capacity."""
        weight, bias = self.head.weight, self.head.bias
        if classes > len(weight):
            raise InputError(f"growing classifier: {classes} classes; expected at most the capacity, {len(weight)}")
        for row in range(int(self.active), classes):
            noise = 0.01 * torch.randn(weight.shape[1], generator=generator).to(weight)
            weight[row] = weight[:row].mean(0) + noise
            bias[row] = bias[:row].min()
        self.active.fill_(max(int(self.active), classes))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        k = int(self.active)
        return F.linear(self.body(x), self.head.weight[:k], self.head.bias[:k])
