"""Cross-validated probabilities and the repair on digits with a fifth of the labels flipped."""

import pytest
import torch

from assay.data import load_data
from assay.labels import PruneAndRetrain, Repair, cross_probabilities
from assay.labels.cross_validate import stratified_folds
from assay.nets import MLP
from assay.runtime.errors import AccessError, InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded, torch_rng
from assay.subject import Subject
from assay.training import Supervised


@pytest.fixture(scope="module")
def noisy():
    train, test = load_data("digits:train"), load_data("digits:test")
    g = torch_rng(0, "flip")
    flip = torch.rand(len(train), generator=g) < 0.2
    shift = torch.randint(1, 10, (len(train),), generator=g)
    y = torch.where(flip, (train.y + shift) % 10, train.y)
    with seeded(0, "init"):
        model = MLP(train.shape, 10, (64,))
    recipe = Supervised(epochs=60, batch_size=32, lr=5e-3, schedule="constant")
    return Subject(model, test, train.with_y(y), recipe=recipe, name="noisy"), flip


def accuracy(model, data):
    return float((predict(model, data.x).argmax(1) == data.y).float().mean())


def test_folds_are_balanced_in_each_class():
    y = load_data("digits:train").y
    fold = stratified_folds(y, 5, seed=0)
    for c in range(10):
        counts = torch.bincount(fold[y == c], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_repair_beats_its_control_and_finds_the_flips(noisy):
    subject, flip = noisy
    state = {k: v.clone() for k, v in subject.model.state_dict().items()}
    before = torch.get_rng_state()
    method = PruneAndRetrain(folds=4)
    assert isinstance(method, Repair)
    found = method.suspects(subject, seed=0)
    hits = (found & flip).sum() / flip.sum(), (found & flip).sum() / found.sum()
    assert min(hits) > 0.7
    repaired, control = method.repair(subject, seed=0), method.control(subject, seed=0)
    assert accuracy(repaired, subject.test) > accuracy(control, subject.test) + 0.02
    assert all(torch.equal(v, state[k]) for k, v in subject.model.state_dict().items())
    assert torch.equal(before, torch.get_rng_state())


def test_probabilities_are_out_of_sample_and_seeded(noisy):
    subject, _ = noisy
    data, recipe = subject.train[:60], Supervised(epochs=30)
    a, b = (cross_probabilities(subject.model, recipe, data, folds=3, seed=1) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.allclose(a.sum(1), torch.ones(60), atol=1e-5)
    # One fold's models never see that fold: another input there changes nothing for its other samples.
    fold = stratified_folds(data.y, 3, seed=1)
    x = data.x.clone()
    x[0] = 1 - x[0]
    c = cross_probabilities(subject.model, recipe, data.with_x(x), folds=3, seed=1)
    mates = fold == fold[0]
    assert not torch.allclose(a[~mates], c[~mates])
    mates[0] = False
    assert torch.allclose(a[mates], c[mates], atol=1e-6)


def test_bad_input(noisy):
    subject, _ = noisy
    with pytest.raises(InputError, match="folds"):
        cross_probabilities(subject.model, subject.recipe, subject.train, folds=1, seed=0)
    with pytest.raises(AccessError):
        PruneAndRetrain().repair(Subject(subject.model, subject.test, recipe=subject.recipe), seed=0)
    with pytest.raises(InputError, match="recipe"):
        PruneAndRetrain().repair(Subject(subject.model, subject.test, subject.train), seed=0)
