"""Every form of a data source gives what its file says, or one line that names what is wrong."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import assay
from assay.data import Data
from assay.data.files import open_data, read_text
from assay.data.tabular import TabularData
from assay.data.text import TextData, decoded
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.subject import Subject, load

TABLE = "city,age,income,label\nRome,30,1.5,yes\nOslo,41,2.25,no\nRome,22,-3,no\n"
TEXTS = [("good, very good", "pos"), ("naïve 😀 plot", "neg"), ("bad", "neg")]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return path


def test_a_csv_is_a_table(table: Path) -> None:
    data = open_data(f"csv:{table}#integer=age&immutable=income")
    assert isinstance(data, TabularData)
    assert data.x.tolist() == [[1, 30, 1.5], [0, 41, 2.25], [1, 22, -3]]
    assert data.x.dtype == torch.float32
    assert data.columns == ("city", "age", "income")
    assert data.categories == (("Oslo", "Rome"), (), ())
    assert (data.y.tolist(), data.classes) == ([1, 0, 0], ("no", "yes"))
    assert data.ranges == ((0, 1), (22, 41), (-3, 2.25))
    assert data.immutable == (0, 2)  # codes have no distance: a column of names stays too
    assert data.integer == (0, 1)
    assert data.bounds == (-3, 41)
    part = data[torch.tensor([0, 2])]
    assert isinstance(part, TabularData)
    assert part.ranges == data.ranges


def test_what_is_marked_is_part_of_the_data(table: Path) -> None:
    plain, marked = assay.load_data(f"csv:{table}"), open_data(f"csv:{table}#immutable=age")
    assert plain.x.equal(marked.x)
    assert plain.hash != marked.hash


@pytest.mark.parametrize("kind", ["csv", "npz", "mmap", "folder", "hf"])
def test_draws_do_not_depend_on_where_a_file_lies(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for place in (tmp_path / "one", tmp_path / "another#2"):
        (place / "set" / "cat").mkdir(parents=True)
        (place / "set" / "dog").mkdir()
        (place / "set.csv").write_text("a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(40)))
        x, y = np.arange(40, dtype=np.float32).reshape(40, 1) / 40, np.arange(40) % 2
        np.savez(place / "set.npz", x=x, y=y)
        np.save(place / "set" / "x.npy", x)
        np.save(place / "set" / "y.npy", y)
        for i in range(40):
            Image.new("RGB", (2, 2), (i, i, i)).save(place / "set" / ("cat", "dog")[i % 2] / f"{i:02}.png")
        file = {"csv": "set.csv", "npz": "set.npz", "hf": "set.csv"}.get(kind, "set")
        found.append(open_data(f"{kind}:{place / file}"))
        monkeypatch.chdir(place)
        found.append(open_data(f"{kind}:{file}"))
    assert len({(d.name, tuple(d.limit(8, seed=1).index.tolist())) for d in found}) == 1
    assert str(tmp_path) not in found[0].name


def pictures(folder: Path, *drawn: Image.Image) -> Path:
    """A folder of two classes that holds each picture once in either."""
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for k, picture in enumerate(drawn):
            picture.save(folder / name / f"{k}.png")
    return folder


def test_palettes_and_bits_become_what_they_show(tmp_path: Path) -> None:
    color = Image.new("RGB", (2, 1), (250, 130, 0))
    color.putpixel((1, 0), (0, 40, 200))
    palette, bits = color.convert("P", palette=Image.Palette.ADAPTIVE), Image.new("1", (2, 1), 1)
    clear, grey = palette.copy(), Image.new("L", (2, 1), 90)
    clear.info["transparency"] = 0
    shown = torch.tensor([[250, 130, 0], [0, 40, 200]]).T.reshape(3, 1, 2) / 255
    cases = {
        "a palette": ((palette,), [shown]),
        "one of them clear": ((color, clear, palette), [shown] * 3),
        "bits beside colours": ((color, bits), [shown, torch.ones(3, 1, 2)]),
        "bits": ((bits,), [torch.ones(1, 1, 2)]),
        "greys": (
            (grey, grey.convert("P"), grey.convert("LA"), bits),
            [torch.full((1, 1, 2), 90 / 255)] * 3 + [torch.ones(1, 1, 2)],
        ),
        "a palette of greys alone": ((grey.convert("P"),), [torch.full((3, 1, 2), 90 / 255)]),
    }
    for name, (drawn, expected) in cases.items():
        data = assay.load_data(f"folder:{pictures(tmp_path / name, *drawn)}")
        torch.testing.assert_close(data.x, torch.stack(expected * 2), msg=name)


@pytest.mark.parametrize("mode", ["CMYK", "I;16"])
def test_pictures_of_inks_and_wide_numbers_are_refused(mode: str, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        kind = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (4, 4)).save(tmp_path / "set" / name / f"a.{kind}")
    raw = (tmp_path / "set" / "cat" / f"a.{kind}").read_bytes()
    pq.write_table(pa.table({"image": [raw, raw], "label": [0, 1]}), tmp_path / "set.parquet")
    for source in (f"folder:{tmp_path}/set", f"parquet:{tmp_path}/set.parquet", f"hf:{tmp_path}/set"):
        with pytest.raises(InputError, match=rf"image .* is of mode {mode}; expected L, RGB, RGBA"):
            open_data(source)
    with pytest.raises(InputError, match=rf"is of mode {mode}"):
        assay.data.load_data(f"folder:{tmp_path}/set")


def test_the_room_and_the_package_read_the_same_sources(table: Path) -> None:
    assert assay.data.load_data is assay.load_data
    assert {"csv", "hf", "npz", "ntu"} <= {*assay.data.SOURCES}


def test_texts_in_fields_are_codes(tmp_path: Path) -> None:
    x, y, groups = np.zeros((3, 1, 1, 1), np.float32), np.array([0, 1, 0]), np.array(["b", "a", "b"])
    np.savez(tmp_path / "set.npz", x=x, y=y, groups=groups, note=np.array("of one row"))
    (tmp_path / "set").mkdir()
    for name, array in {"x": x, "y": y, "groups": groups}.items():
        np.save(tmp_path / "set" / f"{name}.npy", array)
    cells = {"image": [png(0)] * 3, "label": y, "groups": groups}
    pq.write_table(pa.table(cells), tmp_path / "set.parquet")
    for source in (f"npz:{tmp_path}/set.npz", f"mmap:{tmp_path}/set", f"parquet:{tmp_path}/set.parquet"):
        fields = open_data(source).fields
        assert {k: v.tolist() for k, v in fields.items()} == {"groups": [1, 0, 1]}


def test_whole_numbers_that_float32_rounds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text(f"id,size,label\n5,0.5,0\n{2**24 + 1},123456789.5,1\n")
    with pytest.warns(UserWarning, match=r"column 'id', row 2: 16777217 is taken as 16777216"):
        open_data(f"csv:{path}")
    path.write_text(f"id,label\n5,0\n{2**25},1\n")
    with pytest.raises(InputError, match=r"'id' is marked integer and holds 33554432; expected up to 16777216"):
        open_data(f"csv:{path}#integer=id")
    path.write_text(f"id,label\n{-(2**24)},0\n{2**24},1\n")
    assert open_data(f"csv:{path}#integer=id").x.abs().tolist() == [[2**24]] * 2


def test_the_label_is_named_or_known_or_last(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("target,a,b\n0,1,2\n1,3,4\n")
    (tmp_path / "b.csv").write_text("a,b,kind\n1,2,-1\n3,4,1\n")
    assert open_data(f"csv:{tmp_path}/a.csv").columns == ("a", "b")  # type: ignore[attr-defined]
    last = open_data(f"csv:{tmp_path}/b.csv")
    assert (last.y.tolist(), last.classes) == ([0, 1], ("-1", "1"))
    assert open_data(f"csv:{tmp_path}/a.csv#label=b").y.tolist() == [2, 4]


def test_another_table_lends_its_codes(table: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("city,age,income,label\nRome,50,1,no\n")
    data = open_data(f"csv:{tmp_path}/test.csv#like={table}")
    assert (data.x[0].tolist(), data.y.tolist(), data.classes) == ([1, 50, 1], [0], ("no", "yes"))
    (tmp_path / "one.csv").write_text("city,age,income,label\nOslo,50,1,no\nOslo,50,1,yes\n")
    with pytest.raises(InputError, match=r"city.*row 1: 'Rome'; expected one of Oslo"):
        open_data(f"csv:{tmp_path}/test.csv#like={tmp_path}/one.csv")


BAD = {
    "missing number": ("a,label\n1,0\n,1\n", "", r"column 'a', row 2: no value"),
    "missing name": ("a,label\nx,0\n,1\n", "", r"column 'a', row 2: no value"),
    "missing label": ("a,label\n1,0\n2,\n", "", r"column 'label', row 2: no value"),
    "infinite": ("a,label\n1,0\ninf,1\n", "", r"column 'a', row 2: inf"),
    "ragged": ("a,label\n1,0\n2\n", "", r"Expected 2 columns"),
    "no rows": ("a,label\n", "", r"no rows"),
    "nothing": ("", "", r"cannot be read"),
    "label alone": ("label\n1\n0\n", "", r"no column besides 'label'"),
    "broken label": ("a,label\n1,0.5\n2,1\n", "", r"column 'label', row 1: 0.5; expected a class"),
    "one class": ("a,label\n1,0\n2,0\n", "", r"has 1 class"),
    "another encoding": ("a,label\ncaf\xe9,0\nb,1\n", "", r"column 'a' is not UTF-8"),
    "dates": ("a,label\n2020-01-01,0\n2020-01-02,1\n", "", r"holds date; expected numbers, or texts"),
    "no such label": ("a,label\n1,0\n2,1\n", "#label=lable", r"did you mean 'label'"),
    "no such column": ("age,label\n1,0\n2,1\n", "#immutable=agee", r"did you mean 'age'"),
    "no such option": ("a,label\n1,0\n2,1\n", "#lable=a", r"did you mean 'label'"),
    "option without a value": ("a,label\n1,0\n2,1\n", "#label", r"option 'label' has no value"),
    "no integer": ("a,label\n1,0\n2.5,1\n", "#integer=a", r"row 2, column 'a'.*2.5; expected a whole number"),
    "no text": ("a,label\n1,0\n2,1\n", "#text=a", r"column 'a', row 1: holds 1; expected a text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_line(case: str, tmp_path: Path) -> None:
    content, options, message = BAD[case]
    (tmp_path / "bad.csv").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=message) as caught:
        open_data(f"csv:{tmp_path}/bad.csv{options}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cvs:x.csv", "did you mean 'csv'"),
        ("csv:", "expected csv:PATH"),
        ("csv:/nowhere.csv", "no such file; expected a CSV"),
        ("jsonl:/nowhere.jsonl", "no such file"),
        ("mmap:/nowhere", "is no folder"),
        ("hf:/nowhere/at/all", "does not exist"),
        ("hf:x#limit=no", "limit=no"),
    ],
)
def test_a_bad_source_says_so(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(source)


def written(folder: Path, kind: str) -> Path:
    """The texts as a file of one kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    path, rows = folder / f"texts.{kind}", [{"text": t, "label": k} for t, k in TEXTS]
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    elif kind == "csv":
        csv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_texts_come_back(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    data = open_data(f"{kind}:{path}#text=text")
    assert isinstance(data, TextData)
    assert decoded(data.x) == [t for t, _ in TEXTS]
    assert decoded(data.x[1:2]) == [TEXTS[1][0]]
    assert [data.classes[k] for k in data.y] == [k for _, k in TEXTS]
    assert read_text(path) == ([t for t, _ in TEXTS], [1, 0, 0], ("neg", "pos"))


def test_broken_json_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    for content, message in (('{"a": 1, "label": 0}\n{"a"', "line 2"), ('{"a": 1}\n{"b": 2}', "line 2"), ("", "empty")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            open_data(f"jsonl:{path}")


def test_a_saved_table_is_the_same_table(table: Path, tmp_path: Path) -> None:
    data = open_data(f"csv:{table}#integer=age&immutable=income")
    model = _linear(3)
    Subject(model, data, holdout=data, name="table").save(tmp_path / "subject")
    again = load(tmp_path / "subject").test
    assert isinstance(again, TabularData)
    assert (again.columns, again.categories) == (("city", "age", "income"), (("Oslo", "Rome"), (), ()))
    assert again.hash == data.hash
    texts = open_data(f"jsonl:{written(tmp_path, 'jsonl')}#text=text")
    Subject(_linear(texts.shape[0]), texts, holdout=texts).save(tmp_path / "texts")
    assert isinstance(load(tmp_path / "texts").test, TextData)


def _linear(d: int) -> torch.nn.Module:
    return MLP((d,), 2)


def test_tables_that_disagree_are_refused(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table_model_for_tests.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Linear(3, 2)\n"
    )
    (tmp_path / "train.csv").write_text(TABLE.replace("Oslo", "Bern"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"names in column 'city'.*#like=FILE"):
        load("table_model_for_tests:make", data=f"csv:{table}", train=f"csv:{tmp_path}/train.csv")
    like = f"csv:{tmp_path}/train.csv#like={table}"
    with pytest.raises(InputError, match="'Bern'; expected one of Oslo, Rome"):
        load("table_model_for_tests:make", data=f"csv:{table}", train=like)


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (level, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    return tmp_path


def test_hugging_face_sets_of_this_machine(cached: Path, table: Path) -> None:
    import datasets

    cells = {"review": [t for t, _ in TEXTS], "label": [1, 0, 0]}
    kinds = datasets.Features({"review": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    saved = datasets.DatasetDict({"test": datasets.Dataset.from_dict(cells, features=kinds)})
    saved.save_to_disk(cached / "saved")
    data = open_data(f"hf:{cached}/saved:test#text=review")
    assert isinstance(data, TextData)
    assert (decoded(data.x), data.y.tolist(), data.classes) == (cells["review"], [1, 0, 0], ("neg", "pos"))
    assert len(open_data(f"hf:{cached}/saved#text=review&limit=2")) == 2
    Subject(_linear(data.shape[0]), data, holdout=data).save(cached / "texts")
    assert isinstance(load(cached / "texts").test, TextData)
    with pytest.raises(InputError, match="splits test; expected 'train'"):
        open_data(f"hf:{cached}/saved:train#text=review")
    streamed = open_data(f"hf:{table}#limit=2&immutable=age")
    assert isinstance(streamed, TabularData)
    assert (len(streamed), streamed.immutable) == (2, (0, 1))


def test_hugging_face_images_agree_with_the_folder(cached: Path) -> None:
    for k, name in enumerate(("cat", "dog")):
        (cached / "images" / name).mkdir(parents=True)
        for j in range(2):
            (cached / "images" / name / f"{j}.png").write_bytes(png(40 * k + j))
    ours, theirs = open_data(f"folder:{cached}/images"), open_data(f"hf:{cached}/images")
    assert ours.x.equal(theirs.x)
    assert ours.y.equal(theirs.y)
    assert theirs.classes == ("cat", "dog")


def test_no_script_beside_the_files_is_run(cached: Path) -> None:
    folder = cached / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(InputError, match="holds no parquet"):
        open_data(f"hf:{folder}")


def test_hugging_face_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'assay\[hf\]'"):
        open_data("hf:someone/something")


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.random((500, 3, 4), dtype=np.float32))
    np.save(tmp_path / "y.npy", rng.integers(0, 3, 500).astype(np.int8))
    np.save(tmp_path / "groups.npy", rng.integers(0, 2, 500))
    return tmp_path


def test_mapped_arrays_are_the_arrays(arrays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    from assay.data import mapped

    monkeypatch.setattr(mapped, "SMALL", 1000)
    monkeypatch.setattr(mapped, "BLOCK", 700)
    data = open_data(f"mmap:{arrays}")
    held = Data(
        torch.from_numpy(np.load(arrays / "x.npy")), data.y, data.classes, data.bounds, data.name, fields=data.fields
    )
    assert data.hash == held.hash
    for part, other in zip(data.split(0.2, seed=3), held.split(0.2, seed=3), strict=True):
        assert isinstance(part, mapped.MappedData)
        assert part.hash == other.hash
        assert part.fields["groups"].equal(other.fields["groups"])
        moved = pickle.loads(pickle.dumps(part))  # as to a worker process: by name, not by content
        assert moved.hash == part.hash
        assert len(pickle.dumps(part)) < part.x.numel() * 4
    few = data.limit(5, seed=1)
    assert type(few) is Data
    assert few.hash == held.limit(5, seed=1).hash
    assert type(data.with_x(torch.zeros(500, 2))) is Data


def test_bytes_become_shares_in_a_file(arrays: Path) -> None:
    x = np.arange(500 * 12, dtype=np.uint8).reshape(500, 12)
    np.save(arrays / "x.npy", x)
    assert open_data(f"mmap:{arrays}").x.equal(torch.from_numpy(x).float() / 255)


def test_bad_mapped_arrays_are_one_line(arrays: Path) -> None:
    hole = np.load(arrays / "x.npy")
    hole[3, 0, 0] = np.nan
    cases = (
        ("x", hole, "NaN"),
        ("x", np.array([{}], object), "cannot be read"),
        ("x", np.zeros((4, 2), np.float32), "expected 4, one a sample"),
        ("y", np.zeros(500), "expected integer labels"),
    )
    for name, content, message in cases:
        kept = (arrays / f"{name}.npy").read_bytes()
        np.save(arrays / f"{name}.npy", content, allow_pickle=True)
        with pytest.raises(InputError, match=message):
            open_data(f"mmap:{arrays}")
        (arrays / f"{name}.npy").write_bytes(kept)
    (arrays / "y.npy").unlink()
    with pytest.raises(InputError, match=r"expected x.npy and y.npy"):
        open_data(f"mmap:{arrays}")


def test_separators_inside_json_texts_end_no_line(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\u2029d", "e\x85f"]
    lines = [json.dumps({"text": t, "label": k % 2}, ensure_ascii=False) for k, t in enumerate(texts)]
    (tmp_path / "t.jsonl").write_bytes("\r\n".join(lines).encode())
    assert decoded(open_data(f"jsonl:{tmp_path}/t.jsonl#text=text").x) == texts


def test_a_column_that_occurs_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,a,label\n1,2,3,0\n4,5,6,1\n")
    with pytest.raises(InputError, match="column 'a' occurs twice"):
        open_data(f"csv:{tmp_path}/t.csv")
