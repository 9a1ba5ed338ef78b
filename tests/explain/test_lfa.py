"""Local function approximation: closed forms, identities and independent references for each neighbourhood and loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

from assay.explain import Gradient, GradientInput, IntegratedGradients, lfa
from assay.explain.lfa import LocalFunctionApproximation as LFA
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded
from assay.training import Plan

EIGHT = (
    "lime",
    "c_lime",
    "kernel_shap",
    "occlusion",
    "vanilla_gradient",
    "gradient_input",
    "smoothgrad",
    "integrated_gradients",
)


def inputs(n: int = 4, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = Draws(seed, "x", torch.arange(n))
    return draws.normal(d).double(), draws.integers(3)


def linear(d: int = 6, seed: int = 0, classes: int = 3) -> nn.Linear:
    with seeded(seed, "linear"):
        return nn.Linear(d, classes).double()


def smooth(d: int = 6, seed: int = 0) -> nn.Module:
    with seeded(seed, "smooth"):
        return nn.Sequential(nn.Linear(d, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def named(name: str, **options: object) -> LFA:
    return getattr(lfa, name)(**options)


@pytest.mark.parametrize("name", EIGHT)
@given(seed=st.integers(0, 99), baseline=st.floats(-1, 1))
@settings(max_examples=6)
def test_linear_f_is_recovered(name: str, seed: int, baseline: float) -> None:
    model, (x, y) = linear(seed=seed), inputs(seed=seed)
    additive = named(name).neighbourhood.additive
    options: dict = {} if additive else {"baseline": baseline}
    if name == "lime":
        options["width"] = 3.0
    found = named(name, **options).fit(model, x, y, seed=1)
    weight = model.weight.detach()[y]
    expected = weight if additive else weight * (x - baseline)
    torch.testing.assert_close(found.weight_, expected, atol=1e-6, rtol=0)
    assert float(found.loss_.max()) < 1e-10
    if name != "occlusion":
        at = model(x if additive else torch.full_like(x, baseline)).gather(1, y[:, None])[:, 0].detach()
        torch.testing.assert_close(found.bias_, at, atol=1e-6, rtol=0)


def by_permutations(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Shapley's definition: the mean over all orders of what a feature adds when it joins those before it."""
    d, total = x.shape[1], torch.zeros_like(x)
    for order in permutations(range(d)):
        present = torch.zeros(d, dtype=x.dtype)
        for i in order:
            before = f(x * present)
            present[i] = 1
            total[:, i] += f(x * present) - before
    return total / math.factorial(d)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_kernel_shap_over_all_masks_gives_shapley_values(d: int) -> None:
    model, (x, y) = smooth(d), inputs(d=d)
    expected = by_permutations(lambda z: model(z).detach().gather(1, y[:, None])[:, 0], x)
    found = lfa.kernel_shap().fit(model, x, y, seed=0)
    torch.testing.assert_close(found.weight_, expected, atol=1e-10, rtol=0)
    rise = (model(x) - model(0 * x)).detach().gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(found.weight_.sum(1), rise, atol=1e-10, rtol=0)


def test_drawn_shapley_masks_follow_the_kernel_and_stay_anchored() -> None:
    d, space = 6, lfa.Shapley(enumerate=2)
    sizes = space.noise(Draws(0, "s", torch.arange(8)), 5000, d).sum(2).long()
    kernel = torch.tensor([1 / (s * (d - s)) for s in range(1, d)])
    share = sizes.flatten().bincount(minlength=d).double()[1:] / sizes.numel()
    torch.testing.assert_close(share, (kernel / kernel.sum()).double(), atol=0.01, rtol=0)
    model, (x, y) = smooth(), inputs()
    drawn = lfa.kernel_shap(enumerate=2, n_samples=5000).fit(model, x, y, seed=0)
    every = lfa.kernel_shap().fit(model, x, y, seed=0)
    torch.testing.assert_close(drawn.weight_, every.weight_, atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.weight_.sum(1), every.weight_.sum(1), atol=1e-10, rtol=0)


