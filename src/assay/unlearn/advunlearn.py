"""Erasing a concept so that no prompt brings it back."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.attacks.prompt import EmbeddingPromptAttack, TextToImage
from assay.attacks.prompt.embedding_prompt_attack import moments
from assay.attacks.prompt.layout import layout
from assay.data import Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import evaluating
from assay.runtime.random import derive
from assay.training import Plan, State
from assay.unlearn.esd import ESD, Erasing
from assay.unlearn.passes import cycled


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(ESD):
    """ESD against the worst prompt (Zhang et al., 2024, arXiv:2405.15234, eq. 4-6 and algorithm 1): minimise

        esd_loss under c* + ``retain_weight`` E |e(z_t | r) - e_o(z_t | r)|^2

    where c* is what ``attack`` finds against the present student, anew every ``update_every`` iterations, and r are
    ``retain_batch`` of the ``retain_prompts``, on latents that the student's network draws under the original's
    condition of r. For the first ``warmup`` iterations, and where the attack has no steps, c* is the concept itself:
    without retain prompts that is ESD, bit by bit. ``retain`` "joint" adds both terms; "iter" takes a step of each in
    turn, as the official code's option, without the weight. Retain prompts are to be free of the concept: the authors
    have a language model filter them; here those that contain its words are refused.

    The attack's guidance and grid are set to this method's. What is trained is the text encoder, which
    also serves other U-Nets. InputError for other options, a concept that leaves the free tokens no place, no retain
    prompts with a weight above 0, and an attack on conditions where the text encoder, which never reads them, is
    trained.
    """

    retain_prompts: tuple[str, ...] = ()
    train: Literal["text_encoder", "unet"] = "text_encoder"
    attack: EmbeddingPromptAttack = EmbeddingPromptAttack()
    retain_weight: float = 0.3
    retain_batch: int = 5
    retain: Literal["joint", "iter"] = "joint"
    warmup: int = 200
    update_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retain not in ("joint", "iter"):
            raise unknown("retain of AdvUnlearn", self.retain, ("joint", "iter"))
        if not self.retain_weight >= 0 or min(self.retain_batch, self.update_every) < 1 or self.warmup < 0:
            given = f"retain_weight={self.retain_weight}, retain_batch={self.retain_batch}, warmup={self.warmup}"
            raise InputError(f"AdvUnlearn: {given}; expected a weight and warm-up >= 0, a batch >= 1")
        if self.train == "text_encoder" and self.attack.embedding == "condition":
            raise InputError("AdvUnlearn: an attack on conditions with train='text_encoder'; expected train='unet'")
        if self.keeps and not self.retain_prompts:
            raise InputError("AdvUnlearn: no retain prompts; expected some (or retain_weight=0)")
        words = _words(self.concept)
        for prompt in self.retain_prompts:
            if words <= _words(prompt):
                raise InputError(
                    f"AdvUnlearn: retain prompt {prompt!r} has the concept {self.concept!r}; expected others"
                )

    @property
    def keeps(self) -> bool:
        """Whether there is a term for what is retained."""
        return self.retain_weight > 0

    @property
    def adversary(self) -> EmbeddingPromptAttack:
        """The attack on this method's grid."""
        return replace(self.attack, start_guidance=self.start_guidance, ddim_steps=self.ddim_steps)

    @property
    def turns(self) -> int:
        """Steps of the optimiser in an iteration."""
        return 2 if self.retain == "iter" and self.keeps else 1

    def plan(self) -> Plan:
        return Plan(steps=self.iterations * self.turns, batch_size=1, lr=self.lr, schedule="constant")

    def check(self, teacher: TextToImage) -> None:
        ids = teacher.ids([self.concept])[0]
        count = teacher.count(ids)
        layout(len(ids), count, count if self.attack.position == "add" else self.attack.k, self.attack.position)

    def condition(self, student: TextToImage, run: Erasing, state: State) -> Float[Tensor, "1 l e"]:
        """The condition of the present adversarial prompt, kept in ``state.memory`` until the next attack."""
        since = state.step // self.turns - self.warmup
        if since < 0 or self.attack.steps == 0:
            return super().condition(student, run, state)
        if since % self.update_every == 0:
            latest = state.memory.get("prompt")
            found = self.adversary.attack(
                student, run.teacher, self.concept, seed=derive(run.seed, "attack", state.step), start=latest
            )
            state.memory["prompt"], state.memory["ids"] = found
        return self.attack.condition(student, state.memory["prompt"], state.memory["ids"])

    def loss(self, student: TextToImage, run: Erasing, state: State) -> Float[Tensor, ""]:
        if not self.keeps:
            return super().loss(student, run, state)
        if self.turns == 2:
            return self.kept(student, run, state) if state.step % 2 else super().loss(student, run, state)
        return super().loss(student, run, state) + self.retain_weight * self.kept(student, run, state)

    def kept(self, student: TextToImage, run: Erasing, state: State) -> Float[Tensor, ""]:
        """How far the student is from the original on a batch of retain prompts."""
        n = len(self.retain_prompts)
        pool = Data(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), ("prompt", "none"))
        rows = cycled(pool, self.retain_batch, state.step // self.turns, seed=derive(run.seed, "prompts")).index
        ids = student.ids([self.retain_prompts[int(i)] for i in rows])
        with torch.no_grad():
            told = run.teacher.encode(ids)
        seed = derive(run.seed, "retain", state.step)
        with evaluating(student.unet):
            drawn = moments(run.sampler(student), told, len(rows), self.start_guidance, self.ddim_steps, seed=seed)
        with torch.no_grad():
            aim = run.teacher.noise(drawn.z, drawn.t, told)
        return F.mse_loss(student.noise(drawn.z, drawn.t, student.encode(ids)), aim)


def _words(prompt: str) -> set[str]:
    """The words of a prompt, whatever stands between them; the prompt itself where it has none."""
    return set(re.findall(r"\w+", prompt.lower())) or {prompt}
