"""Exported programs can be differentiated, and nothing in an archive runs but operators of torch."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from assay.audit import audit
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.subject import Access, load

Files = dict[str, bytes]
MODEL = "models/model.json"


class Net(nn.Module):
    """A convolution, a norm with buffers, and a head; with ``softmax`` it gives probabilities."""

    def __init__(self, *, softmax: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten())
        self.head, self.softmax = nn.Linear(144, 10), softmax

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.body(x))
        return logits.softmax(1) if self.softmax else logits


def made(*, softmax: bool = False) -> Net:
    with seeded(0, "init"):
        return Net(softmax=softmax).eval()


def export(model: nn.Module, path: Path, *, batch: int = 4, dynamic: bool = True) -> Path:
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamic else {}
    torch.export.save(torch.export.export(model, (torch.zeros(batch, 1, 8, 8),), **shapes), path)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(made(), tmp_path_factory.mktemp("export") / "m.pt2")


@pytest.mark.parametrize(("batch", "dynamic"), [(4, True), (1, False), (3, False)])
def test_the_same_logits_and_gradients(tmp_path: Path, batch: int, dynamic: bool) -> None:
    model = made()
    subject = load(f"export:{export(model, tmp_path / 'm.pt2', batch=batch, dynamic=dynamic)}", data="digits:test")
    assert subject.access == Access.GRADIENT
    for n in (1, 2, 7):
        x = subject.test.x[:n].clone().requires_grad_()
        assert torch.allclose(subject.model(x), model(x), atol=1e-5)
        ours, theirs = (torch.autograd.grad(m(x)[:, 3].sum(), x)[0] for m in (subject.model, model))
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert theirs.abs().max() > 0


def test_an_audit_follows_gradients_and_leaves_weights_alone(archive: Path) -> None:
    found = audit(load(f"export:{archive}", data="digits:test"), only=["robustness.linf", "compression"], limit=20)
    assert found["robustness.linf.accuracy@0.1"].how.startswith("PGD-10")
    assert found.sections["compression"].skipped == "needs WEIGHTS access; the subject grants GRADIENT"


def test_probabilities_become_their_logarithm(tmp_path: Path) -> None:
    subject = load(f"export:{export(made(softmax=True), tmp_path / 'm.pt2')}", data="digits:test")
    assert torch.allclose(
        subject.model(subject.test.x).softmax(1), made().forward(subject.test.x).softmax(1), atol=1e-5
    )


def test_another_shape_and_broken_files(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(InputError, match=r"samples have shape \(1, 28, 28\); the program takes \(1, 8, 8\)"):
        load(f"export:{archive}", data=f"npz:{_large(tmp_path)}")
    (tmp_path / "x.pt2").write_bytes(b"no zip")
    (tmp_path / "cut.pt2").write_bytes(archive.read_bytes()[:5000])
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.pt2")
    for name in ("x", "cut", "state"):
        with pytest.raises(InputError, match=rf"^export:{name}.pt2: ") as raised:
            load(f"export:{tmp_path / name}.pt2", data="digits:test")
        assert "\n" not in str(raised.value)


def _large(folder: Path) -> Path:
    import numpy as np

    np.savez(folder / "d.npz", x=np.zeros((9, 1, 28, 28), np.float32), y=np.arange(9) % 10, classes=np.arange(10))
    return folder / "d.npz"


class Bomb:
    """What unpickling would run: it makes a folder where ``mark`` says."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def _pickled_weight(files: Files, mark: Path) -> None:
    name = "data/weights/model_weights_config.json"
    config = json.loads(files[name])
    entry = config["config"]["head.weight"]
    entry["use_pickle"] = True
    raw = io.BytesIO()
    torch.save(Bomb(mark), raw)
    files[f"data/weights/{entry['path_name']}"], files[name] = raw.getvalue(), json.dumps(config).encode()


def _pickled_constant(files: Files, mark: Path) -> None:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    files["data/constants/model_constants_config.json"] = json.dumps({"config": {"c": entry}}).encode()
    files["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(mark))


def _size(files: Files, mark: Path) -> None:
    code = f"__import__('os').mkdir('{mark}') or Symbol('s".encode()
    files[MODEL] = files[MODEL].replace(b"Symbol('s", code, 1)


def _name(files: Files, mark: Path) -> None:
    code = json.dumps(f"x=__import__('os').mkdir('{mark}')").encode()
    files[MODEL] = files[MODEL].replace(b'"x"', code)


def _operator(files: Files, mark: Path) -> None:
    files[MODEL] = files[MODEL].replace(b"torch.ops.aten.relu.default", b"torch.os.mkdir", 1)


def _file(files: Files, mark: Path) -> None:
    files[MODEL] = files[MODEL].replace(b"torch.ops.aten.relu.default", b"torch.ops.aten.from_file.default", 1)


def _rewritten(archive: Path, path: Path, mark: Path, change: Callable[[Files, Path], None]) -> Path:
    with zipfile.ZipFile(archive) as source:
        files = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    change(files, mark)
    with zipfile.ZipFile(path, "w") as target:
        for name, raw in files.items():
            target.writestr(f"m/{name}", raw)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_pickled_weight, "'head.weight' is stored as a pickled object"),
        (_pickled_constant, "'c' is stored as a pickled object"),
        (_size, "expr_str .* could run code"),
        (_name, "name .* could run code"),
        (_operator, "target 'torch.os.mkdir' could run code"),
        (_file, "target 'torch.ops.aten.from_file.default' could run code"),
    ],
)
def test_hostile_archives_are_refused(
    tmp_path: Path, archive: Path, change: Callable[[Files, Path], None], message: str
) -> None:
    mark = tmp_path / "mark"
    hostile = _rewritten(archive, tmp_path / "h.pt2", mark, change)
    with pytest.raises(InputError, match=message):
        load(f"export:{hostile}", data="digits:test")
    assert not mark.exists()


def test_torch_itself_would_run_them(tmp_path: Path, archive: Path) -> None:
    """Without this the test above would show nothing."""
    for change in (_pickled_weight, _size):
        mark = tmp_path / f"mark{change.__name__}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("logging.Logger.warning", lambda *_, **__: None)
            try:
                torch.export.load(_rewritten(archive, tmp_path / "h.pt2", mark, change))
            except Exception as error:
                assert mark.exists(), error  # noqa: PT017
        assert mark.exists()


def test_sample_inputs_are_never_unpickled(tmp_path: Path, archive: Path) -> None:
    mark = tmp_path / "mark"

    def bomb(files: Files, mark: Path) -> None:
        files["data/sample_inputs/model.pt"] = pickle.dumps(Bomb(mark))

    subject = load(f"export:{_rewritten(archive, tmp_path / 'h.pt2', mark, bomb)}", data="digits:test")
    assert torch.allclose(subject.model(subject.test.x), made()(subject.test.x), atol=1e-5)
    assert not mark.exists()


def test_two_files_of_one_name_are_refused(tmp_path: Path, archive: Path) -> None:
    """Readers of archives differ in which of the two they take."""
    path = tmp_path / "h.pt2"
    path.write_bytes(archive.read_bytes())
    with zipfile.ZipFile(path, "a") as target, pytest.warns(UserWarning, match="Duplicate name"):
        target.writestr(next(n for n in target.namelist() if n.endswith(MODEL)), b"{}")
    with pytest.raises(InputError, match="two files of one name"):
        load(f"export:{path}", data="digits:test")