@pytest.mark.parametrize("distance", ["input", "mask"])
def test_lime_is_weighted_least_squares_under_its_kernel(distance: str) -> None:
    model, (x, y) = smooth(), inputs()
    method = lfa.lime(width=1.5, distance=distance, ridge=0.0, n_samples=300)  # type: ignore[arg-type]
    found = method.fit(model, x, y, seed=5)
    masks = Draws(5, "explain.LocalFunctionApproximation", torch.arange(4)).uniform(300, 6).double() < 0.5
    for i in range(4):
        z = masks[i].double()
        moved = x[i] * z
        if distance == "input":
            kernel = torch.exp(-(moved - x[i]).square().sum(1) / 1.5**2)
        else:
            cosine = z.sum(1) / (z.norm(dim=1) * 6**0.5).clamp_min(1e-12)
            kernel = torch.exp(-((1 - cosine) ** 2) / 1.5**2).sqrt()
        f = model(moved).detach()[:, y[i]]
        reference = LinearRegression().fit(z.numpy(), f.numpy(), sample_weight=kernel.numpy())
        np.testing.assert_allclose(found.weight_[i], reference.coef_, atol=1e-9)
        assert float(found.bias_[i]) == pytest.approx(reference.intercept_, abs=1e-9)
        error = np.average((reference.predict(z.numpy()) - f.numpy()) ** 2, weights=kernel)
        assert float(found.loss_[i]) == pytest.approx(error, abs=1e-9)


def test_gradient_methods_are_the_explainers_of_that_name() -> None:
    model, (x, y) = smooth(), inputs()
    pairs = (
        (lfa.vanilla_gradient(), Gradient()),
        (lfa.gradient_input(baseline=0.0), GradientInput()),
        (lfa.integrated_gradients(baseline=0.3, n_samples=20), IntegratedGradients(steps=20, baseline=0.3)),
        (
            lfa.integrated_gradients(rule="riemann-left", n_samples=7),
            IntegratedGradients(steps=7, rule="riemann-left"),
        ),
    )
    for ours, other in pairs:
        expected = other.attribute(model, x, y, seed=0)
        torch.testing.assert_close(ours.attribute(model, x, y, seed=0), expected, atol=1e-12, rtol=0)


def test_a_drawn_path_approaches_the_quadrature() -> None:
    model, (x, y) = smooth(), inputs()
    drawn = lfa.integrated_gradients(rule="random", n_samples=20_000).attribute(model, x, y, seed=0)
    torch.testing.assert_close(drawn, lfa.integrated_gradients().attribute(model, x, y, seed=0), atol=0.01, rtol=0)


def test_c_lime_and_smoothgrad_agree_as_steins_lemma_says() -> None:
    model, (x, y) = smooth(), inputs()

    def apart(n: int) -> float:
        a, b = (
            m(n_samples=n, sigma=0.5, batch_size=4096).attribute(model, x, y, seed=2)
            for m in (lfa.c_lime, lfa.smoothgrad)
        )
        return float((a - b).norm() / b.norm())

    assert apart(100_000) < 0.01
    assert 5 < apart(1000) / apart(100_000) < 20


