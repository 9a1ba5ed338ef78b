"""Rules for the elementwise operators other than ReLU, from their relaxations."""

# ruff: noqa: E741
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.certify.bounds import unary
from assay.certify.bounds.interval import Interval
from assay.certify.bounds.registry import Call, register
from assay.certify.bounds.relaxation import Unary
from assay.runtime.errors import InputError

aten = torch.ops.aten
SELU = {"alpha": 1.6732632423543772, "scale": 1.0507009873554805}  # Klambauer et al., 2017, arXiv:1706.02515, eq. 2


class Cancelling(Unary):
    """GELU adds 1 to an error function near -1, and so rounds relative to its input."""

    def rounding(self, call: Call, out: Interval) -> Tensor:
        return out.magnitude + 0.1 * call.inputs[0].magnitude


def _here(function: Callable[..., Any]) -> Callable[[Tensor, Tensor, Call], Any]:
    """A relaxation or range as a rule takes it: with the operator's further arguments, and errors that say where."""

    def run(l: Tensor, u: Tensor, call: Call) -> Any:
        try:
            return call.once(str(id(function)), lambda: function(l, u, *call.args[1:], **call.kwargs))
        except InputError as error:
            raise InputError(f"{error} (at {call.place!r})") from error

    return run


def _known(name: str, rule: type[Unary] = Unary, **options: Any) -> Unary:
    relax, interval = getattr(unary, f"relax_{name}"), getattr(unary, f"interval_{name}")
    return rule(_here(partial(relax, **options)), _here(partial(interval, **options)))


def _clamp(limits: Callable[..., tuple[float | None, float | None]]) -> Unary:
    """min(max(x, low), high), with the limits taken from the operator's further arguments."""
    return Unary(
        _here(lambda l, u, *args: unary.relax_clamp(l, u, *limits(*args))),
        _here(lambda l, u, *args: unary.interval_clamp(l, u, *limits(*args))),
        rounds=False,
    )


register(_known("sigmoid"), aten.sigmoid.default)
register(_known("tanh"), aten.tanh.default)
register(_known("erf"), aten.erf.default)
register(_known("gelu", Cancelling), aten.gelu.default)
register(_known("silu"), aten.silu.default)
register(_known("exp"), aten.exp.default)
register(_known("square"), aten.square.default)
register(_known("abs"), aten.abs.default)
register(_known("log"), aten.log.default)
register(_known("sqrt"), aten.sqrt.default)
register(_known("rsqrt"), aten.rsqrt.default)
register(_known("reciprocal"), aten.reciprocal.default)
register(_known("power"), aten.pow.Tensor_Scalar)
register(_known("leaky_relu"), aten.leaky_relu.default)
register(_known("elu"), aten.elu.default)
register(_known("elu", Unary, **SELU), aten.selu.default)
register(_known("softplus"), aten.softplus.default)
register(_known("sin"), aten.sin.default)
register(_known("cos"), aten.cos.default)
register(_clamp(lambda low=None, high=None: (low, high)), aten.clamp.default)
register(_clamp(lambda low: (low, None)), aten.clamp_min.default)
register(_clamp(lambda high: (None, high)), aten.clamp_max.default)
register(_clamp(lambda low=-1.0, high=1.0: (low, high)), aten.hardtanh.default)
register(_clamp(lambda: (0.0, 6.0)), aten.relu6.default)
