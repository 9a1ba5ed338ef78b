"""The binomial bound of randomised smoothing against closed forms."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from assay.certify import RandomizedSmoothing
from assay.certify.smoothing import lower_bound
from assay.runtime.errors import InputError


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operator gives."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_clopper_pearson() -> None:
    bound = lower_bound(torch.tensor([0, 1, 50]), 50, 0.01)
    assert bound[0] == 0
    assert float(bound[1]) == pytest.approx(1 - 0.99 ** (1 / 50))
    assert float(bound[2]) == pytest.approx(0.01 ** (1 / 50))


def test_counts_take_memory_of_the_classes_and_not_of_the_draws() -> None:
    torch.manual_seed(0)
    model, x, index = nn.Linear(3, 4), torch.rand(3, 3), torch.arange(3)
    some, many = (
        RandomizedSmoothing(sigma=3.0, batch_size=size).counts(model, x, 500, 0, "s", index) for size in (7, 2000)
    )
    assert torch.equal(some, many)
    assert some.sum(1).tolist() == [500] * 3
    with Largest() as seen:
        RandomizedSmoothing(batch_size=50).counts(model, x, 2000, 0, "s", index)
    assert seen.numel < 2000


def test_batch_sizes_are_checked() -> None:
    with pytest.raises(InputError, match="batch_size is 0"):
        RandomizedSmoothing(batch_size=0)


def test_largest_radius_and_abstention() -> None:
    flat = nn.Linear(2, 2)
    with torch.no_grad():
        flat.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        flat.bias.zero_()
    x, y = torch.tensor([[50.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0])
    method = RandomizedSmoothing(n0=20, n=200)
    found = method.certify(flat, x, y)
    assert float(found.radius[0]) == pytest.approx(method.largest_radius)
    assert found.prediction.tolist() == [0, -1]
    assert found.radius[1] == 0
    assert RandomizedSmoothing(n=1).largest_radius == 0  # one draw tells nothing at level 0.001


@pytest.mark.parametrize("model", [nn.Linear(2, 1), nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))])
def test_models_with_one_logit_are_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="c >= 2"):
        RandomizedSmoothing(n0=4, n=8).certify(model, torch.zeros(3, 2), torch.tensor([0, 1, 1]))
