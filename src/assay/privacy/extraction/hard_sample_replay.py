"""A memory of answered queries from which hard ones are drawn more often."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError


class HardSampleReplay:
    """Up to ``capacity`` samples with their answers, the oldest overwritten first.

    A sample is drawn with a probability proportional to w = difficulty^gamma + floor, difficulty in [0, 1]. ``gamma``
    0 is uniform replay, as DisGUIDE has it. Difficulties are refreshed when a sample is replayed (``update``). The form
    of the weight is our reconstruction (see CaBaGe).
    """

    def __init__(self, capacity: int, gamma: float = 1.0, floor: float = 0.05) -> None:
        if capacity < 1 or not gamma >= 0 or not floor > 0:
            raise InputError(
                f"replay: capacity={capacity}, gamma={gamma}, floor={floor}; expected >= 1, >= 0 and above 0"
            )
        self.capacity, self.gamma, self.floor = capacity, gamma, floor
        self.added = 0
        self._x = self._answer = self._difficulty = torch.empty(0)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    @property
    def weights(self) -> Float[Tensor, " m"]:
        """The weight of every sample held."""
        return self._difficulty[: len(self)] ** self.gamma + self.floor

    def add(self, x: Float[Tensor, "n ..."], answer: Tensor, difficulty: Float[Tensor, " n"]) -> None:
        """Hold ``x`` with its answers (labels (n,) or probabilities (n, c)) and difficulties."""
        if (
            len(answer) != len(x)
            or difficulty.shape != (len(x),)
            or not bool(((difficulty >= 0) & (difficulty <= 1)).all())
        ):
            raise InputError(
                f"replay: {len(x)} samples, {len(answer)} answers, {len(difficulty)} difficulties; "
                "expected one of each a sample, difficulties in [0, 1]"
            )
        if self.added == 0:
            self._x = x.new_empty(self.capacity, *x.shape[1:])
            self._answer = answer.new_empty(self.capacity, *answer.shape[1:])
            self._difficulty = difficulty.new_empty(self.capacity)
        rows = (self.added + torch.arange(len(x), device=x.device)) % self.capacity
        self._x[rows], self._answer[rows], self._difficulty[rows] = x, answer, difficulty.detach()
        self.added += len(x)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Int[Tensor, " n"]]:
        """``n`` draws with replacement: samples, answers, and their rows. InputError where nothing is held."""
        if len(self) == 0:
            raise InputError("replay: nothing is held; expected samples to be added first")
        rows = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator).to(self._x.device)
        return self._x[rows], self._answer[rows], rows

    def update(self, rows: Int[Tensor, " n"], difficulty: Float[Tensor, " n"]) -> None:
        """Refresh the difficulties of these rows."""
        self._difficulty[rows] = difficulty.detach()
