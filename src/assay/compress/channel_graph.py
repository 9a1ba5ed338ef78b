"""Which channels of a network stand or fall together, and how they are taken out."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from assay.runtime.errors import InputError

LAYERS = (nn.Conv2d, nn.Linear)
BY_CHANNEL = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Hardswish, nn.Identity,
    nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
FUNCTIONS: set[Callable[..., Any]] = {
    F.relu, F.gelu, F.silu, F.leaky_relu, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.dropout, torch.relu,
    torch.tanh, torch.sigmoid,
}  # fmt: skip
POOLINGS: set[Callable[..., Any]] = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d}
SUMS: set[Callable[..., Any]] = {operator.add, operator.iadd, torch.add}


@dataclass(eq=False)
class Space:
    """Channels that have to be kept or removed as one, because layers share them.

    ``producers`` write them, ``norms`` scale them and ``consumers`` read them, each with the number of neighbouring
    inputs that hold one channel (height times width after a flatten, else 1). ``fixed``: something reads or writes
    them that has no channels to remove. ``last``: they lie on the last axis of more than two, as a linear layer writes
    them, else on the second.
    """

    channels: int
    producers: list[str] = field(default_factory=list)
    norms: dict[str, int] = field(default_factory=dict)
    consumers: dict[str, int] = field(default_factory=dict)
    fixed: bool = False
    last: bool = False

    @property
    def prunable(self) -> bool:
        """Written and read by layers only."""
        return bool(self.producers) and bool(self.consumers) and not self.fixed


Value = tuple[Space, int]


class _Walk:
    """One pass over the traced graph; ``values`` maps each node to its space and the inputs that hold a channel."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.modules = dict(graph.named_modules())
        self.calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
        self.values: dict[fx.Node, Value] = {}
        for node in graph.graph.nodes:
            found = self.visit(node)
            if found is not None:
                self.values[node] = found

    def visit(self, node: fx.Node) -> Value | None:
        reads = [n for n in node.all_input_nodes if n in self.values]
        if node.op == "call_module" and isinstance(node.target, str) and reads:
            return self.module(node, node.target, reads[0])
        if node.op == "call_function" and node.target in FUNCTIONS:
            last = bool(reads) and self.values[reads[0]][0].last
            if not (last and node.target in POOLINGS):
                return self.values[reads[0]] if reads else None
        if node.op == "call_function" and node.target in SUMS and len(reads) == 2:
            return self.union(*reads)
        flat = node.target == "flatten" or node.target is torch.flatten
        if flat and reads and node.args[1:] == (1,):
            return self.flattened(node, reads[0])
        for read in reads:
            self.values[read][0].fixed = True
        return self.opaque(node)

    def module(self, node: fx.Node, name: str, read: fx.Node) -> Value | None:
        module, (space, per) = self.modules[name], self.values[read]
        once, wide = self.calls[name] == 1, len(_shape(read) or ()) > 2
        linear = isinstance(module, nn.Linear)
        fits = space.last == (linear and wide)  # they lie on the axis that the module takes for its channels
        if isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1 and once:
            if fits:
                space.consumers[name] = per
            space.fixed |= not fits
            return Space(module.weight.shape[0], [name], last=linear and wide), 1
        if isinstance(module, NORMS) and once and fits:
            space.norms[name] = per
            return space, per
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return self.flattened(node, read)
        if isinstance(module, BY_CHANNEL) and not (space.last and isinstance(module, POOLS)):
            return space, per
        space.fixed = True
        return self.opaque(node)

    def opaque(self, node: fx.Node) -> Value | None:
        """Channels that nothing known has written."""
        shape = _shape(node)
        return (Space(shape[1], fixed=True), 1) if shape is not None and len(shape) > 1 else None

    def flattened(self, node: fx.Node, read: fx.Node) -> Value | None:
        before, after, (space, per) = _shape(read), _shape(node), self.values[read]
        if before is None or after is None or per != 1 or space.last:
            space.fixed = True
            return self.opaque(node)
        return space, after[1] // space.channels

    def union(self, a: fx.Node, b: fx.Node) -> Value | None:
        (first, per), (second, other) = self.values[a], self.values[b]
        if first is second:
            return first, per
        if (per, first.channels, first.last) != (other, second.channels, second.last):
            first.fixed = second.fixed = True
            return self.opaque(a)
        first.producers += second.producers
        first.norms |= second.norms
        first.consumers |= second.consumers
        first.fixed |= second.fixed
        self.values = {n: (first if s is second else s, p) for n, (s, p) in self.values.items()}
        return first, per


def _shape(node: fx.Node) -> torch.Size | None:
    meta = node.meta.get("tensor_meta")
    return getattr(meta, "shape", None)


def channel_spaces(model: nn.Module, x: Tensor) -> list[Space]:
    """The sets of channels of ``model`` that can be pruned, in the order in which layers write them.

    ``x`` (1, ...) is an input. Convolutions (one group) and linear layers write and read channels; activations, pooling
    and batch norm keep them; a sum unites those of its two terms, so that a residual stage is one set. What the output
    or anything else reads stays as it is, and so does what a layer that is called twice or a norm of another axis
    reads. Raises InputError where the model cannot be traced or has no such layer, and for ``x`` of another type.
    """
    if not any(isinstance(m, LAYERS) for m in model.modules()):
        raise InputError("channel_spaces: the model has no convolutional or linear layer to prune")
    kind = next(p.dtype for p in model.parameters() if p.is_floating_point())
    if x.dtype != kind:
        raise InputError(f"channel_spaces: samples of {x.dtype} for weights of {kind}; expected one type")
    try:
        graph = fx.symbolic_trace(copy.deepcopy(model).eval())
    except Exception as error:
        raise InputError(
            f"channel_spaces: the model cannot be traced ({error}); expected static control flow"
        ) from error
    ShapeProp(graph).propagate(x)
    spaces = [space for space, _ in _Walk(graph).values.values()]
    return [s for s in dict.fromkeys(spaces) if s.prunable]


@torch.no_grad()
def keep_channels(model: nn.Module, space: Space, kept: Int[Tensor, " k"]) -> None:
    """Take all channels of ``space`` but ``kept`` out of ``model``, in place: its tensors become smaller."""
    modules = dict(model.named_modules())
    for name in space.producers:
        layer: Any = modules[name]
        layer.weight = nn.Parameter(layer.weight[kept].clone(), layer.weight.requires_grad)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[kept].clone(), layer.bias.requires_grad)
        setattr(layer, "out_channels" if isinstance(layer, nn.Conv2d) else "out_features", len(kept))
    for name, per in space.norms.items():
        norm: Any = modules[name]
        rows = blocks(kept, per)
        norm.num_features = len(rows)
        for key in ("weight", "bias"):
            if getattr(norm, key) is not None:
                setattr(norm, key, nn.Parameter(getattr(norm, key)[rows].clone(), getattr(norm, key).requires_grad))
        for key in ("running_mean", "running_var"):
            if getattr(norm, key) is not None:
                setattr(norm, key, getattr(norm, key)[rows].clone())
    for name, per in space.consumers.items():
        layer = modules[name]
        columns = blocks(kept, per)
        layer.weight = nn.Parameter(layer.weight[:, columns].clone(), layer.weight.requires_grad)
        setattr(layer, "in_channels" if isinstance(layer, nn.Conv2d) else "in_features", len(columns))


def blocks(channels: Int[Tensor, " k"], per: int) -> Int[Tensor, " k*per"]:
    """The positions of channels that hold ``per`` neighbouring entries each."""
    return (channels[:, None] * per + torch.arange(per, device=channels.device)).flatten()
