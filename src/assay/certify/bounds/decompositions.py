"""Operators that are bounded as several simpler ones: norms, attention, and what is a step away from a rule.

Each function takes the operator's arguments and computes it with operators that have rules; the graph is rewritten with
them once, so that every tensor in between gets bounds of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.certify.bounds.extremes import EXTREMES
from assay.certify.bounds.recurrent import RECURRENT
from assay.runtime.errors import InputError

aten = torch.ops.aten
MASKED = -1e5  # added to the scores that attention leaves out: their exponentials are zero in every precision


def layer_norm(
    x: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Mean, variance and reciprocal root (Shi et al., 2020, arXiv:2002.06622, section 3.3).

    The variance is at least 0, and a normalised element at most sqrt(size) however small that is: the two clamps change
    no value, but tell the bounds so.
    """
    dims = list(range(-len(shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    limit = math.sqrt(math.prod(shape))
    out = (centred * _inverse_root(centred, dims, eps)).clamp(-limit, limit)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _inverse_root(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """1 / sqrt(mean of x^2 + eps)."""
    return (x.square().mean(dims, keepdim=True) + eps).clamp(min=eps).rsqrt()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k' / sqrt(d) + mask) v (Vaswani et al., 2017, arXiv:1706.03762, eq. 1)."""
    if dropout > 0 or enable_gqa:
        raise InputError("bounds: attention with dropout or grouped queries; expected evaluation mode and equal heads")
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        left_out = torch.where(mask, 0.0, MASKED) if mask.dtype == torch.bool else mask.clamp(min=MASKED)
        scores = scores + left_out.to(scores.dtype)
    return scores.softmax(-1) @ value


def rms_norm(x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Division by the root of the mean square (Zhang and Sennrich, 2019, arXiv:1910.07467, eq. 4)."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    limit = math.sqrt(math.prod(shape))
    out = (x * _inverse_root(x, list(range(-len(shape), 0)), eps)).clamp(-limit, limit)
    return out if weight is None else out * weight


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Layer norm over the elements of each group of channels (Wu and He, 2018, arXiv:1803.08494, eq. 7)."""
    parts = x.unflatten(1, (groups, -1))
    out = layer_norm(parts, list(parts.shape[2:]), eps=eps).reshape(x.shape)
    sides = [1] * (x.dim() - 2)
    out = out if weight is None else out * weight.reshape(-1, *sides)
    return out if bias is None else out + bias.reshape(-1, *sides)


def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Group norm with a group for each channel."""
    if not use_input_stats:
        raise InputError("bounds: instance norm with running statistics; expected track_running_stats=False")
    return group_norm(x, x.shape[1], weight, bias, eps)


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm in evaluation mode, as the exporter writes it once it has rewritten anything: a scale and a shift."""
    sides = [1] * (x.dim() - 2)
    scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return x * scale.reshape(-1, *sides) + shift.reshape(-1, *sides), x.new_zeros(0), x.new_zeros(0)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """w x + (1 - w) relu(x): the triangle of relu then bounds it with nothing lost for w in [0, 1]."""
    weight = weight.reshape(-1, *[1] * (x.dim() - 2)) if x.dim() > 1 else weight
    return weight * x + (1 - weight) * x.relu()


def log_sum_exp(x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    """x_0 - log_softmax(x)_0 along one axis, which loses nothing."""
    if len(dim) != 1:
        raise InputError(f"bounds: logsumexp over axes {dim}; expected one")
    out = x.narrow(dim[0], 0, 1) - x.log_softmax(dim[0]).narrow(dim[0], 0, 1)
    return out if keepdim else out.squeeze(dim[0])


def vector_norm(
    x: Tensor, ord: float = 2, dim: list[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """The l2 norm: the root of a sum of squares."""
    if ord != 2 or dim is None or dtype is not None:
        raise InputError(f"bounds: a norm of order {ord} over axes {dim}; expected order 2 over given axes")
    return x.square().sum(dim, keepdim=keepdim).sqrt()


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.layer_norm.default: layer_norm,
    aten.rms_norm.default: rms_norm,
    aten.group_norm.default: group_norm,
    aten._native_batch_norm_legit_no_training.default: batch_norm,
    aten.instance_norm.default: instance_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten.logsumexp.default: log_sum_exp,
    aten.linalg_vector_norm.default: vector_norm,
    aten.prelu.default: prelu,
    aten.hardsigmoid.default: lambda x: (x + 3).clamp(0, 6) / 6,
    aten.log1p.default: lambda x: (1 + x).log(),
    aten.expm1.default: lambda x: x.exp() - 1,
    aten.exp2.default: lambda x: (x * math.log(2)).exp(),
    aten.celu.default: lambda x, alpha=1.0: aten.elu.default(x, alpha, 1.0, 1 / alpha),
    aten.glu.default: lambda x, dim=-1: x.chunk(2, dim)[0] * torch.sigmoid(x.chunk(2, dim)[1]),
    **RECURRENT,
    **EXTREMES,
}
