"""The bound engine: intervals and linear relaxations through a ``torch.export`` graph."""

from assay.certify.bounds import (  # noqa: F401  the rules register themselves
    activations,
    affine,
    pooling,
    products,
    relu,
    softmax,
    weights,
)
from assay.certify.bounds.graph import Graph, forget, graph_of
from assay.certify.bounds.interval import SLACK, Interval
from assay.certify.bounds.perturbation import LpBall, Perturbation, SynonymSet
from assay.certify.bounds.registry import Call, Form, Layout, Rule, register
from assay.certify.bounds.relaxation import Lines, Unary

__all__ = [
    "SLACK",
    "Call",
    "Form",
    "Graph",
    "Interval",
    "Layout",
    "Lines",
    "LpBall",
    "Perturbation",
    "Rule",
    "SynonymSet",
    "Unary",
    "forget",
    "graph_of",
    "register",
]
