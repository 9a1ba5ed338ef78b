"""A text-to-image diffusion model as its attacks and erasers see it: words, conditions, noise, and latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.inference import device_of

PARTS = ("unet", "text_encoder", "tokenizer", "scheduler")


def ddim(
    z: Float[Tensor, "n ..."], e: Float[Tensor, "n ..."], a: float, b: float, clip: float | None = None
) -> Float[Tensor, "n ..."]:
    """One step of DDIM (Song et al., 2021, arXiv:2010.02502, eq. 12 without noise) on the noise ``e`` seen in z, from
    the level alphas_cumprod = a to the level b; the clean latent that it implies is cut to [-clip, clip]."""
    clean = (z - (1 - a) ** 0.5 * e) / a**0.5
    if clip is not None:
        clean = clean.clamp(-clip, clip)
        e = (z - a**0.5 * clean) / (1 - a) ** 0.5
    return b**0.5 * clean + (1 - b) ** 0.5 * e


@dataclass(frozen=True, eq=False)
class TextToImage:
    """The parts of a latent diffusion pipeline that predicts noise: ``unet(z, t, encoder_hidden_states=c)`` and
    ``text_encoder(ids)`` give tensors, or objects of diffusers and transformers that hold them.

    ``alphas`` (T,): alphas_cumprod. ``shape``: that of one latent. ``hidden_layer`` None takes the encoder's last
    hidden state, as Stable Diffusion 1 does; -2 the one before it (Stable Diffusion 2 and XL). ``clip``: see ddim; the
    scheduler has it for models of pixels.
    """

    unet: nn.Module
    text_encoder: nn.Module
    tokenizer: Any
    alphas: Float[Tensor, " t"]
    shape: tuple[int, ...]
    hidden_layer: int | None = None
    clip: float | None = None

    @classmethod
    def of(cls, pipeline: Any, hidden_layer: int | None = None) -> TextToImage:
        """The view of a diffusers StableDiffusionPipeline, or of an object with the same attributes.

        InputError where a part is missing, the scheduler has no ``alphas_cumprod``, or the network predicts no noise.
        """
        if isinstance(pipeline, TextToImage):
            return pipeline
        who = type(pipeline).__name__
        for part in PARTS:
            if getattr(pipeline, part, None) is None:
                raise InputError(f"{who}: no {part}; expected a pipeline with {', '.join(PARTS)}")
        alphas = getattr(pipeline.scheduler, "alphas_cumprod", None)
        if not isinstance(alphas, Tensor):
            scheduler = type(pipeline.scheduler).__name__
            raise InputError(f"{who}: {scheduler} has no alphas_cumprod; expected a DDPM or DDIM scheduler")
        plan = getattr(pipeline.scheduler, "config", None)
        predicts = getattr(plan, "prediction_type", "epsilon")
        if predicts != "epsilon":
            raise InputError(f"{who}: the network predicts {predicts!r}; expected 'epsilon'")
        config = pipeline.unet.config
        side = config.sample_size
        sides = (side, side) if isinstance(side, int) else tuple(side)
        shape = (config.in_channels, *sides)
        clip = getattr(plan, "clip_sample_range", 1.0) if getattr(plan, "clip_sample", False) else None
        return cls(pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, alphas, shape, hidden_layer, clip)

    def ids(self, prompts: Sequence[str]) -> Int[Tensor, "n l"]:
        """Token ids, padded to the tokenizer's length."""
        length = self.tokenizer.model_max_length
        told = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return told.input_ids.to(device_of(self.text_encoder))

    def count(self, ids: Int[Tensor, " l"]) -> int:
        """How many tokens a prompt has between the first and its end."""
        return int((ids == self.tokenizer.eos_token_id).nonzero()[0, 0]) - 1

    def words(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """The vectors of tokens, without their positions, and without a gradient."""
        table: Tensor = self.text_encoder.get_input_embeddings().weight.detach()  # type: ignore[operator]
        return table[ids]

    def encode(self, ids: Int[Tensor, "n l"], words: Float[Tensor, "n l d"] | None = None) -> Float[Tensor, "n l e"]:
        """The condition of prompts. ``words`` take the place of the tokens' vectors: positions are added to them, the
        causal mask stays, and the end of the prompt is where ``ids`` say."""
        options = {} if self.hidden_layer is None else {"output_hidden_states": True}
        if words is None:
            out = self.text_encoder(ids, **options)
        else:
            table: nn.Module = self.text_encoder.get_input_embeddings()  # type: ignore[operator]
            handle = table.register_forward_hook(lambda *_: words)
            try:
                out = self.text_encoder(ids, **options)
            finally:
                handle.remove()
        if self.hidden_layer is not None:
            return out.hidden_states[self.hidden_layer]
        return out if isinstance(out, Tensor) else out.last_hidden_state

    def noise(
        self, z: Float[Tensor, "n ..."], t: Int[Tensor, " n"], condition: Float[Tensor, "#n l e"]
    ) -> Float[Tensor, "n ..."]:
        """The noise that the network sees in latents at steps t; one condition serves all."""
        out = self.unet(z, t, encoder_hidden_states=condition.expand(len(z), -1, -1))
        return out if isinstance(out, Tensor) else out.sample

    def free(self) -> Float[Tensor, "1 l e"]:
        """The condition of no prompt."""
        return self.encode(self.ids([""]))

    def guided(
        self,
        z: Float[Tensor, "n ..."],
        t: Int[Tensor, " n"],
        condition: Float[Tensor, "#n l e"],
        free: Float[Tensor, "1 l e"],
        guidance: float,
    ) -> Float[Tensor, "n ..."]:
        """Classifier-free guidance (Ho and Salimans, 2022, arXiv:2207.12598): e(0) + guidance (e(c) - e(0))."""
        if guidance == 1:
            return self.noise(z, t, condition)
        both = torch.cat((condition.expand(len(z), -1, -1), free.expand(len(z), -1, -1)))
        own, none = self.noise(z.repeat(2, *[1] * (z.dim() - 1)), t.repeat(2), both).chunk(2)
        return none + guidance * (own - none)

    def times(self, steps: int) -> Int[Tensor, " s"]:
        """The grid of DDIM: step i of ``steps`` is time floor(i T / steps)."""
        if not 1 <= steps <= len(self.alphas):
            raise InputError(f"DDIM: {steps} steps; expected 1 to {len(self.alphas)}")
        return torch.arange(steps) * len(self.alphas) // steps

    @torch.no_grad()
    def latents(
        self,
        condition: Float[Tensor, "#n l e"],
        level: Int[Tensor, " n"],
        noise: Float[Tensor, "n ..."],
        guidance: float,
        steps: int,
    ) -> Float[Tensor, "n ..."]:
        """Each row from noise down to its own level of the grid: ``steps`` - 1 is the noise itself, 0 almost clean."""
        times, free, z, kept = self.times(steps), self.free(), noise, noise
        bars = self.alphas[times].tolist()
        for i in range(steps - 1, int(level.min()), -1):
            t = times[i].to(z.device).expand(len(z))
            z = ddim(z, self.guided(z, t, condition, free, guidance), bars[i], bars[i - 1], self.clip)
            kept = torch.where((level < i).reshape(-1, *[1] * (z.dim() - 1)), z, kept)
        return kept

    @torch.no_grad()
    def sample(
        self, condition: Float[Tensor, "#n l e"], noise: Float[Tensor, "n ..."], guidance: float, steps: int
    ) -> Float[Tensor, "n ..."]:
        """Finished latents: from level 0 the noise that is still seen is taken out."""
        last = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)
        z = self.latents(condition, last, noise, guidance, steps)
        e = self.guided(z, last, condition, self.free(), guidance)
        return ddim(z, e, float(self.alphas[0]), 1.0, self.clip)
