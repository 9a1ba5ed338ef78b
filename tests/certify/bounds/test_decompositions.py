"""Layer norm, attention and LSTM: the rewritten operators compute the same, and whole networks are enclosed."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks import PGD, Linf
from assay.certify import CROWN, IBP
from assay.certify.bounds import SLACK, LpBall, decompositions, extremes, recurrent
from assay.certify.bounds.module import BoundedModule

aten = torch.ops.aten


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4) for n in (5, 6, 6))
    keep = torch.rand(2, 1, 5, 6) > 0.4
    keep[..., 0] = True
    assert torch.allclose(decompositions.attention(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-6)
    for mask in (keep, torch.where(keep, 0.0, -torch.inf), torch.randn(5, 6)):
        found = decompositions.attention(q, k, v, mask, scale=0.7)
        assert torch.allclose(found, F.scaled_dot_product_attention(q, k, v, mask, scale=0.7), atol=1e-6)
    square = q, q, q
    causal = F.scaled_dot_product_attention(*square, is_causal=True)
    assert torch.allclose(decompositions.attention(*square, causal=True), causal, atol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_layer_norm_is_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 5, 6), torch.randn(shape), torch.randn(shape)
    x[0] = 1.0
    assert torch.allclose(
        decompositions.layer_norm(x, list(shape), weight, bias, 1e-12), F.layer_norm(x, shape, weight, bias, 1e-12),
        atol=1e-5,
    )  # fmt: skip


LAYERS = {
    "gru": (recurrent.single(recurrent.gru_cell), nn.GRU, {}, recurrent.gru_cell, nn.GRUCell),
    "tanh": (
        recurrent.single(recurrent.plain_cell(torch.tanh)), nn.RNN, {},
        recurrent.plain_cell(torch.tanh), nn.RNNCell,
    ),
    "relu": (
        recurrent.single(recurrent.plain_cell(torch.relu)), nn.RNN, {"nonlinearity": "relu"},
        recurrent.plain_cell(torch.relu), nn.RNNCell,
    ),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True}])
@pytest.mark.parametrize("kind", LAYERS)
def test_single_state_layers_are_torchs(kind: str, options: dict) -> None:
    torch.manual_seed(0)
    unrolled, layer_of, extra, cell, cell_of = LAYERS[kind]
    layer, x = layer_of(3, 4, **options, **extra), torch.randn(5, 6, 3)
    h = torch.randn(layer.num_layers * (2 if layer.bidirectional else 1), 5 if layer.batch_first else 6, 4)
    settings = (layer.bias, layer.num_layers, 0.0, False, layer.bidirectional, layer.batch_first)
    for ours, theirs in zip(unrolled(x, h, layer._flat_weights, *settings), layer(x, h), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    one = cell_of(3, 4, **extra)
    weights = (one.weight_ih, one.weight_hh, one.bias_ih, one.bias_hh)
    assert torch.allclose(cell(x[0], h[0][:1].expand(6, 4), *weights), one(x[0], h[0][:1].expand(6, 4)), atol=1e-6)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0].flatten(1)


@pytest.mark.parametrize("method", ["IBP", "forward", "forward+backward", "CROWN"])
def test_torchs_attention_layer_is_bounded(method: str) -> None:
    torch.manual_seed(0)
    model, x = SelfAttention().eval().double(), torch.randn(2, 3, 4).double()
    lower, upper = BoundedModule(model, x).compute_bounds(x, LpBall(eps=0.05), method=method)
    z = model((x + 0.05 * (torch.rand(100, *x.shape).double() * 2 - 1)).flatten(0, 1)).unflatten(0, (100, 2))
    assert (lower <= z).all()
    assert (z <= upper).all()


def test_batch_norm_beside_a_rewritten_operator_is_bounded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.LayerNorm(6), nn.Linear(6, 3))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    nn.init.normal_(model[1].weight)
    x = torch.randn(5, 4)
    lower, upper = BoundedModule(model.eval(), x).compute_bounds(x.double(), LpBall(eps=0.0), slack=SLACK)
    assert torch.allclose((lower + upper) / 2, model(x).double(), atol=1e-4)
    assert (lower <= model(x)).all()
    assert (model(x) <= upper).all()


def test_other_rewrites_are_torchs() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 6, 5), torch.randn(6), torch.randn(6)
    pairs = [
        (decompositions.rms_norm(x, [5], weight[:5], 1e-6), F.rms_norm(x, (5,), weight[:5], 1e-6)),
        (decompositions.group_norm(x, 2, weight, bias, 1e-3), F.group_norm(x, 2, weight, bias, 1e-3)),
        (
            decompositions.instance_norm(x, weight, bias, None, None, True, 0.1, 1e-3, True),
            F.instance_norm(x, weight=weight, bias=bias, eps=1e-3),
        ),
        (decompositions.prelu(x, weight), F.prelu(x, weight)),
        (decompositions.log_sum_exp(x, [1]), x.logsumexp(1)),
        (decompositions.vector_norm(x, 2, [1], True), x.norm(dim=1, keepdim=True)),
        (extremes.largest(x, [1, 2]), x.amax((1, 2))),
        (extremes.smallest(x, [-1], True), x.amin(-1, keepdim=True)),
    ]
    for ours, theirs in pairs:
        assert torch.allclose(ours, theirs, atol=1e-5)
    simple = {
        aten.hardsigmoid.default: 3 * x, aten.log1p.default: x.abs(), aten.expm1.default: x, aten.exp2.default: x,
        aten.celu.default: x, aten.glu.default: x.mT,
    }  # fmt: skip
    for op, value in simple.items():
        assert torch.allclose(decompositions.DECOMPOSITIONS[op](value), op(value), atol=1e-6), op


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True}])
def test_lstm_is_torchs(options: dict) -> None:
    torch.manual_seed(0)
    layer, x = nn.LSTM(3, 4, **options), torch.randn(5, 6, 3)
    sides = layer.num_layers * (2 if layer.bidirectional else 1)
    state = [torch.randn(sides, 5 if layer.batch_first else 6, 4) for _ in range(2)]
    expected, (h, c) = layer(x, tuple(state))
    settings = (layer.bias, layer.num_layers, 0.0, False, layer.bidirectional, layer.batch_first)
    found = recurrent.lstm(x, state, layer._flat_weights, *settings)
    for ours, theirs in zip(found, (expected, h, c), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    cell = nn.LSTMCell(3, 4)
    one = x[0], [state[0][0][:1].expand(6, 4), state[1][0][:1].expand(6, 4)]
    expected = cell(one[0], tuple(one[1]))
    found = recurrent.lstm_cell(*one, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    assert torch.allclose(found[0], expected[0], atol=1e-6)


class Logits(nn.Module):
    """A model of transformers, from tokens' embeddings or images to logits."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        return self.model(**{self.name: x}).logits


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = layer(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def bert() -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    return Logits(transformers.BertForSequenceClassification(config), "inputs_embeds"), torch.randn(3, 4, 8)


def vit() -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, image_size=8, patch_size=4,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    return Logits(transformers.ViTForImageClassification(config), "pixel_values"), torch.rand(3, 1, 8, 8)


def encoder() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True, activation="gelu")
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3)), torch.randn(3, 4, 6)


