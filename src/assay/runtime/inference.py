"""Running a model without changing it: batching, evaluation mode, devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError

BATCH = 256


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer, else the CPU."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def pick_device(name: str | None = None) -> torch.device:
    """'cpu', 'cuda[:k]', 'mps', or None for the best one there is."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(device.type)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name!r}: not usable here; expected cpu, cuda or mps") from error
    return device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without parameter gradients inside the block; modes and flags are put back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.eval()
        for p, _ in flags:
            p.requires_grad_(False)
        yield model
    finally:
        for m, training in modes:
            m.training = training
        for p, flag in flags:
            p.requires_grad_(flag)


@contextmanager
def traceable(where: str, model: nn.Module, x: Tensor) -> Iterator[None]:
    """A block in which a model can be differentiated, also where the caller is in ``torch.inference_mode``.

    InputError where the model fails on ``x`` and holds numbers of another floating type, or only weights that were made
    in inference mode, which have no gradients.
    """
    held = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:160]
            types = {str(t.dtype).removeprefix("torch.") for t in held}
            given = str(x.dtype).removeprefix("torch.")
            if types and given not in types:
                text = f"the model holds {', '.join(sorted(types))} and fails on inputs of {given} ({detail})"
                raise InputError(f"{where}: {text}; expected inputs of its own type") from error
            if any(t.is_inference() for t in held):
                text = f"the model was made in torch.inference_mode and fails ({detail})"
                raise InputError(f"{where}: {text}; expected one that was made outside of it") from error
            raise


def ordinary(tensor: Tensor) -> Tensor:
    """``tensor``, or where it was made in ``torch.inference_mode`` a copy that gradients can flow through."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


@torch.no_grad()
def batched(
    fn: Callable[..., Tensor], *tensors: Tensor, batch_size: int = BATCH, device: torch.device | None = None
) -> Tensor:
    """``fn`` over batches of the tensors' first axis, results concatenated on the CPU. InputError for no tensor."""
    parts = []
    for start in range(0, len(tensors[0]), batch_size):
        chunk = [t[start : start + batch_size] for t in tensors]
        out = fn(*(c.to(device) if device else c for c in chunk))
        if not isinstance(out, Tensor):
            raise InputError(f"the model gives {type(out).__name__}; expected a tensor with one row a sample")
        parts.append(out.cpu())
    return torch.cat(parts)


def predict(model: nn.Module, x: Tensor, *, batch_size: int = BATCH) -> Float[Tensor, "n c"]:
    """Logits of ``x`` in evaluation mode, float32 on the CPU.

    Raises InputError when they are no tensor or not finite, and for ``x`` of another floating type than the model's.
    """
    if len(x) == 0:
        raise InputError("predict: the data set is empty; expected at least one sample")
    with traceable("predict", model, x), evaluating(model):
        logits = batched(model, x, batch_size=batch_size, device=device_of(model)).float()
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(dim=-1).sum())
        raise InputError(f"the model's outputs are not finite on {bad} of {len(x)} samples; expected finite logits")
    return logits


def check_logits(where: str, model: nn.Module, x: Float[Tensor, "n ..."]) -> None:
    """InputError unless the model gives logits (n, c) for ``x``, as a tensor."""
    with evaluating(model), torch.no_grad():
        out = model(x.to(device_of(model)))
    if not isinstance(out, Tensor) or out.dim() != 2:
        given = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise InputError(f"{where}: {type(model).__name__} gives {given}; expected a tensor of logits (n, c)")


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The model's leaf modules by their dotted name."""
    return {name: m for name, m in model.named_modules() if not any(True for _ in m.children())}


def features(
    model: nn.Module, x: Tensor, layers: list[str], *, batch_size: int = BATCH, pool: bool = True
) -> dict[str, Tensor]:
    """Outputs of the named layers for ``x``, (n, d) each on the CPU; maps are averaged over space when ``pool``."""
    modules, caught = dict(model.named_modules()), {}
    missing = [name for name in layers if name not in modules]
    if missing:
        raise InputError(f"features: the model has no layer {missing[0]!r}; expected one of {', '.join(modules)}")

    def hook(name: str) -> Callable[..., None]:
        def keep(_m: nn.Module, _i: object, out: Tensor) -> None:
            caught[name] = out.flatten(2).mean(2) if pool and out.dim() > 2 else out.flatten(1)

        return keep

    handles = [modules[name].register_forward_hook(hook(name)) for name in layers]
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    device = device_of(model)
    try:
        with evaluating(model), torch.no_grad():
            for start in range(0, len(x), batch_size):
                model(x[start : start + batch_size].to(device))
                for name in layers:
                    parts[name].append(caught[name].float().cpu())
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(chunks) for name, chunks in parts.items()}
