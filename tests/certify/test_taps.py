"""TAPS: its two ends are IBP and PGD training, what lies between, the connector, the product of the losses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks import PGD, Toward
from assay.attacks.balls import Linf
from assay.certify import IBP, TAPS, IBPTraining
from assay.certify.bounds import Interval
from assay.certify.ibp_training import clipped_box
from assay.certify.taps import connected
from assay.data import Data, load_data
from assay.nets import MLP, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded

EPS = 0.05


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


def given(data: Data, n: int = 20) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    with seeded(0, "test"):
        model = SmallCNN(widths=(4, 8), hidden=16)
    center, radius = clipped_box(data.x[:n], EPS, data.bounds)
    return model, center, radius, data.y[:n]


def test_without_activations_after_the_split_it_is_ibp(data: Data) -> None:
    attacked, bounded = TAPS(last=0).terms(*given(data))
    assert torch.allclose(attacked, bounded, rtol=1e-4)  # over a linear layer the attack finds the worst corner
    loss = IBPTraining().robust_loss(*given(data))
    assert torch.allclose(bounded.mean(), loss, rtol=1e-5)


def test_with_the_whole_model_after_the_split_it_is_pgd_training(data: Data) -> None:
    model, center, radius, y = given(data)
    radius = torch.full_like(radius, EPS)
    attacked, _ = TAPS(last=99).terms(model, center, radius, y, seed=3)
    others = torch.stack([torch.tensor([j for j in range(10) if j != k]) for k in y.tolist()])
    names = (torch.arange(len(y))[:, None] * 10 + others).flatten()
    many, label = center.repeat_interleave(9, 0), y.repeat_interleave(9)
    attack = PGD(ball=Linf(EPS), steps=8, step_size=0.25, early_stop=False, loss="margin", bounds=(-9.0, 9.0))
    near = attack.run(model, many, Toward(label, others.flatten()), seed=3, index=names).x_adv
    z = model(near)
    gaps = (z.gather(1, others.flatten()[:, None]) - z.gather(1, label[:, None])).reshape(len(y), 9)
    assert torch.allclose(attacked, torch.cat((torch.zeros(len(y), 1), gaps), 1).logsumexp(1), rtol=1e-3, atol=1e-4)


def test_the_later_the_split_the_closer_to_the_bounds(data: Data) -> None:
    losses = [TAPS(last=k).terms(*given(data)) for k in (0, 1, 2, 99)]
    means = [float(attacked.mean().detach()) for attacked, _ in losses]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1] + 0.05
    for attacked, bounded in losses:
        assert (attacked <= bounded + 1e-4).all()


def test_the_connector_by_hand() -> None:
    low, high = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]]).requires_grad_(), torch.tensor([[1.0] * 5]).requires_grad_()
    points = torch.tensor([[0.0, 0.25, 0.5, 0.9, 1.0]])
    expected = {
        0.5: ([1.0, 0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.8, 0.5]),
        1.0: ([1.0, 0.75, 0.5, 0.1, 0.5], [0.0, 0.25, 0.5, 0.9, 0.5]),
        0.0: ([1.0, 0.0, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0, 0.5]),
    }
    for soft, (to_low, to_high) in expected.items():
        out = connected(points, Interval(low, high), soft)
        assert torch.equal(out, points)
        found = torch.autograd.grad(out.sum(), (low, high))
        assert torch.allclose(found[0], torch.tensor([to_low]), atol=1e-6)
        assert torch.allclose(found[1], torch.tensor([to_high]), atol=1e-6)


def test_the_gradient_is_that_of_the_weighted_product(data: Data) -> None:
    model, center, radius, y = given(data)
    parameters = list(model.parameters())
    loss = TAPS(scale=5.0).robust_loss(model, center, radius, y)
    attacked, bounded = TAPS().terms(model, center, radius, y)
    assert torch.allclose(loss, (attacked * bounded).mean())
    mixed = (5 * attacked * bounded.detach() + attacked.detach() * bounded).mean()
    found, expected = torch.autograd.grad(loss, parameters), torch.autograd.grad(mixed, parameters)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert all(float(g.abs().sum()) > 0 for g in found)


def test_it_certifies_more_than_plain_training(data: Data) -> None:
    start, test, method = MLP(hidden=(40, 40)), load_data("digits:test"), TAPS(eps=0.03, epochs=8, lr=3e-3)
    rates = [
        float(IBP(eps=0.03).certify(t.fit(start, data, seed=0), test.x, test.y).verdict.float().mean())
        for t in (method, method.plain())
    ]
    assert rates[0] > rates[1] + 0.15


def test_a_split_inside_a_branch_is_refused(data: Data) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x.flatten(1))
            return self.head(h + F.relu(self.second(F.relu(h))))

    _, center, radius, y = given(data)
    with pytest.raises(InputError, match="splits no model in two"):
        TAPS(last=1).terms(Branches(), center, radius, y)
