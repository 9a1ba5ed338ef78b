"""Every reader of a file or an option, with valid inputs to start from: what the property tests and the fuzzer run.

A case is some bytes. A reader gets them in a folder of its own and either reads them or raises AssayError.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
import torch
import typer
from PIL import Image
from safetensors.torch import save
from seed_texts import AMC, ASF, CONFIG, DUMP, JOINTS, NTU
from torch import nn

from assay import methods
from assay.audit.property import Section
from assay.audit.registry import select
from assay.audit.run import _kept
from assay.cli import work
from assay.cli.app import app, from_config
from assay.curate.expert_trajectories import Trajectories
from assay.data import Data, load_data
from assay.gates import evidence, read_report
from assay.nets import MLP
from assay.papers import ledger
from assay.repair import _sets
from assay.runtime.errors import AssayError
from assay.runtime.store import Store, key_of
from assay.subject import Subject, load
from assay.subject.load import _given
from assay.vision import load_reap
from assay.vision.patch_renderer import PatchRenderer

RNG = np.random.default_rng(0)
X, Y = RNG.random((4, 1, 4, 4), dtype=np.float32), np.array([0, 1, 0, 1])
DATA = Data(torch.from_numpy(X), torch.from_numpy(Y), ("a", "b"), fields={"groups": torch.arange(4)})
SAVED: dict[str, bytes] = {}  # the files of the saved subject, made once
FILES: dict[str, bytes] = {}  # other files that are made once


def net() -> nn.Module:
    """The model whose weights are fuzzed."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


@dataclass(frozen=True)
class Reader:
    """``read(raw, folder)``; ``seeds``: input to start from, the first is read; ``text`` where the format is one."""

    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    text: bool = False


