"""Compares the I/O that a guest accounts for with what its disks moved; unread counters; unexpected errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.bugs import io_accounting
from testbed.bugs.attempt import AttemptSpec, run_attempt
from testbed.bugs.counter_baseline import CounterBaseline
from testbed.bugs.io_accounting import Snapshot
from testbed.bugs.load import parse_mapping
from testbed.bugs.outcome import Outcome
from testbed.bugs.signature import SignatureMatcher
from testbed.errors import CommandFailed, GuestLost, HostError
from testbed.guest.metrics import readings
from testbed.guest.shell_functions import FileTexts
from testbed.report.bugs import tables
from testbed.report.bugs.schema import Account
from testbed.units import MIB

FILE = "/sys/fs/cgroup/io.stat"


def look(device: tuple[int, int] | None, guest: tuple[int, int] | str | None, *, failed: int = 0) -> Snapshot:
    """Make a snapshot of the disk `data`: bytes read and written as QEMU and as the guest count them.

    `guest` may be the text of the guest's io.stat instead.
    """
    counted = None if device is None else {"rd_bytes": device[0], "wr_bytes": device[1], "failed_rd_operations": failed}
    text = guest
    if isinstance(guest, tuple):
        text = f"254:0 rbytes={guest[0]} wbytes={guest[1]} rios=1 wios=1 dbytes=0 dios=0\n"
    texts = FileTexts(guest="g0", texts={FILE: text}) if isinstance(text, str) else None
    return Snapshot(device={"data": counted} if counted else {}, guest=texts, why="" if texts else "it did not answer")


BEFORE = look((100, 10), (100, 10))


@pytest.mark.parametrize(
    ("after", "finding"),
    [
        (look((100 + MIB, 10), (100 + MIB, 10)), ""),
        (look((100 + MIB, 10), (101 + MIB, 10)), "accounts for 1048577 bytes read, its device has moved 1048576"),
        (look((100, 10), (100, 11)), "accounts for 1 bytes written, its device has moved 0"),
        # The kernel counts a request that failed; the device does not.
        (look((100, 10), (4196, 10), failed=1), ""),
        (look((100 + 9 * MIB, 10), (100, 10)), ""),
        (
            look((100 + 64 * MIB, 10), (100 + MIB, 10)),
            "the device has moved 67108864 bytes read, the guest accounts for 1048576 of them",
        ),
    ],
)
def test_a_guest_that_accounts_for_more_than_its_disk_moved_is_contradicted(after: Snapshot, finding: str) -> None:
    account = io_accounting.compare("data", "254:0", BEFORE, after)
    assert (finding in account.finding if finding else account.finding == "") and account.note == ""
    shown = tables.contradictions([Account(**account.to_json())])
    assert shown == ([f"disk data: {account.finding}"] if finding else [])


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        (BEFORE, look((200, 10), None), "it did not answer"),
        (BEFORE, look((200, 10), "254:0 rbytes=\u00b2\n"), "expected a whole number"),
        (BEFORE, look((200, 10), (99, 10)), "expected at least 100, as before, got '99'"),
        (BEFORE, look((200, 10), ""), "expected a line as before"),
        (BEFORE, look(None, (200, 10)), "QEMU's counters of it began anew, or are not there"),
        (BEFORE, look((0, 0), (200, 10)), "QEMU's counters of it began anew, or are not there"),
    ],
)
def test_what_cannot_be_compared_says_why_and_is_no_finding(before: Snapshot, after: Snapshot, note: str) -> None:
    account = io_accounting.compare("data", "254:0", before, after)
    assert note in account.note and account.finding == ""


# Counters that a signature names --------------------------------------------------------------------------------------

COUNTER = {"cgroup": "a", "counter": "memory.events oom_kill", "above": 0}


def watch(*signature: dict[str, Any]) -> SignatureMatcher:
    return SignatureMatcher(
        parse_mapping({"version": 1, "summary": "a test", "script": "true", "signature": list(signature)}).bug.signature
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the cgroup files of a guest, by path; an error in place of a text is raised on reading."""
    said: dict[str, Any] = {}

    async def every(guest: Any) -> dict[str, str]:
        if isinstance(said.get(""), Exception):
            raise said[""]
        return {path: text for path, text in said.items() if isinstance(text, str)}

    original = readings.read_counter

    async def one(guest: Any, texts: Any, cgroup: str, counter: str) -> int | None:
        path = f"{cgroup}/{counter.partition(' ')[0]}"
        if isinstance(said.get(path), Exception):
            raise said[path]
        return await original(guest, texts, cgroup, counter) if path in texts else None

    monkeypatch.setattr(readings, "read_cgroup_counters", every)
    monkeypatch.setattr(readings, "read_counter", one)
    return said


