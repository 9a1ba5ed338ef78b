"""A local page over recorded runs: list them, compare any two, plot a metric over all. It changes nothing."""

from assay.serve.server import serve

__all__ = ["serve"]
