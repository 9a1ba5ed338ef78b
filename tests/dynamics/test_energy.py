from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data import load_data
from assay.dynamics import EnergyTracker, energy_gap, joint_energy, marginal_energy
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded


class Shift(nn.Module):
    """Logits (level of the image, 0): E(x) falls as the image brightens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x.flatten(1).mean(1)
        return torch.stack((level, torch.zeros_like(level)), 1)


def test_gaps_are_differences_of_energies_and_their_difference_that_of_cross_entropies() -> None:
    g = torch.Generator().manual_seed(0)
    z, z_adv = (torch.randn(20, 4, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.randint(4, (20,), generator=g)
    torch.testing.assert_close(energy_gap(z, z_adv), marginal_energy(z) - marginal_energy(z_adv))
    torch.testing.assert_close(energy_gap(z, z_adv, y), joint_energy(z, y) - joint_energy(z_adv, y))
    gained = F.cross_entropy(z, y, reduction="none") - F.cross_entropy(z_adv, y, reduction="none")
    torch.testing.assert_close(energy_gap(z, z_adv, y) - energy_gap(z, z_adv), gained)


def test_tracker_on_a_network() -> None:
    data = load_data("digits:train")[:40]
    with seeded(0, "test"):
        model = MLP().train()
    x_adv = (data.x + 0.1).clamp(0, 1)
    tracker = EnergyTracker()
    found = tracker.update(model, data.x, x_adv, data.y)
    assert model.training
    energy = -predict(model, data.x).logsumexp(1)
    assert found["marginal.mean"] == pytest.approx(float(energy.mean()))
    assert found["marginal.q95"] == pytest.approx(float(energy.quantile(0.95)))
    assert found["gap.mean"] == pytest.approx(found["marginal.mean"] - found["marginal_adv.mean"], abs=1e-5)
    assert tracker.history == [found]


def test_epoch_from_which_the_gap_grows() -> None:
    tracker, x, y = EnergyTracker(), torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    for size in (0.5, 0.2, 0.3, 0.2, 0.4, 0.6, 0.8):
        tracker.update(Shift(), x, x + size, y)
    assert [tracker.overfitting_epoch(w) for w in (1, 2, 3, 4, 9)] == [1, 3, 3, None, None]
    with pytest.raises(InputError, match="window"):
        tracker.overfitting_epoch(0)


def test_bad_input() -> None:
    z, x, y = torch.zeros(3, 2), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    for bad in ((z[0], z), (z, z[:2]), (z, z, y + 2), (z, z + torch.inf)):
        with pytest.raises(InputError):
            energy_gap(*bad)
    with pytest.raises(InputError, match="x_adv has shape"):
        EnergyTracker().update(Shift(), x, x[:, :3], y)
    with pytest.raises(InputError, match="labels"):
        EnergyTracker().update(Shift(), x, x, y - 1)
