"""Gradients of the loss of one text at a time, for many texts at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from assay.privacy.llm_mia.base import mean_loss, next_losses


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's remark that an operation under vmap is slower than it could be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, detached; tied ones once."""
    return {name: p.detach() for name, p in model.named_parameters()}


def loss_of(
    model: nn.Module, weights: Mapping[str, Tensor], ids: Int[Tensor, " t"], mask: Bool[Tensor, " t"]
) -> Float[Tensor, ""]:
    """L(x; weights) of one text."""
    logits = functional_call(model, dict(weights), (), {"input_ids": ids[None]}).logits
    return mean_loss(next_losses(logits, ids[None]), mask[None])[0]


def embedded_loss(
    model: nn.Module, e: Float[Tensor, "t d"], ids: Int[Tensor, " t"], mask: Bool[Tensor, " t"]
) -> Float[Tensor, ""]:
    """L of one text as a function of its input embeddings."""
    return mean_loss(next_losses(model(inputs_embeds=e[None]).logits, ids[None]), mask[None])[0]


def weight_gradients(
    model: nn.Module, ids: Int[Tensor, "n t"], mask: Bool[Tensor, "n t"], names: tuple[str, ...] | None = None
) -> dict[str, Float[Tensor, "n ..."]]:
    """Each text's gradient in the parameters ``names`` (all): (n, ...) by name. The model is in evaluation mode."""
    weights = weights_of(model)
    rest = {} if names is None else {k: w for k, w in weights.items() if k not in names}
    asked = {k: w for k, w in weights.items() if k not in rest}

    def loss(w: Mapping[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        return loss_of(model, {**rest, **w}, ids, mask)

    with quiet():
        found: dict[str, Tensor] = vmap(grad(loss), (None, 0, 0))(asked, ids, mask)
    return found


def embedding_gradients(model: nn.Module, ids: Int[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t d"]:
    """Each text's gradient in its input embeddings, 0 at padding. The model is in evaluation mode."""
    with torch.no_grad():
        e: Tensor = model.get_input_embeddings()(ids)  # type: ignore[operator]
    with quiet():
        found: Tensor = vmap(grad(partial(embedded_loss, model)))(e, ids, mask)
    return found
