from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from assay.data import Data, load_data
from assay.runtime.errors import InputError


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_digits_splits_are_disjoint_and_whole() -> None:
    train, test = load_data("digits:train"), load_data("digits")
    assert (len(train), len(test)) == (1000, 797)
    assert not torch.isin(train.index, test.index).any()
    assert train.bounds == (0.0, 1.0)


def test_folder_parquet_and_npz_agree(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    labels = np.array([0, 0, 0, 1, 1, 1])
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "set" / "ab"[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.png").write_bytes(png(image))
    cells = [{"bytes": png(i), "path": ""} for i in images]
    pq.write_table(pa.table({"img": cells, "label": labels, "groups": labels * 2}), tmp_path / "set.parquet")
    np.savez(tmp_path / "set.npz", x=images.transpose(0, 3, 1, 2), y=labels)
    folder, parquet, npz = (
        load_data(s) for s in (f"folder:{tmp_path}/set", f"parquet:{tmp_path}/set.parquet", f"npz:{tmp_path}/set.npz")
    )
    assert folder.x.equal(parquet.x)
    assert folder.x.equal(npz.x)
    assert folder.y.equal(npz.y)
    assert folder.classes == ("a", "b")
    assert parquet.fields["groups"].tolist() == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_real_data_in_the_layout_of_the_hub(name: str, real_data: Path) -> None:
    data = load_data(f"{name}:test")
    assert len(data) == 10_000
    assert len(data.classes) == 10
    assert data.fields["cv_probs"].shape == (10_000, 10)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("digits:tset", "did you mean 'test'"),
        ("npz:", "expected npz:PATH"),
        ("npz:/nowhere.npz", "does not exist"),
        ("folder:/dev", "expected one|sub-folder|cannot be decoded|empty"),
    ],
)
def test_a_bad_source_is_named(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(source)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PK\x03\x04garbage", b"\x80\x04."])
@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_an_unreadable_file_is_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"bad.{kind}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="bad"):
        load_data(f"{kind}:{path}")


def test_a_pickle_in_an_npz_is_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", x=np.array([{"a": 1}], dtype=object), y=np.zeros(1, int))
    with pytest.raises(InputError, match="plain arrays"):
        load_data(f"npz:{tmp_path}/p.npz")


def arrays(**changes: object) -> dict[str, object]:
    return {"x": torch.rand(4, 1, 2, 2), "y": torch.tensor([0, 1, 0, 1]), "classes": ("a", "b"), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.rand(0, 1, 2, 2), "y": torch.zeros(0, dtype=torch.int64)}, "empty"),
        ({"x": torch.full((4, 1, 2, 2), float("nan"))}, "NaN"),
        ({"x": torch.full((4, 1, 2, 2), 3.0)}, "spans"),
        ({"y": torch.tensor([0, 1, 0, 2])}, "labels span"),
        ({"y": torch.tensor([0, 1, 0, -1])}, "labels span"),
        ({"y": torch.rand(4)}, "expected int64"),
        ({"y": torch.tensor([0, 1])}, "rows"),
        ({"classes": ("a",)}, "at least two"),
        ({"classes": ("a", "b", "a")}, "class 'a' occurs twice"),
        ({"x": torch.zeros(4, 1, 2, 2, dtype=torch.uint8)}, "float"),
        ({"fields": {"groups": torch.zeros(3)}}, "groups"),
    ],
)
def test_bad_data_say_what_and_where(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Data(**arrays(**changes))  # type: ignore[arg-type]


def test_subsets_keep_the_names_of_samples() -> None:
    data = load_data("digits")
    a, b = data.split(0.25, seed=3)
    assert sorted([*a.index.tolist(), *b.index.tolist()]) == data.index.tolist()
    assert data.without(a.index).hash == b.hash
    assert data.limit(10, seed=1).index.equal(data.limit(10, seed=1).index)
