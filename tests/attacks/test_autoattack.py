"""APGD, Square and AutoAttack: their formulas, closed forms, and a model whose gradient is masked."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay import load_data
from assay.attacks import (
    APGD,
    FAB,
    L1,
    L2,
    PGD,
    AutoAttack,
    Linf,
    Ordered,
    Square,
    TabularLinf,
    Targeted,
    Toward,
    Untargeted,
)
from assay.attacks.apgd import checkpoints, sparse_signs
from assay.attacks.base import OBJECTIVES, likeliest
from assay.attacks.square import bump
from assay.nets import SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.training import Supervised


class HalfSpace(nn.Module):
    """Class 1 where w x > t, of any shape of x; counts what it sees."""

    def __init__(self, w: torch.Tensor, t: float, classes: int = 2) -> None:
        super().__init__()
        self.w, self.t, self.classes, self.seen = nn.Parameter(w), t, classes, 0

    def forward(self, x):
        self.seen += len(x)
        z = x.flatten(1) @ self.w - self.t
        return torch.stack((-z, z, *[-50 - z.abs()] * (self.classes - 2)), 1)


W = torch.randn(64, generator=torch_rng(0, "w"))
X = 0.3 + 0.4 * torch.rand(6, 1, 8, 8, generator=torch_rng(0, "x"))
T = float((X.flatten(1) @ W).max()) + 1.0
Y = torch.zeros(6, dtype=torch.int64)


@pytest.fixture(scope="module")
def digits():
    train, test = load_data("digits:train"), load_data("digits:test")
    with seeded(0, "init"):
        model = SmallCNN(train.shape, 10, widths=(8, 16), hidden=32)
    model = Supervised(epochs=6).fit(model, train, seed=0)
    return model, test.x[:40], test.y[:40]


@pytest.mark.parametrize("steps", [5, 20, 50, 100, 1000])
def test_checkpoints_follow_the_formula(steps):
    p, marks = [0.0, 0.22], [0, math.ceil(0.22 * steps)]
    while (following := p[-1] + max(p[-1] - p[-2] - 0.03, 0.06)) <= 1 + 1e-9:
        p.append(following)
        marks.append(math.ceil(following * steps - 1e-9))
    assert checkpoints(steps) == sorted(set(marks))
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize(("ball", "dual"), [(Linf(0.05), 1), (L2(0.3), 2)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_apgd_takes_the_dual_norm_off_a_linear_margin(ball, dual, loss):
    result = APGD(ball=ball, loss=loss, early_stop=False, steps=30).run(HalfSpace(W, T), X, Untargeted(Y), seed=0)
    with torch.no_grad():
        gain = (result.x_adv - X).flatten(1) @ W
    torch.testing.assert_close(gain, (ball.eps * W.norm(dual)).expand(6), rtol=1e-4, atol=0)


def test_apgd_in_an_l1_ball_comes_near_the_dual_norm_and_beats_pgd(digits):
    wide = {"bounds": (-50.0, 50.0), "early_stop": False}
    result = APGD(ball=L1(2.0), loss="margin", **wide).run(HalfSpace(W, T + 100), X, Untargeted(Y), seed=0)
    with torch.no_grad():
        gain = (result.x_adv - X).flatten(1) @ W
    assert (gain >= 0.93 * 2 * W.abs().max()).all()
    assert (result.distance <= 2 + 1e-5).all()
    model, x, y = digits
    mine = APGD(ball=L1(2.0), steps=40).run(model, x, Untargeted(y), seed=0)
    other = PGD(ball=L1(2.0), steps=40).run(model, x, Untargeted(y), seed=0)
    assert mine.success.sum() >= other.success.sum()
    assert (mine.distance <= 2 + 1e-5).all()


def test_sparse_signs_take_the_largest_entries():
    grad = torch.tensor([[0.1, -3.0, 2.0, 0.0], [1.0, 2.0, -4.0, 3.0]])
    expected = torch.tensor([[0.0, -1.0, 0.0, 0.0], [0.0, 1 / 3, -1 / 3, 1 / 3]])
    torch.testing.assert_close(sparse_signs(grad, torch.tensor([1, 3])), expected)


def algorithm_one(gradient, value, x, start, eps, steps, rho=0.75):
    """Algorithm 1 of the paper for one point of the l-infinity ball, written out: its best point."""
    marks, eta, halved, gains = checkpoints(steps), 2 * eps, True, 0

    def project(z):
        return z.clamp(x - eps, x + eps).clamp(0, 1)

    now, best, seen = start, start, start
    before, checked = start, value(start)
    for k in range(steps):
        if k in marks[1:]:
            since = k - marks[marks.index(k) - 1]
            halve = gains < rho * since or (not halved and checked >= value(best))
            checked, gains, halved = value(best), 0, halve
            if halve:
                eta, now = eta / 2, best
        z = project(now + eta * gradient(now).sign())
        following = z if k == 0 else project(now + 0.75 * (z - now) + 0.25 * (now - before))
        # A step raises the objective where it does so over the point it was seen at, not over the best one.
        gains += value(following) > value(seen)
        before, now, seen = now, following, following
        best = now if value(now) > value(best) else best
    return best


def test_apgd_is_the_papers_algorithm():
    rng = torch_rng(7, "bumpy")
    a, b = (torch.randn(3, 10, generator=rng, dtype=torch.float64) for _ in range(2))

    class Bumpy(nn.Module):
        def forward(self, z):
            v = z.flatten(1)
            return (torch.sin(9 * v) @ a.T + v @ b.T) * 2

    x = 0.5 + 0.2 * torch.rand(5, 10, generator=rng, dtype=torch.float64)
    y = torch.zeros(5, dtype=torch.int64)
    attack = APGD(ball=Linf(0.3), steps=60, early_stop=False, random_start=False, loss="margin")
    found = attack.run(Bumpy(), x, Untargeted(y), seed=0).x_adv

    def value(z):
        logits = Bumpy()(z[None])
        return (logits[0, 1:].max() - logits[0, 0]).item()

    def gradient(z):
        z = z.clone().requires_grad_()
        logits = Bumpy()(z[None])[0]
        return torch.autograd.grad(logits[1:].max() - logits[0], z)[0]

    for mine, point in zip(found, x, strict=True):
        torch.testing.assert_close(mine, algorithm_one(gradient, value, point, point, 0.3, 60))


def test_dlr_does_not_change_with_shift_or_scale():
    logits = torch.randn(7, 6, generator=torch_rng(1, "l"), dtype=torch.float64)
    y, t = torch.arange(7) % 6, (torch.arange(7) + 1) % 6
    for goal in (Untargeted(y), Toward(y, t), Targeted(t)):
        value = OBJECTIVES["dlr"](logits, goal)
        torch.testing.assert_close(OBJECTIVES["dlr"](3.7 * logits - 11, goal), value)
    order = logits.sort(1, descending=True).values
    top = order[:, 0] - (order[:, 2] + order[:, 3]) / 2
    mine = (logits.gather(1, t[:, None]) - logits.gather(1, y[:, None]))[:, 0] / top
    torch.testing.assert_close(OBJECTIVES["dlr"](logits, Toward(y, t)), mine)


def test_targets_are_the_likeliest_wrong_classes():
    logits = torch.tensor([[0.1, 3.0, 2.0, 1.0], [5.0, 1.0, 2.0, 4.0]])
    y = torch.tensor([1, 0])
    goals = likeliest("test", nn.Identity(), logits, Untargeted(y), 9)
    assert goals.y.tolist() == [1, 1, 1, 0, 0, 0]
    assert goals.t.tolist() == [2, 3, 0, 3, 2, 1]
    assert likeliest("test", nn.Identity(), logits, Untargeted(y), 1).t.tolist() == [2, 3]


def test_bump_has_norm_one_and_two_opposite_halves():
    for side in (1, 2, 3, 5, 8):
        assert bump(side).norm() == pytest.approx(1)
    assert bump(8)[:4].equal(-bump(8)[4:])
    assert bump(8)[:4].argmax() == 2 * 8 + 4  # grows towards the middle of its half


@pytest.mark.parametrize("ball", [Linf(0.08), L2(0.6)])
def test_square_climbs_stays_in_the_ball_and_uses_it(ball):
    result = Square(ball=ball, budget=400).run(HalfSpace(W, T + 100), X, Untargeted(Y), seed=0)
    assert (result.distance <= ball.eps + 1e-6).all()
    assert (result.distance >= 0.95 * ball.eps).all()
    assert (result.queries <= 400).all()
    gain = (result.x_adv - X).flatten(1) @ W
    best = ball.eps * W.norm({Linf: 1, L2: 2}[type(ball)])
    assert (gain > {Linf: 0.8, L2: 0.6}[type(ball)] * best).all()


class Masked(nn.Module):
    """A network that rounds its input to 16 levels: the gradient is zero almost everywhere."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x * 15).round() / 15)


