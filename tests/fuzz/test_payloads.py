"""Nothing that a file brings along runs, and a small file that asks for much is refused at once."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from reader_table import READERS, npy, png, table, zipped
from watching import Watch

from assay.data import load_data
from assay.runtime.errors import InputError
from assay.subject import Subject, load
from assay.training.engine import _restore


class Payload:
    """Unpickling this makes the folder ``pwned``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "pwned"

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def joblib_file(payload: Payload) -> bytes:
    buffer = io.BytesIO()
    joblib.dump({"w": payload}, buffer)
    return buffer.getvalue()


def torch_file(payload: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save({"0.weight": payload}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def object_array(payload: Payload) -> bytes:
    return npy(np.array([payload] * 4, dtype=object))


HOSTILE: dict[str, tuple[str, Callable[[Payload], bytes]]] = {
    "a pickle as weights": ("weights-pt", lambda p: pickle.dumps(p)),
    "a pickle of protocol 0": ("weights-pt", lambda p: pickle.dumps({"w": p}, 0)),
    "a torch archive": ("weights-pt", torch_file),
    "an old torch file": ("weights-pt", lambda p: torch_file(p, legacy=True)),
    "a joblib file as weights": ("weights-pt", joblib_file),
    "a joblib file as safetensors": ("weights-safetensors", joblib_file),
    "samples that are objects": ("npz", lambda p: zipped(x=object_array(p), y=npy(np.arange(4)))),
    "labels that are objects": ("npz", lambda p: zipped(x=npy(np.zeros((4, 2))), y=object_array(p))),
    "a pickle as npz": ("npz", lambda p: pickle.dumps(p)),
    "an archive of objects in the store": ("store", lambda p: zipped(section=object_array(p))),
    "a pickle as skops": ("skops", lambda p: pickle.dumps(p)),
    "a joblib file as skops": ("skops", joblib_file),
    "a pickle as an exported program": ("export", lambda p: pickle.dumps(p)),
    "a torch archive as an exported program": ("export", torch_file),
    "a pickle as trajectories": ("trajectories", lambda p: pickle.dumps(p)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_no_payload_runs(case: str, tmp_path: Path) -> None:
    reader, make = HOSTILE[case]
    raw = make(Payload(tmp_path))
    with Watch(tmp_path):
        if reader == "store":
            assert READERS[reader].read(raw, tmp_path) is None
        else:
            with pytest.raises(InputError) as caught:
                READERS[reader].read(raw, tmp_path)
            assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_hostile_checkpoint_of_training_does_not_run(tmp_path: Path) -> None:
    for name, raw in {"p": pickle.dumps(Payload(tmp_path)), "t": torch_file(Payload(tmp_path))}.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(InputError, match="checkpoint"):
            _restore(tmp_path / name, {}, None, "origin")  # type: ignore[arg-type]
    assert not (tmp_path / "pwned").exists()


FACTORIES = {
    "a function of another module": ("assay.runtime.store:os.system", {"command": "touch pwned"}),
    "a function of assay": ("assay.cli:main", {}),
    "a loader": ("assay.subject.load:load_factory", {"text": "antigravity:fly", "trust": [], "data": {}}),
    "a class that makes folders": ("assay.runtime.store:Store", {"root": "pwned"}),
    "a loader of transformers": ("transformers:AutoModel.from_pretrained", {"trust_remote_code": True}),
    "no name": (3, {}),
}


@pytest.mark.parametrize("case", FACTORIES)
@pytest.mark.parametrize("place", ["model", "recipe", "nested"])
def test_a_subject_cannot_name_what_is_no_model(
    case: str, place: str, digits: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomli_w

    from assay.runtime.toml import read_toml

    folder = digits.save(tmp_path / "s")
    spec = dict(zip(("factory", "options"), FACTORIES[case], strict=True))
    path = folder / "subject.toml"
    written = read_toml(path, "it")
    if place == "nested":
        written["model"]["options"]["widths"] = [[spec]]
    else:
        written[place] = spec
    path.write_text(tomli_w.dumps(written))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"expected a network, a trainer or a config|expected 'module:name'"):
        load(folder)
    assert not (tmp_path / "pwned").exists()


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    """An array that is said to be of ``shape`` and holds nothing."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def deflated(size: int) -> bytes:
    """An archive whose array of ``size`` zeros takes a thousandth of that."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            member.write(header((size // 4, 1)))
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))
        archive.writestr("y.npy", npy(np.arange(4)))
    return buffer.getvalue()


def picture(side: int) -> bytes:
    """A PNG that is said to have ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def repeated(rows: int) -> bytes:
    """A table of one picture, said to be there ``rows`` times."""
    buffer = io.BytesIO()
    image = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([png()]))
    pq.write_table(pa.table({"image": image, "label": np.zeros(rows, np.int64)}), buffer)
    return buffer.getvalue()


def rows(count: int) -> bytes:
    """A table of one number, said to be there ``count`` times."""
    sink = io.BytesIO()
    schema = pa.schema([("a", pa.int8()), ("label", pa.int8())])
    with pq.ParquetWriter(sink, schema) as writer:
        part = pa.table({"a": np.zeros(count // 10, np.int8), "label": np.zeros(count // 10, np.int8)}, schema)
        for _ in range(10):
            writer.write_table(part)
    return sink.getvalue()


Y = npy(np.array([0, 1, 0, 1]))
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "10^12 samples": ("npz", lambda: zipped(x=header((10**12, 8)), y=Y)),
    "10^12 empty samples": ("npz", lambda: zipped(x=header((10**12, 0)), y=Y)),
    "10^9 empty samples and labels": ("npz", lambda: zipped(x=header((10**9, 0)), y=header((10**9, 0), "<i8"))),
    "long strings": ("npz", lambda: zipped(x=header((4,), "<U1000000000"), y=Y)),
    "label 10^12": ("npz", lambda: zipped(x=npy(np.zeros((4, 2))), y=npy(np.array([0, 1, 2, 10**12])))),
    "an array without an archive": ("npz", lambda: header((10**12, 8))),
    "a zip bomb": ("npz", lambda: deflated(300 << 20)),
    "a zip bomb as weights": ("weights-pt", lambda: deflated(300 << 20)),
    "a header of 2^60": ("weights-safetensors", lambda: struct.pack("<Q", 2**60) + b"{}"),
    "a tensor of 2^60": (
        "weights-safetensors",
        lambda: (
            b"\x4e" + bytes(7) + b'{"1.weight":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,0]}} '
        ),
    ),
    "60,000 pixels": ("images", lambda: picture(60_000)),
    "11,000 pixels": ("images", lambda: picture(11_000)),
    "10,000 columns": ("parquet", lambda: table(**{f"c{k}": [1] for k in range(10_000)})),
    "10^6 rows": ("parquet", lambda: repeated(10**6)),
    "label 10^12 in a table": ("parquet", lambda: table(image=[png(), png()], label=[0, 10**12])),
    "2 * 10^7 rows of a table": ("table", lambda: rows(2 * 10**7)),
    "a long text beside short ones": ("csv-text", lambda: b"a,label\n" + b"x" * 200_000 + b",0\n" + b"y,1\n" * 5000),
    "label 10^12 of a mapped array": ("mmap", lambda: b"\1" + npy(np.array([0, 1, 2, 10**12]))),
    "10^9 frames": ("ntu", lambda: b"1000000000\n1\n"),
    "a requirement of spaces": ("require", lambda: b"a" + b" " * 100_000 + b"b"),
    "a requirement of brackets": ("require", lambda: b"change(" * 20_000),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_refused_at_once(case: str, tmp_path: Path, capped: None) -> None:
    reader, make = BOMBS[case]
    raw = make()
    begun = time.process_time()
    with pytest.raises(InputError) as caught:
        READERS[reader].read(raw, tmp_path)
    assert time.process_time() - begun < 5
    assert "\n" not in str(caught.value)


@pytest.fixture
def capped() -> object:
    """Two GB of address space more than what is in use."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_model_larger_than_its_weights_is_not_made(digits: Subject, tmp_path: Path, capped: None) -> None:
    path = digits.save(tmp_path / "s") / "subject.toml"
    path.write_text(path.read_text().replace("hidden = 64", "hidden = 100000000"))
    with pytest.raises(InputError, match=r"numbers, model\.safetensors"):
        load(tmp_path / "s")
    path.write_text(path.read_text().replace("hidden = 100000000", "hidden = 64"))
    assert load(tmp_path / "s").name == "digits"


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    plain = {"x": npy(np.zeros((4, 2))), "y": Y}
    (tmp_path / "d" / "d.npz").write_bytes(zipped(**plain, **{"../../out": Y, "/tmp/out": Y}))
    assert len(load_data(f"npz:{tmp_path / 'd' / 'd.npz'}")) == 4
    assert [p.name for p in tmp_path.rglob("*")] == ["d", "d.npz"]
