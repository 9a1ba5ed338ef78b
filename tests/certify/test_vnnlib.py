"""The files for complete verifiers say what was asked, and the exported model computes the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from assay.certify import CROWN, IBP, RandomizedSmoothing, Region
from assay.certify.vnnlib import export_onnx, hand_over, vnnlib_query
from assay.nets import MLP, SmallCNN
from assay.runtime.errors import InputError


def read(text: str) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """The box and the pairs (j, y) of Y_j >= Y_y whose disjunction is asked for."""
    ends = {(sign, int(i)): float(v) for sign, i, v in re.findall(r"\(assert \((>=|<=) X_(\d+) (-?\d+\.\d+)\)\)", text)}
    size = len(ends) // 2
    pairs = [(int(j), int(y)) for j, y in re.findall(r"\(and \(>= Y_(\d+) Y_(\d+)\)\)", text)]
    assert text.count("declare-const X_") == size
    assert text.count("(") == text.count(")")
    low, high = (torch.tensor([ends[sign, i] for i in range(size)], dtype=torch.float64) for sign in (">=", "<="))
    return low, high, pairs


def test_a_query_says_the_box_and_the_other_classes() -> None:
    lower, upper = torch.tensor([[-1e-9, 0.25]], dtype=torch.float64), torch.tensor([[0.1, 1 / 3]], dtype=torch.float64)
    low, high, pairs = read(vnnlib_query(lower, upper, 1, 4))
    assert torch.allclose(low, lower[0], rtol=0, atol=1e-18)
    assert torch.allclose(high, upper[0], rtol=0, atol=1e-16)
    assert pairs == [(0, 1), (2, 1), (3, 1)]
    for bad in ((upper, lower, 1, 4), (lower, upper, 4, 4), (lower, upper[:, :1], 0, 4)):
        with pytest.raises(InputError, match="vnnlib"):
            vnnlib_query(*bad)


def test_without_the_extra_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"assay\[onnx\]"):
        export_onnx(MLP((3,), 2), torch.rand(1, 3), tmp_path / "m.onnx")


def test_only_what_is_undecided_is_handed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = MLP((6,), 3, (16,)), torch.rand(40, 6)
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 3
    monkeypatch.setattr("assay.certify.vnnlib.export_onnx", lambda model, example, path: path)
    region, broken = Region(eps=0.08, bounds=(0.0, 1.0)), torch.zeros(40, dtype=torch.bool)
    broken[5] = True
    found = hand_over(model, x, y, region, CROWN(eps=0.08), tmp_path, broken=broken, timeout=60)
    assert found.certified.any()
    assert len(found.undecided) > 0
    groups = found.certified.int() + found.wrong.int()
    groups[found.undecided] += 1
    assert (groups[~broken] == 1).all()
    assert found.wrong[[0, 1, 2, 5]].all()
    lower, upper = region.box(x)
    for i, path in zip(found.undecided.tolist(), found.queries, strict=True):
        low, high, pairs = read(path.read_text())
        assert torch.allclose(low, lower[i], atol=1e-15)
        assert torch.allclose(high, upper[i], atol=1e-15)
        assert pairs == [(j, int(y[i])) for j in range(3) if j != y[i]]
    rows = found.instances.read_text().splitlines()
    assert rows == [f"model.onnx,{i}.vnnlib,60" for i in found.undecided.tolist()]
    with pytest.raises(InputError, match="expected linf"):
        hand_over(model, x, y, Region("l2", 0.1), IBP(), tmp_path)
    with pytest.raises(InputError, match=r"decides .*eps=0.2"):
        hand_over(model, x, y, region, IBP(eps=0.2), tmp_path)
    for other in (CROWN(eps=0.08, norm="l2"), RandomizedSmoothing()):  # neither decides the box
        with pytest.raises(InputError, match="as is asked"):
            hand_over(model, x, y, region, other, tmp_path)


@pytest.mark.parametrize("make", [lambda: MLP((1, 8, 8), 10), SmallCNN])
def test_the_exported_model_computes_the_same(make, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, x = make().eval(), torch.rand(4, 1, 8, 8)
    session = runtime.InferenceSession(export_onnx(model, x, tmp_path / "m.onnx"))
    out = torch.cat([torch.from_numpy(session.run(["logits"], {"x": row[None].numpy()})[0]) for row in x])
    assert torch.allclose(out, model(x), atol=1e-5)
