"""ReLU and other piecewise linear activations."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.certify.bounds.registry import Call, register
from assay.certify.bounds.relaxation import Lines, Unary
from assay.runtime.errors import unknown

aten = torch.ops.aten
SLOPES = ("adaptive", "zero", "one", "same")


def relax_relu(l: Tensor, u: Tensor, kind: str = "adaptive", slope: Tensor | None = None) -> Lines:  # noqa: E741
    """The triangle (Xu et al., 2020, arXiv:2002.12920; Zhang et al., 2018, arXiv:1811.00866, section 3.3).

    Where l < 0 < u: above by the chord u / (u - l) (h - l), below by a h with a in [0, 1]: ``slope`` where given, else
    1 where u > -l and 0 otherwise ("adaptive"), 0, 1, or that of the chord ("same"). Exact elsewhere.
    """
    off, on = u <= 0, l >= 0
    upper = torch.where(on, 1.0, torch.where(off, 0.0, u / torch.where(on | off, 1.0, u - l)))
    if slope is not None:
        lower = torch.where(on, 1.0, torch.where(off, 0.0, slope))
    elif kind == "adaptive":
        lower = torch.where(on | (~off & (u > -l)), 1.0, 0.0).to(l)
    elif kind in ("zero", "one"):
        lower = torch.where(on, 1.0, torch.where(off, 0.0, float(kind == "one"))).to(l)
    elif kind == "same":
        lower = upper
    else:
        raise unknown("slope below an unstable ReLU", kind, SLOPES)
    intercept = torch.where(on | off, 0.0, -upper * l)
    return Lines(lower, torch.zeros_like(l), upper, intercept)


def _relu(l: Tensor, u: Tensor, call: Call) -> Lines:  # noqa: E741
    return relax_relu(l, u, call.options.get("relu", "adaptive"), call.slope)


def _crosses(l: Tensor, u: Tensor) -> Tensor:  # noqa: E741
    return (l < 0) & (u > 0)


register(Unary(_relu, bends=_crosses, rounds=False, tunable=True), aten.relu.default)
