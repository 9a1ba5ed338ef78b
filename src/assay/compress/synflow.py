"""Synaptic-flow pruning: without data, before or after training."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from assay.compress.base import weights_of
from assay.compress.pruning import Masks, Pruning, apply, select
from assay.data import Data
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SynFlowPruning(Pruning):
    """Drop the weights that carry the least synaptic flow (Tanaka et al., 2020, arXiv:2006.05467, algorithm 1).

    All parameters are replaced by their magnitudes, R is the sum of the outputs for an input of ones in evaluation
    mode, and a weight's score is |dR/dw w|. In round k of ``rounds`` >= 1 the share (1 - sparsity)^(k / rounds) is
    kept, so that no layer collapses as it does in one shot. ``shape`` is that of one input; absent, that of the data.
    Computed in float64. Other fields and errors: see Pruning.
    """

    rounds: int = 100
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise InputError(f"SynFlowPruning: rounds={self.rounds}; expected at least 1")

    def compress(self, model: nn.Module, data: Data | None, *, seed: int) -> nn.Module:
        """A pruned copy of ``model``, fine-tuned on ``data`` where asked."""
        known = self if self.shape is not None or data is None else replace(self, shape=data.shape)
        return super(SynFlowPruning, known).compress(model, data, seed=seed)

    def masks(self, model: nn.Module, *, seed: int) -> Masks:
        """For each weight by name: which of its entries stay."""
        if not weights_of(model):
            raise InputError("SynFlowPruning: the model has no convolutional or linear layer to prune")
        positive = _magnitudes(model)
        masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights_of(model).items()}
        for k in range(1, self.rounds + 1):
            scores = self.flow(apply(masks, positive))
            # What is gone stays gone: below every score, which is not negative.
            scores = {name: s.masked_fill(~masks[name], -1.0) for name, s in scores.items()}
            masks = select(scores, 1 - (1 - self.sparsity) ** (k / self.rounds), self.scope)
        return masks

    def flow(self, positive: nn.Module) -> dict[str, Tensor]:
        """Scores of the weights of a model whose parameters are not negative, by name."""
        if self.shape is None:
            raise InputError("SynFlowPruning: no input shape; expected shape=... or data")
        weights = weights_of(positive)
        ones = torch.ones(1, *self.shape, dtype=torch.float64, device=next(positive.parameters()).device)
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                positive(ones).sum(), list(weights.values()), allow_unused=True, materialize_grads=True
            )
        return {name: (g * w).detach().abs() for (name, w), g in zip(weights.items(), gradients, strict=True)}


@torch.no_grad()
def _magnitudes(model: nn.Module) -> nn.Module:
    """A float64 copy in evaluation mode with the magnitude of every floating-point parameter and buffer."""
    positive = copy.deepcopy(model).double().eval().requires_grad_()
    for tensor in positive.state_dict().values():
        if tensor.is_floating_point():
            tensor.abs_()
    return positive
