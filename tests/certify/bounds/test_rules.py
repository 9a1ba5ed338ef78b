"""Every operator's rule: encloses points, and its backward and forward bounds do."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.certify.bounds import LpBall, register
from assay.certify.bounds.module import BoundedModule
from assay.certify.bounds.registry import RULES
from assay.runtime.errors import InputError


class Of(nn.Module):
    """A linear layer, then ``f`` on maps (n, 3, 4, 4), then a linear layer."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f, self.first = f, nn.Conv2d(1, 3, 3, padding=1)
        out = self(torch.zeros(2, 1, 4, 4), head=False).shape[1]
        self.head = nn.Linear(out, 3)

    def forward(self, x: Tensor, head: bool = True) -> Tensor:
        h = self.f(self.first(x)).flatten(1)
        return self.head(h) if head else h


def weight(like: Tensor, *shape: int) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape)).reshape(shape).to(like)


CASES = {
    "relu": F.relu,
    "max pool": lambda h: F.max_pool2d(h, 2),
    "overlapping max pool": lambda h: F.max_pool2d(h, 3, stride=1, padding=1),
    "max pool in one dimension": lambda h: F.max_pool1d(h.flatten(2), 3, 2, 1),
    "average pool": lambda h: F.avg_pool2d(h, 2).relu(),
    "adaptive average pool": lambda h: F.adaptive_avg_pool2d(h.relu(), 2),
    "mean": lambda h: h.relu().mean((2, 3)),
    "sum": lambda h: h.relu().sum(1),
    "transpose": lambda h: h.transpose(1, 2).relu().permute(0, 3, 1, 2),
    "slice": lambda h: h[:, :2, 1:].relu(),
    "select": lambda h: h[:, 1].relu(),
    "concatenation": lambda h: torch.cat([h, h.relu(), torch.ones_like(h)], 1),
    "stack": lambda h: torch.stack([h.relu(), -h], 1),
    "chunk": lambda h: h.chunk(3, 1)[1].relu(),
    "residual": lambda h: h + h.relu() + 1.5,
    "difference": lambda h: 1.0 - (h.relu() - h),
    "factor": lambda h: -2 * h.relu() * torch.linspace(-1, 1, 4),
    "quotient": lambda h: h.relu() / -3.0,
    "broadcast sum": lambda h: h + h.relu().mean((2, 3), keepdim=True),
    "padding": lambda h: F.pad(h, (1, 0, 2, 1)).relu(),
    "transposed convolution": lambda h: F.conv_transpose2d(h.relu(), weight(h, 3, 2, 2, 2), stride=2),
    "biased transposed convolution": lambda h: F.conv_transpose2d(
        h.relu(), weight(h, 3, 2, 2, 2), weight(h, 2), stride=2
    ),
    "strided convolution": lambda h: F.conv2d(h.relu(), weight(h, 2, 3, 2, 2), stride=3),
    "even 'same' convolution": lambda h: F.conv2d(h.relu(), weight(h, 2, 3, 2, 2), padding="same"),
    "grouped convolution": lambda h: F.conv2d(h.relu(), weight(h, 6, 1, 3, 3), groups=3),
    "dropout": lambda h: F.dropout(h.relu(), 0.5, training=False),
    "cumulative sum": lambda h: h.relu().cumsum(2),
    "picked": lambda h: h.relu()[:, [2, 0, 2]][:, :, :, torch.tensor([3, 1, 0])],
    "masked": lambda h: torch.where(torch.eye(4) > 0, h.relu(), 0.5).masked_fill(torch.eye(4).flip(0) > 0, 2.0),
    "nearest upsampling": lambda h: F.interpolate(h.relu(), scale_factor=2, mode="nearest"),
    "bilinear upsampling": lambda h: F.interpolate(h.relu(), scale_factor=2, mode="bilinear"),
    "pixel shuffle": lambda h: F.pixel_shuffle(h.relu().reshape(-1, 12, 2, 2), 2),
    "in place": lambda h: (h * 2).relu_().add_(1),
}


@pytest.mark.parametrize("name", CASES)
def test_points_stay_inside(name: str) -> None:
    torch.manual_seed(0)
    model, x, eps = Of(CASES[name]).double().eval(), torch.randn(3, 1, 4, 4).double(), 0.3
    module = BoundedModule(model, x)
    steps = torch.rand(400, 3, 1, 4, 4).double() * 2 - 1
    steps[::2] = steps[::2].sign()
    z = model((x + eps * steps).flatten(0, 1)).unflatten(0, (400, 3))
    widths = {}
    for method in ("IBP", "CROWN-IBP", "forward", "CROWN"):
        lower, upper = module.compute_bounds(x, LpBall(eps=eps), method=method)
        assert (z >= lower - 1e-9).all(), method
        assert (z <= upper + 1e-9).all(), method
        widths[method] = (upper - lower).mean().item()
    assert widths["CROWN"] <= widths["CROWN-IBP"] + 1e-9
    assert widths["CROWN"] < widths["IBP"]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose1d(2, 3, 3, 2, 1, 1), (2, 4)),
        (nn.ConvTranspose2d(2, 4, 3, 2, 1, groups=2), (2, 3, 4)),
        (nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 2)),
    ],
)
def test_a_transposed_convolution_keeps_its_bias_on_the_way_back(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = nn.Sequential(layer, nn.Flatten()).double(), torch.rand(2, *shape).double()
    for method in ("IBP", "CROWN-IBP", "CROWN"):
        for end in BoundedModule(model, x).compute_bounds(x, LpBall(eps=0.0), method=method, nested=False):
            assert torch.allclose(end, model(x), atol=1e-9), method


def test_an_operator_has_one_rule() -> None:
    with pytest.raises(InputError, match=r"aten.relu.default.* has a rule"):
        register(RULES[torch.ops.aten.relu.default, None], torch.ops.aten.relu.default)


def test_max_pool_is_exact_where_the_largest_is_known() -> None:
    model = nn.Sequential(nn.MaxPool1d(2), nn.Flatten())
    x = torch.tensor([[[0.0, 3.0, 1.0, 1.1]]]).double()
    lower, upper = BoundedModule(model, x).compute_bounds(x, LpBall(eps=0.2), torch.tensor([[1.0, 0.0]]).double())
    assert lower.item() == pytest.approx(2.8)
    assert upper.item() == pytest.approx(3.2)


def test_max_pool_lines_are_tighter_than_the_constant() -> None:
    torch.manual_seed(0)
    model, x = Of(lambda h: F.max_pool2d(h.relu(), 2)).double(), torch.randn(8, 1, 4, 4).double()
    widths = []
    for kind in ("constant", "triangle"):
        lower, upper = BoundedModule(model, x, {"max_pool": kind}).compute_bounds(x, LpBall(eps=0.1))
        widths.append((upper - lower).mean())
    assert widths[1] < 0.95 * widths[0]


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (nn.BatchNorm1d(3), "batch norm in training mode"),
        (nn.Dropout(), "dropout that is on"),
        (nn.BatchNorm1d(3, track_running_stats=False), "batch norm in training mode"),
    ],
)
def test_what_depends_on_chance_or_the_batch_is_refused(layer: nn.Module, match: str) -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), layer).train(), torch.rand(4, 3)
    with pytest.raises(InputError, match=f"{match} at '1'"):
        BoundedModule(model, x).compute_bounds(x, LpBall())
