"""The diverse inputs iterative fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import wide
from assay.attacks.engine import Climb
from assay.attacks.mifgsm import MIFGSM
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DIFGSM(MIFGSM):
    """Gradients of randomly shrunk and padded images (Xie et al., 2019, arXiv:1803.06978, section 3.3, eq. 5).

    With probability ``diversity`` a sample is shrunk to a random share of its size in [``shrink``, 1) (bilinearly)
    and put at a random place in a frame of zeros of the old size, anew at each step. ``momentum=1`` is M-DI2-FGSM. x is
    images (n, c, h, w). Ranges and errors: see Attack; options: see MIFGSM.
    """

    views: ClassVar[bool] = True

    momentum: float = 0.0
    diversity: float = 0.5
    shrink: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.diversity <= 1 and 0 < self.shrink <= 1):
            self.refuse("diversity, shrink", (self.diversity, self.shrink), "a probability, and a share in (0, 1]")

    def view(self, run: Climb) -> Float[Tensor, "n ..."]:
        z = run.z
        if z.dim() != 4:
            raise InputError(
                f"{type(self).__name__}: a sample has shape {tuple(z.shape[1:])}; expected an image (c, h, w)"
            )
        u = run.draws.uniform(4).to(z)
        share = self.shrink + (1 - self.shrink) * u[:, 1]
        centre = (2 * u[:, 2:] - 1) * (1 - share)[:, None]  # (x, y), in the frame's coordinates from -1 to 1
        # Where each place of the frame lies in the image: theirs is (place - centre) / share.
        turn = torch.eye(2).to(z) / share[:, None, None]
        theta = torch.cat((turn, (-centre / share[:, None])[..., None]), 2)
        grid = F.affine_grid(theta, list(z.shape), align_corners=False)
        framed = F.grid_sample(z, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return torch.where(wide(u[:, 0] < self.diversity, z), framed, z)
