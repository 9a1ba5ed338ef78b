"""Adversarial patches on objects of a detector: what they need of detector and scenes, and how they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating, ordinary, traceable
from assay.runtime.random import torch_rng
from assay.training import Plan, State, fit

Target = dict[str, Tensor]


class Detector(Protocol):
    """A torch module that finds objects, in the manner of torchvision's; images are (n, 3, h, w) in [0, 1].

    ``predict(images)``: for each image boxes (k, 4) as x1 y1 x2 y2, scores (k,) and labels (k,). ``proposals(images)``:
    the same before any selection, boxes (p, 4), class ``logits`` (p, c) and, where there is one, ``objectness`` (p,),
    with gradients. ``losses(images, targets)``: the losses that it is trained on, by name.
    """

    def predict(self, images: Tensor) -> list[dict[str, Tensor]]: ...
    def proposals(self, images: Tensor) -> list[dict[str, Tensor]]: ...
    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]: ...
    def parameters(self) -> Any: ...
    def buffers(self) -> Any: ...
    def modules(self) -> Any: ...


class PatchScenes(Protocol):
    """Images with objects that a patch can be put on, as ``vision.Scenes``."""

    @property
    def images(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def select(self, rows: Tensor) -> PatchScenes: ...
    def targets(self) -> list[Target]: ...
    def render(self, patch: Tensor) -> Tensor: ...


def box_iou(a: Float[Tensor, "p 4"], b: Float[Tensor, "q 4"]) -> Float[Tensor, "p q"]:
    """Intersection over union of boxes x1 y1 x2 y2; 0 where both are empty. In float32 or better."""
    a, b = (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in (a, b))
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared).clamp_min(1e-12)


def total_variation(patch: Float[Tensor, "c h w"]) -> Float[Tensor, ""]:
    """Mean absolute difference of vertical neighbours plus that of horizontal ones; 0 where there are none."""
    gaps = [patch.diff(dim=k).abs() for k in (1, 2)]
    return gaps[0].sum() / max(gaps[0].numel(), 1) + gaps[1].sum() / max(gaps[1].numel(), 1)


class _Patch(nn.Module):
    """The patch (3, h, w) in [0, 1]: tanh(z) / 2 + 1 / 2, or z itself, clipped."""

    def __init__(self, z: Tensor, free: bool) -> None:
        super().__init__()
        self.z, self.free = nn.Parameter(z), free

    def forward(self) -> Float[Tensor, "3 h w"]:
        return self.z.tanh() / 2 + 0.5 if self.free else self.z.clamp(0, 1)


class _SignDescent(torch.optim.Optimizer):
    """Steps of length ``lr`` against the gradient's sign, kept in [0, 1]."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad.sign()).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True)
class PatchAttack:
    """``attack(detector, scenes, seed=0) -> patch``: one patch (3, h, w) for all objects of the scenes.

    ``steps`` of size ``lr`` lower ``objective`` plus ``tv`` times the total variation, each on ``n_eot`` images drawn
    without replacement, epoch by epoch (the published code draws anew each step). With ``optimizer`` "adam" the patch
    is tanh(z) / 2 + 1 / 2 from z uniform in [-1, 1]; "pgd" steps along the gradient's sign, clipped to [0, 1], from a
    uniform start. The detector is in evaluation mode, its parameters fixed. What lies outside the scenes' mask is never
    seen and is 0 in the result. Raises InputError for unusable options and scenes.
    """

    kind: ClassVar[str] = "function"
    contract: ClassVar[bool] = True

    steps: int = 1000
    lr: float = 0.01
    tv: float = 1e-5
    n_eot: int = 1
    optimizer: Literal["adam", "pgd"] = "adam"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.n_eot < 1 or not (self.lr > 0 and self.tv >= 0):
            given = f"steps={self.steps}, n_eot={self.n_eot}, lr={self.lr}, tv={self.tv}"
            raise InputError(f"{type(self).__name__}: {given}; expected steps, n_eot >= 1, lr > 0, tv >= 0")
        if self.optimizer not in ("adam", "pgd"):
            raise unknown(f"optimizer of {type(self).__name__}", str(self.optimizer), ("adam", "pgd"))

    def objective(self, detector: Detector, images: Tensor, targets: list[Target]) -> Float[Tensor, ""]:
        """What is made small, on images with the patch."""
        raise TypeError(f"{type(self).__name__} states no objective")

    def __call__(self, detector: Detector, scenes: PatchScenes, *, seed: int) -> Float[Tensor, "3 h w"]:
        """The patch, in [0, 1], on the CPU."""
        where, device = type(self).__name__, device_of(cast(nn.Module, detector))
        if not len(scenes):
            raise InputError(f"{where}: no image; expected scenes with at least one")
        if not any(len(t["labels"]) for t in scenes.targets()):
            raise InputError(f"{where}: no object on {len(scenes)} images; expected at least one to put the patch on")
        free = self.optimizer == "adam"
        z = torch.rand(3, *scenes.mask.shape[-2:], generator=torch_rng(seed, "patch"))
        none = torch.zeros(len(scenes), dtype=torch.int64)
        data = Data(scenes.images, none, ("scene", "none"), name="scenes")

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            patch, some = model(), scenes.select(batch.index.cpu())
            targets = [{name: t.to(device) for name, t in one.items()} for one in some.targets()]
            return self.objective(detector, some.render(patch), targets) + self.tv * total_variation(patch)

        make = (lambda parameters: _SignDescent(parameters, self.lr)) if not free else "adam"
        plan = Plan(steps=self.steps, batch_size=self.n_eot, optimizer=make, lr=self.lr, schedule="constant")
        with traceable(where, cast(nn.Module, detector), scenes.images), evaluating(cast(nn.Module, detector)):
            start = _Patch(ordinary(2 * z - 1 if free else z), free).to(device)
            with torch.enable_grad():
                found = fit(start, data, objective, plan, seed=seed)
        with torch.no_grad():
            return found().cpu() * scenes.mask.cpu()


def matched(
    proposals: Mapping[str, Tensor], target: Target, iou: float, min_conf: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Class logits (k, c) and labels (k,) of the proposals that overlap the object nearest to them by ``iou`` and give
    its class a probability of ``min_conf``, and their objectness (k,) where there is one."""
    logits, objectness = proposals["logits"], proposals.get("objectness")
    if not len(target["labels"]) or not len(logits):
        return logits[:0], target["labels"][:0], None if objectness is None else objectness[:0]
    overlap, nearest = box_iou(proposals["boxes"].detach(), target["boxes"]).max(1)
    labels = target["labels"][nearest]
    confident = logits.detach().softmax(1).gather(1, labels[:, None])[:, 0] >= min_conf
    kept = (overlap >= iou) & confident
    return logits[kept], labels[kept], None if objectness is None else objectness[kept]