def test_a_masked_gradient_fools_pgd_and_not_the_ensemble(digits):
    model, x, y = digits
    masked, ball, goal = Masked(model), Linf(0.15), Untargeted(y)
    clean = goal.met(masked(x)).float().mean()
    pgd = PGD(ball=ball, random_start=False).run(masked, x, goal, seed=0).success.float().mean()
    assert pgd <= clean + 1e-6
    square = Square(ball=ball, budget=400).run(masked, x, goal, seed=0).success.float().mean()
    assert square >= pgd + 0.5
    result = AutoAttack(ball=ball, steps=10, budget=400).run(masked, x, goal, seed=0)
    assert result.success.float().mean() >= square - 0.05
    assert "square" in result.by or "apgd-ce" in result.by


@pytest.mark.parametrize("ball", [Linf(0.06), L2(0.3)])
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_the_ensemble_is_at_least_as_strong_as_each_member(ball, version, digits):
    model, x, y = digits
    ensemble = AutoAttack(ball=ball, steps=10, budget=50, version=version)
    result = ensemble.run(model, x, Untargeted(y), seed=0)
    assert (result.distance <= ball.eps + 1e-6).all()
    with torch.no_grad():
        assert (model(result.x_adv).argmax(1) != y).equal(result.success)
        assert (model(x).argmax(1) != y).tolist() == [name == "clean" for name in result.by]
    assert [name != "" for name in result.by] == result.success.tolist()
    for member in ensemble.members(10).values():
        alone = member.run(model, x, Untargeted(y), seed=0)
        broken = alone.success & (alone.distance <= ball.eps)
        assert not (broken & ~result.success).any()


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(classes):
    ensemble = AutoAttack(ball=Linf(1.1 * 1.0 / float(W.abs().sum()) * 2), steps=10, budget=50)
    names = list(ensemble.members(classes))
    assert names == (["apgd-ce", "fab-t", "square"] if classes == 2 else ["apgd-ce", "apgd-t", "fab-t", "square"])
    assert classes == 2 or ensemble.members(classes)["apgd-t"].loss == ("dlr" if classes > 3 else "ce")
    x = X[:2]
    t = float((x.flatten(1) @ W).max()) + 0.5
    result = ensemble.run(HalfSpace(W, t, classes), x, Untargeted(Y[:2]), seed=0)
    assert result.success.all()
    short = AutoAttack(ball=Linf(0.2 / float(W.abs().sum())), steps=10, budget=50)
    model = HalfSpace(W, float((x.flatten(1) @ W).max()) + 0.5, classes)
    held = short.run(model, x, Untargeted(Y[:2]), seed=0)
    assert not held.success.any()
    assert held.by == ("", "")
    assert held.x_adv.equal(x)
    assert model.seen == int(held.queries.sum())


