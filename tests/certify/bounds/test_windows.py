"""Windows: every step is what the whole maps give."""

import pytest
import torch
import torch.nn.functional as F

from assay.certify.bounds.windows import Windows


@pytest.mark.parametrize("geometry", [(1, 1, 1, 1), (2, 1, 1, 2), (1, 0, 2, 1), (3, 2, 1, 1)])
def test_windows_are_the_whole_maps(geometry: tuple[int, int, int, int]) -> None:
    stride, padding, dilation, groups = geometry
    g = torch.Generator().manual_seed(0)
    maps, weight = torch.randn(2, 4, 9, 8, generator=g), torch.randn(6, 4 // groups, 3, 3, generator=g)
    out, pull = torch.func.vjp(lambda t: F.conv2d(t, weight, None, stride, padding, dilation, groups), maps)
    where = torch.randint(out[0].numel(), (5, 2), generator=g)
    one = Windows.one_hot(out.shape, where, torch.float32)
    dense = torch.zeros(5, 2, out[0].numel()).scatter_(2, where[..., None], 1).reshape(5, *out.shape)
    assert torch.equal(one.dense(), dense)
    assert torch.allclose(one.dot(out), (dense * out).flatten(2).sum(2))
    back = one.through(weight, [stride] * 2, [padding] * 2, [dilation] * 2, groups, (9, 8))
    expected = torch.stack([pull(d)[0] for d in dense])
    assert torch.allclose(back.dense(), expected, atol=1e-5)
    assert torch.allclose(back.dot(maps), (expected * maps).flatten(2).sum(2), atol=1e-4)
    rows = torch.randn(5, 2, 4, 9, 8, generator=g)
    assert torch.allclose(back.dot(rows), (expected * rows).flatten(2).sum(2), atol=1e-4)
    shifted = Windows(back.values[..., :2, :1], back.top + 1, back.left - 2, back.size)
    inside = shifted.having(shifted.values * shifted._places()[2])
    total = back.plus(inside)
    assert total is not None
    assert torch.allclose(total.dense(), back.dense() + inside.dense(), atol=1e-6)
    both = back.joined(-back).dense()
    assert torch.equal(both[5:], -both[:5])
