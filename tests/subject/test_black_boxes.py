"""Models of other libraries and plain functions become subjects that answer as they do there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import lightgbm
import numpy as np
import onnx
import pytest
import skops.io
import torch
import xgboost
from onnx import TensorProto, helper
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from assay.audit.run import fingerprint
from assay.data import Data, load_data
from assay.runtime.errors import AccessError, BudgetError, InputError
from assay.runtime.random import numpy_rng
from assay.subject import Access, Oracle, from_callable, load
from assay.subject.adapters.apart import Apart
from assay.subject.adapters.function import Budget
from assay.subject.adapters.tree_dump import forest, scores

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
TREE = "sklearn.tree._tree.Tree"


@pytest.fixture(scope="module")
def train() -> Data:
    return load_data("digits:train")


@pytest.fixture(scope="module")
def test() -> Data:
    return load_data("digits:test")


def rows(data: Data) -> np.ndarray:
    return data.x.flatten(1).numpy().astype(np.float64)


def saved(path: Path, estimator: Any) -> str:
    skops.io.dump(estimator, path)
    return f"sklearn:{path}"


@pytest.mark.parametrize(
    ("estimator", "meaning", "access"),
    [
        (make_pipeline(StandardScaler(), LogisticRegression(max_iter=100)), "probabilities", Access.SCORE),
        (RandomForestClassifier(10, random_state=0), "probabilities", Access.SCORE),
        (LinearSVC(max_iter=200, tol=0.1), "margins", Access.SCORE),
        (SVC(decision_function_shape="ovo"), "labels", Access.DECISION),
        (DecisionTreeClassifier(random_state=0), "labels", Access.DECISION),
    ],
)
def test_sklearn(tmp_path: Path, train: Data, test: Data, estimator: Any, meaning: str, access: Access) -> None:
    fitted = estimator.fit(rows(train), train.y.numpy())
    path = saved(tmp_path / "m.skops", fitted)
    if "Tree" in str(type(estimator)) or "Forest" in str(type(estimator)):
        with pytest.raises(InputError, match=f"pass --trust {TREE}"):
            load(path, data="digits:test")
    subject = load(path, data="digits:test", trust=(TREE,))
    assert subject.access == access
    assert subject.model.meaning == meaning
    logits = subject.model(test.x[:100])
    assert (logits.argmax(1).numpy() == fitted.predict(rows(test)[:100])).all()
    if meaning == "probabilities":
        assert np.allclose(logits.softmax(1).numpy(), fitted.predict_proba(rows(test)[:100]), atol=1e-5)
    if access == Access.DECISION:
        with pytest.raises(AccessError):
            Oracle(subject.model, access=subject.access).scores(test.x[:2])


def test_sklearn_of_two_named_classes_in_another_order(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32).clip(-3, 3)
    y = (x[:, 0] > 0).astype(int)
    np.savez(tmp_path / "d.npz", x=x, y=y, classes=np.array(["yes", "no"]), bounds=np.array([-3.0, 3.0]))
    fitted = LinearSVC().fit(x, np.array(["yes", "no"])[y])  # its classes_ are in the order of the alphabet
    subject = load(saved(tmp_path / "m.skops", fitted), data=f"npz:{tmp_path / 'd.npz'}")
    assert (subject.model(torch.from_numpy(x)).argmax(1).numpy() == y).mean() > 0.95


def test_a_class_that_the_model_does_not_know_is_all_but_impossible(tmp_path: Path, train: Data, test: Data) -> None:
    known = train.y.numpy() != 3
    fitted = LogisticRegression(max_iter=50).fit(rows(train)[known], train.y.numpy()[known])
    subject = load(saved(tmp_path / "m.skops", fitted), data="digits:test")
    p = subject.model(test.x[:50]).softmax(1).numpy()
    assert p[:, 3].max() < 1e-9
    assert np.allclose(np.delete(p, 3, 1), fitted.predict_proba(rows(test)[:50]), atol=1e-5)


def test_probabilities_that_are_graded_late_only(tmp_path: Path) -> None:
    """The first samples lie in pure leaves, so that their probabilities look like decisions."""
    x = torch.cat((torch.rand(150, 1) * 0.4, torch.full((50, 1), 0.9)))
    y = torch.cat((torch.zeros(150, dtype=torch.int64), torch.arange(50) % 2))
    data = tmp_path / "d.npz"
    np.savez(data, x=x.numpy(), y=y.numpy())
    fitted = DecisionTreeClassifier(random_state=0).fit(x.numpy(), y.numpy())
    subject = load(saved(tmp_path / "m.skops", fitted), data=f"npz:{data}", trust=[TREE])
    assert subject.access == Access.SCORE
    assert np.allclose(subject.model(subject.test.x).softmax(1), fitted.predict_proba(subject.test.x.numpy()))


@pytest.mark.parametrize("labels", [np.arange(3.0), np.arange(3), np.array(["0", "1", "2"], dtype=object)])
@pytest.mark.parametrize("estimator", [LogisticRegression(), SVC(decision_function_shape="ovo")])
def test_three_classes_are_those_that_are_predicted(tmp_path: Path, estimator: Any, labels: np.ndarray) -> None:
    rng = numpy_rng(0, "three")
    y = rng.integers(0, 3, 120)
    x = (rng.standard_normal((120, 2)) + 3 * np.eye(3)[y][:, :2]).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    fitted = estimator.fit(x.astype(np.float64), labels[y])
    subject = load(saved(tmp_path / "m.skops", fitted), data=f"npz:{tmp_path / 'd.npz'}")
    got = subject.model(torch.from_numpy(x)).argmax(1).numpy()
    assert (labels[got] == fitted.predict(x.astype(np.float64))).all()


def test_a_pipeline_of_named_columns_is_refused_in_a_line(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": [0.0, 1.0] * 20, "b": [1.0, 0.0] * 20})
    chosen = ColumnTransformer([("scaled", StandardScaler(), ["a"])])
    fitted = make_pipeline(chosen, LinearSVC()).fit(frame, [0, 1] * 20)
    np.savez(tmp_path / "d.npz", x=frame.to_numpy(), y=np.array([0, 1] * 20))
    with pytest.raises(InputError, match=r"m.skops: fails on samples of shape \(2,\) .ValueError: Specifying"):
        load(saved(tmp_path / "m.skops", fitted), data=f"npz:{tmp_path / 'd.npz'}")


def test_skops_types_are_built_only_when_named(tmp_path: Path, train: Data) -> None:
    model = make_pipeline(FunctionTransformer(_twice), LogisticRegression(max_iter=20))
    path = saved(tmp_path / "m.skops", model.fit(rows(train), train.y.numpy()))
    name = f"{_twice.__module__}._twice"
    with pytest.raises(InputError, match=f"types that are not trusted: .*; pass --trust {name}"):
        load(path, data="digits:test")
    assert load(path, data="digits:test", trust=(name,)).access == Access.SCORE


def _twice(x: np.ndarray) -> np.ndarray:
    return 2 * x


def test_sklearn_refusals(tmp_path: Path, train: Data) -> None:
    path = saved(tmp_path / "m.skops", LinearRegression().fit(rows(train), train.y.numpy()))
    with pytest.raises(InputError, match="holds LinearRegression; expected a fitted classifier"):
        load(path, data="digits:test")
    path = saved(tmp_path / "m.skops", LogisticRegression(max_iter=20).fit(rows(train)[:, :9], train.y.numpy()))
    with pytest.raises(InputError, match=r"samples of shape \(1, 8, 8\) have 64 features; expected 9"):
        load(path, data="digits:test")
    (tmp_path / "x.skops").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"^sklearn:x.skops: cannot be read"):
        load(f"sklearn:{tmp_path / 'x.skops'}", data="digits:test")
    with pytest.raises(InputError, match="no such file"):
        load(f"sklearn:{tmp_path / 'absent.skops'}", data="digits:test")
    with pytest.raises(InputError, match="bare model; expected --data"):
        load(path)


def test_two_forests_that_differ_in_what_they_learned_only_are_not_the_same(train: Data, test: Data) -> None:
    forests = [RandomForestClassifier(5, random_state=0).fit(rows(train)[r], train.y.numpy()[r]) for r in HALVES]
    first, second, again = (from_callable(_probabilities(f), test) for f in (*forests, forests[0]))
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) == fingerprint(again)


HALVES = (slice(0, 500), slice(500, 1000))


def _probabilities(estimator: Any) -> Any:
    return lambda x: estimator.predict_proba(x.reshape(len(x), -1))


@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize("objective", ["multi:softprob", "multi:softmax", "binary:logistic", "binary:hinge"])
def test_xgboost(tmp_path: Path, train: Data, objective: str, suffix: str) -> None:
    data, source = _boosted(tmp_path, train, binary=objective.startswith("binary"))
    many = {} if objective.startswith("binary") else {"num_class": 10}
    options = {"objective": objective, "max_depth": 3, "nthread": 1, **many}
    booster = xgboost.train(options, xgboost.DMatrix(rows(data), data.y.numpy()), 5)
    booster.save_model(tmp_path / f"m.{suffix}")
    subject = load(f"xgboost:{tmp_path / f'm.{suffix}'}", data=source)
    given, p = booster.predict(xgboost.DMatrix(rows(data))), subject.model(data.x).softmax(1).numpy()
    assert subject.access == Access.SCORE
    if objective in ("multi:softmax", "binary:hinge"):
        assert (p.argmax(1) == given).mean() > 0.99  # ties go to either side
    else:
        assert np.allclose(p if p.shape[1] > 2 else p[:, 1], given, atol=1e-6)


@pytest.mark.parametrize("suffix", ["txt", "json"])
@pytest.mark.parametrize("boosting", ["gbdt", "rf"])
@pytest.mark.parametrize("objective", ["multiclass", "multiclassova", "binary"])
def test_lightgbm(tmp_path: Path, train: Data, objective: str, boosting: str, suffix: str) -> None:
    data, source = _boosted(tmp_path, train, binary=objective == "binary")
    many = {} if objective == "binary" else {"num_class": 10}
    options = {"objective": objective, "verbosity": -1, "num_threads": 1, "sigmoid": 1.5, "num_leaves": 7, **many}
    options |= {"boosting": boosting, "bagging_freq": 1, "bagging_fraction": 0.7}
    booster = lightgbm.train(options, lightgbm.Dataset(rows(data), data.y.numpy()), 3)
    booster.save_model(tmp_path / "m.txt")
    (tmp_path / "m.json").write_text(json.dumps(booster.dump_model()))
    subject = load(f"lightgbm:{tmp_path / 'm'}.{suffix}", data=source)
    given, p = booster.predict(rows(data)), subject.model(data.x).softmax(1).numpy()
    expected = given / given.sum(1, keepdims=True) if given.ndim == 2 else np.stack([1 - given, given], 1)
    assert np.allclose(p, expected, atol=1e-6)


@pytest.mark.parametrize("extra", [{}, {"zero_as_missing": True}, {"use_missing": False}])
def test_a_dump_decides_as_lightgbm_does_on_gaps_and_categories(extra: dict[str, Any]) -> None:
    rng = numpy_rng(0, "dump", *extra)

    def table(n: int, gaps: float) -> np.ndarray:
        x = rng.normal(size=(n, 5))
        x[:, 3] = rng.integers(-1, 9, n) + rng.choice([0.0, 0.6], n)
        x[rng.random((n, 5)) < gaps] = np.nan
        x[rng.random((n, 5)) < 0.1] = 0
        return x

    x = table(1500, 0.1)
    y = (np.nan_to_num(x[:, 0]) + np.isin(x[:, 3], [1, 4]) + np.isnan(x[:, 1]) > 0).astype(int)
    options = {"objective": "binary", "verbosity": -1, "num_leaves": 16, "num_threads": 1, **extra}
    booster = lightgbm.train(options, lightgbm.Dataset(x, y, categorical_feature=[3]), 20)
    document, asked = json.loads(json.dumps(booster.dump_model())), table(2000, 0.2)
    assert "==" in json.dumps(document)
    assert np.allclose(scores(forest(document), 1, asked), booster.predict(asked, raw_score=True), atol=1e-12)


def _boosted(tmp_path: Path, train: Data, *, binary: bool) -> tuple[Data, str]:
    data = train[torch.arange(300)]
    if binary:
        data = Data(data.x, data.y % 2, ("even", "odd"))
    np.savez(tmp_path / "d.npz", x=data.x.numpy(), y=data.y.numpy())
    return data, f"npz:{tmp_path / 'd.npz'}"


def test_boosters_of_other_tasks_and_broken_files(tmp_path: Path, train: Data, capfd: Any) -> None:
    regression = xgboost.train({"max_depth": 2, "nthread": 1}, xgboost.DMatrix(rows(train), train.y.numpy()), 2)
    regression.save_model(tmp_path / "r.json")
    with pytest.raises(InputError, match="'reg:squarederror' is no classification"):
        load(f"xgboost:{tmp_path / 'r.json'}", data="digits:test")
    options = {"objective": "regression", "verbosity": -1, "num_threads": 1}
    lightgbm.train(options, lightgbm.Dataset(rows(train), train.y.numpy()), 2).save_model(tmp_path / "r.txt")
    with pytest.raises(InputError, match="'regression' is no classification"):
        load(f"lightgbm:{tmp_path / 'r.txt'}", data="digits:test")
    capfd.readouterr()
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "x.txt").write_text("{}")
    (tmp_path / "cut.txt").write_text((tmp_path / "r.txt").read_text()[:900])
    for source in ("xgboost:{}/x.json", "lightgbm:{}/x.txt", "lightgbm:{}/cut.txt"):
        with pytest.raises(InputError, match="expected") as raised:
            load(source.format(tmp_path), data="digits:test")
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"x\.json: cannot be read .*; expected the JSON of dump_model"):
        load(f"lightgbm:{tmp_path / 'x.json'}", data="digits:test")
    assert capfd.readouterr().out == ""


def _onnx(path: Path, outputs: list[Any], nodes: list[Any], shape: list[Any], constants: list[Any]) -> str:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return f"onnx:{path}"


def _linear(path: Path, weight: np.ndarray, *, batch: Any = "n", kind: str = "logits", features: int = 64) -> str:
    """x @ weight as logits, with a softmax, as labels, or as the maps that sklearn-onnx writes."""
    constants = [onnx.numpy_helper.from_array(weight.astype(np.float32), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    scores = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, weight.shape[1]])
    if kind == "probabilities":
        nodes.append(helper.make_node("Softmax", ["logits"], ["p"], axis=1))
        scores = helper.make_tensor_value_info("p", TensorProto.FLOAT, [batch, weight.shape[1]])
    if kind == "labels":
        nodes.append(helper.make_node("ArgMax", ["logits"], ["y"], axis=1, keepdims=0))
        scores = helper.make_tensor_value_info("y", TensorProto.INT64, [batch])
    outputs = [scores]
    if kind == "maps":
        nodes.append(helper.make_node("Softmax", ["logits"], ["p"], axis=1))
        nodes.append(helper.make_node("ArgMax", ["logits"], ["y"], axis=1, keepdims=0))
        names = list(range(weight.shape[1]))
        nodes.append(helper.make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=names))
        entry = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        maps = helper.make_value_info("maps", helper.make_sequence_type_proto(entry))
        outputs = [helper.make_tensor_value_info("y", TensorProto.INT64, [batch]), maps]
    return _onnx(path, outputs, nodes, [batch, features], constants)


@pytest.mark.parametrize("kind", ["logits", "probabilities", "labels", "maps"])
@pytest.mark.parametrize("batch", ["n", 4])
def test_onnx(tmp_path: Path, test: Data, kind: str, batch: Any) -> None:
    if kind == "maps" and batch == 4:
        batch = 1
    weight = np.random.default_rng(0).normal(size=(64, 10))
    subject = load(_linear(tmp_path / "m.onnx", weight, batch=batch, kind=kind), data="digits:test")
    meant = {"maps": "probabilities"}.get(kind, kind)
    assert subject.model.meaning == meant
    assert subject.access == (Access.DECISION if kind == "labels" else Access.SCORE)
    expected = torch.from_numpy(rows(test)[:37] @ weight)
    logits = subject.model(test.x[:37])
    if kind == "labels":
        assert torch.equal(logits.argmax(1), expected.argmax(1))
    else:
        assert torch.allclose(logits.softmax(1).double(), expected.softmax(1), atol=1e-5)


def test_onnx_refusals(tmp_path: Path) -> None:
    weight = np.ones((63, 10))
    with pytest.raises(InputError, match=r"samples have shape \(64,\); the model takes \(63,\)"):
        load(_linear(tmp_path / "m.onnx", weight, features=63), data="digits:test")
    with pytest.raises(InputError, match="0 outputs could be scores of 10 classes"):
        load(_linear(tmp_path / "m.onnx", np.ones((64, 7))), data="digits:test")
    with pytest.raises(InputError, match=r"unknown output of onnx:m.onnx: 'logit'; did you mean 'logits'"):
        load(_linear(tmp_path / "m.onnx", np.ones((64, 10))) + "#output=logit", data="digits:test")
    with pytest.raises(InputError, match="unknown option of subject onnx"):
        load(f"onnx:{tmp_path / 'm.onnx'}#outputs=logits", data="digits:test")
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="expected a valid ONNX model"):
        load(f"onnx:{tmp_path / 'x.onnx'}", data="digits:test")


def test_subjects_travel_to_workers(tmp_path: Path, train: Data, test: Data) -> None:
    fitted = LogisticRegression(max_iter=20).fit(rows(train), train.y.numpy())
    weight = np.random.default_rng(0).normal(size=(64, 10))
    for source in (saved(tmp_path / "m.skops", fitted), _linear(tmp_path / "m.onnx", weight)):
        subject = load(source, data="digits:test")
        there = cloudpickle.loads(cloudpickle.dumps(subject))
        assert torch.equal(there.model(test.x[:9]), subject.model(test.x[:9]))
        assert fingerprint(there) == fingerprint(subject)


def test_functions(test: Data) -> None:
    y = test.y.numpy()
    scores = torch.nn.functional.one_hot(test.y, 10).float() * 3

    def place(x: np.ndarray) -> list[int]:
        return [int((test.x.numpy() == row).all((1, 2, 3)).argmax()) for row in x]

    cases: list[tuple[Any, Access, dict[str, Any]]] = [
        (lambda x: scores[place(x)], Access.SCORE, {}),
        (lambda x: scores[place(x.numpy())].softmax(1), Access.SCORE, {"takes": "tensor"}),
        (lambda x: y[place(x)], Access.DECISION, {}),
        (lambda x: np.array(test.classes)[y[place(x)]], Access.DECISION, {}),
        (lambda x: scores[place(x)], Access.DECISION, {"access": Access.DECISION}),
        (lambda x: (scores[place(x)] > 0).int(), Access.DECISION, {}),
    ]
    for function, access, options in cases:
        subject = from_callable(function, test, **options)
        assert subject.access == access
        assert torch.equal(subject.model(test.x[:40]).argmax(1), test.y[:40])


def test_one_score_of_two_classes(test: Data) -> None:
    data = Data(test.x, test.y % 2, ("even", "odd"))
    value = torch.linspace(0.05, 0.95, 64)
    share = from_callable(lambda x: value[: len(x)], data)
    assert torch.allclose(share.model(data.x[:64]).softmax(1)[:, 1], value, atol=1e-6)
    odds = from_callable(lambda x: 8 * value[: len(x)] - 4, data)
    assert torch.allclose(odds.model(data.x[:64]).softmax(1)[:, 1], torch.sigmoid(8 * value - 4), atol=1e-6)
    with pytest.raises(InputError, match="float64 of shape"):
        from_callable(lambda x: np.full(len(x), 0.5), test)


def test_function_refusals_and_budget(test: Data) -> None:
    with pytest.raises(InputError, match=r"broken: fails on samples of shape \(1, 8, 8\) \(ZeroDivisionError"):
        from_callable(lambda x: 1 / 0, test, name="broken")
    with pytest.raises(InputError, match="expected scores of 10 classes"):
        from_callable(lambda x: np.zeros((len(x), 3)), test)
    with pytest.raises(InputError, match="NaN"):
        from_callable(lambda x: np.full((len(x), 10), np.nan), test)
    with pytest.raises(InputError, match="label 12; expected 0 to 9"):
        from_callable(lambda x: np.full(len(x), 12), test)
    with pytest.raises(InputError, match=r"expected scores for Access.SCORE"):
        from_callable(lambda x: np.zeros(len(x), int), test, access=Access.SCORE)
    with pytest.raises(InputError, match="3 answers to 64 samples"):
        from_callable(lambda x: np.zeros((3, 10)), test)
    seen = []

    def count(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return np.zeros(len(x), int)

    subject = from_callable(count, test, budget=100)
    subject.model(test.x[:90])
    with pytest.raises(BudgetError, match="budget of 100 queries is spent"):
        subject.model(test.x[:1])
    assert sum(seen) == 100


def _late(answers: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """Probabilities at the first call, then ``answers`` of the rows."""
    calls: list[int] = []

    def function(x: np.ndarray) -> Any:
        calls.append(len(x))
        return np.full((len(x), 10), 0.1) if len(calls) == 1 else answers(x)

    return function


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda x: 1 / 0, "fails on 4 samples .ZeroDivisionError"),
        (lambda x: np.full((len(x) - 1, 10), 0.1), "3 answers to 4 samples"),
        (lambda x: [[0.5] * (9 + k % 2) for k in range(len(x))], "rows of several lengths"),
        (lambda x: np.array([["cat"] * 10] * len(x)), "answers are <U3; expected numbers"),
        (lambda x: np.array(0.5), "1 answers to 4 samples"),
    ],
)
def test_a_function_that_fails_later_is_one_line(
    test: Data, answers: Callable[[np.ndarray], Any], message: str
) -> None:
    subject = from_callable(_late(answers), test, name="m")
    with pytest.raises(InputError, match=f"^m: .*{message}") as raised:
        subject.model(test.x[:4])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("option", [{"scores": "probability"}, {"takes": "numpy"}])
def test_unknown_options_of_a_function(test: Data, option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(option))}=.*; expected 'array' or|; expected 'probabilities'"):
        from_callable(lambda x: np.full((len(x), 10), 0.1), test, **option)


def test_a_function_that_works_in_place_leaves_the_data_alone(test: Data) -> None:
    def function(x: np.ndarray) -> np.ndarray:
        x -= x.mean()
        return x.reshape(len(x), -1)[:, :10]

    before = test.x.clone()
    subject = from_callable(function, test)
    assert subject.model(test.x).equal(subject.model(test.x))
    assert test.x.equal(before)


@pytest.mark.parametrize("kind", ["three digits", "two digits", "bfloat16"])
def test_rounded_probabilities_are_no_logits(test: Data, kind: str) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(10), len(test))

    def function(x: np.ndarray) -> Any:
        rows = p[: len(x)]
        return torch.from_numpy(rows).bfloat16() if kind == "bfloat16" else rows.round(2 if kind[1] == "w" else 3)

    subject = from_callable(function, test)
    assert subject.model.meaning == "probabilities"
    assert np.abs(subject.model(test.x).softmax(1).numpy() - p).max() < 0.02


def test_labels_that_are_numbers_whatever_the_classes_are_called() -> None:
    x = torch.arange(90.0)[:, None] / 100
    data = Data(x, torch.arange(90) % 3, ("1", "2", "3"))  # stars, which a model counts from 0
    subject = from_callable(lambda x: (x[:, 0] * 100).round().astype(int) % 3, data)
    assert subject.model(data.x).argmax(1).equal(data.y)
    assert subject.model(data.x[2:3]).argmax(1).tolist() == [2]
    assert subject.model(data.x[1:3]).argmax(1).tolist() == [1, 2]


@pytest.mark.parametrize("answer", [lambda k: np.array(["b", "a"], dtype=object)[k], lambda k: np.eye(2)[1 - k]])
def test_labels_as_objects_and_as_rows(answer: Callable[[np.ndarray], Any]) -> None:
    data = Data(torch.arange(90.0)[:, None] / 100, 1 - torch.arange(90) % 2, ("a", "b"))
    made = [from_callable(lambda x: answer((x[:, 0] * 100).round().astype(int) % 2), data) for _ in range(2)]
    assert made[0].access == Access.DECISION
    assert made[0].model(data.x).argmax(1).equal(data.y)
    assert made[0].model.digest == made[1].model.digest


@pytest.mark.parametrize(
    ("classes", "answers"),
    [(("a", "b"), (0.0, 1.0, 0.0, 1.0)), (("1", "0"), (1.0, 0.0, 1.0, 0.0)), (("a", "b"), (0.0, 1.0, 0.2, 0.9))],
    ids=["numbered", "named", "graded late"],
)
def test_one_score_that_is_0_or_1_is_a_decision(classes: tuple[str, ...], answers: tuple[float, ...]) -> None:
    data = Data(torch.arange(90.0)[:, None] / 100, torch.arange(90) % 2, classes)

    def answer(x: np.ndarray) -> np.ndarray:
        k = (x[:, 0] * 100).round().astype(int)
        return np.array(answers)[k % 2 + 2 * (k > 70)]

    subject = from_callable(answer, data)
    assert subject.access == Access.DECISION
    assert subject.model(data.x).argmax(1).equal(data.y)
    assert from_callable(answer, data, scores="probabilities").access == Access.SCORE


def _multiclass(folder: Path, train: Data) -> dict[str, Path]:
    """A small booster of each library, as files."""
    x, y = rows(train)[:200], train.y.numpy()[:200]
    booster = xgboost.train({"objective": "multi:softprob", "num_class": 10, "nthread": 1}, xgboost.DMatrix(x, y), 1)
    files = {name: folder / f"m.{name}" for name in ("json", "ubj", "txt")}
    booster.save_model(files["json"])
    booster.save_model(files["ubj"])
    options = {"objective": "multiclass", "num_class": 10, "verbosity": -1, "num_threads": 1, "num_leaves": 4}
    lightgbm.train(options, lightgbm.Dataset(x, y), 1).save_model(files["txt"])
    return files


@pytest.mark.parametrize("suffix", ["json", "ubj", "txt"])
def test_a_file_that_kills_its_library_is_refused_in_a_line(tmp_path: Path, train: Data, suffix: str) -> None:
    whole, rng = _multiclass(tmp_path, train)[suffix].read_bytes(), numpy_rng(0, suffix)
    kind, refused = "lightgbm" if suffix == "txt" else "xgboost", list[str]()
    for k in range(6):
        raw, at = bytearray(whole), int(rng.integers(200, len(whole)))
        raw[at : at + 10] = (b"-1", b"99999999", b"", b"\xff", b"[", b"2147483647")[k]
        (tmp_path / f"bad.{suffix}").write_bytes(raw)
        try:
            load(f"{kind}:{tmp_path}/bad.{suffix}", data="digits:test")
        except InputError as error:
            refused.append(str(error))
    assert refused  # and this process is still alive
    assert not any("\n" in line for line in refused)


def test_a_model_is_started_once(tmp_path: Path, train: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []

    class Counted(Apart):
        def __init__(self, kind: str, path: Path, where: str) -> None:
            started.append(path)
            super().__init__(kind, path, where)

    monkeypatch.setattr("assay.subject.adapters.trees.Apart", Counted)
    path = _multiclass(tmp_path, train)["json"]
    model = load(f"xgboost:{path}", data="digits:test").model
    model(train.x[:3])
    assert started == [path]


def test_a_library_that_dies_or_hangs_is_said_to_have(
    tmp_path: Path, train: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _multiclass(tmp_path, train)["json"]
    model = Apart("xgboost", path, "xgboost:m.json")
    assert model(rows(train)[:3]).shape == (3, 10)
    model.process.kill()
    with pytest.raises(InputError, match=r"xgboost:m\.json: its library ended with SIGKILL"):
        model(rows(train)[:3])
    monkeypatch.setattr("assay.subject.adapters.apart.SECONDS", 0.01)
    with pytest.raises(InputError, match=r"no answer within 0\.01 s"):
        Apart("xgboost", path, "xgboost:m.json")


def test_what_a_budget_refuses_is_not_spent() -> None:
    budget = Budget(10)
    budget.take(6)
    with pytest.raises(BudgetError, match="4 are left"):
        budget.take(5)
    budget.take(4)
    with pytest.raises(BudgetError, match="0 are left"):
        budget.take(1)
