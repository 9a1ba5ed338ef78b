"""Audit a subject: one module a property."""

from assay.audit.planning import expected_wall, plan
from assay.audit.property import Context, Cost, Plot, Property, Section
from assay.audit.result import Audit, Effect, Effects, differences
from assay.audit.run import audit
from assay.runtime.callable_module import make_callable

__all__ = [
    "Audit",
    "Context",
    "Cost",
    "Effect",
    "Effects",
    "Plot",
    "Property",
    "Section",
    "audit",
    "differences",
    "expected_wall",
    "plan",
]

make_callable(__name__)
