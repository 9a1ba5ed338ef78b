"""The contract of purifiers: a map on inputs, fitted without attacks, that stands in front of an unchanged model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.spec import rebuildable
from assay.subject import Subject


class InputMap(nn.Module):
    """What ``Purifier.fit`` returns: ``forward(x)`` (n, ...) -> the same shape and bounds, a module in evaluation mode.

    A map that is not ``differentiable`` states in ``backward_map`` what gradients pass through in its place (backward
    pass differentiable approximation, Athalye et al., 2018, arXiv:1802.00420, section 4.1).
    """

    differentiable: ClassVar[bool] = False

    def backward_map(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The differentiable stand-in; the identity unless a subclass says otherwise."""
        return x


@rebuildable
class Purified(nn.Module):
    """``model`` behind ``purify``: logits of purified inputs. Attacks on it go through the purifier (BPDA)."""

    def __init__(self, purify: InputMap, model: nn.Module) -> None:
        super().__init__()
        self.purify, self.model = purify, model

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        """Logits (n, c); the value is that of the purified input, the slope that of the map or its stand-in."""
        if self.purify.differentiable or not (torch.is_grad_enabled() and x.requires_grad):
            return self.model(self.purify(x))
        way = self.purify.backward_map(x)
        with torch.no_grad():
            value = self.purify(x)
        return self.model(way + (value - way).detach())


@dataclass(frozen=True, kw_only=True)
class Purifier:
    """``fit(data, *, seed) -> InputMap``. A subclass states in ``learn`` what it takes from natural data."""

    kind: ClassVar[str] = "purifier"
    contract: ClassVar[bool] = True

    def learn(self, data: Data, *, seed: int) -> InputMap:
        """The fitted map."""
        raise TypeError(f"{type(self).__name__} states no learn")

    def fit(self, data: Data, *, seed: int) -> InputMap:
        """Fit to natural ``data``; no attack and no model is seen. Raises InputError on unusable data."""
        check_inputs(type(self).__name__, data.x, bounds=data.bounds)
        return self.learn(data, seed=seed).eval()

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """A copy of the subject's model behind this purifier, fitted to the subject's training data."""
        purify = self.fit(subject.training(type(self).__name__), seed=seed)
        return Purified(purify, copy.deepcopy(subject.model)).eval()

    def control(self, subject: Subject, *, seed: int) -> nn.Module | None:
        """Doing nothing is the control: the model itself is unchanged."""
        return None
