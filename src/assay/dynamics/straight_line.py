"""The straight way to a target, as far as a model's confidence lasts: what level set traversal is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.balls import wide
from assay.dynamics.star_shape import linear_path_confidence
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH


@dataclass(frozen=True)
class StraightLine:
    """``x`` (n, ...), the points reached; ``way`` (n,), how much of the way that is, in [0, 1]; ``conf`` (n,) there."""

    x: Tensor
    way: Float[Tensor, " n"]
    conf: Float[Tensor, " n"]


def straight_line(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    target: Float[Tensor, "n ..."],
    *,
    conf_drop: float = 0.2,
    points: int = 400,
    batch_size: int = BATCH,
) -> StraightLine:
    """The last of ``points`` equal steps from ``x`` to ``target`` before p_y falls by ``conf_drop`` or more.

    Arguments and errors as ``linear_path_confidence``. Later points at which the confidence is back do not count.
    """
    if points < 1 or not 0 < conf_drop <= 1:
        raise InputError(f"straight_line: points={points}, conf_drop={conf_drop}; expected >= 1 and in (0, 1]")
    path = linear_path_confidence(model, x, target, y, points + 1, batch_size=batch_size)
    held = (path[:, :1] - path < conf_drop).long().cumprod(1).sum(1) - 1
    way = held.to(x) / points
    return StraightLine(torch.lerp(x, target, wide(way, x)), way, path.gather(1, held[:, None])[:, 0].to(x.device))
