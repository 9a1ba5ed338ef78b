"""Platforms that can be had without their hardware: the same weights in another number format, layout or batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from assay.compress import Quantisation
from assay.compress.base import LAYERS
from assay.privacy.platform.number_formats import Rounding, fp8_e3m4, fp8_e4m3, int8_affine, mxint8
from assay.runtime.errors import InputError, unknown

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}


def _whole(weight: Tensor) -> Tensor:
    return int8_affine(weight[None])[0]


# (of the inputs of a layer, of its weights); fp8-e3m4 keeps weights in E4M3 as the official configuration does.
EMULATED: dict[str, tuple[Rounding, Rounding]] = {
    "int8-dynamic": (int8_affine, _whole),
    "fp8-e4m3": (fp8_e4m3, fp8_e4m3),
    "fp8-e3m4": (fp8_e3m4, fp8_e4m3),
    "mxint8": (mxint8, mxint8),
}
PLAIN = (*DTYPES, "int8-weights", *EMULATED, "channels_last", "cuda", "tf32")
NUMBERED = ("threads", "batch")


class _Straight(torch.autograd.Function):
    """Rounding whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Rounding) -> Tensor:
        return rounding(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@dataclass(frozen=True)
class _RoundInputs:
    """A hook that rounds what a layer is given."""

    rounding: Rounding

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_Straight.apply(inputs[0], self.rounding), *inputs[1:])


class Platform(nn.Module):
    """A model as a platform runs it: float32 in, float32 out, on whatever device and in whatever type it computes."""

    def __init__(
        self,
        model: nn.Module,
        tag: str,
        *,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.preserve_format,
        batch: int | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        device = "cuda" if tag in ("cuda", "tf32") else None
        self.model = copy.deepcopy(model).to(dtype=dtype, device=device)
        if layout is not torch.preserve_format:
            self.model.to(memory_format=layout)  # type: ignore[call-overload]
        self.tag, self.dtype, self.layout, self.batch, self.threads = tag, dtype, layout, batch, threads
        self.device = None if device is None else torch.device(device)
        self.eval()

    @contextmanager
    def _setting(self) -> Iterator[None]:
        """The number of threads and the matrix units that the platform computes with; put back afterwards."""
        threads = torch.get_num_threads()
        units: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
        before = [unit.allow_tf32 for unit in units]
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            if self.device is not None:
                for unit in units:
                    unit.allow_tf32 = self.tag == "tf32"
            yield
        finally:
            torch.set_num_threads(threads)
            for unit, value in zip(units, before, strict=True):
                unit.allow_tf32 = value

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        given = x.to(dtype=self.dtype, device=self.device)
        if self.layout is not torch.preserve_format:
            given = given.contiguous(memory_format=self.layout)
        with self._setting():
            out = self.model(given) if self.batch is None else self._in_batches(given, self.batch)
        return out.to(dtype=torch.float32, device=x.device)

    def _in_batches(self, x: Tensor, size: int) -> Tensor:
        """Every pass has exactly ``size`` rows; the last one is filled up with zeros."""
        full = F.pad(x, (0, 0) * (x.dim() - 1) + (0, -len(x) % size))
        return torch.cat([self.model(part) for part in full.split(size)])[: len(x)]


def simulate_platform(model: nn.Module, tag: str) -> Platform:
    """A copy of ``model``, in evaluation mode, as the platform ``tag`` would run it; ``model`` stays as it was.

    Number formats (Zhang et al., 2024, arXiv:2411.05197, and the official configuration): "fp32", "fp64", "bf16" and
    "fp16" compute in that type and cast the logits up; "int8-weights" rounds weights per channel
    (compress.Quantisation); "int8-dynamic", "fp8-e4m3", "fp8-e3m4" and "mxint8" are emulated, the weights and the
    inputs of every convolutional and linear layer rounded, biases and sums in float32. Ranges of int8-dynamic are taken
    sample by sample, so that no output depends on its batch, blocks of mxint8 along a sample's or an output channel's
    values. Gradients pass roundings unchanged. Kernels: "channels_last" (images), "batch=K" (passes of K rows),
    "threads=K"; "cuda" and "tf32" (matrix products in float32 or TF32) where there is a GPU.

    ``platform(x)`` maps float32 (n, ...) to float32 (n, c) on the device of x. Simulated is the named factor only: that
    two formats can be told apart here says nothing of two GPUs. Raises InputError for an unknown tag.
    """
    name, equals, number = tag.partition("=")
    if (equals and name not in NUMBERED) or (not equals and name not in PLAIN):
        raise unknown("platform", tag, (*PLAIN, *(f"{n}=K" for n in NUMBERED)))
    if equals and not (number.isdigit() and int(number) >= 1):
        raise InputError(f"platform {tag!r}: expected {name}=K with a whole number K >= 1")
    if name in ("cuda", "tf32") and not torch.cuda.is_available():
        raise InputError(f"platform {tag!r}: no CUDA device here; expected one")
    if name == "int8-weights":
        return Platform(Quantisation(bits=8).compress(model, None, seed=0), tag)
    if name == "channels_last":
        return Platform(model, tag, layout=torch.channels_last)
    platform = Platform(
        model,
        tag,
        dtype=DTYPES.get(name, torch.float32),
        batch=int(number) if name == "batch" else None,
        threads=int(number) if name == "threads" else None,
    )
    if name in EMULATED:
        _emulate(platform.model, *EMULATED[name])
    return platform


@torch.no_grad()
def _emulate(model: nn.Module, inputs: Rounding, weights: Rounding) -> None:
    """Round the weights of every convolutional and linear layer, and whatever the layer is given."""
    for layer in model.modules():
        if isinstance(layer, LAYERS):
            layer.weight.copy_(weights(layer.weight))
            layer.register_forward_pre_hook(_RoundInputs(inputs))
