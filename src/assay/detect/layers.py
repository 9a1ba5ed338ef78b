"""Which layers a feature-space detector reads, found by looking at what they put out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, check_logits, device_of, evaluating, named_layers

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid)


@contextmanager
def captured(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The last output of each named layer, as it was, in the order of the calls; gradients flow through them."""
    caught: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def hook(name: str) -> Callable[..., None]:
        def keep(_m: nn.Module, _i: object, out: object) -> None:
            if isinstance(out, Tensor) and out.dim() > 1:
                caught[name] = out

        return keep

    handles = [modules[name].register_forward_hook(hook(name)) for name in layers]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def pooled(out: Tensor) -> Tensor:
    """(n, d): maps averaged over space, vectors as they are."""
    return out.flatten(2).mean(2) if out.dim() > 2 else out


def rectified_layers(model: nn.Module, probe: Tensor) -> list[str]:
    """Names of the layers after a ReLU, in the order of the calls, each representation once.

    A layer counts when its outputs on ``probe`` (n, ...) are non-negative with exact zeros among them: this finds
    functional ReLUs and the outputs of residual blocks too. Layers that repeat an earlier one, before or after
    averaging over space (flattening, dropout, pooling, the enclosing container), or the input are left out. A model
    without any: its activation modules; without those: its last layer.
    """
    seen = [probe.flatten(1), pooled(probe)]
    with evaluating(model), torch.no_grad(), captured(model, [n for n, _ in model.named_modules() if n]) as caught:
        model(probe.to(device_of(model)))
    names = []
    for name, out in caught.items():
        out = out.cpu()
        forms = [out.flatten(1), pooled(out)]
        new = not any(_same(a, b) for a in forms for b in seen)
        if new and float(out.min()) == 0.0 and bool((out > 0).any()):
            names.append(name)
            seen += forms
    leaves = named_layers(model)
    return names or [n for n, m in leaves.items() if isinstance(m, ACTIVATIONS)] or [list(leaves)[-1]]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether the two agree, to the precision of the coarser of their types."""
    if a.shape != b.shape:
        return False
    grain = {t: torch.finfo(t).eps if t.is_floating_point else 0.0 for t in (a.dtype, b.dtype)}
    coarse = max(grain, key=grain.__getitem__)
    return torch.allclose(a.to(coarse), b.to(coarse), rtol=max(1e-5, 2 * grain[coarse]), atol=1e-7)


def chosen_layers(model: nn.Module, text: str, probe: Tensor) -> list[str]:
    """ "all" or "penultimate" (the last of all) of the rectified layers, or names joined by commas."""
    if text in ("all", "penultimate"):
        found = rectified_layers(model, probe)
        return found if text == "all" else found[-1:]
    names, known = [n.strip() for n in text.split(",")], dict(model.named_modules())
    for name in names:
        if name not in known:
            raise InputError(
                f"layers: the model has no layer {name!r}; expected 'all', 'penultimate' or some of {', '.join(known)}"
            )
    with evaluating(model), torch.no_grad(), captured(model, names) as caught:
        model(probe.to(device_of(model)))
    silent = [n for n in names if n not in caught]
    if silent:
        raise InputError(f"layers: {silent[0]!r} puts out no tensor of shape (n, ...); expected one that does")
    return names


def latents(
    model: nn.Module, x: Tensor, layer: str, *, batch_size: int = BATCH
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n c"]]:
    """What a layer puts out for ``x``, pooled, and the logits, from one pass; float64 on the CPU.

    InputError where either holds numbers that are not finite, or the model gives no tensor (n, c).
    """
    check_logits("latents", model, x[:1])
    device, found, logits = device_of(model), [], []
    with evaluating(model), torch.no_grad(), captured(model, [layer]) as caught:
        for part in x.split(batch_size):
            logits.append(model(part.to(device)).double().cpu())
            found.append(pooled(caught[layer]).double().cpu())
    f, out = torch.cat(found), torch.cat(logits)
    if not (torch.isfinite(f).all() and torch.isfinite(out).all()):
        raise InputError(f"latents of layer {layer!r}: NaN or infinite values in them or the logits; expected finite")
    return f, out
