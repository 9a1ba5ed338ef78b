from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import PCA

from assay.data import load_data
from assay.generate import class_pca
from assay.runtime.errors import InputError


def test_components_are_those_of_scikit_learn() -> None:
    data = load_data("digits:train")
    found = class_pca(data, 0.8)
    for k in (0, 7):
        x = data.x[data.y == k].flatten(1).numpy()
        reference = PCA(0.8, svd_solver="full").fit(x)
        assert len(found.scales[k]) == len(reference.singular_values_)
        torch.testing.assert_close(found.scales[k], torch.from_numpy(reference.singular_values_))
        overlap = found.components[k] @ torch.from_numpy(reference.components_).T
        torch.testing.assert_close(overlap.abs().diagonal(), torch.ones(len(overlap)), rtol=0, atol=1e-4)


def test_draws_lie_on_the_components_around_the_mean_with_the_stated_spread() -> None:
    data = load_data("digits:train")
    pca = class_pca(data.with_x(data.x * 0.2 + 0.4), 0.7)
    y, k = torch.full((4000,), 3), 3
    x = pca.draw(y, seed=0, sigma=0.01)
    moved = (x - pca.means[k].reshape(x.shape[1:])).flatten(1)
    along = moved @ pca.components[k].T
    torch.testing.assert_close(along @ pca.components[k], moved, rtol=0, atol=1e-5)
    torch.testing.assert_close(along.std(0), 0.01 * pca.scales[k], rtol=0.06, atol=0)


def test_a_sample_depends_on_its_place_and_the_seed() -> None:
    pca = class_pca(load_data("digits:train"))
    y = torch.arange(10)
    x = pca.draw(y, seed=1)
    assert torch.equal(pca.draw(y[:4], seed=1), x[:4])
    assert not torch.equal(pca.draw(y, seed=2), x)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert torch.equal(pca.draw(y, seed=1, sigma=0.0)[2], pca.means[2].reshape(1, 8, 8).clamp(0, 1))


def test_bad_input() -> None:
    data = load_data("digits:train")
    pca = class_pca(data[data.y < 5])
    for options in ({"y": torch.tensor([7])}, {"y": torch.tensor([1]), "sigma": -1.0}, {"y": torch.tensor([0.5])}):
        with pytest.raises(InputError):
            pca.draw(**options, seed=0)
    for retained in (0.0, 1.1):
        with pytest.raises(InputError, match="retained"):
            class_pca(data, retained)
