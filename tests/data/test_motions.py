"""Synthetic motions: people of fixed bones, actions that can be told apart, clips that depend on nothing else."""

from __future__ import annotations

import pytest
import torch

from assay.data import HUMAN, bone_lengths, synthetic_motions
from assay.data.motions import PROGRAMS, joint_angles
from assay.runtime.errors import InputError
from assay.runtime.random import Draws


def test_bones_are_rigid_and_in_proportion() -> None:
    data = synthetic_motions(40, frames=12, seed=0, noise=0.0)
    lengths = bone_lengths(data.x, HUMAN.parents)[..., 0]
    torch.testing.assert_close(lengths, lengths[:, :1].expand_as(lengths), rtol=1e-4, atol=0)
    rest = torch.tensor(HUMAN.offsets).norm(dim=1)[1:]
    size = lengths[:, 0] / rest
    torch.testing.assert_close(size, size[:, :1].expand_as(size), rtol=1e-4, atol=0)
    assert size.min() >= 0.85
    assert size.max() <= 1.15
    assert size.std() > 0.05


def test_the_lowest_joint_stands_on_the_floor() -> None:
    x = synthetic_motions(16, frames=8, seed=0, noise=0.0).x
    torch.testing.assert_close(x[:, 1].amin(2), torch.zeros(16, 8, 1))
    squats = x[torch.arange(16) % 8 == list(PROGRAMS).index("squat")]
    walks = x[torch.arange(16) % 8 == list(PROGRAMS).index("walk")]
    assert squats[:, 1, :, 0].amin() < 0.75 * walks[:, 1, :, 0].amin()  # the pelvis


def test_actions_move_the_joints_that_they_are_made_of() -> None:
    y = torch.arange(len(PROGRAMS))
    angles = joint_angles(y, 60, Draws(0, "test", y), tremor=0.0)
    for action, program in enumerate(PROGRAMS.values()):
        moving = {key.rpartition(" ")[0] for key in program}
        found = {HUMAN.names[j] for j in torch.where(angles[action].std(0).amax(1) > 1e-3)[0].tolist()}
        assert found == moving
    still = joint_angles(y, 60, Draws(0, "test", y), tremor=0.05)
    resting = still[list(PROGRAMS).index("wave")][:, HUMAN.names.index("left ankle")]
    assert 0.02 < float(resting.std()) < 0.1


def test_a_clip_depends_on_seed_and_position_only() -> None:
    some, more = synthetic_motions(8, frames=8, seed=3), synthetic_motions(24, frames=8, seed=3)
    assert some.x.equal(more.x[:8])
    assert some.y.equal(more.y[:8])
    assert not some.x.equal(synthetic_motions(8, frames=8, seed=4).x)
    assert not more.x[0].equal(more.x[8])
    assert more.fields["frames"].tolist() == [8] * 24
    assert more.classes == tuple(PROGRAMS)


def test_bad_sizes() -> None:
    for options in ({"n": 7}, {"frames": 3}, {"noise": -0.1}, {"tremor": -1.0}):
        with pytest.raises(InputError, match="motions: n="):
            synthetic_motions(**{"n": 16, "frames": 8, "seed": 0} | options)