def _file(folder: Path, name: str, raw: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def npy(array: np.ndarray) -> bytes:
    """An array as a file of its own; one of objects is pickled in it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    """A zip archive of members with right checksums, whatever they hold."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)
    return buffer.getvalue()


def _npz(raw: bytes, folder: Path) -> object:
    return load_data(f"npz:{_file(folder, 'd.npz', raw)}")


def _npy(raw: bytes, folder: Path) -> object:
    """The header and body of one array after the first byte, which says which; the archive around it is sound."""
    whole = {"x": npy(X), "y": npy(Y), "classes": npy(np.array(["a", "b"])), "bounds": npy(np.array([0.0, 1.0]))}
    name = ("x", "y", "classes", "bounds", "index", "groups")[raw[0] % 6] if raw else "x"
    return _npz(zipped(**{**whole, name: raw[1:]}), folder)


def png(size: int = 4) -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (size, size), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def _images(raw: bytes, folder: Path) -> object:
    for name in "ab":
        _file(folder, f"classes/{name}/0.png", raw)
    return load_data(f"folder:{folder / 'classes'}")


def table(**columns: object) -> bytes:
    """A parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _parquet(raw: bytes, folder: Path) -> object:
    return load_data(f"parquet:{_file(folder, 'd.parquet', raw)}")


def _table(kind: str, options: str = "") -> Callable[[bytes, Path], object]:
    def read(raw: bytes, folder: Path) -> object:
        return _given(f"{kind}:{_file(folder, f'd.{kind}', raw)}{options}", "test")

    return read


def _mapped(raw: bytes, folder: Path) -> object:
    """The first byte says which array is fuzzed."""
    chosen = ("x", "y", "classes", "bounds")[raw[0] % 4] if raw else "x"
    for other in ("classes", "bounds"):
        (folder / f"mapped/{other}.npy").unlink(missing_ok=True)
    for name, content in {"x": npy(X), "y": npy(Y), chosen: raw[1:]}.items():
        _file(folder, f"mapped/{name}.npy", content)
    return _given(f"mmap:{folder / 'mapped'}", "test")


def _hub(raw: bytes, folder: Path) -> object:
    _file(folder, "mnist/test.parquet", raw)
    with mock.patch.dict(os.environ, {"ASSAY_DATA": str(folder), "HF_HUB_OFFLINE": "1"}):
        return load_data("mnist:test")


def _saved() -> dict[str, bytes]:
    if not SAVED:
        with tempfile.TemporaryDirectory() as root:
            subject = Subject(MLP((1, 4, 4), 2, (3,)).eval(), DATA, DATA, DATA, name="s")
            SAVED.update({p.name: p.read_bytes() for p in subject.save(Path(root) / "s").iterdir()})
    return SAVED


def _subject(name: str) -> Callable[[bytes, Path], object]:
    def read(raw: bytes, folder: Path) -> object:
        for other, content in _saved().items():
            _file(folder, f"s/{other}", raw if other == name else content)
        return load(folder / "s")

    return read


def _weights(suffix: str) -> Callable[[bytes, Path], object]:
    def read(raw: bytes, folder: Path) -> object:
        np.savez(folder / "test.npz", x=X, y=Y)
        return load(f"reader_table:net@{_file(folder, 'w' + suffix, raw)}", data=f"npz:{folder / 'test.npz'}")

    return read


def _pt(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


COMMAND = typer.main.get_command(app).commands["repair"]  # type: ignore[attr-defined]
USAGE = typer.BadParameter.__bases__[0]


def _foreign(kind: str, suffix: str) -> Callable[[bytes, Path], object]:
    """A model of another library, asked for the samples of a small npz file."""

    def read(raw: bytes, folder: Path) -> object:
        np.savez(folder / "test.npz", x=X, y=Y)
        return load(f"{kind}:{_file(folder, 'm' + suffix, raw)}", data=f"npz:{folder / 'test.npz'}")

    return read


def _made(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as root:
        write(Path(root) / "m.pt2")
        return (Path(root) / "m.pt2").read_bytes()


def _skops() -> list[bytes]:
    import skops.io
    from sklearn.linear_model import LogisticRegression

    return [skops.io.dumps(LogisticRegression().fit(X.reshape(4, -1), Y))]


def _onnx() -> list[bytes]:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", d]) for n, d in (("x", 16), ("y", 2)))
    weights = numpy_helper.from_array(np.ones((16, 2), np.float32), "w")
    graph = helper.make_graph([node], "g", [next(ends)], [next(ends)], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return [model.SerializeToString()]


def _export() -> list[bytes]:
    program = torch.export.export(net().eval(), (torch.zeros(4, 1, 4, 4),))
    return [_made(lambda path: torch.export.save(program, path))]


def _graph(raw: bytes, folder: Path) -> object:
    """The graph of an exported program; the archive around it is sound."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(FILES["graph"])) as whole, zipfile.ZipFile(made, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, raw if name.endswith("models/model.json") else whole.read(name))
    return _foreign("export", ".pt2")(made.getvalue(), folder)


def _graph_seed() -> list[bytes]:
    FILES.setdefault("graph", _export()[0])
    with zipfile.ZipFile(io.BytesIO(FILES["graph"])) as whole:
        return [whole.read(next(n for n in whole.namelist() if n.endswith("models/model.json")))]


def _report(raw: bytes, folder: Path) -> object:
    return evidence(read_report(_file(folder, "report.json", raw)))


def _report_seed() -> list[bytes]:
    from assay.audit.result import Audit
    from assay.runtime.metric import Metric

    section = Section([Metric("a.b", 0.5, 0.4, 0.6, n=9, better="higher")], findings=[(0.5, "f")])
    return [Audit("s", "quick", 0, {"a": section}, {"a": "A"}).to_json().encode()]


def _config(raw: bytes, folder: Path) -> object:
    context = typer.Context(COMMAND)
    from_config(context, _file(folder, "assay.toml", raw))
    try:
        return [p.process_value(context, (context.default_map or {}).get(p.name)) for p in COMMAND.params]
    except USAGE as error:  # the command line turns it into its one line
        raise AssayError(str(error)) from error


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _forget(raw: bytes, folder: Path) -> object:
    return _sets(net(), Subject(net(), DATA, DATA), str(_file(folder, "forget.txt", raw)))


def _ledger(raw: bytes, folder: Path) -> object:
    _file(folder, "some.jsonl", raw)
    return ledger.read("some", folder)


def _ntu(raw: bytes, folder: Path) -> object:
    for k in (1, 2):
        _file(folder, f"ntu/{NTU.format(k)}", raw)
    return load_data(f"ntu:{folder / 'ntu'}")


def _hdm05(raw: bytes, folder: Path) -> object:
    asf, _, amc = raw.partition(b"\0")
    _file(folder, "hdm/HDM_bd.asf", asf)
    for action in ("walk", "run"):
        _file(folder, f"hdm/HDM_bd_{action}_001_120.amc", amc)
    return load_data(f"hdm05:{folder / 'hdm'}")


def _reap(raw: bytes, folder: Path) -> object:
    images, mask = {"a.jpg": torch.zeros(3, 8, 8)}, torch.ones(1, 4, 4)
    path = _file(folder, "reap.csv", raw)
    return load_reap(path, images, "octagon", mask, mask, renderer=PatchRenderer(relight="percentile"))


def _reap_seed() -> list[bytes]:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("filename", "final_shape", "tgt_points", "percentile_coeffs"))
    rows.writerow(("a.jpg", "octagon", "[[1, 1], [6, 1], [6, 6], [1, 6]]", "[[0.5, 0.1]]"))
    return [text.getvalue().encode()]


def _trajectories(raw: bytes, folder: Path) -> object:
    return Trajectories.load(_file(folder, "t.safetensors", raw), net())


def _store(raw: bytes, folder: Path) -> object:
    store, key = Store(folder / "store"), key_of(a=1)
    _file(folder, f"store/{key[:2]}/{key}.npz", raw)
    return _kept(store, key)


