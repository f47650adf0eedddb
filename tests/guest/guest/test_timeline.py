"""Timelines and samples on a running guest."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import HostError, UsageError
from testbed.guest import clock, hardware_control, snapshot
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.guest.metrics.disk_sampler import BOUNDARIES_NS, DiskSampler, sampling_disks
from testbed.guest.timeline import LOG, run_timeline
from testbed.hardware.throttle import Throttle
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel
from testbed.topology.timeline import TimelineEntry

KINDS = ("virtio", "nvme", "scsi")
MODEL = GuestModel.model_validate(
    {
        "disks": {
            "virtio": {"type": "virtio-blk", "size": "64M"},
            "nvme": {"type": "nvme", "size": "64M"},
            "scsi": {"type": "virtio-scsi", "size": "64M"},
        },
    }
)


@pytest.fixture
async def guest(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> AsyncIterator[Guest]:
    async with factory.guest("g0", MODEL, kernel, logs) as started:
        yield started


def acts(*said: dict[str, Any]) -> tuple[TimelineEntry, ...]:
    return tuple(TimelineEntry.model_validate(one) for one in said)


def lines(logs: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (logs / name).read_text().splitlines()]


async def logged(logs: Path, count: int, log: str = LOG) -> list[dict[str, Any]]:
    """Wait until `count` records are logged; return them."""
    async with asyncio.timeout(120):
        while not (logs / log).exists() or len(lines(logs, log)) < count:
            await asyncio.sleep(0.05)
    return lines(logs, log)


@pytest.mark.slow
async def test_acts_begin_at_times_and_events_and_are_logged(guest: Guest, logs: Path) -> None:
    timeline = acts(
        {"at": "100ms", "ramp": "300ms", "steps": 3, "do": "throttle virtio iops-total=400..100"},
        {"every": "200ms", "times": 2, "do": "hang nvme 50ms"},
        {"when": {"mark": "warm"}, "do": "inject scsi read-only"},
        {"when": {"mark": "said"}, "do": "delay virtio 2ms"},
        {"when": {"console": "all is (well|lost)"}, "at": "50ms", "do": "unplug nvme"},
        {
            "when": {"cgroup": "watched", "counter": "cgroup.stat nr_descendants", "above": 1},
            "do": "throttle scsi bps-read=1M",
        },
        {"when": {"mark": "never"}, "do": "unplug scsi"},
    )
    async with run_timeline(guest, timeline) as missed:
        first = await logged(logs, 6)
        assert [line["do"] for line in first if line["act"] == 0] == [
            f"throttle virtio iops-total={n}" for n in (400, 300, 200, 100)
        ]
        assert [line["do"] for line in first if line["act"] == 1] == ["hang nvme 50ms"] * 2
        guest.marks.reach("warm")
        assert (await logged(logs, 8))[-1]["now"]["inject"] == ["write=EIO", "discard=EIO"]
        await guest.script('echo "testbed-mark said" >/dev/kmsg')
        assert (await logged(logs, 10))[-1]["now"]["delay"] == ["read=2ms", "write=2ms", "flush=2ms"]
        await guest.script('echo "now all is well" >/dev/kmsg')
        assert (await logged(logs, 12))[-1]["now"]["throttle"] == ["unplugged"]
        await guest.script("cd /sys/fs/cgroup; mkdir watched watched/a; sleep 1; mkdir watched/b")
        found = await logged(logs, 14)
    mark, said, line, counted = (line["reached"] for line in found if "reached" in line)
    assert (mark, said, counted) == ("mark warm", "mark said", "watched/cgroup.stat nr_descendants is 2")
    assert line.startswith("console: [") and line.endswith("] now all is well")
    assert found[-1]["now"]["throttle"] == ["bps-read=1M"]
    assert not any(line["act"] == 6 for line in found)
    assert missed == ["when mark never: unplug scsi"] and lines(logs, LOG)[-1]["missed"] == missed[0]


@pytest.mark.slow
async def test_a_failed_action_is_reported_and_the_others_run(guest: Guest, logs: Path) -> None:
    with pytest.raises(UsageError, match=r"^timeline: plug nvme: disk nvme: it is plugged in already"):
        async with run_timeline(
            guest, acts({"at": 0, "do": "plug nvme"}, {"at": "100ms", "do": "throttle nvme iops-total=9"})
        ):
            await logged(logs, 2)
    failed, done = lines(logs, LOG)
    assert (
        failed["do"] == "plug nvme"
        and "plugged in already" in failed["error"]
        and done["now"]["throttle"] == ["iops-total=9"]
    )


@pytest.mark.slow
async def test_our_clock_and_the_guests_agree(guest: Guest) -> None:
    before = await clock.read_clock(guest)
    said = float((await guest.script("read -r up rest </proc/uptime; echo $up")).stdout)
    now = asyncio.get_running_loop().time()
    after = await clock.read_clock(guest)
    # The times that it reported are not later than now.
    assert said <= before.uptime(now) + before.error_s
    assert abs(before.offset_s - after.offset_s) <= before.error_s + after.error_s


@pytest.mark.slow
async def test_samples_count_what_the_guest_did_and_nothing_else(guest: Guest) -> None:
    sampler = await DiskSampler.start(guest)
    for name in KINDS:
        path = guest.disks[name].path
        before = (await sampler.sample())["disks"][name]
        await guest.run("dd", f"if={path}", "of=/dev/null", "bs=4k", "count=100", "iflag=direct", "status=none")
        await guest.run(
            "dd", "if=/dev/zero", f"of={path}", "bs=64k", "count=10", "oflag=direct", "conv=fsync", "status=none"
        )
        after = (await sampler.sample())["disks"][name]
        assert after["rd"]["requests"] - before["rd"]["requests"] == 100
        assert after["rd"]["bytes"] - before["rd"]["bytes"] == 100 * 4096
        assert after["wr"]["bytes"] - before["wr"]["bytes"] == 640 * 1024
        assert sum(after["rd"]["latency"]) - sum(before["rd"].get("latency", [0])) == 100
        assert len(after["rd"]["latency"]) == len(BOUNDARIES_NS) + 1
        assert after["rd"]["time_ns"] > before["rd"]["time_ns"], name
        # QEMU 7.2's nvme does not count flushes.
        assert after["flush"]["requests"] > before["flush"]["requests"] or name == "nvme"


@pytest.mark.slow
async def test_samples_have_errors_and_limits(guest: Guest) -> None:
    sampler = await DiskSampler.start(guest)
    await guest.hardware.throttle("virtio", Throttle(iops_read=100, iops_read_max=200))
    assert (await sampler.sample())["disks"]["virtio"]["throttle"] == {
        "iops-read": 100,
        "iops-read-max": 200,
        "iops-read-max-length": 1,
    }
    await hardware_control.apply(guest, ["inject", "virtio", "read=EIO,count=3"])
    for _ in range(3):
        await guest.run(
            "dd", f"if={guest.disks['virtio'].path}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct", check=False
        )
    assert (await sampler.sample())["disks"]["virtio"]["rd"]["failed"] == 3
    # A disk that is plugged again has the limits of its topology, whatever it had before.
    await guest.hardware.throttle("nvme", Throttle(iops_total=100))
    assert (await sampler.sample())["disks"]["nvme"]["throttle"] == {"iops-total": 100}
    await guest.hardware.unplug("nvme")
    await guest.hardware.plug("nvme")
    assert (await sampler.sample())["disks"]["nvme"]["throttle"] == {}


@pytest.mark.slow
async def test_samples_are_written_down_as_a_disk_comes_and_goes(guest: Guest, logs: Path) -> None:
    async with sampling_disks(guest, 0.05):
        assert "nvme" in (await logged(logs, 1, "samples.jsonl"))[0]["disks"]
        await guest.hardware.unplug("nvme")
        async with asyncio.timeout(60):
            while "nvme" in lines(logs, "samples.jsonl")[-1]["disks"]:
                await asyncio.sleep(0.05)
        await guest.hardware.plug("nvme")
        async with asyncio.timeout(60):
            while "latency" not in lines(logs, "samples.jsonl")[-1]["disks"].get("nvme", {"rd": {}})["rd"]:
                await asyncio.sleep(0.05)
        with pytest.raises(HostError):
            await guest.monitor.execute("query-nothing")
    found = lines(logs, "samples.jsonl")
    there = ["nvme" in line["disks"] for line in found]
    assert there[0] and not all(there)
    assert [line["monotonic_s"] for line in found] == sorted(line["monotonic_s"] for line in found)
    offsets = {round(line["guest_s"] - line["monotonic_s"], 3) for line in found}
    assert max(offsets) - min(offsets) <= 0.0011


@pytest.mark.slow
async def test_a_timeline_takes_memory_and_cpus_and_gives_them_back(
    factory: GuestFactory, kernel: KernelFiles, logs: Path
) -> None:
    timeline = acts(
        {"at": "10ms", "ramp": "200ms", "steps": 2, "do": "memory 1000M..900M"},
        {"when": {"mark": "taken"}, "do": "cpus 1"},
        {"when": {"mark": "enough"}, "do": "memory off"},
        {"when": {"mark": "enough"}, "at": "10ms", "do": "cpus off"},
    )
    model = MODEL.model_copy(update={"timeline": timeline})
    async with factory.guest("g0", model, kernel, logs) as guest:
        full = await total_memory(guest)
        async with run_timeline(guest):
            assert [line["now"]["memory"] for line in await logged(logs, 3)] == [["1000M"], ["950M"], ["900M"]]
            # The pages of the balloon are not part of the guest's MemTotal.
            assert full - await total_memory(guest) == 124 << 20
            guest.marks.reach("taken")
            assert (await logged(logs, 5))[-1]["now"]["cpus"] == ["1"]
            assert (await guest.run("nproc")).stdout.strip() == "1"
            guest.marks.reach("enough")
            await logged(logs, 9)
        assert (await guest.run("nproc")).stdout.strip() == "2"
        assert await total_memory(guest) == full
        for wrong in ("memory 2G", "memory 0", "cpus 3", "cpus 0", "cpus none", "memory"):
            with pytest.raises(UsageError):
                await hardware_control.apply(guest, wrong.split())
        with pytest.raises(UsageError, match="a balloon has been plugged in"):
            await snapshot.save_snapshot(guest, logs / "saved", {})


async def test_a_clone_refuses_a_balloon_which_would_punch_holes_into_the_template(guest: Guest) -> None:
    with pytest.raises(UsageError, match="got a clone"):
        await hardware_control.apply(guest, ["memory", "900M"])
    assert (await hardware_control.apply(guest, ["memory", "off"]))["memory"] == ["1G"]


async def total_memory(guest: Guest) -> int:
    """Return the guest's memory in bytes, as its kernel reports it."""
    text = (await guest.run("cat", "/proc/meminfo")).stdout
    return int(text.split()[1]) << 10
