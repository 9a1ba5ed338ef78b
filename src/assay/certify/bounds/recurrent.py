"""Recurrent cells and layers, unrolled over time into operators that have rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.runtime.errors import InputError

aten = torch.ops.aten
Cell = Callable[..., tuple[Tensor, ...]]  # (x, state, *weights) -> state, whose first tensor is the output


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
    i, f, g, o = (F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(
    x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None, b_h: Tensor | None = None
) -> Tensor:
    """One step of torch's GRU (Cho et al., 2014, arXiv:1406.1078, eq. 5-8): gates in the order reset, update, new.

    n + z (h - n) is written (1 - z) n + z h: h - n would join two tensors that bounds know apart.
    """
    xr, xz, xn = F.linear(x, w_x, b_x).chunk(3, -1)
    hr, hz, hn = F.linear(h, w_h, b_h).chunk(3, -1)
    z = torch.sigmoid(xz + hz)
    return (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h


def plain_cell(act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """One step of torch's RNN with an activation."""

    def cell(
        x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None, b_h: Tensor | None = None
    ) -> Tensor:
        return act(F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h))

    return cell


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
) -> tuple[Tensor, ...]:
    """torch's LSTM: its output, the last h and the last c."""
    if len(state) != 2 or len(params) != num_layers * (1 + bidirectional) * (4 if has_biases else 2):
        raise InputError("bounds: an LSTM with projections; expected proj_size=0")
    options = (has_biases, num_layers, dropout, train, bidirectional, batch_first)
    return _unrolled(lambda x, state, *w: lstm_cell(x, list(state), *w), x, state, params, *options)


def single(cell: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """A layer of cells whose only state is their output: its output and the last one."""

    def layer(x: Tensor, h: Tensor, params: list[Tensor], *options: Any) -> tuple[Tensor, ...]:
        return _unrolled(lambda x, state, *w: (cell(x, state[0], *w),), x, [h], params, *options)

    return layer


def _unrolled(
    cell: Cell,
    x: Tensor,
    state: list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Layers and directions of cells over time: the output, and the last of each part of the state."""
    if train and dropout > 0:
        raise InputError("bounds: a recurrent layer with dropout in training mode; expected evaluation mode")
    x = x.transpose(0, 1) if batch_first else x
    each = 4 if has_biases else 2
    last: list[list[Tensor]] = [[] for _ in state]
    for layer in range(num_layers):
        sides = []
        for back in (False, True) if bidirectional else (False,):
            k = layer * (1 + bidirectional) + back
            weights, now, out = params[k * each : (k + 1) * each], tuple(s[k] for s in state), []
            for t in reversed(range(len(x))) if back else range(len(x)):
                now = cell(x[t], now, *weights)
                out.append(now[0])
            sides.append(torch.stack(out[::-1] if back else out))
            for kept, value in zip(last, now, strict=True):
                kept.append(value)
        x = torch.cat(sides, -1) if bidirectional else sides[0]
    return x.transpose(0, 1) if batch_first else x, *(torch.stack(kept) for kept in last)


RECURRENT: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: lstm,
    aten.lstm_cell.default: lstm_cell,
    aten.gru.input: single(gru_cell),
    aten.gru_cell.default: gru_cell,
    aten.rnn_tanh.input: single(plain_cell(torch.tanh)),
    aten.rnn_tanh_cell.default: plain_cell(torch.tanh),
    aten.rnn_relu.input: single(plain_cell(torch.relu)),
    aten.rnn_relu_cell.default: plain_cell(torch.relu),
}
