"""The gray-box attack on encoders: exact forms, what every attack promises, and that no decoder is ever called."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks import EncoderAttack, find_image_encoder
from assay.attacks.image_encoder import embedding
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded, torch_rng
from assay.vision import TinyCaptioner, TinyViT

SHORT = EncoderAttack(eps=0.2, steps=40, c=0.01)
POOLS = ("pooler", "cls", "mean", "tokens")


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    with seeded(0, "init"):
        return TinyViT((2, 8, 8), patch=4, width=16, layers=1, heads=2)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(6, 2, 8, 8, generator=torch_rng(0, "x"))


def likeness(encoder: nn.Module, a: Tensor, b: Tensor, pool: str) -> Tensor:
    """The mean cosine of the embeddings of two batches of pixels, by themselves."""
    with torch.no_grad():
        (hidden, pooled), (other, second) = encoder((a - 0.5) / 0.5), encoder((b - 0.5) / 0.5)
    if pool == "tokens":
        return F.cosine_similarity(hidden, other, dim=2).mean(1)
    take = {"pooler": (pooled, second), "cls": (hidden[:, 0], other[:, 0]), "mean": (hidden.mean(1), other.mean(1))}
    return F.cosine_similarity(*take[pool])


@pytest.mark.parametrize("pool", POOLS)
def test_moves_the_embedding_further_than_random_signs(encoder: nn.Module, x: Tensor, pool: str) -> None:
    attack, target = replace(SHORT, pool=pool), x.roll(1, 0)
    noisy = (x + 0.2 * Draws(0, "signs", torch.arange(len(x))).signs(2, 8, 8)).clamp(0, 1)
    away, onto = attack.run(encoder, x, seed=0), attack.run(encoder, x, target, seed=0)
    torch.testing.assert_close(away.cosine, likeness(encoder, away.x_adv, x, pool))
    torch.testing.assert_close(onto.cosine, likeness(encoder, onto.x_adv, target, pool))
    assert (away.cosine < likeness(encoder, noisy, x, pool) - 0.1).all()
    assert (onto.cosine > likeness(encoder, noisy, target, pool) + 0.02).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_inference_mode_of_the_caller_changes_nothing(encoder: nn.Module, x: Tensor, targeted: bool) -> None:
    short = replace(SHORT, steps=3)
    plain = short(encoder, x, x.flip(0) if targeted else None, seed=1)
    with torch.inference_mode():
        given, target = x.clone(), x.flip(0) if targeted else None
        inside = short(encoder, given, target, seed=1)
    assert inside.equal(plain)
    assert short(encoder, given, target, seed=1).equal(plain)


@pytest.mark.parametrize("targeted", [False, True])
def test_result_is_true_in_ball_and_bounds(encoder: nn.Module, x: Tensor, targeted: bool) -> None:
    found = SHORT.run(encoder, x, x.flip(0) if targeted else None, seed=1)
    eta = (found.x_adv - x).flatten(1)
    torch.testing.assert_close(found.l2, eta.norm(dim=1))
    torch.testing.assert_close(found.linf, eta.abs().amax(1))
    assert found.linf.max() <= 0.2 + 1e-6
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    assert found.losses.shape == (6, 40)
    assert (found.losses[:, -1] < found.losses[:, 0]).all()
    start = 0.0 if targeted else 1.0  # the untargeted loss begins at its largest, next to cos = 1
    assert targeted or (found.losses[:, 0] - start).abs().max() < 0.01


def test_normalized_space_has_its_own_units_and_range_in_each_channel(encoder: nn.Module, x: Tensor) -> None:
    mean, std = (0.4, 0.6), (0.2, 0.5)
    column = (1, 2, 1, 1)
    z = (x - torch.tensor(mean).view(column)) / torch.tensor(std).view(column)
    attack = replace(SHORT, space="normalized", mean=mean, std=std, eps=0.5)
    found = attack.run(encoder, z, seed=0)
    assert found.linf.max() <= 0.5 + 1e-6
    pixels = found.x_adv * torch.tensor(std).view(column) + torch.tensor(mean).view(column)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    with pytest.raises(InputError, match="expected normalized values"):
        attack(encoder, z + 10, seed=0)
    with pytest.raises(InputError, match="expected pixel values"):
        replace(attack, space="pixel")(encoder, z, seed=0)
    same = replace(attack, space="normalized", mean=(0.0, 0.0), std=(1.0, 1.0))
    seen: list[Tensor] = []
    with encoder.register_forward_hook(lambda m, args, out: seen.append(args[0])):
        same(encoder, x, seed=0)
    assert seen[0].equal(x)  # what the encoder is given is x itself


def test_every_sample_has_torch_s_schedule_on_its_own_loss() -> None:
    losses = torch.rand(300, 5, generator=torch_rng(3, "losses"), dtype=torch.float64) - 0.5
    losses[:, 0] = torch.linspace(1, -1, 300)  # always better
    losses[:, 1] = 0.3  # never
    descent = replace(SHORT, plateau=(3, 0.7, 2)).descent()
    memory = {"rate": torch.full((5,), 0.01).double(), "best": torch.full((5,), torch.inf).double()}
    memory |= {"bad": torch.zeros(5), "rest": torch.zeros(5)}
    schedules = []
    for _ in range(5):
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
        schedules.append(
            torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=3, factor=0.7, cooldown=2, eps=0)
        )
    for row in losses:
        descent.cool(memory, row)
        for schedule, loss in zip(schedules, row.tolist(), strict=True):
            schedule.step(loss)
        expected = [s.optimizer.param_groups[0]["lr"] for s in schedules]
        assert memory["rate"].tolist() == pytest.approx(expected, rel=1e-6)
    assert memory["rate"][0] == pytest.approx(0.01)
    assert memory["rate"][1] < 1e-9


def test_the_penalty_shortens_and_a_large_one_holds() -> None:
    encoder, g = nn.Flatten(), torch_rng(1, "penalty")
    x, target = torch.rand(2, 8, 1, 4, 4, generator=g)
    free = replace(SHORT, c=0.0, steps=150).run(encoder, x, target, seed=0)
    held = replace(SHORT, c=0.1, steps=150).run(encoder, x, target, seed=0)
    stuck = replace(SHORT, c=100.0, steps=150).run(encoder, x, target, seed=0)
    assert (held.l2 < free.l2 - 0.002).all()
    assert (stuck.l2 < 0.05).all()
    assert (free.cosine > held.cosine).all()


def test_same_seed_same_result_and_nothing_is_touched(encoder: nn.Module, x: Tensor) -> None:
    model = copy.deepcopy(encoder).train()
    next(model.parameters()).requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags, modes = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    kept, target, random = x.clone(), x.flip(0), torch.get_rng_state()
    first = SHORT(model, x, target, seed=3)
    with torch.no_grad():
        again = SHORT(model, x, target, seed=3)
    assert first.equal(again)
    assert not first.requires_grad
    assert not first.equal(SHORT(model, x, target, seed=4))
    assert torch.get_rng_state().equal(random)
    assert x.equal(kept)
    assert target.equal(kept.flip(0))
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("targeted", [False, True])
def test_a_sample_does_not_depend_on_its_batch(encoder: nn.Module, x: Tensor, targeted: bool) -> None:
    model, x = copy.deepcopy(encoder).double(), x.double()
    target = x.flip(0) if targeted else None
    attack, index = replace(SHORT, plateau=(2, 0.5, 3)), torch.arange(50, 56)
    whole = attack.run(model, x, target, seed=5, index=index)
    parts = attack.run(model, x, target, seed=5, index=index, batch_size=2)
    torch.testing.assert_close(parts.x_adv, whole.x_adv, rtol=0, atol=1e-8)
    torch.testing.assert_close(parts.losses, whole.losses, rtol=0, atol=1e-8)
    rows = torch.tensor([4, 1])
    some = attack(model, x[rows], None if target is None else target[rows], seed=5, index=index[rows])
    torch.testing.assert_close(some, whole.x_adv[rows], rtol=0, atol=1e-8)


def test_only_the_encoder_of_a_captioner_is_called(x: Tensor) -> None:
    with seeded(1, "init"):
        model = TinyCaptioner(("a", "b"), 3, (2, 8, 8), 4, 16, 1, 2)
    calls: list[str] = []
    inside = set(model.encoder.modules())
    for name, module in model.named_modules():
        if module not in inside:
            module.register_forward_hook(lambda m, args, out, name=name: calls.append(name))
    found = SHORT(model, x, x.flip(0), seed=0)
    assert not calls
    assert found.equal(SHORT(model.encoder, x, x.flip(0), seed=0))
    model.caption(x)
    assert "decoder" in calls


def test_the_encoder_is_found_in_models_of_several_makes() -> None:
    def tree(**parts: nn.Module) -> nn.Module:
        module = nn.Module()
        for name, part in parts.items():
            module.add_module(name, part)
        return module

    eye, rest = nn.Linear(2, 2), nn.Linear(2, 2)
    assert find_image_encoder(tree(encoder=eye, decoder=rest)) is eye
    assert find_image_encoder(tree(vision_model=eye, text_decoder=rest)) is eye
    assert find_image_encoder(tree(model=tree(vision_tower=eye, language_model=rest))) is eye
    layered = tree(encoder=rest, layernorm=nn.LayerNorm(2))  # a ViT has an encoder of its own
    assert find_image_encoder(layered) is layered
    with pytest.raises(InputError, match="expected a torch module"):
        find_image_encoder(lambda z: z)  # type: ignore[arg-type]


def test_embeddings_are_read_from_what_encoders_return() -> None:
    hidden, pooled = torch.rand(3, 4, 5), torch.rand(3, 5)
    named = SimpleNamespace(last_hidden_state=hidden, pooler_output=pooled)
    for output in ((hidden, pooled, (hidden,)), named):
        assert embedding(output, "pooler").equal(pooled[:, None])
        assert embedding(output, "cls").equal(hidden[:, :1])
        assert embedding(output, "mean").equal(hidden.mean(1, keepdim=True))
        assert embedding(output, "tokens").equal(hidden)
    unpooled = ((hidden,), (hidden, (hidden,)), SimpleNamespace(last_hidden_state=hidden, pooler_output=None), hidden)
    for output in unpooled:
        assert embedding(output, "pooler").equal(hidden[:, :1])
    assert embedding(pooled, "tokens").equal(pooled[:, None])
    assert embedding(named, lambda out: out.pooler_output * 2).equal(2 * pooled[:, None])
    for bad in (None, (), torch.rand(3), SimpleNamespace(last_hidden_state=None), "x"):
        with pytest.raises(InputError, match="image encoder: its output"):
            embedding(bad, "pooler")


def test_bad_input(encoder: nn.Module, x: Tensor) -> None:
    broken = x.clone()
    broken[0, 0, 0, 0] = torch.nan

    class Blind(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.flatten(1) * torch.nan

    cases = [(broken, None), (x + 1, None), (x[:0], None), (x.long(), None), (x, x[:-1]), (x, x[:, :1]), (x, x - 1)]
    cases += [(x, broken), (x[:, :, 0, 0], None)]
    for images, target in cases:
        with pytest.raises(InputError) as caught:
            SHORT(encoder, images, target, seed=0)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="index"):
        SHORT(encoder, x, seed=0, index=torch.arange(5))
    with pytest.raises(InputError, match="not finite"):
        SHORT(Blind(), x, seed=0)
    with pytest.raises(InputError, match="mean and std"):
        replace(SHORT, mean=(0.5,) * 3, std=(0.5,) * 3)(encoder, x, seed=0)
    options: tuple[dict, ...] = ({"eps": 0.0}, {"eps": -1.0}, {"steps": 0}, {"lr": 0.0}, {"c": -1.0})
    options += ({"init_std": -1.0}, {"space": "lab"}, {"pool": "max"}, {"plateau": (3, 1.0, 3)}, {"std": (0.0,)})
    options += ({"mean": (0.1, 0.2)}, {"plateau": (1, 0.1)}, {"mean": (), "std": ()})
    for option in options:
        with pytest.raises(InputError) as caught:
            replace(SHORT, **option)
        assert "\n" not in str(caught.value)
