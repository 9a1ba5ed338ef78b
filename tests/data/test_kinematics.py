"""Rotations, forward kinematics and bones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data import HUMAN, Skeleton, bone_lengths
from assay.data.kinematics import minimal_rotation, rotation
from assay.runtime.errors import InputError

angles = st.floats(-3, 3, allow_nan=False, width=32)


@given(st.tuples(angles, angles, angles))
@settings(max_examples=40)
def test_rotation_is_the_exponential_of_the_cross_product(vector: tuple[float, float, float]) -> None:
    x, y, z = vector
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    found = rotation(torch.tensor(vector, dtype=torch.float64))
    torch.testing.assert_close(found, torch.linalg.matrix_exp(cross), rtol=0, atol=1e-9)


def test_minimal_rotation_turns_one_direction_into_the_other() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, 3, generator=g, dtype=torch.float64)
    a = torch.cat((a, torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 2.0]], dtype=torch.float64)))
    b = torch.cat((b, torch.tensor([[-1.0, -2.0, -3.0], [0.0, 0.0, 1.0]], dtype=torch.float64)))
    turned = torch.einsum("nij,nj->ni", minimal_rotation(a, b), a)
    along = b / b.norm(dim=1, keepdim=True) * a.norm(dim=1, keepdim=True)
    torch.testing.assert_close(turned, along, rtol=0, atol=1e-9)
    perpendicular = torch.linalg.cross(a, b)[:50]
    torch.testing.assert_close(torch.einsum("nij,nj->ni", minimal_rotation(a, b)[:50], perpendicular), perpendicular)
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(minimal_rotation(zero, a[0]), torch.eye(3, dtype=torch.float64))


def test_an_arm_bent_by_a_right_angle() -> None:
    arm = Skeleton(("shoulder", "elbow", "wrist"), (-1, 0, 1), ((0, 0, 0), (0.3, 0, 0), (0.25, 0, 0)))
    turns = torch.eye(3).repeat(3, 1, 1)
    turns[1] = rotation(torch.tensor([0.0, 0.0, math.pi / 2]))
    places = arm.forward(turns, torch.tensor([1.0, 0.0, 0.0]))
    expected = torch.tensor([[1.0, 0, 0], [1.3, 0, 0], [1.3, 0.25, 0]])
    torch.testing.assert_close(places, expected)
    turns[0] = rotation(torch.tensor([0.0, 0.0, math.pi / 2]))
    expected = torch.tensor([[0.0, 0, 0], [0, 0.6, 0], [-0.5, 0.6, 0]])
    torch.testing.assert_close(arm.forward(turns, torch.zeros(3), 2.0), expected)


def test_kinematics_keeps_bones_and_turns_with_its_root() -> None:
    g = torch.Generator().manual_seed(0)
    turns = rotation(torch.randn(7, 5, 15, 3, generator=g, dtype=torch.float64))
    root = torch.randn(7, 5, 3, generator=g, dtype=torch.float64)
    places = HUMAN.forward(turns, root)
    lengths = bone_lengths(places.permute(0, 3, 1, 2)[..., None], HUMAN.parents)
    rest = torch.tensor(HUMAN.offsets, dtype=torch.float64).norm(dim=1)[1:]
    torch.testing.assert_close(lengths, rest[:, None].expand_as(lengths))
    turn = rotation(torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64))
    turned = turns.clone()
    turned[:, :, 0] = turn @ turns[:, :, 0]
    torch.testing.assert_close(HUMAN.forward(turned, root @ turn.T), places @ turn.T)


def test_the_human_is_of_human_size() -> None:
    places = HUMAN.forward(torch.eye(3).repeat(15, 1, 1), torch.zeros(3))
    height = float(places[:, 1].max() - places[:, 1].min())
    reach = float((places[:, 0].max() - places[:, 0].min()) + 2 * (0.29 + 0.25))
    assert 1.5 < height < 1.75  # from the ankles to the head's joint
    assert reach == pytest.approx(height, rel=0.1)  # a span about the height


@pytest.mark.parametrize("parents", [(0, 0, 1), (-1, 2, 1), (-1, -1, 0)])
def test_what_is_no_tree_is_refused(parents: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="listed before"):
        Skeleton(("a", "b", "c"), parents, ((0, 0, 0),) * 3)


def test_bad_shapes() -> None:
    with pytest.raises(InputError, match="expected one of each a joint"):
        Skeleton(("a",), (-1, 0), ((0, 0, 0),))
    with pytest.raises(InputError, match="turns have shape"):
        HUMAN.forward(torch.zeros(14, 3, 3), torch.zeros(3))
    with pytest.raises(InputError, match="motions of shape"):
        bone_lengths(torch.zeros(2, 3, 4, 14, 1), HUMAN.parents)
