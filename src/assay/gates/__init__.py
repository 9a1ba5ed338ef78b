"""Gates: what a recorded report must meet. Nothing here imports torch, so that a check of a report is quick."""

from assay.gates.evidence import Evidence, evidence, read_report
from assay.gates.junit import junit
from assay.gates.policy import Requirement, Verdict, judge, parse

__all__ = ["Evidence", "Requirement", "Verdict", "evidence", "judge", "junit", "parse", "read_report"]
