"""Audit a subject: one module a property."""

from assay.audit.property import Context, Cost, Plot, Property, Section
from assay.audit.result import Audit, Effect, Effects, differences
from assay.audit.run import audit, plan
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
    "plan",
]

make_callable(__name__)
