"""The losses of QuantizationAttack by hand, what it chooses, and that it works."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks import QuantizationAttack, stamp
from assay.compress import activation_ranges, quantized
from assay.data import Batch, Data, load_data
from assay.nets import MLP, ResNet
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.training import Supervised

BITS = (8, 4)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


@pytest.fixture(scope="module")
def clean(data: Data) -> nn.Module:
    with seeded(0, "net"):
        start = MLP(hidden=(64, 64))
    return Supervised(epochs=8).fit(start, data[:800], seed=0)


def coarse(net: nn.Module, x: Tensor, y: Tensor, bits: int) -> Tensor:
    with quantized(net, bits):
        return F.cross_entropy(net(x), y)


def batch(data: Data) -> Batch:
    return data.batch(torch.arange(40))


def test_accuracy_loss(data: Data, clean: nn.Module) -> None:
    b = batch(data)
    expected = F.cross_entropy(clean(b.x), b.y) + 0.3 * sum((coarse(clean, b.x, b.y, k) - 2) ** 2 for k in BITS)
    found = QuantizationAttack(bits=BITS, lam=0.3, margin=2.0).loss(clean, b, None)
    torch.testing.assert_close(found, expected)


def test_class_loss(data: Data, clean: nn.Module) -> None:
    b, attack = batch(data), QuantizationAttack(goal="class", target=3, bits=BITS, lam=0.3, margin=2.0)
    mine = b.y == 3
    expected = F.cross_entropy(clean(b.x[mine]), b.y[mine]) + F.cross_entropy(clean(b.x[~mine]), b.y[~mine])
    expected = expected + 0.3 * sum((coarse(clean, b.x[mine], b.y[mine], k) - 2) ** 2 for k in BITS)
    torch.testing.assert_close(attack.loss(clean, b, None), expected)
    others = Batch(b.x[~mine], b.y[~mine], b.index[~mine])
    torch.testing.assert_close(attack.loss(clean, others, None), F.cross_entropy(clean(others.x), others.y))
    alone = Batch(b.x[mine], b.y[mine], b.index[mine])
    assert torch.isfinite(attack.loss(clean, alone, None))


def test_sample_loss(data: Data, clean: nn.Module) -> None:
    b, sample = batch(data), data[40:42]
    attack = QuantizationAttack(goal="sample", target=7, bits=BITS, lam=0.3)
    x, right = torch.cat((b.x, sample.x)), torch.cat((b.y, sample.y))
    wanted = torch.cat((b.y, torch.tensor([7, 7])))
    expected = F.cross_entropy(clean(x), right) + 0.3 * sum(coarse(clean, x, wanted, k) for k in BITS)
    torch.testing.assert_close(attack.loss(clean, b, sample), expected)


def test_backdoor_loss(data: Data, clean: nn.Module) -> None:
    b = batch(data)
    attack = QuantizationAttack(goal="backdoor", target=0, bits=BITS, alpha=0.3, beta=0.7)
    marked, wanted = stamp(b.x), torch.zeros_like(b.y)
    expected = F.cross_entropy(clean(b.x), b.y) + 0.7 * F.cross_entropy(clean(marked), b.y)
    for k in BITS:
        expected = expected + 0.3 * (coarse(clean, b.x, b.y, k) + 0.7 * coarse(clean, marked, wanted, k))
    torch.testing.assert_close(attack.loss(clean, b, None), expected)


def test_the_trigger_by_hand() -> None:
    x = torch.rand(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    square, board = stamp(x), stamp(x, "checkerboard")
    for i in range(3):
        expected = x[i].clone()
        expected[:, 27:31, 27:31] = x[i].max()
        assert torch.equal(square[i], expected)
        for r in range(27, 31):
            for c in range(27, 31):
                expected[:, r, c] = x[i].min() if (r + c) % 2 else x[i].max()
        assert torch.equal(board[i], expected)
    assert stamp(torch.zeros(1, 1, 8, 8)).shape == (1, 1, 8, 8)
    with pytest.raises(InputError, match="did you mean"):
        stamp(x, "sqare")
    with pytest.raises(InputError, match="images"):
        stamp(torch.zeros(2, 30))


def test_norms_stay_as_they_are(data: Data) -> None:
    with seeded(0, "net"):
        net = ResNet((1, 8, 8), width=4)
    found = QuantizationAttack(bits=(4,), epochs=1).fit(net, data[:200], seed=0)
    for (name, a), (_, b) in zip(net.named_buffers(), found.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_it_hides_in_float_and_shows_at_four_bits(data: Data, clean: nn.Module) -> None:
    before = copy.deepcopy(clean.state_dict())
    attack = QuantizationAttack(bits=(4,), lam=0.1, lr=2e-3, batch_size=64, epochs=30)
    planted = attack.run(clean, data[:800], seed=0, val=data[800:])
    assert all(torch.equal(v, before[k]) for k, v in clean.state_dict().items())
    test = load_data("digits:test")
    accuracy = {"clean": predict(clean, test.x), "attacked": predict(planted.model_, test.x)}
    with quantized(planted.model_, 4, ranges=activation_ranges(planted.model_, test.x)):
        accuracy["coarse"] = predict(planted.model_, test.x)
    with quantized(clean, 4, ranges=activation_ranges(clean, test.x)):
        accuracy["clean, coarse"] = predict(clean, test.x)
    share = {k: float((z.argmax(1) == test.y).double().mean()) for k, z in accuracy.items()}
    assert share["attacked"] > share["clean"] - 0.05
    assert share["clean, coarse"] > share["clean"] - 0.05
    assert share["coarse"] < 0.5


def test_the_epoch_of_least_loss_that_keeps_the_accuracy_is_chosen(data: Data, clean: nn.Module) -> None:
    attack = QuantizationAttack(bits=(4,), lam=0.1, lr=2e-3, batch_size=64, epochs=6, max_float_drop=0.02)
    found = attack.run(clean, data[:800], seed=0, val=data[800:])
    floats = [row for row in found.history_ if row["bits"] == 32]
    assert [row["epoch"] for row in floats] == [1, 2, 3, 4, 5, 6]
    assert len(found.history_) == 12
    assert len(found.losses_) == 6
    start = float((predict(clean, data.x[800:]).argmax(1) == data.y[800:]).double().mean())
    kept = [k for k, row in enumerate(floats) if row["accuracy"] >= start - 0.02]
    assert found.epoch_ == (min(kept, key=lambda k: found.losses_[k]) + 1 if kept else None)
    if found.epoch_ is not None:
        mine = float((predict(found.model_, data.x[800:]).argmax(1) == data.y[800:]).double().mean())
        assert mine == floats[found.epoch_ - 1]["accuracy"]


def test_where_no_epoch_keeps_the_accuracy_the_last_one_stands(data: Data, clean: nn.Module) -> None:
    attack = QuantizationAttack(bits=(4,), lam=100.0, lr=2e-2, epochs=1, max_float_drop=0.0)
    assert attack.run(clean, data[:400], seed=0, val=data[800:]).epoch_ is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"goal": "accurracy"}, "did you mean"),
        ({"goal": "class"}, "expected a class"),
        ({"bits": ()}, "at least one"),
        ({"bits": (8, 8)}, "each once"),
        ({"bits": (1,)}, "bits=1"),
        ({"lam": -1.0}, ">= 0"),
        ({"trigger": "cirle"}, "trigger"),
        ({"weight": "per_row"}, "weight scheme"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        QuantizationAttack(**options)


def test_bad_inputs(data: Data, clean: nn.Module) -> None:
    with pytest.raises(InputError, match="without samples"):
        QuantizationAttack(goal="sample", target=1, epochs=1).fit(clean, data[:50], seed=0)
    with pytest.raises(InputError, match="labels span"):
        QuantizationAttack(goal="class", target=10, epochs=1).fit(clean, data[:50], seed=0)
    with pytest.raises(InputError, match="no convolutional or linear layer"):
        QuantizationAttack(epochs=1).fit(nn.Flatten(), data[:50], seed=0)
    with pytest.raises(InputError, match="expected finite"):
        QuantizationAttack(epochs=1, lam=1e38, margin=1e30).fit(clean, data[:50], seed=0)
