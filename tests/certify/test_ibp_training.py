"""IBP training and SABR: the loss against exact worst cases and our own certifier, the boxes, the options."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks import PGD, Linf
from assay.certify import IBP, SABR, IBPTraining
from assay.certify.ibp_training import clipped_box, fast_initialised
from assay.data import Batch, Data, load_data
from assay.methods import from_text
from assay.nets import MLP, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import State


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


def network(seed: int = 0) -> nn.Module:
    with seeded(seed, "test"):
        return SmallCNN(widths=(8, 16), hidden=32)


def batch_of(data: Data, n: int = 40) -> tuple[Batch, State]:
    return data.batch(torch.arange(n)), State(0, data, 100)


def test_loss_of_a_linear_model_is_the_exact_worst_case(data: Data) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    batch, state = batch_of(data)
    center, radius = clipped_box(batch.x, 0.1, (0.0, 1.0))
    worst = []
    for x, r, y in zip(center.flatten(1), radius.flatten(1), batch.y, strict=True):
        gaps = model[1].weight[y] - model[1].weight
        worst.append(-(gaps @ x + model[1].bias[y] - model[1].bias - gaps.abs() @ r))
    expected = F.cross_entropy(torch.stack(worst), batch.y)
    loss = IBPTraining(eps=0.1, kappa=0).bound_loss(model, batch, 0.1, state)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_worst_margins_are_those_of_the_certifier(data: Data) -> None:
    model, (batch, _) = network(), batch_of(data)
    single = [batch.x[k : k + 1] for k in range(8)]
    losses = [
        float(IBPTraining().robust_loss(model, *clipped_box(x, 0.01, (0.0, 1.0)), batch.y[k : k + 1]).detach())
        for k, x in enumerate(single)
    ]
    least = IBP(eps=0.01).margins(model, batch.x[:8], batch.y[:8]).numpy()
    # log(1 + sum exp(-m_j)) lies between its largest term and that plus log of their number
    for loss, m in zip(losses, least, strict=True):
        assert math.log1p(math.exp(-m)) - 1e-4 <= loss <= math.log1p(9 * math.exp(-m)) + 1e-4


def test_no_attack_exceeds_the_loss(data: Data) -> None:
    model, (batch, state) = network(), batch_of(data)
    loss = float(IBPTraining(eps=0.05, kappa=0).bound_loss(model, batch, 0.05, state).detach())
    x_adv = PGD(ball=Linf(0.05), steps=20, early_stop=False)(model, batch.x, batch.y, seed=0)
    assert float(F.cross_entropy(model(x_adv), batch.y).detach()) < loss


@pytest.mark.parametrize("make", [IBPTraining, SABR])
def test_kappa_one_is_plain_training(make: Callable[..., IBPTraining], data: Data) -> None:
    small, method = data.limit(200), make(epochs=1, kappa=1.0)
    mine, plain = (m.fit(network(), small, seed=0) for m in (method, method.plain()))
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(mine.parameters(), plain.parameters(), strict=True))


def test_kappa_mixes_along_the_ramp(data: Data) -> None:
    model, (batch, state) = network(), batch_of(data)
    robust = {
        e: float(IBPTraining(eps=0.1).robust_loss(model, *clipped_box(batch.x, e, (0.0, 1.0)), batch.y).detach())
        for e in (0.05, 0.1)
    }
    plain = float(F.cross_entropy(model(batch.x), batch.y).detach())
    method = IBPTraining(eps=0.1, kappa=0.5)
    assert float(method.bound_loss(model, batch, 0.1, state).detach()) == pytest.approx(
        0.5 * robust[0.1] + 0.5 * plain, rel=1e-5
    )
    half = 0.25 * robust[0.05] + 0.75 * plain
    assert float(method.bound_loss(model, batch, 0.05, state).detach()) == pytest.approx(half, rel=1e-5)


def test_l1_adds_the_absolute_weights(data: Data) -> None:
    model, (batch, state) = network(), batch_of(data)
    plain, heavy = (IBPTraining(eps=0.1, l1=v).bound_loss(model, batch, 0.1, state).detach() for v in (0.0, 0.01))
    size = sum(m.weight.abs().sum() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert float(heavy - plain) == pytest.approx(0.01 * float(size.detach()), rel=1e-4)


def test_sabr_boxes_lie_in_the_ball_around_the_attack(data: Data) -> None:
    model, (batch, state) = network(), batch_of(data)
    center, radius = clipped_box(batch.x, 0.1, (0.0, 1.0))
    middle, small = SABR(eps=0.1, lam=0.4).box(model, batch, 0.1, state)
    assert torch.allclose(small, 0.4 * radius)
    assert ((middle - center).abs() + small <= radius + 1e-6).all()
    drop = lambda x: float(F.cross_entropy(model(x), batch.y).detach())  # noqa: E731
    assert drop(middle) > drop(batch.x)


def test_sabr_with_the_whole_ball_is_ibp(data: Data) -> None:
    model, (batch, state) = network(), batch_of(data)
    whole = SABR(eps=0.1, lam=1.0).box(model, batch, 0.1, state)
    for a, b in zip(whole, IBPTraining(eps=0.1).box(model, batch, 0.1, state), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_fast_init_keeps_the_radius_through_relu_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10))
    start = fast_initialised(model, seed=0)
    assert torch.equal(start[4].weight, model[4].weight)
    first, second = start[0].weight, start[2].weight
    assert float(first.std()) == pytest.approx(math.sqrt(2 * math.pi) / 400, rel=0.02)
    # E|W| fan_in = 2: a ReLU halves the radius, the next layer doubles it again
    assert float(second.abs().sum(1).mean()) == pytest.approx(2, rel=0.02)


def test_batch_norm_learns_its_statistics(data: Data) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    trained = IBPTraining(eps=0.02, epochs=3, ramp_end=0.3, lr=5e-3).fit(model, data, seed=0)
    assert int(trained[2].num_batches_tracked) == 3 * math.ceil(len(data) / 64)
    verdict = IBP(eps=0.02).certify(trained, data.x[:200], data.y[:200]).verdict
    assert float(verdict.float().mean()) > 0.4


@pytest.mark.parametrize("method", [IBPTraining(eps=0.03, epochs=8, lr=3e-3), SABR(eps=0.03, epochs=8, lr=3e-3)])
def test_what_is_trained_can_be_certified(method: IBPTraining, data: Data) -> None:
    start, test = MLP(hidden=(40, 40)), load_data("digits:test")
    rates = []
    for trainer in (method, method.plain()):
        certified = IBP(eps=0.03).certify(trainer.fit(start, data, seed=0), test.x, test.y).verdict
        rates.append(float(certified.float().mean()))
    assert rates[0] > rates[1] + 0.2


@pytest.mark.parametrize(
    ("cls", "options", "match"),
    [
        (IBPTraining, {"eps": 0.0}, "eps=0"),
        (IBPTraining, {"kappa": 1.5}, "kappa"),
        (IBPTraining, {"l1": math.inf}, "l1"),
        (SABR, {"lam": 0.0}, "lam=0"),
        (SABR, {"attack_steps": 0}, "attack_steps"),
    ],
)
def test_bad_options(cls: type[IBPTraining], options: dict[str, float], match: str) -> None:
    with pytest.raises(InputError, match=match):
        cls(**options)


def test_an_operator_without_a_rule_is_named(data: Data) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.special.entr(x.flatten(1)))

    with pytest.raises(InputError, match="entr"):
        IBPTraining(epochs=1).fit(Odd(), data.limit(50), seed=0)


def test_repairs_name_them_with_their_options() -> None:
    assert from_text("certify.IBPTraining:eps=2/255,fast_init=true,clip=none") == IBPTraining(
        eps=2 / 255, fast_init=True, clip=None
    )
    assert from_text("certify.SABR:lam=0.6,l1=1e-6") == SABR(lam=0.6, l1=1e-6)
