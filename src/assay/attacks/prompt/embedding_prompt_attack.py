"""Free token vectors in a prompt that bring an erased concept back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.prompt.layout import POSITIONS, layout
from assay.attacks.prompt.text_to_image import TextToImage
from assay.data import Batch, Data
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched, evaluating
from assay.runtime.random import derive, torch_rng
from assay.training import Plan, State, fit

ROWS = 32  # latents that are drawn at once


class _Free(nn.Module):
    """The vectors that are sought."""

    def __init__(self, start: Float[Tensor, "1 k d"]) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start.clone())


class _Adam(torch.optim.Adam):
    """Adam on the gradient's sign where ``sign``, and on what no step sets back to zero where ``accumulate``."""

    def __init__(self, parameters: Any, lr: float, sign: bool, accumulate: bool) -> None:
        super().__init__(parameters, lr)
        self.sign, self.accumulate = sign, accumulate
        self.held: Any = 0.0

    def step(self, closure: Any = None) -> Any:
        (free,) = self.param_groups[0]["params"]
        free.grad = free.grad + self.held
        if self.sign:
            free.grad = free.grad.sign()
        if self.accumulate:
            self.held = free.grad.clone()
        return super().step(closure)


@dataclass(frozen=True)
class Moments:
    """Latents ``z`` (n, ...) on the way of the sampler, and the step ``t`` (n,) of each."""

    z: Tensor
    t: Int[Tensor, " n"]


