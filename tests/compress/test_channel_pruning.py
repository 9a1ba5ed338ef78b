"""Structured pruning: the smaller model is the masked one, sets of channels, scores by hand, the speed."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.compress import (
    FPGMChannels,
    L1Channels,
    ModHiFiP,
    RandomChannels,
    TaylorChannels,
    channel_spaces,
)
from assay.nets import MLP, ResNet, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded


def small_cnn() -> nn.Module:
    with seeded(0, "cnn"):
        return nn.Sequential(
            *(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10), nn.ReLU(), nn.Linear(10, 4)),
        ).eval()


def masked(model: nn.Module, mask: dict[str, torch.Tensor]) -> nn.Module:
    """The same model with the slices of the removed channels set to zero in the layers that read them."""
    modules = dict(model.named_modules())
    for name, kept in mask.items():
        weight = modules[name].weight.data
        weight[:, ~kept.repeat_interleave(weight.shape[1] // len(kept))] = 0
    return model


@pytest.mark.parametrize("cls", [ModHiFiP, L1Channels, FPGMChannels, TaylorChannels, RandomChannels])
def test_the_smaller_model_is_the_masked_one(cls: type) -> None:
    for make, shape in ((small_cnn, (12, 1, 8, 8)), (lambda: ResNet(width=4).eval(), (6, 3, 16, 16))):
        with seeded(1, "model"):
            model, x = make(), torch.rand(*shape)
        method = cls(keep=0.5, compensate=False, recalibrate_bn=False)
        pruned = method.prune(model, x, seed=3)
        assert sum(p.numel() for p in pruned.model.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
        assert all(int(m.sum()) == len(m) // 2 for m in pruned.mask_.values())
        assert torch.allclose(pruned.model(x), masked(model, dict(pruned.mask_))(x), atol=1e-5)


def test_keeping_all_changes_nothing_and_compensation_is_then_one() -> None:
    model, x = small_cnn(), torch.rand(16, 1, 8, 8)
    for center in (False, True):
        whole = ModHiFiP(keep=1.0, recalibrate_bn=False, ridge=0.0, center=center).prune(model, x).model
        assert torch.allclose(whole(x), model(x), atol=1e-4)


def test_compensation_is_least_squares_of_the_next_layer() -> None:
    with seeded(2, "mlp"):
        model, x = MLP((6,), 3, (8,)), torch.rand(40, 6)
    pruned = ModHiFiP(keep=0.5, ridge=0.0).prune(model, x)
    hidden = model.body(x).double()
    kept = pruned.mask_["head"]
    for i in range(3):
        a = hidden[:, kept] * model.head.weight[i, kept].double()
        y = hidden @ model.head.weight[i].double()
        delta = torch.linalg.lstsq(a, y[:, None]).solution[:, 0]
        assert torch.allclose(pruned.model.head.weight[i].double(), model.head.weight[i, kept] * delta, atol=1e-4)
    assert getattr(pruned.model, "spec", None) is None
    assert model.spec is not None


def test_residual_sums_share_one_set_of_channels() -> None:
    spaces = channel_spaces(ResNet(width=4), torch.zeros(1, 3, 8, 8))
    first = next(s for s in spaces if "stem.0" in s.producers)
    assert set(first.producers) == {"stem.0", "stages.0.conv2"}
    assert set(first.consumers) == {"stages.0.conv1", "stages.1.conv1", "stages.1.shortcut.0"}
    assert len(spaces) == 6
    flat = channel_spaces(SmallCNN((1, 8, 8), 10, (4, 6), 5), torch.zeros(1, 1, 8, 8))
    assert [list(s.consumers.values()) for s in flat] == [[1], [16], [1]]


class _Odd(nn.Module):
    """A softmax over channels, and a depthwise convolution: neither can lose a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1)
        self.d = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.c(self.b(self.a(x)).softmax(1)))
        return self.d(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_what_is_not_understood_keeps_its_channels() -> None:
    with seeded(0, "odd"):
        model = _Odd()
    assert [s.producers for s in channel_spaces(model, torch.zeros(1, 1, 8, 8))] == [["c"]]
    pruned = L1Channels(keep=0.4).prune(model, torch.rand(4, 1, 8, 8))
    assert set(pruned.mask_) == {"d"}
    assert pruned.model(torch.rand(3, 1, 8, 8)).shape == (3, 2)


def test_scores_by_hand() -> None:
    with seeded(3, "scores"):
        model, x, y = MLP((5,), 3, (6,)), torch.rand(20, 5), torch.arange(20) % 3
    w = model.body[1].weight.detach().double()
    kept = L1Channels(keep=0.5).prune(model, x).mask_["head"]
    assert set(kept.nonzero()[:, 0].tolist()) == set(w.abs().sum(1).topk(3).indices.tolist())
    kept = FPGMChannels(keep=0.5).prune(model, x).mask_["head"]
    distance = torch.stack([(w - row).norm(dim=1).sum() for row in w])
    assert set(kept.nonzero()[:, 0].tolist()) == set(distance.topk(3).indices.tolist())
    hidden = model.body(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model.head(hidden), y, reduction="sum"), hidden)
    kept = TaylorChannels(keep=0.5).prune(model, x, y).mask_["head"]
    assert set(kept.nonzero()[:, 0].tolist()) == set((hidden * g).abs().mean(0).topk(3).indices.tolist())


