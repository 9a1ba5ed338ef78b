"""Fake quantisation against torch's own, and what it leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.compress import FakeQuantizer, activation_ranges, fake_quantize, quantized
from assay.nets import MLP, ResNet, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded

bits_ = st.integers(2, 12)
seeds = st.integers(0, 10_000)
TIE = 1e-3


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(mine: Tensor, theirs: Tensor, steps: Tensor) -> None:
    """Equal where ``steps``, the values in steps of the grid, are not next to a tie: at nearly all of them."""
    sure = (steps - steps.floor() - 0.5).abs() > TIE
    assert sure.float().mean() > 0.9
    torch.testing.assert_close(mine[sure], theirs[sure], rtol=1e-4, atol=1e-5)


@given(bits=bits_, seed=seeds)
@settings(max_examples=30)
def test_symmetric_weights_are_torchs(bits: int, seed: int) -> None:
    w, limit = drawn(seed, 6, 5, 3), 2 ** (bits - 1) - 1
    step = w.abs().max() / limit
    theirs = torch.fake_quantize_per_tensor_affine(w, float(step), 0, -limit - 1, limit)
    same(FakeQuantizer(bits=bits).weights(w), theirs, w / step)
    steps = w.flatten(1).abs().amax(1) / limit
    theirs = torch.fake_quantize_per_channel_affine(w, steps, torch.zeros(6, dtype=torch.int32), 0, -limit - 1, limit)
    same(FakeQuantizer(bits=bits, weight="per_channel_symmetric").weights(w), theirs, w / steps[:, None, None])


@given(bits=bits_, seed=seeds, shift=st.floats(-0.5, 0.5))
@settings(max_examples=30)
def test_asymmetric_activations_are_torchs_with_their_gradient(bits: int, seed: int, shift: float) -> None:
    a, weigh = (drawn(seed, 8, 7) + shift).requires_grad_(), drawn(seed + 1, 8, 7)
    low, high = a.detach().min() * 0.7, a.detach().max() * 0.7
    step = (high - low) / (2**bits - 1)
    zero = -(low / step).round()
    theirs = torch.fake_quantize_per_tensor_affine(a, float(step), int(zero), 0, 2**bits - 1)
    mine = FakeQuantizer(bits=bits).activations(a, (low, high))
    same(mine.detach(), theirs.detach(), a.detach() / step)
    slopes = [torch.autograd.grad((weigh * out).sum(), a)[0] for out in (mine, theirs)]
    same(slopes[0], slopes[1], a.detach() / step)
    assert 0 < (slopes[0] == 0).sum() < a.numel()


def test_ties_are_rounded_up() -> None:
    w = torch.tensor([[-3.0, -1.5, -0.5, 0.5, 1.5, 2.5]])
    assert FakeQuantizer(bits=3).weights(w).tolist() == [[-3.0, -1.0, 0.0, 1.0, 2.0, 3.0]]


def test_asymmetric_weights_lie_on_their_grid_and_keep_the_ends() -> None:
    w = drawn(3, 4, 50) + 2
    found = FakeQuantizer(bits=3, weight="per_channel_asymmetric").weights(w)
    assert all(len(row.unique()) <= 8 for row in found)
    step = (w.amax(1) - w.amin(1)) / 7
    assert ((found - w).abs().amax(1) <= step / 2 * 2.001).all()  # half a step, and half for the zero


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_a_range_that_is_a_point_stays_where_it_is(value: float) -> None:
    a = torch.full((4, 4), value)
    assert torch.allclose(FakeQuantizer(bits=4).activations(a), a, atol=1e-5)
    assert torch.allclose(FakeQuantizer(bits=4).weights(a), a, atol=1e-5)


@pytest.mark.parametrize("make", [MLP, SmallCNN, lambda: ResNet((1, 8, 8), width=4)])
def test_sixteen_bits_are_nearly_the_network_and_two_are_not(make: Callable[[], nn.Module]) -> None:
    with seeded(0, "net"):
        net = make().eval()
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = predict(net, x)
    with quantized(net, 16):
        assert (predict(net, x) - whole).abs().max() < 1e-3
    with quantized(net, 2):
        assert (predict(net, x) - whole).abs().max() > 1e-2
    assert torch.equal(predict(net, x), whole)


def test_the_block_leaves_nothing_behind_even_after_an_error() -> None:
    with seeded(0, "net"):
        net = SmallCNN(widths=(4,), hidden=8)
    before, names = copy.deepcopy(net.state_dict()), [n for n, _ in net.named_parameters()]
    with quantized(net, 4):
        assert [n for n, _ in net.named_parameters()] == names
    with pytest.raises(RuntimeError), quantized(net, 4):
        net(torch.rand(2, 3))
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert all(isinstance(m.weight, nn.Parameter) for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    assert net.training


def test_gradients_reach_the_networks_own_parameters() -> None:
    with seeded(0, "net"):
        net = MLP(hidden=(16,))
    x = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with quantized(net, 8):
        net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_copy_computes_what_the_block_does() -> None:
    with seeded(0, "net"):
        net = SmallCNN(widths=(4,), hidden=8)
    x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ranges = activation_ranges(net, x)
    options = {"weight": "per_channel_symmetric", "ranges": ranges}
    made = fake_quantize(net, 4, **options)  # type: ignore[arg-type]
    with quantized(net, 4, **options):  # type: ignore[arg-type]
        assert torch.equal(predict(net, x), predict(made, x))
    assert net.training
    assert not made.training
    # With ranges given the batches do not matter; without, they do.
    assert torch.allclose(predict(made, x, batch_size=7), predict(made, x), atol=1e-5)
    loose = fake_quantize(net, 4)
    assert not torch.allclose(predict(loose, x, batch_size=7), predict(loose, x), atol=1e-5)


def test_ranges_are_the_ends_over_all_batches() -> None:
    with seeded(0, "net"):
        net = MLP(hidden=(16,))
    x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = activation_ranges(net, x, batch_size=7)
    hidden = net.body(x)
    assert list(found) == ["body.1", "head"]
    assert [float(v) for v in found["body.1"]] == [float(x.min()), float(x.max())]
    torch.testing.assert_close(torch.stack(found["head"]), torch.stack((hidden.min(), hidden.max())))


def test_activations_may_stay_in_float() -> None:
    a = drawn(0, 5, 5)
    assert FakeQuantizer(bits=2, activation=None).activations(a) is a
    found = FakeQuantizer(bits=2, activation="per_layer_symmetric").activations(a)
    assert len(found.unique()) <= 4


def test_bad_options() -> None:
    for bits in (1, 17, 4.0):
        with pytest.raises(InputError, match="bits"):
            FakeQuantizer(bits=bits)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean"):
        FakeQuantizer(weight="per_layer_symetric")
    with pytest.raises(InputError, match="activation scheme"):
        FakeQuantizer(activation="per_channel_symmetric")
    for block in (quantized(nn.Flatten()), FakeQuantizer().applied(MLP(), {"head": (torch.zeros(()), torch.ones(()))})):
        with pytest.raises(InputError, match="expected"), block:
            pass
    with pytest.raises(InputError, match="no convolutional or linear layer"):
        fake_quantize(nn.Flatten())
    with pytest.raises(InputError, match="finite"):
        activation_ranges(MLP(), torch.full((2, 1, 8, 8), torch.nan))
