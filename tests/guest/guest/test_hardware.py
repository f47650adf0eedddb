"""Disks that are told to behave otherwise while their guest runs, seen from the guest."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.guest import hardware_control
from testbed.guest.disk_control import DiskCondition
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.hardware.faults import ERRORS, Fault
from testbed.hardware.latency import NO_DELAY, Latency
from testbed.hardware.throttle import Throttle
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel

KINDS = ("virtio", "nvme", "scsi", "nowhere")
MODEL = GuestModel.model_validate(
    {
        "disks": {
            "virtio": {"type": "virtio-blk", "size": "64M"},
            "nvme": {"type": "nvme", "size": "64M"},
            "scsi": {"type": "virtio-scsi", "size": "64M"},
            "nowhere": {"type": "virtio-blk", "size": "64M", "format": "null-co"},
            "copied": {"type": "virtio-blk", "size": "64M", "format": "qcow2"},
            "strict": {"type": "virtio-blk", "size": "64M", "werror": "stop"},
            "shared": {"type": "virtio-blk", "size": "64M", "throttle-group": "both"},
        },
        "throttle-groups": {"both": {"iops-total": 1000}},
    }
)


@pytest.fixture
async def guest(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> AsyncIterator[Guest]:
    async with factory.guest("g0", MODEL, kernel, logs) as started:
        yield started


async def dd(guest: Guest, *words: str) -> int:
    return (await guest.run("dd", "bs=4k", *words, check=False)).status


async def reads(guest: Guest, name: str, count: int) -> float:
    """Seconds that so many requests, one after the other, take."""
    started = time.monotonic()
    assert await dd(guest, f"if={guest.disks[name].path}", "of=/dev/null", f"count={count}", "iflag=direct") == 0
    return time.monotonic() - started


async def nodes(guest: Guest) -> set[str]:
    found = await guest.monitor.execute("query-named-block-nodes", {"flat": True})
    return {node["node-name"] for node in found}


def injected(logs: Path, name: str) -> list[str]:
    log = logs / f"export-{name}.jsonl"
    lines = log.read_text().splitlines() if log.exists() else ()
    return [json.loads(line)["effect"] for line in lines]


@pytest.mark.slow
async def test_every_kind_of_disk_takes_other_limits_and_none(guest: Guest) -> None:
    for name in KINDS:
        # 50 a second, of which QEMU lets the first tenth of a second pass at once.
        await guest.hardware.throttle(name, Throttle(iops_total=50))
        assert (await guest.hardware.condition(name)).throttle == Throttle(iops_total=50)
        assert await reads(guest, name, 60) >= 1.0
        await guest.hardware.throttle(
            name, Throttle(iops_read=100, iops_read_max=200, iops_read_max_length=3, bps_write=1 << 20)
        )
        assert (await guest.hardware.condition(name)).throttle.iops_read_max_length == 3
        await guest.hardware.throttle(name, Throttle())
        assert (await guest.hardware.condition(name)) == DiskCondition(throttle=Throttle())


@pytest.mark.slow
async def test_every_kind_of_disk_takes_a_delay_and_keeps_its_data(guest: Guest) -> None:
    for name in KINDS:
        path = guest.disks[name].path
        await guest.script(
            f"head -c 8M /dev/urandom >/dev/shm/data; dd if=/dev/shm/data of={path} bs=1M oflag=direct status=none"
        )
        await guest.hardware.delay(name, Latency(read_us=50_000, write_us=1000))
        assert f"late-{name}" in await nodes(guest)
        assert await reads(guest, name, 20) >= 1.0
        if name != "nowhere":
            await guest.script(f"dd if={path} bs=1M count=8 iflag=direct status=none | cmp - /dev/shm/data")
            await guest.script(f"dd if=/dev/shm/data of={path} bs=1M skip=4 seek=8 oflag=direct conv=fsync status=none")
        assert (await guest.hardware.condition(name)).latency.read_us == 50_000
        await guest.hardware.delay(name, NO_DELAY)
        assert f"late-{name}" not in await nodes(guest)
        if name != "nowhere":
            await guest.script(
                f"tail -c 4M /dev/shm/data >/dev/shm/tail; dd if={path} bs=1M skip=8 count=4 status=none | cmp - /dev/shm/tail"
            )


@pytest.mark.slow
async def test_a_qcow2_disk_grows_while_it_is_delayed(guest: Guest) -> None:
    path = guest.disks["copied"].path
    await guest.hardware.delay("copied", Latency(read_us=1000, write_us=1000))
    await guest.script(
        f"head -c 8M /dev/urandom >/dev/shm/data; dd if=/dev/shm/data of={path} bs=1M oflag=direct status=none"
    )
    await guest.script(f"dd if={path} bs=1M count=8 iflag=direct status=none | cmp - /dev/shm/data")
    await guest.hardware.delay("copied", NO_DELAY)
    await guest.script(f"dd if={path} bs=1M count=8 iflag=direct status=none | cmp - /dev/shm/data")


@pytest.mark.slow
async def test_what_an_image_holds_is_as_late_as_what_was_written_over_it(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, tmp_path: Path
) -> None:
    image = tmp_path / "an image, of mine.img"
    image.write_bytes(b"mine" * 1024 * 1024)
    model = GuestModel.model_validate(
        {
            "disks": {
                kind: {"type": kind, "size": "8M", "image": str(image), "latency": {"both": "50ms"}}
                for kind in ("virtio-blk", "nvme")
            }
        }
    )
    async with factory.guest("g0", model, kernel, logs) as guest:
        for name in model.disks:
            path = guest.disks[name].path
            assert await reads(guest, name, 20) >= 1.0
            await guest.run("dd", "if=/dev/zero", f"of={path}", "bs=64k", "count=1", "oflag=direct")
            assert await reads(guest, name, 20) >= 1.0
            await guest.hardware.hang(name, 2)
            started = time.monotonic()
            assert await dd(guest, f"if={path}", "of=/dev/null", "skip=512", "count=1", "iflag=direct") == 0
            assert time.monotonic() - started >= 1.0
            await guest.hardware.delay(name, NO_DELAY)
            assert not {
                node for node in await nodes(guest) if node.startswith(f"late-{name}") or node == f"late-image-{name}"
            }
            await guest.script(
                f"yes mine | tr -d '\\n' | head -c 1M >/dev/shm/mine; head -c 4M {path} | tail -c 1M | cmp - /dev/shm/mine"
            )
            await guest.hardware.unplug(name)
            await guest.hardware.plug(name)
            assert await reads(guest, name, 20) >= 1.0


@pytest.mark.slow
async def test_an_error_is_seen_as_often_as_it_was_injected_and_qemu_says_it(guest: Guest, logs: Path) -> None:
    path = guest.disks["virtio"].path
    await guest.hardware.inject("virtio", (Fault(operation="read", effect="EIO", count=2),))
    assert "late-virtio" not in await nodes(guest)  # QEMU does it alone
    assert [await dd(guest, f"if={path}", "of=/dev/null", "count=1", "iflag=direct") for _ in range(3)] == [1, 1, 0]
    await guest.hardware.inject("virtio", (Fault(operation="flush", effect="EIO", count=1),))
    assert [await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "conv=fsync") for _ in range(2)] == [1, 0]
    events = [json.loads(line).get("event", {}) for line in (logs / "qmp.jsonl").read_text().splitlines()]
    seen = [event["data"] for event in events if event.get("event") == "BLOCK_IO_ERROR"]
    # QEMU 10 tells one event a second for each disk.
    assert seen[0]["operation"] == "read" and len(seen) <= 3 and all(one["action"] == "report" for one in seen)
    assert await guest.hardware.errors_of("virtio") == ["2 read errors reported", "1 write error reported"]
    assert f"dev {path.removeprefix('/dev/')}, sector 0 op 0x0:(READ)" in (await guest.run("dmesg")).stdout
    await guest.hardware.inject("virtio", ())
    assert not any(name.startswith(("faulty-virtio", "late-virtio")) for name in await nodes(guest))


@pytest.mark.slow
async def test_a_guest_stands_still_at_an_error_until_it_is_told_to_go_on(guest: Guest) -> None:
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
    # A flush that always fails is the export's; it stops the guest as well, until it is taken away. QEMU calls it a write error.
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


# What a program gets of an error that is injected, as docs/guests.md has it; dd says it in words.
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
async def test_an_error_that_stays_reaches_through_the_retries_and_is_the_one_of_the_docs(guest: Guest) -> None:
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
            f"dd if=/dev/zero of={path} bs=64k count=2 oflag=direct status=none; tr '\\0' x </dev/zero | head -c 64k >/dev/shm/x"
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
async def test_a_disk_that_hangs_recovers(guest: Guest) -> None:
    for name in ("virtio", "nvme"):
        await guest.hardware.hang(name, 600)
        reading = asyncio.create_task(reads(guest, name, 1))
        done, _ = await asyncio.wait({reading}, timeout=1)
        assert not done
        await guest.hardware.hang(name, 0)
        assert await reading >= 1.0


@pytest.mark.slow
async def test_what_is_wrong_changes_nothing(guest: Guest) -> None:
    before = {name: await guest.hardware.condition(name) for name in guest.hardware.names()}
    there = await nodes(guest)
    for disk, what, words, said in (
        ("dsk", "throttle", ["iops-total=1"], r"expected one of the guest's disks \(virtio, .*\), got 'dsk'"),
        ("root", "throttle", ["iops-total=1"], "got 'root'"),
        ("both", "inject", ["read=EIO"], "expected a disk, got 'both', which is a throttle group"),
        ("virtio", "throttle", ["iops-total=1", "iops-read=1"], "got both"),
        ("virtio", "throttle", ["iops-total=-1"], "expected a number such as 100"),
        ("virtio", "delay", ["fast"], "expected a duration"),
        ("virtio", "inject", ["read=lost"], "expected an error for a read"),
        ("virtio", "hang", ["2h"], "expected a duration"),
        ("root", "unplug", [], "got 'root'"),
        ("virtio", "plug", [], "it is plugged in already"),
        ("virtio", "resize", ["1000"], "expected a multiple of 4096 bytes, got 1000"),
        (
            "virtio",
            "inject",
            ["read=EIO,range=1T-2T"],
            "expected a range that begins within its 64M, got read=EIO,range=1099511627776-",
        ),
        ("copied", "inject", ["write=torn"], "it is kept in qcow2"),
        ("nvme", "resize", ["128M"], "QEMU's nvme keeps its size"),
        (
            "virtio",
            "explode",
            ["now"],
            "expected one of throttle, delay, inject, hang, unplug, plug, resize, memory, cpus, got 'explode'",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            await hardware_control.apply(guest, (what, disk, *words))
    assert {name: await guest.hardware.condition(name) for name in guest.hardware.names()} == before
    assert await nodes(guest) == there


@pytest.mark.slow
async def test_a_shared_group_limits_all_its_disks(guest: Guest) -> None:
    found = await hardware_control.apply(guest, ("throttle", "shared", "iops-total=40"))
    assert found["throttle"] == ["iops-total=40"]
    assert await reads(guest, "shared", 50) >= 1.0


@pytest.mark.slow
async def test_the_same_seed_hits_the_same_requests_again(guest: Guest, logs: Path) -> None:
    path, found = guest.disks["virtio"].path, []
    for seed in (1, 1, 2):
        before = len(injected(logs, "virtio"))
        await guest.hardware.inject("virtio", (Fault(operation="read", effect="EIO", probability=0.3, seed=seed),))
        done = await guest.script(
            'for n in $(seq 30); do dd if="$1" of=/dev/null bs=4k count=1 skip="$n" iflag=direct 2>/dev/null || echo "$n"; done',
            path,
        )
        found.append(done.stdout.split())
        # What the guest saw fail is what the host made fail.
        assert len(injected(logs, "virtio")) - before == len(found[-1]) > 0
    assert found[0] == found[1] != found[2]


async def test_a_namespace_says_which_status_its_reads_end_with(guest: Guest) -> None:
    await guest.hardware.inject("nvme", (Fault(operation="read", effect="EIO"),))
    said = (
        await guest.script('dd if="$1" of=/dev/null bs=4k count=1 iflag=direct; dmesg', guest.disks["nvme"].path)
    ).stdout
    # Unrecovered Read Error: SCT 2, SC 81h (NVM Express Base Specification, Media and Data Integrity Errors).
    assert "sct 0x2 / sc 0x81" in said.replace("(sct", "sct"), said[-2000:]


async def test_a_flush_that_always_fails_can_be_mended_and_a_dead_disk_taken_out(guest: Guest) -> None:
    for name in ("virtio", "nvme"):
        path = guest.disks[name].path
        await guest.hardware.inject(
            name, (Fault(operation="flush", effect="EIO"), Fault(operation="read", effect="EIO", count=1))
        )
        # What was written, and not flushed, QEMU flushes itself before it changes a disk's nodes.
        assert await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "oflag=direct", "conv=fsync")
        await guest.hardware.inject(name, ())
        assert not await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "oflag=direct", "conv=fsync")
        assert not await dd(guest, "if=/dev/zero", f"of={path}", "count=1", "oflag=direct")
        await guest.hardware.unplug(name, surprise=True)
        await guest.hardware.plug(name)


@pytest.mark.slow
async def test_a_disk_is_taken_out_and_comes_back_with_what_it_held(guest: Guest) -> None:
    for name in ("virtio", "nvme", "scsi"):
        by_serial = f"grep -l tb-{name} /sys/block/*/serial /sys/block/*/device/serial /sys/block/*/device/vpd_pg80 2>/dev/null | cut -d/ -f4"
        path = guest.disks[name].path
        await guest.script(f"echo kept | dd of={path} conv=sync oflag=direct status=none")
        await guest.hardware.inject(name, (Fault(operation="read", effect="EIO"),))
        await guest.hardware.delay(name, Latency(read_us=1000))
        await guest.hardware.unplug(name)
        assert (await guest.script(by_serial)).stdout == ""
        with pytest.raises(UsageError, match="it is unplugged"):
            await guest.hardware.throttle(name, Throttle())
        assert name not in guest.hardware.names()
        await guest.hardware.plug(name)
        device = (
            await guest.script(
                f'for n in $(seq 100); do found=$({by_serial}); [ -n "$found" ] && break; sleep 0.1; done; echo $found'
            )
        ).stdout
        assert (await guest.script(f"head -c 4 /dev/{device.strip()}")).stdout == "kept"


@pytest.mark.slow
async def test_a_disk_grows_while_the_guest_runs(guest: Guest) -> None:
    for name in ("virtio", "scsi"):
        path = guest.disks[name].path
        await guest.hardware.resize(name, 128 << 20)
        # The kernel's SCSI disk asks for its size only when it is told to.
        if name == "scsi":
            await guest.script("echo 1 >/sys/block/${1#/dev/}/device/rescan", path)
        seen = f"for n in $(seq 100); do size=$(blockdev --getsize64 {path}); [ $size = 134217728 ] && break; sleep 0.1; done; echo $size"
        assert (await guest.script(seen)).stdout == "134217728\n", name