def lstm() -> tuple[nn.Module, Tensor]:
    return Recurrent(nn.LSTM), torch.randn(3, 4, 3)


def gru() -> tuple[nn.Module, Tensor]:
    return Recurrent(nn.GRU), torch.randn(3, 4, 3)


@pytest.mark.parametrize("make", [bert, vit, encoder, lstm, gru])
def test_networks_are_enclosed_and_each_tighter_method_lies_inside(make) -> None:
    torch.manual_seed(0)
    model, x = make()
    eps, found = 0.02, []
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4 if make in (bert, vit) else 1.5)  # their starting weights are close to a linear map
    model.eval().requires_grad_(False)
    module, y = BoundedModule(model, x), model(x).argmax(1)
    points = [x + eps * (torch.rand(600, *x.shape) * 2 - 1), x + eps * torch.randn(600, *x.shape).sign()]
    attacked = [
        PGD(ball=Linf(eps), steps=10, bounds=(-9.0, 9.0), early_stop=False)(model, x, y, seed=s) for s in (0, 1)
    ]
    points = torch.cat([*points, torch.stack(attacked)])
    z = model(points.flatten(0, 1)).unflatten(0, points.shape[:2]).double()
    for method in ("IBP", "CROWN-IBP", "CROWN"):
        found.append(module.compute_bounds(x.double(), LpBall(eps=eps), method=method, slack=SLACK))
        assert (z >= found[-1][0]).all()
        assert (z <= found[-1][1]).all()
    for looser, tighter in itertools.pairwise(found):
        assert (tighter[0] >= looser[0]).all()
        assert (tighter[1] <= looser[1]).all()
    assert (found[2][1] - found[2][0]).mean() < 0.5 * (found[0][1] - found[0][0]).mean()


def test_certificates_of_a_transformer_survive_attacks() -> None:
    torch.manual_seed(0)
    model, x = vit()
    model.eval()
    y = model(x).argmax(1)
    options = {"eps": 2e-3, "bounds": (0.0, 1.0)}
    found = CROWN(**options).certify(model, x, y)
    assert found.verdict.any()
    assert found.verdict.sum() >= IBP(**options).certify(model, x, y).verdict.sum()
    worst = PGD(ball=Linf(2e-3), steps=20, bounds=(0.0, 1.0))(model, x, y, seed=0)
    assert (model(worst).argmax(1) == y)[found.verdict].all()
