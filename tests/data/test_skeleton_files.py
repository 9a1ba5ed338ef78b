"""Recorded motions read from files that are written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from assay.data import bone_lengths, load_data
from assay.data.skeleton_files import NTU_PARENTS, Acclaim, normalised, read_ntu, repeated
from assay.runtime.errors import InputError

ASF = """# a comment
:version 1.10
:name test
:units
  mass 1.0
  length 0.45
  angle deg
:documentation
  none
:root
  order TX TY TZ RX RY RZ
  axis XYZ
  position 0 0 0
  orientation 0 0 0
:bonedata
  begin
    id 1
    name upper
    direction 1.0 0.0 0.0
    length 4.5
    axis 0.0 0.0 90.0 XYZ
    dof rx ry rz
    limits (-180 180)
           (-180 180)
  end
  begin
    id 2
    name lower
    direction 0.0 1.0 0.0
    length 9.0
    axis 0.0 0.0 0.0 XYZ
    dof rz
    limits (-180 180)
  end
:hierarchy
  begin
    root upper
    upper lower
  end
"""


def amc(frames: list[dict[str, list[float]]]) -> str:
    body = [
        f"{k + 1}\n" + "\n".join(f"{n} {' '.join(map(str, v))}" for n, v in f.items()) for k, f in enumerate(frames)
    ]
    return "#!OML:ASF test\n:FULLY-SPECIFIED\n:DEGREES\n" + "\n".join(body) + "\n"


def ntu_text(bodies: np.ndarray) -> str:
    """bodies (m, t, 25, 3); a body of zeros at a frame is absent from it."""
    lines = [str(bodies.shape[1])]
    for t in range(bodies.shape[1]):
        present = [b[t] for b in bodies if b[t].any()]
        lines.append(str(len(present)))
        for joints in present:
            lines += ["72057594037944738 0 1 1 1 1 0 0.0 0.0 2", "25"]
            lines += [" ".join(f"{v:.6f}" for v in p) + " 300 200 900 500 0.1 0.2 0.3 0.4 2" for p in joints]
    return "\n".join(lines) + "\n"


def person(t: int, spread: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(t, 25, 3)) * spread + np.array([0.2, 0.4, 3.0])


def test_ntu_keeps_the_two_that_move_most(tmp_path: Path) -> None:
    bodies = np.stack((person(6, 0.1, 0), person(6, 0.5, 1), person(6, 0.3, 2)))
    (tmp_path / "a.skeleton").write_text(ntu_text(bodies))
    x = read_ntu(tmp_path / "a.skeleton")
    assert x.shape == (3, 6, 25, 2)
    torch.testing.assert_close(x[..., 0].permute(1, 2, 0).numpy(), bodies[1].astype(np.float32), rtol=0, atol=1e-5)
    torch.testing.assert_close(x[..., 1].permute(1, 2, 0).numpy(), bodies[2].astype(np.float32), rtol=0, atol=1e-5)


def test_ntu_normalised_is_one_rigid_motion(tmp_path: Path) -> None:
    alone = np.stack((person(5, 0.3, 0), np.zeros((5, 25, 3))))
    (tmp_path / "a.skeleton").write_text(ntu_text(alone))
    raw = read_ntu(tmp_path / "a.skeleton")
    x = normalised(raw)
    torch.testing.assert_close(bone_lengths(x[None], NTU_PARENTS), bone_lengths(raw[None], NTU_PARENTS))
    torch.testing.assert_close(x[:, :, 1, 0], torch.zeros(3, 5))
    shoulders = x[:, 0, 8, 0] - x[:, 0, 4, 0]
    assert float(shoulders[0]) == pytest.approx(float(shoulders.norm()), rel=1e-4)
    assert (x[..., 1] == 0).all()


def test_ntu_folder(tmp_path: Path) -> None:
    for k, (name, t) in enumerate(
        (("S001C002P003R001A007", 4), ("S017C001P008R002A043", 9), ("S001C001P001R001A007", 5))
    ):
        (tmp_path / f"{name}.skeleton").write_text(ntu_text(person(t, 0.3, k)[None]))
    (tmp_path / "notes.skeleton").write_text("not one of them")
    data = load_data(f"ntu:{tmp_path}")
    assert data.x.shape == (3, 3, 300, 25, 2)
    assert data.classes == ("A007", "A043")
    assert data.y.tolist() == [0, 0, 1]
    assert data.fields["frames"].tolist() == [5, 4, 9]
    assert data.fields["subject"].tolist() == [1, 3, 8]
    assert data.fields["camera"].tolist() == [1, 2, 1]
    assert data.x[1, :, 4:8].equal(data.x[1, :, :4])


def test_repeated_cuts_and_repeats() -> None:
    x = torch.arange(5.0).reshape(1, 5, 1, 1)
    assert repeated(x, 3).flatten().tolist() == [0, 1, 2]
    assert repeated(x, 7).flatten().tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_acclaim_kinematics(tmp_path: Path) -> None:
    """Bones of 10 and 20 inches. A turn about the upper's own x is about the world's y: its axis is turned by 90."""
    (tmp_path / "HDM_bd.asf").write_text(ASF)
    still = {"root": [0.9, 0, 0, 0, 0, 0], "upper": [0, 0, 0], "lower": [0]}
    frames = [
        still,
        still | {"lower": [90]},
        still | {"upper": [90, 0, 0]},
        still | {"upper": [0, 90, 0], "lower": [90]},
        still | {"root": [0, 0, 0, 0, 0, 90]},
    ]
    (tmp_path / "move.amc").write_text(amc(frames))
    acclaim = Acclaim(tmp_path / "HDM_bd.asf")
    x = acclaim.motion(tmp_path / "move.amc")[..., 0].permute(1, 2, 0) / 0.0254
    expected = torch.tensor(
        [
            [[2.0, 0, 0], [12, 0, 0], [12, 20, 0]],
            [[2.0, 0, 0], [12, 0, 0], [-8, 0, 0]],
            [[2.0, 0, 0], [2, 0, -10], [2, 20, -10]],
            [[2.0, 0, 0], [12, 0, 0], [-8, 0, 0]],
            [[0.0, 0, 0], [0, 10, 0], [-20, 10, 0]],
        ]
    )
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)
    assert acclaim.motion(tmp_path / "move.amc", stride=2).shape == (3, 3, 3, 1)
    assert acclaim.skeleton.parents == (-1, 0, 1)


def test_hdm05_folder(tmp_path: Path) -> None:
    (tmp_path / "HDM_bd.asf").write_text(ASF)
    for action, bend in (("kick", 90), ("walk2StepsLstart", 0)):
        frames = [{"root": [k, 0, 0, 0, 0, 0], "upper": [k, 0, 0], "lower": [bend]} for k in range(10)]
        (tmp_path / f"HDM_bd_{action}_001_120.amc").write_text(amc(frames))
    data = load_data(f"hdm05:{tmp_path}")
    assert data.x.shape == (2, 3, 300, 3, 1)
    assert data.classes == ("kick", "walk2StepsLstart")
    assert data.fields["frames"].tolist() == [3, 3]
    assert (data.x[:, :, :, 0] == 0).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("S001C002P003R001A007.skeleton", "2\n1\nx\n", "cannot be read"),
        ("S001C002P003R001A007.skeleton", "1\n0\n", "no frame with a body"),
        ("HDM_bd_kick_001_120.amc", "nothing", "cannot be read"),
    ],
)
def test_bad_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_data(f"{'ntu' if name.startswith('S') else 'hdm05'}:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    for source in ("ntu", "hdm05"):
        with pytest.raises(InputError, match="expected files such as"):
            load_data(f"{source}:{tmp_path}")
    (tmp_path / "HDM_bd.asf").write_text(ASF)
    (tmp_path / "HDM_bd_kick_001_120.amc").write_text(amc([{"root": [0] * 6, "thigh": [0]}]))
    with pytest.raises(InputError, match=r"motion \(.amc\) of this skeleton"):
        load_data(f"hdm05:{tmp_path}")
