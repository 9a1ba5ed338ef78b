"""Content hash of what a model was told besides its weights: two that differ in an option only are not the same."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from torch import nn

INNER = frozenset(vars(nn.Module())) | {"spec"}
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type)


def options_hash(model: nn.Module) -> str:
    """SHA-256 of the attributes of every module of ``model`` that are neither weights nor torch's own.

    Numbers, text, tensors, arrays, collections, functions (their code and what they close over) and objects made of
    such count by content, wherever in memory they are.
    """
    h, seen = hashlib.sha256(), dict[int, Any]()
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            if key not in INNER:
                h.update(f"{name}.{key}=".encode())
                for part in _parts(value, seen):
                    h.update(part)
    return h.hexdigest()


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    if isinstance(value, PLAIN):
        yield f"{value!r};".encode()
        return
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy() if value.dtype != torch.bfloat16 else value.detach().float().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        yield f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
        return
    if id(value) in seen:
        return
    seen[id(value)] = value  # kept, so that no other object gets its id
    yield f"{type(value).__module__}.{type(value).__qualname__}(".encode()
    for item in _items(value):
        yield from _parts(item, seen)
    yield b")"


def _items(value: Any) -> list[Any]:
    """What an object is made of."""
    if isinstance(value, Mapping):
        return [item for pair in sorted(value.items(), key=lambda p: repr(p[0])) for item in pair]
    if isinstance(value, AbstractSet):
        return sorted(value, key=repr)
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, nn.Module):
        return [type(value).__qualname__, value.state_dict(), options_hash(value)]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        cells = [getattr(c, "cell_contents", None) for c in value.__closure__ or ()]
        return [value.__qualname__, *_code(value.__code__), value.__defaults__, value.__kwdefaults__, cells]
    return [item for pair in sorted(getattr(value, "__dict__", {}).items()) for item in pair]


def _code(code: types.CodeType) -> list[Any]:
    """Instructions, names and constants, those of functions inside included."""
    inner = [part for c in code.co_consts if isinstance(c, types.CodeType) for part in _code(c)]
    plain = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
    return [code.co_code, code.co_names, plain, *inner]