def test_global_scope_keeps_the_total_and_one_of_each() -> None:
    model, x = small_cnn(), torch.rand(16, 1, 8, 8)
    mask = ModHiFiP(keep=0.3, scope="global", method="greedy").prune(model, x).mask_
    assert sum(int(m.sum()) for m in mask.values()) == round(0.3 * 24)
    assert all(m.any() for m in mask.values())


def test_recalibration_measures_the_statistics_of_the_pruned_model() -> None:
    model, x = small_cnn(), torch.rand(16, 1, 8, 8)
    pruned = ModHiFiP(keep=0.5).prune(model, x).model
    seen = pruned[0](x)
    assert torch.allclose(pruned[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(pruned[1].running_var, seen.var((0, 2, 3)), atol=1e-5)
    assert pruned[1].momentum == model[1].momentum


@pytest.mark.parametrize("counts", [(1, 1), (2, 2)])
def test_identity_shortcuts_are_compensated_before_they_are_cut(counts: tuple[int, int]) -> None:
    with seeded(4, "resnet"):
        model, x = ResNet((3, 8, 8), 3, 4, counts).eval(), torch.rand(24, 3, 8, 8)
    for method in (ModHiFiP(), L1Channels(compensate=True, center=True)):
        assert method.prune(model, x).model(x).shape == (24, 3)
    whole = L1Channels(keep=1.0, compensate=True, ridge=0.0).prune(model, x).model
    assert torch.allclose(whole(x), model(x), atol=1e-3)


def test_recalibration_is_exact_for_any_number_and_order_of_samples() -> None:
    with seeded(5, "norms"):
        model, x = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)), torch.rand(257, 4)
        model = model.append(nn.BatchNorm1d(5)).append(nn.Linear(5, 3)).eval()
    x[256] = 9.0
    found = [L1Channels(keep=1.0, recalibrate_bn=True).prune(model, v).model for v in (x, x.flip(0))]
    for k in (1, 4):
        read = found[0][:k](x)
        assert torch.allclose(found[0][k].running_mean, read.mean(0), atol=1e-6)
        assert torch.allclose(found[0][k].running_var, read.var(0), rtol=1e-5)
        assert torch.allclose(found[0][k].running_var, found[1][k].running_var, rtol=1e-6)
    with pytest.raises(InputError, match="one value a channel"):
        ModHiFiP().prune(model, x[:1])


def test_frozen_parameters_have_the_same_taylor_scores() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = F.relu(self.a(x))
            return self.b(h) + self.c(h)

    for seed in range(8):
        with seeded(seed, "two"):
            model, x, y = Two(), torch.rand(90, 4), torch.arange(90) % 3
        hidden = F.relu(model.a(x)).detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model.b(hidden) + model.c(hidden), y, reduction="sum"), hidden)
        best = set((hidden * g).abs().mean(0).topk(8).indices.tolist())
        for frozen in (False, True):
            kept = TaylorChannels().prune(model.requires_grad_(not frozen), x, y).mask_["b"]
            assert set(kept.nonzero()[:, 0].tolist()) == best


