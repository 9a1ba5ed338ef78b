"""What every exported no-box attack promises; a new one joins by being exported."""

from __future__ import annotations

import copy
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from assay.attacks import NoBoxAttack, NoBoxLoss, RandomSigns
from assay.data import Data, synthetic_motions
from assay.methods import exported
from assay.nets import TemporalCNN
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.training import Supervised

EPS = 0.06
SHORT = {"steps": 8, "alpha": EPS / 4, "n_clusters": 24, "loss": NoBoxLoss(exclude_nearest=4)}
METHODS = list(exported("no-box").values())
attacks = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


def made(cls: type[NoBoxAttack], **options: object) -> NoBoxAttack:
    """The attack at a size that suits a test."""
    known = {f.name for f in fields(cls)}
    return cls(eps=EPS, **{k: v for k, v in SHORT.items() if k in known}, **options)


def trained(data: Data, widths: tuple[int, ...], seed: int) -> nn.Module:
    with seeded(seed, "init"):
        net = TemporalCNN(widths=widths)
    return Supervised(epochs=8, lr=5e-3).fit(net, data, seed=seed)


@pytest.fixture(scope="module")
def setting() -> tuple[nn.Module, nn.Module, Tensor, Data]:
    """An encoder and a victim of different people's clips, the attacker's pool, and clips to attack."""
    first, second, test = (synthetic_motions(n, frames=16, seed=s) for n, s in ((240, 0), (240, 1), (64, 2)))
    return trained(first, (24, 24), 0).body, trained(second, (32, 32), 1), first.x, test  # type: ignore[return-value]


def test_the_room_exports_no_box_attacks() -> None:
    assert {c.__name__ for c in METHODS} >= {"NoBoxManifoldAttack", "RandomSigns"}
    assert all(issubclass(c, NoBoxAttack) for c in METHODS)


@attacks
def test_stays_in_the_ball_and_the_bounds(cls: type[NoBoxAttack], setting: tuple) -> None:
    encoder, _, pool, test = setting
    low, high = float(pool.min()) - 0.5, max(float(pool.max()), float(test.x.max()))
    moved = made(cls, bounds=(low, high)).fit(encoder, pool, seed=0)(test.x, seed=0)
    assert moved.shape == test.x.shape
    assert moved.dtype == test.x.dtype
    assert not moved.requires_grad
    assert float((moved - test.x).abs().max()) <= EPS + 1e-6
    assert float(moved.max()) <= high
    assert not moved.equal(test.x)


@attacks
def test_same_seed_same_result_and_nothing_is_touched(cls: type[NoBoxAttack], setting: tuple) -> None:
    encoder, _, pool, test = setting
    encoder = copy.deepcopy(encoder).train()
    next(encoder.parameters()).requires_grad_(False)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    flags = [p.requires_grad for p in encoder.parameters()]
    x, kept, state = test.x[:12].clone(), pool.clone(), torch.get_rng_state()
    attack = made(cls)
    options = repr(attack)
    found = attack.fit(encoder, pool, seed=3)(x, seed=3)
    with torch.no_grad():
        assert attack.fit(encoder, pool, seed=3)(x, seed=3).equal(found)
    assert torch.get_rng_state().equal(state)
    assert x.equal(test.x[:12])
    assert pool.equal(kept)
    assert repr(attack) == options
    assert all(v.equal(before[k]) for k, v in encoder.state_dict().items())
    assert [p.requires_grad for p in encoder.parameters()] == flags
    assert encoder.training


@attacks
def test_a_sample_does_not_depend_on_its_batch(cls: type[NoBoxAttack], setting: tuple) -> None:
    encoder, _, pool, test = setting
    encoder, pool, x = copy.deepcopy(encoder).double(), pool.double(), test.x[:16].double()
    fitted, index = made(cls).fit(encoder, pool, seed=0), torch.arange(50, 66)
    whole = fitted(x, seed=5, index=index)
    rows = torch.tensor([11, 2])
    torch.testing.assert_close(fitted(x[rows], seed=5, index=index[rows]), whole[rows], rtol=0, atol=1e-5)


@attacks
def test_what_the_mask_excludes_and_absent_persons_stay(cls: type[NoBoxAttack], setting: tuple) -> None:
    encoder, _, pool, test = setting
    x = test.x[:4].clone()
    x[1] = 0
    mask = torch.zeros(32 // 2, 15, 1, dtype=torch.bool)
    mask[:, 4:8] = True
    moved = made(cls).fit(encoder, pool, seed=0)(x, seed=0, mask=mask)
    assert moved[1].equal(x[1])
    assert moved[:, :, :, :4].equal(x[:, :, :, :4])
    assert not moved[:, :, :, 4:8].equal(x[:, :, :, 4:8])


@attacks
def test_bad_input(cls: type[NoBoxAttack], setting: tuple) -> None:
    encoder, _, pool, test = setting
    broken = test.x.clone()
    broken[0, 0, 0, 0] = torch.nan
    attack = made(cls)
    fitted = attack.fit(encoder, pool, seed=0)
    cases = [
        lambda: attack.fit(encoder, pool[:0], seed=0),
        lambda: attack.fit(encoder, broken, seed=0),
        lambda: fitted(broken, seed=0),
        lambda: fitted(test.x.long(), seed=0),
        lambda: fitted(test.x, seed=0, index=torch.arange(3)),
        lambda: fitted(test.x, seed=0, frames=torch.ones(len(test))),
        lambda: replace(attack, bounds=(0.0, 0.1)).fit(encoder, pool, seed=0),
        lambda: replace(attack, bounds=(1.0, 0.0)),
        lambda: replace(attack, eps=-1.0),
    ]
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)


@attacks
def test_floor_fools_a_victim_that_it_never_saw(cls: type[NoBoxAttack], setting: tuple) -> None:
    encoder, victim, pool, test = setting
    clean = predict(victim, test.x).argmax(1)
    right = clean == test.y
    assert float(right.float().mean()) > 0.8

    def rate(attack: NoBoxAttack) -> float:
        moved = attack.fit(encoder, pool, seed=0)(test.x, seed=0)
        return float((predict(victim, moved).argmax(1) != clean)[right].float().mean())

    noise = rate(RandomSigns(eps=EPS))
    assert noise < 0.1
    if cls is not RandomSigns:
        assert rate(made(cls)) >= noise + 0.2
