from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from assay.attacks import PGD
from assay.attacks.balls import Linf
from assay.data import Data, load_data
from assay.defenses import TRADES, AdvCompSum, PGDTraining
from assay.defenses.base import AdversarialTrainer
from assay.defenses.trades import Drift
from assay.nets import MLP, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded
from assay.training import State, Supervised


def net() -> torch.nn.Module:
    with seeded(0, "test"):
        return SmallCNN()


def robust(model: torch.nn.Module, data: Data, eps: float) -> float:
    attack = PGD(ball=Linf(eps), steps=10)
    x = attack(model, data.x, data.y, seed=1)
    return float((predict(model, x).argmax(1) == data.y).float().mean())


@pytest.mark.parametrize(
    "method",
    [
        PGDTraining(epochs=15, attack_steps=4),
        TRADES(epochs=15, attack_steps=4),
        AdvCompSum(epochs=15, attack_steps=4, eps=0.1),
    ],
)
def test_robust_where_the_control_is_not(method: AdversarialTrainer) -> None:
    train, test = load_data("digits:train"), load_data("digits")[:200]
    hardened = method.fit(net(), train, seed=0)
    plain = method.plain().fit(net(), train, seed=0)
    assert robust(hardened, test, 0.1) > robust(plain, test, 0.1) + 0.15
    assert float((predict(hardened, test.x).argmax(1) == test.y).float().mean()) > 0.75


def test_trades_without_its_term_is_plain_training() -> None:
    train = load_data("digits:train")[:128]
    a = TRADES(epochs=1, beta=0.0).fit(net(), train, seed=0)
    b = TRADES(epochs=1).plain().fit(net(), train, seed=0)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_loss_of_trades_is_equation_5() -> None:
    train, model = load_data("digits:train")[:32], MLP().eval()
    method, state = TRADES(eps=0.1, attack_steps=3, beta=2.0), State(0, train, 1)
    batch = train.batch(torch.arange(32))
    clean = model(batch.x)
    loss = method.objective(model, batch, state)
    drift = (loss - F.cross_entropy(clean, batch.y)) / 2.0
    attack = Drift(ball=Linf(0.1), steps=3, step_size=0.25, clean=clean.softmax(1).detach())
    worst = attack(model, batch.x, batch.y, seed=derive(0, 0), index=batch.index)
    expected = F.kl_div(model(worst).log_softmax(1), clean.softmax(1), reduction="batchmean")
    torch.testing.assert_close(drift, expected)
    assert float(drift.detach()) > 0


@pytest.mark.parametrize(("tau", "rho", "nu"), [(1.0, 1.0, 0.5), (0.5, 2.0, 1.0), (1.5, 0.5, None)])
def test_the_smooth_adversarial_comp_sum_loss_by_loops(tau: float, rho: float, nu: float | None) -> None:
    train, model = load_data("digits:train")[:12], MLP().eval().double()
    x, y = train.x.double(), train.y
    method = AdvCompSum(eps=0.1, attack_steps=3, tau=tau, rho=rho, nu=nu)
    worst = method.worst(model, replace(train, x=x).batch(torch.arange(12)), State(0, train, 1))
    assert 0 < float((worst - x).abs().max()) <= 0.1 + 1e-6
    phi = lambda u: math.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)  # noqa: E731
    clean, moved, total, margin = model(x), model(worst), 0.0, 0.0
    for h, g, label in zip(clean.tolist(), moved.tolist(), y.tolist(), strict=True):
        others = [j for j in range(10) if j != label]
        u = sum(math.exp((h[j] - h[label]) / rho) for j in others)
        gaps = [(g[label] - g[j]) - (h[label] - h[j]) for j in others]
        total += phi(u) + (3 / rho if nu is None else nu) * math.hypot(*gaps)
        margin += phi(sum(min(max(1 - (g[label] - g[j]) / rho, 0), 1) for j in others))
    assert method.outer(model, x, worst, y).item() == pytest.approx(total / 12, rel=1e-9)
    assert nu is not None or margin <= total  # the bound of the adversarial rho-margin loss


def test_an_undisturbed_sample_has_a_finite_slope() -> None:
    train, model = load_data("digits:train")[:8], MLP()
    loss = AdvCompSum().outer(model, train.x, train.x, train.y)
    torch.testing.assert_close(loss, F.cross_entropy(model(train.x), train.y))
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("options", [{"tau": -1.0}, {"rho": 0.0}, {"nu": -1.0}, {"nu": math.nan}])
def test_impossible_comp_sum_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        AdvCompSum(**options)  # type: ignore[arg-type]


def test_drift_stays_in_the_ball_and_beats_its_start() -> None:
    data, model = load_data("digits:train")[:40], MLP().eval()
    clean = predict(model, data.x).softmax(1)

    def kl(x: torch.Tensor) -> torch.Tensor:
        return F.kl_div(predict(model, x).log_softmax(1), clean, reduction="batchmean")

    few, many = (Drift(ball=Linf(0.1), steps=s, clean=clean)(model, data.x, data.y, seed=0) for s in (0, 10))
    assert float((many - data.x).abs().max()) <= 0.1 + 1e-6
    assert kl(many) > 10 * kl(few)


@pytest.mark.parametrize("options", [{"eps": 0}, {"norm": "l3"}, {"attack_steps": 0}, {"step_size": -1}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected norm linf or l2"):
        PGDTraining(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"beta": float("nan")}, {"eps": float("nan")}, {"eps": math.inf}])
def test_numbers_that_are_none_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="finite"):
        TRADES(**options)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_label_smoothing_is_a_share(share: float) -> None:
    with pytest.raises(InputError, match="label_smoothing"):
        Supervised(label_smoothing=share)
