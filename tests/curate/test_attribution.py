"""Attribution: exact recovery, closed forms, and invariances of TRAK."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from assay.curate import datamodel_score, fitted_multiplier, linear_datamodel, trak_scores
from assay.curate.attribution import datamodel_weights, projected
from assay.data import Data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, name), dtype=torch.float64)


def points(n: int = 30, d: int = 3) -> Data:
    x = draw("x", n, d).float()
    y = (x[:, 0] + 0.7 * draw("noise", n).float() > 0).long() + (x[:, 1] > 1).long()
    return Data(x, y, ("a", "b", "c"), bounds=(-9.0, 9.0))


def net(seed: int = 0) -> nn.Module:
    with seeded(seed, "net"):
        return nn.Linear(3, 3)


def test_all_subsets_of_a_linear_toy_give_beta_back() -> None:
    masks = torch.tensor(list(product([False, True], repeat=8)))
    beta, bias = draw("beta", 8, 5, 3), draw("bias", 5, 3)
    outputs = torch.einsum("tn,nqc->tqc", masks.double(), beta) + bias
    found, at = linear_datamodel(masks, outputs)
    assert (found - beta).abs().max() < 1e-10
    assert (at - bias).abs().max() < 1e-10
    assert datamodel_score(beta, masks, outputs).min() > 1 - 1e-12
    assert datamodel_score(-beta, masks, outputs).max() < -1 + 1e-12


def test_the_score_of_ties_is_spearmans_and_of_constants_nan() -> None:
    masks, beta = draw("ties", 40, 6) > 0, draw("beta", 6, 3)
    beta[:, 1], beta[:, 2] = 0.0, beta[:, 2].round()
    outputs = draw("outputs", 40, 3).round()
    found = datamodel_score(beta, masks, outputs)
    assert found.isnan().tolist() == [False, True, False]
    for q in (0, 2):
        assert float(found[q]) == pytest.approx(spearmanr(masks.double() @ beta[:, q], outputs[:, q]).statistic)
    assert datamodel_score(beta, masks, torch.ones(40, 3)).isnan().all()


def test_ridge_solves_its_normal_equations_and_weights_are_its_map() -> None:
    masks = torch.rand(40, 6, generator=torch_rng(0, "masks")) < 0.5
    outputs = draw("outputs", 40, 2)
    beta, bias = linear_datamodel(masks, outputs, 3.0)
    rest = outputs - bias - masks.double() @ beta
    assert rest.sum(0).abs().max() < 1e-10
    assert (masks.double().T @ rest - 3.0 * beta).abs().max() < 1e-10
    assert torch.allclose(datamodel_weights(masks, 3.0) @ outputs, beta)


def test_trak_of_logistic_regression_is_the_step_written_out() -> None:
    data, model = points(), net()
    scores = trak_scores([model], data[:20], data[20:], proj_dim=8, output="margin")
    with torch.no_grad():
        p = model(data.x).double().softmax(1)
    hot = torch.nn.functional.one_hot(data.y, 3)
    without = p * (1 - hot) / (1 - p.gather(1, data.y[:, None]))  # the other classes' shares
    slope = torch.einsum("nc,nd->ncd", hot - without, torch.cat([data.x.double(), torch.ones(30, 1)], 1))
    phi = torch.cat([slope[:, :, :3].flatten(1), slope[:, :, 3]], 1)
    # A constant on every logit changes nothing: the gradients span 8 of 12 dimensions, and the score is the same under
    # any projection to 8 that keeps them apart.
    basis = torch.linalg.svd(phi[:20], full_matrices=False)[2][:8]
    small = phi @ basis.T
    inverse = torch.linalg.inv(small[:20].T @ small[:20])
    expected = small[:20] @ inverse @ small[20:].T * (1 - p[:20].gather(1, data.y[:20, None]))
    assert scores.shape == (20, 10)
    assert torch.allclose(scores, expected, atol=1e-4)


def test_trak_sums_are_derivatives_along_the_step() -> None:
    data = points(60)
    with seeded(0, "net"):
        models = [MLP((3,), 3, (5,)) for _ in range(2)]
    scores = trak_scores(models, data[:50], data[50:], proj_dim=12, seed=4)
    assert scores.shape == (50, 10, 3)
    found = projected(models, data[:50], 12, seed=4)
    weight = torch.zeros(50, dtype=torch.float64)
    weight[:7] = torch.stack([p.lost for p in found]).mean(0)[:7]
    moved = []
    for model, p in zip(models, found, strict=True):
        step, eps = p.step(weight), 1e-3
        ends = []
        for sign in (1, -1):
            other = MLP((3,), 3, (5,)).double()
            other.load_state_dict(
                {k: v.double() + sign * eps * step[k].double() for k, v in model.state_dict().items()}
            )
            with torch.no_grad():
                ends.append(other(data.x[50:].double()))
        moved.append((ends[0] - ends[1]) / (2 * eps))
    assert torch.allclose(torch.stack(moved).mean(0), scores[:7].sum(0), atol=1e-4)


def test_trak_of_a_network_in_double_precision() -> None:
    data, model = points(40), net()
    wide = replace(data, x=data.x.double())
    scores = trak_scores([model], data, data[:3], proj_dim=5)
    assert torch.allclose(trak_scores([copy.deepcopy(model).double()], wide, wide[:3], proj_dim=5), scores, atol=1e-3)


def test_training_on_a_sample_raises_its_own_margin_and_seeds_draw_projections() -> None:
    data, model = points(60), MLP((3,), 3, (8,))
    scores = trak_scores([model], data, data, proj_dim=20, output="margin", seed=0)
    assert (scores.diagonal() > 0).all()
    assert torch.equal(scores, trak_scores([model], data, data, proj_dim=20, output="margin", seed=0))
    assert not torch.equal(scores, trak_scores([model], data, data, proj_dim=20, output="margin", seed=1))


def test_fitted_multiplier_is_least_squares() -> None:
    a, b = draw("a", 9), draw("b", 9)
    m = fitted_multiplier(a, b)
    assert abs(float(((b - m * a) * a).sum())) < 1e-12
    assert fitted_multiplier(a, 3 * a) == pytest.approx(3)


def test_bad_input() -> None:
    data, masks = points(), torch.rand(9, 4, generator=torch_rng(0, "m")) < 0.5
    for call in (
        lambda: linear_datamodel(masks.float(), draw("o", 9, 2)),
        lambda: linear_datamodel(masks, draw("o", 8, 2)),
        lambda: linear_datamodel(masks, draw("o", 9, 2) * torch.nan),
        lambda: linear_datamodel(masks, draw("o", 9, 2), -1.0),
        lambda: datamodel_score(draw("b", 4, 2), masks[:, :3], draw("o", 9, 2)),
        lambda: fitted_multiplier(torch.zeros(3), torch.ones(3)),
        lambda: trak_scores([], data, data),
        lambda: trak_scores([net()], data, data, proj_dim=31),
        lambda: trak_scores([net()], data, data, proj_dim=0),
        lambda: trak_scores([nn.Linear(3, 3, bias=False).requires_grad_(True)], data, data, proj_dim=9),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
    with pytest.raises(InputError, match="output of TRAK"):
        trak_scores([net()], data, data, output="loss")  # type: ignore[arg-type]