class _Tokens(nn.Module):
    """A linear layer on tokens (n, t, d), a module after it, and the classifier of all that."""

    def __init__(self, tokens: int, width: int, after: nn.Module) -> None:
        super().__init__()
        self.a, self.after, self.o = nn.Linear(5, width), after, nn.Linear(tokens * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(torch.flatten(F.relu(self.after(self.a(x))), 1))


@pytest.mark.parametrize(("tokens", "width"), [(6, 6), (6, 8)])
def test_channels_on_the_last_axis_are_cut_where_that_is_what_is_read(tokens: int, width: int) -> None:
    with seeded(2, "tokens"):
        x = torch.rand(7, tokens, 5)
        norm, pool = (_Tokens(tokens, width, m) for m in (nn.BatchNorm1d(tokens), nn.MaxPool2d(3, 1, 1)))
        wide = nn.Sequential(
            nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 4), nn.Flatten(), nn.Linear(4 * tokens, 3)
        )
    for model in (norm, pool):
        with pytest.raises(InputError, match="no channels between"):
            L1Channels().prune(model.eval(), x)
    assert [s.producers for s in channel_spaces(wide, x[:1])] == [["0"]]
    pruned = L1Channels().prune(wide, x)
    assert torch.allclose(pruned.model(x), masked(wide, dict(pruned.mask_))(x), atol=1e-5)


def test_taylor_scores_of_tokens_are_means_over_them() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(x))).flatten(1, -2).mean(1)

    with seeded(4, "tokens"):
        model, y = Mean(), torch.arange(12) % 3
        for shape in ((12, 7, 5), (12, 2, 7, 5)):
            x = torch.rand(shape)
            a = torch.tanh(model.a(x)).detach().requires_grad_()
            loss = F.cross_entropy(model.b(a).flatten(1, -2).mean(1), y, reduction="sum")
            product = (a * torch.autograd.grad(loss, a)[0]).flatten(1, -2)
            kept = TaylorChannels(keep=0.5).prune(model, x, y).mask_["b"]
            assert set(kept.nonzero()[:, 0].tolist()) == set(product.mean(1).abs().mean(0).topk(4).indices.tolist())


def test_equal_scores_leave_no_layer_without_channels() -> None:
    model = MLP((4,), 3, (64, 8))
    for p in model.parameters():
        nn.init.constant_(p, 0.1)
    mask = L1Channels(keep=0.1, scope="global").prune(model, torch.rand(10, 4)).mask_
    assert sum(int(m.sum()) for m in mask.values()) == 7
    assert all(m.any() for m in mask.values())


def test_layers_that_are_called_twice_keep_their_channels() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h, self.n = nn.Linear(4, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
            self.b, self.o = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.n(self.h(F.relu(self.n(self.h(F.relu(self.a(x)))))))
            return self.o(F.relu(self.b(x)))

    with seeded(3, "twice"):
        model, x = Twice().eval(), torch.rand(9, 4)
    assert [s.producers for s in channel_spaces(model, x[:1])] == [["b"]]
    pruned = L1Channels().prune(model, x)
    assert torch.allclose(pruned.model(x), masked(model, dict(pruned.mask_))(x), atol=1e-5)


def test_a_quarter_of_the_channels_is_faster() -> None:
    with seeded(0, "speed"):
        model, x = SmallCNN((3, 32, 32), 10, (64, 128), 256).eval(), torch.rand(64, 3, 32, 32)
    small = L1Channels(keep=0.25).prune(model, x[:8]).model

    def seconds(net: nn.Module) -> float:
        spent = []
        with torch.no_grad():
            for _ in range(5):
                start = time.process_time()
                net(x)
                spent.append(time.process_time() - start)
        return min(spent)

    assert seconds(model) > 1.3 * seconds(small)


def test_errors() -> None:
    model, x = small_cnn(), torch.rand(4, 1, 8, 8)
    for options in ({"keep": 0.0}, {"keep": 1.5}, {"n_max": 0}, {"scope": "all"}, {"aggregate": "sum"}):
        with pytest.raises(InputError):
            ModHiFiP(**options).prune(model, x)
    with pytest.raises(InputError, match="unknown method"):
        ModHiFiP(method="best")
    with pytest.raises(InputError, match="layer with channels"):
        ModHiFiP(layers=("0",)).prune(model, x)
    with pytest.raises(InputError, match="no channels between"):
        ModHiFiP().prune(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x)
    with pytest.raises(InputError, match="expected one type"):
        ModHiFiP().prune(small_cnn().double(), x)
    with pytest.raises(InputError, match="no data"):
        ModHiFiP().compress(model, None, seed=0)
