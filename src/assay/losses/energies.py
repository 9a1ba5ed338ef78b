"""Logits read as energies, and the weight of a sample that follows from them."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.losses.pairs import check_logits


def marginal_energy(logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """E(x) = -log sum_k exp z_k (Grathwohl et al., 2020, arXiv:1912.03263, eq. 6), any real number.

    Raises InputError unless ``logits`` are finite floats (n, c).
    """
    check_logits("marginal_energy", logits)
    return -logits.logsumexp(1)


def joint_energy(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """E(x, y) = -z_y (Grathwohl et al., 2020, arXiv:1912.03263, eq. 5); cross-entropy is E(x, y) - E(x).

    Raises InputError unless ``logits`` are finite floats (n, c) and ``target`` (n,) int64 in [0, c).
    """
    check_logits("joint_energy", logits, target)
    return -logits.gather(1, target[:, None])[:, 0]


def energy_weights(logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """1 / log(1 + exp |E(x)|) in (0, 1 / log 2] (Mirza et al., 2024, arXiv:2407.06315, section 4).

    Where logits grow with confidence, confident samples weigh less. The weight depends on the level of the logits:
    adding a constant to all of them changes it and no probability.
    """
    return 1 / F.softplus(marginal_energy(logits).abs())
