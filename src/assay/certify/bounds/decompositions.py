"""Operators that are bounded as several simpler ones: attention, layer norm, recurrent cells.

Each function takes the operator's arguments and computes it with operators that have rules; the graph is rewritten with
them once, so that every tensor in between gets bounds of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
    scale = (centred.square().mean(dims, keepdim=True) + eps).clamp(min=eps).rsqrt()
    limit = math.sqrt(math.prod(shape))
    out = (centred * scale).clamp(-limit, limit)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


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


def lstm_cell(
    x: Tensor,
    state: list[Tensor],
    w_x: Tensor,
    w_h: Tensor,
    b_x: Tensor | None = None,
    b_h: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of torch's LSTM: gates in the order input, forget, cell, output; gives (h, c)."""
    h, c = state
    size = h.shape[-1]
    gates = F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h)
    i, f, g, o = (gates[..., k * size : (k + 1) * size] for k in range(4))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm(
    x: Tensor,
    state: list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Layers and directions of cells, unrolled over time."""
    if train and dropout > 0:
        raise InputError("bounds: an LSTM with dropout in training mode; expected evaluation mode")
    if len(state) != 2 or len(params) != num_layers * (1 + bidirectional) * (4 if has_biases else 2):
        raise InputError("bounds: an LSTM with projections; expected proj_size=0")
    x = x.transpose(0, 1) if batch_first else x
    each, last_h, last_c = (4 if has_biases else 2), [], []
    for layer in range(num_layers):
        sides = []
        for back in (False, True) if bidirectional else (False,):
            k = layer * (1 + bidirectional) + back
            weights, (h, c), out = params[k * each : (k + 1) * each], (state[0][k], state[1][k]), []
            for t in reversed(range(len(x))) if back else range(len(x)):
                h, c = lstm_cell(x[t], [h, c], *weights)
                out.append(h)
            sides.append(torch.stack(out[::-1] if back else out))
            last_h.append(h)
            last_c.append(c)
        x = torch.cat(sides, -1) if bidirectional else sides[0]
    return x.transpose(0, 1) if batch_first else x, torch.stack(last_h), torch.stack(last_c)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.layer_norm.default: layer_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten.lstm.input: lstm,
    aten.lstm_cell.default: lstm_cell,
}
