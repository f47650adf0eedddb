"""JSON that others have written: guests, programs, whoever made a file."""

from __future__ import annotations

import json
from typing import Any


def parsed(text: str | bytes) -> Any:
    """What it says.

    :raise ValueError: it is none, or nested so deeply that Python does not read it.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
