"""Common and rare features: the data as the definition has them, the network, and what its dynamics measure."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from assay.data import Data
from assay.dynamics import FeatureNoiseModel, QuadraticCNN, feature_energy, memorisation, train_feature_model
from assay.dynamics.feature_noise import COMMON, RARE
from assay.runtime.errors import InputError
from assay.training import Supervised

PLAN = {"batch_size": 64, "optimizer": "sgd", "momentum": 0.0, "lr": 0.2, "schedule": "constant"}


def _frame(d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, 4, generator=torch.Generator().manual_seed(0)))[0].T


@pytest.mark.parametrize("features", [None, _frame(20)])
def test_samples_are_a_feature_and_noise_beside_it(features: torch.Tensor | None) -> None:
    problem = FeatureNoiseModel(d=20, rho=0.3, sigma_p=0.5, patches=3, features=features)
    data = problem.sample(4000, seed=1)
    along = data.x @ problem.basis.T  # (n, p, 4)
    rare = data.fields["is_rare"]
    expected = torch.nn.functional.one_hot(data.y + 2 * rare, 4).float()
    assert torch.allclose(along.sum(1), expected, atol=1e-5)
    patch = along.abs().amax(2) > 0.5
    assert torch.equal(patch.sum(1), torch.ones(4000, dtype=torch.int64))
    assert torch.allclose(data.x[patch].norm(dim=1), torch.ones(4000), atol=1e-5)
    assert torch.allclose(problem.noise(data.x)[patch], torch.zeros(4000, 20), atol=1e-5)
    assert abs(float(rare.float().mean()) - 0.3) < 0.03
    assert abs(float(data.y.float().mean()) - 0.5) < 0.03
    assert (patch.float().mean(0) - 1 / 3).abs().max() < 0.03
    norms = data.x[~patch].square().sum(1)  # 16 dimensions are left
    assert abs(float(norms.mean()) / (16 * 0.25) - 1) < 0.02
    assert problem.sample(50, rho=1.0, seed=1).fields["is_rare"].all()


def test_feature_noise_is_a_weak_common_feature_of_either_class() -> None:
    problem = FeatureNoiseModel(d=10, rho=0.0, sigma_p=0.1, patches=4, feature_noise=(2, 0.3))
    along = problem.sample(500, seed=2).x @ problem.basis.T
    sizes = along[..., :2].flatten(1).sort(1).values
    assert torch.allclose(sizes[:, -3:], torch.tensor([0.3, 0.3, 1.0]).expand(500, 3), atol=1e-5)
    assert sizes[:, :-3].abs().max() < 1e-5
    weak = (along - 0.3).abs() < 1e-5
    assert 0.4 < float(weak[..., 0].sum() / weak.sum()) < 0.6
    assert not weak[..., 2:].any()


def test_network_by_hand() -> None:
    net = QuadraticCNN(3, m=2, seed=0)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [[0.0, 0.0, 3.0], [1.0, 1.0, 0.0]]]))
    x = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]])
    assert torch.equal(net(x), torch.tensor([[1.0 + 16.0, 9.0 + 9.0]]))
    directions = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.equal(feature_energy(net, directions), torch.tensor([1.0, 1.0]))


def test_memorisation_by_loops() -> None:
    problem = FeatureNoiseModel(d=12, rho=0.5, sigma_p=0.4, patches=3)
    data, net = problem.sample(20, seed=3), QuadraticCNN(12, m=3, sigma_0=1.0, seed=1)
    found = memorisation(net, problem, data)
    w = net.weight.detach()
    for k in (0, 1):
        values = []
        for i in range(20):
            if data.fields["is_rare"][i] and data.y[i] == k:
                noise = [patch.clone() for patch in data.x[i]]
                for patch in noise:
                    patch[:4] = 0.0
                values.append(sum(float(w[k, r] @ patch) ** 2 for r in range(3) for patch in noise))
        assert float(found[k]) == pytest.approx(np.mean(values), rel=1e-5)
    assert memorisation(net, problem, problem.sample(9, rho=0.0, seed=3)).isnan().all()


def test_one_step_is_the_gradient_by_hand() -> None:
    problem = FeatureNoiseModel(d=8, rho=0.2, sigma_p=0.3)
    data, net = problem.sample(30, seed=5), QuadraticCNN(8, m=4, sigma_0=0.1, seed=2)
    found = train_feature_model(Supervised(steps=1, **PLAN), net, problem, data, data, seed=0)
    w = net.weight.detach()
    p = net(data.x).softmax(1).detach()
    gap = (p - torch.nn.functional.one_hot(data.y, 2)) / 30  # of the loss in F
    step = 2 * torch.einsum("nk,npd,npe,kre->krd", gap, data.x, data.x, w)
    assert torch.allclose(found.model.weight, w - 0.2 * step, atol=1e-6)
    assert not torch.equal(found.model.weight, w)


def test_dynamics_learn_common_features_and_start_from_the_model() -> None:
    problem = FeatureNoiseModel(d=40, rho=0.2, sigma_p=0.05)
    train, test = problem.sample(60, seed=1), problem.sample(200, rho=0.5, seed=2)
    net = QuadraticCNN(40, m=4, seed=1)
    found = train_feature_model(Supervised(steps=90, **PLAN), net, problem, train, test, every=40, seed=0)
    assert found.steps.tolist() == [0, 40, 80, 90]
    assert np.allclose(found.common[0], feature_energy(net, problem.basis[COMMON]))
    assert np.allclose(found.rare[-1], feature_energy(found.model, problem.basis[RARE]))
    assert (found.common[-1] > 20 * found.common[0]).all()
    assert found.train_accuracy[-1] == pytest.approx(float((found.model(train.x).argmax(1) == train.y).float().mean()))
    rare = test.fields["is_rare"]
    right = (found.model(test.x).argmax(1) == test.y).float()
    assert found.rare_accuracy[-1] == pytest.approx(float(right[rare].mean()))
    assert found.common_accuracy[-1] == pytest.approx(float(right[~rare].mean()))


def test_bad_options() -> None:
    good = {"d": 10, "rho": 0.1, "sigma_p": 0.1}
    skewed = torch.eye(4, 10) + 0.1
    for bad in (
        {"feature_noise": (0.5, 0.1)}, {"feature_noise": (1, math.nan)},
        {"d": 4}, {"rho": 1.5}, {"sigma_p": -1.0}, {"patches": 1}, {"feature_noise": (2, 0.1)},
        {"features": skewed}, {"features": torch.eye(3, 10)}, {"sigma_p": math.inf},
    ):  # fmt: skip
        with pytest.raises(InputError, match="FeatureNoiseModel"):
            FeatureNoiseModel(**{**good, **bad})
    problem = FeatureNoiseModel(**good)
    for options in ({"n": 0}, {"n": 5, "rho": -0.1}):
        with pytest.raises(InputError):
            problem.sample(**options, seed=0)
    with pytest.raises(InputError, match="sigma_0"):
        QuadraticCNN(10, sigma_0=0.0)
    data, net = problem.sample(5, seed=0), QuadraticCNN(10)
    bare = Data(data.x, data.y, data.classes, data.bounds)
    with pytest.raises(InputError, match="is_rare"):
        train_feature_model(Supervised(), net, problem, bare, data, seed=0)
    with pytest.raises(InputError, match="d=10"):
        train_feature_model(Supervised(), QuadraticCNN(9), problem, data, data, seed=0)
    with pytest.raises(InputError, match="d=11"):
        train_feature_model(Supervised(), net, FeatureNoiseModel(**{**good, "d": 11}), data, data, seed=0)
    with pytest.raises(InputError, match="every"):
        train_feature_model(Supervised(), net, problem, data, data, every=0, seed=0)
