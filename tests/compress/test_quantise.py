"""Quantisation and sizes: the exact grid, the error bound, the bits counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.compress import MagnitudePruning, Quantisation, size_of
from assay.compress.base import grid_bits
from assay.compress.quantise import quantise
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng


@given(bits=st.integers(2, 16), seed=st.integers(0, 1000), size=st.floats(1e-6, 1e6))
@settings(max_examples=60)
def test_every_weight_is_on_the_grid_within_half_a_step(bits: int, seed: int, size: float) -> None:
    weight = size * torch.randn(5, 3, 3, 3, generator=torch_rng(seed, "w"))
    rounded, scale = quantise(weight, bits)
    k = (rounded / scale).round()
    assert torch.equal((k * scale).float(), rounded)
    assert k.abs().amax() == 2 ** (bits - 1) - 1
    assert scale.shape == (5, 1, 1, 1)
    assert ((rounded.double() - weight).abs() <= scale / 2 + torch.finfo(torch.float32).eps * weight.abs()).all()
    assert torch.allclose(rounded.abs().amax((1, 2, 3)), weight.abs().amax((1, 2, 3)), rtol=1e-6)
    assert grid_bits(rounded) is not None
    assert grid_bits(rounded) <= bits


def test_three_bits_by_hand() -> None:
    rounded, scale = quantise(torch.tensor([[3.0, -1.4, 0.6, 0.4], [0.0, 0.0, 0.0, 0.0]]), 3)
    assert rounded.tolist() == [[3.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert scale[:, 0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_small_weights_and_types_keep_the_error_bound(kind: torch.dtype) -> None:
    layer = nn.Linear(16, 3, dtype=kind)
    tiny = torch.finfo(kind).smallest_normal * torch.finfo(kind).eps
    layer.weight.data = torch.randn(3, 16, generator=torch_rng(0, "w")).to(kind)
    layer.weight.data[0] = torch.tensor([tiny] + [0.0] * 15, dtype=torch.float64).to(kind)
    for bits in (2, 8, 16):
        found = Quantisation(bits=bits).compress(layer, None, seed=0).weight.detach().double()
        w = layer.weight.detach().double()
        step = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((found - w).abs() <= step / 2 + torch.finfo(kind).eps * w.abs().amax(1, keepdim=True) / 2 + tiny).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
def test_the_size_counts_the_bits_of_the_grid(bits: int) -> None:
    with seeded(0, "test"):
        model = nn.Linear(50, 40)
    small = Quantisation(bits=bits).compress(model, None, seed=0)
    codes = min(2000 * bits, 2000 + int(small.weight.count_nonzero()) * bits)
    assert size_of(small).bits == codes + 40 * 32 + 40 * 32
    assert size_of(small).parameters == 2040
    assert size_of(model).bits == 2040 * 32
    assert size_of(model).bytes == 2040 * 4
    assert torch.equal(small.bias, model.bias)


def test_the_size_counts_zeros_in_a_bitmap() -> None:
    with seeded(0, "test"):
        model = nn.Linear(50, 40, bias=False)
    pruned = MagnitudePruning(sparsity=0.9).compress(model, None, seed=0)
    size = size_of(pruned)
    assert (size.parameters, size.nonzero, size.bits) == (2000, 200, 2000 + 200 * 32)
    assert size.sparsity == pytest.approx(0.9)
    both = Quantisation(bits=4).compress(pruned, None, seed=0)
    assert size_of(both).bits <= 2000 + 200 * 4 + 40 * 32


def test_plain_weights_lie_on_no_grid() -> None:
    weight = torch.randn(10, 20, generator=torch_rng(0, "w"))
    assert grid_bits(weight) is None
    assert grid_bits(weight.half()) is None
    assert grid_bits(torch.zeros(3, 4)) == 2


@pytest.mark.parametrize("bits", [1, 17, 4.0])
def test_bad_bits(bits: int) -> None:
    with pytest.raises(InputError, match="bits"):
        Quantisation(bits=bits)
