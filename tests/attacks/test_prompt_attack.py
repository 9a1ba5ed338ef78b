"""Adversarial prompts: where free tokens stand, the sampler against diffusers, and Adam's steps written out."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.attacks import EmbeddingPromptAttack, TextToImage, concept_attack_success
from assay.attacks.prompt.embedding_prompt_attack import moments
from assay.attacks.prompt.layout import layout
from assay.attacks.prompt.text_to_image import ddim
from assay.generate import TinyT2I
from assay.runtime.errors import InputError
from assay.runtime.random import derive

WORDS = ("a", "photo", "of", "seven", "three", "two")
STEPS = 50


def tiny(seed: int = 0) -> TinyT2I:
    return TinyT2I.of(WORDS, (1, 4, 4), text_width=16, width=8, steps=STEPS, seed=seed)


def clip() -> Any:
    transformers = pytest.importorskip("transformers", reason="the extra assay[hf] (transformers) is not installed")
    config = transformers.CLIPTextConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return replace(tiny(), text_encoder=transformers.CLIPTextModel(config).eval())


PLACES = {
    ("prefix", 2): [0, 10, 11, 1, 2, 3, 4, 5, 6, 7],
    ("suffix", 2): [0, 1, 2, 3, 10, 11, 4, 5, 6, 7],
    ("replace", 2): [0, 10, 11, 4, 4, 4, 4, 5, 6, 7],
    ("mid", 2): [0, 1, 10, 11, 2, 3, 4, 5, 6, 7],
    ("insert", 2): [0, 1, 10, 2, 11, 3, 4, 5, 6, 7],
    ("add", 3): list(range(10)),
    ("per_k_words", 1): [0, 10, 1, 2, 3, 4, 5, 6, 7, 8],
}


@pytest.mark.parametrize(("position", "k"), PLACES)
def test_layout(position: str, k: int) -> None:
    assert layout(10, 3, k, position).tolist() == PLACES[position, k]


def test_layout_of_longer_prompts_and_its_errors() -> None:
    assert layout(12, 5, 2, "per_k_words").tolist() == [0, 12, 1, 2, 3, 13, 4, 5, 6, 7, 8, 9]
    assert layout(12, 5, 2, "insert").tolist() == [0, 1, 12, 2, 13, 3, 4, 5, 6, 7, 8, 9]
    assert layout(10, 3, 5, "prefix").tolist() == [0, 10, 11, 12, 13, 14, 1, 2, 3, 4]
    with pytest.raises(InputError, match="at most 8 together"):
        layout(10, 4, 5, "prefix")
    with pytest.raises(InputError, match="unknown position"):
        layout(10, 4, 1, "nowhere")


@pytest.mark.parametrize("make", [tiny, clip])
def test_own_words_give_the_own_condition_and_free_ones_shift_the_end(make: Any) -> None:
    view = TextToImage.of(make())
    ids = view.ids(["a photo of seven", "three"])
    with torch.no_grad():
        assert view.encode(ids, view.words(ids)).equal(view.encode(ids))
        moved = view.encode(ids, view.words(ids) + 0.1)
        assert not moved.allclose(view.encode(ids))
        assert not view.text_encoder.get_input_embeddings()._forward_hooks
    attack = EmbeddingPromptAttack(k=2, steps=0)
    vectors, new = attack.attack(make(), make(), "three", seed=0)
    assert vectors.shape == (1, 8, 16)
    assert new.shape == (1, 8)
    assert view.count(ids[1]) == 1
    assert view.count(new[0]) == 1 + 2
    assert new[0, 3] == ids[1, 1]
    assert vectors.equal(view.words(new))


def test_hidden_layer_before_the_last() -> None:
    pipe = clip()
    view = TextToImage.of(pipe, hidden_layer=-2)
    ids = view.ids(["seven"])
    with torch.no_grad():
        expected = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        assert view.encode(ids).equal(expected)


def test_sampler_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="the extra assay[diffusion] (diffusers) is not installed")
    view = TextToImage.of(tiny())
    betas = torch.linspace(0.1 / STEPS, 20 / STEPS, STEPS, dtype=torch.float64).float().numpy()
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=STEPS, trained_betas=betas, clip_sample=True, set_alpha_to_one=True, steps_offset=0
    )
    torch.testing.assert_close(scheduler.alphas_cumprod, view.alphas, rtol=1e-4, atol=1e-7)
    scheduler.set_timesteps(5)
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        condition, free = view.encode(view.ids(["seven"])), view.free()
        z = noise
        for t in scheduler.timesteps:
            e = view.guided(z, t.expand(3), condition, free, 3.0)
            own = view.unet(z, t.expand(3), condition.expand(3, -1, -1))
            none = view.unet(z, t.expand(3), free.expand(3, -1, -1))
            torch.testing.assert_close(e, none + 3 * (own - none), rtol=1e-4, atol=1e-5)
            z = scheduler.step(e, t, z, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(view.sample(condition, noise, 3.0, 5), z, rtol=1e-4, atol=1e-4)


def test_latents_stop_each_row_at_its_level() -> None:
    view = TextToImage.of(tiny())
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    condition = view.encode(view.ids(["seven"])).detach()
    found = view.latents(condition, torch.tensor([4, 0, 2]), noise, 2.0, 5)
    assert found[0].equal(noise[0])
    for row, level in ((1, 0), (2, 2)):
        alone = view.latents(condition, torch.tensor([level]), noise[row : row + 1], 2.0, 5)
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    drawn = moments(view, condition, 400, 1.0, 5, seed=0)
    assert drawn.t.min() >= 0
    assert drawn.t.max() < STEPS
    assert len(drawn.t.unique()) > 0.9 * STEPS
    e = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(ddim(0.8 * noise + 0.6 * e, e, 0.64, 1.0), noise, rtol=1e-4, atol=1e-5)


def stepped(attack: EmbeddingPromptAttack, student: TinyT2I, teacher: TinyT2I, seed: int) -> Tensor:
    """Prefix attacks by torch's own Adam, one step after the other."""
    erased, original = TextToImage.of(student), TextToImage.of(teacher)
    ids, concept = erased.ids(["seven"]), original.encode(original.ids(["seven"])).detach()
    sampler = replace(original, unet=erased.unet)
    drawn = moments(
        sampler, concept, attack.steps, attack.start_guidance, attack.ddim_steps, seed=derive(seed, "draws")
    )
    start = EmbeddingPromptAttack(k=attack.k, steps=0).attack(student, teacher, "seven", seed=seed)
    free = start[0][:, 1 : 1 + attack.k].clone().requires_grad_()
    optimizer = torch.optim.Adam([free], attack.lr)
    for j in range(attack.steps):
        vectors = torch.cat((erased.words(ids)[:, :1], free, erased.words(ids)[:, 1 : 8 - attack.k]), 1)
        aim = original.noise(drawn.z[j : j + 1], drawn.t[j : j + 1], concept).detach()
        seen = erased.noise(drawn.z[j : j + 1], drawn.t[j : j + 1], erased.encode(start[1], vectors))
        F.mse_loss(seen, aim).backward(inputs=[free])
        if attack.method == "sign":
            free.grad.sign_()
        optimizer.step()
        if not attack.accumulate:
            optimizer.zero_grad()
    return free.detach()


