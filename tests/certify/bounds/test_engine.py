"""The engine: exact where it must be, sound on points, layouts of samples found."""

import pytest
import torch
from torch import Tensor, nn

from assay.certify import IBP
from assay.certify.bounds import SLACK, Layout, LpBall, graph_of
from assay.certify.bounds.engine import backward, sweep
from assay.certify.bounds.graph import KEPT, _kept
from assay.certify.bounds.module import BoundedModule
from assay.nets import MLP, SmallCNN
from assay.runtime.errors import InputError


class Branches(nn.Module):
    """A residual sum, batch norm, a concatenation and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        g = (h + self.norm(self.b(h))).relu()
        return self.head(torch.cat([g, h], 1).flatten(1)) - 0.5


def both(model: nn.Module, x: Tensor, ball: LpBall, refine: bool) -> tuple[Tensor, Tensor]:
    """Bounds (n, c) on the logits by a backward pass."""
    graph = graph_of(model, x)
    with torch.no_grad():
        run = sweep(graph, model, x.double(), ball, refine="backward" if refine else None, slack=SLACK)
        classes = run.values[graph.output].lower.shape[1]
        a = torch.eye(classes, dtype=torch.float64)[:, None].expand(-1, len(x), -1)
        return backward(run, graph.output, a).T, -backward(run, graph.output, -a).T


@pytest.mark.parametrize(("norm", "dual"), [(1, torch.inf), (2, 2), (torch.inf, 1)])
def test_exact_on_a_linear_model(norm: float, dual: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.rand(5, 3, 2, 2)
    w = model[1].weight.double()
    middle = x.double().flatten(1) @ w.T + model[1].bias.double()
    lower, upper = both(model, x, LpBall(norm, 0.1), False)
    radius = 0.1 * w.norm(p=dual, dim=1)
    assert (lower - (middle - radius)).abs().max() < 1e-5
    assert (upper - (middle + radius)).abs().max() < 1e-5


@pytest.mark.parametrize("make", [lambda: MLP((1, 8, 8), 10, (32, 32)), SmallCNN, Branches])
def test_sound_and_tighter_when_refined(make) -> None:
    torch.manual_seed(0)
    model, x, eps = make().eval(), torch.rand(5, 1, 8, 8), 0.03
    ball = LpBall(eps=eps, low=0.0, high=1.0)
    loose, tight = both(model, x, ball, False), both(model, x, ball, True)
    assert (tight[1] - tight[0]).mean() < (loose[1] - loose[0]).mean()
    for k in range(200):
        step = torch.rand_like(x) * 2 - 1 if k % 2 else torch.randn_like(x).sign()
        z = model((x + eps * step).clamp(0, 1)).detach().double()
        for lower, upper in (loose, tight):
            assert (z >= lower).all()
            assert (z <= upper).all()


class Scaled(nn.Module):
    """A linear layer whose outputs are shifted and scaled by what is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.shift, self.scale, self.after = nn.Linear(4, 3), torch.zeros(3), 1.0, nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(x) * self.scale + self.shift)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "scale", 3.0),
        lambda m: setattr(m, "shift", torch.ones(3)),
        lambda m: setattr(m.after, "negative_slope", 0.7),
        lambda m: setattr(m, "after", nn.LeakyReLU(0.5)),
    ],
)
def test_a_changed_model_is_exported_again(change) -> None:
    torch.manual_seed(0)
    model, x = Scaled().double(), torch.randn(5, 4).double()
    method = IBP(eps=1e-6, bounds=None)
    BoundedModule(model, x)
    method.margins(model, x, model(x).argmax(1))
    change(model)
    z = model(x)
    y, sides = z.argmax(1), z.topk(2, 1).values
    assert torch.allclose(method.margins(model, x, y), sides[:, 0] - sides[:, 1], atol=1e-4)
    change(model)
    lower, upper = BoundedModule(model, x).compute_bounds(x, LpBall(eps=0.0))
    assert torch.allclose(lower, z, atol=1e-9)
    assert torch.allclose(upper, z, atol=1e-9)


def test_a_change_that_no_checked_sample_shows_is_seen() -> None:
    model, x = nn.Sequential(nn.LeakyReLU(0.1)), torch.tensor([[1.0, 2.0], [2.0, 1.0], [-1.0, -9.0]])
    y = torch.tensor([1, 0, 0])
    method = IBP(eps=1e-6, bounds=None)
    assert method.margins(model, x, y)[2] == pytest.approx(0.8, abs=1e-4)
    model[0].negative_slope = 0.01
    assert method.margins(model, x, y)[2] == pytest.approx(0.08, abs=1e-4)


def test_the_graphs_of_a_model_do_not_pile_up() -> None:
    model, x = Scaled(), torch.rand(2, 4)
    for k in range(KEPT + 3):
        model.scale = float(k)
        graph_of(model, x)
    assert len(_kept[model]) == KEPT
    assert graph_of(model, x) is graph_of(model, x)


class Turned(nn.Module):
    def __init__(self, by_sample: bool) -> None:
        super().__init__()
        self.by_sample, self.layer = by_sample, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        h = x if self.by_sample else x.transpose(0, 1)
        h = self.layer(h.reshape(n * t, d)).relu()
        h = h.reshape(n, t, 3) if self.by_sample else h.reshape(t, n, 3).transpose(0, 1)
        return h.flatten(1)


@pytest.mark.parametrize("by_sample", [True, False])
def test_samples_are_found_in_merged_axes(by_sample: bool) -> None:
    torch.manual_seed(0)
    model, x = Turned(by_sample), torch.randn(3, 5, 4)
    graph = graph_of(model, x)
    assert Layout(0, by_sample) in graph.layouts.values()
    together = both(model, x, LpBall(2, 0.3), False)
    alone = [both(model, x[k : k + 1], LpBall(2, 0.3), False) for k in range(3)]
    for k in range(2):
        assert torch.allclose(together[k], torch.cat([a[k] for a in alone]), atol=1e-12)


def test_an_operator_without_a_rule_is_named_with_its_place() -> None:
    with pytest.raises(InputError, match="Threshold at '1'"):
        both(nn.Sequential(nn.Linear(3, 3), nn.Threshold(0.1, 5.0)), torch.rand(2, 3), LpBall(), False)
