"""Models that say what an image shows: ensembles by vote, and CLIP without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError, unknown

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own


class Ensemble(nn.Module):
    """The labels (n,) that ``members``, models with logits (n, c), vote for.

    ``rule`` "majority": the label with most votes, of several the lowest; "unanimous": the common label, -1 where
    members differ. InputError for no members or another rule.
    """

    def __init__(self, members: Sequence[nn.Module], rule: Literal["majority", "unanimous"] = "majority") -> None:
        super().__init__()
        if not members:
            raise InputError("Ensemble: no members; expected at least one model")
        if rule not in ("majority", "unanimous"):
            raise unknown("rule of Ensemble", str(rule), ("majority", "unanimous"))
        self.members, self.rule = nn.ModuleList(members), rule

    def forward(self, x: Float[Tensor, "n ..."]) -> Int[Tensor, " n"]:
        logits = torch.stack([m(x) for m in self.members])
        votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(0)
        label = votes.argmax(1)
        if self.rule == "majority":
            return label
        return label.where(votes.amax(1) == len(self.members), -1)


class CLIPZeroShot(nn.Module):
    """Zero-shot classification by a CLIPModel of transformers (Radford et al., 2021, arXiv:2103.00020, section 3.1).

    ``prompts`` (classes, templates, tokens) int64: the tokenised class prompts, whose normalised embeddings are
    averaged over templates. Images (n, 1 or 3, h, w) in [0, 1] are resized to the model's own size. Gives logits.
    """

    text: Tensor

    def __init__(self, model: nn.Module, prompts: Int[Tensor, "c p t"]) -> None:
        super().__init__()
        if prompts.dim() != 3 or prompts.dtype != torch.int64:
            found = f"{prompts.dtype} of shape {tuple(prompts.shape)}"
            raise InputError(f"CLIPZeroShot: prompts are {found}; expected int64 (classes, templates, tokens)")
        self.model: Any = model
        with torch.no_grad():
            clip: Any = model
            pooled = clip.text_model(input_ids=prompts.flatten(0, 1)).pooler_output
            each = F.normalize(clip.text_projection(pooled), dim=1)
        self.register_buffer("text", F.normalize(each.view(*prompts.shape[:2], -1).mean(1), dim=1))

    def forward(self, x: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        size = self.model.config.vision_config.image_size
        rgb = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        rgb = F.interpolate(rgb, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (x.new_tensor(v)[:, None, None] for v in (MEAN, STD))
        pooled = self.model.vision_model(pixel_values=(rgb - mean) / std).pooler_output
        image = F.normalize(self.model.visual_projection(pooled), dim=1)
        return self.model.logit_scale.exp() * image @ self.text.T
