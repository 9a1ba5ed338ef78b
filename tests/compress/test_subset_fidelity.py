"""Subset fidelity against least squares, orthogonal components, and what its scores miss."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.compress import SubsetFidelity
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded


def conv() -> tuple[nn.Module, torch.Tensor]:
    with seeded(0, "conv"):
        return nn.Sequential(nn.Conv2d(4, 3, 3, 2, 1)).double(), torch.randn(20, 4, 7, 6, dtype=torch.float64)


def components(layer: nn.Conv2d, x: torch.Tensor) -> np.ndarray:
    """(o, c, samples and positions): one convolution a channel."""
    parts = [F.conv2d(x[:, c : c + 1], layer.weight[:, c : c + 1], None, layer.stride, layer.padding) for c in range(4)]
    return torch.stack(parts).permute(2, 0, 1, 3, 4).flatten(2).detach().numpy()


def test_gram_form_is_least_squares() -> None:
    model, x = conv()
    a, fitted = components(model[0], x), SubsetFidelity().fit(model, x)
    for i in range(3):
        y = a[i].sum(0)
        for subset in ([0], [1, 3], [0, 1, 2], [0, 1, 2, 3]):
            delta, *_ = np.linalg.lstsq(a[i][subset].T, y, rcond=None)
            left = ((y - delta @ a[i][subset]) ** 2).sum() / (y**2).sum()
            assert fitted.score("0", subset, i) == pytest.approx(1 - left, abs=1e-8)
            assert fitted.compensation("0", subset, ridge=0.0)[i].numpy() == pytest.approx(delta, abs=1e-8)


def test_whole_is_one_subsets_rise_and_singletons_are_squared_cosines() -> None:
    model, x = conv()
    a, fitted = components(model[0], x), SubsetFidelity().fit(model, x)
    scores = [fitted.score("0", list(range(k + 1))) for k in range(4)]
    assert scores[-1] == pytest.approx(1, abs=1e-10)
    assert all(p <= q + 1e-12 for p, q in pairwise(scores))
    y = a.sum(1, keepdims=True)
    cosine = (a * y).sum(2) / np.sqrt((a**2).sum(2) * (y**2).sum(2))
    assert fitted.singleton("0").numpy() == pytest.approx(cosine**2, abs=1e-10)


def test_orthogonal_components_make_every_ranking_optimal() -> None:
    with seeded(0, "orthogonal"):
        x = torch.linalg.qr(torch.randn(30, 10, dtype=torch.float64))[0]
        model = nn.Sequential(nn.Linear(10, 2, bias=False)).double()
    fitted = SubsetFidelity().fit(model, x)
    alone = fitted.singleton("0")
    for k in range(1, 11):
        best = fitted.best_subset("0", k, "exhaustive", output=1)
        for method in ("naive", "raw", "greedy"):
            assert torch.equal(fitted.best_subset("0", k, method, output=1), best)
        assert fitted.score("0", best, 1) == pytest.approx(float(alone[1, best].sum()), abs=1e-10)
        assert torch.allclose(fitted.compensation("0", best, ridge=0.0), torch.ones(1, dtype=torch.float64))


def test_opposing_components_look_good_alone_and_cancel() -> None:
    """5u and -5u have the output's direction and would be its worst part: only the raw form says so."""
    with seeded(0, "opposing"):
        u, other = torch.randn(2, 400, dtype=torch.float64)
    x = torch.stack([5 * u, -5 * u + 0.1 * other, u + 0.5 * other], 1)
    model = nn.Sequential(nn.Linear(3, 1, bias=False)).double()
    nn.init.ones_(model[0].weight)
    fitted = SubsetFidelity().fit(model, x)
    alone, raw = fitted.singleton("0")[0], fitted.channel_scores("0", "raw")
    assert float(alone[:2].min()) > 0.7
    assert float(raw[:2].max()) < 0
    assert fitted.best_subset("0", 1, "raw").tolist() == [2]
    assert fitted.score("0", [0, 1, 2]) == pytest.approx(1)
    assert fitted.score("0", fitted.best_subset("0", 2, "greedy")) == pytest.approx(
        fitted.score("0", fitted.best_subset("0", 2, "exhaustive")), abs=0.05
    )


def test_blocks_groups_and_centre() -> None:
    with seeded(1, "blocks"):
        linear, grouped = nn.Linear(6, 2).double(), nn.Conv2d(4, 4, 3, groups=2).double()
        x, maps = torch.randn(50, 6, dtype=torch.float64) + 2, torch.randn(10, 4, 5, 5, dtype=torch.float64)
    fitted = SubsetFidelity(blocks={"0": 3}).fit(nn.Sequential(linear), x)
    assert fitted.singleton("0").shape == (2, 2)
    part = SubsetFidelity().fit(nn.Sequential(grouped), maps)
    assert part.singleton("0").shape == (4, 2)
    alone = SubsetFidelity().fit(nn.Sequential(nn.Conv2d(2, 2, 3).double()), maps[:, :2])
    assert part.singleton("0")[:2].shape == alone.singleton("0").shape
    centred = SubsetFidelity(center=True).fit(nn.Sequential(linear), x)
    moved = SubsetFidelity().fit(nn.Sequential(linear), x - x.mean(0))
    assert torch.allclose(centred.singleton("0"), moved.singleton("0"), atol=1e-8)
    delta = centred.compensation("0", [0, 2], ridge=0.0)
    shift = centred.shift("0", torch.tensor([0, 2]), delta)
    kept = (linear.weight[:, [0, 2]] * delta) @ x[:, [0, 2]].T
    assert torch.allclose(kept.mean(1) + shift, (linear(x) - linear.bias).mean(0), atol=1e-8)


def test_batches_and_limits_do_not_change_the_moments() -> None:
    model, x = conv()
    whole, parts = SubsetFidelity().fit(model, x), SubsetFidelity().fit(model, [x[:3], x[3:]])
    assert torch.allclose(whole.gram("0"), parts.gram("0"), atol=1e-12)
    few = SubsetFidelity(n_max=5).fit(model, x)
    assert few.n_ == 5
    assert torch.allclose(few.gram("0"), SubsetFidelity().fit(model, x[:5]).gram("0"), atol=1e-12)
    assert not model[0]._forward_pre_hooks


def test_errors() -> None:
    model, x = MLP(hidden=(5,)), torch.rand(4, 1, 8, 8)
    with pytest.raises(InputError, match="no samples"):
        SubsetFidelity().fit(model, [])
    with pytest.raises(InputError, match="sums of components"):
        SubsetFidelity(layer_names=("body.2",)).fit(model, x)
    with pytest.raises(InputError, match="did you mean"):
        SubsetFidelity(layer_names=("heap",)).fit(model, x)
    with pytest.raises(InputError, match="divisor"):
        SubsetFidelity(blocks={"head": 2}).fit(model, x)
    fitted = SubsetFidelity().fit(model, x)
    with pytest.raises(InputError, match="k=0"):
        fitted.best_subset("head", 0)
    with pytest.raises(InputError, match="different components"):
        fitted.score("head", [1, 1])
    nn.init.zeros_(model.head.weight)
    with pytest.warns(RuntimeWarning, match="always 0"):
        assert float(SubsetFidelity().fit(model, x).singleton("head").min()) == 1.0
