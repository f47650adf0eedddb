"""Errors, lost and torn writes that are injected into the disks of a real guest."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.hardware.faults import ERRORS, Fault
from testbed.store.kernels.kernel_files import KernelFiles
from tests.support.disk_guest import MODEL, dd, injected, nodes


@pytest.fixture
async def guest(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> AsyncIterator[Guest]:
    async with factory.guest("g0", MODEL, kernel, logs) as started:
        yield started


@pytest.mark.slow
async def test_injected_errors_are_seen_as_often_as_injected_and_reported_by_qemu(guest: Guest, logs: Path) -> None:
    path = guest.disks["virtio"].path
    await guest.hardware.inject("virtio", (Fault(operation="read", effect="EIO", count=2),))
    assert "late-virtio" not in await nodes(guest)  # QEMU injects it itself
    assert [await dd(guest, f"if={path}", "of=/dev/null", "count=1", "iflag=direct") for _ in range(3)] == [1, 1, 0]
    await guest.hardware.inject("virtio", (Fault(operation="flush", effect="EIO", count=1),))
    assert [await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "conv=fsync") for _ in range(2)] == [1, 0]
    events = [json.loads(line).get("event", {}) for line in (logs / "qmp.jsonl").read_text().splitlines()]
    seen = [event["data"] for event in events if event.get("event") == "BLOCK_IO_ERROR"]
    # QEMU 10 sends one event per second for each disk.
    assert seen[0]["operation"] == "read" and len(seen) <= 3 and all(one["action"] == "report" for one in seen)
    assert await guest.hardware.errors_of("virtio") == ["2 read errors reported", "1 write error reported"]
    assert f"dev {path.removeprefix('/dev/')}, sector 0 op 0x0:(READ)" in (await guest.run("dmesg")).stdout
    await guest.hardware.inject("virtio", ())
    assert not any(name.startswith(("faulty-virtio", "late-virtio")) for name in await nodes(guest))


@pytest.mark.slow
async def test_a_guest_stops_at_an_error_until_it_is_resumed(guest: Guest) -> None:
    errors = guest.hardware.errors
    heard: list[str] = []
    errors.on_stop = lambda: heard.append(errors.stopped)
    await guest.hardware.inject("strict", (Fault(operation="write", effect="ENOSPC", count=1),))
    writing = asyncio.create_task(
        dd(guest, "if=/dev/zero", f"of={guest.disks['strict'].path}", "count=1", "oflag=direct")
    )
    async with asyncio.timeout(60):
        while not errors.stopped:
            await asyncio.sleep(0.02)
    assert not writing.done() and (await guest.monitor.execute("query-status"))["status"] == "io-error"
    await guest.monitor.execute("cont")
    assert await writing == 0 and await guest.hardware.errors_of("strict") == ["1 write error stopped the guest"]
    assert heard == ["stopped at a write error of disk strict (No space left on device)", ""]
    # The export injects a flush error that always occurs; it stops the guest as well. QEMU reports a write error.
    await guest.hardware.inject("strict", (Fault(operation="flush", effect="EIO"),))
    writing = asyncio.create_task(
        dd(guest, "if=/dev/zero", f"of={guest.disks['strict'].path}", "count=1", "conv=fsync")
    )
    for _ in range(2):
        async with asyncio.timeout(60):
            while not errors.stopped:
                await asyncio.sleep(0.02)
        assert errors.stopped == "stopped at a write error of disk strict (Input/output error)" and not writing.done()
        await guest.monitor.execute("cont")
        async with asyncio.timeout(60):
            while not errors.stopped:
                await asyncio.sleep(0.02)
    await guest.hardware.inject("strict", ())
    await guest.monitor.execute("cont")
    assert await writing == 0


# The errors that a program gets when they are injected, as in docs/guests.md; dd prints their texts.
_WORDS = {
    "EIO": "Input/output error",
    "ENODATA": "No data available",
    "ENOSPC": "No space left on device",
    "EREMOTEIO": "Remote I/O error",
}
_DOCS = Path(__file__).parents[3] / "docs" / "guests.md"


async def errors_are_those_of_the_docs(guest: Guest) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| (\w+) \|$", _DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [effect for effect, *_ in rows] == list(ERRORS)
    for effect, *expected in rows:
        for name, errno in zip(("virtio", "nvme", "scsi"), expected, strict=True):
            path = guest.disks[name].path
            for operation, words in {
                "read": (f"if={path}", "of=/dev/null", "iflag=direct"),
                "write": ("if=/dev/zero", f"of={path}", "oflag=direct"),
                "flush": ("if=/dev/zero", f"of={path}", "conv=fsync"),
            }.items():
                await guest.hardware.inject(name, (Fault(operation=operation, effect=effect),))
                said = (await guest.run("dd", "bs=4k", "count=1", *words, check=False)).stderr
                await guest.hardware.inject(name, ())
                assert said.splitlines()[0].endswith(f": {_WORDS[errno]}"), (effect, name, operation, said)


@pytest.mark.slow
async def test_a_permanent_error_survives_retries_and_is_the_error_of_the_docs(guest: Guest) -> None:
    for name in ("nvme", "scsi"):
        path = guest.disks[name].path
        await guest.hardware.inject(name, (Fault(operation="write", effect="EIO", first=1 << 20, end=2 << 20),))
        assert await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "oflag=direct") == 0
        assert await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "seek=300", "oflag=direct") == 1
        (said,) = await guest.hardware.errors_of(name)
        assert said.endswith((" write error reported", " write errors reported"))  # as often as the guest tried
        await guest.hardware.inject(name, ())
        assert await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "seek=300", "oflag=direct") == 0
    await errors_are_those_of_the_docs(guest)


@pytest.mark.slow
async def test_lost_and_torn_writes_are_acknowledged_and_logged(guest: Guest, logs: Path) -> None:
    for name in ("virtio", "nvme", "scsi"):
        path = guest.disks[name].path
        read = f"dd if={path} bs=64k count=1 iflag=direct status=none | tr -d '\\0' | wc -c"
        await guest.script(
            f"dd if=/dev/zero of={path} bs=64k count=2 oflag=direct status=none; "
            "tr '\\0' x </dev/zero | head -c 64k >/dev/shm/x"
        )
        write = f"dd if=/dev/shm/x of={path} bs=64k oflag=direct status=none"
        await guest.hardware.inject(name, (Fault(operation="write", effect="lost", count=1),))
        await guest.script(write)
        assert (await guest.script(read)).stdout.strip() == "0"
        await guest.hardware.inject(name, (Fault(operation="write", effect="torn", count=1),))
        await guest.script(write)
        left = int((await guest.script(read)).stdout)
        assert left < 65536 and left % 512 == 0
        await guest.script(write)
        assert int((await guest.script(read)).stdout) == 65536
        assert injected(logs, name) == ["lost", "torn"]


@pytest.mark.slow
async def test_the_same_seed_hits_the_same_requests_again(guest: Guest, logs: Path) -> None:
    path, found = guest.disks["virtio"].path, []
    for seed in (1, 1, 2):
        before = len(injected(logs, "virtio"))
        await guest.hardware.inject("virtio", (Fault(operation="read", effect="EIO", probability=0.3, seed=seed),))
        done = await guest.script(
            'for n in $(seq 30); do dd if="$1" of=/dev/null bs=4k count=1 skip="$n" iflag=direct 2>/dev/null '
            '|| echo "$n"; done',
            path,
        )
        found.append(done.stdout.split())
        # Exactly those requests failed in the guest that the host made fail.
        assert len(injected(logs, "virtio")) - before == len(found[-1]) > 0
    assert found[0] == found[1] != found[2]


async def test_a_namespace_reports_the_nvme_status_of_failed_reads(guest: Guest) -> None:
    await guest.hardware.inject("nvme", (Fault(operation="read", effect="EIO"),))
    said = (
        await guest.script('dd if="$1" of=/dev/null bs=4k count=1 iflag=direct; dmesg', guest.disks["nvme"].path)
    ).stdout
    # Unrecovered Read Error: SCT 2, SC 81h (NVM Express Base Specification, Media and Data Integrity Errors).
    assert "sct 0x2 / sc 0x81" in said.replace("(sct", "sct"), said[-2000:]


async def test_a_failing_flush_can_be_cleared_and_a_dead_disk_unplugged(guest: Guest) -> None:
    for name in ("virtio", "nvme"):
        path = guest.disks[name].path
        await guest.hardware.inject(
            name, (Fault(operation="flush", effect="EIO"), Fault(operation="read", effect="EIO", count=1))
        )
        # Before it changes a disk's nodes, QEMU itself flushes what was written and not flushed.
        assert await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "oflag=direct", "conv=fsync")
        await guest.hardware.inject(name, ())
        assert not await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "oflag=direct", "conv=fsync")
        assert not await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "oflag=direct")
        await guest.hardware.unplug(name, surprise=True)
        await guest.hardware.plug(name)
