"""``export:FILE.pt2``: a program of ``torch.export``, with gradients."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.errors import AssayError, InputError
from assay.subject.access import Access
from assay.subject.adapters.answers import SMALLEST, Meaning, meaning_of
from assay.subject.adapters.archive import clean
from assay.subject.adapters.base import PROBE, Backend, file_digest, in_batches, needed, opened, said
from assay.subject.subject import Subject


class Exported(nn.Module):
    """An exported program on the CPU; it can be differentiated, and its weights are not looked into."""

    def __init__(self, run: Backend, digest: str) -> None:
        super().__init__()
        self.run, self.digest = run, digest
        self.meaning: Meaning = "logits"

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        out: Tensor = self.run(x)
        return out.clamp_min(SMALLEST).log() if self.meaning == "probabilities" else out


def load_exported(rest: str, data: dict[str, Data | None]) -> Subject:
    """A program of one input and one output (n, classes): logits, or probabilities, whose logarithm is then taken.

    What the archive could run besides torch's operators is refused. Where the batch axis is fixed, the program is run
    in batches of that size. Raises InputError for samples of another shape.
    """
    path, where, _ = opened(rest, "export")
    test = needed(data, where)
    model = Exported(Backend(partial(_open, path, where)), file_digest(path)).eval()
    try:
        with torch.no_grad():
            out = model(test.x[:PROBE])
    except AssayError:
        raise
    except Exception as error:  # a stranger's program may raise anything
        raise InputError(f"{where}: fails on samples of shape {test.shape} ({said(error)})") from error
    if not isinstance(out, Tensor) or out.shape[1:] != (len(test.classes),):
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(f"{where}: gives {shape}; expected one tensor (n, {len(test.classes)})")
    model.meaning = meaning_of(out.float().numpy(), len(test.classes), where)
    given: dict[str, Any] = {k: v for k, v in data.items() if v is not None}
    return Subject(model, name=where, access=Access.GRADIENT, **given)


class _Program:
    """The program as a function of samples of any number."""

    def __init__(self, path: Path, where: str) -> None:
        self.where = where
        program = _load(path, where)
        inputs = [
            n for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs
        ]
        if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), Tensor):
            raise InputError(f"{where}: takes {len(inputs)} inputs; expected one tensor")
        first, *self.shape = inputs[0].meta["val"].shape
        self.size = first if isinstance(first, int) else None
        self.least = 1 if self.size else 2  # torch.export takes a dynamic axis to be longer than one
        self.module = program.module().requires_grad_(False)

    def __call__(self, x: Tensor) -> Any:
        wanted, given = self.shape, tuple(x.shape[1:])
        if len(wanted) != len(given) or any(isinstance(w, int) and w != g for w, g in zip(wanted, given, strict=True)):
            raise InputError(f"{self.where}: samples have shape {given}; the program takes {tuple(wanted)}")
        size = self.least if self.size is None and len(x) < self.least else self.size
        return in_batches(x, size, self.module, lambda parts: parts[0] if len(parts) == 1 else torch.cat(parts))


def _load(path: Path, where: str) -> Any:
    archive = clean(path, where)
    log = logging.getLogger("torch.export")
    level, log.disabled = log.disabled, True
    try:
        return torch.export.load(archive)
    except Exception as error:  # a broken archive makes torch raise anything
        raise InputError(
            f"{where}: cannot be loaded ({said(error)}); expected a program that this torch reads"
        ) from error
    finally:
        log.disabled = level


def _open(path: Path, where: str) -> _Program:
    return _Program(path, where)
