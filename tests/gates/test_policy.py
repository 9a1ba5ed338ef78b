"""Requirements: expressions, ends of intervals, policy files, and what is wrong with them in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from assay.audit.property import Section
from assay.audit.result import Audit, Effect, Effects
from assay.gates import Evidence, Verdict, evidence, judge, parse
from assay.gates.evidence import Number, change
from assay.gates.policy import Bound
from assay.runtime.errors import InputError
from assay.runtime.metric import Metric


def made() -> Audit:
    return audit(0.9, 0.85, 0.95)


def audit(value: float, low: float | None, high: float | None, *, data: str = "d", profile: str = "quick") -> Audit:
    top1 = Metric("accuracy.top1", value, low, high, better="higher")
    metrics = [top1, Metric("calibration.ece", 0.04, better="lower"), Metric("empty", None), Metric("depth", 3.0)]
    sections = {"accuracy": Section(metrics=metrics), "privacy": Section(skipped="needs the training data")}
    titles = {"accuracy": "Accuracy", "privacy": "Privacy"}
    return Audit("s", profile, 0, sections, titles, {"hashes": {"test": data}})  # type: ignore[arg-type]


def found(result: Audit | Effects) -> Evidence:
    return evidence(json.loads(result.to_json()))


def verdicts(text: str, result: Audit | Effects | None = None) -> list[Verdict]:
    return judge(parse(text), found(result or made()))


def failures(text: str) -> list[str]:
    return [str(v) for v in verdicts(text) if v.blocks]


def test_an_expression_is_read_term_by_term() -> None:
    assert [r.rule for r in parse("calibration.ece<=0.05 and  low(accuracy.top1) > -1.5e-1")] == [
        Bound("calibration.ece", "<=", 0.05),
        Bound("accuracy.top1", ">", -0.15, "low"),
    ]
    assert parse("low( change( a.b ) )>=-0.1")[0].rule == Bound("a.b", ">=", -0.1, "low", of_change=True)
    assert str(parse("low(change(a.b))>=-0.1")[0]) == "low(change(a.b)) >= -0.1"
    assert str(parse("high( a.b-c@1 )>=2")[0]) == "high(a.b-c@1) >= 2"


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("accuracy.top1>=0.9", True),
        ("accuracy.top1>0.9", False),
        ("accuracy.top1<=0.9", True),
        ("accuracy.top1<0.9", False),
        ("low(accuracy.top1)>=0.86", False),
        ("low(accuracy.top1)>=0.85", True),
        ("high(accuracy.top1)<=0.94", False),
        ("high(accuracy.top1)<0.951", True),
        ("accuracy.top1>=0.5 and calibration.ece<=0.01", False),
    ],
)
def test_each_operator_and_each_end(text: str, met: bool) -> None:
    assert (failures(text) == []) is met


def test_failures_say_what_was_seen() -> None:
    assert failures("accuracy.top1>=0.95") == ["accuracy.top1 >= 0.95: observed 0.9 [0.85, 0.95]"]
    assert failures("low(calibration.ece)>=0") == ["low(calibration.ece) >= 0: no low was resolved"]
    assert failures("empty>=0") == ["empty >= 0: no value was resolved"]
    assert failures("privacy.auc<=0.6") == ["privacy.auc <= 0.6: not measured (needs the training data)"]


def test_an_unknown_metric_is_named_with_its_nearest_match() -> None:
    with pytest.raises(InputError, match=r"'acuracy.top1'; did you mean 'accuracy.top1'\?"):
        failures("acuracy.top1>=0.9")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "accuracy",
        "a>=",
        "a>=x",
        "a==1",
        "a>=1.2.3",
        "a>=nan",
        "a>=1 and",
        "mid(a)>=1",
        "a>=1 or b>=1",
        "low(a>=1",
        "a)>=1",
        "change(low(a))>=1",
    ],
)
def test_what_cannot_be_read_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="--require") as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_a_policy_file_holds_a_list_of_expressions(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('policy = 1\nrequire = ["accuracy.top1 >= 0.9 and calibration.ece < 0.05", "high(a) <= 1"]\n')
    assert [str(r) for r in parse(str(path))] == ["accuracy.top1 >= 0.9", "calibration.ece < 0.05", "high(a) <= 1"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "policy = 3\nrequire = ['a>=1']",
        "policy = true\nrequire = ['a>=1']",
        "policy = 1\nrequires = 1\nrequire = ['a>=1']",
        "policy = 2\nrequire = ['a>=1']",
        "policy = 2\n[[require]]\nthat = 'a>=x'",
        "policy = 2\n[[require]]\nthat = 'a>=1'\nreasons = 'x'",
        "policy = 2\n[[require]]\nthat = 'a>=1'\nreason = 3",
        "policy = 2\n[[require]]\nthat = 'a>=1'\nseverity = 'fatal'",
        "policy = 2\n[[require]]\nthat = 'a>=1'\nworse_by = 1",
        "policy = 2\n[[require]]\nmetric = 'a'\nworse_by = 1",
        "policy = 2\n[[require]]\nmetric = 'a'\nworse_by = -1\nbaseline = 'r.json'",
        "policy = 2\n[[require]]\nmetric = 'a'\nworse_by = inf\nbaseline = 'r.json'",
        "policy = 2\n[[require]]\nmetric = 'a'\nworse_by = 1\nbaseline = 'absent.json'",
        "policy = 2\n[[require]]\nmetric = 'a'\nworse_by = 1\nbaseline = 'policy.toml'",
        "policy = 1\nrequire = []",
        "policy = 1\nrequire = 'a>=1'",
        "policy = 1\nrequire = [1]",
        "policy = 1\nrequire = ['other.toml']",
        "policy = 1\nrequire = ['a>=x']",
        "policy = ",
        "\x00",
    ],
)
def test_a_malformed_policy_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="--require") as error:
        parse(str(path))
    assert "\n" not in str(error.value)


def test_a_policy_that_names_itself_or_is_absent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f"policy = 1\nrequire = ['{path}']\n")
    for text in (str(path), str(tmp_path / "absent.toml"), "audit.toml"):
        with pytest.raises(InputError, match="--require"):
            parse(text)


def test_every_unknown_metric_is_listed() -> None:
    with pytest.raises(InputError, match=r"'acuracy.top1'.*and 'nonsense'"):
        verdicts("acuracy.top1>=0.9 and nonsense>=1 and calibration.ece<=1")


def policy(tmp_path: Path, baseline: Audit, *tables: str) -> str:
    (tmp_path / "base").mkdir(exist_ok=True)
    (tmp_path / "base" / "report.json").write_text(baseline.to_json())
    path = tmp_path / "policy.toml"
    path.write_text("policy = 2\n" + "".join(f"[[require]]\n{t}\n" for t in tables))
    return str(path)


def test_policy_2_carries_reasons_and_severities(tmp_path: Path) -> None:
    reasoned = "that = 'accuracy.top1 >= 0.95 and calibration.ece <= 0.05'\nreason = '''contract,\n section 3'''"
    warned = "that = 'low(accuracy.top1) >= 0.9'\nseverity = 'warning'"
    path = policy(tmp_path, made(), reasoned, warned)
    first, second, third = verdicts(path)
    assert (first.state, first.blocks, second.state) == ("failed", True, "met")
    assert str(first).endswith("observed 0.9 [0.85, 0.95] (required because: contract, section 3)")
    assert (third.state, third.blocks, third.severity) == ("failed", False, "warning")


NOT_WORSE = "metric = 'accuracy.top1'\nbaseline = 'base'\nworse_by = {}"


@pytest.mark.parametrize(
    ("worse_by", "value", "low", "high", "state"),
    [
        (0.01, 0.95, 0.949, 0.951, "met"),
        (0.01, 0.88, 0.86, 0.90, "undecided"),
        (0.01, 0.70, 0.65, 0.75, "failed"),
        (0.30, 0.70, 0.65, 0.75, "met"),
    ],
)
def test_a_metric_may_not_get_worse_than_a_recorded_one(
    worse_by: float, value: float, low: float, high: float, state: str, tmp_path: Path
) -> None:
    base = audit(0.9, 0.88, 0.92)
    (verdict,) = verdicts(policy(tmp_path, base, NOT_WORSE.format(worse_by)), audit(value, low, high))
    assert verdict.state == state
    assert f"0.9 [0.88, 0.92] became {value:.4g}" in verdict.seen
    strict = policy(tmp_path, base, NOT_WORSE.format(worse_by) + "\nundecided = 'fail'")
    assert verdicts(strict, audit(value, low, high))[0].blocks is (state != "met")


def test_without_intervals_the_values_decide_and_the_direction_counts(tmp_path: Path) -> None:
    lower = policy(tmp_path, made(), "metric = 'calibration.ece'\nbaseline = 'base'\nworse_by = 0.0")
    assert verdicts(lower)[0].state == "met"
    base = made()
    base.sections["accuracy"].metrics[1] = Metric("calibration.ece", 0.03, better="lower")
    (worse,) = verdicts(policy(tmp_path, base, "metric = 'calibration.ece'\nbaseline = 'base'\nworse_by = 0.005"))
    assert (worse.state, worse.blocks) == ("failed", True)


@pytest.mark.parametrize(
    ("table", "result", "message"),
    [
        (NOT_WORSE.format(0.1), audit(0.9, 0.8, 1.0, data="other"), "test data other against d in the baseline"),
        (NOT_WORSE.format(0.1), audit(0.9, 0.8, 1.0, profile="deep"), "profile deep against quick in the baseline"),
        ("metric = 'depth'\nbaseline = 'base'\nworse_by = 1", made(), "no better direction"),
        (NOT_WORSE.format(10**400), made(), "expected a number of at least 0"),
        ("metric = 'acuracy.top1'\nbaseline = 'base'\nworse_by = 1", made(), "did you mean 'accuracy.top1'"),
        ("that = 'change(accuracy.top1) >= 0'", made(), "records one audit; expected a repair's"),
    ],
)
def test_what_cannot_be_compared_is_one_line(table: str, result: Audit, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        verdicts(policy(tmp_path, made(), table), result)
    assert "\n" not in str(error.value)


def test_the_change_of_a_repair_is_the_paired_one() -> None:
    rows = [Effect("accuracy.top1", 0.9, 0.88, None, -0.02, -0.03, -0.01), Effect("depth", 3.0, 3.0)]
    effects = Effects("e", made(), [("m", audit(0.88, 0.8, 0.9))], rows)
    text = "change(accuracy.top1)>=-0.02 and low(change(accuracy.top1))>=-0.02 and accuracy.top1<=0.88"
    states = [v.state for v in verdicts(text, effects)]
    assert states == ["met", "failed", "met"]
    assert verdicts("change(depth)>=0", effects)[0].seen == "no value was resolved"


def test_the_interval_of_a_change_is_newcombes_and_covers_as_often_as_it_says() -> None:
    """The published example (Newcombe, 1998): 56/70 against 48/80, difference 0.2, interval 0.0524 to 0.3339."""
    from assay.runtime.statistics import wilson

    def rate(k: int, n: int) -> Number:
        return Number(k / n, *wilson(k, n))

    moved = change(rate(48, 80), rate(56, 70))
    assert (moved.low, moved.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    rng = np.random.default_rng(0)
    draws = zip(rng.binomial(100, 0.8, 800), rng.binomial(150, 0.9, 800), strict=True)
    hits = [change(rate(a, 100), rate(b, 150)) for a, b in draws]
    covered = np.mean([m.low <= 0.1 <= m.high for m in hits if m.low is not None and m.high is not None])
    assert 0.93 <= covered <= 0.98
    assert change(Number(1.0), Number(3.0)) == Number(2.0)
    assert change(Number(None), Number(3.0)) == Number(None)


@pytest.mark.parametrize("name", ["accuracy.class.sea lion", "accuracy.class.a/b", "accuracy.class.x < 3 and y's"])
def test_metrics_of_any_class_are_named_in_quotes(name: str) -> None:
    (one, two) = (r.rule for r in parse(f'low(change("{name}")) >= 0.5 and calibration.ece < 1'))
    assert one == Bound(name, ">=", 0.5, "low", of_change=True)
    assert two == Bound("calibration.ece", "<", 1)
    assert [r.rule for r in parse(str(one))] == [one]
