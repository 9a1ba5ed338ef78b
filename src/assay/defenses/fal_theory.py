"""What the convergence analysis of federated adversarial training speaks of, measured on one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from assay.data import Data
from assay.defenses.federated_at import FederatedAT
from assay.dynamics import TwoLayerReLU, margin, separability
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class FALTheoryReport:
    """One run on a two-layer network.

    ``delta`` is the smallest distance of two samples, ``gamma`` = delta (delta - 2 rho) the gap between their balls.
    ``losses`` are the global robust losses by round, ``min_loss`` the least. At the end, on samples that the inner
    attack perturbs: ``coupling_gap`` the largest |f - g| from the linearisation g, ``gradient_gap`` the largest sum of
    |grad_r f - grad_r g| over units; ``displacement`` is the largest distance of a unit from its start.
    """

    delta: float
    gamma: float
    losses: tuple[float, ...]
    min_loss: float
    coupling_gap: float
    gradient_gap: float
    displacement: float


def fal_theory_report(
    method: FederatedAT, network: TwoLayerReLU, clients: Sequence[Data], *, seed: int, until: float | None = None
) -> FALTheoryReport:
    """Train a copy of ``network`` on the clients' samples and measure (Li et al., 2022, arXiv:2208.03635).

    ``method`` has loss "absolute", norm "l2" and radius rho = ``eps``; samples (n, d) lie on the unit sphere and their
    perturbations off it. The run ends at a robust loss of ``until``, if given. Balls that meet give a warning
    (RuntimeWarning), other losses, norms or points off the sphere an InputError.
    """
    if method.loss != "absolute" or method.norm != "l2":
        found = f"loss={method.loss!r}, norm={method.norm!r}"
        raise InputError(f"fal_theory_report: {found}; expected loss 'absolute' and norm 'l2'")
    x = torch.cat([c.x for c in clients])
    delta, gamma = separability(x), margin(x, method.eps)
    run = method.run(network, clients, seed=seed, until=until)
    end = run.model_
    assert isinstance(end, TwoLayerReLU)
    worst = torch.cat([method.craft(end, c.x, c.y, c.index, c, seed) for c in clients])
    losses = tuple(r.robust_loss for r in run.history_)
    gaps = end.coupling_gap(worst), end.gradient_gap(worst), end.displacement()
    return FALTheoryReport(delta, gamma, losses, min(losses), *gaps)
