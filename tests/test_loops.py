"""Loops that follow gradients belong to the engines; every other one is named here with its reason."""

import ast
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src" / "assay"
ENGINES = {"attacks/engine.py", "training/engine.py"}
OTHERS = {
    "attacks/nearest.py": "one backward pass a class, for the nearest linearised boundary",
    "attacks/penalty.py": "AdamW on a displacement under a weight that a binary search sets for each sample",
    "attacks/universal.py": "Adam on one displacement of all inputs, without labels or goal",
    "audit/planning.py": "times one forward and one backward pass",
    "certify/bounds/alpha.py": "Adam on the slopes of linear bounds, projected on [0, 1]",
    "curate/trajectory_matching.py": "the student's steps, whose graph reaches back to the images",
    "detect/mahalanobis.py": "one backward pass a batch of inputs",
    "dynamics/hessian.py": "one product with the Hessian a batch",
    "dynamics/tilting.py": "one backward pass a batch of inputs",
    "explain/base.py": "one backward pass a batch of points",
    "labels/robust_surrogate.py": "gradient ascent on inputs under a price of moving them, not a ball",
    "papers/adapt_then_unlearn.py": "an exact check of the penalty's slope by automatic differentiation",
    "papers/caption_graybox.py": "an exact check against torch's own optimiser and schedule",
    "papers/bnn_surrogate.py": "an exact check against I-FGSM written out",
    "papers/elr.py": "an exact check that steps the regulariser by itself",
    "papers/ensloss.py": "an exact check of the loss's gradient, over random batches",
    "papers/federated_at.py": "an exact check against federated training written out",
    "papers/foundation_robustness.py": "an exact check against a loop over single images",
    "papers/neural_bandits.py": "an exact check against torch's own optimiser",
    "papers/unlearnable_bayes.py": "an exact check against automatic differentiation, for several kernels",
    "runtime/throughput.py": "one forward and one backward pass a batch size, for the largest that fits",
    "papers/z_loss.py": "an exact check against dense SGD by automatic differentiation",
    "papers/pfgmpp.py": "an exact check of the field by automatic differentiation",
}


def _follows_gradients(call: ast.AST) -> bool:
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    name, owner = call.func.attr, call.func.value
    autograd = name == "grad" and isinstance(owner, ast.Attribute) and owner.attr == "autograd"
    return autograd or name == "backward" or (name == "step" and not call.args)


def _has_loop(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loops = (node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While))
    return any(_follows_gradients(inner) for loop in loops for inner in ast.walk(loop))


def test_loops_outside_the_engines_are_named() -> None:
    found = {str(p.relative_to(SOURCES)) for p in SOURCES.rglob("*.py") if _has_loop(p)}
    assert found - ENGINES == set(OTHERS)
