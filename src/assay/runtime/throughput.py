"""Switches that make passes cheaper without changing what an audit says, and batches that fit into memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """``precision`` of the passes: "fp32", "tf32" (matrix products and convolutions of CUDA devices that have it) or
    "bf16" (autocast). ``channels_last`` lays images (n, c, h, w) and weights out channels last. ``compile`` applies
    torch.compile, with shapes left open, as attacks drop samples from their batches."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", str(self.precision), PRECISIONS)


class Tuned(nn.Module):
    """``model`` under the switches. A batch (n, ...) that does not fit into memory is cut in halves, again and again
    where need be, and the size that fits is kept for the batches that follow; gradients flow through the pieces, of
    which the backward pass holds one at a time. ``fits`` is that size, None until a batch did not fit; ``find`` looks
    for it ahead. Raises InputError where a single sample does not fit."""

    def __init__(self, model: nn.Module, options: Throughput) -> None:
        super().__init__()
        self.options, self.exact = options, False
        self.fits: int | None = None
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last) if options.channels_last else model  # type: ignore[call-overload]

    @property
    def reduced(self) -> bool:
        """Whether passes are less precise than float32."""
        return self.options.precision != "fp32" and not self.exact

    def forward(self, x: Tensor) -> Tensor:
        while True:
            size = min(self.fits or len(x), len(x))
            try:
                if size == len(x):
                    return self._pass(x)
                return torch.cat([self._piece(part) for part in x.split(size)])
            except RuntimeError as error:
                self._halve(size, error)

    def find(self, x: Tensor, gradient: bool) -> None:
        """Set ``fits`` for batches up to that of ``x`` (n, ...): for a forward pass, and with ``gradient`` for the
        backward pass to the input too, whose lack of memory no later batch can recover from."""
        size = len(x)
        while True:
            part = x[:size].detach().requires_grad_(gradient)
            try:
                with torch.set_grad_enabled(gradient):
                    out = self._pass(part)
                if gradient and out.requires_grad:  # that of a model may depend on its parameters alone, or on nothing
                    torch.autograd.grad(out.sum(), part, allow_unused=True)
                return
            except RuntimeError as error:
                self._halve(size, error)
            size = self.fits or size

    def _halve(self, size: int, error: RuntimeError) -> None:
        if not _out_of_memory(error):
            raise error
        if size <= 1:
            raise InputError("the model: out of memory on a single sample; expected more memory") from error
        # A hook on a layer would see the pieces one by one and keep the last.
        if any(m._forward_hooks or m._forward_pre_hooks for m in self.model.modules()):
            raise InputError(f"the model: out of memory on {size} samples while layers are watched") from error
        self.fits = -(-size // 2)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _piece(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            out: Tensor = checkpoint(self._pass, x, use_reentrant=False)
            return out
        return self._pass(x)

    def _pass(self, x: Tensor) -> Tensor:
        if self.options.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        net: Any = _compiled_of(self) if self.options.compile else self.model
        if self.options.precision != "bf16" or not self.reduced:
            out: Tensor = net(x)
            return out
        with torch.autocast(x.device.type, torch.bfloat16):
            return net(x).float()


# Kept beside the modules, not in them: what is compiled does not travel to a worker.
_compiled: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def _compiled_of(tuned: Tuned) -> Any:
    if tuned not in _compiled:
        _compiled[tuned] = torch.compile(tuned.model, dynamic=True)
    return _compiled[tuned]


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def tuned(model: nn.Module, options: Throughput, x: Tensor, gradient: bool = True) -> nn.Module:
    """``model`` under ``options``, seen to work on a batch ``x``; itself where nothing is switched on and memory is the
    host's.

    Later batches are as large as ``x`` or, where that does not fit into memory, as what does: in a forward pass, and
    with ``gradient`` in the backward pass to inputs that have one. Raises InputError where the model cannot be compiled
    or does not work under the switches.
    """
    if options == Throughput() and device_of(model).type == "cpu":
        return model
    made = Tuned(model, options)
    try:
        with products(made):
            made.find(x.to(device_of(model)), gradient and x.is_floating_point())
    except InputError:
        raise
    except Exception as error:  # compilers and kernels raise many kinds
        detail = " ".join(str(error).split())[:160]
        switches = f"--precision {options.precision}{' --channels-last' * options.channels_last}"
        raise InputError(
            f"{switches}{' --compile' * options.compile}: the model fails under them ({detail})"
        ) from error
    return made


def reduced(model: nn.Module) -> bool:
    """Whether passes through ``model`` are less precise than float32."""
    return isinstance(model, Tuned) and model.reduced


@contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """Passes in full float32 inside the block, whatever the model's switches say."""
    if not isinstance(model, Tuned):
        yield
        return
    before, model.exact = model.exact, True
    try:
        with products(model):
            yield
    finally:
        model.exact = before


@contextmanager
def products(model: nn.Module) -> Iterator[None]:
    """The precision of CUDA's matrix products and convolutions, forward and backward, that a tuned model asks for."""
    if not isinstance(model, Tuned) or model.options.precision == "fp32":
        yield
        return
    flags: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = model.reduced
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
