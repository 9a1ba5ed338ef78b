"""Claims, the runner, the ledger and the statuses."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from assay.papers import catalogue, hashing, ledger, page, runner, status
from assay.papers.confirm import confirm
from assay.papers.model import Claim, Paper, Scale, Table, outcome
from assay.runtime import codehash
from assay.runtime.codehash import source_path
from assay.runtime.errors import InputError
from assay.runtime.store import Store


def _claim(values: object, rule: str = "interval", **more: object) -> Claim:
    return Claim("gain", values, **{"at_least": 0.0, "rule": rule, **more})  # type: ignore[arg-type]


class TestClaim:
    @pytest.mark.parametrize(
        ("values", "verdict"),
        [
            ([1, 1.1, 0.9, 1, 1.05], "holds"),
            ([-1, -1.1, -0.9, -1, -1.05], "refuted"),
            ([1, -1, 1, -1, 0.5], "undecided"),
            ([1, 1.1, 0.9, 1], "undecided"),
            ([1, 1.1, 0.9, 1, np.nan], "undecided"),
        ],
    )
    def test_interval(self, values: list[float], verdict: str) -> None:
        assert _claim(values).verdict == verdict

    def test_exact(self) -> None:
        assert _claim([0.0, 3.0], "exact").verdict == "holds"
        assert _claim([3.0, -1e-12], "exact").verdict == "refuted"
        assert _claim(np.nan, "exact").verdict == "undecided"
        assert _claim([0.5], "exact", at_most=0.4).verdict == "refuted"

    def test_k_of_n(self) -> None:
        assert _claim([1, 1, 1, 1, -1], "k-of-n", k=4).verdict == "holds"
        assert _claim([1, 1, 1, -1, -1], "k-of-n", k=4).verdict == "undecided"
        assert _claim([1, -1, -1, -1, -1], "k-of-n", k=4).verdict == "refuted"
        assert _claim([1, 1, 1, 1], "k-of-n", k=4).verdict == "undecided"

    def test_bad(self) -> None:
        for more in ({"at_least": None}, {"rule": "vote"}, {"k": 3}, {"rule": "k-of-n"}, {"rule": "k-of-n", "k": 2}):
            with pytest.raises(InputError):
                _claim([1.0] * 5, **more)

    def test_dict_is_json(self) -> None:
        plain = _claim([1.0]).to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False))["verdict"] == plain["verdict"]


class TestOutcome:
    good, bad = [_claim(1.0, "exact", refuted_by=("s",))], [_claim(-1.0, "exact", refuted_by=("s",))]
    open: ClassVar = [_claim([1.0], refuted_by=("s",))]

    def test_table(self) -> None:
        assert outcome(self.good, {"s": self.bad}) == "reproduced"
        assert outcome(self.good, {"s": self.good}) == "not separated"
        assert outcome(self.good, {"s": self.open}) == "undecided"
        assert outcome(self.good, {"other": self.bad}) == "not separated"
        assert outcome(self.bad, {"s": self.bad}) == "not reproduced"
        assert outcome(self.open, {"s": self.bad}) == "undecided"

    def test_support_does_not_decide(self) -> None:
        assert outcome([*self.good, _claim(-1.0, "exact", key=False)], {"s": self.bad}) == "reproduced"
        with pytest.raises(InputError):
            outcome([_claim(1.0, "exact", key=False)], {})


def test_table() -> None:
    one = Table.of([{"arm": "a", "v": np.float32(1)}, {"arm": "a", "v": 3.0}, {"arm": "b", "v": 1.0}])
    both = Table.joined({4: one, 5: one})
    assert both.per_seed("v", arm="a").tolist() == [2, 2]
    assert both.gain("a", "b", "v").tolist() == [1, 1]
    for bad in (lambda: Table.of([]), lambda: Table.of([{"v": np.zeros(2)}]), lambda: both.values("w")):
        with pytest.raises(InputError):
            bad()


def test_paper_checks() -> None:
    given = vars(catalogue.load("comp-sum").PAPER)
    for change in ({"slug": "Bad_Slug"}, {"shams": {}}, {"scales": (Scale("smoke", 1),)}, {"kind": "poem"}):
        with pytest.raises(InputError):
            Paper(**{**given, **change})


@pytest.fixture
def rewritten(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Lets the hashes see another text of comp-sum's module, whose name it gives back."""
    name, read = "assay.papers.comp_sum", codehash._tree.__wrapped__
    caches = (codehash._bindings, codehash._imported, codehash.reached, codehash.source_hash)

    def rewrite(text: str) -> str:
        for cached in caches:
            cached.cache_clear()
        monkeypatch.setattr(codehash, "_tree", lambda module: ast.parse(text) if module == name else read(module))
        return name

    yield rewrite
    for cached in caches:
        cached.cache_clear()