class Product(nn.Module):
    """f(x) = x0 x1 + 1."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :1] * x[:, 1:2]) + 1


def test_occlusion_removes_and_the_variant_keeps() -> None:
    x, y = torch.tensor([[2.0, 3.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    removed = lfa.occlusion().fit(Product(), x, y, seed=0)
    assert removed.weight_.tolist() == [[6.0, 6.0]]  # either factor's absence takes the whole product
    kept = lfa.occlusion(keep=True).fit(Product(), x, y, seed=0)
    assert kept.weight_.tolist() == [[1.0, 1.0]]
    assert float(removed.loss_ + kept.loss_ + removed.bias_.abs() + kept.bias_.abs()) == 0
    path = lfa.integrated_gradients().attribute(Product(), x, y, seed=0)
    torch.testing.assert_close(path, torch.full_like(x, 3.0))


QUICK = Plan(epochs=400, batch_size=1000, lr=0.1)


@pytest.mark.parametrize(
    ("loss", "space"),
    [("squared", lfa.Gaussian(sigma=0.5)), ("gradient", lfa.Gaussian(sigma=0.5)), ("squared", lfa.Bernoulli())],
    ids=["gauss-squared", "gauss-gradient", "mask-squared"],
)
def test_logistic_f_is_recovered_by_a_logistic_g(loss: str, space: lfa.Neighbourhood) -> None:
    model, (x, _) = linear(classes=2), inputs()
    y = torch.tensor([0, 1, 1, 0])
    options: dict = {"neighbourhood": space, "loss": loss, "output": "probability", "n_samples": 50, "batch_size": 200}
    weight = (model.weight[y] - model.weight[1 - y]).detach()
    found = LFA(**options, g="logistic", solver="sgd", plan=QUICK).fit(model, x, y, seed=0)
    torch.testing.assert_close(found.weight_, weight if space.additive else weight * x, atol=5e-3, rtol=0)
    straight = LFA(**options).fit(model, x, y, seed=0)  # no linear g is a sigmoid
    assert bool((straight.loss_ > 10 * found.loss_).all())


@pytest.mark.parametrize(
    "method", [lfa.c_lime(sigma=0.5), lfa.smoothgrad(sigma=0.5), lfa.occlusion()], ids=["squared", "gradient", "change"]
)
def test_descent_finds_the_closed_form(method: LFA) -> None:
    model, (x, y) = smooth(), inputs()
    closed = replace(method, n_samples=50, batch_size=200)
    a, b = (m.fit(model, x, y, seed=0) for m in (closed, replace(closed, solver="sgd", plan=QUICK)))
    torch.testing.assert_close(a.weight_, b.weight_, atol=1e-3, rtol=0)
    torch.testing.assert_close(a.bias_, b.bias_, atol=1e-3, rtol=0)


class Grouped(nn.Module):
    """z (n, d) -> f(x times z spread over the groups): f as a function of the features alone, for one input."""

    def __init__(self, f: nn.Module, x: Tensor, groups: Tensor) -> None:
        super().__init__()
        self.f, self.x, self.groups = f, x, groups

    def forward(self, z: Tensor) -> Tensor:
        return self.f(self.x * z[:, self.groups])


@pytest.mark.parametrize("name", ["kernel_shap", "occlusion", "gradient_input", "integrated_gradients"])
def test_groups_are_features_of_their_own(name: str) -> None:
    model, (x, y) = smooth(), inputs()
    mask = torch.tensor([[0, 0, 1, 2, 2, 2], [2, 1, 0, 0, 1, 2], [0, 1, 2, 2, 1, 0], [1, 1, 1, 1, 0, 2]])
    found = named(name).attribute(model, x, y, seed=0, feature_mask=mask)
    for i in range(4):
        alone = Grouped(model, x[i], mask[i])
        ones = torch.ones(1, 3, dtype=torch.float64)
        expected = named(name).attribute(alone, ones, y[i : i + 1], seed=0)[0, mask[i]]
        torch.testing.assert_close(found[i], expected, atol=1e-10, rtol=0)
    own = named(name).attribute(model, x, y, seed=0, feature_mask=torch.arange(6).expand(4, 6))
    torch.testing.assert_close(own, named(name).attribute(model, x, y, seed=0), atol=1e-12, rtol=0)


def test_faithfulness_is_the_loss_on_fresh_points() -> None:
    model, (x, y) = linear(), inputs()
    space, weight = lfa.Gaussian(sigma=0.5), model.weight.detach()[y]
    at_x = model(x).detach().gather(1, y[:, None])[:, 0]
    right = lfa.faithfulness(model, x, y, weight, at_x, space, seed=0)
    assert float(right.max()) < 1e-12
    shifted = lfa.faithfulness(model, x, y, weight, at_x + 2, space, seed=0)
    torch.testing.assert_close(shifted, torch.full_like(shifted, 4.0), atol=1e-6, rtol=0)
    none = lfa.faithfulness(model, x, y, 0 * weight, None, space, seed=0, n_samples=20_000)
    torch.testing.assert_close(none, 0.25 * weight.square().sum(1), atol=0, rtol=0.05)  # the variance of w . xi
    slopes = lfa.faithfulness(model, x, y, 0 * weight, None, space, seed=0, loss="gradient")
    torch.testing.assert_close(slopes, weight.square().sum(1), atol=1e-9, rtol=0)


def test_faithfulness_does_not_depend_on_batches_or_on_groups_of_one() -> None:
    model, (x, y) = smooth(), inputs()
    weight = lfa.occlusion().attribute(model, x, y, seed=0)
    whole = lfa.faithfulness(model, x, y, weight, None, lfa.Bernoulli(), seed=0, n_samples=50)
    for size in (1, 70, 1000):
        some = lfa.faithfulness(model, x, y, weight, None, lfa.Bernoulli(), seed=0, n_samples=50, batch_size=size)
        torch.testing.assert_close(some, whole, atol=1e-12, rtol=0)
    own = lfa.faithfulness(
        model,
        x,
        y,
        weight,
        None,
        lfa.Bernoulli(),
        seed=0,
        n_samples=50,
        feature_mask=torch.arange(6).expand(4, 6),
    )
    torch.testing.assert_close(own, whole, atol=1e-12, rtol=0)


def test_units_go_there_and_back() -> None:
    x, _ = inputs()
    x[0, 0] = 0.5
    weight = torch.ones_like(x)
    space = lfa.Bernoulli(baseline=0.5)
    there = lfa.in_units_of(weight, x, lfa.Gaussian(), space)
    torch.testing.assert_close(there, x - 0.5)
    back = lfa.in_units_of(there, x, space, lfa.Gaussian())
    expected = weight.clone()
    expected[0, 0] = 0  # at the baseline a feature's removal changes nothing and tells no slope
    torch.testing.assert_close(back, expected)
    assert lfa.in_units_of(weight, x, lfa.Path(baseline=0.5), space) is weight


def test_explanations_of_a_linear_f_are_equally_good_whatever_their_baseline() -> None:
    with seeded(0, "linear"):
        model = nn.Linear(6, 3).double()
    x, y = inputs()
    candidates = {str(b): lfa.integrated_gradients(baseline=b) for b in (0.0, 0.5)}
    for baseline in (0.0, 0.5, -1.0):
        found = lfa.choose_explanation(model, x, y, lfa.Bernoulli(baseline=baseline), candidates, seed=0, n_samples=50)
        assert max(found.values()) < 1e-20


@pytest.mark.parametrize("loss", ["squared", "gradient"])
def test_no_neighbourhoods_choice_is_best_elsewhere(loss: str) -> None:
    """No free lunch: each neighbourhood ranks the g that was fitted in it first, and no other."""
    with seeded(3, "wavy"):
        model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)).double()
        model[0].weight.data *= 3
    x, y = inputs(12)
    spaces = {"near": lfa.Gaussian(sigma=0.1), "far": lfa.Gaussian(sigma=1.0), "masks": lfa.Bernoulli()}
    candidates = {n: LFA(neighbourhood=s, loss=loss, n_samples=2000, batch_size=4096) for n, s in spaces.items()}  # type: ignore[arg-type]
    for name, space in spaces.items():
        ranking = lfa.choose_explanation(model, x, y, space, candidates, seed=0, loss=loss, n_samples=2000)  # type: ignore[arg-type]
        assert next(iter(ranking)) == name
        assert list(ranking.values()) == sorted(ranking.values())


def test_perturbation_tests_by_hand_on_a_linear_f() -> None:
    model, (x, y) = linear(), inputs()
    weight = model.weight.detach()[y]
    order = (weight * x).abs().argsort(1)
    for which, chosen in (("bottom", order[:, :2]), ("top", order[:, -2:])):
        removed = lfa.perturbation_test(model, x, y, weight * x, k=2, seed=0, which=which)  # type: ignore[arg-type]
        torch.testing.assert_close(removed, (weight * x).gather(1, chosen).sum(1).abs(), atol=1e-12, rtol=0)
        moved = lfa.perturbation_test(
            model,
            x,
            y,
            weight * x,
            k=2,
            seed=0,
            which=which,  # type: ignore[arg-type]
            noise="continuous",
            sigma=0.3,
            n_samples=20_000,
        )
        expected = 0.3 * weight.gather(1, chosen).norm(dim=1) * (2 / math.pi) ** 0.5
        torch.testing.assert_close(moved, expected, atol=0, rtol=0.03)


def test_a_narrow_kernel_is_warned_of() -> None:
    model, (x, y) = linear(d=20), inputs(d=20)
    with pytest.warns(RuntimeWarning, match="effective"):
        lfa.lime(width=0.5).attribute(model, x, y, seed=0)


def test_too_few_points() -> None:
    model, (x, y) = linear(), inputs()
    with pytest.raises(InputError, match="7 unknowns"):
        lfa.c_lime(n_samples=6, ridge=0.0).attribute(model, x, y, seed=0)
    assert lfa.c_lime(n_samples=6).attribute(model, x, y, seed=0).isfinite().all()
    with pytest.raises(InputError, match="span"):
        LFA(neighbourhood=lfa.Path(), loss="squared", ridge=0.0).attribute(model, x, y, seed=0)
    with pytest.raises(InputError, match="5 unknowns"):
        lfa.kernel_shap(enumerate=2, n_samples=4).attribute(model, x, y, seed=0)


def test_bad_options_and_arguments() -> None:
    model, (x, y) = linear(), inputs()
    weight = torch.zeros_like(x)
    mask = torch.zeros(4, 6, dtype=torch.int64)
    for make in (
        lambda: lfa.Gaussian(sigma=-0.1),
        lambda: lfa.c_lime(sigma=0.0),
        lambda: lfa.Path(low=2.0),
        lambda: lfa.Path(rule="simpson"),  # type: ignore[arg-type]
        lambda: lfa.Bernoulli(p=1.0),
        lambda: lfa.lime(width=0.0),
        lambda: lfa.lime(distance="hamming"),  # type: ignore[arg-type]
        lambda: lfa.occlusion(baseline=math.nan),
        lambda: LFA(loss="hinge"),  # type: ignore[arg-type]
        lambda: LFA(n_samples=0),
        lambda: LFA(ridge=-1.0),
        lambda: LFA(g="logistic"),
        lambda: LFA(g="logistic", solver="sgd"),
        lambda: lfa.kernel_shap(solver="sgd"),
        lambda: lfa.occlusion().attribute(model, x, y, seed=0, feature_mask=mask.double()),
        lambda: lfa.occlusion().attribute(model, x, y, seed=0, feature_mask=mask - 1),
        lambda: lfa.occlusion().attribute(model, x, y, seed=0, feature_mask=mask + 1),
        lambda: lfa.faithfulness(model, x, y, weight[:, :2], None, lfa.Path(), seed=0),
        lambda: lfa.faithfulness(model, x, y, weight, None, lfa.Path(), seed=0, n_samples=0),
        lambda: lfa.faithfulness(model, x, y, weight, None, lfa.Path(), seed=0, loss="hinge"),  # type: ignore[arg-type]
        lambda: lfa.choose_explanation(model, x, y, lfa.Path(), {}, seed=0),
        lambda: lfa.perturbation_test(model, x, y, weight, k=7, seed=0),
        lambda: lfa.perturbation_test(model, x, y, weight, k=1, seed=0, sigma=-1.0),
        lambda: lfa.occlusion().attribute(model, x, y, seed=0, feature_mask=[0, 1]),  # type: ignore[arg-type]
        lambda: lfa.perturbation_test(model, x, y, weight, k=1, seed=0, noise="salt"),  # type: ignore[arg-type]
        lambda: lfa.perturbation_test(model, x, y, weight, k=1, seed=0, which="middle"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError):
            make()
