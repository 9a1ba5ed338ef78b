"""The shams of manif-smc change one step, and the network's representation has the norm that is said."""

from __future__ import annotations

import pytest
import torch

from assay.papers.manif_smc import METHOD, ROLES, UNTRAINED, _method, _net, _triplet


def test_untrained_leaves_out_the_steps_alone() -> None:
    real, sham = vars(METHOD), vars(_method(UNTRAINED))
    assert {k for k in real if real[k] != sham[k]} == {"smc_steps"}
    assert vars(_method(ROLES)) == real


def test_swapped_roles_exchange_positive_and_negative() -> None:
    c, p, e = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    margin = torch.full((7,), 0.2)
    assert torch.equal(_method(ROLES).loss(c, p, e, margin), METHOD.loss(c, e, p, margin))
    assert _triplet(None, 3) < 1e-14
    assert _triplet(ROLES, 3) > 0.01


def test_the_representation_has_norm_two() -> None:
    net = _net((1, 8, 8), 0)
    z = net[:-1](torch.rand(5, 1, 8, 8))  # type: ignore[index]
    assert z.norm(dim=1).tolist() == pytest.approx([2.0] * 5)
    assert net.get_submodule("representation") is net[-2]  # type: ignore[index]
