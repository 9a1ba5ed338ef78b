"""Shared fixtures. The result store of the tests is their own; real data come from $ASSAY_DATA where it is set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import assay
from assay.subject import Subject

settings.register_profile(
    "assay", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("assay")


@pytest.fixture(scope="session", autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("ASSAY_CACHE")
    os.environ["ASSAY_CACHE"] = str(tmp_path_factory.mktemp("store"))
    torch.set_num_threads(1)
    yield
    if before is None:
        del os.environ["ASSAY_CACHE"]
    else:
        os.environ["ASSAY_CACHE"] = before


@pytest.fixture(scope="session")
def digits(_own_store: None) -> Subject:
    return assay.load("digits")


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = os.environ.get("ASSAY_DATA")
    if root and Path(root).is_dir():
        return Path(root)
    if os.environ.get("ASSAY_REQUIRE_DATA"):
        pytest.fail("ASSAY_DATA is not a folder, but the data are required here")
    pytest.skip("ASSAY_DATA is not set")