GUEST: Any = SimpleNamespace(name="g0")


async def test_a_counter_that_was_not_read_is_unknown(counted: dict[str, Any]) -> None:
    tally = CounterBaseline(watch(COUNTER))
    await tally.read(GUEST)
    assert (
        tally.unknown
        == "a/memory.events oom_kill: not read: no such file; the cgroup must be there when the script ends"
    )
    counted["a/memory.events"] = "oom_kill \u00b2\n"
    await tally.read(GUEST)
    assert "a/memory.events, oom_kill: expected a whole number below 2**64, got '\u00b2'" in tally.unknown
    counted["a/memory.events"] = "oom_kill 0\n"
    assert await tally.read(GUEST, everything=True) == ("a/memory.events oom_kill 0",) and tally.unknown == ""
    # The growth between the last reading and the end of the cgroup is unknown.
    del counted["a/memory.events"]
    await tally.read(GUEST, everything=True)
    assert tally.unknown.startswith("a/memory.events oom_kill: 0 at first, then not read: no such file")


async def test_an_error_at_the_end_is_unknown_where_counters_matter(counted: dict[str, Any]) -> None:
    for signature, matters in (((COUNTER,), True), (({"expect": "oom_kill 1"},), True), (({"output": "BAD"},), False)):
        found = watch(*signature)
        tally = CounterBaseline(found)
        counted["a/memory.events"] = "oom_kill 0\n"
        counted.pop("", None)
        await tally.read(GUEST, everything=True)
        assert tally.unknown == ""
        counted[""] = CommandFailed("g0", "read", "none within 10 s", "")
        counted["a/memory.events"] = counted[""]
        await tally.read(GUEST, everything=True)
        assert ("none within 10 s" in tally.unknown) is matters


# Unexpected errors ----------------------------------------------------------------------------------------------------


def attempt_spec(folder: Path, raises: BaseException) -> AttemptSpec:
    """Make an attempt whose guest does not start."""

    @contextlib.asynccontextmanager
    async def admitted(*_: object, **__: object) -> AsyncIterator[object]:
        yield SimpleNamespace(rest=lambda: None)

    @contextlib.asynccontextmanager
    async def guest(*_: object, **__: object) -> AsyncIterator[None]:
        raise raises
        yield

    factory: Any = SimpleNamespace(host=SimpleNamespace(cores=2), admitted=admitted, guest=guest)
    case = parse_mapping({"version": 1, "summary": "a test", "script": "true", "signature": [{"output": "BAD"}]})
    kernel: Any = SimpleNamespace(name="k")
    return AttemptSpec(
        factory=factory,
        bug=case.bug,
        guest=case.guest,
        kernel=kernel,
        number=1,
        seed=7,
        timeout_s=9,
        logs=folder / "k-1",
    )


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (GuestLost("g0", "ready", "panic"), "guest g0: ready: panic"),
        (
            ValueError("not enough values"),
            "a mistake of the testbed: ValueError: not enough values, raised in test_io_accounting.py:",
        ),
        (ExceptionGroup("several", [KeyError("x")]), "a mistake of the testbed: KeyError: 'x'"),
        (OSError(28, "No space left on device", "/x"), "this machine: /x: No space left on device"),
    ],
)
async def test_whatever_goes_wrong_in_a_try_is_that_tries_trouble(raised: Exception, why: str, tmp_path: Path) -> None:
    one = await run_attempt(attempt_spec(tmp_path, raised))
    assert one.outcome is Outcome.TROUBLE and why in one.why
    assert (tmp_path / "k-1/traceback.txt").exists() is ("mistake" in why)


@pytest.mark.parametrize("raised", [HostError("no QEMU"), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_a_machine_that_cannot_run_guests_and_a_person_end_the_run(raised: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(raised)):
        await run_attempt(attempt_spec(tmp_path, raised))