def test_the_seed_follows_from_experiment_and_claims(rewritten: Callable[[str], str]) -> None:
    text = source_path("assay.papers.comp_sum").read_text(encoding="utf-8")
    seed = hashing.claims_hash(rewritten(text))
    assert hashing.claims_hash(rewritten("# a remark\n" + text)) == seed
    assert hashing.claims_hash(rewritten(text.replace('headline="', 'headline="Also: '))) == seed
    assert hashing.claims_hash(rewritten(text.replace("at_least=-1e-9", "at_least=-1e-3"))) != seed


def test_a_run_stays_current_when_only_its_description_or_another_scale_changes(
    rewritten: Callable[[str], str],
) -> None:
    text, sizes = source_path("assay.papers.comp_sum").read_text(encoding="utf-8"), Scale("claim", 5, {"n": 3})
    run = hashing.run_hash(rewritten(text), sizes)
    assert hashing.run_hash(rewritten(text.replace('headline="', 'headline="Also: ')), sizes) == run
    assert hashing.run_hash(rewritten(text.replace("at_least=-1e-9", "at_least=-1e-3")), sizes) != run
    coarser = text.replace("k / 20 for k in range(21)", "k / 10 for k in range(11)")
    assert hashing.run_hash(rewritten(coarser), sizes) != run
    for other in (Scale("claim", 5, {"n": 4}), Scale("claim", 6, {"n": 3})):
        assert hashing.run_hash(rewritten(text), other) != run


class TestRun:
    def test_store_gives_the_same_and_jobs_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store(tmp_path)
        first = runner.reproduce("comp-sum", scale="smoke", seed=7, store=store)
        module = catalogue.load("comp-sum")
        monkeypatch.setattr(module, "setup", lambda *a: pytest.fail("computed again"))
        again = runner.reproduce("comp-sum", scale="smoke", seed=7, store=store)
        assert again.real.table == first.real.table
        assert again.seconds == pytest.approx(first.seconds)
        assert first.outcome == "reproduced"

    def test_setup_is_made_once_a_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module, made = catalogue.load("comp-sum"), []
        kept = module.setup
        monkeypatch.setattr(module, "setup", lambda scale, seed: made.append(seed) or kept(scale, seed))
        runner.reproduce("comp-sum", scale="smoke", seed=1)
        assert len(made) == 1

    def test_page(self, tmp_path: Path) -> None:
        run = runner.reproduce("comp-sum", scale="smoke")
        text = page.save(run, tmp_path).read_text()
        assert run.command in text
        assert "<svg" in text
        assert "missing-half" in text
        assert 'src="http' not in text
        assert page.page(run) == text
        assert json.loads((tmp_path / "comp-sum.json").read_text())["outcome"] == run.outcome

    def test_unknown(self) -> None:
        for slug, scale in (("comp-summ", "smoke"), ("comp-sum", "huge"), (_planned(), "smoke")):
            with pytest.raises(InputError):
                runner.reproduce(slug, scale=scale)


def _planned() -> str:
    return next(p["slug"] for p in catalogue.planned() if p["slug"] not in catalogue.written())


