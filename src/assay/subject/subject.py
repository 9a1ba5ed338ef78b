"""Model + data + recipe + access."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from assay.data import Data
from assay.runtime.errors import AccessError, InputError
from assay.runtime.random import seeded
from assay.runtime.spec import build, spec_of
from assay.subject.access import Access, require

if TYPE_CHECKING:
    from assay.training.trainer import Trainer


@dataclass(frozen=True)
class Subject:
    """What is audited.

    ``model`` maps (n, ...) in the data's own units to logits (n, c). ``holdout`` is for fitting thresholds and
    temperatures, never for reporting; where it is None a seeded fifth of ``test`` is taken out of it. ``recipe`` says
    how the model was trained: retraining, shadow models and time ratios use it.
    """

    model: nn.Module
    test: Data
    train: Data | None = None
    holdout: Data | None = None
    recipe: Trainer | None = None
    task: str = "classification"
    access: Access = Access.WEIGHTS
    name: str = "subject"
    parts: Mapping[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.holdout is None:
            holdout, test = self.test.split(0.2, seed=0)
            object.__setattr__(self, "holdout", holdout)
            object.__setattr__(self, "test", test)
        for other in (self.train, self.holdout):
            if other is not None and other.shape != self.test.shape:
                where = f"subject {self.name!r}: {other.name}"
                raise InputError(f"{where} has samples of shape {other.shape}; expected {self.test.shape}")

    def grants(self, needed: Access, who: str) -> None:
        """Raise AccessError naming both when the subject grants less than ``needed``."""
        require(self.access, needed, who)

    def training(self, who: str) -> Data:
        """The training data, or AccessError."""
        if self.train is None:
            raise AccessError(f"{who} needs the training data; the subject has none (pass --train)")
        return self.train

    def with_model(self, model: nn.Module, **changes: Any) -> Subject:
        """The same data with another model."""
        return replace(self, model=model, **changes)

    def save(self, folder: str | Path) -> Path:
        """Write ``subject.toml`` and ``*.safetensors``; ``assay.load(folder)`` gives the same subject back."""
        from assay.subject.load import save

        return save(self, Path(folder))


def model_hash(model: nn.Module) -> str:
    """Content hash of a model: its structure as printed, the code of its own classes, and every tensor of its state."""
    h = hashlib.sha256(repr(model).encode())
    for cls in sorted({type(m) for m in model.modules()}, key=lambda c: f"{c.__module__}.{c.__qualname__}"):
        if not cls.__module__.startswith("torch."):
            h.update(_code(cls).encode())
    for name, tensor in sorted(model.state_dict().items()):
        h.update(name.encode())
        h.update(str(tensor.dtype).encode())
        h.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def _code(cls: type) -> str:
    """The compiled methods that a class defines, without the places of their lines."""
    parts = [cls.__qualname__]
    for name, member in sorted(vars(cls).items()):
        todo = [code] if (code := getattr(member, "__code__", None)) else []
        while todo:
            code = todo.pop()
            todo += [c for c in code.co_consts if hasattr(c, "co_code")]
            plain = [c for c in code.co_consts if not hasattr(c, "co_code")]
            parts.append(f"{name} {code.co_code.hex()} {plain!r} {code.co_names} {code.co_freevars}")
    return "\n".join(parts)


def fresh(model: nn.Module, *, seed: int) -> nn.Module:
    """The same architecture with new random weights: rebuilt from its spec, else every layer reset in a copy; on the
    same device, in the same precision."""
    with seeded(seed, "init"):
        spec = spec_of(model)
        if spec is not None:
            return build(spec.to_dict(), trust=(spec.factory.partition(":")[0],)).to(next(model.parameters()))
        other = copy.deepcopy(model)
        for module in other.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            elif any(True for _ in module.parameters(recurse=False)):
                raise InputError(
                    f"fresh: {type(module).__name__} has parameters and no reset_parameters; expected a spec"
                )
        return other
