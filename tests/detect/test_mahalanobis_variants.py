"""Adding a class against NumPy's covariances, and the choice of the pre-processing step."""

import numpy as np
import pytest
import torch
from torch import nn

from assay.data import Data
from assay.detect import ClassIncrementalGDA, Mahalanobis
from assay.runtime.errors import InputError


def _drawn(classes: int = 4, n: int = 120, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    return 3 * torch.randn(classes, d, generator=g)[y] + torch.randn(n, d, generator=g), y


def test_added_classes_make_the_mean_of_the_covariances() -> None:
    f, y = _drawn()
    grown = ClassIncrementalGDA.fit(f[y < 2], y[y < 2]).with_class(f[y == 2]).with_class(f[y == 3][:7])
    parts = [f[y == 0], f[y == 1], f[y == 2], f[y == 3][:7]]
    expected = np.mean([np.cov(p.double().numpy().T, bias=True) for p in parts], 0)
    np.testing.assert_allclose(grown.covariance_.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(grown.mean_.numpy(), [p.double().numpy().mean(0) for p in parts], atol=1e-12)
    assert float((grown.predict(f) == y).float().mean()) > 0.9


@pytest.mark.parametrize("bad", [torch.zeros(1, 5), torch.zeros(4, 6), torch.full((4, 5), torch.nan)])
def test_a_class_needs_two_finite_samples_of_the_same_width(bad: torch.Tensor) -> None:
    with pytest.raises(InputError, match="expected"):
        ClassIncrementalGDA.fit(*_drawn()).with_class(bad)


def test_fit_needs_every_class() -> None:
    f, y = _drawn()
    with pytest.raises(InputError, match="class 1"):
        ClassIncrementalGDA.fit(f[y != 1], y[y != 1])


def test_tuned_step_is_among_those_offered_and_is_fitted_on_all() -> None:
    f, y = _drawn(d=6)
    g = torch.Generator().manual_seed(1)
    data = Data(f.sub(f.min()).div(f.max() - f.min()), y, tuple("abcd"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    outside = torch.rand(40, 6, generator=g)
    fitted = Mahalanobis().fit(model, data)
    chosen = fitted.tuned(data.x, outside, magnitudes=(0.0, 0.02))
    assert chosen.magnitude in (0.0, 0.02)
    again = Mahalanobis(magnitude=chosen.magnitude).fit(model, data).with_out(data.x, outside)
    assert torch.equal(chosen.score(outside), again.score(outside))
    assert fitted.magnitude == 0.0
    for magnitudes in ((), (-0.1,)):
        with pytest.raises(InputError, match="magnitudes"):
            fitted.tuned(data.x, outside, magnitudes=magnitudes)
