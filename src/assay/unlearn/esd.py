"""Erasing a concept from a text-to-image model by its own guidance."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.prompt import TextToImage
from assay.attacks.prompt.embedding_prompt_attack import moments
from assay.data import Batch, Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import evaluating
from assay.runtime.random import derive
from assay.training import Plan, State
from assay.training.engine import Player, fit_players

COMPONENTS = {"all": "", "ffn": "mlp", "attn": "self_attn"}
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def esd_target(
    teacher: TextToImage,
    z: Float[Tensor, "n ..."],
    t: Int[Tensor, " n"],
    concept: Float[Tensor, "#n l e"],
    guidance: float,
) -> Float[Tensor, "n ..."]:
    """e_o(z|0) - guidance (e_o(z|c) - e_o(z|0)): what the original sees when led away from the concept (Gandikota et
    al., 2023, arXiv:2303.07345, eq. 5-6)."""
    with torch.no_grad():
        return teacher.guided(z, t, concept, teacher.free(), -guidance)


def esd_loss(seen: Float[Tensor, "n ..."], target: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
    """The mean square of what the student sees less the target."""
    return F.mse_loss(seen, target)


@dataclass(frozen=True)
class Erasing:
    """What one run holds on to: the original model, its condition ``concept`` (1, l, e), and the run's seed."""

    teacher: TextToImage
    concept: Tensor
    seed: int

    def sampler(self, student: TextToImage) -> TextToImage:
        """What latents are drawn by: the student's network, told by the original text encoder."""
        return replace(self.teacher, unet=student.unet)


@dataclass(frozen=True, kw_only=True)
class ESD:
    """Erased Stable Diffusion (Gandikota et al., 2023, arXiv:2303.07345): under the concept the model is to see what
    the original would when led away from it.

    Each of ``iterations`` draws a latent z_t by the student's network under the original's condition of ``concept``, at
    guidance ``start_guidance`` on a grid of ``ddim_steps`` of DDIM (see moments), and takes a step of Adam at ``lr``
    down ``esd_loss`` at the target of ``negative_guidance``. ``train``: the parameters of the text encoder (its
    ``layers``: the first so many, None for all with the last norm; their ``component`` "all", "ffn" or "attn"; never
    the tokens' or positions' table) or all of the "unet". ``hidden_layer``: see TextToImage. ``forget`` gives a
    pipeline with the trained part in place of the old one, which stays as it is. InputError for other options.
    """

    kind: ClassVar[str] = "function"

    concept: str
    train: Literal["text_encoder", "unet"] = "unet"
    layers: int | None = None
    component: Literal["all", "ffn", "attn"] = "all"
    negative_guidance: float = 1.0
    start_guidance: float = 3.0
    iterations: int = 1000
    lr: float = 1e-5
    ddim_steps: int = 50
    hidden_layer: int | None = None

    def __post_init__(self) -> None:
        who = type(self).__name__
        if self.train not in ("text_encoder", "unet"):
            raise unknown(f"part that {who} trains", self.train, ("text_encoder", "unet"))
        if self.component not in COMPONENTS:
            raise unknown(f"component of {who}", self.component, COMPONENTS)
        if self.train == "unet" and (self.layers is not None or self.component != "all"):
            raise InputError(f"{who}: layers or a component of the U-Net; expected them with train='text_encoder'")
        if not self.concept.split():
            raise InputError(f"{who}: the concept is empty; expected a prompt")
        finite = math.isfinite(self.negative_guidance) and math.isfinite(self.start_guidance)
        if not finite or self.ddim_steps < 1 or (self.layers is not None and self.layers < 1):
            raise InputError(
                f"{who}: negative_guidance={self.negative_guidance}, start_guidance={self.start_guidance}, "
                f"ddim_steps={self.ddim_steps}, layers={self.layers}; expected finite guidance, steps and layers >= 1"
            )
        self.plan()

    def plan(self) -> Plan:
        """The training plan."""
        return Plan(steps=self.iterations, batch_size=1, lr=self.lr, schedule="constant")

    def chosen(self, net: nn.Module) -> list[Tensor]:
        """The parameters that are trained."""
        if self.train == "unet":
            return list(net.parameters())
        found: list[Tensor] = []
        for name, p in net.named_parameters():
            layer = LAYER.search(name)
            inside = layer is not None and (self.layers is None or int(layer[1]) < self.layers)
            last = "final_layer_norm" in name and self.layers is None and self.component == "all"
            if (inside and COMPONENTS[self.component] in name) or last:
                found.append(p)
        if not found:
            raise InputError(
                f"{type(self).__name__}: {type(net).__name__} has no such layers; expected them as 'layers.0'"
            )
        return found

    def condition(self, student: TextToImage, run: Erasing, state: State) -> Float[Tensor, "1 l e"]:
        """The condition under which the concept is erased: that of the concept's prompt."""
        return student.encode(student.ids([self.concept]))

    def loss(self, student: TextToImage, run: Erasing, state: State) -> Float[Tensor, ""]:
        """The loss of one step."""
        seed = derive(run.seed, "esd", state.step)
        with evaluating(student.unet):
            drawn = moments(run.sampler(student), run.concept, 1, self.start_guidance, self.ddim_steps, seed=seed)
        aim = esd_target(run.teacher, drawn.z, drawn.t, run.concept, self.negative_guidance)
        return esd_loss(student.noise(drawn.z, drawn.t, self.condition(student, run, state)), aim)

    def check(self, teacher: TextToImage) -> None:
        """InputError where the prompts cannot be used with this model."""

    def forget(self, pipeline: Any, *, seed: int = 0) -> Any:
        """A pipeline of the same kind without the concept. See TextToImage.of for what a pipeline needs."""
        teacher = TextToImage.of(pipeline, self.hidden_layer)
        self.check(teacher)
        old: nn.Module = getattr(teacher, self.train)
        start = copy.deepcopy(old).requires_grad_(True)
        clock = Data(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), ("step", "none"))
        with evaluating(teacher.unet), evaluating(teacher.text_encoder):
            with torch.no_grad():
                run = Erasing(teacher, teacher.encode(teacher.ids([self.concept])), seed)

            def objective(models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
                trained: dict[str, Any] = {self.train: models["student"]}
                return self.loss(replace(teacher, **trained), run, state)

            player = Player(model=start, objective=objective, plan=self.plan(), parameters=self.chosen)
            new = fit_players({"student": player}, clock, seed=seed)["student"]
        for p, q in zip(new.parameters(), old.parameters(), strict=True):
            p.requires_grad_(q.requires_grad)
        return exchanged(pipeline, self.train, new.train(old.training))


def exchanged(pipeline: Any, part: str, net: nn.Module) -> Any:
    """The pipeline with another network as ``part``; the other parts are shared."""
    if is_dataclass(pipeline) and not isinstance(pipeline, type):
        return replace(pipeline, **{part: net})
    if hasattr(type(pipeline), "from_pipe"):
        return type(pipeline).from_pipe(pipeline, **{part: net})
    other = copy.copy(pipeline)
    setattr(other, part, net)
    return other
