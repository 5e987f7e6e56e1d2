"""Settings of every test: no Hub, repeatable Hypothesis examples (`make fuzz` draws new ones)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.browser import chromium
from helpers.ranks import Launcher, launching
from hypothesis import HealthCheck, settings

#: Set before a test imports huggingface_hub, which reads it once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile(
    "fuzz", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts several ranks of one job, as torchrun does."""
    with launching(tmp_path_factory.mktemp("launches")) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium under Selenium."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
