"""Notes that `compare` prints before it starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.cli import scenario_run
from testbed.guest.metrics import disk_speed
from testbed.store.kernels.kernel_files import KernelFiles
from tests.support.bug_runs import job, kernel


def test_compare_notes_that_both_sides_are_one_kernel_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "load", lambda *_: {})
    monkeypatch.setattr(disk_speed, "too_fast_profiles", lambda *_: ())
    factory: Any = SimpleNamespace(
        host=job(Path("/run")).factory.host, cold=False, folders=SimpleNamespace(cache=Path("/cache"))
    )
    file: Any = SimpleNamespace(guest=SimpleNamespace(memory=1 << 30))

    def notes(**kernels: KernelFiles) -> list[str]:
        said: list[str] = []
        progress: Any = SimpleNamespace(note=said.append)
        scenario_run._announce(factory, kernels, file, progress)
        return [line for line in said if "one kernel" in line]

    first, same, other = kernel("a", "aa"), kernel("b", "aa"), kernel("c", "cc")
    assert notes(base=first, patched=same) == [
        (
            "base and patched are one kernel, of the same content: "
            "no case can pass, for it cannot show the gap and close it"
        )
    ]
    assert notes(base=first, patched=other) == notes(kernel=first) == notes(a=first, b=same) == []
