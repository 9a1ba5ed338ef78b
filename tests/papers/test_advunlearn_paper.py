"""What is special to the paper on robust concept erasure: its prompts, its shams, and that its weights stay put."""

from __future__ import annotations

import pytest
import torch

from assay.attacks import EmbeddingPromptAttack, TextToImage
from assay.papers import advunlearn as paper
from assay.runtime.errors import InputError

SCALE = paper.PAPER.scale("smoke")


def test_no_retain_prompt_has_the_concept_and_all_can_be_read() -> None:
    base = paper.models("smoke").base
    view = TextToImage.of(base)
    assert len(paper.RETAIN) == 9 * len(paper.TEMPLATES)
    number = base.tokenizer.number[paper.CONCEPT]
    assert not (view.ids(paper.RETAIN) == number).any()
    assert (view.ids([form.format(paper.CONCEPT) for form in paper.TEMPLATES]) == number).sum() == len(paper.TEMPLATES)
    with pytest.raises(InputError, match="of the words"):
        view.ids(["eleven"])


def test_random_prefix_does_the_work_and_throws_it_away() -> None:
    base = paper.models("smoke").base
    options = {"steps": 2, "lr": 0.1, "ddim_steps": 3}
    real, sham = (
        kind(**options).attack(base, base, paper.CONCEPT, seed=1)
        for kind in (EmbeddingPromptAttack, paper._RandomPrefix)
    )
    start = EmbeddingPromptAttack(steps=0).attack(base, base, paper.CONCEPT, seed=1)
    assert sham[0].equal(start[0])
    assert sham[1].equal(real[1])
    assert not real[0].equal(start[0])


def test_positive_guidance_aims_at_what_was_seen() -> None:
    method = paper.eraser(SCALE, "positive-guidance")
    assert method.negative_guidance == -1
    view = TextToImage.of(paper.models("smoke").base)
    z, t = torch.randn(3, *view.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 50, 99])
    with torch.no_grad():
        concept = view.encode(view.ids([paper.CONCEPT]))
        seen = view.noise(z, t, concept)
    torch.testing.assert_close(paper.esd_target(view, z, t, concept, method.negative_guidance), seen)


def test_further_training_leaves_the_text_encoder() -> None:
    shared = paper.models("smoke")
    assert paper.changed(shared.base.text_encoder, shared.other.text_encoder) == 0
    assert paper.changed(shared.base.unet, shared.other.unet) > 0
    assert all(p.requires_grad for p in shared.base.text_encoder.parameters())
    assert 0 <= shared.accuracy <= 1
