"""Exact checks of AnyLoss and of the cross-entropy that it is compared with."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, f1_score, fbeta_score, matthews_corrcoef, recall_score

from assay.losses import AnyLoss, BinaryCrossEntropy, ComboLoss, soft_confusion
from assay.papers import anyloss as paper
from assay.runtime.errors import InputError

METRICS = ("accuracy", "balanced-accuracy", "fbeta", "gmean")
LIMITS = {"matrix": 1e-12, "losses": 1e-12, "gradient": 1e-10, "sum": 1e-9}


def _sample(n: int = 40, columns: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, columns, generator=g, dtype=torch.float64) / 10, torch.arange(n) % max(columns, 2)


@pytest.mark.parametrize("seed", range(5))
def test_identities(seed: int) -> None:
    found = paper.exact(AnyLoss, seed, 200)
    assert set(found) == set(LIMITS)
    assert all(found[name] <= limit for name, limit in LIMITS.items()), found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sham", sorted(paper.PAPER.shams))
def test_shams_miss_the_hard_matrix_and_the_gradient(sham: str, seed: int) -> None:
    found = paper.exact(paper.RULES[sham], seed, 200)
    assert found["matrix"] > 1
    assert found["losses"] > 0.01
    assert found["gradient"] > 1e-6
    assert found["sum"] <= 1e-9


def test_digits_are_thinned_and_folds_are_disjoint() -> None:
    train, test = paper._digits(paper.PAPER.scale("smoke"), 3)
    assert abs(train.y.double().mean() - 0.03) < 0.002
    assert 0.07 < test.y.double().mean() < 0.12
    folds = paper._tabular(2, seed=3)
    assert [len(a) + len(b) for a, b in folds] == [397] * 10
    assert sum(int(b.y.sum()) for _, b in folds) == 2 * 40
    for part in (folds[:5], folds[5:]):
        assert sorted(i for _, b in part for i in b.index.tolist()) == list(range(397))
    assert all(abs(a.x.mean(0)).max() < 1e-5 for a, _ in folds)
    assert paper._digits(paper.PAPER.scale("smoke"), 4)[0].hash != train.hash


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sqrt", [False, True])
def test_gradient_and_global_state(metric: str, sqrt: bool) -> None:
    z, y = _sample(12)
    loss, kept, state = AnyLoss(metric, sqrt=sqrt), z.clone(), torch.random.get_rng_state()
    assert torch.autograd.gradcheck(lambda v: loss(v, y), (z.requires_grad_(),))
    (gradient,) = torch.autograd.grad(loss(z, y), z)
    assert loss(z - 0.01 * gradient, y) < loss(z, y)
    assert torch.equal(z.detach(), kept)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("metric", METRICS)
def test_forms_of_scores_agree(metric: str) -> None:
    z, y = _sample()
    both = torch.cat((torch.zeros_like(z), z), 1)
    expected = AnyLoss(metric)(z, y)
    plain = AnyLoss(metric, from_logits=False)
    for value in (
        AnyLoss(metric)(z[:, 0], y),
        AnyLoss(metric)(both, y),
        plain(z.sigmoid(), y),
        plain(z[:, 0].sigmoid(), y),
        plain(both.softmax(1), y),
    ):
        assert torch.isclose(value, expected, atol=1e-12)


def test_half_precision_does_not_overflow() -> None:
    z, y = torch.tensor([60.0, -60.0, 60.0, -60.0]), torch.tensor([1, 0, 0, 1])
    assert AnyLoss()(z.half(), y) == AnyLoss()(z, y)
    assert torch.isfinite(AnyLoss("gmean", sqrt=True, eps=0.0)(z, y))


def test_without_amplification_it_is_soft_dice() -> None:
    z, y = _sample()
    p, t = z[:, 0].sigmoid(), y.double()
    assert torch.isclose(AnyLoss(L=None, eps=0.0)(z, y), 1 - 2 * (p * t).sum() / (p.sum() + t.sum()))


def test_amplification_has_the_slope_of_its_centre() -> None:
    p = torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    a = AnyLoss(L=60.0).amplify(p)
    (slope,) = torch.autograd.grad(a.sum(), p)
    assert torch.allclose(a.detach(), torch.tensor([0.5, 0, 1], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(slope, torch.tensor([15.0, 0, 0], dtype=torch.float64), atol=1e-10)


def test_hard_is_the_metric_of_the_predictions() -> None:
    z, y = _sample(200)
    guess = (z[:, 0] > 0).long().numpy()
    _, fp, fn, tp = confusion_matrix(y, guess).ravel()
    assert np.isclose(AnyLoss().hard(z, y), f1_score(y, guess))
    assert np.isclose(AnyLoss(beta=2).hard(z, y), fbeta_score(y, guess, beta=2))
    assert np.isclose(AnyLoss("gmean").hard(z, y), math.sqrt(recall_score(y, guess, average=None).prod()))
    assert np.isclose(AnyLoss("accuracy").hard(z, y), (guess == y.numpy()).mean())
    assert np.isclose(AnyLoss(lambda a, b, c, d: a / (a + b + c)).hard(z, y), tp / (tp + fn + fp))
    assert AnyLoss().hard(-torch.ones(4), torch.tensor([1, 0, 0, 1])) == 0


def test_any_function_of_the_cells() -> None:
    def mcc(tp: torch.Tensor, fn: torch.Tensor, fp: torch.Tensor, tn: torch.Tensor) -> torch.Tensor:
        return (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()

    z, y = 1000 * _sample(200)[0], _sample(200)[1]
    hard = matthews_corrcoef(y, z[:, 0] > 0)
    assert np.isclose(AnyLoss(mcc).hard(z, y), hard)
    assert AnyLoss(mcc)(z.sign() * 60, y).item() == pytest.approx(1 - hard, abs=1e-12)
    for bad in (lambda *c: torch.stack(c), lambda *c: 0.5):
        with pytest.raises(InputError):
            AnyLoss(bad)(z, y)  # type: ignore[arg-type]


def test_classes_against_the_rest() -> None:
    z, y = _sample(60, 3)
    z = z * 100
    assert np.isclose(AnyLoss().hard(z, y), f1_score(y, z.argmax(1), average="macro"))
    p = z.softmax(1)
    each = [AnyLoss(from_logits=False)(p[:, k], (y == k).long()) for k in range(3)]
    assert torch.isclose(AnyLoss()(z, y), torch.stack(each).mean())
    with pytest.raises(InputError):
        AnyLoss().confusion(z, y)


@pytest.mark.parametrize(("metric", "lacking"), [("fbeta", 0), ("gmean", 0), ("gmean", 1), ("balanced-accuracy", 1)])
def test_a_batch_of_one_class_is_counted_and_said(metric: str, lacking: int) -> None:
    z, y = torch.zeros(5, requires_grad=True), torch.full((5,), lacking)
    loss = AnyLoss(metric)
    with pytest.warns(RuntimeWarning, match="lacks a class"):
        value = loss(z, y)
    assert loss.one_sided == 1
    assert value.item() == pytest.approx(1)
    assert torch.autograd.grad(value, z)[0].abs().max() == 0
    with pytest.raises(InputError):
        AnyLoss(metric, strict=True)(z, y)


def test_metrics_that_need_no_second_class_stay_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric, target in (("accuracy", torch.zeros(5)), ("fbeta", torch.ones(5))):
            loss = AnyLoss(metric, strict=True)
            assert torch.isfinite(loss(torch.zeros(5), target.long()))
            assert loss.one_sided == 0


def test_cross_entropy() -> None:
    z, y = _sample(30)
    y = (y + (torch.arange(30) % 5 == 0)).clamp(max=1)
    n1, n0 = int(y.sum()), int((1 - y).sum())
    each = F.binary_cross_entropy_with_logits(z[:, 0], y.double(), reduction="none")
    assert torch.isclose(BinaryCrossEntropy()(z, y), each.mean())
    both = torch.cat((torch.zeros_like(z), z), 1)
    assert torch.isclose(BinaryCrossEntropy()(both, y), F.cross_entropy(both, y))
    weighted = (n0 * each[y == 1].sum() + n1 * each[y == 0].sum()) / 30**2
    assert torch.isclose(BinaryCrossEntropy(weighted=True)(z, y), weighted)
    parts = 0.7 * weighted + 0.3 * AnyLoss("gmean", L=None)(z, y)
    assert torch.isclose(ComboLoss("gmean", r=0.3)(z, y), parts)
    assert torch.autograd.gradcheck(lambda v: ComboLoss()(v, y), (z.requires_grad_(),))


@pytest.mark.parametrize("loss", [AnyLoss(), BinaryCrossEntropy(), ComboLoss()], ids=lambda loss: type(loss).__name__)
def test_bad_input(loss: torch.nn.Module) -> None:
    z, y = _sample()
    nan = z.clone()
    nan[0] = torch.nan
    for scores, target in ((z[:0], y[:0]), (nan, y), (z, y + 1), (z, y.double()), (z, y[:-1]), (z.long(), y),
                           (z[:, :0], y), (z[0, 0], y), (z[None], y)):  # fmt: skip
        with pytest.raises(InputError):
            loss(scores, target)


def test_bad_parameters() -> None:
    z, y = _sample()
    for call in (
        lambda: AnyLoss("f2"),
        lambda: AnyLoss(L=0.0),
        lambda: AnyLoss(L=math.inf),
        lambda: AnyLoss(beta=0.0),
        lambda: AnyLoss(eps=-1.0),
        lambda: AnyLoss(from_logits=False)(z + 2, y),
        lambda: soft_confusion(z, y),
        lambda: soft_confusion(z[:, 0] - 1, y),
        lambda: ComboLoss(r=1.0),
        lambda: ComboLoss("f2"),
        lambda: BinaryCrossEntropy()(torch.zeros(4, 3), torch.arange(4) % 2),
    ):
        with pytest.raises(InputError):
            call()


def test_soft_confusion_of_the_middle() -> None:
    cells = soft_confusion(torch.full((4,), 0.5), torch.tensor([1, 0, 0, 0]))
    assert [float(c) for c in cells] == [0.5, 0.5, 1.5, 1.5]


@pytest.mark.parametrize("metric", ["fbeta", "gmean", "balanced-accuracy"])
@pytest.mark.parametrize("sqrt", [False, True])
def test_without_eps_a_batch_that_lacks_a_class_has_a_loss_of_one(metric: str, sqrt: bool) -> None:
    p = torch.zeros(5, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="lacks a class"):
        loss = AnyLoss(metric, L=None, beta=3.0, eps=0.0, from_logits=False, sqrt=sqrt)(p, torch.zeros(5).long())
    assert float(loss.detach()) == pytest.approx(1)
    assert torch.isfinite(torch.autograd.grad(loss, p)[0]).all()
    z, y = _sample()
    assert torch.allclose(AnyLoss(metric, eps=0.0)(z, y), AnyLoss(metric, eps=1e-12)(z, y))
