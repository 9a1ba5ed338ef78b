"""The transformers network inside a subject: built from the text of its config, with its classifier's input in view."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError


def transformers() -> Any:
    """The package; InputError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"a Hugging Face model needs the package 'transformers' ({error}); expected it: pip install 'assay[hf]'"
        ) from error
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """No messages and progress bars of transformers and of the hub's client inside the block."""
    package = transformers()
    from huggingface_hub import utils as hub

    logs = (package.utils.logging, hub.logging)
    levels = [log.get_verbosity() for log in logs]
    bars, fetching = logs[0].is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    for log in logs:
        log.set_verbosity(CRITICAL)
    logs[0].disable_progress_bar()
    hub.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.set_verbosity(level)
        if bars:
            logs[0].enable_progress_bar()
        if fetching:
            hub.enable_progress_bars()


@contextmanager
def unhooked(model: nn.Module) -> Iterator[None]:
    """Hooks and attributes that a call inside the block adds to the model are taken off again."""
    saved = [
        (m, set(vars(m)), {k: dict(v) for k, v in vars(m).items() if isinstance(v, dict) and "hooks" in k})
        for m in model.modules()
    ]
    try:
        yield
    finally:
        for module, names, hooks in saved:
            for name in set(vars(module)) - names:
                delattr(module, name)
            for name, kept in hooks.items():
                vars(module)[name].clear()
                vars(module)[name].update(kept)


def said(error: Exception) -> str:
    """An error of a library in a few words on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def config_of(text: str) -> Any:
    """The transformers config that a JSON text describes. InputError where there is none of that kind or it is bad."""
    table = json.loads(text)
    with quiet():
        try:
            return transformers().CONFIG_MAPPING[table["model_type"]].from_dict(table)
        except Exception as error:  # what a wrong value raises depends on the architecture
            kind = table.get("model_type")
            raise InputError(f"config of model type {kind!r}: {said(error)}; expected one of transformers'") from error


class Head(nn.Module):
    """A linear classifier whose input is the output of the leaves that come last, where readers of features look."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.features = nn.Sequential(nn.Identity(), nn.Identity())

    def forward(self, x: Float[Tensor, "n ... d"]) -> Float[Tensor, "n ... c"]:
        return self.linear(self.features(x))


def with_head(model: nn.Module) -> nn.Module:
    """The same model, its classifier (a decoder's is its ``score``) a ``Head`` where it is one linear layer."""
    for name in ("classifier", "score"):
        linear = getattr(model, name, None)
        if isinstance(linear, nn.Linear):
            setattr(model, name, Head(linear))
    return model


def network(auto: str, config: str) -> nn.Module:
    """A model with random weights of the class that ``transformers.<auto>`` chooses for a config's text.

    Float32, and with attention written out: its fused forms have no second derivative.
    """
    built = config_of(config)
    options = {"attn_implementation": "eager", "dtype": torch.float32, "trust_remote_code": False}
    with quiet():
        try:
            return with_head(getattr(transformers(), auto).from_config(built, **options))
        except Exception as error:  # what a wrong value raises depends on the architecture
            raise InputError(
                f"config of model type {built.model_type!r}: {said(error)}; expected one that {auto} can build"
            ) from error
