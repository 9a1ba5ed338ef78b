"""Fake quantisation: a network that computes on a coarse grid while its parameters stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of, evaluating

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Range = tuple[Tensor, Tensor]
Ranges = Mapping[str, Range]
Hook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]
WEIGHTS = ("per_layer_symmetric", "per_layer_asymmetric", "per_channel_symmetric", "per_channel_asymmetric")
ACTIVATIONS = ("per_layer_asymmetric", "per_layer_symmetric")
GUARD = 1e-14  # keeps the scale finite where a range is a point
FEWEST, MOST = 2, 16


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x + 0.5).floor_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@dataclass(frozen=True, kw_only=True)
class FakeQuantizer:
    """Rounding to a grid of 2^bits values, seen through by gradients (Krishnamoorthi, 2018, arXiv:1806.08342).

    As Hong et al. (2021, arXiv:2110.13541, section 3 and the official code) use it: a symmetric grid has the scale
    s = (2^(bits-1) - 1) / max|w| and gives clamp(round(w s), -2^(bits-1), 2^(bits-1) - 1) / s; an asymmetric one has
    s = (2^bits - 1) / (max - min), the zero z = round(min s), and gives (clamp(round(a s - z), 0, 2^bits - 1) + z) / s.
    Ties are rounded up. ``weight`` is "per_layer_" or "per_channel_" (a grid for each output channel) and "symmetric"
    or "asymmetric"; ``activation``, of the inputs of each convolution and linear layer, "per_layer_asymmetric",
    "per_layer_symmetric", or None: left as they are. Biases and norms stay as they are. Gradients pass rounding
    unchanged and stop where it is clamped; ranges carry none. ``bits`` in 2..16. Raises InputError for other options.
    """

    kind: ClassVar[str] = "function"

    bits: int = 8
    weight: str = "per_layer_symmetric"
    activation: str | None = "per_layer_asymmetric"

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not FEWEST <= self.bits <= MOST:
            raise InputError(f"FakeQuantizer: bits={self.bits}; expected an integer from {FEWEST} to {MOST}")
        if self.weight not in WEIGHTS:
            raise unknown("weight scheme of FakeQuantizer", self.weight, WEIGHTS)
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise unknown("activation scheme of FakeQuantizer", self.activation, ACTIVATIONS)

    def round(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """floor(x + 1/2), with the gradient of the identity: the straight-through estimate."""
        return _StraightThrough.apply(x)

    def symmetric(self, x: Float[Tensor, ...], top: Tensor) -> Float[Tensor, ...]:
        """``x`` on the grid that is symmetric about 0 and reaches to ``top`` >= 0 (broadcast)."""
        limit = 2 ** (self.bits - 1) - 1
        scale = limit / (top + GUARD)
        return self.round(x * scale).clamp(-limit - 1, limit) / scale

    def asymmetric(self, x: Float[Tensor, ...], low: Tensor, high: Tensor) -> Float[Tensor, ...]:
        """``x`` on the grid from ``low`` to ``high`` (broadcast), moved so that 0 lies on it."""
        levels = 2**self.bits - 1
        scale = levels / (high - low + GUARD)
        zero = (low * scale).round()
        return (self.round(x * scale - zero).clamp(0, levels) + zero) / scale

    def weights(self, w: Float[Tensor, "out ..."]) -> Float[Tensor, "out ..."]:
        """The weights of a layer on their grid; its range is that of these weights."""
        axes = tuple(range(1 if "channel" in self.weight else 0, w.dim()))
        low, high = w.detach().amin(axes, keepdim=True), w.detach().amax(axes, keepdim=True)
        return self._on_grid(w, self.weight, low, high)

    def activations(self, a: Float[Tensor, "n ..."], span: Range | None = None) -> Float[Tensor, "n ..."]:
        """The inputs of a layer on their grid; its range is ``span``, or where that is None that of this batch."""
        if self.activation is None:
            return a
        low, high = (a.detach().amin(), a.detach().amax()) if span is None else span
        return self._on_grid(a, self.activation, low, high)

    def _on_grid(self, x: Tensor, scheme: str, low: Tensor, high: Tensor) -> Tensor:
        if scheme.endswith("_symmetric"):
            return self.symmetric(x, torch.maximum(low.abs(), high.abs()))
        return self.asymmetric(x, low, high)

    @contextmanager
    def applied(self, model: nn.Module, ranges: Ranges | None = None) -> Iterator[nn.Module]:
        """Inside the block ``model`` computes quantised, and gradients reach its own parameters.

        ``ranges`` are those of the layers' inputs by name (see ``activation_ranges``); without them each batch has its
        own, and results depend on the batch. Parameters are read on entry: do not update them inside. Raises
        InputError for a model without convolutional or linear layer, and where ranges lack one.
        """
        layers = quantisable("FakeQuantizer", model, ranges)
        with ExitStack() as stack:
            for name, layer in layers.items():
                # An attribute of the instance hides the parameter of this name, which stays registered.
                vars(layer)["weight"] = self.weights(layer.weight)
                stack.callback(vars(layer).pop, "weight")
                handle = layer.register_forward_pre_hook(self.hook(None if ranges is None else ranges[name]))
                stack.callback(handle.remove)
            yield model

    def hook(self, span: Range | None) -> Hook:
        """The forward pre-hook that quantises a layer's input."""

        def quantise(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self.activations(inputs[0], span), *inputs[1:])

        return quantise