def test_random_version_averages_gradients():
    class Noisy(nn.Module):
        def forward(self, x):
            z = x.flatten(1) @ W - T + 0.3 * torch.randn(len(x))
            return torch.stack((-z, z, -50 - z.abs()), 1)

    ensemble = AutoAttack(ball=Linf(0.1), version="rand", steps=5)
    assert all(member.eot == 20 for member in ensemble.members(10).values())
    with seeded(0, "noise"):
        result = ensemble.run(Noisy(), X, Untargeted(Y), seed=0)
    assert result.success.float().mean() > 0.8
    model = HalfSpace(W, T + 100)
    result = APGD(ball=Linf(0.1), steps=4, eot=3).run(model, X, Untargeted(Y), seed=0)
    assert model.seen == int(result.queries.sum()) == 6 * 5 * 3
    assert int(result.gradients.sum()) == 6 * 4 * 3
    once = APGD(ball=Linf(0.1), steps=4).run(model, X, Untargeted(Y), seed=0)
    torch.testing.assert_close(once.x_adv, result.x_adv)


def test_other_goals(digits):
    model, x, y = digits
    attack = AutoAttack(ball=Linf(0.3), steps=20, budget=50)
    t = (y + 1) % 10
    result = attack.run(model, x[:8], Targeted(t[:8]), seed=0)
    assert model(result.x_adv).argmax(1).eq(t[:8]).equal(result.success)
    assert result.success.float().mean() > 0.5
    order = Ordered(torch.stack((t, y), 1)[:8])
    result = attack.run(model, x[:8], order, seed=0)
    assert model(result.x_adv).topk(2).indices.eq(order.targets).all(1).equal(result.success)


