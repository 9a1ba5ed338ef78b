"""The kernel estimate of the Bayes error, its gradient, and what raises it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy.stats import norm

from assay.data import Data, load_data
from assay.labels import bayes_error_kde, bayes_error_knn, bayes_error_soft
from assay.losses import KernelBayesError
from assay.nets import MLP
from assay.papers.unlearnable_bayes import DETACHED, _dense, _gradients, _identities
from assay.privacy import BayesErrorUnlearnable, ErrorMinNoise, RandomNoise, mixture_protocol
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import torch_rng
from assay.subject import fresh
from assay.training import Supervised


def normals(n: int, distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(n) % 2
    x = torch.randn(n, 2, generator=torch_rng(0, "normals"))
    return x + torch.stack((distance * y, torch.zeros(n)), 1), y


def plane(n: int = 120) -> Data:
    x, y = normals(n, 2.0)
    return Data(x, y, ("a", "b"), bounds=(-20.0, 20.0))


def test_value_and_gradient_are_those_of_the_dense_formula() -> None:
    found = _gradients(None, 4)
    assert found["value"] < 1e-13
    assert found["slope"] < 1e-14
    assert found["difference"] < 1e-7
    detached = _gradients(DETACHED, 4)
    assert detached["value"] < 1e-13
    assert detached["slope"] > 1e-4
    assert detached["difference"] > 1e-4


def test_four_points_by_hand() -> None:
    u, y = torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1])
    k = torch.exp(torch.tensor(-2.0)).item()
    assert KernelBayesError(sigma=0.5)(u, y) == pytest.approx(1 - 1 / (1 + 2 * k), abs=1e-7)
    assert KernelBayesError(sigma=0.5)(u, torch.tensor([0, 1, 0, 1])) == pytest.approx(
        1 - (1 + k) / (1 + 2 * k), abs=1e-7
    )


def test_the_label_objective_is_no_smaller() -> None:
    x, y = normals(200, 1.0)
    assert KernelBayesError(objective="label")(x, y) > KernelBayesError()(x, y)


@pytest.mark.parametrize("distance", [2.0, 3.0])
def test_two_normal_classes(distance: float) -> None:
    x, y = normals(800, distance)
    truth = float(norm.cdf(-distance / 2))
    assert bayes_error_kde(x, y) == pytest.approx(truth, abs=0.025)
    low, high = bayes_error_knn(x, y)
    assert low - 0.02 < bayes_error_kde(x, y) < high
    assert bayes_error_knn(x, y, k=15)[1] < high


def test_the_bounds_of_neighbours_do_not_depend_on_the_names_of_classes() -> None:
    x, y = normals(60, 1.0)
    assert bayes_error_knn(x, 7 * y, k=3) == bayes_error_knn(x, y, k=3)
    with pytest.raises(InputError, match="1 classes"):
        bayes_error_knn(x, torch.full((60,), 3))


def test_soft_labels() -> None:
    assert bayes_error_soft(torch.tensor([[0.7, 0.3], [0.1, 0.9]])) == pytest.approx(0.2)


def test_mixing_and_data_processing() -> None:
    found = _identities(300, 1)
    assert found["mixing"] >= -1e-14
    assert found["processing"] >= -1e-14


def test_monotone_steps_raise_the_estimate() -> None:
    data = plane()
    for norm_ in ("linf", "l2"):
        method = BayesErrorUnlearnable(
            eps=0.5, norm=norm_, steps=6, monotone=True, estimator=KernelBayesError(sigma=0.4)
        )
        found = method.fit(data, seed=0)
        path = [*found.history_, found.bayes_error_after_]
        assert all(b >= a for a, b in pairwise(path))
        assert found.bayes_error_after_ > 1.5 * found.bayes_error_before_
        assert (
            path[0]
            == found.bayes_error_before_
            == pytest.approx(float(_dense(data.x.double(), data.y, method.estimator)))
        )


def test_the_gradient_reaches_the_inputs_through_the_encoder() -> None:
    data = load_data("digits:train").limit(80)
    method = BayesErrorUnlearnable(encoder=MLP(hidden=(12,)), recipe=Supervised(epochs=3))
    network = method.trained(data, seed=0)
    assert network is not None
    value, gradient = method.gradient(network, data)
    x = data.x.clone().requires_grad_()
    features = network.body(x)  # type: ignore[operator]
    dense = _dense(features.double() / float(features.detach().abs().max()), data.y, method.estimator)
    (expected,) = torch.autograd.grad(dense, x)
    assert value == pytest.approx(float(dense.detach()), abs=1e-6)
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_adamw_steps_are_of_its_size() -> None:
    method = BayesErrorUnlearnable(eps=0.5, steps=1, optimizer="adamw", estimator=KernelBayesError(sigma=0.4))
    moved = (method.fit(plane(), seed=0).data.x - plane().x).abs()
    assert moved.max() == pytest.approx(1e-3, rel=0.01)


def test_error_minimising_noise_lowers_the_loss_of_other_networks() -> None:
    data = load_data("digits:train").limit(200)
    found = ErrorMinNoise(eps=0.3, rounds=10, pgd_steps=10).fit(data, seed=0).data
    noisy = RandomNoise(eps=0.3).fit(data, seed=0).data
    recipe = Supervised(steps=12)

    def loss(seen: Data) -> float:
        model = recipe.fit(fresh(MLP(), seed=9), seen, seed=9)
        return float(torch.nn.functional.cross_entropy(predict(model, seen.x), seen.y))

    assert loss(found) < loss(noisy)


def test_mixture_protocol_takes_each_sample_once() -> None:
    data, test = load_data("digits:train").limit(60), load_data("digits:test").limit(60)
    dark = data.with_x(torch.zeros_like(data.x))
    seen: list[Data] = []

    def train(part: Data) -> MLP:
        seen.append(part)
        return MLP()

    rows = mixture_protocol(train, data, dark, (0.25, 1.0), test, seed=3)
    assert [r.share for r in rows] == [0.25, 1.0]
    assert rows[1].clean_only is None
    mixed, alone = seen[0], seen[1]
    hidden = ~torch.isin(data.index, alone.index)
    assert int(hidden.sum()) == 15
    assert mixed.x[hidden].abs().sum() == 0
    assert torch.equal(mixed.x[~hidden], alone.x)


def test_unusable_input() -> None:
    x, y = normals(40, 1.0)
    with pytest.raises(InputError, match="no neighbour within sigma"):
        KernelBayesError(sigma=1e-4)(x, y)
    with pytest.raises(InputError, match="has one point"):
        KernelBayesError()(x, torch.cat((torch.zeros(39), torch.ones(1))).long())
    for options in ({"sigma": 0.0}, {"sigma": "wide"}, {"kernel": "cubic"}, {"objective": "none"}):
        with pytest.raises(InputError, match="KernelBayesError"):
            KernelBayesError(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected 1 <= k"):
        bayes_error_knn(x, y, k=40)
    with pytest.raises(InputError, match="rows of sum 1"):
        bayes_error_soft(torch.ones(3, 2))
    with pytest.raises(InputError, match="same samples"):
        mixture_protocol(lambda d: MLP(), plane(), plane()[:5], (0.5,), plane())
    with pytest.raises(InputError, match="steps >= 1"):
        BayesErrorUnlearnable(steps=0)


def test_neighbours_do_not_depend_on_a_shift() -> None:
    x = torch.randn(300, 2, generator=torch_rng(0, "shift"), dtype=torch.float64)
    y = (x[:, 0] + 0.3 * x[:, 1].sign() > 0).long()
    assert bayes_error_knn(x + 1e8, y) == bayes_error_knn(x, y)


def test_the_median_of_many_points_needs_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(points: torch.Tensor) -> torch.Tensor:
        assert len(points) <= 4096
        return plain(points[:500])

    plain = torch.pdist
    monkeypatch.setattr(torch, "pdist", small)
    u = torch.randn(5000, 2, generator=torch_rng(0, "many"))
    y = (u[:, 0] > 0).long()
    first, again = (KernelBayesError(sigma="median").bandwidth(u, y) for _ in range(2))
    assert first == again
    assert first == pytest.approx(1.1774 * 2**0.5, rel=0.05)  # |u - v| / sqrt(2) is Rayleigh, median 1.1774
