"""EL2N, GraNd and forgetting: closed forms, and one method against another."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.curate import (
    ForgettingTracker,
    el2n_runs,
    el2n_scores,
    forget_scores,
    grand_runs,
    grand_scores,
    offset_subset,
    prune_by_score,
)
from assay.nets import ResNet, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded


class Odd(nn.Module):
    """Groups, dilation, layer norm, in-place ReLU, a linear layer on sequences, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2)
        self.relu = nn.ReLU(inplace=True)
        self.mix = nn.Linear(9, 5)
        self.norm = nn.LayerNorm(5)
        self.same = nn.Conv2d(4, 4, 3, padding="same", bias=False)
        self.head = nn.Linear(20, 3)
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        z = self.same(self.relu(self.conv(x)))
        return self.head(self.norm(self.mix(z.flatten(2))).flatten(1)) * self.scale


def odd() -> tuple[nn.Module, Tensor, Tensor]:
    with seeded(1, "odd"):
        return Odd().double(), torch.randn(7, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 2])


def small(cls: type[nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    with seeded(0, "net"):
        if cls is ResNet:
            model: nn.Module = ResNet((2, 8, 8), 5, 4, (1, 1))
        else:
            model = SmallCNN((2, 8, 8), 5, (3, 4), 6)
        x = torch.randn(9, 2, 8, 8, dtype=torch.float64)
        model = model.double()
        model.train()(x)  # moves the batch norms off their start
        return model, x, torch.arange(9) % 5


def test_el2n_by_hand() -> None:
    probs = torch.tensor([[[0.5, 0.5], [1.0, 0.0]], [[0.9, 0.1], [1.0, 0.0]]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    root = 2**0.5
    assert torch.allclose(el2n_scores(probs, None, y), torch.tensor([(0.5 + 0.1) / 2 * root, root]).double())
    assert torch.allclose(el2n_scores(probs, None, y, ord=1), torch.tensor([0.6, 2.0]).double())
    three = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=torch.float64)
    assert torch.allclose(el2n_scores(three, None, y[:1], ord="max-margin"), torch.tensor([0.3]).double())
    assert torch.allclose(el2n_scores(three, None, y[:1], ord="sum-margin"), torch.tensor([0.6]).double())


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 12), st.floats(0.01, 30))
def test_el2n_ranges(seed: int, classes: int, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    probs = (scale * torch.randn(3, 20, classes, generator=g, dtype=torch.float64)).softmax(2)
    y = torch.randint(classes, (20,), generator=g)
    runs = el2n_runs(probs, None, y)
    assert runs.shape == (3, 20)
    assert runs.min() >= 0
    assert runs.max() <= 2**0.5 + 1e-12
    one = el2n_runs(probs, None, y, ord=1)
    right = probs.gather(2, y.expand(3, -1)[..., None])[..., 0]
    assert torch.allclose(one, 2 * (1 - right))
    assert torch.allclose(el2n_runs(probs, None, y, ord="sum-margin"), 1 - 2 * right)
    assert (el2n_runs(probs, None, y, ord="max-margin") <= 1 - 2 * right + 1e-12).all()


@pytest.mark.parametrize("method", ["vmap", "loop", "ghost"])
def test_grand_of_a_linear_softmax_model(method: str) -> None:
    with seeded(0, "linear"):
        models = [nn.Linear(6, 4).double() for _ in range(2)]
        x = torch.randn(30, 6, dtype=torch.float64)
    y = torch.arange(30) % 4
    length = x.square().sum(1)
    for model in models:
        el2n = (model(x).softmax(1) - F.one_hot(y, 4)).norm(dim=1)
        both = grand_scores([model], x, y, method=method)
        assert torch.allclose(both, el2n * (length + 1).sqrt(), atol=1e-12)
        weights = grand_scores([model], x, y, method=method, params=["weight"])
        assert torch.allclose(weights, el2n * length.sqrt(), atol=1e-12)
    mean = torch.stack([grand_scores([m], x, y, method=method) for m in models]).mean(0)
    assert torch.allclose(grand_scores(models, x, y, method=method), mean)


@pytest.mark.parametrize("make", [odd, lambda: small(SmallCNN), lambda: small(ResNet)], ids=["odd", "cnn", "resnet"])
def test_grand_is_the_norm_that_backward_gives_by_every_method(make: object) -> None:
    model, x, y = make()  # type: ignore[operator]
    expected = []
    model.eval()
    for one, label in zip(x, y, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(one[None]), label[None]), list(model.parameters()))
        expected.append(torch.cat([g.flatten() for g in gradients]).norm())
    model.train()
    for method in ("vmap", "loop", "ghost"):
        assert torch.allclose(grand_scores([model], x, y, method=method, batch_size=4), torch.stack(expected)), method
    assert model.training
    names = [n for n, _ in model.named_parameters() if n != "scale"]
    ghost = grand_scores([model], x, y, method="ghost", params=names)
    assert torch.allclose(ghost, grand_scores([model], x, y, params=names))


def test_ghost_refuses_what_would_add_up() -> None:
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    layer = nn.Linear(4, 4)
    with pytest.raises(InputError, match="called twice"):
        grand_scores([nn.Sequential(layer, nn.Tanh(), layer)], x, y, method="ghost")
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(InputError, match="share"):
        grand_scores([tied], x, y, method="ghost")
    assert not layer._forward_hooks


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack((x, 2 * x, x - 1), 1)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def test_ghost_refuses_attention_and_takes_the_layers_beside_it() -> None:
    with seeded(0, "attention"):
        model, x, y = Attentive(), torch.randn(3, 4), torch.tensor([0, 1, 2])
    for names in (None, ["attention.out_proj.weight"]):
        with pytest.raises(InputError, match="attention"):
            grand_scores([model], x, y, method="ghost", params=names)
    head = {"params": ["head.weight", "head.bias"]}
    assert torch.allclose(grand_scores([model], x, y, method="ghost", **head), grand_scores([model], x, y, **head))


def test_forgetting_by_hand_and_by_batches() -> None:
    seen = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 1]]).bool()
    expected = torch.tensor([1.0, 2.0, 0.0, torch.inf, 1.0]).double()
    assert torch.equal(forget_scores(seen), expected)
    tracker = ForgettingTracker(5)
    for row, order in zip(seen, ([3, 1, 0, 4, 2], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]), strict=True):
        for rows in torch.tensor(order).split(2):
            tracker.update(rows, row[rows])
    assert torch.equal(tracker.scores(), expected)
    with pytest.raises(InputError, match="repeated"):
        tracker.update(torch.tensor([1, 1]), torch.tensor([True, True]))
    with pytest.raises(InputError, match="outside"):
        tracker.update(torch.tensor([5]), torch.tensor([True]))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.floats(0.05, 1), st.floats(0, 0.9), st.integers(0, 99))
