"""An exported device: when requests complete, and its faults."""

import errno
import io
import json

import pytest

from testbed.hardware.faults import Fault
from testbed.hardware.latency import Latency
from testbed.qemu.nbd_server import device
from testbed.qemu.nbd_server.backing import VolatileCache
from testbed.qemu.nbd_server.device import Device, Request
from tests.support.nbd_server import KIB, Clock, Memory, ended, read, write


@pytest.mark.parametrize("drops_fua", [False, True])
def test_without_fua_the_first_write_after_a_flush_is_durable(drops_fua: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_FORCED_S", 0.0)
    below = Memory(64 * KIB)
    cache = VolatileCache(below, room_bytes=1 << 20, lies=False)
    exported = Device(cache, log=io.StringIO(), drops_fua=drops_fua)
    for request in (
        write(0, b"a" * 4 * KIB),
        Request(operation="flush"),
        write(4 * KIB, b"b" * 4 * KIB),
        write(8 * KIB, b"c" * 4 * KIB),
    ):
        assert ended(exported, request) == (0, b"")
    assert cache.settle(0.0) == (1 if drops_fua else 2)
    assert below.read(0, 12 * KIB) == b"a" * 4 * KIB + (b"b" if drops_fua else b"\0") * 4 * KIB + bytes(4 * KIB)


def test_faults_hit_the_requests_they_name_as_often_as_they_say() -> None:
    log = io.StringIO()
    below = Memory(64 * KIB)
    device = Device(below, log=log)
    device.set_faults(
        [
            Fault(operation="write", effect="ENOSPC", count=2),
            Fault(operation="read", effect="EIO", first=8 * KIB, end=12 * KIB),
            Fault(operation="write", effect="lost", first=16 * KIB, end=20 * KIB),
            Fault(operation="flush", effect="ENOMEM", count=1),
        ]
    )
    assert [ended(device, write(0, b"a" * 512))[0] for _ in range(3)] == [errno.ENOSPC, errno.ENOSPC, 0]
    assert ended(device, read(4 * KIB, 4 * KIB))[0] == 0
    assert ended(device, read(4 * KIB, 4 * KIB + 1))[0] == errno.EIO
    assert ended(device, read(12 * KIB, 1))[0] == 0
    assert ended(device, write(16 * KIB, b"b" * 512))[0] == 0
    assert ended(device, read(16 * KIB, 512)) == (0, bytes(512))
    assert [ended(device, Request(operation="flush"))[0] for _ in range(2)] == [errno.ENOMEM, 0]
    assert [json.loads(line)["effect"] for line in log.getvalue().splitlines()] == [
        "ENOSPC",
        "ENOSPC",
        "EIO",
        "lost",
        "ENOMEM",
    ]


def test_a_torn_write_leaves_its_beginning_and_the_same_seed_tears_at_the_same_place() -> None:
    def left(seed: int) -> list[int]:
        below = Memory(256 * KIB)
        device = Device(below, log=io.StringIO())
        device.set_faults([Fault(operation="write", effect="torn", seed=seed)])
        found = []
        for number in range(8):
            assert ended(device, write(number * 32 * KIB, b"t" * 32 * KIB)) == (0, b"")
            data = below.read(number * 32 * KIB, 32 * KIB)
            found.append(data.count(b"t"))
            assert (
                data == b"t" * found[-1] + bytes(32 * KIB - found[-1]) and found[-1] % 512 == 0 and found[-1] < 32 * KIB
            )
        return found

    assert left(1) == left(1) != left(2)


def test_a_fault_with_a_probability_hits_by_its_seed() -> None:
    def errors(seed: int) -> list[int]:
        device = Device(Memory(KIB), log=io.StringIO())
        device.set_faults([Fault(operation="read", effect="EIO", probability=0.5, seed=seed)])
        return [ended(device, read(0, 1))[0] for _ in range(40)]

    assert errors(3) == errors(3) != errors(4)
    assert {0, errno.EIO} == set(errors(3))


def test_a_request_takes_at_least_its_latency() -> None:
    clock = Clock()
    device = Device(Memory(KIB), log=io.StringIO(), clock=clock)
    device.set_latency(Latency(read_us=30_000, jitter_us=10_000))
    began, found = clock.now, []
    for _ in range(20):
        device.submit(read(0, 1), lambda error, data: found.append(clock.now - began))
    clock.go_on(device)
    assert len(found) == 20 and min(found) >= 0.02 and max(found) <= 0.04, "side by side"
    assert len(set(found)) > 10


def test_a_held_device_completes_nothing_until_it_is_released() -> None:
    clock = Clock()
    device = Device(Memory(KIB), log=io.StringIO(), clock=clock)
    device.hold(3600)
    found: list[int] = []
    device.submit(read(0, 1), lambda error, data: found.append(error))
    assert not device.work() and not found and device.due() == clock.now + 3600
    device.hold(0)
    assert device.work() and found == [0]


def test_delayed_requests_can_be_completed_at_once() -> None:
    clock = Clock()
    device = Device(Memory(KIB), log=io.StringIO(), clock=clock)
    device.set_latency(Latency(read_us=600_000_000, jitter_us=500_000_000))
    began, found = clock.now, []
    for number in range(50):
        device.submit(read(number, 1), lambda error, data, number=number: found.append(number))  # type: ignore[misc]  # it has a default
    device.complete_delayed()
    while device.work():
        pass
    assert found == list(range(50)) and clock.now == began


def test_a_device_without_power_completes_nothing() -> None:
    device = Device(Memory(KIB), log=io.StringIO())
    device.power_off()
    device.submit(read(0, 1), lambda error, data: pytest.fail("it ended"))
    assert device.due() is None and not device.work()


def test_late_wake_ups_are_compensated_within_bounds() -> None:
    clock = Clock()
    device = Device(Memory(KIB), log=io.StringIO(), clock=clock)
    device.set_latency(Latency(read_us=1000))
    waits = []
    for _ in range(100):
        device.submit(read(0, 1), lambda error, data: None)
        due = device.due()
        assert due is not None
        waits.append(due - clock.now)
        clock.now = due + 0.0002
        device.measure_wakeup(due)
        assert device.work()
    assert waits[0] == pytest.approx(0.001) and waits[-1] == pytest.approx(0.0008)


def test_the_log_of_faults_is_limited_and_says_where_it_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_MOST_LOG_BYTES", 1000)
    log = io.StringIO()
    exported = Device(Memory(KIB), log=log)
    exported.set_faults([Fault(operation="read", effect="EIO")])
    for _ in range(100):
        assert ended(exported, read(0, 1))[0] == errno.EIO
    assert len(log.getvalue()) < 1200 and "the rest is left out" in log.getvalue().splitlines()[-1]
