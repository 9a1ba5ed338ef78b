"""Bad input of every kind ends with exit code 2 and one line that says what, where and what was expected."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli_processes import MAIN, Cli, Ran, start

QUICK = ("audit", "--only", "accuracy", "--limit", "60")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder of damaged and impossible files."""
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 1, 8, 8), dtype=np.float32), np.arange(40) % 10
    hole = x.copy()
    hole[3, 0, 0, 0] = np.nan
    names = np.array(list("0123456789"))
    arrays = {
        "nan": {"x": hole, "y": y},
        "one": {"x": x, "y": np.zeros(40, int)},
        "range": {"x": x, "y": y, "classes": names[:5]},
        "negative": {"x": x, "y": y - 1, "classes": names},
        "short": {"x": x, "y": y[:39]},
        "scalar": {"x": x, "y": np.array(3)},
        "float": {"x": x, "y": y.astype(float)},
        "nox": {"y": y},
        "size": {"x": rng.random((40, 1, 9, 9), dtype=np.float32), "y": y},
        "bounds": {"x": x, "y": y, "bounds": np.array([0.0, 0.5])},
        "bound": {"x": x, "y": y, "bounds": np.array(1.0)},
        "few": {"x": x, "y": y % 3, "classes": np.array(list("abc"))},
        "empty": {"x": x[:0], "y": y[:0], "classes": names},
        "good": {"x": x, "y": y},
    }
    for name, content in arrays.items():
        np.savez(root / f"{name}.npz", **content)
    np.savez(root / "object.npz", x=np.array([{}], dtype=object), y=y[:1])
    (root / "corrupt.npz").write_bytes((root / "good.npz").read_bytes()[:300])
    (root / "text.npz").write_text("no archive")
    (root / "bad.toml").write_text("policy = ")
    (root / "bare").mkdir()
    for name, old, new in (
        ("lost", "[data.test]", "[data.tost]"),
        ("typed", 'access = "WEIGHTS"', "access = 4"),
        ("broken", 'name = "digits"', "name = "),
        ("layout", "[model]", "[mode]"),
    ):
        (root / name).mkdir()
        for file in folder.iterdir():
            (root / name / file.name).write_bytes(file.read_bytes())
        table = root / name / "subject.toml"
        assert old in table.read_text()
        table.write_text(table.read_text().replace(old, new, 1))
    (root / "weights").mkdir()
    for file in folder.iterdir():
        (root / "weights" / file.name).write_bytes(file.read_bytes())
    (root / "weights" / "model.safetensors").write_bytes(b"\x08\x00")
    (root / "rude_module_for_tests.py").write_text(
        "def fails():\n    raise KeyError('x')\ndef needs(size):\n    return size\ndef number():\n    return 3\n"
    )
    (root / "unparsable_module_for_tests.py").write_text("def (\n")
    return root