def test_windows_of_the_ranking(values: list[int], keep: float, offset: float, seed: int) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    if keep + offset > 1:
        with pytest.raises(InputError, match="keep"):
            offset_subset(scores, keep, offset)
        return
    rows = offset_subset(scores, keep, offset, seed=seed)
    n = len(values)
    k = min(max(round(keep * n), 1), n)
    assert len(rows.unique()) == len(rows) == k
    skip = min(round(offset * n), n - k)
    assert sorted(scores[rows].tolist()) == sorted(values, reverse=True)[skip : skip + k][::-1]
    assert torch.equal(prune_by_score(scores, keep, seed=seed), offset_subset(scores, keep, 0.0, seed=seed))


def test_ties_do_not_follow_the_order_of_the_data() -> None:
    rows = prune_by_score(torch.zeros(1000), 0.5)
    assert 200 < int((rows < 500).sum()) < 300


def test_bad_scores_and_inputs() -> None:
    with pytest.raises(InputError, match="NaN"):
        prune_by_score(torch.tensor([1.0, float("nan")]), 0.5)
    assert prune_by_score(torch.tensor([1.0, torch.inf]), 0.5).tolist() == [1]
    probs, y = torch.full((1, 4, 3), 1 / 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(InputError, match="labels span"):
        el2n_scores(probs, None, y + 1)
    with pytest.raises(InputError, match="distributions"):
        el2n_scores(probs * 2, None, y)
    with pytest.raises(InputError, match="ord"):
        el2n_scores(probs, None, y, ord=3)  # type: ignore[arg-type]
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    with pytest.raises(InputError, match="labels span"):
        grand_scores([model], x, y + 1)
    with pytest.raises(InputError, match="did you mean 'weight'"):
        grand_scores([model], x, y, params=["weigth"])
    with pytest.raises(InputError, match="at least 1 of each"):
        grand_runs([], x, y)
    with pytest.raises(InputError, match="at least one network"):
        el2n_scores([], x, y)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        grand_scores([model], x, y)
