"""Times a warm `compare oom-tmpfs`, and the guests' own script in it by the guests' clocks."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

from benchmarks import children


async def _once() -> tuple[float, float]:
    """Return the seconds of the whole command, and of the slower guest's script."""
    started = time.monotonic()
    # The verdict is checked below.
    out = await children.output("testbed", "compare", "oom-tmpfs", "--json", "--quiet", statuses=(0, 1, 3))
    whole_s = time.monotonic() - started
    (scenario,) = json.loads(out)["scenarios"]
    assert scenario["verdict"] == "PASS", scenario["reason"]
    return whole_s, max(scenario[side]["measures"]["script"]["value"] for side in ("base", "patched"))


async def measure(*, count: int) -> dict[str, Any]:
    """Return the figures, in seconds; a first run makes the templates and is not counted."""
    await _once()
    runs = [await _once() for _ in range(count)]
    return {
        "runs": count,
        "whole_s": round(statistics.median(whole for whole, _ in runs), 3),
        "script_s": round(statistics.median(script for _, script in runs), 3),
        "added_s": round(statistics.median(whole - script for whole, script in runs), 3),
    }
