"""Every reader of files and options, on damaged and hostile input: a result, or one clear line; never anything else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_table import READERS, npy, table, zipped
from watching import Watch

from assay.data import Data
from assay.runtime.errors import AssayError, InputError

LONGEST = 2000  # characters of a refusal
HARNESS = Path(__file__).with_name("fuzz_readers.py")


def reading(name: str, raw: bytes, watch: Watch) -> tuple[object, str | None]:
    """What a reader makes of ``raw``, or the one line with which it refuses it. Anything else fails here."""
    found, said = None, None
    with watch:
        try:
            found = READERS[name].read(raw, watch.folder)
        except AssayError as error:
            said = str(error)
    assert said is None or (said.strip() and "\n" not in said and len(said) < LONGEST), said
    assert not isinstance(found, Data) or sound(found)
    return found, said


def refusal(name: str, raw: bytes, watch: Watch) -> str | None:
    """The line with which a reader refuses ``raw``; None where it reads it."""
    return reading(name, raw, watch)[1]


def sound(data: Data) -> bool:
    """Whether data that were read can be used: finite samples, each with a label of a class and an index."""
    same = len(data.x) == len(data.y) == len(data.index) > 0
    return same and bool(data.x.isfinite().all()) and 0 <= int(data.y.min()) <= int(data.y.max()) < len(data.classes)


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    return Watch(tmp_path_factory.mktemp("reading"))


EDITS = st.lists(
    st.tuples(st.sampled_from(("flip", "cut", "drop", "repeat", "insert")), st.floats(0, 1), st.binary(max_size=12)),
    min_size=1,
    max_size=4,
)


def edited(raw: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """``raw`` with bits flipped, its end cut, a piece dropped or repeated, or bytes put in."""
    for kind, where, new in edits:
        at = int(where * len(raw))
        raw = {
            "flip": raw[:at] + bytes(b ^ 1 << len(new) % 8 for b in raw[at : at + 1]) + raw[at + 1 :],
            "cut": raw[:at],
            "drop": raw[:at] + raw[at + 1 + len(new) :],
            "repeat": raw[:at] + raw[at : at + 40] * (1 + len(new)) + raw[at:],
            "insert": raw[:at] + new + raw[at:],
        }[kind]
    return raw


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name: str, watch: Watch) -> None:
    seeds = READERS[name].seeds()
    assert refusal(name, seeds[0], watch) is None
    for raw in (b"", *seeds[1:]):
        refusal(name, raw, watch)

    @settings(max_examples=12)
    @given(st.sampled_from(seeds), EDITS)
    def damaged(raw: bytes, edits: list[tuple[str, float, bytes]]) -> None:
        refusal(name, edited(raw, edits), watch)

    damaged()


VALUES = st.sampled_from(
    [0, -1, 2**31, 2**63, -(2**63), 10**19, "1e999", "nan", "..", "../../x", "\0", "\u202e", "9" * 5000, "²", "0x1", ""]
)
HOSTILE_TOML = {
    "nested arrays": "a = " + "[" * 50_000,
    "nested tables": "a = " + "{b=" * 50_000,
    "a key of many parts": ".".join("a" * 80_000) + " = 1",
    "a number of many digits": "limit = " + "9" * 100_000,
    "the same key twice": "limit = 1\nlimit = 2",
    "no text": "\ud800",
}


@pytest.mark.parametrize("case", HOSTILE_TOML)
@pytest.mark.parametrize("name", ["config", "policy", "subject"])
def test_hostile_toml_is_refused(case: str, name: str, watch: Watch) -> None:
    READERS[name].seeds()  # what they are made with is made before the watch begins
    with watch, pytest.raises(InputError, match="TOML"):
        READERS[name].read(HOSTILE_TOML[case].encode("utf-8", "surrogatepass"), watch.folder)


@settings(max_examples=40)
@given(
    st.sampled_from(["limit", "seed", "json", "trust", "with", "out", "forget", "only", "subject", "config"]),
    st.one_of(VALUES, st.booleans(), st.floats(), st.lists(VALUES, max_size=3), st.dictionaries(st.just("a"), VALUES)),
)
def test_any_value_of_a_configuration_is_taken_or_refused(watch: Watch, key: str, value: object) -> None:
    import tomli_w

    try:
        text = tomli_w.dumps({key: value})
    except ValueError:  # a number of thousands of digits has no text either
        return
    values, line = reading("config", text.encode("utf-8", "surrogatepass"), watch)
    assert line or isinstance(values, list)


NUMBERS = [
    np.zeros((4, 0), np.float32), np.zeros(4, np.complex64), np.zeros(4, "M8[s]"), np.zeros((4, 1, 2), np.float16),
    np.full((4, 2), np.nan), np.full((4, 2), np.inf), np.full((4, 2), 1e300), np.array(["a"] * 4), np.array(5),
    np.zeros(4, [("a", "f4")]), np.array([2**40] * 4), np.array([-1] * 4), np.zeros((0, 3)), np.zeros(4, bool),
    np.array([1, 2, 3], object),
]  # fmt: skip
WHOLE = {"x": np.zeros((4, 1, 2, 2), np.float32), "y": np.array([0, 1, 0, 1])}


@pytest.mark.parametrize("name", ["x", "y", "classes", "bounds", "index", "groups", "../../x"])
@pytest.mark.parametrize("kind", range(len(NUMBERS)))
def test_arrays_of_odd_kinds_are_read_or_refused(name: str, kind: int, watch: Watch) -> None:
    data, line = reading("npz", zipped(**{k: npy(a) for k, a in {**WHOLE, name: NUMBERS[kind]}.items()}), watch)
    assert line or isinstance(data, Data)


LISTS = [[1, 2], [1.5, None], ["a", "b"], [b"x", b"y"], [[1], [2, 3]], [{"a": 1}] * 2, [None, None], [True, False], []]


PAIRS = [(image, label) for image in LISTS for label in LISTS if len(image) == len(label)]


@pytest.mark.parametrize(("image", "label"), PAIRS)
def test_tables_of_odd_columns_are_refused(image: list[object], label: list[object], watch: Watch) -> None:
    assert refusal("parquet", table(image=image, label=label, more=label), watch)


def test_a_short_run_of_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    """A fixed share of ``make fuzz``, with its limits of memory and time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("npy", "subject"):
        command = [sys.executable, str(HARNESS), name, "-runs=300"]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert ended.returncode == 0, ended.stderr[-2000:]
    assert list(tmp_path.iterdir()) == []


def test_the_fuzzer_sees_what_it_must_not_miss(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    with pytest.raises(AssertionError, match="touched"), watch:
        (tmp_path.parent / "outside").write_text("x")
    with pytest.raises(AssertionError, match=r"os\.system"), watch:
        os.system("true")
    with watch:
        (tmp_path / "inside").write_text("x")
