"""Times writing and opening reports of many cases, and measures their size.

The cases are those of a real run, repeated; the plots of each are made from the logs again.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import children
from testbed.host import tempdirs
from testbed.report import formats, results
from testbed.report.schema import Document
from testbed.units import MIB


async def _run(state: Path) -> Path:
    """Run two short scenarios; return the run's folder."""
    words = ("testbed", "compare", "oom-tmpfs", "read/nvme/ext4", "--json", "--quiet")
    out = await children.output(*words, env={**os.environ, "TESTBED_STATE": str(state)}, statuses=(0, 1, 3))
    return state / "runs" / str(json.loads(out)["run"])


def repeated(document: Document, count: int) -> Document:
    """Repeat the cases of a run until there are `count`."""
    cases = [document.scenarios[number % len(document.scenarios)] for number in range(count)]
    many = [case.model_copy(update={"name": f"{case.name}/{number}"}) for number, case in enumerate(cases)]
    return document.model_copy(update={"scenarios": many})


async def measure(*, cases: int, opens: int) -> list[dict[str, Any]]:
    """Return a row for each number of cases."""
    rows = []
    with tempdirs.temporary() as state:
        folder = await _run(state)
        document = results.read(str(folder), folder.parent)
        for count in (len(document.scenarios), cases):
            many = repeated(document, count)
            started = time.monotonic()
            formats.write(many, folder)
            written_s = time.monotonic() - started
            opened = [await opened_s(folder / formats.PAGE) for _ in range(opens)]
            rows.append(
                {
                    "cases": count,
                    "written_s": round(written_s, 2),
                    "report_mib": round((folder / formats.PAGE).stat().st_size / MIB, 2),
                    "opened_s": round(statistics.median(opened), 2),
                    "slowest_s": round(max(opened), 2),
                }
            )
    return rows


async def opened_s(page: Path) -> float:
    """Return the seconds from navigation to the first frame after loading, in a browser that is started before."""
    from tests.support.chromium import browser

    async with browser() as started:
        opened = await started.new_page()
        began = time.monotonic()
        await opened.goto(page.as_uri(), wait_until="load")
        await opened.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.monotonic() - began
