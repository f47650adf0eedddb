"""scipy, against which the statistics are tested: in a virtual environment of its own, whose packages `./tb` names in TESTBED_ORACLE."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import pytest


def stats() -> Any:
    """`scipy.stats`; skips the test where scipy is not there."""
    packages = os.environ.get("TESTBED_ORACLE")
    if not packages:
        pytest.skip("TESTBED_ORACLE is not set: start the tests with ./tb test")
    if packages not in sys.path:
        sys.path.append(packages)  # last: what is in both is our own
    return importlib.import_module("scipy.stats")
