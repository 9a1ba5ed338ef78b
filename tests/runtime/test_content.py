"""Draws that stay with an input."""

import torch

from assay.runtime.content import content_draws, content_index
from assay.runtime.random import torch_rng


def test_names_follow_from_the_rows_and_not_from_their_places() -> None:
    x = torch.rand(500, 3, 4, 4, generator=torch_rng(0, "x"))
    names = content_index(x)
    assert names.dtype == torch.int64
    assert int(names.min()) >= 0
    assert len(names.unique()) == 500
    assert torch.equal(content_index(x[100:120]), names[100:120])
    assert torch.equal(content_index(x.flip(0)), names.flip(0))
    other = x.clone()
    other[7, 0, 0, 0] += 2**-20
    assert (content_index(other) != names).nonzero().flatten().tolist() == [7]


def test_zero_has_one_name_and_swapped_entries_have_another() -> None:
    assert torch.equal(content_index(torch.zeros(1, 4)), content_index(-torch.zeros(1, 4)))
    assert len(content_index(torch.eye(16)).unique()) == 16


def test_streams_of_different_inputs_are_uncorrelated() -> None:
    x = torch.arange(2000.0)[:, None] / 2000
    z = content_draws(0, "z", x).normal(4)
    assert float(z.mean().abs()) < 0.05
    assert float(z.T.corrcoef().fill_diagonal_(0).abs().max()) < 0.1
    assert float((z[1:] * z[:-1]).mean().abs()) < 0.05
    assert torch.equal(content_draws(0, "z", x[5:9]).normal(4), z[5:9])
    assert not torch.equal(content_draws(1, "z", x).normal(4), z)
