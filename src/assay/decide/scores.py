"""Uncertainty scores of logits (n, c), in float64: higher is less certain."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxtyping import Float
from torch import Tensor

from assay.losses.energies import marginal_energy


def max_probability(logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """1 - max softmax, in [0, 1] (Hendrycks & Gimpel, 2017, arXiv:1610.02136)."""
    return 1 - logits.double().softmax(1).amax(1)


def entropy(logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Entropy of the softmax, in nats."""
    log_p = logits.double().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def energy(logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """- log sum exp of the logits (Liu et al., 2020, arXiv:2010.03759, eq. 4)."""
    return marginal_energy(logits.double())


SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {"msp": max_probability, "entropy": entropy, "energy": energy}
