from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from assay.runtime.errors import InputError
from assay.runtime.store import Store, key_of


def test_round_trip_and_a_damaged_entry_counts_as_missing(tmp_path: Path) -> None:
    store, key = Store(tmp_path), key_of(a=1)
    assert store.get(key) is None
    store.put(key, {"x": np.arange(3), "s": np.array("text")})
    kept = store.get(key)
    assert kept is not None
    assert kept["x"].tolist() == [0, 1, 2]
    assert str(kept["s"]) == "text"
    store.path(key).write_bytes(store.path(key).read_bytes()[:40])
    assert store.get(key) is None
    assert not store.path(key).exists()


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    store, key = Store(tmp_path), key_of(a=2)
    store.path(key).parent.mkdir(parents=True)
    np.savez(store.path(key), x=np.array([{"a": 1}], dtype=object))
    assert store.get(key) is None


def test_the_oldest_entries_go_when_it_is_full(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=30_000)
    keys = [key_of(k=k) for k in range(4)]
    for t, key in enumerate(keys):
        store.put(key, {"x": np.zeros(1250)})
        if store.path(key).exists():
            os.utime(store.path(key), (t, t))
    assert store.get(keys[0]) is None
    assert store.get(keys[3]) is not None


def test_any_damage_to_an_archive_counts_as_missing(tmp_path: Path) -> None:
    store, key, rng = Store(tmp_path), key_of(a=3), np.random.default_rng(0)
    store.put(key, {"x": np.arange(6.0), "s": np.array("text")})
    whole = store.path(key).read_bytes()
    missing = 0
    for _ in range(200):
        raw = bytearray(whole)
        raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
        store.path(key).write_bytes(raw)
        missing += store.get(key) is None
    assert missing > 50


def test_what_a_killed_process_left_is_cleared_and_what_others_write_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(key_of(k=0), {"x": np.zeros(3)})
    left, fresh = (store.path(key_of(k=0)).with_name(n) for n in ("left.tmp", "fresh.tmp"))
    left.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(left, (0, 0))
    store.put(key_of(k=1), {"x": np.zeros(3)})
    assert not left.exists()
    assert fresh.exists()


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="result store"):
        Store(tmp_path / "file" / "sub")