class TestLedger:
    def _git(self, folder: Path, *arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)

    def test_only_committed_code_is_recorded(self, tmp_path: Path) -> None:
        path = tmp_path / "m.py"
        path.write_text("a = 1\n")
        with pytest.raises(InputError, match="no git checkout"):
            ledger.check_committed([path])
        self._git(tmp_path, "init")
        with pytest.raises(InputError, match="differ from the commit"):
            ledger.check_committed([path])
        self._git(tmp_path, "add", ".")
        self._git(tmp_path, "commit", "-m", "a")
        ledger.check_committed([path])
        path.write_text("a = 2\n")
        with pytest.raises(InputError, match=r"m\.py differ"):
            ledger.check_committed([path])

    def test_record_appends_and_refuses_a_chosen_seed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner, "check_recordable", lambda slug: None)
        run = runner.reproduce("comp-sum", scale="smoke")
        assert runner.recorded("comp-sum", "smoke", tmp_path) is None
        row = runner.record(run, tmp_path)
        assert runner.recorded("comp-sum", "smoke", tmp_path) == row
        runner.record(run, tmp_path)
        assert len(ledger.read("comp-sum", tmp_path)) == 2
        with pytest.raises(InputError, match="base seed"):
            runner.record(runner.reproduce("comp-sum", scale="smoke", seed=run.base_seed + 1), tmp_path)

    def test_one_seed_confirms_a_run_whose_tables_come_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner, "check_recordable", lambda slug: None)
        assert confirm("comp-sum", "smoke", root=tmp_path) is None  # nothing is recorded
        first = runner.record(runner.reproduce("comp-sum", scale="smoke"), tmp_path)
        for source in ("aaaaaaaa0", "bbbbbbbb1"):  # library code has changed, twice
            monkeypatch.setattr("assay.papers.confirm.run_hash", lambda *a, source=source: source)
            row = confirm("comp-sum", "smoke", root=tmp_path)
            assert row == ledger.read("comp-sum", tmp_path)[-1]
            assert (row["source"], row["outcome"], row["claims"]) == (source, first["outcome"], first["claims"])
            assert row["confirms"] == {"run": first["key"], "commit": first["commit"], "at": first["at"], "seed": 0}

    @pytest.mark.parametrize("changed", ["judgement", "tables", "known"])
    def test_a_whole_run_is_due_where_the_seed_shows_nothing(
        self, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner, "check_recordable", lambda slug: None)
        row = runner.reproduce("comp-sum", scale="smoke").to_dict()
        other = {"judgement": {"judgement": "x"}, "tables": {"tables": ["x"]}, "known": {"tables": [None]}}[changed]
        ledger.append("comp-sum", {**row, **other}, tmp_path)
        assert confirm("comp-sum", "smoke", root=tmp_path) is None
        assert len(ledger.read("comp-sum", tmp_path)) == 1

    def test_a_fingerprint_is_of_six_digits(self) -> None:
        def of(value: object) -> str:
            return ledger.fingerprint({"": [{"arm": "a", "value": value}]})

        assert of(0.1234567) == of(0.1234567 * (1 + 1e-12)) != of(0.123458)
        assert of(1e-16) == of(-1e-15) == of(0.0)
        assert len({of(v) for v in (1.0, None, "1", float("nan"), float("inf"), 2e9)}) == 6

    def test_damaged(self, tmp_path: Path) -> None:
        row = '{"key": "k", "scale": "claim", "claims": [], "source": "s", "outcome": "fine"}'
        for text in ("{}", "{", row):
            (tmp_path / "x.jsonl").write_text(text + "\n")
            with pytest.raises(InputError, match=r"x\.jsonl:1"):
                ledger.read("x", tmp_path)

    def test_what_is_recorded_is_of_written_papers_and_derived_seeds(self) -> None:
        for path in ledger.ROOT.glob("*.jsonl"):
            assert path.stem in catalogue.written()
            for row in ledger.read(path.stem):
                key = ledger.entry_key(path.stem, row["scale"], row["base_seed"], row["source"])
                assert row["key"] == key
                assert row["commit"]


