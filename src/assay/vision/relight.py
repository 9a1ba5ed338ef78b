"""Relighting: what light a sign stands in, fitted from its pixels, and applied to a patch."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.vision.color_spaces import (
    from_lalphabeta,
    lightness,
    saturation_value,
    to_lalphabeta,
    with_lightness,
    with_saturation_value,
)

Relight = Literal["none", "percentile", "percentile-hsv", "percentile-lab", "polynomial", "color-transfer"]
CHANNELS = {"none": 1, "percentile": 1, "percentile-hsv": 2, "percentile-lab": 1, "polynomial": 3, "color-transfer": 3}


def check_relight(method: str) -> None:
    """InputError unless ``method`` is one of relighting."""
    if method not in CHANNELS:
        raise unknown("relighting", str(method), CHANNELS)


def relight(
    patch: Float[Tensor, "m 3 h w"], coeffs: Float[Tensor, "m c 2"], method: Relight = "percentile"
) -> Float[Tensor, "m 3 h w"]:
    """``patch`` in the light of ``coeffs`` (m, c, 2), each (alpha, beta): clip(alpha v + beta, 0, 1).

    v is RGB ("percentile", one pair; "polynomial", one a channel), S and V of HSV ("percentile-hsv"), L of CIE Lab
    ("percentile-lab"), or l, alpha and beta ("color-transfer"); "none" leaves the patch (Hingun et al., 2022,
    arXiv:2212.05680).
    """
    check_relight(method)
    if coeffs.shape != (len(patch), CHANNELS[method], 2) or not torch.isfinite(coeffs).all():
        expected = (len(patch), CHANNELS[method], 2)
        raise InputError(f"relight {method}: coefficients {tuple(coeffs.shape)}; expected finite {expected}")
    if method == "none":
        return patch
    alpha, beta = coeffs.to(patch)[..., None, None].unbind(2)
    if method == "color-transfer":
        out = from_lalphabeta(alpha * to_lalphabeta(patch) + beta)
    elif method == "percentile-hsv":
        out = with_saturation_value(patch, (alpha * saturation_value(patch) + beta).clamp(0, 1))
    elif method == "percentile-lab":
        out = with_lightness(patch, (alpha * lightness(patch) + beta).clamp(0, 1))
    else:
        out = alpha * patch + beta
    return out.clamp(0, 1)


def fit_relight(
    img: Float[Tensor, "m 3 h w"],
    obj_mask: Bool[Tensor, "m 1 h w"],
    method: Relight = "percentile",
    *,
    q: float = 0.2,
    syn: Float[Tensor, "m 3 h w"] | None = None,
) -> Float[Tensor, "m c 2"]:
    """The light of each sign, from its pixels: those of ``img`` in [0, 1] where ``obj_mask`` (m or 1, 1, h, w) is.

    - "percentile", "-hsv", "-lab": beta is the q-quantile of the values (all channels of RGB together), alpha the
      (1 - q)-quantile less beta, so that 0 becomes dark and 1 bright on the real sign;
    - "polynomial": least squares of degree 1 from the canonical sign ``syn``, laid over ``img``, to the real one, for
      each channel over the 1 - q of its pixels that differ least; a sign of one color has alpha 0;
    - "color-transfer": mean and standard deviation in l, alpha and beta are those of the real sign (Reinhard et al.,
      2001). Here the l-alpha-beta of the publication; the authors' code multiplies by the transposed color matrices.

    Raises InputError for unusable images, for an object without pixels, and where ``syn`` is needed and absent.
    """
    where = "fit_relight"
    check_relight(method)
    check_inputs(where, img, None, (0.0, 1.0))
    if img.dim() != 4 or img.shape[1] != 3:
        raise InputError(f"{where}: images have shape {tuple(img.shape)}; expected (m, 3, h, w)")
    if obj_mask.dtype != torch.bool or obj_mask.shape not in {(k, 1, *img.shape[2:]) for k in (1, len(img))}:
        given = f"{obj_mask.dtype} {tuple(obj_mask.shape)}"
        raise InputError(
            f"{where}: mask is {given}; expected bool ({len(img)} or 1, 1, {img.shape[2]}, {img.shape[3]})"
        )
    mask = obj_mask.expand(len(img), -1, -1, -1)
    if (mask.flatten(1).sum(1) < 2).any():
        raise InputError(f"{where}: an object has fewer than two pixels; expected a mask that covers it")
    if not 0 <= q < 0.5:
        raise InputError(f"{where}: q={q}; expected a share in [0, 0.5)")
    if method == "none":
        return img.new_tensor((1.0, 0.0)).expand(len(img), 1, 2)
    if method.startswith("percentile"):
        return _percentiles(img, mask, method, q)
    if syn is None or syn.shape[1:] != img.shape[1:] or len(syn) not in (1, len(img)):
        raise InputError(f"{where}: {method} needs the canonical sign, syn; expected it in the shape of the images")
    syn = syn.to(img).expand_as(img)
    return _polynomial(img, syn, mask, q) if method == "polynomial" else _transfer(img, syn, mask)


def _percentiles(img: Tensor, mask: Tensor, method: str, q: float) -> Tensor:
    values = {"percentile-hsv": saturation_value, "percentile-lab": lightness}.get(method, lambda x: x)(img)
    values = values.masked_fill(~mask, torch.nan)
    values = values.flatten(1)[:, None] if method == "percentile" else values.flatten(2)
    low, high = torch.nanquantile(values, values.new_tensor((q, 1 - q)), dim=2)
    return torch.stack((high - low, low), 2)


def _polynomial(img: Tensor, syn: Tensor, mask: Tensor, q: float) -> Tensor:
    real, made, inside = img.flatten(2), syn.flatten(2), mask.flatten(2)
    off = (real - made).abs().masked_fill(~inside, torch.inf)
    kept = off.argsort(dim=2, stable=True).argsort(dim=2) < ((1 - q) * inside.sum(2, keepdim=True)).round()
    w = kept.to(real) / kept.sum(2, keepdim=True)
    mean_x, mean_y = (w * made).sum(2, keepdim=True), (w * real).sum(2, keepdim=True)
    x = made - mean_x
    spread = (w * x.square()).sum(2)
    flat = spread <= 1e-12
    alpha = torch.where(flat, 0.0, (w * x * (real - mean_y)).sum(2) / spread.clamp_min(1e-12))
    return torch.stack((alpha, mean_y[..., 0] - alpha * mean_x[..., 0]), 2)


def _transfer(img: Tensor, syn: Tensor, mask: Tensor) -> Tensor:
    w = mask.flatten(2).to(img)
    n = w.sum(2)

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        values = to_lalphabeta(x).flatten(2)
        mean = (w * values).sum(2) / n
        return mean, ((w * (values - mean[..., None]).square()).sum(2) / (n - 1)).sqrt()

    (mean, std), (mean_syn, std_syn) = moments(img), moments(syn)
    alpha = std / std_syn.clamp_min(1e-6)
    return torch.stack((alpha, mean - alpha * mean_syn), 2)
