"""The contract of compressors, and the size that a compressed model achieves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.subject import Access, Subject

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
MAX_BITS = 16


@dataclass(frozen=True, kw_only=True)
class Compressor:
    """``compress(model, data, *, seed) -> model``: a smaller copy in evaluation mode; ``size_of`` says how small.

    ``data`` is used by methods that train or calibrate; the others take None. As a repair it works on a subject:
    ``control`` is the same work without the method's ingredient, None where that leaves the model as it was.
    """

    kind: ClassVar[str] = "compressor"
    contract: ClassVar[bool] = True

    def compress(self, model: nn.Module, data: Data | None, *, seed: int) -> nn.Module:
        """A compressed copy of ``model``."""
        raise TypeError(f"{type(self).__name__} does not compress")

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """The subject's model, compressed. AccessError where the subject does not grant its weights."""
        subject.grants(Access.WEIGHTS, type(self).__name__)
        return self.compress(subject.model, subject.train, seed=seed)

    def control(self, subject: Subject, *, seed: int) -> nn.Module | None:
        """The same work without compression; None: the model as it was."""
        return None


@dataclass(frozen=True)
class Compressed:
    """The size of a model. ``bits`` and ``bytes`` are those of the parameters in the smallest plain encoding."""

    parameters: int
    nonzero: int
    bits: int

    @property
    def bytes(self) -> int:
        """Bits rounded up to whole bytes."""
        return -(-self.bits // 8)

    @property
    def sparsity(self) -> float:
        """The fraction of parameters that are zero."""
        return 1 - self.nonzero / max(self.parameters, 1)


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of convolutional and linear layers by name, each once even where layers share it."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and isinstance(module.weight, nn.Parameter):
            found.setdefault(id(module.weight), (f"{name}.weight".lstrip("."), module.weight))
    return dict(found.values())


def size_of(model: nn.Module) -> Compressed:
    """Parameters, those that are not zero, and the bits that hold them.

    Each tensor takes the smaller of a dense code (b bits a value) and a sparse one (a bitmap and b bits for each value
    that is not zero). b is the width of its type, or, for the weight of a layer, that of the coarsest symmetric grid
    with one float32 scale for each output channel that holds every value (the scales are counted).
    """
    parameters = nonzero = bits = 0
    weights = {id(w) for w in weights_of(model).values()}
    for p in model.parameters():
        n, k = p.numel(), int(p.count_nonzero())
        parameters, nonzero = parameters + n, nonzero + k
        codes = [(p.element_size() * 8, 0)]
        width = grid_bits(p.detach()) if id(p) in weights else None
        if width is not None:
            codes.append((width, 32 * p.shape[0]))
        bits += min(min(n * b, n + k * b) + scales for b, scales in codes)
    return Compressed(parameters, nonzero, bits)


def grid_bits(weight: Float[Tensor, "out ..."]) -> int | None:
    """The fewest bits b in 2..16 with every row on the grid k * max|row| / (2^(b-1) - 1); None where there are none.

    A value counts as on the grid within the rounding error of its type, as long as that is far below a step.
    """
    rows = weight.double().flatten(1)
    top = rows.abs().amax(1, keepdim=True)
    relative = rows / top.where(top > 0, torch.ones_like(top))
    for bits in range(2, MAX_BITS + 1):
        limit = 2 ** (bits - 1) - 1
        rounding = 2 * limit * torch.finfo(weight.dtype).eps
        if rounding > 0.02:
            return None
        if float((relative * limit - (relative * limit).round()).abs().max()) <= rounding:
            return bits
    return None
