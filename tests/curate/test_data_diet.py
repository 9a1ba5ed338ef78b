"""The diet: what short runs find, and what GraNd does not find before any training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from assay.curate import DataDiet, FittedDiet, RandomSubset, at_equal_steps
from assay.curate.subsets import within_classes
from assay.data import Data, load_data
from assay.labels import CoTeaching, DivideMix, ForwardCorrection, Mixup
from assay.nets import MLP, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.runtime.statistics import point
from assay.training import Supervised, Trainer

SHORT = Supervised(batch_size=64)


@pytest.fixture(scope="module")
def noisy() -> tuple[Data, torch.Tensor]:
    """Digits with a tenth of the labels wrong, and which they are."""
    data, g = load_data("digits:train"), torch_rng(0, "noise")
    wrong = torch.rand(len(data), generator=g) < 0.1
    other = (data.y + torch.randint(1, 10, data.y.shape, generator=g)) % 10
    return data.with_y(torch.where(wrong, other, data.y)), wrong


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with seeded(0, "net"):
        return SmallCNN(widths=(8, 16), hidden=32)


def auc(scores: torch.Tensor, wrong: torch.Tensor) -> float:
    return point("auroc", torch.stack([scores.nan_to_num(posinf=1e9), wrong.double()], 1).numpy())


@pytest.mark.parametrize(("score", "least"), [("el2n", 0.98), ("grand", 0.98), ("forget", 0.9)])
def test_short_runs_find_wrong_labels(noisy: tuple, model: nn.Module, score: str, least: float) -> None:
    data, wrong = noisy
    found = DataDiet(score=score, n_models=2, epochs=10, trainer=SHORT).fit(model, data, seed=0)
    assert found.runs_.shape == (2, len(data))
    assert auc(found.scores_, wrong) > least
    assert wrong[found.select(0.1)].float().mean() > 4 * wrong.float().mean()
    assert wrong[found.select(0.4, 0.1)].float().mean() < 0.9 * wrong.float().mean()


def test_grand_before_training_says_little(noisy: tuple, model: nn.Module) -> None:
    data, wrong = noisy
    with pytest.warns(RuntimeWarning, match=r"2303\.14753"):
        start = DataDiet(score="grand", n_models=5, epochs=0).fit(model, data, seed=0).scores_
    trained = DataDiet(n_models=2, epochs=5, trainer=SHORT).fit(model, data, seed=0).scores_
    assert abs(auc(start, wrong) - 0.5) < 0.1
    assert abs(spearmanr(start, trained)[0]) < 0.3
    assert spearmanr(start, data.x.flatten(1).norm(dim=1))[0] > 0.5


def test_select_is_the_window_of_the_fitted_scores(noisy: tuple, model: nn.Module) -> None:
    data = noisy[0][:200]
    method = DataDiet(n_models=1, epochs=1, trainer=SHORT, offset=0.25)
    found = method.fit(model, data, seed=3)
    assert torch.equal(method.select(model, data, 100, seed=3), found.select(0.5, 0.25, seed=3))
    fair = replace(method, per_class=True)
    assert torch.equal(fair.select(model, data, 100, seed=3), found.select(0.5, 0.25, per_class=True, seed=3))
    with pytest.raises(InputError, match="offset of 50"):
        method.select(model, data, 151, seed=3)


def test_per_class_keeps_the_same_share_of_each() -> None:
    y = torch.arange(100) % 4
    found = FittedDiet((10.0 * y + torch.arange(100) / 100)[None], y)
    assert found.kept_by_class(found.select(0.5)).tolist() == [0, 0, 1, 1]
    shares = found.kept_by_class(found.select(0.5, per_class=True))
    assert torch.allclose(shares, torch.full((4,), 0.5), atol=0.05)
    ranks = within_classes(torch.tensor([3.0, 1.0, 2.0, 9.0]), torch.tensor([0, 0, 0, 1]))
    assert torch.allclose(ranks, torch.tensor([2 / 3, 0, 1 / 3, 0]).double())


def test_equal_steps_whatever_is_kept() -> None:
    trainer = Supervised(epochs=3, batch_size=64)
    assert at_equal_steps(trainer, 1000).plan().total(10) == trainer.plan().total(1000) == 48
    assert trainer.plan().total(10) == 3


def test_smaller_random_subsets_lie_in_larger_ones(noisy: tuple, model: nn.Module) -> None:
    small, large = (RandomSubset().select(model, noisy[0], n, seed=1) for n in (100, 300))
    assert torch.isin(small, large).all()


@pytest.mark.parametrize("trainer", [ForwardCorrection(), Mixup(pairs="all"), CoTeaching(), DivideMix()])
def test_forgetting_refuses_trainers_without_a_prediction_of_each_sample(trainer: Trainer) -> None:
    data = Data(torch.rand(9, 4), torch.arange(9) % 3, ("a", "b", "c"))
    with pytest.raises(InputError, match=f"{type(trainer).__name__} (states|predicts|trains)"):
        DataDiet(score="forget", n_models=1, epochs=1, trainer=trainer).select(MLP((4,), 3, (5,)), data, 3, seed=0)


def test_bad_options() -> None:
    for options in ({"score": "grad"}, {"n_models": 0}, {"epochs": -1}, {"offset": 1.0}):
        with pytest.raises(InputError):
            DataDiet(**options)
