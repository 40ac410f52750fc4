"""The integrations agree with the installed packages: `make test-peers` runs these tests.

Their defaults are the packages' own.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from bench import peer_packages
from fused_contrastive.backends import _warnings as user_warnings
from fused_contrastive.integrations import _common as common

peer_packages.prepare()


@pytest.fixture(autouse=True)
def told_again():
    """Every test is told again what falls back."""
    user_warnings._said.clear()


@pytest.fixture
def streams():
    """Nothing in a test with this fixture may fall back."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", common.FallbackWarning)
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
