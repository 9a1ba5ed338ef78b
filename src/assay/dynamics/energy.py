"""Energies of a classifier on samples and on their perturbed copies, while it trains."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.energies import joint_energy, marginal_energy
from assay.losses.pairs import check_pair
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import predict

QUANTILES = (0.05, 0.5, 0.95)


def energy_gap(
    logits: Float[Tensor, "n c"], logits_adv: Float[Tensor, "n c"], target: Int[Tensor, " n"] | None = None
) -> Float[Tensor, " n"]:
    """E(x) - E(x_adv), or with ``target`` E(x, y) - E(x_adv, y) (Mirza et al., 2024, arXiv:2407.06315, section 3).

    Positive where the perturbed copy is "more in distribution". Both logits (n, c); other input raises InputError.
    """
    check_pair("energy_gap", logits, logits_adv, torch.zeros(len(logits)).long() if target is None else target)
    if target is None:
        return marginal_energy(logits) - marginal_energy(logits_adv)
    return joint_energy(logits, target) - joint_energy(logits_adv, target)


class EnergyTracker:
    """Energies epoch by epoch: ``update`` once an epoch, on the same training samples and their attacked copies.

    ``history`` holds what each update returned.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []

    def update(
        self, model: nn.Module, x: Float[Tensor, "n ..."], x_adv: Float[Tensor, "n ..."], y: Int[Tensor, " n"]
    ) -> dict[str, float]:
        """Mean and quantiles of E(x), E(x_adv), E(x, y) and of the gaps E(x) - E(x_adv), E(x, y) - E(x_adv, y).

        The names are "marginal", "marginal_adv", "joint", "gap" and "joint_gap" with ".mean", ".q05", ".q50", ".q95".
        The model runs in evaluation mode. Raises InputError for unusable inputs or copies of another shape.
        """
        check_inputs("EnergyTracker", x, y)
        check_inputs("EnergyTracker, x_adv", x_adv)
        if x_adv.shape != x.shape:
            raise InputError(f"EnergyTracker: x_adv has shape {tuple(x_adv.shape)}; expected {tuple(x.shape)}, as x")
        logits, logits_adv, y = predict(model, x), predict(model, x_adv), y.cpu()
        energies = {
            "marginal": marginal_energy(logits),
            "marginal_adv": marginal_energy(logits_adv),
            "joint": joint_energy(logits, y),
            "gap": energy_gap(logits, logits_adv),
            "joint_gap": energy_gap(logits, logits_adv, y),
        }
        found: dict[str, float] = {}
        for name, e in energies.items():
            found[f"{name}.mean"] = float(e.mean())
            found |= {f"{name}.q{round(100 * q):02d}": float(e.quantile(q)) for q in QUANTILES}
        self.history.append(found)
        return found

    def overfitting_epoch(self, window: int) -> int | None:
        """The first update after which the size of the mean gap E(x) - E(x_adv) grows ``window`` times in a row.

        The late divergence of the two energies on training samples goes with robust overfitting (section 3). None where
        there is no such update. Raises InputError unless ``window`` >= 1.
        """
        if window < 1:
            raise InputError(f"EnergyTracker: window={window}; expected at least 1")
        sizes = [abs(h["gap.mean"]) for h in self.history]
        grows = [b > a for a, b in pairwise(sizes)]
        return next((k for k in range(len(grows) - window + 1) if all(grows[k : k + window])), None)
