"""New memory is counted, views and writes in place are not."""

import torch

from assay.runtime.allocations import allocated


def test_new_memory_alone() -> None:
    x = torch.ones(10, 3)
    assert allocated(lambda: x.T) == 0
    assert allocated(lambda: x.add_(1)) == 0
    assert allocated(lambda: x @ x.T) == 100
    assert allocated(lambda: (x + 1).sum()) == 31
