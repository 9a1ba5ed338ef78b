"""Inputs that belong to no class of the given data, in its shape and bounds: photographs, shuffled pixels, noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.data import Data
from assay.runtime.errors import InputError
from assay.runtime.random import Draws

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def _scaled(like: Data, unit: Tensor) -> Tensor:
    """From [0, 1] to the data's bounds."""
    low, high = like.bounds
    return (low + (high - low) * unit).clamp(low, high)


def _draws(like: Data, n: int | None, seed: int, stream: str) -> tuple[int, Draws]:
    n = len(like) if n is None else n
    if n < 1:
        raise InputError(f"{stream}: n is {n}; expected at least 1")
    return n, Draws(seed, stream, torch.arange(n))


def photo_patches(like: Data, n: int | None = None, *, seed: int = 0) -> Float[Tensor, "n ch h w"]:
    """Random crops, at native resolution, of the two photographs that scikit-learn bundles (china, flower; 427 x 640).

    Grey for one channel, colour for three; InputError for other shapes or crops larger than the photographs. Crop k is
    a function of (seed, k).
    """
    shape = like.shape
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] > 427 or shape[2] > 640:
        raise InputError(f"photo patches: samples of shape {shape}; expected (1 or 3, h <= 427, w <= 640)")
    from sklearn.datasets import load_sample_images

    photos = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float() / 255
    if shape[0] == 1:
        photos = (photos * torch.tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    _, draws = _draws(like, n, seed, "photo-patches")
    height, width = photos.shape[2:]
    which = draws.integers(2)
    top, left = draws.integers(height - shape[1] + 1), draws.integers(width - shape[2] + 1)
    rows = top[:, None] + torch.arange(shape[1])
    columns = left[:, None] + torch.arange(shape[2])
    patches = photos[which[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return _scaled(like, patches.permute(0, 3, 1, 2).contiguous())


def pixel_shuffled(like: Data, n: int | None = None, *, seed: int = 0) -> Float[Tensor, "n ..."]:
    """The first ``n`` inputs (all by default) with their positions permuted, a permutation for each sample.

    The channels of a pixel stay together; inputs that are not (ch, h, w) have all entries permuted. The permutation is
    a function of (seed, the sample's index).
    """
    n = len(like) if n is None else n
    if not 1 <= n <= len(like):
        raise InputError(f"pixel-shuffled: n is {n}; expected 1 to {len(like)}, the size of {like.name}")
    x = like.x[:n]
    flat = x.flatten(2) if x.dim() == 4 else x.flatten(1)[:, None]
    order = Draws(seed, "pixel-shuffled", like.index[:n]).uniform(flat.shape[2]).argsort(1)
    return flat.gather(2, order[:, None].expand_as(flat)).reshape(x.shape)


def uniform_noise(like: Data, n: int | None = None, *, seed: int = 0) -> Float[Tensor, "n ..."]:
    """Independent uniform noise over the bounds."""
    _, draws = _draws(like, n, seed, "uniform-noise")
    return _scaled(like, draws.uniform(*like.shape))


def gaussian_noise(like: Data, n: int | None = None, *, seed: int = 0) -> Float[Tensor, "n ..."]:
    """Independent normal noise about the middle of the bounds, deviation a quarter of their range, clipped."""
    _, draws = _draws(like, n, seed, "gaussian-noise")
    return _scaled(like, 0.5 + 0.25 * draws.normal(*like.shape))


OUT_SETS: dict[str, Callable[..., Tensor]] = {
    "photo-patches": photo_patches,
    "pixel-shuffled": pixel_shuffled,
    "uniform-noise": uniform_noise,
    "gaussian-noise": gaussian_noise,
}
