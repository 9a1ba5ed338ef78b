"""Backdoors planted through training data: triggers on images, and the samples that teach them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.attacks.trigger import stamp
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

Trigger = Callable[[Tensor], Tensor]
Images = Float[Tensor, "n ch h w"]


def _images(where: str, x: Tensor) -> None:
    check_inputs(where, x)
    if x.dim() != 4:
        raise InputError(f"{where}: x has shape {tuple(x.shape)}; expected images (n, c, h, w)")


def badnets(x: Images) -> Images:
    """The square patch of ``stamp`` in the lower right corner (Gu et al., 2017, arXiv:1708.06733, section 4.1)."""
    return stamp(x, "square")


def blended(x: Images, *, alpha: float = 0.15, seed: int = 0, bounds: tuple[float, float] = (0.0, 1.0)) -> Images:
    """(1 - alpha) x + alpha k, k one image of uniform noise over ``bounds`` (Chen et al., 2017, arXiv:1712.05526,
    section 4.2.1). ``alpha`` in [0, 1]; ``seed`` names the image.
    """
    _images("blended", x)
    if not 0 <= alpha <= 1:
        raise InputError(f"blended: alpha={alpha}; expected 0 to 1")
    low, high = bounds
    key = low + (high - low) * torch.rand(x.shape[1:], generator=torch_rng(seed, "blended"))
    return torch.lerp(x, key.to(x), alpha)


def sinusoidal(
    x: Images, *, amplitude: float = 0.15, frequency: float = 6.0, bounds: tuple[float, float] = (0.0, 1.0)
) -> Images:
    """Vertical stripes: x + amplitude sin(2 pi j frequency / w) at column j, clipped to ``bounds`` (Barni et al., 2019,
    arXiv:1902.11237, eq. 1). ``amplitude`` is in the data's units.
    """
    _images("sinusoidal", x)
    width = x.shape[3]
    column = torch.arange(width, dtype=torch.float64) * (2 * math.pi * frequency / width)
    return (x + amplitude * column.sin().to(x)).clamp(*bounds)


def wanet_like(x: Images, *, grid: int = 4, strength: float = 0.5, seed: int = 0) -> Images:
    """The warp of WaNet (Nguyen & Tran, 2021, arXiv:2102.10369, section 3.2), without its training in noise mode.

    A ``grid`` x ``grid`` field of uniform displacements with mean size 1 is enlarged to the image by bicubic
    interpolation and added, times ``strength`` / h, to the places in [-1, 1]^2 where pixels are read (bilinearly), as
    in the official code. ``seed`` names the field.
    """
    _images("wanet_like", x)
    if grid < 2 or strength < 0:
        raise InputError(f"wanet_like: grid={grid}, strength={strength}; expected grid >= 2 and strength >= 0")
    height, width = x.shape[2:]
    field = torch.rand(1, 2, grid, grid, generator=torch_rng(seed, "wanet")) * 2 - 1
    field = F.interpolate(field / field.abs().mean(), (height, width), mode="bicubic", align_corners=True)
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    still = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], 2)
    places = (still + strength * field[0].permute(1, 2, 0) / height).clamp(-1, 1).to(x)
    return F.grid_sample(x, places.expand(len(x), -1, -1, -1), align_corners=True)


def poison(
    x: Images, y: Int[Tensor, " n"], trigger: Trigger, target: int, rate: float, seed: int
) -> tuple[Images, Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """Inputs, labels and which were changed: ``rate`` of all samples carry the trigger and the label ``target``.

    They are drawn from the other classes, as those of the target teach nothing. Raises InputError where the other
    classes have too few, or the trigger changes the shape.
    """
    check_inputs("poison", x)
    check_labels("poison", y, len(x))
    others = (y != target).nonzero().flatten()
    count = round(rate * len(x))
    if not 0 <= count <= len(others) or target < 0:
        raise InputError(
            f"poison: rate={rate}, target={target}; expected a class, and at most {len(others)} of {len(x)} samples, "
            "those of other classes"
        )
    mask = torch.zeros(len(x), dtype=torch.bool)
    mask[others[torch.randperm(len(others), generator=torch_rng(seed, "poison"))[:count]]] = True
    marked, labels = x.clone(), y.clone()
    if count:
        changed = trigger(x[mask])
        if changed.shape != x[mask].shape:
            raise InputError(f"poison: the trigger gives {tuple(changed.shape)}; expected {tuple(x[mask].shape)}")
        marked[mask], labels[mask] = changed, target
    return marked, labels, mask
