"""Disagreement-guided data-free extraction."""

from __future__ import annotations

from dataclasses import dataclass

from assay.privacy.extraction.game import DataFreeExtractor


@dataclass(frozen=True, kw_only=True)
class DisGUIDE(DataFreeExtractor):
    """One generator makes samples on which two clones disagree, over balanced classes (Rosenthal et al., 2023, AAAI).

    Loss of the generator: - mean standard deviation of the clones' softmax + ``lam_balance`` x negative entropy of the
    mean prediction. Every sample is asked; the memory is replayed uniformly. The authors' scripts for CIFAR-10: batch
    256, ``lr_clone`` 0.03, memory of a million, 20 million queries, ``grayscale_every`` 8. Options, shapes and errors:
    see DataFreeExtractor and Extractor.
    """
