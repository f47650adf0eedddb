"""Loads scipy, with which the statistics are compared, from the virtual environment that `./tb` names in
TESTBED_ORACLE.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import pytest


def stats() -> Any:
    """Return `scipy.stats`; skip the test if scipy is missing."""
    packages = os.environ.get("TESTBED_ORACLE")
    if not packages:
        pytest.skip("TESTBED_ORACLE is not set: start the tests with ./tb test")
    if packages not in sys.path:
        sys.path.append(packages)  # last: our own packages have precedence
    return importlib.import_module("scipy.stats")
