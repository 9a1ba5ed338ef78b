"""The losses of LAF by hand, its autoencoder, and what it reads and moves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import (
    LAF,
    RepresentationVAE,
    forget_set,
    laf_alignment_loss,
    laf_extractor_loss,
    supervised_repair,
)
from assay.unlearn.laf import TakingTurns, bounded, head_parameters, representation, representations

FEW = LAF(epochs=2, vae_epochs=2, lr_ue=1e-3, lr_ra=1e-3)


@pytest.fixture(scope="module")
def subject() -> Subject:
    train, recipe = load_data("digits:train").limit(300), Supervised(epochs=5)
    with seeded(0, "net"):
        model = nn.Sequential(MLP(hidden=(32,), classes=16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    return Subject(recipe.fit(model, train, seed=0), load_data("digits:test"), train, recipe=recipe)


@pytest.fixture(scope="module")
def parts(subject: Subject) -> tuple[Data, Data]:
    return forget_set(subject.training("the test"), "class=0")


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_losses_by_hand() -> None:
    """Errors 0 and 1 against 3; one retained row turned by a right angle, one forgotten row kept and one reversed."""
    found = laf_extractor_loss(torch.tensor([0.0, 1.0]), torch.tensor([3.0]))
    assert float(found) == pytest.approx((1 + math.exp(0.5)) / 2 - math.exp(0.75))
    now, before = torch.tensor([[1.0, 0, 0], [0, 2, 0]]), torch.tensor([[0.0, 3, 0], [0, 1, 0]])
    lost, lost_before = torch.tensor([[1.0, 1, 0], [0, 0, 1]]), torch.tensor([[2.0, 2, 0], [0, 0, -4]])
    aligned = laf_alignment_loss(now, before, lost, lost_before, tau=4.0)
    assert float(aligned) == pytest.approx(0.5 - math.log(1 + math.exp(0.5)), abs=1e-6)


@given(st.floats(0, 1e6))
def test_bounded_error(u: float) -> None:
    assert 1 <= float(bounded(torch.tensor(u, dtype=torch.float64))) < math.e


def test_alignment_falls_as_retained_stay_and_forgotten_turn() -> None:
    e = torch.eye(3)
    kept = laf_alignment_loss(e, e, e, e)
    assert laf_alignment_loss(e, e, -e, e) < kept < laf_alignment_loss(-e, e, e, e)


def test_labels_are_never_read(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    garbage = (forget.with_y(9 - forget.y), retain.with_y(retain.y.flip(0)))
    assert same(FEW.forget(subject, forget, retain, seed=0), FEW.forget(subject, *garbage, seed=0))


def test_only_the_extractor_moves(subject: Subject, parts: tuple[Data, Data]) -> None:
    """Neither the head nor running statistics; nothing at all without steps."""
    model = FEW.forget(subject, *parts, seed=0)
    before, after = subject.model.state_dict(), model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    extractor = {k for k, _ in subject.model.named_parameters() if not k.startswith("3.")}
    assert moved == extractor
    assert same(replace(FEW, steps=0).forget(subject, *parts, seed=0), subject.model)


def test_steps_take_turns(subject: Subject, parts: tuple[Data, Data]) -> None:
    """A rate moves a weight by at most itself in Adam's first step: the two rates bound the two steps of a pair."""
    seen: list[float] = []
    last = {k: p.detach().clone() for k, p in subject.model.named_parameters()}

    def look(models: dict[str, nn.Module], state: object) -> None:
        seen.append(max(float((p.detach() - last[k]).abs().max()) for k, p in models["model"].named_parameters()))
        last.update({k: p.detach().clone() for k, p in models["model"].named_parameters()})

    replace(FEW, steps=1, lr_ue=1e-2, lr_ra=1e-4).fit(subject, *parts, seed=0, hooks=[look])  # type: ignore[list-item]
    assert seen[0] == pytest.approx(1e-2, rel=0.01)
    assert seen[1] == pytest.approx(1e-4, rel=0.01)


def test_turns_are_two_separate_adams() -> None:
    """As many steps of each as of an Adam of its own, on gradients that do not depend on the weight."""
    weight, alone = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    turns, single = TakingTurns([weight], (0.1, 0.01)), torch.optim.Adam([alone], 0.1)
    for k in range(6):
        weight.grad = torch.tensor([1.0 + k if k % 2 == 0 else 0.0])
        before = weight.detach().clone()
        turns.step()
        if k % 2:
            assert torch.equal(before, weight.detach())  # the second one has seen zeros alone
        else:
            alone.grad = torch.tensor([1.0 + k])
            single.step()
    assert torch.allclose(weight, alone)


