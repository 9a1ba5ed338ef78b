from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import assay
from assay.audit import Effect, Effects
from assay.calibrate import TemperatureScaling
from assay.compress import MagnitudePruning
from assay.defenses import TRADES
from assay.methods import CATALOGUE, catalogue, exported, from_text
from assay.repair import _over_seeds, describe
from assay.runtime.errors import AccessError, InputError
from assay.subject import Subject
from assay.subject.subject import model_hash
from assay.unlearn import FineTune, Retrain

ONLY = ["accuracy", "calibration", "robustness.linf"]


@pytest.fixture(scope="module")
def effects(digits: Subject) -> Effects:
    return assay.repair(digits, TRADES(eps=0.1, epochs=4, attack_steps=4), only=ONLY)  # type: ignore[operator]


def test_trades_buys_robustness_and_the_control_does_not(effects: Effects, digits: Subject) -> None:
    row = effects["robustness.linf.accuracy@0.1"]
    assert row.verdict == "better"
    assert row.low is not None
    assert row.low > 0
    assert row.control is not None
    assert row.after is not None
    assert row.after > row.control + 0.1
    assert effects.before.name == digits.name


def test_rows_are_differences_of_the_audits(effects: Effects) -> None:
    before, after = effects.before.metrics, effects.after.metrics
    for row in effects.rows:
        assert row.before == before[row.name].value
        if row.difference is not None:
            assert row.difference == pytest.approx(after[row.name].value - before[row.name].value)  # type: ignore[operator]
        if row.low is not None and row.high is not None:
            assert row.low <= row.high


def test_effects_show_themselves(effects: Effects, tmp_path: Path) -> None:
    frame = effects.to_frame()
    assert frame.loc["robustness.linf.accuracy@0.1", "verdict"] == "better"
    assert "<table" in effects._repr_html_()
    effects.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.parquet", "report.html", "report.json", "report.md"}


def test_a_chain_is_audited_at_every_step_and_leaves_the_subject_alone(digits: Subject) -> None:
    before = model_hash(digits.model)
    methods = [MagnitudePruning(sparsity=0.5), TemperatureScaling()]
    result = assay.repair(digits, *methods, only=["accuracy", "calibration"])  # type: ignore[operator]
    assert [name for name, _ in result.steps] == ["compress.MagnitudePruning", "calibrate.TemperatureScaling"]
    assert result.steps[0][1]["accuracy.top1"].value == result.after["accuracy.top1"].value
    assert model_hash(digits.model) == before


def test_a_repaired_subject_is_saved_and_audited_the_same(digits: Subject, tmp_path: Path) -> None:
    saved = []
    result = assay.repair(  # type: ignore[operator]
        digits,
        TemperatureScaling(),
        only=["calibration"],
        on_model=lambda r: saved.append(r.steps[-1][1].save(tmp_path / "s")),
    )
    again = assay.audit(assay.load(saved[0]), only=["calibration"])  # type: ignore[operator]
    assert again["calibration.nll"].value == pytest.approx(result.after["calibration.nll"].value)


def test_forgetting_a_class_shows_the_retrained_model(digits: Subject) -> None:
    result = assay.repair(digits, FineTune(epochs=1, lr=0.002), forget="class=3", only=["accuracy"])  # type: ignore[operator]
    rows = {r["model"]: r for r in result.forgetting}
    assert set(rows) == {"subject", "unlearned", "retrained"}
    assert rows["retrained"]["forget_accuracy"] == 0.0
    assert rows["subject"]["forget_accuracy"] > 0.9
    assert rows["retrained"]["time_ratio"] == 1.0


def test_retraining_forgets(digits: Subject) -> None:
    result = assay.repair(digits, Retrain(), forget="class=3", only=["accuracy"])  # type: ignore[operator]
    assert result["accuracy.class.3"].after == 0.0
    assert result["accuracy.class.3"].control > 0.8


def test_more_seeds_widen_the_interval(digits: Subject) -> None:
    method = MagnitudePruning(sparsity=0.9, finetune_epochs=1)
    one, three = (assay.repair(digits, method, seeds=k, only=["accuracy"], control=False) for k in (1, 3))  # type: ignore[operator]
    width = [e["accuracy.top1"].high - e["accuracy.top1"].low for e in (one, three)]
    assert width[1] > width[0]
    assert np.isfinite(three["accuracy.top1"].difference)