class TestStatus:
    row: ClassVar = {"written": True, "sources": {"claim": "new", "smoke": "new"}, "needs_gpu": None}

    def _run(self, outcome: str, source: str = "new", scale: str = "claim") -> dict:
        claims = [{"rule": "exact", "verdict": "holds"}]
        return {"key": f"{source}{outcome}", "outcome": outcome, "source": source, "scale": scale, "claims": claims}

    def test_all(self) -> None:
        assert status.status({**self.row, "written": False}, []) == ("planned", False)
        assert status.status(self.row, [self._run("reproduced", scale="smoke")]) == ("undecided", False)
        assert status.status(self.row, [self._run("reproduced")]) == ("reproduced", False)
        assert status.status(self.row, [self._run("reproduced", "old")]) == ("reproduced", True)
        both = [self._run("not reproduced"), self._run("reproduced")]
        assert status.status(self.row, both) == ("not reproduced", False)
        assert status.status(self.row, [self._run("not separated", "old"), self._run("reproduced")])[0] == "reproduced"

    def test_needs_gpu_rests_on_a_recorded_pilot(self) -> None:
        runs = [self._run("undecided")]
        for key, expected in ((runs[0]["key"], "needs gpu"), ("absent", "undecided")):
            assert status.status({**self.row, "needs_gpu": {"key": key}}, runs)[0] == expected

    @pytest.mark.parametrize("outcome", ["reproduced", "not reproduced"])
    def test_only_a_run_at_gpu_scale_decides_what_needs_one(self, outcome: str) -> None:
        row = {**self.row, "sources": {"claim": "new", "gpu": "new"}, "needs_gpu": {"key": "old pilot"}}
        pilot = {**self._run("undecided", "old"), "key": "old pilot"}
        assert status.status(row, [pilot, self._run(outcome)]) == ("needs gpu", False)
        assert status.status(row, [pilot, self._run(outcome, scale="gpu")]) == (outcome, False)
        failed = {**self._run(outcome), "claims": [{"rule": "exact", "verdict": "refuted"}]}
        assert status.status(row, [pilot, failed])[0] == outcome


class TestListing:
    def test_all_are_listed(self) -> None:
        rows = status.papers()
        slugs = [r["slug"] for r in rows]
        assert len(set(slugs)) == len(slugs) >= 162
        assert {p["slug"] for p in catalogue.planned()} <= set(slugs)
        assert {r["status"] for r in rows} <= set(status.STATUSES)
        assert {r["slug"] for r in rows if r["written"]} == set(catalogue.written())

    def test_catalogue_is_current(self) -> None:
        kept = json.loads(Path(catalogue.__file__).parents[1].joinpath("catalogue.json").read_text())
        assert kept["papers"] == catalogue.rows()

    def test_search_ranks(self) -> None:
        rows = status.papers()
        assert status.search(rows, "cross-entropy theoretical")[0]["slug"] == "comp-sum"
        assert status.search(rows, "zzzzqqq") == []
        assert status.search(rows, 'perceptron" OR (')[0]["slug"] == "large-step-perceptron"
        with pytest.raises(InputError):
            status.search(rows, "!!")


def _assay(*arguments: str) -> subprocess.CompletedProcess[str]:
    told = "sys.stderr.write(f'torch={\"torch\" in sys.modules}')"
    code = f"import sys; from assay.cli import main\ntry: main()\nfinally: {told}"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


class TestCommands:
    def test_listings_do_not_import_torch(self) -> None:
        for command in (["papers", "--json"], ["papers", "--search", "noise"], ["methods"]):
            done = _assay(*command)
            assert done.returncode == 0, done.stderr
            assert "torch=False" in done.stderr

    def test_filters(self) -> None:
        document = json.loads(_assay("papers", "--room", "losses", "--kind", "theory", "--json").stdout)
        assert document["schema"] == "assay/1"
        assert "comp-sum" in {p["slug"] for p in document["papers"]}
        assert all("losses" in (p["room"], *p["also"]) for p in document["papers"])
        done = _assay("papers", "--room", "lossses")
        assert done.returncode == 2
        assert "did you mean 'losses'" in done.stderr

    def test_reproduce(self) -> None:
        done = _assay("reproduce", "comp-sum", "--scale", "smoke", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["runs"][0]["outcome"] == "reproduced"

    @pytest.mark.parametrize("bad", [[], ["comp-sum", "--all"], ["comp-sum", "--record", "--seed", "1"], ["nope"]])
    def test_bad_usage(self, bad: list[str]) -> None:
        done = _assay("reproduce", *bad)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_claims_and_figure_leave_the_tables_as_they_are(rewritten: Callable[[str], str]) -> None:
    text = source_path("assay.papers.comp_sum").read_text(encoding="utf-8")
    tables = hashing.experiment_hash(rewritten(text))
    assert hashing.experiment_hash(rewritten(text.replace("at_least=-1e-9", "at_least=-1e-3"))) == tables
    coarser = text.replace("k / 20 for k in range(21)", "k / 10 for k in range(11)")
    assert hashing.experiment_hash(rewritten(coarser)) != tables