def quantisable(where: str, model: nn.Module, ranges: Ranges | None = None) -> dict[str, Layer]:
    """Convolutional and linear layers by name; InputError where there is none, or where ``ranges`` lack one."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    if not found:
        raise InputError(f"{where}: the model has no convolutional or linear layer to quantise; expected at least one")
    missing = [name for name in found if ranges is not None and name not in ranges]
    if missing:
        raise InputError(f"{where}: ranges lack the layer {missing[0]!r}; expected one range for each layer")
    return found


@contextmanager
def quantized(
    model: nn.Module,
    bits: int = 8,
    *,
    weight: str = "per_layer_symmetric",
    activation: str | None = "per_layer_asymmetric",
    ranges: Ranges | None = None,
) -> Iterator[nn.Module]:
    """Inside the block ``model`` computes with fake quantisation; schemes and errors: FakeQuantizer."""
    with FakeQuantizer(bits=bits, weight=weight, activation=activation).applied(model, ranges):
        yield model


def fake_quantize(
    model: nn.Module,
    bits: int = 8,
    *,
    weight: str = "per_layer_symmetric",
    activation: str | None = "per_layer_asymmetric",
    ranges: Ranges | None = None,
) -> nn.Module:
    """A copy in evaluation mode with weights on their grid, whose layers quantise their inputs (see FakeQuantizer)."""
    quantizer, found = FakeQuantizer(bits=bits, weight=weight, activation=activation), copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, layer in quantisable("fake_quantize", found, ranges).items():
            layer.weight.copy_(quantizer.weights(layer.weight))
            layer.register_forward_pre_hook(quantizer.hook(None if ranges is None else ranges[name]))
    return found


def activation_ranges(model: nn.Module, x: Float[Tensor, "n ..."], *, batch_size: int = BATCH) -> dict[str, Range]:
    """The least and the largest input of each convolutional and linear layer over all of ``x``, in evaluation mode."""
    check_inputs("activation_ranges", x)
    ranges: dict[str, Range] = {}

    def keep(name: str) -> Hook:
        def look(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            low, high = inputs[0].amin(), inputs[0].amax()
            was = ranges.get(name, (low, high))
            ranges[name] = torch.minimum(was[0], low), torch.maximum(was[1], high)
            return inputs

        return look

    with ExitStack() as stack, evaluating(model), torch.no_grad():
        for name, layer in quantisable("activation_ranges", model).items():
            stack.callback(layer.register_forward_pre_hook(keep(name)).remove)
        for start in range(0, len(x), batch_size):
            model(x[start : start + batch_size].to(device_of(model)))
    return ranges