@pytest.mark.parametrize(
    "make",
    [
        lambda: APGD(step_size=0.1),
        lambda: APGD(rho=1.5),
        lambda: APGD(targets=-1),
        lambda: APGD(eot=0),
        lambda: APGD(targets=3).run(HalfSpace(W, T), X, Targeted(Y), seed=0),
        lambda: Square(ball=L1(3.0)),
        lambda: Square(schedule=0),
        lambda: AutoAttack(ball=L1(3.0)),
        lambda: AutoAttack(ball=TabularLinf(0.1)),
        lambda: AutoAttack().run(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), X, Untargeted(Y), seed=0),
        lambda: AutoAttack().run(HalfSpace(W, T), X, Untargeted(Y), seed=0, batch_size=0),
        lambda: AutoAttack(version="quick"),
        lambda: AutoAttack(steps=0),
        lambda: AutoAttack().run(lambda x: x, X, Untargeted(Y), seed=0),
        lambda: FAB(steps=-1),
    ],
)
def test_bad_options(make):
    with pytest.raises(InputError):
        make()


def test_a_saturated_softmax_does_not_stop_dlr():
    model = HalfSpace(W * 1e4, T * 1e4, 4)
    result = APGD(ball=Linf(0.3), loss="dlr", targets=9).run(model, X, Untargeted(Y), seed=0)
    assert result.success.all()
    assert F.cross_entropy(model(X), Y) == 0


def test_autoattack_keeps_no_graph_of_the_inputs():
    x = X.clone().requires_grad_()
    result = AutoAttack(ball=Linf(0.3), version="rand", steps=2).run(HalfSpace(W, T), x, Untargeted(Y), seed=0)
    assert not result.distance.requires_grad
    assert not result.x_adv.requires_grad


def test_autoattack_takes_samples_that_are_no_images():
    ball = Linf(0.5 / float(W.abs().sum()))  # none is broken: every member runs
    result = AutoAttack(ball=ball, steps=3, budget=20).run(HalfSpace(W, T), X.flatten(1), Untargeted(Y), seed=0)
    assert not result.success.any()
    assert result.x_adv.shape == (6, 64)
    assert (result.queries > 20).all()
