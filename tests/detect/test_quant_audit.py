"""The audit for behaviour that only quantised versions show."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.attacks import QuantizationAttack
from assay.compress import activation_ranges, quantized
from assay.data import Data, load_data
from assay.detect import QuantizationAudit
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.training import Supervised


def network(data: Data, seed: int) -> nn.Module:
    with seeded(seed, "net"):
        start = MLP(hidden=(64, 64))
    return Supervised(epochs=8).fit(start, data, seed=seed)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


@pytest.fixture(scope="module")
def clean(data: Data) -> nn.Module:
    return network(data, 0)


def test_the_statistics_by_hand(data: Data, clean: nn.Module) -> None:
    x, y = data.x[:200], data.y[:200]
    found = QuantizationAudit(bits=(3,)).score(clean, x, y)[3]
    whole = predict(clean, x)
    with quantized(clean, 3, ranges=activation_ranges(clean, x)):
        coarse = predict(clean, x)
    assert found.disagreement == float((whole.argmax(1) != coarse.argmax(1)).double().mean())
    right, kept = (whole.argmax(1) == y).double(), (coarse.argmax(1) == y).double()
    assert found.drop == pytest.approx(float(right.mean() - kept.mean()))
    assert found.worst_class == pytest.approx(max(float((right - kept)[y == c].mean()) for c in range(10)))
    kl = F.kl_div(coarse.log_softmax(1), whole.log_softmax(1), reduction="batchmean", log_target=True)
    assert found.divergence == pytest.approx(float(kl), rel=1e-4)
    assert found.z is None
    assert QuantizationAudit(bits=(3,)).score(clean, x)[3].drop is None


def test_references_and_alarms(data: Data, clean: nn.Module) -> None:
    audit, x = QuantizationAudit(bits=(8, 4)), data.x[:300]
    references = [network(data, s) for s in (1, 2, 3)]
    fitted = audit.fit(references, x)
    levels = torch.tensor([audit.score(r, x)[4].disagreement for r in references], dtype=torch.float64)
    assert fitted.mean_[4] == pytest.approx(float(levels.mean()))
    assert fitted.std_[4] == pytest.approx(float(levels.std()))
    attack = QuantizationAttack(bits=(4,), lam=0.1, lr=2e-3, batch_size=64, epochs=20)
    attacked = attack.fit(clean, data, seed=0)
    good, bad = fitted.score(clean, x)[4], fitted.score(attacked, x)[4]
    spread = max(fitted.std_[4], 1 / 300)
    assert good.z == pytest.approx((good.disagreement - fitted.mean_[4]) / spread)
    assert bad.z is not None
    assert good.z is not None
    assert bad.z > good.z
    assert bad.alarm
    assert not good.alarm


def test_eight_bits_alarm_by_themselves() -> None:
    """One weight far larger than the rest leaves the others on the grid point 0."""
    with seeded(0, "net"):
        net = MLP(hidden=(16,))
    with torch.no_grad():
        dict(net.named_parameters())["body.1.weight"][0, 0] = 1e4
    x = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, :, 0, 0] = 0.0
    found = QuantizationAudit(bits=(16, 8)).score(net, x)
    assert found[8].alarm
    assert not found[16].alarm


def test_nothing_is_changed(data: Data, clean: nn.Module) -> None:
    model = copy.deepcopy(clean).train()
    before, x = copy.deepcopy(model.state_dict()), data.x[:50].clone()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = QuantizationAudit().score(model, x)
    assert QuantizationAudit().score(model, x) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.equal(x, data.x[:50])


def test_bad_input(data: Data, clean: nn.Module) -> None:
    with pytest.raises(InputError, match="bits"):
        QuantizationAudit(bits=(1,))
    with pytest.raises(InputError, match="at least one"):
        QuantizationAudit(bits=())
    with pytest.raises(InputError, match="labels"):
        QuantizationAudit().score(clean, data.x[:5], data.y[:4])
    with pytest.raises(InputError, match="no convolutional or linear layer"):
        QuantizationAudit().score(nn.Flatten(), data.x[:5])
    with pytest.raises(InputError, match="references"):
        QuantizationAudit().fit([clean], data.x[:5])
