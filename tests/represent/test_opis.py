"""Operating-point inconsistency: by hand, by loops, and 0 for classes that are copies of each other."""

import numpy as np
import pytest
import torch
from torch import Tensor

from assay.papers.tcm import copies, opis_loop
from assay.represent import (
    OPISResult,
    calibration_range,
    epsilon_opis,
    opis,
    recall_at,
    threshold_report,
    utility_curves,
)
from assay.runtime.errors import InputError


def _angles(*degrees: float) -> Tensor:
    a = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((a.cos(), a.sin()), 1)


def _random(n: int = 60, classes: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    return torch.randn(n, 4, generator=g) + 2 * torch.randn(classes, 4, generator=g)[y], y


def test_two_classes_by_hand() -> None:
    # class 0 at 0 and 60 degrees (one pair, distance 1), class 1 at 100 degrees three times over
    z, y = _angles(0, 60, 100, 100, 100), torch.tensor([0, 0, 1, 1, 1])
    chord = 2 * np.sin(np.deg2rad(20))  # of 40 degrees, 60 to 100
    classes, sensitivity, specificity = utility_curves(z, y, np.array([0.5, chord, 1.2]))
    assert classes.tolist() == [0, 1]
    assert sensitivity.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert specificity.tolist() == [[1, 0.5, 0.5], [1, 0.5, 0.5]]
    result = opis(z, y, far=(0.25, 0.75), n_thresholds=3)
    low, high = chord, 2 * np.sin(np.deg2rad(50))
    assert np.allclose(result.thresholds, [low, (low + high) / 2, high])
    # at chord and at the middle, 1.11: class 0 has sensitivity 0, then 1; specificity 1/2, or 0 at the end
    at_low = result.utility[:, 0]
    assert at_low[0] == 0
    assert np.allclose(result.utility[:, 1], 2 / 3)
    assert np.allclose(result.value, np.var(result.utility, 0).mean())


@pytest.mark.parametrize("chunk", [7, 2048])
def test_is_the_double_loop_whatever_the_chunk(chunk: int) -> None:
    z, y = _random()
    result = opis(z, y, n_thresholds=9, chunk=chunk)
    assert abs(result.value - opis_loop(z.double().numpy(), y.numpy(), result.thresholds)) < 1e-12
    assert np.allclose(result.per_class.mean(), result.value)
    assert result.standard_error > 0


def test_range_is_where_the_pooled_rate_says() -> None:
    z, y = _random()
    low, high = calibration_range(z, y, far=(0.05, 0.3))
    unit = torch.nn.functional.normalize(z.double(), dim=1)
    apart = (unit[:, None] - unit).norm(dim=2)[y[:, None] != y]
    assert abs((apart <= low).double().mean() - 0.05) < 0.01
    assert abs((apart <= high).double().mean() - 0.3) < 0.01
    report = threshold_report(z, y, far=0.2)
    assert abs(report["far"].mean() - 0.2) < 0.01  # classes are of one size
    assert report["frr"].shape == report["class"].shape == (5,)


def test_copies_agree() -> None:
    z, y = copies(3)
    result = opis(z, y)
    assert result.value == 0
    assert epsilon_opis(result, 0.25) < 1e-25


def test_the_worst_classes_by_hand() -> None:
    z, y = _random()
    result = opis(z, y, n_thresholds=2)
    ordered = np.sort(result.utility, 0)
    divide = np.square(ordered[:2].mean(0) - ordered[2:].mean(0)).mean()
    assert np.isclose(epsilon_opis(result, 0.3), divide)
    for eps in (0.0, 0.9, 1.0):
        with pytest.raises(InputError, match="epsilon_opis"):
            epsilon_opis(result, eps)


def test_the_share_of_worst_classes_is_the_decimal_one() -> None:
    utility = np.arange(100.0)[:, None] ** 2
    result = OPISResult(0.0, 0.0, np.arange(100), np.ones(1), utility, utility, utility, utility[:, 0])
    assert epsilon_opis(result, 0.07) == pytest.approx((utility[:7].mean() - utility[7:].mean()) ** 2)


def test_a_large_c_is_sensitivity_and_a_small_one_specificity() -> None:
    z, y = _random()
    large, small = opis(z, y, n_thresholds=3, c=1e4), opis(z, y, n_thresholds=3, c=1e-4)
    assert np.allclose(large.utility, large.sensitivity, atol=1e-6)
    assert np.allclose(small.utility, small.specificity, atol=1e-6)


def test_recall_by_hand() -> None:
    z, y = _angles(0, 10, 25, 90), torch.tensor([0, 1, 0, 1])
    assert recall_at(z, y) == 0
    assert recall_at(z, y, k=2) == 0.75  # the sample at 90 has 25, then 10 near it
    with pytest.raises(InputError, match="k=4"):
        recall_at(z, y, k=4)


def test_small_classes_are_left_out_and_bad_input_refused() -> None:
    z, y = _random()
    with pytest.warns(RuntimeWarning, match="single sample"):
        result = opis(torch.cat((z, z[:1])), torch.cat((y, torch.tensor([9]))))
    assert result.value == opis(z, y).value
    for far in ((0.0, 0.1), (0.1, 0.1), (0.2, 0.1), (0.1, 1.0)):
        with pytest.raises(InputError, match="far"):
            opis(z, y, far=far)
    for embeddings, labels in ((z * 0, y), (z, y * 0), (z, y[:-1]), (z[:, 0], y), (z / 0, y)):
        with pytest.raises(InputError):
            opis(embeddings, labels)
    with pytest.raises(InputError, match="n_thresholds"):
        opis(z, y, n_thresholds=1)


@pytest.mark.parametrize("thresholds", [[1.2, 0.5], [0.5, np.nan], [[0.5]], []])
def test_curves_need_ascending_thresholds(thresholds: list[float]) -> None:
    with pytest.raises(InputError, match="ascending"):
        utility_curves(*_random(), np.array(thresholds))


def test_chunks_and_rates_out_of_range() -> None:
    for measure in (opis, recall_at, threshold_report):
        with pytest.raises(InputError, match="chunk=0"):
            measure(*_random(), chunk=0)
    with pytest.raises(InputError, match=r"threshold_report: far=1\.5"):
        threshold_report(*_random(), far=1.5)


def test_lone_samples_are_left_out_as_in_the_double_loop() -> None:
    z, y = _random()
    y = torch.cat([y, y.max() + 1 + torch.arange(2)])
    z = torch.cat([z, z[:2] + 0.1])
    with pytest.warns(RuntimeWarning, match="a single sample"):
        result = opis(z, y, n_thresholds=9)
    assert abs(result.value - opis_loop(z.double().numpy(), y.numpy(), result.thresholds)) < 1e-12