def test_representations(subject: Subject) -> None:
    x, model = subject.test.x[:7], subject.model
    last = representations(model, x)
    assert torch.allclose(last, model[:3](x), atol=1e-6)  # type: ignore[index]
    assert torch.equal(representations(model, x, "2"), last)
    assert torch.equal(representation(model, x, lambda m, inputs: m[0](inputs)), model[0](x))  # type: ignore[index]
    assert head_parameters(model, x) == ["3.weight", "3.bias"]
    assert head_parameters(model, x, "0") == ["1.weight", "1.bias", "3.weight", "3.bias"]
    with pytest.raises(InputError, match="unknown module for representations 'nowhere'"):
        representations(model, x, "nowhere")


def test_autoencoder_knows_its_own() -> None:
    g = torch.Generator().manual_seed(0)
    e = torch.randn(300, 2, generator=g) @ torch.randn(2, 12, generator=g)
    for out in ("sigmoid", "linear"):
        vae = RepresentationVAE(12, 4, out)  # type: ignore[arg-type]
        scaled = e.sigmoid() if out == "sigmoid" else e
        fitted = vae.fit(scaled, seed=0, epochs=12)
        errors = fitted.recon_error(scaled)
        assert errors.shape == (300,)
        assert errors.mean() < 0.9 * ((scaled - scaled.mean(0)) / fitted.deviation).square().sum(1).mean()
        strange = scaled.flip(1)
        assert fitted.recon_error(strange).mean() > errors.mean()
        again = vae.fit(scaled, seed=0, epochs=12)
        assert same(fitted, again)
        assert vae.fit(scaled.double(), seed=0, epochs=1).recon_error(scaled.double()).dtype == torch.float64
    assert bool(((vae.decode(torch.randn(5, 4)) - vae.mean).abs() > 0).any())


def test_loss_of_a_constant_code_is_error_plus_divergence() -> None:
    """With zero weights the code is standard normal, so that the divergence is 0 and sigmoid(0) is what is decoded."""
    vae = RepresentationVAE(3, 2)
    for p in vae.parameters():
        nn.init.zeros_(p)
    e = torch.tensor([[0.5, 0.5, 1.0], [0.5, 0.5, 0.5]])
    assert float(vae.loss(e)) == pytest.approx(0.125)
    last: nn.Linear = vae.encoder[-1]  # type: ignore[assignment]
    last.bias.data = torch.tensor([1.0, 0.0, 0.0, math.log(2.0)])
    divergence = 0.5 * (1 + (2 - 1 - math.log(2.0)))
    assert float(vae.loss(e, kl_weight=2.0)) == pytest.approx(0.125 + 2 * divergence, rel=1e-5)


def test_collapse_warns_and_constants_are_refused() -> None:
    with pytest.warns(RuntimeWarning, match="one point"):
        RepresentationVAE(3).fit(torch.rand(40, 3), seed=0, epochs=0)
    with pytest.raises(InputError, match="all representations are the same"):
        RepresentationVAE(3).fit(torch.ones(40, 3), seed=0)
    with pytest.raises(InputError, match="rows of shape"):
        RepresentationVAE(3).fit(torch.ones(40, 4), seed=0)


def test_supervised_repair_trains_the_head_alone(subject: Subject, parts: tuple[Data, Data]) -> None:
    model = supervised_repair(subject.model, parts[1].limit(50), seed=0)
    before, after = subject.model.state_dict(), model.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"3.weight", "3.bias"}
    with pytest.raises(InputError, match="every parameter"):
        supervised_repair(subject.model, parts[1], feature=lambda m, x: m(x), seed=0)


def test_bad_options() -> None:
    for bad in ({"lr_ue": 0.0}, {"tau": 0.0}, {"steps": -1}, {"batch_size": 0}):
        with pytest.raises(InputError, match="LAF"):
            LAF(**bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="out of RepresentationVAE"):
        LAF(vae_out="tanh")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="retained_vae_on"):
        LAF(retained_vae_on="forget")  # type: ignore[arg-type]


def test_autoencoder_of_the_retained_alone_is_another(subject: Subject, parts: tuple[Data, Data]) -> None:
    whole, lost = FEW.autoencoders(subject, *parts, seed=0)
    other, same_lost = replace(FEW, retained_vae_on="retain").autoencoders(subject, *parts, seed=0)
    assert same(lost, same_lost)
    assert not same(whole, other)


def test_control_keeps_what_would_be_forgotten(subject: Subject, parts: tuple[Data, Data]) -> None:
    """The control's losses are the sums over both sets."""
    e = {"retain": torch.rand(4, 16), "forget": torch.rand(3, 16)}
    vaes = FEW.autoencoders(subject, *parts, seed=0)
    old: dict[str, Tensor] = {k: v.flip(1) for k, v in e.items()}
    assert float(FEW.loss(True, vaes, e, e, True)) == pytest.approx(0, abs=1e-6)
    assert float(FEW.loss(True, vaes, e, old, True)) > 0
    assert 1 <= float(FEW.loss(False, vaes, e, old, True)) < math.e