BAD = {
    "unknown subject": ("audit digts", "unknown subject 'digts'; did you mean 'digits'?"),
    "absent folder": ("audit no/such/folder", "no such folder"),
    "folder without a subject": ("audit {f}/bare", "holds no subject.toml"),
    "subject without test data": ("audit {f}/lost", "expected the layout assay/1"),
    "subject with a wrong value": ("audit {f}/typed", "expected the layout assay/1"),
    "subject that is no TOML": ("audit {f}/broken", "not valid TOML"),
    "subject without a model": ("audit {f}/layout", "'factory' is missing"),
    "damaged weights": ("audit {f}/weights", "cannot be read"),
    "absent module": ("audit no_such_module_here:make", "cannot import"),
    "absent factory": ("audit assay.nets:Nothing", "unknown name in assay.nets"),
    "factory that needs options": ("audit rude_module_for_tests:needs", "expected a function without arguments"),
    "factory that raises": ("audit rude_module_for_tests:fails", "KeyError"),
    "factory of a number": ("audit rude_module_for_tests:number", "gives int"),
    "module that does not parse": ("audit unparsable_module_for_tests:make", "SyntaxError"),
    "unknown option": ("audit --bogus", "No such option: --bogus"),
    "unknown command": ("adit", "No such command 'adit'"),
    "no integer": ("audit --limit many", "Invalid value for '--limit'"),
    "too many words": ("audit digits digits", "unexpected extra argument"),
    "no method": ("repair digits", "Missing option '--with'"),
    "unknown profile": ("audit --profile quik", "did you mean 'quick'?"),
    "unknown property": ("audit --only acuracy", "did you mean 'accuracy'?"),
    "absent data": ("audit --data npz:{f}/absent.npz", "does not exist"),
    "unknown data": ("audit --data digitz", "unknown data source"),
    "data without a path": ("audit --data npz:", "expected npz:PATH"),
    "empty data option": ("audit --data=", "unknown data source"),
    "corrupt data": ("audit --data npz:{f}/corrupt.npz", "cannot be read"),
    "text for data": ("audit --data npz:{f}/text.npz", "cannot be read"),
    "pickled data": ("audit --data npz:{f}/object.npz", "cannot be read"),
    "NaN data": ("audit --data npz:{f}/nan.npz", "1 samples hold NaN"),
    "one class": ("audit --data npz:{f}/one.npz", "has 1 class"),
    "labels out of range": ("audit --data npz:{f}/range.npz", "labels span [0, 9]; expected 0 to 4"),
    "negative labels": ("audit --data npz:{f}/negative.npz", "labels span [-1, 8]"),
    "too few labels": ("audit --data npz:{f}/short.npz", "y has 39 rows"),
    "a scalar for labels": ("audit --data npz:{f}/scalar.npz", "expected samples and labels"),
    "labels that are no integers": ("audit --data npz:{f}/float.npz", "expected integer labels"),
    "no inputs": ("audit --data npz:{f}/nox.npz", "expected arrays 'x' and 'y'"),
    "inputs of another size": ("audit --data npz:{f}/size.npz", "samples of shape (1, 8, 8); expected (1, 9, 9)"),
    "inputs out of bounds": ("audit --data npz:{f}/bounds.npz", "expected values in [0.0, 0.5]"),
    "one bound": ("audit --data npz:{f}/bound.npz", "expected samples and labels"),
    "classes of other names": ("audit --data npz:{f}/few.npz", "expected a, b, c, as in 'npz:few.npz'"),
    "no samples": ("audit --data npz:{f}/empty.npz", "is empty"),
    "a folder for npz": ("audit --data npz:{f}", "cannot be read"),
    "damaged training data": ("audit --train npz:{f}/corrupt.npz", "cannot be read"),
    "unwritable out": ("audit --out {f}/good.npz/out", "expected a folder that can be written"),
    "a file for out": ("audit --out {f}/good.npz", "expected a folder that can be written"),
    "bad requirement": ("audit --require accuracy", "--require: cannot read 'accuracy'"),
    "empty requirement": ("audit --require=", "--require: cannot read ''"),
    "absent policy": ("audit --require {f}/absent.toml", "No such file"),
    "bad policy": ("audit --require {f}/bad.toml", "not valid TOML"),
    "a requirement beyond the numbers": ("audit --require accuracy.top1<=1e400", "'1e400' is too large"),
    "no property": ("audit --only ,", "--only ','; expected at least one property"),
    "bad device": ("audit --device gpu", "--device 'gpu'"),
    "device that holds no data": ("audit --device meta", "--device 'meta'"),
    "no jobs": ("audit --jobs 0", "jobs=0"),
    "unknown executor": ("audit --on rai", "did you mean 'ray'?"),
    "limit 0": ("audit --limit 0", "limit=0"),
    "negative limit": ("audit --limit -3", "limit=-3"),
    "unknown method": ("repair digits --with compress.Magnitud", "did you mean 'MagnitudePruning'"),
    "unknown room": ("repair digits --with compres.Magnitude", "did you mean 'compress'"),
    "method of another room": ("repair digits --with attacks.trades", "did you mean 'defenses.TRADES'"),
    "no room": ("repair digits --with Magnitude", "expected ROOM.METHOD"),
    "unknown method option": ("repair digits --with calibrate.TemperatureScaling:nope=1", "unknown option"),
    "option without a value": ("repair digits --with calibrate.TemperatureScaling:nope", "expected key=value"),
    "a method that repairs nothing": ("repair digits --with attacks.PGD", "expected a method that repairs"),
    "forget without a method that forgets": (
        "repair digits --with calibrate.TemperatureScaling --forget class=3",
        "no method of the chain forgets",
    ),
    "no seeds": ("repair digits --with calibrate.TemperatureScaling --seeds 0", "seeds=0"),
    "one subject to compare": ("compare digits", "expected at least two"),
    "nothing to compare": ("compare", "Missing argument"),
    "another test set": ("", "expected the same"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    case: str, cli: Cli, files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, said = BAD[case]
    monkeypatch.syspath_prepend(str(files))
    if case == "another test set":
        from dataclasses import replace

        import assay

        given = assay.load(folder)
        replace(given, test=given.test[:50]).save(files / "other")
        text = f"compare {folder} {files / 'other'}"
    words = text.replace("{f}", str(files)).split()
    if words[0] in ("audit", "repair", "compare") and "--only" not in words and case != "no method":
        words += ["--only", "accuracy"] + ([] if "--limit" in words or words[0] == "compare" else ["--limit", "60"])
    ran = cli(*words)
    assert ran.code == 2
    assert said in ran.complaint()
    assert ran.out == ""


# No file may grow past 1 KiB: writing fails in the middle, as on a full disk.
TINY_FILES = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n{MAIN}"


def test_a_store_that_fills_up_is_one_line(folder: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "audit", folder, *QUICK[1:], code=TINY_FILES)
    out, err = process.communicate(timeout=300)
    ran = Ran(process.returncode, out, err)
    assert ran.code == 2
    assert "result store" in ran.complaint()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_disk_that_fills_up_at_the_end_is_one_line(
    cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    assert cli("audit", folder, *QUICK[1:], "--out", out).code == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        ran = cli("audit", folder, *QUICK[1:], "--json", "--out", out)
    assert ran.code == 2
    assert "No space left" in ran.complaint()
    assert ran.out == ""
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_an_existing_report_is_whole_at_every_moment(
    cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert cli("audit", folder, *QUICK[1:], "--out", out).code == 0
    first = json.loads((out / "report.json").read_text())
    move, seen = os.replace, []

    def watched(source: str, target: str) -> None:
        if Path(target).parent == out:
            assert Path(source).parent == out
            seen.append(json.loads((out / "report.json").read_text())["seed"])
        move(source, target)

    monkeypatch.setattr(os, "replace", watched)
    assert cli("audit", folder, *QUICK[1:], "--seed", 5, "--out", out).code == 0
    assert first["seed"] == 0
    assert len(seen) == 4
    assert set(seen) <= {0, 5}
    assert json.loads((out / "report.json").read_text())["seed"] == 5
    assert {p.name for p in out.iterdir()} == {"metrics.parquet", "report.html", "report.json", "report.md"}
