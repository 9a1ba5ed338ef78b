"""The subject of an audit: a model with its data, its recipe and the access it grants."""

from assay.subject.access import Access, Oracle
from assay.subject.adapters.function import from_callable
from assay.subject.load import load
from assay.subject.subject import Subject, fresh

__all__ = ["Access", "Oracle", "Subject", "fresh", "from_callable", "load"]
