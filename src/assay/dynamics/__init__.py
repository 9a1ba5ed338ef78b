"""What training does: the geometry of the last layer, and the curvature of the loss."""

from assay.dynamics.collapse import Collapse, head_inputs, neural_collapse
from assay.dynamics.hessian import Eigenvalue, Hessian, Trace

__all__ = ["Collapse", "Eigenvalue", "Hessian", "Trace", "head_inputs", "neural_collapse"]
