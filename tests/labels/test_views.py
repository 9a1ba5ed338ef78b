"""Exact checks of the weak and strong views."""

from __future__ import annotations

import pytest
import torch

from assay.labels import Cutout, RandAugment, Shift
from assay.labels.rand_augment import OPERATIONS
from assay.runtime.errors import InputError
from assay.runtime.random import Draws

VIEWS = (Shift(), Shift(share=0.25, flip=True), Cutout(), RandAugment())


def images(n: int = 40, c: int = 3, side: int = 12) -> torch.Tensor:
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(0))


def draws(index: torch.Tensor) -> Draws:
    return Draws(3, "views", index)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_range_and_one_stream_a_sample(view: object, channels: int) -> None:
    x, index = images(c=channels), torch.arange(40)
    kept = x.clone()
    whole = view(x, draws(index))  # type: ignore[operator]
    assert whole.shape == x.shape
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert torch.equal(x, kept)
    assert torch.allclose(whole[7:20], view(x[7:20], draws(index[7:20])), atol=1e-6)  # type: ignore[operator]
    assert not torch.equal(whole, x)


def test_shift_moves_whole_pixels_and_reflects() -> None:
    x = images(200, 1, 8)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    windows = torch.stack([padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)])
    found = Shift(share=0.125)(x, draws(torch.arange(200)))
    match = (windows == found).flatten(2).all(2)
    assert match.any(0).all()
    assert match.any(1).all()  # every shift occurs
    both = Shift(share=0.0, flip=True)(x, draws(torch.arange(200)))
    mirrored = (both == x.flip(3)).flatten(1).all(1)
    assert (mirrored | (both == x).flatten(1).all(1)).all()
    assert 60 < int(mirrored.sum()) < 140


def test_cutout_covers_a_square_around_its_centre() -> None:
    x = torch.zeros(300, 2, 12, 12)
    hole = Cutout(share=0.5, fill=1.0)(x, draws(torch.arange(300)))
    assert torch.equal(hole[:, 0], hole[:, 1])
    rows, columns = hole[:, 0].amax(2).sum(1), hole[:, 0].amax(1).sum(1)
    assert torch.equal(hole[:, 0].sum((1, 2)), rows * columns)
    assert int(rows.max()) == 6
    assert int(rows.min()) == 3  # centred on the border


def test_operations_in_closed_form() -> None:
    x = images()
    at = {name: lambda s, f=f: f(x, torch.full((40, 1, 1, 1), s)) for name, f in OPERATIONS.items()}
    assert len(OPERATIONS) == 14
    assert torch.equal(at["identity"](0.3), x)
    assert torch.allclose(at["brightness"](0.5), 0.5 * x)
    assert torch.allclose(at["solarize"](0.0), 1 - x)
    assert torch.allclose(at["posterize"](1.0), (255 * x).round() / 255)
    assert len(at["posterize"](0.0).unique()) == 16
    stretched = at["autocontrast"](0.0)
    assert torch.allclose(stretched.amin((2, 3)), torch.zeros(40, 3), atol=1e-6)
    assert torch.allclose(stretched.amax((2, 3)), torch.ones(40, 3), atol=1e-6)
    level = at["equalize"](0.0)[0, 0].flatten().sort().values
    assert torch.allclose(level, torch.arange(144) / 143, atol=1e-5)
    for name in ("rotate", "shear-x", "shear-y", "translate-x", "translate-y"):
        assert torch.allclose(at[name](0.5), x, atol=1e-5)  # the middle of the range moves nothing
    moved = OPERATIONS["translate-x"](images(2, 1, 10), torch.full((2, 1, 1, 1), 5 / 6))  # 0.2 of the side
    assert torch.allclose(moved[..., :8], images(2, 1, 10)[..., 2:], atol=1e-5)


def test_color_leaves_one_channel_alone() -> None:
    x = images(c=1)
    assert torch.allclose(OPERATIONS["color"](x, torch.full((40, 1, 1, 1), 0.1)), x)


def test_bounds_are_the_range_of_values() -> None:
    x = images()
    inner = RandAugment()(x, draws(torch.arange(40)))
    outer = RandAugment(bounds=(-1.0, 3.0))(4 * x - 1, draws(torch.arange(40)))
    assert torch.allclose(outer, 4 * inner - 1, atol=1e-4)


@pytest.mark.parametrize("view", VIEWS)
def test_bad_input(view: object) -> None:
    with pytest.raises(InputError):
        view(torch.rand(4, 9), draws(torch.arange(4)))  # type: ignore[operator]
    with pytest.raises(InputError):
        view(images(4), draws(torch.arange(3)))  # type: ignore[operator]


def test_values_out_of_bounds_are_refused() -> None:
    with pytest.raises(InputError, match="spans"):
        RandAugment()(2 * images(4), draws(torch.arange(4)))


@pytest.mark.parametrize(
    "make",
    [lambda: Shift(share=1.0), lambda: Cutout(share=0.0), lambda: RandAugment(ops=-1), lambda: RandAugment(hole=2.0)],
)
def test_bad_options(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
