"""SalUn against a training loop written out; masks against an independent ranking; the soft and diffusion variants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.generate import DenoiserMLP, DiscreteSchedule
from assay.nets import MLP
from assay.papers.salun import _ranked
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded, torch_rng
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import RandomLabel, SalUn, SalUnDiffusion, SoftSalUn, forget_set, weight_saliency_mask
from assay.unlearn.random_label import random_labels
from assay.unlearn.saliency import salient
from assay.unlearn.salun_diffusion import noise_loss, noised
from assay.unlearn.soft_salun import shrunk

SMALL = {"epochs": 2, "lr": 0.05, "batch_size": 32}
SCHEDULE = DiscreteSchedule((1 - torch.linspace(1e-3, 0.2, 20)).cumprod(0))


def normed() -> nn.Module:
    with seeded(1, "net"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def subject() -> Subject:
    train, recipe = load_data("digits:train").limit(200), Supervised(epochs=3)
    return Subject(recipe.fit(normed(), train, seed=0), load_data("digits:test"), train, recipe=recipe)


@pytest.fixture(scope="module")
def parts(subject: Subject) -> tuple[Data, Data]:
    return subject.training("the test").split(0.3, seed=0)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors.values()])


def weights(model: nn.Module) -> Tensor:
    return flat(dict(model.named_parameters()))


def test_is_masked_sgd_written_out(subject: Subject, parts: tuple[Data, Data]) -> None:
    """Gradients and momentum masked as well, torch's own optimiser, one pass over each set."""
    forget, retain = parts
    method = SalUn(epochs=1, lr=0.05, batch_size=len(retain), sparsity=0.3)
    found = method.fit(subject, forget, retain, seed=4)
    model = normed()
    model.load_state_dict(subject.model.state_dict())
    start = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, nesterov=True, weight_decay=5e-4)
    y = random_labels(forget.y, 10, Draws(4, "labels/forget 0", forget.index), "exclude")
    model.train()
    for x, labels in ((forget.x, y), (retain.x, retain.y)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        for k, p in model.named_parameters():
            p.grad *= found.mask_[k]
        optimizer.step()
        for k, p in model.named_parameters():
            p.data = torch.where(found.mask_[k], p.data, start[k])
            optimizer.state[p]["momentum_buffer"] *= found.mask_[k]
    assert torch.allclose(weights(found.model), weights(model), atol=1e-5)
    assert len(found.history_) == 2


def test_what_the_mask_leaves_out_stays_bit_for_bit(subject: Subject, parts: tuple[Data, Data]) -> None:
    found = SalUn(**SMALL, weight_decay=0.1, sparsity=0.4).fit(subject, *parts, seed=0)
    before, after, mask = weights(subject.model), weights(found.model), flat(found.mask_)
    assert torch.equal(before[~mask], after[~mask])
    assert (before[mask] != after[mask]).all()
    assert found.norms_ == ("2",)
    frozen = SalUn(**SMALL, freeze_bn_stats=True).fit(subject, *parts, seed=0)
    assert frozen.norms_ == ()


def test_all_weights_are_random_labels(subject: Subject, parts: tuple[Data, Data]) -> None:
    plain = RandomLabel(**SMALL).forget(subject, *parts, seed=0)
    for method in (SalUn(**SMALL, sparsity=1.0), SoftSalUn(**SMALL, mask_ratio=0.0)):
        assert torch.allclose(weights(method.forget(subject, *parts, seed=0)), weights(plain), atol=1e-6)
    assert torch.equal(weights(SalUn(**SMALL, sparsity=1.0).forget(subject, *parts, seed=0)), weights(plain))


@given(st.floats(0.05, 1.0), st.integers(0, 10**6))
def test_mask_has_the_largest_exactly_floor_many(share: float, seed: int) -> None:
    g = torch_rng(seed, "magnitudes")
    found = {"a": torch.randint(5, (4, 6), generator=g).double(), "b": torch.randint(5, (17,), generator=g).double()}
    mask, values = flat(salient(found, share)), flat(found)
    assert int(mask.sum()) == int(round(share * 41, 6))
    if not mask.all():
        assert values[mask].min() >= values[~mask].max()
    each = salient(found, share, per_layer=True)
    assert [int(m.sum()) for m in each.values()] == [int(round(share * n, 6)) for n in (24, 17)]


def test_mask_is_the_ranking_of_one_backward_pass(subject: Subject, parts: tuple[Data, Data]) -> None:
    model, data = MLP(hidden=(8,)).double(), parts[0].with_x(parts[0].x.double())
    for share in (0.07, 0.5):
        assert np.array_equal(flat(weight_saliency_mask(model, data, sparsity=share)), _ranked(model, data, share))
    head = weight_saliency_mask(model, data, sparsity=0.5, params=["head.weight", "head.bias"])
    assert not head["body.1.weight"].any()
    assert int(flat(head).sum()) == 45


def test_magnitude_is_of_the_sum() -> None:
    """Two samples whose gradients cancel in the bias of one logit leave it out."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    for p in model.parameters():
        nn.init.zeros_(p)
    data = Data(torch.tensor([[0.5], [1.0]]), torch.tensor([0, 1]), ("a", "b"))
    assert weight_saliency_mask(model, data, sparsity=0.5)["1.weight"].all()


def test_shrinking_by_rank() -> None:
    d = torch.tensor([3.0, -1.0, 0.5, -2.0])
    assert torch.equal(shrunk(d, 2), torch.tensor([2.0, 0.0, 0.0, -1.0]))
    assert torch.equal(shrunk(d, 0), d)


def test_soft_variant_ends_with_all_weights_free(subject: Subject, parts: tuple[Data, Data]) -> None:
    """Half of the changes are shrunk to 0 in the first step of many, fewer and fewer after."""
    still: list[int] = []

    def look(models: dict[str, nn.Module], state: object) -> None:
        still.append(int((weights(models["model"]) == weights(subject.model)).sum()))

    SoftSalUn(**SMALL).train(subject, *parts, seed=0, hooks=[look])
    n = len(weights(subject.model))
    assert still[0] >= int(0.5 * (1 - 1 / len(still)) * n)
    assert still[-1] < 0.02 * n


def test_bad_options(subject: Subject, parts: tuple[Data, Data]) -> None:
    for bad in (0.0, 1.5):
        with pytest.raises(InputError, match="sparsity"):
            SalUn(sparsity=bad)
    with pytest.raises(InputError, match="mask_ratio"):
        SoftSalUn(mask_ratio=-0.1)
    with pytest.raises(InputError, match="mask: does not fit"):
        SalUn(mask={"x": torch.ones(3, dtype=torch.bool)}).forget(subject, *parts, seed=0)
    with pytest.raises(InputError, match="leaves none"):
        weight_saliency_mask(subject.model, parts[0], sparsity=1e-6)
    with pytest.raises(InputError, match="logits"):
        weight_saliency_mask(MLP(classes=4), parts[0])
    with pytest.raises(InputError, match="unknown parameter 'heads'"):
        weight_saliency_mask(subject.model, parts[0], params=["heads"])


def labels(y: Tensor | None) -> dict[str, Tensor | None]:
    return {"labels": y}


@pytest.fixture(scope="module")
def denoiser() -> nn.Module:
    with seeded(0, "denoiser"):
        net = DenoiserMLP((1, 8, 8), 10, width=16, blocks=1)
        nn.init.normal_(net.leave[-1].weight, std=0.1)
    return net


def test_diffusion_moves_the_masked_weights_by_a_step_of_adam(denoiser: nn.Module, subject: Subject) -> None:
    forget, retain = forget_set(subject.training("the test"), "class=0")
    method = SalUnDiffusion(iterations=1, lr=1e-2, alpha=0.5, clip=0.1)
    mask = method.saliency_mask(denoiser, forget, SCHEDULE, labels, seed=3)
    found = replace(method, mask=mask).forget(denoiser, forget, retain, SCHEDULE, labels, seed=3)
    step, kept = (weights(found) - weights(denoiser)).abs(), flat(mask)
    assert not step[~kept].any()
    assert step[kept].max() == pytest.approx(1e-2, rel=1e-3)  # Adam's first step is the rate, in magnitude


def test_steps_of_a_batch_are_mirrored(subject: Subject) -> None:
    batch = subject.test.batch(torch.arange(31))
    step = noised(batch, (0.0, 1.0), SCHEDULE, Draws(3, "look", batch.index)).step
    assert torch.equal(step[:15] + step[16:], torch.full((15,), 19))
    assert len(step.unique()) > 8


def test_diffusion_answers_with_the_next_class(denoiser: nn.Module, subject: Subject) -> None:
    """Without retained loss the distance between both answers falls; condition 1 itself is only a target."""
    forget, retain = forget_set(subject.training("the test"), "class=0")
    method = SalUnDiffusion(iterations=60, lr=5e-3, alpha=0.0)
    after = method.forget(denoiser, forget, retain, SCHEDULE, labels, seed=0)
    part = noised(forget.batch(torch.arange(len(forget))), (0.0, 1.0), SCHEDULE, Draws(1, "look", forget.index))

    def apart(net: nn.Module) -> float:
        with torch.no_grad():
            both = [net(part.x, part.step, torch.full_like(part.y, c)) for c in (0, 1)]
        return float((both[0] - both[1]).square().mean())

    assert apart(after) < 0.3 * apart(denoiser)
    again = method.forget(denoiser, forget, retain, SCHEDULE, labels, seed=0)
    assert torch.equal(weights(after), weights(again))


def test_diffusion_options(denoiser: nn.Module, subject: Subject) -> None:
    forget, retain = forget_set(subject.training("the test"), "class=0")
    random = SalUnDiffusion(relabel="random")
    others = random.others(forget.y, 10, Draws(0, "labels", forget.index))
    assert (others != 0).all()
    assert len(others.unique()) > 3
    plain = flat(SalUnDiffusion().saliency_mask(denoiser, forget, SCHEDULE, labels, seed=0))
    guided = flat(SalUnDiffusion(guidance=2.0).saliency_mask(denoiser, forget, SCHEDULE, labels, seed=0))
    assert plain.sum() == guided.sum()
    assert not torch.equal(plain, guided)
    some = SalUnDiffusion(params="blocks").saliency_mask(denoiser, forget, SCHEDULE, labels, seed=0)
    assert all(m.any() == ("blocks" in k) for k, m in some.items() if m.any())
    with pytest.raises(InputError, match="none in common"):
        random.forget(denoiser, forget, forget, SCHEDULE, labels, seed=0)
    with pytest.raises(InputError, match="clip"):
        SalUnDiffusion(clip=0.0)
    with pytest.raises(InputError, match="relabel"):
        SalUnDiffusion(relabel="other")
    with pytest.raises(InputError, match="leaves none"):
        SalUnDiffusion(params="attn2").forget(denoiser, forget, retain, SCHEDULE, labels, seed=0)


def test_noise_loss_of_a_perfect_answer_is_zero(subject: Subject) -> None:
    data = subject.test
    part = noised(data.batch(torch.arange(20)), data.bounds, SCHEDULE, Draws(0, "look", data.index[:20]))
    assert noise_loss(lambda x, step, labels: part.noise, part, labels) == 0
    bar = SCHEDULE.alphas_bar[part.step].reshape(-1, 1, 1, 1)
    clean = (part.x - (1 - bar).sqrt() * part.noise) / bar.sqrt()
    assert torch.allclose(clean, 2 * data.x[:20] - 1, atol=1e-4)
