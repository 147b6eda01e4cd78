"""Experts of the golden packages, loaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.packages import packages
from support.running import Packages

from hivellm_ort import Expert

__all__ = ["packages"]


@pytest.fixture
def lora(packages: Packages) -> Iterator[Expert]:
    """The LoRA expert, loaded."""
    with packages.load("lora") as expert:
        yield expert


@pytest.fixture
def dora(packages: Packages) -> Iterator[Expert]:
    """The DoRA expert of the same base, loaded."""
    with packages.load("dora") as expert:
        yield expert


@pytest.fixture
def short(packages: Packages) -> Iterator[Expert]:
    """The expert whose base has a context of 128 tokens, loaded."""
    with packages.load("short") as expert:
        yield expert