@pytest.mark.parametrize(
    ("methods", "options", "error", "message"),
    [
        ([], {}, InputError, "at least one"),
        ([Retrain()], {}, InputError, "--forget class=NAME"),
        ([Retrain()], {"forget": "class=x3"}, InputError, "class"),
        ([TRADES()], {"seeds": 0}, InputError, "seeds=0"),
        (["TRADES"], {}, InputError, "expected a method"),
    ],
)
def test_bad_calls_say_so(
    digits: Subject, methods: list[object], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        assay.repair(digits, *methods, only=["accuracy"], **options)  # type: ignore[operator]


def test_without_training_data_a_trainer_says_what_it_needs(digits: Subject) -> None:
    with pytest.raises(AccessError, match="training data"):
        assay.repair(replace(digits, train=None), TRADES(), only=["accuracy"])  # type: ignore[operator]


def test_methods_are_built_from_text() -> None:
    assert from_text("defenses.TRADES:eps=8/255,beta=1,norm=l2") == TRADES(eps=8 / 255, beta=1, norm="l2")
    assert describe(from_text("compress.MagnitudePruning:sparsity=0.5")).startswith("compress.MagnitudePruning:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRADE", "ROOM.METHOD"),
        ("TRADES", "did you mean 'defenses.TRADES'"),
        ("defences.TRADES", "did you mean 'defenses.TRADES'"),
        ("defenses.TRADE", "did you mean 'TRADES'"),
        ("defenses.TRADES:epz=1", "did you mean 'eps'"),
        ("defenses.TRADES:eps", "key=value"),
        ("defenses.TRADES:eps=much", "fraction"),
        ("defenses.TRADES:eps=-1", "positive"),
    ],
)
def test_a_wrong_method_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_text(text)


def test_the_catalogue_is_current() -> None:
    import json

    assert json.loads(CATALOGUE.read_text()) == json.loads(json.dumps(catalogue())), "run make catalogue"
    assert {"defenses.TRADES", "attacks.PGD", "unlearn.Retrain"} <= set(exported())


def test_the_report_says_what_each_number_of_forgetting_can_show(digits: Subject, tmp_path: Path) -> None:
    result = assay.repair(digits, FineTune(epochs=1, lr=0.002), forget="class=3", only=["accuracy"])  # type: ignore[operator]
    rows = {r["model"]: r for r in result.forgetting}
    assert rows["unlearned"]["klom_forget"] > rows["retrained"]["klom_forget"]
    assert rows["unlearned"]["ulira_accuracy"] > rows["unlearned"]["ulira_chance"]
    assert rows["unlearned"]["relearn_steps"] < rows["retrained"]["relearn_steps"]
    result.save(tmp_path)
    for name in ("report.html", "report.md"):
        assert "never seen: 0.5 is no trace" in (tmp_path / name).read_text()


def test_without_a_recipe_there_is_nothing_to_compare_with(digits: Subject) -> None:
    bare = replace(digits, recipe=None)
    result = assay.repair(bare, FineTune(epochs=1, lr=0.002), forget="class=3", only=["accuracy"])  # type: ignore[operator]
    assert [r["model"] for r in result.forgetting] == ["subject", "unlearned"]
    assert result.forgetting[1]["gap"] is None


def _runs(differences: list[float]) -> list[Effect]:
    rows = [[Effect("a", 0.5, 0.5 + d, 0.5 - d, d, d - 0.0196, d + 0.0196, 0.5)] for d in differences]
    return _over_seeds(rows, {"a": 1000})


def test_runs_that_agree_keep_the_samples_interval() -> None:
    (row,) = _runs([0.1, 0.1])
    assert (row.low, row.high) == pytest.approx((0.0804, 0.1196), abs=1e-5)


def test_rows_over_seeds_are_means_with_satterthwaites_interval() -> None:
    (row,) = _runs([0.1, 0.12])
    assert (row.before, row.after, row.control) == pytest.approx((0.5, 0.61, 0.39))
    freedom = 0.0002**2 / (0.0001**2 / 1 + 0.0001**2 / 999)  # both squared errors are 0.01 squared
    assert row.high - row.difference == pytest.approx(stats.t.ppf(0.975, freedom) * 0.0002**0.5, rel=1e-6)  # type: ignore[operator]


def test_a_metric_that_one_run_lacks_has_no_row() -> None:
    a, b, c = (Effect(name, 0.5, 0.6, None, 0.1) for name in "abc")
    assert [r.name for r in _over_seeds([[a, b, c], [c, a]], {})] == ["a", "c"]
