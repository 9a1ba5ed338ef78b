"""ResUpNet: the official sizes, chrominance that is kept, and stems."""

from __future__ import annotations

import pytest
import torch

from assay.data import Data, rgb_to_ycbcr
from assay.defenses import ResUpNet
from assay.defenses.resupnet import ResUpNetMap
from assay.nets import ResNet
from assay.runtime.errors import InputError


def small(stem: str = "unshuffle", side: int = 16, channels: int = 3) -> ResUpNetMap:
    torch.manual_seed(0)
    return ResUpNetMap(ResNet((channels, side, side), 10, 4, (1, 1, 1, 1)), (channels, side, side), stem).eval()


def test_chrominance_is_kept_where_nothing_is_clipped() -> None:
    purify, x = small(), 0.4 + 0.2 * torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.nn.init.zeros_(purify.last.rise[2].weight)
    torch.nn.init.constant_(purify.last.rise[2].bias, 0.5)
    before, after = rgb_to_ycbcr(x), rgb_to_ycbcr(purify(x))
    torch.testing.assert_close(after[:, 1:], before[:, 1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(after[:, :1], torch.full_like(after[:, :1], 0.5), rtol=0, atol=1e-4)


def test_the_encoder_is_frozen_and_stays_in_evaluation_mode() -> None:
    purify = small().train()
    assert purify.training
    assert not purify.encoder.training
    assert not any(p.requires_grad for p in purify.encoder.parameters())
    assert any(p.requires_grad for p in purify.rises.parameters())


def test_each_rise_meets_the_stage_of_its_size() -> None:
    # 8x8 input: stages of 8, 4, 2 and 1 pixels of widths 4, 8, 16, 32; each map is joined by what was raised to it.
    purify = small(side=8)
    assert [r.rise[0].in_channels for r in purify.rises] == [64, 32, 16]
    assert purify.last.rise[0].in_channels == 8
    assert purify(torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)


def test_the_view_stem_needs_sizes_that_divide() -> None:
    with pytest.raises(InputError, match="view"):
        small("view", side=16)
    # 24x24 over the deepest map of 3x3: 576 pixels into 36 maps of 4x4, then 3x3.
    purify = small("view", side=24)
    assert purify.stem(torch.rand(1, 36, 4, 4)).shape[2:] == (3, 3)
    assert purify(torch.rand(2, 3, 24, 24)).shape == (2, 3, 24, 24)


def test_slopes_pass_through_it() -> None:
    x = torch.rand(2, 1, 16, 16, requires_grad=True)
    (slope,) = torch.autograd.grad(small(channels=1)(x).sum(), x)
    assert (slope != 0).any()


def test_bad_shapes() -> None:
    y = torch.arange(4) % 2
    for x in (torch.rand(4, 2, 8, 8), torch.rand(4, 1, 8, 16), torch.rand(4, 1, 12, 12), torch.rand(4, 64)):
        with pytest.raises(InputError, match="square images"):
            ResUpNet().fit(Data(x, y, ("a", "b")), seed=0)


def test_a_last_batch_of_one_small_image() -> None:
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = Data(x, torch.arange(5) % 2, ("a", "b"))
    method = ResUpNet(width=2, epochs=1, encoder_epochs=1, batch_size=4)
    for part in (data, data[:1]):
        assert torch.isfinite(method.fit(part, seed=0)(x)).all()


def test_an_unknown_stem() -> None:
    with pytest.raises(InputError, match="stem"):
        ResUpNet(stem="patch")  # type: ignore[arg-type]
