"""The contract of surrogates: several networks that answer as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, predict
from assay.training import State


class Surrogates(nn.Module):
    """Networks of one task, ``samples``; ``forward`` gives the mean of their logits (n, c).

    Raises InputError where there is none.
    """

    def __init__(self, samples: Sequence[nn.Module]) -> None:
        super().__init__()
        if not samples:
            raise InputError("Surrogates: no networks; expected at least one")
        self.samples = nn.ModuleList(samples)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return torch.stack([net(x) for net in self.samples]).mean(0)

    def predict_proba(self, x: Float[Tensor, "n ..."], *, batch_size: int = BATCH) -> Float[Tensor, "n c"]:
        """The mean of the networks' class probabilities, on the CPU: where they sample it, that of the posterior."""
        return torch.stack([predict(net, x, batch_size=batch_size).softmax(1) for net in self.samples]).mean(0)


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """``fit(model, data, *, seed) -> Surrogates``, in evaluation mode; ``model`` is the start and stays as it is."""

    kind: ClassVar[str] = "surrogate"
    contract: ClassVar[bool] = True

    def fit(self, model: nn.Module, data: Data, *, seed: int) -> Surrogates:
        """The surrogates trained on ``data``. Raises InputError for unusable data."""
        raise TypeError(f"{type(self).__name__} states no fit")

    def refuse(self, field: str, value: object, expected: str) -> None:
        """Raise InputError for an option of this method."""
        raise InputError(f"{type(self).__name__}: {field} is {value}; expected {expected}")


def at_epochs(steps: int, act: Callable[[int, nn.Module], None]) -> Callable[[Mapping[str, nn.Module], State], None]:
    """A hook that calls ``act(epoch, model)`` at the end of each epoch of so many steps, from 1."""

    def hook(models: Mapping[str, nn.Module], state: State) -> None:
        if state.step % steps == 0:
            act(state.step // steps, models["model"])

    return hook
