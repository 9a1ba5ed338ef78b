"""Executable papers: one module per paper, the machinery that runs them, and the ledger of recorded runs."""
