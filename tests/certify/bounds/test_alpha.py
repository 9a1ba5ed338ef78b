"""alpha-CROWN: inside CROWN, sound, exact on a hand-worked example."""

import pytest
import torch
from torch import nn

from assay.certify.bounds import LpBall
from assay.certify.bounds.alpha import Alpha, tuned_lower
from assay.certify.bounds.graph import graph_of
from assay.certify.bounds.module import BoundedModule
from assay.nets import MLP
from assay.runtime.errors import InputError


@pytest.mark.parametrize("inner", [False, True])
def test_between_crown_and_the_truth(inner: bool) -> None:
    torch.manual_seed(0)
    model, x, eps = MLP((5,), 3, (16, 16, 16)).double(), torch.rand(4, 5).double(), 0.2
    for p in model.parameters():
        p.data *= 2
    crown, _ = BoundedModule(model, x).compute_bounds(x, LpBall(eps=eps))
    found = tuned_lower(graph_of(model, x), model, x, LpBall(eps=eps), None, Alpha(inner=inner))
    assert (found >= crown).all()
    assert (found > crown + 1e-3).float().mean() > 0.8
    for k in range(300):
        step = torch.rand_like(x) * 2 - 1
        assert (model(x + eps * (step.sign() if k % 2 else step)) >= found - 1e-12).all()
    assert all(p.grad is None for p in model.parameters())


def test_inner_bounds_help() -> None:
    torch.manual_seed(0)
    model, x = MLP((5,), 3, (16, 16, 16)).double(), torch.rand(4, 5).double()
    found = [tuned_lower(graph_of(model, x), model, x, LpBall(eps=0.5), None, Alpha(inner=k)).mean() for k in (0, 1)]
    assert found[1] > found[0]


def test_one_neuron_by_hand() -> None:
    """relu(h) - h / 4 with h in [-1, 2]: adaptive slope 1 gives 3/4 h >= -3/4, slope 1/4 gives the exact minimum 0."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu() - x / 4

    x = torch.tensor([[0.5]]).double()
    crown, _ = BoundedModule(Net(), x).compute_bounds(x, LpBall(eps=1.5))
    assert crown.item() == pytest.approx(-0.75)
    found = tuned_lower(graph_of(Net(), x), Net(), x, LpBall(eps=1.5), None, Alpha(steps=60))
    assert found.item() == pytest.approx(0.0, abs=0.02)
    assert found.item() <= 1e-12


def test_bad_options() -> None:
    with pytest.raises(InputError, match="lr=0"):
        Alpha(lr=0)