def _section() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **Section(notes=["n"], findings=[(0.5, "f")]).to_arrays())
    return buffer.getvalue()


def _lines(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [t.encode() for t in texts]


ROW = {"key": "k", "scale": "claim", "claims": [], "source": "s", "outcome": "reproduced"}
READERS: dict[str, Reader] = {
    "npz": Reader(_npz, lambda: [zipped(x=npy(X), y=npy(Y))]),
    "npy": Reader(_npy, lambda: [b"\0" + npy(X), b"\1" + npy(Y), b"\2" + npy(np.array(["a", "b"])), b"\5" + npy(Y)]),
    "parquet": Reader(_parquet, lambda: [table(image=[png(), png()], label=[0, 1], groups=[1, 2])]),
    "csv": Reader(_table("csv"), _lines("a,b,label\n1,x,0\n2.5,y,1\n3,x,0\n"), True),
    "csv-text": Reader(_table("csv", "#text=a"), _lines("a,label\ngood,0\nbad,1\n"), True),
    "jsonl": Reader(_table("jsonl"), _lines('{"a": 1, "label": 0}\n{"a": 2, "label": 1}\n'), True),
    "table": Reader(_table("parquet", "#immutable=a"), lambda: [table(a=[1, 2], b=["x", "y"], label=[0, 1])]),
    "mmap": Reader(_mapped, lambda: [b"\0" + npy(X), b"\1" + npy(Y), b"\2" + npy(np.array(["a", "b"]))]),
    "hub": Reader(_hub, lambda: [table(image=[{"bytes": png(), "path": None}], label=[3])]),
    "images": Reader(_images, lambda: [png(), *map(_picture, ("JPEG", "GIF", "BMP", "WEBP"))]),
    "subject": Reader(
        _subject("subject.toml"),
        lambda: [_saved()["subject.toml"], tomli_w.dumps({"model": {"factory": "a:b"}}).encode()],
        text=True,
    ),
    "subject-weights": Reader(_subject("model.safetensors"), lambda: [_saved()["model.safetensors"]]),
    "subject-data": Reader(_subject("test.safetensors"), lambda: [_saved()["test.safetensors"]]),
    "weights-pt": Reader(_weights(".pt"), lambda: [_pt(net().state_dict()), _pt({"1.weight": torch.zeros(2, 16)})]),
    "weights-safetensors": Reader(_weights(".safetensors"), lambda: [save(net().state_dict())]),
    "skops": Reader(_foreign("sklearn", ".skops"), _skops),
    "onnx": Reader(_foreign("onnx", ".onnx"), _onnx),
    "lightgbm-dump": Reader(_foreign("lightgbm", ".json"), _lines(DUMP), True),
    "export": Reader(_foreign("export", ".pt2"), _export),
    "export-graph": Reader(_graph, _graph_seed),
    "report": Reader(_report, _report_seed, True),
    "config": Reader(_config, _lines(CONFIG), True),
    "require": Reader(
        lambda raw, _: work.parse(_text(raw)), _lines("calibration.ece<=0.05 and low(accuracy.top1) > 9e-1"), True
    ),
    "policy": Reader(
        lambda raw, folder: work.parse(str(_file(folder, "p.toml", raw))),
        _lines("policy = 1\nrequire = ['accuracy.top1 > 0.5', 'high(a.b@0.1) < 1e3']\n"),
        True,
    ),
    "forget": Reader(_forget, _lines("0\n2\n", "3\n"), True),
    "forget-option": Reader(
        lambda raw, _: _sets(net(), Subject(net(), DATA, DATA), _text(raw)),
        _lines("class=a", "random=0.5", "groups=1", "subclass=1:0"),
        True,
    ),
    "method": Reader(
        lambda raw, _: methods.from_text(_text(raw)),
        _lines("attacks.PGD:step_size=2/255,steps=3", "defenses.TRADES:eps=0.1", "calibrate.TemperatureScaling"),
        True,
    ),
    "only": Reader(lambda raw, _: select("quick", _text(raw).split(",")), _lines("accuracy,calibration"), True),
    "data-option": Reader(
        lambda raw, _: _given(_text(raw), "test"), _lines("digits", "npz:x.npz", "mnist:tset", "folder:~x"), True
    ),
    "ledger": Reader(_ledger, lambda: [json.dumps(ROW).encode() + b"\n"], True),
    "ntu": Reader(_ntu, _lines("\n".join(["2"] + ["1\n0 0 0\n25\n" + JOINTS] * 2)), True),
    "hdm05": Reader(_hdm05, _lines(ASF + AMC), True),
    "reap": Reader(_reap, _reap_seed, True),
    "trajectories": Reader(_trajectories, lambda: [save({"params": torch.zeros(2, 3, 34)})]),
    "store": Reader(_store, lambda: [_section()]),
}  # fmt: skip