def moments(
    sampler: TextToImage, condition: Float[Tensor, "#n l e"], n: int, guidance: float, steps: int, *, seed: int
) -> Moments:
    """n latents that the sampler's network draws, each down to a level uniform on its grid of ``steps``, with a step
    uniform from that level to the next (Gandikota et al., 2023, arXiv:2303.07345, as in the official code)."""
    times, rng, device = sampler.times(steps), torch_rng(seed, "moments"), condition.device
    level = torch.randint(steps, (n,), generator=rng)
    ends = torch.cat((times, torch.tensor([len(sampler.alphas)])))
    low, high = ends[level], ends[level + 1]
    t = low + (torch.rand(n, generator=rng) * (high - low)).long()
    noise = torch.randn(n, *sampler.shape, generator=rng)

    def latents(told: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        return sampler.latents(told, level, noise, guidance, steps)

    z = batched(latents, condition.expand(n, -1, -1), level, noise, batch_size=ROWS, device=device)
    return Moments(z.to(device), t.to(device))


@dataclass(frozen=True, kw_only=True)
class EmbeddingPromptAttack:
    """Seek k token vectors under which the erased model sees the noise that the original sees under the concept (Zhang
    et al., 2024, arXiv:2405.15234, eq. 5): minimise the mean of |e(z_t | c*) - e_o(z_t | c)|^2 in c*.

    ``steps`` of Adam at ``lr``, each at another t and another z_t, drawn by the erased network under the original's
    condition of the concept, ``start_guidance`` and ``ddim_steps``; "sign" takes the gradient's sign first (the fast
    variant). Where the vectors stand says ``position`` (see layout; "add" takes as many as the prompt has tokens).
    ``embedding`` "word": vectors of tokens, which the erased text encoder reads; "condition": of what it has made of
    the prompt, which no text encoder reads. They start at random tokens of the vocabulary, the first, last and padding
    tokens excluded, or with ``init`` "latest" at what an earlier attack found (``start``). ``accumulate`` never sets
    the gradient back to zero between steps, as the official code does. InputError for other options.
    """

    kind: ClassVar[str] = "function"

    k: int = 1
    position: Literal["prefix", "suffix", "replace", "add", "mid", "insert", "per_k_words"] = "prefix"
    embedding: Literal["word", "condition"] = "word"
    steps: int = 30
    lr: float = 1e-3
    method: Literal["adam", "sign"] = "adam"
    init: Literal["random", "latest"] = "random"
    accumulate: bool = False
    start_guidance: float = 3.0
    ddim_steps: int = 50
    hidden_layer: int | None = None

    def __post_init__(self) -> None:
        choices = {"position": POSITIONS, "embedding": ("word", "condition"), "method": ("adam", "sign")}
        for name, known in (*choices.items(), ("init", ("random", "latest"))):
            if getattr(self, name) not in known:
                raise unknown(f"{name} of EmbeddingPromptAttack", str(getattr(self, name)), known)
        if self.k < 1 or self.steps < 0 or not self.lr > 0:
            given = f"k={self.k}, steps={self.steps}, lr={self.lr}"
            raise InputError(f"EmbeddingPromptAttack: {given}; expected k >= 1, steps >= 0, lr > 0")
        if not math.isfinite(self.start_guidance) or self.ddim_steps < 1:
            given = f"start_guidance={self.start_guidance}, ddim_steps={self.ddim_steps}"
            raise InputError(f"EmbeddingPromptAttack: {given}; expected finite guidance and steps >= 1")

    def attack(
        self, student: Any, teacher: Any, prompt: str, *, seed: int, start: Float[Tensor, "1 l d"] | None = None
    ) -> tuple[Float[Tensor, "1 l d"], Int[Tensor, "1 l"]]:
        """The adversarial prompt: its vectors, of tokens or of the condition, and ids that say where it ends.

        student, teacher: the erased and the original pipeline, see TextToImage.of. ``condition`` makes of the answer
        what the network reads. ``start``: the vectors of an earlier attack, for ``init`` "latest". The models are run
        in evaluation mode and stay as they are. InputError where prompt and free tokens are too long.
        """
        erased, original = (TextToImage.of(p, self.hidden_layer) for p in (student, teacher))
        ids = erased.ids([prompt])
        count = erased.count(ids[0])
        k = count if self.position == "add" else self.k
        places = layout(ids.shape[1], count, k, self.position).to(ids.device)
        parts = (erased.unet, erased.text_encoder, original.unet, original.text_encoder)
        with evaluating(nn.ModuleList(parts)):
            tokens = self.tokens(erased, k, seed).to(ids.device)
            new = self.named(ids, tokens, places)
            with torch.no_grad():
                own, first = (self.vectors(erased, i) for i in (ids, tokens))
            if self.init == "latest" and start is not None:
                first = self.latest(own, start, places, k)
            free = self.sought(erased, original, own, first, new, places, prompt, seed)
            return self.placed(own, free, places).detach(), new

    def condition(
        self, student: Any, vectors: Float[Tensor, "1 l d"], ids: Int[Tensor, "1 l"]
    ) -> Float[Tensor, "1 l e"]:
        """What the network reads of an adversarial prompt."""
        if self.embedding == "condition":
            return vectors
        return TextToImage.of(student, self.hidden_layer).encode(ids, vectors)

    def tokens(self, view: TextToImage, k: int, seed: int) -> Int[Tensor, "1 k"]:
        """Random tokens of the vocabulary to start from."""
        special = {view.tokenizer.bos_token_id, view.tokenizer.eos_token_id, view.tokenizer.pad_token_id}
        ordinary = torch.tensor([i for i in range(len(view.tokenizer)) if i not in special])
        return ordinary[torch.randint(len(ordinary), (1, k), generator=torch_rng(seed, "tokens"))]

    def vectors(self, view: TextToImage, ids: Int[Tensor, "1 l"]) -> Float[Tensor, "1 l d"]:
        """The space that is searched: vectors of tokens, or of their condition."""
        return view.words(ids) if self.embedding == "word" else view.encode(ids)

    def named(self, ids: Int[Tensor, "1 l"], tokens: Tensor, places: Tensor) -> Int[Tensor, "1 l"]:
        """The ids of the whole prompt; free tokens bear those they started at."""
        return torch.cat((ids, tokens), 1)[:, places]

    def latest(self, own: Tensor, start: Tensor, places: Tensor, k: int) -> Float[Tensor, "1 k d"]:
        """The free vectors of an earlier answer ``start``."""
        if self.position == "add":
            return (start - own)[:, 1 : 1 + k]
        return start[:, places >= own.shape[1]]

    def placed(self, own: Tensor, free: Float[Tensor, "1 k d"], places: Tensor) -> Float[Tensor, "1 l d"]:
        """The whole prompt's vectors."""
        if self.position != "add":
            return torch.cat((own, free), 1)[:, places]
        return own + F.pad(free, (0, 0, 1, own.shape[1] - 1 - free.shape[1]))

    def sought(
        self,
        erased: TextToImage,
        original: TextToImage,
        own: Tensor,
        first: Tensor,
        ids: Tensor,
        places: Tensor,
        prompt: str,
        seed: int,
    ) -> Float[Tensor, "1 k d"]:
        """The free vectors after ``steps`` steps from ``first``."""
        if self.steps == 0:
            return first
        with torch.no_grad():
            concept = original.encode(original.ids([prompt]))
        sampler = replace(original, unet=erased.unet)
        drawn = moments(sampler, concept, self.steps, self.start_guidance, self.ddim_steps, seed=derive(seed, "draws"))
        told = concept.expand(self.steps, -1, -1)
        aim = batched(original.noise, drawn.z, drawn.t, told, batch_size=ROWS).to(drawn.z.device)

        def objective(free: nn.Module, batch: Batch, state: State) -> Tensor:
            j = slice(state.step, state.step + 1)
            c = self.condition(erased, self.placed(own, free.vectors, places), ids)  # type: ignore[arg-type]
            return F.mse_loss(erased.noise(drawn.z[j], drawn.t[j], c), aim[j])

        maker = partial(_Adam, lr=self.lr, sign=self.method == "sign", accumulate=self.accumulate)
        plan = Plan(steps=self.steps, batch_size=1, optimizer=maker, lr=self.lr, schedule="constant")
        clock = Data(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), ("step", "none"))
        return fit(_Free(first), clock, objective, plan, seed=seed).vectors.detach()  # type: ignore[operator]
