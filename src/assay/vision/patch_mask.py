"""Where a patch of a physical size lies on a sign."""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError

INCH = 25.4  # mm


def patch_mask(spec: str, obj_px: tuple[int, int], obj_mm: tuple[float, float]) -> Float[Tensor, "1 h w"]:
    """1 where the patch is on a canonical sign of ``obj_px`` (h, w) pixels that measures ``obj_mm`` (h, w).

    ``spec`` is "<n>_<H>x<W>_<location>": n = 1 or 2 patches of H x W inches at "bottom", "top", "middle", or as many mm
    below the middle; the second is the first's mirror image above the middle. Sizes in pixels are rounded once and
    kept; the authors' code halves them first, so that an odd size loses a pixel. The paper's sizes are 1_10x10_bottom,
    1_10x20_bottom and 2_10x20_bottom. Raises InputError for another form, a patch that does not lie on the sign, and
    sides of sign and pixels whose ratios differ by more than 0.01.
    """
    found = re.fullmatch(r"([12])_(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)_(bottom|top|middle|[-+]?\d+(?:\.\d+)?)", spec)
    if found is None:
        raise InputError(f"patch {spec!r}: expected <1|2>_<H>x<W>_<bottom|top|middle|mm>, such as 1_10x10_bottom")
    (h, w), (h_mm, w_mm) = obj_px, obj_mm
    if min(h, w) < 1 or min(h_mm, w_mm) <= 0 or abs(h / w - h_mm / w_mm) > 1e-2:
        raise InputError(f"patch {spec!r}: a sign of {obj_px} pixels and {obj_mm} mm; expected sides in one ratio")
    tall, wide = float(found[2]) * INCH, float(found[3]) * INCH
    rows, columns = round(tall / h_mm * h), round(wide / w_mm * w)
    shift = {"bottom": (h_mm - tall) / 2, "top": (tall - h_mm) / 2, "middle": 0.0}
    below = shift[found[4]] if found[4] in shift else float(found[4])
    top, left = round((h - rows) / 2 + below / h_mm * h), (w - columns) // 2
    if min(rows, columns) < 1 or min(top, left) < 0 or top + rows > h or left + columns > w:
        given = f"{rows} x {columns} pixels at row {top}, column {left}"
        raise InputError(f"patch {spec!r}: {given} of a sign of {h} x {w}; expected a patch that lies on the sign")
    mask = torch.zeros(1, h, w)
    mask[:, top : top + rows, left : left + columns] = 1
    return torch.maximum(mask, mask.flip(1)) if found[1] == "2" else mask
