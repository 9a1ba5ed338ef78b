"""Erasing a concept with and without an adversary: identities, what stays as it is, and a Stable Diffusion pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.attacks import EmbeddingPromptAttack, TextToImage
from assay.attacks.prompt.embedding_prompt_attack import moments
from assay.generate import TinyT2I
from assay.runtime.errors import InputError
from assay.runtime.random import derive
from assay.unlearn import ESD, AdvUnlearn, esd_loss, esd_target

WORDS = ("a", "photo", "of", "seven", "three", "two")
SHORT: dict[str, Any] = {"iterations": 3, "lr": 1e-2, "ddim_steps": 4}
ATTACK = EmbeddingPromptAttack(steps=2, lr=0.1)


def tiny(seed: int = 0) -> TinyT2I:
    return TinyT2I.of(WORDS, (1, 4, 4), text_width=16, width=8, steps=50, seed=seed)


def adv(**options: Any) -> AdvUnlearn:
    given = {"concept": "seven", "retain_prompts": ("a three", "two"), "attack": ATTACK, "warmup": 1, **SHORT}
    return AdvUnlearn(**{**given, **options})


def state_of(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{k}": v.clone()
        for part in ("unet", "text_encoder")
        for k, v in getattr(pipe, part).state_dict().items()
    }


def moved(before: Any, after: Any) -> set[str]:
    a, b = state_of(before), state_of(after)
    return {k for k in a if not a[k].equal(b[k])}


@pytest.mark.parametrize("train", ["text_encoder", "unet"])
def test_without_attack_and_retain_prompts_it_is_esd(train: Any) -> None:
    still = replace(ATTACK, steps=0)
    for options in ({"attack": still}, {"warmup": 9}):
        mine = adv(retain_weight=0.0, train=train, **options).forget(tiny(), seed=4)
        plain = ESD(concept="seven", train=train, **SHORT).forget(tiny(), seed=4)
        assert not moved(mine, plain)
    assert moved(adv(retain_weight=0.0, train=train).forget(tiny(), seed=4), plain)


def test_target_is_led_away_from_the_concept() -> None:
    view = TextToImage.of(tiny())
    z, t = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 7, 19])
    concept, free = view.encode(view.ids(["seven"])).detach(), view.free().detach()
    with torch.no_grad():
        none, own = view.noise(z, t, free), view.noise(z, t, concept)
    torch.testing.assert_close(esd_target(view, z, t, concept, 0.0), none, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(esd_target(view, z, t, concept, 1.0), 2 * none - own, rtol=1e-4, atol=1e-5)
    assert esd_loss(own, own) == 0
    torch.testing.assert_close(esd_loss(own, none), (own - none).square().mean())


def test_first_step_of_esd_written_out() -> None:
    pipe = tiny()
    found = ESD(concept="seven", train="text_encoder", iterations=1, lr=1e-2, ddim_steps=4).forget(pipe, seed=2)
    view, other = TextToImage.of(pipe), tiny()
    concept = view.encode(view.ids(["seven"])).detach()
    drawn = moments(view, concept, 1, 3.0, 4, seed=derive(2, "esd", 0))
    seen = view.noise(drawn.z, drawn.t, TextToImage.of(other).encode(view.ids(["seven"])))
    F.mse_loss(seen, esd_target(view, drawn.z, drawn.t, concept, 1.0)).backward()
    trained = [(k, p) for k, p in other.text_encoder.named_parameters() if "embedding" not in k]
    torch.optim.Adam([p for _, p in trained], 1e-2).step()
    expected = dict(trained)
    for name, p in found.text_encoder.named_parameters():
        if name in expected:
            sure = expected[name].grad.abs() > 1e-6  # of the others, such as the keys' bias, Adam enlarges rounding
            torch.testing.assert_close(p[sure], expected[name][sure], rtol=1e-4, atol=1e-4)


def test_only_the_chosen_parameters_move() -> None:
    pipe = tiny()
    before = state_of(pipe)
    every = moved(pipe, adv().forget(pipe, seed=0))
    assert all(k.startswith("text_encoder.layers.") or "final_layer_norm" in k for k in every)
    assert {k.split(".")[2] for k in every if ".layers." in k} == {"0", "1"}
    first = moved(pipe, adv(layers=1).forget(pipe, seed=0))
    assert first
    assert all(k.startswith("text_encoder.layers.0.") for k in first)
    for component, name in (("ffn", ".mlp."), ("attn", ".self_attn.")):
        part = moved(pipe, adv(component=component).forget(pipe, seed=0))
        assert part
        assert all(name in k for k in part)
    unet = moved(pipe, adv(train="unet").forget(pipe, seed=0))
    assert unet
    assert all(k.startswith("unet.") for k in unet)
    assert all(before[k].equal(v) for k, v in state_of(pipe).items())
    assert all(p.requires_grad and p.grad is None for p in (*pipe.unet.parameters(), *pipe.text_encoder.parameters()))


def test_same_seed_same_result() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = adv().forget(tiny(), seed=0)
    assert torch.get_rng_state().equal(state)
    assert not moved(first, adv().forget(tiny(), seed=0))
    assert moved(first, adv().forget(tiny(), seed=1))
    assert first.unet is not None
    assert not first.text_encoder.training
    assert all(p.requires_grad for p in first.text_encoder.parameters())


def test_the_retain_term_holds_other_prompts() -> None:
    pipe = tiny()
    view = TextToImage.of(pipe)
    ids = view.ids(["a three", "two"])

    def drift(weight: float) -> float:
        options = {"iterations": 25, "lr": 3e-3, "retain_weight": weight, "retain_batch": 2}
        new = TextToImage.of(adv(**options).forget(pipe, seed=0))
        with torch.no_grad():
            return float((new.encode(ids) - view.encode(ids)).square().mean())

    assert drift(30.0) < 0.7 * drift(0.0)


def test_in_turns_it_takes_a_step_of_each() -> None:
    turns = adv(retain="iter", iterations=2)
    assert turns.plan().steps == 4
    assert adv(retain="iter", retain_weight=0.0).plan().steps == 3
    assert moved(turns.forget(tiny(), seed=0), adv(iterations=2).forget(tiny(), seed=0))


def test_an_attack_serves_several_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    plain = EmbeddingPromptAttack.attack

    def counted(self: Any, *given: Any, **options: Any) -> Any:
        seen.append((self.ddim_steps, options["start"] is None))
        return plain(self, *given, **options)

    monkeypatch.setattr(EmbeddingPromptAttack, "attack", counted)
    adv(iterations=6, warmup=1, update_every=2).forget(tiny(), seed=0)
    assert seen == [(4, True), (4, False), (4, False)]


def test_a_trained_text_encoder_runs_before_another_network() -> None:
    other = replace(tiny(3), text_encoder=adv().forget(tiny(0), seed=0).text_encoder)
    view = TextToImage.of(other)
    with torch.no_grad():
        images = view.sample(view.encode(view.ids(["seven"])), torch.randn(2, 1, 4, 4), 3.0, 4)
    assert torch.isfinite(images).all()


@pytest.fixture(scope="module")
def stable_diffusion() -> Any:
    diffusers = pytest.importorskip("diffusers", reason="the extra assay[diffusion] (diffusers) is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra assay[hf] (transformers) is not installed")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for word in WORDS:
        for piece in (*word, *[f"{c}</w>" for c in word]):
            vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=12, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text.eval(), tokenizer=tokenizer, unet=unet.eval(),
        scheduler=diffusers.DDIMScheduler(num_train_timesteps=20), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def test_stable_diffusion_pipeline(stable_diffusion: Any) -> None:
    pipe = stable_diffusion
    before = state_of(pipe)
    method = adv(concept="two", retain_prompts=("three", "a"), iterations=2)
    new = method.forget(pipe, seed=0)
    assert type(new) is type(pipe)
    assert new.unet is pipe.unet
    changed = moved(pipe, new)
    assert changed
    assert all(".layers." in k or "final_layer_norm" in k for k in changed)
    assert all(before[k].equal(v) for k, v in state_of(pipe).items())
    found, ids = replace(ATTACK, ddim_steps=4).attack(new, pipe, "two", seed=0)
    condition = ATTACK.condition(new, found, ids)
    assert condition.shape == (1, 12, 16)
    new.set_progress_bar_config(disable=True)
    with torch.no_grad():
        free = TextToImage.of(new).free()
        images = new(prompt_embeds=condition, negative_prompt_embeds=free, num_inference_steps=2, output_type="pt")
    assert torch.isfinite(images.images).all()


def test_unusable_options_are_refused() -> None:
    with pytest.raises(InputError, match="no retain prompts"):
        adv(retain_prompts=())
    for prompt in ("a Seven", "a photo of seven.", "two,seven", "seven-ish"):
        with pytest.raises(InputError, match="has the concept"):
            adv(retain_prompts=("a two", prompt))
    assert adv(retain_prompts=("seventy",)).retain_prompts == ("seventy",)
    for options, match in (
        ({"iterations": -1}, "steps=-1"),
        ({"lr": 0.0}, "lr > 0"),
        ({"ddim_steps": 0}, "ddim_steps=0"),
        ({"start_guidance": float("nan")}, "finite guidance"),
        ({"layers": 0, "train": "text_encoder"}, "layers >= 1"),
    ):
        with pytest.raises(InputError, match=match):
            ESD(concept="seven", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ddim_steps=0"):
        EmbeddingPromptAttack(ddim_steps=0)
    with pytest.raises(InputError, match="at most 6 together"):
        adv(attack=EmbeddingPromptAttack(k=6)).forget(tiny(), seed=0)
    with pytest.raises(InputError, match="attack on conditions"):
        adv(attack=EmbeddingPromptAttack(embedding="condition"))
    with pytest.raises(InputError, match="unknown part"):
        adv(train="vae")
    with pytest.raises(InputError, match="unknown component"):
        adv(component="norm")
    with pytest.raises(InputError, match="unknown retain"):
        adv(retain="never")
    with pytest.raises(InputError, match="of the U-Net"):
        ESD(concept="seven", layers=1)
    with pytest.raises(InputError, match="concept is empty"):
        ESD(concept=" ")
    with pytest.raises(InputError, match="retain_batch=0"):
        adv(retain_batch=0)
    with pytest.raises(InputError, match="no such layers"):
        ESD(concept="seven", train="text_encoder").chosen(nn.Linear(2, 2))


def test_conditions_are_attacked_where_the_network_is_trained() -> None:
    attack = replace(ATTACK, embedding="condition")
    assert moved(tiny(), adv(train="unet", attack=attack).forget(tiny(), seed=0))
