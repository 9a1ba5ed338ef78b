"""Exact checks of correctness-aware calibration: optima, signs of slopes, inputs, and what views add."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from assay.calibrate import (
    CorrectnessAwareCalibrator,
    CorrectnessAwareLoss,
    Outputs,
    collect_views,
    narrow_wrong,
    top_brier,
)
from assay.calibrate.correctness_calibrator import calibrator_inputs
from assay.nets import MLP
from assay.papers import correctness_calibration as paper
from assay.runtime.errors import InputError
from assay.runtime.random import Draws


def _bits(right: int, n: int) -> torch.Tensor:
    return torch.arange(n) < right


def _sample(n: int = 200, c: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, c, generator=g, dtype=torch.float64), torch.randint(c, (n,), generator=g)


@given(st.integers(1, 19))
def test_a_constant_confidence_is_best_at_the_accuracy(right: int) -> None:
    bits, a = _bits(right, 20), right / 20
    loss = CorrectnessAwareLoss()
    values = {t: float(loss(torch.full((20,), t, dtype=torch.float64), bits)) for t in (a - 0.01, a, a + 0.01)}
    assert values[a] == pytest.approx(a * (1 - a), abs=1e-12) == min(values.values())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 2**30 - 1))
def test_jensen(confidence: list[float], mask: int) -> None:
    c = torch.tensor(confidence, dtype=torch.float64)
    bits = torch.tensor([bool(mask >> k & 1) for k in range(len(c))])
    mean_gap = (c - bits.double()).abs().mean()
    assert CorrectnessAwareLoss()(c, bits) >= mean_gap**2 - 1e-12
    assert CorrectnessAwareLoss(p=1)(c, bits) == pytest.approx(float(mean_gap), abs=1e-12)


@pytest.mark.parametrize("right", [60, 76, 90])
def test_the_balanced_optimum_of_a_constant_is_one_half(right: int) -> None:
    bits, loss = _bits(right, 100), CorrectnessAwareLoss(balance=True)
    found = minimize_scalar(lambda t: float(loss(torch.full((100,), t, dtype=torch.float64), bits)), bounds=(0, 1))
    assert found.x == pytest.approx(0.5, abs=1e-6)


def test_the_balanced_optimum_of_a_group() -> None:
    bits = torch.cat((_bits(6, 10), _bits(10, 10)))  # a group that is right with 0.6 in a batch of accuracy 0.8

    def value(t: float) -> float:
        confidence = torch.cat((torch.full((10,), t), torch.ones(10))).double()
        return float(CorrectnessAwareLoss(balance=True)(confidence, bits))

    expected = 0.6 * 0.2 / (0.6 * 0.2 + 0.4 * 0.8)
    assert expected == pytest.approx(0.2727, abs=1e-4)
    assert minimize_scalar(value, bounds=(0, 1)).x == pytest.approx(expected, abs=1e-5)


def test_the_loss_of_logits_is_the_measure() -> None:
    z, y = _sample()
    assert float(CorrectnessAwareLoss().from_logits(z, y, 1.7)) == pytest.approx(top_brier((z / 1.7).softmax(1), y))
    for balance in (False, True):
        each = CorrectnessAwareLoss(balance=balance, reduction="none").from_logits(z, y)
        mean = CorrectnessAwareLoss(balance=balance).from_logits(z, y)
        assert each.shape == y.shape
        assert float(each.mean()) == pytest.approx(float(mean))


@pytest.mark.parametrize("seed", range(3))
def test_signs_of_the_slopes(seed: int) -> None:
    found = paper.signs(CorrectnessAwareCalibrator, seed, 2000)
    assert found["agree"] == 1
    assert 0.02 < found["narrow"] < 0.5
    assert paper.signs(paper.RULES["one-hot-target"], seed, 2000)["agree"] < 0.99


def test_two_classes_have_no_narrow_errors() -> None:
    z, y = _sample(c=2)
    assert (z.argmax(1) != y).any()
    assert not narrow_wrong(z, y).any()


@pytest.mark.parametrize("bound", ["smooth", "clamp"])
def test_a_calibrator_without_information_finds_the_best_single_temperature(bound: str) -> None:
    z, y = _sample(300)
    y = torch.where(torch.arange(300) % 4 > 0, z.argmax(1), y)
    outputs = Outputs(z, views=torch.zeros(2, *z.shape))  # every input is the same
    method = CorrectnessAwareCalibrator(k=5, bound=bound, epochs=600, holdout=0.0)  # type: ignore[arg-type]
    t = method.fit(outputs, y).temperature(outputs)  # type: ignore[attr-defined]
    best = minimize_scalar(lambda s: float(CorrectnessAwareLoss().from_logits(z, y, s)), bounds=(0.1, 10))
    assert t.max() - t.min() < 1e-12
    assert float(t[0]) == pytest.approx(best.x, abs=1e-3)


def test_inputs_keep_the_order_of_the_original() -> None:
    z, _ = _sample(6, 4)
    views = torch.stack([_sample(6, 4, seed)[0] for seed in (1, 2, 3)])
    outputs = Outputs(z, views=views)
    v = calibrator_inputs(outputs, 2)
    for i in range(6):
        first, second = sorted(range(4), key=lambda c: -float(z[i, c]))[:2]
        rows = [[float(view[i].softmax(0)[c]) for c in (first, second)] for view in views]
        assert torch.allclose(v[i], torch.tensor(rows).flatten().double())
    assert torch.equal(calibrator_inputs(outputs, 2, True)[:, 2:], v)
    assert torch.equal(calibrator_inputs(Outputs(z), 3), z.softmax(1).sort(1, descending=True).values[:, :3])


def test_views_that_disagree_where_the_model_is_wrong_are_used() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(4, (300,), generator=g)
    right = torch.rand(300, generator=g) < 0.6
    guess = torch.where(right, y, (y + 1) % 4)
    logits = 2 * torch.nn.functional.one_hot(guess, 4).double()
    views = torch.stack([2 * torch.nn.functional.one_hot(torch.where(right, y, (y + k) % 4), 4) for k in (1, 2)])
    method = CorrectnessAwareCalibrator(include_original=True)
    for given_views, least, most in ((views.double(), 0.0, 0.02), (None, 0.2, 0.25)):
        outputs = Outputs(logits, views=given_views)
        p = method.fit(outputs, y).transform(outputs).softmax(1)
        assert torch.equal(p.argmax(1), guess)
        assert least <= top_brier(p, y) - (0.0 if given_views is None else _floor(right)) <= most


def _floor(right: torch.Tensor) -> float:
    """The least loss with T in [0.1, 10] for these logits: right ones reach 1, wrong ones only 1 / (1 + 3 e^-0.2)."""
    return float((~right).double().mean()) / (1 + 3 * math.exp(-0.2)) ** 2


def test_temperatures_are_bounded_and_degenerate_sets_are_told() -> None:
    z, _ = _sample(60)
    with pytest.warns(RuntimeWarning, match="all 60 samples are right"):
        fitted = CorrectnessAwareCalibrator(epochs=30).fit(Outputs(z), z.argmax(1))
    t = fitted.temperature(Outputs(z))  # type: ignore[attr-defined]
    assert 0.1 <= float(t.min()) <= float(t.max()) < 1


def test_views_are_named_by_sample_and_seed() -> None:
    model, x = MLP((1, 8, 8), 3, (4,)), torch.rand(6, 1, 8, 8)

    def noisy(x: torch.Tensor, draws: Draws) -> torch.Tensor:
        return x + draws.normal(*x.shape[1:])

    views = collect_views(model, x, [noisy, noisy], seed=1)
    assert views.shape == (2, 6, 3)
    assert not torch.allclose(views[0], views[1])
    part = collect_views(model, x[2:4], [noisy, noisy], seed=1, index=torch.tensor([2, 3]))
    assert torch.allclose(part, views[:, 2:4], atol=1e-6)
    assert not torch.allclose(collect_views(model, x, [noisy, noisy], seed=2), views)
    with pytest.raises(InputError, match="same shape"):
        collect_views(model, x, [lambda x, draws: x[:, :, :4]], seed=1)
    with pytest.raises(InputError, match=r"expected \(6,\)"):
        collect_views(model, x, [lambda x, draws: x], seed=1, index=torch.arange(5))
    with pytest.raises(InputError, match="no transforms"):
        collect_views(model, x, [], seed=1)


def test_bad_options_and_input() -> None:
    z, y = _sample(20, 3)
    for options in (
        {"k": 0},
        {"hidden": 0},
        {"holdout": 1.0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"bound": "hard"},
        {"loss": "nll"},
    ):
        with pytest.raises(InputError):
            CorrectnessAwareCalibrator(**options)
    with pytest.raises(InputError, match="k=4"):
        CorrectnessAwareCalibrator().fit(Outputs(z), y)
    fitted = CorrectnessAwareCalibrator(k=3, epochs=2).fit(Outputs(z, views=z[None]), y)
    with pytest.raises(InputError, match="0 views"):
        fitted.transform(Outputs(z))
    loss, half = CorrectnessAwareLoss(), torch.full((4,), 0.5)
    for confidence, bits in (
        (half * 4, _bits(2, 4)),
        (half, torch.ones(4)),
        (half[:3], _bits(2, 4)),
        (half[:0], _bits(0, 0)),
    ):
        with pytest.raises(InputError):
            loss(confidence, bits)
    for bad in ({"p": 3}, {"reduction": "median"}):
        with pytest.raises(InputError):
            CorrectnessAwareLoss(**bad)
    with pytest.raises(InputError, match="temperature"):
        narrow_wrong(z, y, 0.0)
    for t in (torch.ones(3), torch.ones(20, 1), torch.ones(0), math.nan, torch.zeros(20)):
        with pytest.raises(InputError, match=r"expected a number or \(20,\)"):
            loss.from_logits(z, y, t)


def test_the_balanced_loss_does_not_raise_the_measure() -> None:
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        z = 2 * torch.randn(80, 3, generator=g)
        y = (z / 1.3).softmax(1).multinomial(1, generator=g)[:, 0]
        fitted = CorrectnessAwareCalibrator(balance=True, k=2, epochs=20, seed=seed).fit(Outputs(z), y)
        before, after = (top_brier(t.softmax(1), y) for t in (z.double(), fitted.transform(Outputs(z))))
        assert after <= before + 1e-12


def test_slopes_pass_the_fitted_map() -> None:
    z, y = _sample(40, 4)
    fitted = CorrectnessAwareCalibrator(epochs=2).fit(Outputs(z), y)
    (slope,) = torch.autograd.grad(fitted(z.requires_grad_())[:, 0].sum(), z)
    assert slope.abs().sum() > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": torch.full((6, 2), torch.nan)},
        {"features": torch.zeros(6)},
        {"features": torch.zeros(5, 2)},
        {"views": torch.full((2, 6, 3), torch.inf)},
        {"views": torch.zeros(2, 6, 4)},
    ],
)
def test_outputs_refuse_other_shapes_and_values(wrong: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match=f"outputs: {next(iter(wrong))}"):
        Outputs(torch.zeros(6, 3), **wrong)
