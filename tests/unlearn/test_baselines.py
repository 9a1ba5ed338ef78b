"""The baselines: each against its equation, on cases that are computed another way."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.nets import MLP, ResNet
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import Draws, derive, seeded, torch_rng
from assay.subject import Subject, fresh
from assay.training import Supervised
from assay.unlearn import (
    SCRUB,
    SISA,
    BadTeacher,
    BoundaryShrink,
    CFk,
    EUk,
    FineTune,
    FisherForgetting,
    NegGrad,
    NegGradPlus,
    RandomLabel,
    Retrain,
    SalUn,
    SelectiveSynapticDampening,
    fisher_diagonal,
    forget_set,
    importances,
)
from assay.unlearn.boundary_shrink import nearest_labels
from assay.unlearn.last_layers import layer_blocks
from assay.unlearn.passes import cycled
from assay.unlearn.random_label import random_labels


@pytest.fixture(scope="module")
def subject() -> Subject:
    train = load_data("digits:train").limit(200)
    recipe = Supervised(epochs=3, batch_size=64, schedule="constant")
    with seeded(0, "test"):
        model = MLP(hidden=(16,))
    return Subject(recipe.fit(model, train, seed=0), load_data("digits:test"), train, recipe=recipe)


@pytest.fixture(scope="module")
def parts(subject: Subject) -> tuple[Data, Data]:
    return forget_set(subject.training("the test"), "class=3")


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def slope(model: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_cycled_goes_over_everything_in_every_turn(parts: tuple[Data, Data]) -> None:
    forget = parts[0]
    each = -(-len(forget) // 4)
    for turn in range(2):
        seen = torch.cat([cycled(forget, 4, turn * each + j, seed=0).index for j in range(each)])
        assert seen.sort().values.tolist() == forget.index.sort().values.tolist()
    assert cycled(forget, 4, 0, seed=0).index.tolist() != cycled(forget, 4, each, seed=0).index.tolist()


def test_neg_grad_plus_makes_the_weighted_step(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    method = NegGradPlus(beta=0.7, epochs=1, lr=0.1, momentum=0.0, batch_size=1000)
    model = subject.model
    down, up = (slope(model, F.cross_entropy(model(d.x), d.y)) for d in (retain, forget))
    moved = flat(method.forget(subject, forget, retain, seed=0)) - flat(model)
    assert torch.allclose(moved, -0.1 * (0.7 * down - 0.3 * up), atol=1e-6)
    control = flat(method.control(subject, forget, retain, seed=0)) - flat(model)
    assert torch.allclose(control, -0.1 * (0.7 * down + 0.3 * up), atol=1e-6)
    # With beta = 1 what is forgotten does not count: other labels there change nothing.
    alone = NegGradPlus(beta=1.0, epochs=2)
    relabelled = Subject(model, subject.test, subject.training("t").with_y(torch.zeros_like(subject.training("t").y)))
    first = alone.forget(subject, forget, retain, seed=0)
    assert same(first, alone.forget(relabelled, forget.with_y(forget.y * 0), retain, seed=0))


def test_random_labels_are_any_other_class() -> None:
    y, index = torch.arange(10).repeat(400), torch.arange(4000)
    drawn = random_labels(y, 10, Draws(0, "labels", index), "exclude")
    assert not (drawn == y).any()
    counts = torch.bincount((drawn - y) % 10, minlength=10)[1:]
    assert (counts - 4000 / 9).abs().max() < 5 * math.sqrt(4000 / 9)
    free = random_labels(y, 10, Draws(0, "labels", index), "uniform")
    assert abs(float((free == y).double().mean()) - 0.1) < 0.02
    with pytest.raises(InputError, match="at least two"):
        random_labels(y * 0, 1, Draws(0, "labels", index), "exclude")


def test_random_label_steps_by_hand(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    options: dict[str, Any] = {"epochs": 1, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 1000}
    y = random_labels(forget.y, 10, Draws(5, "labels/forget 0", forget.index), "exclude")
    model = copy.deepcopy(subject.model)
    for x, target in ((forget.x, y), (retain.x, retain.y)):
        step = slope(model, F.cross_entropy(model(x), target))
        nn.utils.vector_to_parameters(flat(model) - 0.1 * step, model.parameters())
    assert torch.allclose(flat(RandomLabel(**options).forget(subject, forget, retain, seed=5)), flat(model), atol=1e-6)
    # Mixed with alpha = 0: the forget set alone, weighted by its share of the batch.
    y = random_labels(forget.y, 10, Draws(5, "labels/both 0", forget.index), "exclude")
    loss = F.cross_entropy(subject.model(forget.x), y) * len(forget) / (len(forget) + len(retain))
    mixed = RandomLabel(mode="mixed", alpha=0.0, **options).forget(subject, forget, retain, seed=5)
    assert torch.allclose(flat(mixed) - flat(subject.model), -0.1 * slope(subject.model, loss), atol=1e-6)


def test_bad_teacher_follows_both_teachers(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    method = BadTeacher(optimizer="sgd", lr=0.1, momentum=0.0, batch_size=1000, retain_share=0.5, temperature=2.0)
    bad = fresh(subject.model, seed=derive(4, "incompetent"))
    p, q = ((m(forget.x) / 2).softmax(1) for m in (bad, subject.model))
    # At the start the competent teacher's gradient is 0; the other is the mean of KL over all that is passed.
    loss = (p.detach() * (p.detach().log() - q.log())).sum() / (len(forget) + round(0.5 * len(retain)))
    moved = flat(method.forget(subject, forget, retain, seed=4)) - flat(subject.model)
    assert torch.allclose(moved, -0.1 * slope(subject.model, loss), atol=1e-6)
    still = flat(method.control(subject, forget, retain, seed=4)) - flat(subject.model)
    assert still.abs().max() < 1e-6


def test_scrub_starts_where_its_divergence_is_flat(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    whole: dict[str, Any] = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 1000, "epochs": 1}
    model = subject.model
    step = -0.1 * slope(model, F.cross_entropy(model(retain.x), retain.y))
    for max_epochs in (0, 1):  # the first ascent does not move, nor does alpha count in the first descent
        found = SCRUB(max_epochs=max_epochs, alpha=3.0, **whole).forget(subject, forget, retain, seed=0)
        assert torch.allclose(flat(found) - flat(model), step, atol=1e-6)
    # The second epoch climbs T^2 KL(teacher || student) from where the first ended.
    two = SCRUB(max_epochs=2, gamma=0.0, alpha=0.0, **{**whole, "epochs": 2})
    moved = fresh(model, seed=3)
    taught, z = (m(forget.x) / 4 for m in (model, moved))
    far = 16 * (taught.softmax(1) * (taught.log_softmax(1) - z.log_softmax(1))).sum(1).mean()
    loss = two.losses(subject, forget, retain, seed=0, control=False)
    value = loss(moved, "forget", forget.batch(torch.arange(len(forget))), None)  # type: ignore[arg-type]
    assert value.item() == pytest.approx(-far.item(), rel=1e-5)


def linear() -> tuple[Subject, Data, Data]:
    g = torch_rng(0, "linear")
    x, y = torch.randn(60, 4, generator=g), torch.arange(60) % 3
    data = Data(x, y, tuple("abc"), bounds=(-9.0, 9.0))
    with seeded(0, "weights"):
        model = nn.Linear(4, 3).eval()
    return Subject(model, data, data, recipe=Supervised(epochs=1)), data[:20], data[20:]


def test_boundary_shrink_takes_the_nearest_other_class() -> None:
    subject, forget, _ = linear()
    w, b = subject.model.weight.detach(), subject.model.bias.detach()  # type: ignore[operator]
    p = (forget.x @ w.T + b).softmax(1)
    moved = forget.x + 0.3 * ((p - F.one_hot(forget.y, 3)) @ w).sign()
    logits = moved @ w.T + b
    by_hand = [max((c for c in range(3) if c != y), key=lambda c: logits[i, c]) for i, y in enumerate(forget.y)]
    assert nearest_labels(subject.model, forget, 0.3).tolist() == by_hand
    subject, forget, retain = linear()
    method = BoundaryShrink(eps=0.3, epochs=1, lr=0.1, momentum=0.0)
    found = flat(method.forget(subject, forget, retain, seed=0)) - flat(subject.model)
    loss = F.cross_entropy(subject.model(forget.x), torch.tensor(by_hand))
    assert torch.allclose(found, -0.1 * slope(subject.model, loss), atol=1e-6)


def test_importances_are_mean_squares_of_gradients(subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, model = parts[0][:12], subject.model
    rows = torch.stack(
        [slope(model, F.cross_entropy(model(x[None]), y[None])) for x, y in zip(forget.x, forget.y, strict=True)]
    )
    found = torch.cat([v.flatten() for v in importances(model, forget, per="sample").values()])
    assert torch.allclose(found, rows.square().mean(0), rtol=1e-4, atol=1e-12)
    single = torch.cat([v.flatten() for v in importances(model, forget, batch_size=1).values()])
    assert torch.allclose(single, found, rtol=1e-4, atol=1e-12)
    whole = torch.cat([v.flatten() for v in importances(model, forget, batch_size=12).values()])
    assert torch.allclose(whole, rows.mean(0).square(), rtol=1e-4, atol=1e-12)


def test_dampening_by_hand_and_its_limits(subject: Subject, parts: tuple[Data, Data]) -> None:
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 3.0]]))
    lost, whole = {"weight": torch.tensor([[8.0, 4.0, 1.0]])}, {"weight": torch.tensor([[1.0, 2.0, 1.0]])}
    some, much = SelectiveSynapticDampening(alpha=1.5), SelectiveSynapticDampening(alpha=1.5, lam=100.0)
    # 8 > 1.5: times 1 / 8; 4 > 3: times 2 / 4; 1 > 1.5 is not so.
    assert some.dampen(model, lost, whole).weight.tolist() == [[0.125, -1.0, 3.0]]  # type: ignore[operator]
    assert same(much.dampen(model, lost, whole), model)
    none = {"weight": torch.zeros(1, 3)}
    assert same(some.dampen(model, none, none), model)
    assert same(SelectiveSynapticDampening(alpha=1e30).forget(subject, *parts, seed=0), subject.model)
    shrunk = SelectiveSynapticDampening(alpha=1.0, lam=0.1).forget(subject, *parts, seed=0)
    assert (flat(shrunk).abs() <= flat(subject.model).abs()).all()
    assert not same(shrunk, subject.model)
    dead = MLP(hidden=(16,))
    with torch.no_grad():
        dead.head.weight.zero_()
        dead.head.bias.copy_(torch.where(torch.arange(10) == 3, 1e4, 0.0))
    with pytest.raises(InputError, match="every gradient"):
        SelectiveSynapticDampening().forget(subject.with_model(dead), *parts, seed=0)


def test_the_fisher_diagonal_and_its_noise() -> None:
    subject, forget, retain = linear()
    p = subject.model(retain.x).softmax(1).detach().double()
    # For a linear layer d log p_c / d w_k = (1[c = k] - p_k) x: the variance of 1[c = k] under p is p_k (1 - p_k).
    variance = p * (1 - p)
    weight = torch.einsum("nk,nd->kd", variance, retain.x.double().square()) / len(retain)
    expected = torch.cat([weight.flatten(), variance.mean(0)])
    fisher = fisher_diagonal(subject.model, retain)
    assert torch.allclose(fisher, expected, rtol=1e-5)
    moved = FisherForgetting(strength=0.1).forget(subject, forget, retain, seed=7)
    noise = torch.randn(15, generator=torch_rng(7, "fisher noise"), dtype=torch.float64)
    assert torch.allclose((flat(moved) - flat(subject.model)).double(), 0.1 * expected**-0.25 * noise, atol=1e-5)
    assert same(FisherForgetting(strength=0.0).forget(subject, forget, retain, seed=7), subject.model)


def test_all_layers_are_fine_tuning_and_retraining(subject: Subject, parts: tuple[Data, Data]) -> None:
    assert same(CFk(layers=None).forget(subject, *parts, seed=1), FineTune().forget(subject, *parts, seed=1))
    assert same(EUk(layers=None).forget(subject, *parts, seed=1), Retrain().forget(subject, *parts, seed=1))
    assert same(EUk(layers=2).forget(subject, *parts, seed=1), Retrain().forget(subject, *parts, seed=1))
    for method in (CFk(layers=1), EUk(layers=1)):
        found = method.forget(subject, *parts, seed=1)
        assert same(found.body, subject.model.body)
        assert not same(found.head, subject.model.head)
        assert all(q.requires_grad for q in found.parameters())
    with pytest.raises(InputError, match="the model has 2"):
        CFk(layers=3).forget(subject, *parts, seed=0)


def test_frozen_norms_keep_their_statistics(parts: tuple[Data, Data], subject: Subject) -> None:
    with seeded(0, "norms"):
        net = ResNet((1, 8, 8), 10, 4, (1,)).eval()
    blocks = layer_blocks(net)
    assert sum(isinstance(b[0], nn.Conv2d | nn.Linear) for b in blocks) == len(blocks)
    found = CFk(layers=1, epochs=1).forget(subject.with_model(net), *parts, seed=0)
    before, after = net.state_dict(), found.state_dict()
    assert {k.rpartition(".")[0] for k in before if not torch.equal(before[k], after[k])} == {
        next(n for n, m in net.named_modules() if m is blocks[-1][0])
    }


def test_norms_without_weights_and_frozen_layers_stay(parts: tuple[Data, Data], subject: Subject) -> None:
    with seeded(0, "affine"):
        net = nn.Sequential(
            *(nn.BatchNorm2d(1, affine=False), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten()),
            *(nn.Linear(144, 12), nn.ReLU(), nn.Linear(12, 10)),
        ).eval()
    net[6].requires_grad_(False)
    given = subject.with_model(net)
    averaged = replace(given, recipe=Supervised(epochs=1, ema=0.5))
    for subject_, method in ((given, CFk(layers=1, epochs=2)), (given, EUk(layers=1)), (averaged, EUk(layers=1))):
        before = net.state_dict()
        for found in method.stages(subject_, *parts, seed=0):
            after = found.state_dict()
            assert {k for k in before if not torch.equal(before[k], after[k])} == {"4.weight", "4.bias"}
            assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in net.parameters()]
    with pytest.raises(InputError, match="the model has 2"):
        CFk(layers=3).forget(given, *parts, seed=0)


def test_steps_without_training_leave_frozen_parameters(subject: Subject, parts: tuple[Data, Data]) -> None:
    frozen = copy.deepcopy(subject.model)
    frozen.head.requires_grad_(False)
    for method in (FisherForgetting(strength=0.1), SelectiveSynapticDampening(alpha=0.1)):
        whole, found = (method.forget(subject.with_model(m), *parts, seed=0) for m in (subject.model, frozen))
        assert same(found.head, frozen.head)
        assert same(found.body, whole.body)
        assert not same(whole.head, frozen.head)
        with pytest.raises(InputError, match="gradient"):
            method.forget(subject.with_model(copy.deepcopy(frozen).requires_grad_(False)), *parts, seed=0)


def test_indices_may_be_of_any_size(subject: Subject, parts: tuple[Data, Data]) -> None:
    train = subject.training("the test")
    far = [replace(d, index=d.index * 10**12 - 10**13) for d in (train, *parts)]
    given = Subject(subject.model, subject.test, far[0], recipe=subject.recipe)
    assert same(BadTeacher().forget(given, *far[1:], seed=0), BadTeacher().forget(subject, *parts, seed=0))


@pytest.mark.parametrize(
    "method",
    [
        *(NegGrad(epochs=1), NegGradPlus(epochs=1), SCRUB(epochs=1, max_epochs=1), BoundaryShrink(epochs=1)),
        *(RandomLabel(epochs=1), SalUn(epochs=1, sparsity=1.0)),
    ],
)
def test_one_sample_is_forgotten_under_batch_norm(method: Any, subject: Subject) -> None:
    with seeded(0, "norm"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    train = subject.training("the test")
    found = method.forget(subject.with_model(net.eval()), train[:1], train[1:], seed=0)
    assert not torch.equal(found[1].weight, net[1].weight)
    alone = isinstance(method, NegGrad | BoundaryShrink)
    assert torch.equal(found[2].running_mean, net[2].running_mean) is alone


def test_sisa_shortens_steps_as_it_does_epochs(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int | None]] = []

    def fit(self: Supervised, model: nn.Module, data: Data, *, seed: int) -> nn.Module:
        asked.append((self.epochs, self.steps))
        return model

    monkeypatch.setattr(Supervised, "fit", fit)
    for steps in (None, 30, 1, 0):
        given = replace(subject, recipe=Supervised(epochs=10, steps=steps))
        SISA(shards=1, slices=4).fit(given, subject.training("the test"), seed=0)
    assert asked == [(4, None)] * 4 + [(4, 12)] * 4 + [(4, 1)] * 4 + [(4, 0)] * 4


@pytest.mark.parametrize("slices", [1, 3])
def test_sisa_is_exact_and_retrains_only_what_saw_the_sample(subject: Subject, slices: int) -> None:
    train = subject.training("the test")
    method = SISA(shards=3, slices=slices)
    trained = subject.with_model(method.fit(subject, train, seed=2))
    shard, part = method.places(train.index, 2)
    lost = torch.zeros(len(train), dtype=torch.bool)
    lost[((shard == 1) & (part == slices - 1)).nonzero()[:2, 0]] = True
    forget, retain = train[lost], train[~lost]
    found = method.forget(trained, forget, retain, seed=9)
    assert same(found, method.fit(subject, retain, seed=2))  # exact: as if it had never been there
    kept = [
        (s, r)
        for s in range(3)
        for r in range(slices)
        if same(trained.model.checkpoints[s][r], found.checkpoints[s][r])  # type: ignore[index]
    ]
    assert kept == [(s, r) for s in range(3) for r in range(slices) if (s, r) != (1, slices - 1)]
    assert method.affected(trained.model, forget.index) == [slices, slices - 1, slices]  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected all of it"):
        method.forget(trained, forget, retain[:-1], seed=9)
    with pytest.raises(InputError, match="the ensemble has"):
        SISA(shards=2, slices=slices).forget(trained, forget, retain, seed=9)


def test_sisa_aggregates(subject: Subject) -> None:
    train, x = subject.training("the test"), subject.test.x[:50]
    mean = SISA(shards=3).fit(subject, train, seed=2)
    members = torch.stack([predict(shard[0], x) for shard in mean.checkpoints])  # type: ignore[index]
    assert torch.allclose(predict(mean, x).exp(), members.softmax(2).mean(0), atol=1e-6)
    vote = SISA(shards=3, aggregate="vote").fit(subject, train, seed=2)
    shares = F.one_hot(members.argmax(2), 10).float().mean(0)
    assert torch.allclose(predict(vote, x).exp(), shares, atol=1e-5)


def test_bad_options() -> None:
    wrong: tuple[tuple[Any, dict[str, Any]], ...] = (
        (NegGradPlus, {"beta": 1.1}),
        (RandomLabel, {"alpha": -1.0}),
        (BadTeacher, {"temperature": 0.0}),
        (BadTeacher, {"retain_share": 0.0}),
        (SCRUB, {"max_epochs": 6}),
        (SCRUB, {"lr": 0.0}),
        (BoundaryShrink, {"eps": 0.0}),
        (SelectiveSynapticDampening, {"alpha": 0.0}),
        (FisherForgetting, {"strength": float("inf")}),
        (CFk, {"layers": 0}),
        (EUk, {"layers": 0}),
        (SISA, {"shards": 0}),
    )
    for cls, options in wrong:
        with pytest.raises(InputError, match=f"{cls.__name__}.*expected"):
            cls(**options)
    unknown: tuple[tuple[Any, dict[str, Any]], ...] = (
        (RandomLabel, {"mode": "alternate"}),
        (RandomLabel, {"relabel": "none"}),
        (SelectiveSynapticDampening, {"importance": "class"}),
        (SISA, {"aggregate": "median"}),
    )
    for cls, options in unknown:
        with pytest.raises(InputError, match="unknown"):
            cls(**options)
