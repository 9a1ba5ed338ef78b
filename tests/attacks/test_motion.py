"""Motion-informed gradients, time-varying autoregression, and the parts of the no-box attack, against exact results."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.attacks import (
    MIFGSM,
    SMIFGSM,
    TVAR,
    Linf,
    NoBoxLoss,
    NoBoxManifoldAttack,
    SkeletonMoCo,
    SMIGradient,
    imperceptibility,
    motion_responses,
    smi,
)
from assay.attacks.motion.skeleton_moco import corrupt_joints, crop_and_resize
from assay.data import HUMAN, synthetic_motions
from assay.nets import TemporalCNN
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import Draws, seeded

F64 = torch.float64


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def process(n: int, t: int, beta: tuple[float, ...], seed: int = 0) -> torch.Tensor:
    from scipy.signal import lfilter

    return torch.from_numpy(lfilter([1.0], [1.0, *(-b for b in beta)], drawn(n, t, seed=seed).numpy()))


def test_tvar_finds_a_stationary_process() -> None:
    found = TVAR(bandwidth=0.3).fit(process(16, 2000, (0.6, -0.3)))
    assert found.coef_[:, :, 2:].mean((0, 2)).tolist() == pytest.approx([0.6, -0.3], abs=0.02)
    assert (found.coef_[:, :, :2] == 0).all()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_tvar_without_locality_is_least_squares(order: int) -> None:
    x = drawn(5, 40)
    lags = torch.stack([x[:, order - j : 40 - j] for j in range(1, order + 1)], 2)
    time = torch.arange(1, 41 - order, dtype=F64)[:, None] / (40 - order)
    plain = torch.linalg.lstsq(lags, x[:, order:, None]).solution
    found = TVAR(order=order, bandwidth=math.inf, estimator="lc").fit(x).coef_[:, :, order:]
    torch.testing.assert_close(found, plain.expand(-1, -1, 40 - order), rtol=0, atol=1e-6)
    both = torch.linalg.lstsq(torch.cat((lags, time * lags), 2), x[:, order:, None]).solution[:, :, 0]
    sloped = both[:, :order, None] + both[:, order:, None] * time[:, 0]
    found = TVAR(order=order, bandwidth=math.inf).fit(x).coef_[:, :, order:]
    torch.testing.assert_close(found, sloped, rtol=0, atol=1e-6)


def test_tvar_is_a_weighted_fit_at_every_time() -> None:
    """Against one weighted least-squares fit, written out, at one time."""
    x, at, width = drawn(1, 30), 11, 0.4
    lags, target = np.stack((x[0, 1:-1], x[0, :-2]), 1), x[0, 2:].numpy()
    away = (np.arange(28) - at) / 28
    weight = np.clip(1 - (away / width) ** 2, 0, None) ** 1.5
    design = np.concatenate((lags, away[:, None] * lags), 1)
    expected = np.linalg.lstsq(weight[:, None] * design, weight * target, rcond=None)[0][:2]
    found = TVAR(bandwidth=width).fit(x).coef_[0, :, at + 2]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_tvar_follows_coefficients_that_drift() -> None:
    t = 1500
    shocks, beta = drawn(12, t), torch.linspace(-0.7, 0.7, t, dtype=F64)
    path = [shocks[:, 0]]
    for s in range(1, t):
        path.append(beta[s] * path[-1] + shocks[:, s])
    x = torch.stack(path, 1)
    found = TVAR(order=1).fit(x).coef_[:, 0].mean(0)
    assert float((found[50:-50] - beta[50:-50]).abs().max()) < 0.15
    constant = TVAR(order=1, bandwidth=math.inf, estimator="lc").fit(x).coef_[:, 0].mean(0)
    assert float((constant[50:-50] - beta[50:-50]).abs().max()) > 0.5


def test_cross_validation_takes_the_bandwidth_of_the_least_leave_one_out_error() -> None:
    x = process(1, 24, (0.6, -0.3))
    fitted, errors = TVAR(estimator="lc").fit(x), {}
    for width in (0.25, 0.4, 0.7, 1.2, 2.5, math.inf):
        rest = []
        for out in range(22):
            keep = np.arange(22) != out
            lags, target = np.stack((x[0, 1:-1], x[0, :-2]), 1), x[0, 2:].numpy()
            weight = np.clip(1 - ((np.arange(22) - out) / 22 / width) ** 2, 0, None) ** 1.5
            beta = np.linalg.lstsq((weight[:, None] * lags)[keep], (weight * target)[keep], rcond=None)[0]
            rest.append(target[out] - lags[out] @ beta)
        errors[width] = np.square(rest).mean()
    assert float(fitted.bandwidth_) == min(errors, key=lambda w: errors[w])


def test_what_does_not_move_has_no_coefficients_and_a_line_has_finite_ones() -> None:
    still, line = torch.full((1, 20), 1.3), torch.linspace(0, 1, 20)[None]
    assert (TVAR().fit(still).coef_ == 0).all()
    assert (TVAR().fit(torch.zeros(2, 20)).coef_ == 0).all()
    found = TVAR().fit(line).coef_
    assert torch.isfinite(found).all()
    lags = torch.stack((line[0, 1:-1], line[0, :-2]), 1).double()
    torch.testing.assert_close((found[0, :, 2:].T * lags).sum(1), line[0, 2:].double(), rtol=0, atol=1e-3)


def test_trajectories_do_not_affect_each_other() -> None:
    x = process(6, 30, (0.6, -0.3))
    torch.testing.assert_close(TVAR().fit(x[2:3]).coef_, TVAR().fit(x).coef_[2:3])


@given(st.integers(1, 4), st.integers(5, 9), st.integers(0, 99))
@settings(max_examples=30)
def test_smi_is_the_derivative_through_the_recursion(order: int, t: int, seed: int) -> None:
    """A change of one frame is run on through x_s = sum_j beta_j(s) x_{s-j} + e_s for as many frames as lags."""
    x, weight = drawn(t, seed=seed), drawn(t, t, seed=seed + 1)
    beta = drawn(order, t, seed=seed + 2) * (torch.arange(t) >= torch.arange(1, order + 1)[:, None])

    def loss(z: torch.Tensor) -> torch.Tensor:
        return (z @ weight @ z.sin()).tanh() + z.cos().prod()

    grad = torch.func.grad(loss)(x)
    responses = motion_responses(beta[None])
    found = smi(grad[None, None], *(r[None] for r in responses), time_dim=2)[0, 0]
    for frame in range(t):

        def nudged(a: torch.Tensor, frame: int = frame) -> torch.Tensor:
            change = [torch.zeros((), dtype=F64)] * frame + [a]
            for s in range(frame + 1, t):
                follows = [beta[j - 1, s] * change[s - j] for j in range(1, min(s, order) + 1)]
                change.append(sum(follows, torch.zeros((), dtype=F64)) if s <= frame + order else torch.zeros_like(a))
            return loss(x + torch.stack(change))

        slope = torch.func.grad(nudged)(torch.zeros((), dtype=F64))
        assert float(found[frame]) == pytest.approx(float(slope), abs=1e-9)


def test_second_order_responses_are_the_authors_arrays() -> None:
    """e = beta_1 a frame ahead, its first entry from order 1; c = e beta_1 two frames ahead + beta_2 two ahead."""
    x = process(3, 20, (0.6, -0.3))[:, None]
    second, first = TVAR().fit(x[:, 0]).coef_, TVAR(order=1).fit(x[:, 0]).coef_
    found = SMIGradient().responses(x)
    e = torch.zeros(3, 20, dtype=F64)
    e[:, 0], e[:, 1:-1] = first[:, 0, 1], second[:, 0, 2:]
    c = torch.zeros(3, 20, dtype=F64)
    c[:, :-2] = e[:, :-2] * second[:, 0, 2:] + second[:, 1, 2:]
    torch.testing.assert_close(found[:, 0, 0], e)
    torch.testing.assert_close(found[:, 1, 0], c)
    torch.testing.assert_close(SMIGradient(order=1).responses(x)[:, 0, 0, :-1], first[:, 0, 1:])


def test_repeated_frames_repeat_their_responses_and_are_not_fitted() -> None:
    x = process(2, 12, (0.6, -0.3))[:, None]
    long = torch.cat((x, x, x[..., :5]), 2)
    found = SMIGradient().responses(long, torch.tensor([12, 12]))
    short = SMIGradient().responses(x)
    torch.testing.assert_close(found, torch.cat((short, short, short[..., :5]), 3))
    mixed = SMIGradient().responses(long, torch.tensor([29, 12]))
    torch.testing.assert_close(mixed[1], found[1])
    torch.testing.assert_close(mixed[0], SMIGradient().responses(long)[0])


def test_time_may_be_any_dimension() -> None:
    x = process(4, 12, (0.6, -0.3)).reshape(2, 2, 12)
    last = SMIGradient(time_dim=2).responses(x)
    first = SMIGradient(time_dim=1).responses(x.mT.contiguous())
    torch.testing.assert_close(first, last.mT)
    grad = drawn(2, 2, 12)
    torch.testing.assert_close(
        SMIGradient(time_dim=1).combine(grad.mT, first), SMIGradient(time_dim=2).combine(grad, last).mT
    )


@pytest.fixture(scope="module")
def setting() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    data = synthetic_motions(16, frames=12, seed=0)
    with seeded(0, "net"):
        net = TemporalCNN()
    return net.double(), data.x.double(), data.y


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_without_coefficients_it_is_mifgsm(
    momentum: float, setting: tuple[nn.Module, torch.Tensor, torch.Tensor]
) -> None:
    net, x, y = setting
    options: dict = {"ball": Linf(0.05), "steps": 6, "momentum": momentum, "bounds": (-3.0, 3.0)}
    plain = MIFGSM(**options)(net, x, y, seed=0)
    torch.testing.assert_close(SMIFGSM(smi=SMIGradient(order=0), **options)(net, x, y, seed=0), plain)
    still = x[:, :, :1].expand_as(x).contiguous()  # nothing moves: all coefficients are 0
    moving = SMIFGSM(**options)(net, still, y, seed=0)
    torch.testing.assert_close(moving, MIFGSM(**options)(net, still, y, seed=0))
    assert not SMIFGSM(**options)(net, x, y, seed=0).equal(plain)


def test_the_first_step_is_the_sign_of_the_informed_gradient(
    setting: tuple[nn.Module, torch.Tensor, torch.Tensor],
) -> None:
    net, x, y = setting
    attack = SMIFGSM(ball=Linf(0.05), steps=1, bounds=(-3.0, 3.0))
    z = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(z), y, reduction="sum"), z)
    informed = attack.smi.combine(grad, attack.smi.responses(x))
    torch.testing.assert_close(attack(net, x, y, seed=0), x + 0.05 * informed.sign())


def test_no_box_loss_is_the_cross_entropy_of_118_cosines() -> None:
    centres, clean, others = drawn(120, 16), drawn(3, 16, seed=1), drawn(3, 7, 16, seed=2)
    features = drawn(3, 16, seed=3)
    loss = NoBoxLoss()
    assert loss.references(clean, others, centres).shape == (3, 118, 16)
    found = loss(features, clean, others, centres)
    for k in range(3):
        unit = clean[k] / clean[k].norm()
        far = centres[(centres - unit).norm(dim=1).argsort()[10:]]
        rows = torch.cat((clean[k : k + 1], others[k], far))
        cosines = rows @ features[k] / rows.norm(dim=1) / features[k].norm()
        assert float(found[k]) == pytest.approx(float(cosines[0] - cosines.logsumexp(0)))
    with pytest.raises(InputError, match="expected more than exclude_nearest"):
        loss.references(clean, others, centres[:10])


def test_no_box_attack_moves_features_away_and_leaves_absent_persons() -> None:
    data = synthetic_motions(64, frames=12, seed=0)
    with seeded(0, "net"):
        encoder = TemporalCNN(persons=2, widths=(16,)).body
    x = torch.cat((data.x, torch.zeros_like(data.x)), 4)
    attack = NoBoxManifoldAttack(eps=0.05, alpha=0.01, steps=8, n_clusters=16, loss=NoBoxLoss(exclude_nearest=2))
    fitted = attack.fit(encoder, x, seed=0)
    moved = fitted(x[:12], seed=0)
    assert (moved[..., 1] == 0).all()
    assert float((moved - x[:12]).abs().max()) <= 0.05 + 1e-6
    assert (moved - x[:12])[..., 0].abs().gt(1e-4).float().mean() > 0.9
    clean, after = predict(encoder, x[:12]), predict(encoder, moved)
    others = clean.roll(1, 0)[:, None]
    loss = attack.loss
    before = loss(clean, clean, others, fitted.centres_)
    assert (loss(after, clean, others, fitted.centres_) < before).all()
    mask = torch.zeros(15, 1, dtype=torch.bool)
    mask[3:6] = True
    part = fitted(x[:12], seed=0, mask=mask)
    assert part[:, :, :, 6:].equal(x[:12, :, :, 6:])
    assert not part[:, :, :, 3:6, 0].equal(x[:12, :, :, 3:6, 0])


def test_the_authors_sizes_are_the_defaults() -> None:
    attack = NoBoxManifoldAttack()
    assert (attack.eps, attack.alpha, attack.steps, attack.mu) == (0.01, 1e-4, 400, 1.0)
    assert (attack.n_clusters, attack.loss.exclude_nearest, attack.loss.temperature) == (120, 10, 1.0)
    descent = attack.descent()
    assert isinstance(descent, SMIFGSM)
    assert descent.length(0) == pytest.approx(1e-4)
    assert NoBoxManifoldAttack(base="fgsm").descent().momentum == 0  # type: ignore[attr-defined]


def test_fewer_samples_than_clusters() -> None:
    x = synthetic_motions(24, frames=8, seed=0).x
    with pytest.warns(UserWarning, match="24 samples; 24 clusters, not 120"):
        fitted = NoBoxManifoldAttack().fit(TemporalCNN(widths=(8,)).body, x, seed=0)
    assert fitted.centres_.shape == (24, 8)


def test_imperceptibility_in_closed_form() -> None:
    x = synthetic_motions(8, frames=10, seed=0).x.double()
    shift = imperceptibility(x, x + 0.1, HUMAN.parents)
    assert (shift.acceleration, shift.jerk, shift.bone) == pytest.approx((0, 0, 0), abs=1e-12)
    assert shift.l2 == pytest.approx(0.1 * math.sqrt(3 * 10 * 15))
    u = torch.arange(10, dtype=F64)[:, None, None]
    accelerated = x.clone()
    accelerated[:, 1] += 0.5 * 0.02 * u**2
    found = imperceptibility(x, accelerated, HUMAN.parents)
    assert (found.acceleration, found.jerk) == pytest.approx((0.02, 0), abs=1e-9)
    assert imperceptibility(x, 1.1 * x, HUMAN.parents).bone == pytest.approx(0.1)
    with pytest.raises(InputError, match="expected the same"):
        imperceptibility(x, x[:, :, 1:], HUMAN.parents)


def test_crop_and_resize() -> None:
    x = torch.arange(9.0).reshape(1, 1, 9, 1, 1).expand(2, 3, 9, 1, 1)
    whole = crop_and_resize(x, torch.ones(2), torch.rand(2, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(whole, x)
    half = crop_and_resize(x, torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(half[0, 0, :, 0, 0], torch.linspace(0, 4, 9))
    torch.testing.assert_close(half[1, 0, :, 0, 0], torch.linspace(4, 8, 9))


def test_corrupt_joints() -> None:
    x = drawn(40, 3, 6, 10, 1).float()
    found = corrupt_joints(x, 0.3, Draws(0, "test", torch.arange(40)))
    hit = (found != x).flatten(1, 2).any(1)[..., 0]
    assert hit.sum(1).tolist() == [3] * 40
    zero = (found == 0).flatten(1, 2).all(1)[..., 0]
    assert 0.25 < float((zero & hit).sum()) / float(hit.sum()) < 0.75


def test_contrast_gives_the_graph_encoder_and_leaves_the_clips() -> None:
    x = synthetic_motions(160, frames=16, seed=0).x
    kept, state = x.clone(), torch.get_rng_state()
    moco = SkeletonMoCo(epochs=4, widths=(8,), hidden=8, batch_size=32, queue=64)
    encoder = moco.fit_encoder(x, HUMAN.parents, seed=0)
    assert x.equal(kept)
    assert torch.get_rng_state().equal(state)
    assert predict(encoder, x).shape == (160, 8)
    assert predict(moco.fit_encoder(x, HUMAN.parents, seed=0), x).equal(predict(encoder, x))
    for bad in (x[:, :2], x[..., 0], x[:, :, :, 1:]):
        with pytest.raises(InputError):
            moco.fit_encoder(bad, HUMAN.parents, seed=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TVAR(order=0),
        lambda: TVAR(bandwidth=0.0),
        lambda: TVAR(estimator="nw"),  # type: ignore[arg-type]
        lambda: TVAR().fit(torch.zeros(3, 4)),
        lambda: TVAR().fit(torch.zeros(0, 9)),
        lambda: TVAR().fit(torch.full((2, 9), math.nan)),
        lambda: TVAR().fit(torch.zeros(2, 9, dtype=torch.int64)),
        lambda: SMIGradient(order=-1),
        lambda: SMIGradient(time_dim=0),
        lambda: SMIGradient().responses(torch.rand(2, 3, 4)),
        lambda: SMIGradient(time_dim=3).responses(torch.rand(2, 3, 9)),
        lambda: SMIGradient().responses(torch.rand(2, 3, 9), torch.tensor([9, 10])),
        lambda: smi(torch.rand(2, 3, 9), torch.rand(2, 3, 8)),
        lambda: smi(torch.rand(2, 3), torch.rand(2, 3)),
        lambda: NoBoxLoss(temperature=0.0),
        lambda: SkeletonMoCo(crop=(0.0, 1.0)),
        lambda: SkeletonMoCo(queue=8),
        lambda: NoBoxManifoldAttack(base="pgd"),  # type: ignore[arg-type]
        lambda: NoBoxManifoldAttack(alpha=0.0),
        lambda: NoBoxManifoldAttack(n_clusters=0),
    ],
)
def test_bad_input(make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            make()
    assert "\n" not in str(caught.value)
