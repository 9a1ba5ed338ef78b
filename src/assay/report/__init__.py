"""How an Audit and an Effects are shown: a folder of reports, a notebook cell, a terminal, a comparison."""

from assay.report.compare import compare
from assay.report.files import save
from assay.report.html import notebook, page
from assay.report.markdown import card
from assay.report.terminal import terminal

__all__ = ["card", "compare", "notebook", "page", "save", "terminal"]
