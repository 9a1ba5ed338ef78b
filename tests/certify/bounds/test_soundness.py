"""More than 10^5 random and attacked points for each family of operators, none outside its bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks import PGD, Linf, Untargeted
from assay.certify.bounds import SLACK, LpBall
from assay.certify.bounds.module import BoundedModule

EPS, SAMPLES, DRAWS, RUNS = 0.1, 4, 12_500, 250


class Through(nn.Module):
    """A linear layer, ``f`` on vectors of eight numbers, a linear layer."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.first = f, nn.Linear(5, 8)
        self.head = nn.Linear(f(torch.zeros(2, 8)).flatten(1).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.f(2 * self.first(x)).flatten(1))


def _sum(*fs: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda h: sum(f(h) for f in fs)  # type: ignore[return-value]


_gru, _lstm = nn.GRU(4, 3, batch_first=True), nn.LSTM(4, 3, batch_first=True)
FAMILIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda h: F.relu(h - F.relu(h.flip(1))),
    "convolution and pooling": lambda h: F.max_pool1d(F.conv1d(h[:, None], torch.ones(2, 1, 3), padding=1), 2),
    "batch and group norm": lambda h: F.group_norm(
        F.batch_norm(h, torch.ones(8), 2 * torch.ones(8)), 2, eps=0.1
    ).relu(),
    "layer and rms norm": lambda h: F.layer_norm(h, (8,)) + F.rms_norm(h, (8,)),
    "s-shaped": _sum(torch.sigmoid, torch.tanh, torch.erf, torch.atan, F.hardsigmoid, F.hardtanh, F.softsign),
    "rectifiers": _sum(F.gelu, F.silu, F.mish, F.hardswish, F.elu, F.selu, F.celu, F.relu6, F.leaky_relu, F.softplus),
    "curves": _sum(torch.exp, torch.sin, torch.cos, torch.abs, torch.square, F.logsigmoid),
    "domains": lambda h: (h.exp() + 1).log() + h.exp().sqrt() + (1 + h.square()).rsqrt() + h / (1 + h.flip(1).exp()),
    "products": lambda h: h * h.flip(1) + (h.view(-1, 2, 4).mT @ h.view(-1, 2, 4)).flatten(1)[:, :8],
    "softmax": lambda h: torch.cat((h.softmax(1), h.log_softmax(1), h.logsumexp(1, keepdim=True)), 1),
    "attention": lambda h: F.scaled_dot_product_attention(
        h.view(-1, 1, 2, 4), h.view(-1, 1, 2, 4) / 2, 2 * h.view(-1, 1, 2, 4)
    ),
    "extremes": lambda h: torch.maximum(h, h.flip(1)) + h.amin(1, keepdim=True) + h.clamp(-0.5, 0.5),
    "lstm": lambda h: _lstm(h.view(-1, 2, 4))[0],
    "gru": lambda h: _gru(h.view(-1, 2, 4))[0],
}


def points(model: nn.Module, x: Tensor) -> Tensor:
    """Random points, corners, and where PGD ends from many starts, (SAMPLES * (2 DRAWS + RUNS), ...) by sample."""
    g = torch.Generator().manual_seed(1)
    inside = torch.rand(len(x), DRAWS, *x.shape[1:], generator=g) * 2 - 1
    corners = torch.randint(2, inside.shape, generator=g) * 2 - 1
    many, y = x.repeat_interleave(RUNS, 0), model(x).argmax(1).repeat_interleave(RUNS)
    attack = PGD(ball=Linf(EPS), steps=6, bounds=(-9.0, 9.0), early_stop=False)
    attacked = attack.run(model, many, Untargeted(y), seed=0, batch_size=len(many)).x_adv.unflatten(0, (len(x), RUNS))
    return torch.cat((x[:, None] + EPS * inside, x[:, None] + EPS * corners, attacked), 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_hundred_thousand_points_stay_inside(name: str) -> None:
    torch.manual_seed(0)
    model, x = Through(FAMILIES[name]).eval().requires_grad_(False), torch.randn(SAMPLES, 5)
    near = points(model, x)
    assert near.shape[0] * near.shape[1] > 100_000
    z = model(near.flatten(0, 1)).unflatten(0, near.shape[:2]).double()
    module, outside = BoundedModule(model, x), {}
    for method in ("IBP", "forward", "CROWN-IBP", "CROWN"):
        lower, upper = module.compute_bounds(x.double(), LpBall(eps=EPS), method=method, slack=SLACK, nested=False)
        outside[method] = int(((z < lower[:, None]) | (z > upper[:, None])).sum())
        reach = (z.amax(1) - z.amin(1)) / (upper - lower)
        assert reach.amax() > 0.1, method  # bounds so wide that nothing could leave them would prove nothing
    assert outside == dict.fromkeys(outside, 0)
