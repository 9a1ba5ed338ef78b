"""Maps and their likeness, by closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.explain import attribution_iou, attribution_similarity, cam, gradient_saliency
from assay.nets import ResNet, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

X = torch.rand(5, 3, 8, 8, generator=torch_rng(0, "x"), dtype=torch.float64)
Y = torch.arange(5) % 4


def linear() -> nn.Module:
    with seeded(0, "init"):
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()


def stretched(m: torch.Tensor) -> torch.Tensor:
    low, high = m.flatten(1).min(1).values, m.flatten(1).max(1).values
    return (m - low[:, None, None]) / (high - low)[:, None, None]


def test_gradient_saliency_of_a_linear_model() -> None:
    model = linear()
    w = model[1].weight.detach()
    p = model(X).softmax(1)
    slope = (p @ w - w[Y]).view_as(X)  # of -log p_y
    expected = stretched(F.avg_pool2d(slope.abs().amax(1, keepdim=True), 2)[:, 0])
    torch.testing.assert_close(gradient_saliency(model, X, Y, pool=2), expected.detach())
    assert not gradient_saliency(model, X, Y).requires_grad


def test_gradient_saliency_does_not_depend_on_confidence() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), 2))
    maps = []
    for scale in (1.0, 300.0):
        with torch.no_grad():
            model[1].weight.copy_(scale * torch.randn(2, X[0].numel(), generator=torch_rng(0, "w")))
            model[1].bias.zero_()
        maps.append(gradient_saliency(model.to(X), X, model(X).argmax(1), pool=2))
    assert (maps[0].amax((1, 2)) == 1).all()
    torch.testing.assert_close(*maps)


def test_maps_can_be_differentiated_once_more() -> None:
    model = linear()
    z = X[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda at: gradient_saliency(model, at, Y[:1]), (z,))


def test_cam_sums_to_the_logit() -> None:
    with seeded(0, "init"):
        model = ResNet((3, 8, 8), 4, width=4, blocks=(1, 1)).double().eval()
    seen = []
    model.pool.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    logits = model(X)
    raw = torch.einsum("nkhw,nk->nhw", seen[0], model.head.weight[Y])
    torch.testing.assert_close(raw.mean((1, 2)) + model.head.bias[Y], logits.gather(1, Y[:, None])[:, 0])
    torch.testing.assert_close(cam(model, X, Y), stretched(raw))
    hooks = len(model.pool._forward_pre_hooks)
    cam(model, X, Y)
    assert len(model.pool._forward_pre_hooks) == hooks == 1


def test_maps_refuse_other_input() -> None:
    with pytest.raises(InputError, match="global average pool"):
        cam(SmallCNN((3, 8, 8), 4), X.float(), Y)
    with pytest.raises(InputError):
        gradient_saliency(linear(), X.flatten(1), Y)
    with pytest.raises(InputError):
        gradient_saliency(linear(), X, Y, pool=9)
    with pytest.raises(InputError):
        gradient_saliency(linear(), X, Y[:2])


def test_likeness_by_hand() -> None:
    a = torch.tensor([[[0.0, 0.6], [0.8, 1.0]], [[0.0, 0.1], [0.2, 0.3]]])
    b = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.1], [0.2, 0.3]]])
    found = attribution_similarity(a, b, (0.5, 0.9))
    torch.testing.assert_close(found.l1, torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(found.l2, torch.tensor([0.2**0.5, 0.0]))
    torch.testing.assert_close(found.iou, torch.tensor([[2 / 3, 1 / 2], [1.0, 1.0]]))
    assert attribution_iou(a, b).equal(found.iou[:, 0])
    with pytest.raises(InputError, match="at least one"):
        attribution_similarity(a, b, ())
    for other in (b[:1], b * 2, b - 1, b[0], b.long()):
        with pytest.raises(InputError):
            attribution_similarity(a, other)