@pytest.mark.parametrize("method", ["adam", "sign"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_steps_are_those_of_adam(method: str, accumulate: bool) -> None:
    attack = EmbeddingPromptAttack(
        k=2,
        steps=4,
        lr=0.05,
        method=method,
        accumulate=accumulate,
        ddim_steps=5,  # type: ignore[arg-type]
    )
    found, _ = attack.attack(tiny(1), tiny(0), "seven", seed=3)
    torch.testing.assert_close(found[:, 1:3], stepped(attack, tiny(1), tiny(0), 3), rtol=1e-4, atol=1e-6)


def test_attack_finds_the_concept_where_only_its_word_was_changed() -> None:
    teacher, student = tiny(0), tiny(0)
    number = teacher.tokenizer.number["seven"]
    with torch.no_grad():
        student.text_encoder.token_embedding.weight[number] += 2.0
    erased, original = TextToImage.of(student), TextToImage.of(teacher)
    with torch.no_grad():
        concept = original.encode(original.ids(["seven"]))
        drawn = moments(original, concept, 40, 3.0, 5, seed=9)
        aim = original.noise(drawn.z, drawn.t, concept)

    def gap(attack: EmbeddingPromptAttack) -> float:
        found = attack.attack(student, teacher, "seven", seed=0)
        with torch.no_grad():
            return float(F.mse_loss(erased.noise(drawn.z, drawn.t, attack.condition(student, *found)), aim))

    for options in ({"position": "prefix"}, {"position": "add"}, {"embedding": "condition", "position": "replace"}):
        before, after = (
            gap(EmbeddingPromptAttack(steps=n, lr=0.1, ddim_steps=5, **options))  # type: ignore[arg-type]
            for n in (0, 60)
        )
        assert after < before


def test_latest_starts_where_an_earlier_attack_stopped() -> None:
    for position in ("prefix", "suffix", "add"):
        attack = EmbeddingPromptAttack(k=2, position=position, steps=2, lr=0.1, ddim_steps=5)  # type: ignore[arg-type]
        found, _ = attack.attack(tiny(1), tiny(0), "a seven", seed=1)
        still = replace(attack, steps=0, init="latest").attack(tiny(1), tiny(0), "a seven", seed=2, start=found)[0]
        torch.testing.assert_close(still, found)


def test_same_seed_same_prompt_and_nothing_changes() -> None:
    student, teacher = tiny(1), tiny(0)
    student.text_encoder.train()
    before = [
        {k: v.clone() for k, v in m.state_dict().items()} for p in (student, teacher) for m in (p.unet, p.text_encoder)
    ]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    attack = EmbeddingPromptAttack(steps=3, lr=0.1, ddim_steps=4)
    first, ids = attack.attack(student, teacher, "seven", seed=1)
    again = attack.attack(student, teacher, "seven", seed=1)
    assert first.equal(again[0])
    assert ids.equal(again[1])
    assert not attack.attack(student, teacher, "seven", seed=2)[0].equal(first)
    assert torch.get_rng_state().equal(state)
    assert student.text_encoder.training
    assert not first.requires_grad
    nets = [m for p in (student, teacher) for m in (p.unet, p.text_encoder)]
    assert all(kept[k].equal(v) for kept, m in zip(before, nets, strict=True) for k, v in m.state_dict().items())
    assert all(p.requires_grad and p.grad is None for m in nets for p in m.parameters())


def test_success_is_the_share_of_images() -> None:
    images = {"x": torch.tensor([[1.0], [0.0]]), "y": torch.ones(2, 1)}
    assert concept_attack_success(images.__getitem__, lambda i: i[:, 0] > 0, ["x", "y"]) == 0.75
    with pytest.raises(InputError, match="no prompts"):
        concept_attack_success(images.__getitem__, lambda i: i[:, 0] > 0, [])
    with pytest.raises(InputError, match="expected bool"):
        concept_attack_success(images.__getitem__, lambda i: i, ["x"])


def test_unusable_input_is_refused() -> None:
    pipe = tiny()
    with pytest.raises(InputError, match="no alphas_cumprod"):
        TextToImage.of(replace(pipe, scheduler=SimpleNamespace(betas=1)))
    with pytest.raises(InputError, match="no unet"):
        TextToImage.of(SimpleNamespace(text_encoder=1))
    scheduler = SimpleNamespace(alphas_cumprod=torch.ones(3), config=SimpleNamespace(prediction_type="v_prediction"))
    with pytest.raises(InputError, match="'v_prediction'"):
        TextToImage.of(replace(pipe, scheduler=scheduler))
    with pytest.raises(InputError, match="at most 6 together"):
        EmbeddingPromptAttack(k=6).attack(pipe, pipe, "seven", seed=0)
    with pytest.raises(InputError, match="expected 1 to 50"):
        EmbeddingPromptAttack(ddim_steps=51).attack(pipe, pipe, "seven", seed=0)
    with pytest.raises(InputError, match="of the words"):
        EmbeddingPromptAttack().attack(pipe, pipe, "eight", seed=0)
    for options in ({"position": "x"}, {"method": "x"}, {"init": "x"}, {"embedding": "x"}, {"k": 0}, {"lr": 0.0}):
        with pytest.raises(InputError):
            EmbeddingPromptAttack(**options)  # type: ignore[arg-type]
