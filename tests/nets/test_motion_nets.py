"""The networks for motions: shapes, the graphs of the tree, and being rebuilt."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.data import HUMAN
from assay.nets import MotionGRU, SkeletonGCN, TemporalCNN
from assay.nets.motion import _graphs
from assay.runtime.spec import build, spec_of

NETS = [TemporalCNN(), MotionGRU(), SkeletonGCN(HUMAN.parents)]
nets = pytest.mark.parametrize("net", NETS, ids=lambda n: type(n).__name__)


@nets
def test_logits_are_the_head_of_the_body_for_any_number_of_frames(net: nn.Module) -> None:
    for frames in (7, 16):
        x = torch.randn(3, 3, frames, 15, 1, generator=torch.Generator().manual_seed(0))
        net.eval()
        assert net(x).shape == (3, 8)
        torch.testing.assert_close(net(x), net.head(net.body(x)))  # type: ignore[operator]
        torch.testing.assert_close(net(x[1:2]), net(x)[1:2], rtol=0, atol=1e-5)


@nets
def test_a_network_is_rebuilt_from_its_spec(net: nn.Module) -> None:
    spec = spec_of(net)
    assert spec is not None
    again = build(spec.to_dict())
    assert [p.shape for p in again.parameters()] == [p.shape for p in net.parameters()]


def test_the_graph_network_does_not_tell_persons_apart() -> None:
    net = SkeletonGCN(HUMAN.parents).eval()
    x = torch.randn(2, 3, 8, 15, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x.flip(4)), net(x))


def test_graphs_gather_a_joint_its_children_and_its_parent() -> None:
    graphs = _graphs((-1, 0, 0, 1))
    x = torch.tensor([1.0, 2.0, 4.0, 8.0])
    own, children, parent = (x @ g for g in graphs)
    assert own.tolist() == [1, 2, 4, 8]
    assert children.tolist() == [3, 8, 0, 0]  # means over (1, 2), (3,), none, none
    assert parent.tolist() == [0, 1, 1, 2]
