"""How often a prompt brings back an erased concept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from assay.runtime.errors import InputError

Prompt = TypeVar("Prompt")


def concept_attack_success(
    generate: Callable[[Prompt], Tensor], classifier: Callable[[Tensor], Tensor], prompts: Sequence[Prompt]
) -> float:
    """The attack success rate: the share, in [0, 1], of all images that show the concept.

    generate: images (n, ...) for a prompt, as text or as embeddings. classifier: says of images (n, ...) which show
    the concept, (n,) bool. InputError for no prompts, and for an answer of another shape.
    """
    if not len(prompts):
        raise InputError("concept_attack_success: no prompts; expected at least one")
    found = []
    for prompt in prompts:
        images = generate(prompt)
        shown = classifier(images)
        if shown.dtype != torch.bool or shown.shape != (len(images),):
            given = f"{shown.dtype} {tuple(shown.shape)}"
            raise InputError(f"concept_attack_success: the classifier gives {given}; expected bool ({len(images)},)")
        found.append(shown.cpu())
    return float(torch.cat(found).double().mean())
