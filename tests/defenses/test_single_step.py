"""One attack step against the published ones; what AAER, GradAlign and the monitor make of it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks import FGSM, Linf
from assay.data import Data, load_data
from assay.defenses import AAER, GradAlign, SingleStepAT
from assay.dynamics import AAEMonitor
from assay.losses import AAERLoss
from assay.nets import MLP, ResNet
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import State

EPS = 0.1


def net() -> MLP:
    with seeded(0, "test"):
        return MLP()


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


def late(data: Data) -> State:
    """A state past every warm-up."""
    state = State(3, data, 1000)
    state.step = 900
    return state


class Recorder(nn.Module):
    """Passes on and keeps what it is fed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.model(x)


@pytest.mark.parametrize(("init", "size", "cut", "noise"), [("zero", 1.0, True, 0), ("rs", 1.25, True, 1),
                                                            ("nfgsm", 1.0, False, 2)])  # fmt: skip
def test_the_step_of_the_published_scripts(data: Data, init: str, size: float, cut: bool, noise: int) -> None:
    """fast_adversarial and N-FGSM in displacements: eta cut to the box, a step of signs, cut to eps or not, the box."""
    model, state, x, y = Recorder(net()), late(data), data.x[:50], data.y[:50]
    loss = SingleStepAT(eps=EPS, init=init).objective(model, data.batch(torch.arange(50)), state)  # type: ignore[arg-type]
    start, x_adv = model.seen
    eta = start - x
    inside = (start > 0) & (start < 1)
    assert float(eta.abs().max()) <= noise * EPS + 1e-6
    if noise:
        assert float(eta[inside].abs().max()) > 0.95 * noise * EPS
        assert 0.45 < float((eta[inside] / (noise * EPS)).abs().mean()) < 0.55
    eta.requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model.model(x + eta), y), eta)
    delta = eta.detach() + size * EPS * slope.sign()
    delta = delta.clamp(-EPS, EPS) if cut else delta
    delta = torch.max(torch.min(delta, 1 - x), 0 - x)
    torch.testing.assert_close(x_adv, x + delta, rtol=0, atol=1e-6)
    torch.testing.assert_close(loss, F.cross_entropy(model.model(x + delta), y))
    if init == "zero":
        attack = FGSM(ball=Linf(EPS), early_stop=False)
        torch.testing.assert_close(x_adv, attack(model.model, x, y, seed=0), rtol=0, atol=1e-6)


def test_warm_up_is_linear_in_steps() -> None:
    small, state = load_data("digits:train")[:100], State(0, load_data("digits:train")[:100], 100)
    method = SingleStepAT(batch_size=32, warmup_epochs=5)
    found = []
    for state.step in (0, 5, 10, 20, 40):
        found.append(method.warm(state))
    assert found == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert SingleStepAT(warmup_epochs=0).warm(State(0, small, 10)) == 1.0


@pytest.mark.parametrize("init", ["zero", "rs", "nfgsm"])
def test_factors_of_zero_are_single_step_training_bit_for_bit(data: Data, init: str) -> None:
    options = {"eps": EPS, "init": init, "epochs": 2}
    plain = SingleStepAT(**options).fit(net(), data[:200], seed=1)  # type: ignore[arg-type]
    for method in (AAER(lam_number=0.0, **options), GradAlign(strength=0.0, **options)):  # type: ignore[arg-type]
        trained = method.fit(net(), data[:200], seed=1)
        for p, q in zip(plain.parameters(), trained.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=0 if isinstance(method, AAER) else 1e-6)


def test_both_passes_run_in_training_mode(data: Data) -> None:
    with seeded(0, "test"):
        model = ResNet((1, 8, 8), width=4, blocks=(1,)).train()
    SingleStepAT(eps=EPS).objective(model, data.batch(torch.arange(20)), late(data))
    assert model.training
    assert {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {2}


def test_aaer_is_the_loss_of_both_logits(data: Data) -> None:
    model = Recorder(SingleStepAT(eps=0.3, epochs=8, init="zero").fit(net(), data, seed=0))
    method = AAER(eps=0.3, init="zero")
    loss = method.objective(model, data.batch(torch.arange(100)), late(data))
    before, after = (model.model(x) for x in model.seen)
    torch.testing.assert_close(loss, AAERLoss()(after, data.y[:100], before))


def test_gradalign_by_automatic_differentiation(data: Data) -> None:
    with seeded(0, "test"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Softplus(), nn.Linear(20, 10)).double()
    x, y = data.x[:30].double(), data.y[:30]
    slope = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = GradAlign(eps=EPS)
    found = method.misalignment(model, x, y, slope)
    rows = [torch.autograd.functional.jacobian(lambda z: F.cross_entropy(model(z), y), x)]
    cosines = F.cosine_similarity(rows[0].flatten(1), slope.flatten(1), dim=1)
    torch.testing.assert_close(found.detach(), 1 - cosines.mean())
    weight = model[1].weight
    (grad,) = torch.autograd.grad(found, weight)
    h = 1e-6 * torch.ones_like(weight)
    shifted = []
    for sign in (1, -1):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[1].weight += sign * h
        shifted.append(float(method.misalignment(other, x, y, slope)))
    assert float((grad * h).sum()) == pytest.approx((shifted[0] - shifted[1]) / 2, rel=1e-3)


def test_gradalign_leaves_out_samples_without_a_gradient(data: Data) -> None:
    model, x, y = net(), data.x[:10], data.y[:10]
    slope = torch.ones_like(x)
    part = GradAlign().misalignment(model, x[5:], y[5:], slope[5:])
    slope[:5] = 0
    torch.testing.assert_close(GradAlign().misalignment(model, x, y, slope), part)
    assert float(GradAlign().misalignment(model, x, y, torch.zeros_like(x))) == 0


def test_gradalign_aligns(data: Data) -> None:
    options = {"eps": 0.3, "init": "zero", "epochs": 12, "lr": 5e-3}
    apart = {}
    for name, method in {"plain": SingleStepAT(**options), "aligned": GradAlign(strength=2.0, **options)}.items():  # type: ignore[arg-type]
        with seeded(0, "wide"):
            model = method.fit(MLP(hidden=(128, 128)), data, seed=0)
        at = data.x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(at), data.y), at)
        noise = 0.3 * (2 * torch.rand(at.shape, generator=torch.Generator().manual_seed(1)) - 1)
        apart[name] = float(GradAlign().misalignment(model, data.x + noise, data.y, slope))
    assert apart["aligned"] < 0.85 * apart["plain"], apart


def test_the_monitor_as_a_hook_sees_every_epoch(data: Data) -> None:
    monitor, small = AAEMonitor(), data[:300]
    AAER(eps=0.35, init="zero", epochs=6, batch_size=64, warmup_epochs=0).fit(net(), small, seed=0, hooks=[monitor])
    assert len(monitor.history) == 6
    assert all(0 <= epoch["share"] < 1 for epoch in monitor.history)
    assert max(epoch["logit_shift_normal"] for epoch in monitor.history) > 0


@pytest.mark.parametrize("options", [{"init": "two"}, {"eps": 0.0}, {"step": -1.0}, {"warmup_epochs": -1}])
def test_impossible_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        SingleStepAT(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        AAER(**{"lam_ce": -1.0})
    with pytest.raises(InputError):
        GradAlign(strength=float("inf"))
