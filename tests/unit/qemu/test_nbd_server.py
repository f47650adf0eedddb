"""The exported device: its store and cache, how requests end, and the process, spoken to by QEMU's own client. What a client does that is
none of ours is in test_export_client.py.
"""

import errno
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.hardware.faults import Fault
from testbed.hardware.latency import Latency
from testbed.qemu.nbd_server import device
from testbed.qemu.nbd_server.backing import DiscardingBacking, FileBacking, VolatileCache
from testbed.qemu.nbd_server.device import Device, Request
from testbed.qemu.nbd_server.settings import Settings

ROOT = Path(__file__).parents[3]
KIB = 1024


class Memory:
    """A store that remembers what reached it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray(size)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def trim(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        pass


class Clock:
    """Time that goes on when a device has nothing to do before."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def go_on(self, device: Device) -> None:
        while (due := device.due()) is not None:
            self.now = max(self.now, due)
            assert device.work()


def ended(device: Device, request: Request) -> tuple[int, bytes]:
    found: list[tuple[int, bytes]] = []
    device.submit(request, lambda error, data: found.append((error, data)))
    return found[0]


def write(offset: int, data: bytes, *, fua: bool = False) -> Request:
    return Request(operation="write", offset=offset, length=len(data), data=data, fua=fua)


def read(offset: int, length: int) -> Request:
    return Request(operation="read", offset=offset, length=length)


writes = st.lists(st.tuples(st.integers(0, 60 * KIB), st.binary(min_size=1, max_size=4 * KIB)), max_size=12)


@given(done=writes, room=st.integers(1, 64 * KIB))
def test_a_cache_reads_as_what_was_written_and_a_flush_puts_it_below(done: list[tuple[int, bytes]], room: int) -> None:
    below, plain = Memory(64 * KIB), Memory(64 * KIB)
    cache = VolatileCache(below, room_bytes=room, lies=False)
    for offset, data in done:
        cache.write(offset, data)
        plain.write(offset, data)
        assert cache.read(0, 64 * KIB) == plain.data
    cache.flush()
    assert below.data == plain.data


def test_a_power_cut_loses_what_was_not_flushed_and_the_same_seed_loses_the_same() -> None:
    def survivors(seed: int) -> bytes:
        below = Memory(1024 * KIB)
        cache = VolatileCache(below, room_bytes=1 << 20, lies=False)
        cache.write(0, b"f" * 8 * KIB)
        cache.flush()
        cache.write(8 * KIB, b"u" * 400 * KIB)
        lost = cache.settle(0.5, seed)
        assert below.read(0, 8 * KIB) == b"f" * 8 * KIB
        assert lost == 100 - below.data.count(b"u") // (4 * KIB) and 20 < lost < 80
        return bytes(below.data)

    assert survivors(1) == survivors(1) != survivors(2)


@pytest.mark.parametrize("drops_fua", [False, True])
def test_the_first_write_after_a_flush_is_kept_where_nobody_says_which_must_be(
    drops_fua: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_cache_that_lies_loses_what_it_said_it_had_flushed() -> None:
    below = Memory(64 * KIB)
    cache = VolatileCache(below, room_bytes=1 << 20, lies=True)
    cache.write(0, b"x" * 4 * KIB)
    cache.flush()
    assert below.read(0, 4 * KIB) == bytes(4 * KIB)
    assert cache.settle(0.0) == 1


def test_a_cache_without_room_writes_out_the_oldest() -> None:
    below = Memory(64 * KIB)
    cache = VolatileCache(below, room_bytes=8 * KIB, lies=True)
    for number in range(3):
        cache.write(number * 4 * KIB, bytes([number + 1]) * 4 * KIB)
    assert below.read(0, 4 * KIB) == b"\1" * 4 * KIB
    assert below.read(4 * KIB, 8 * KIB) == bytes(8 * KIB)


def test_a_file_is_written_read_and_punched(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(64 * KIB))
    with path.open("r+b") as file:
        store = FileBacking(file.fileno(), room_bytes=128 * KIB)
        store.write(4 * KIB, b"y" * 4 * KIB)
        assert path.read_bytes()[4 * KIB : 8 * KIB] == b"y" * 4 * KIB
        store.trim(4 * KIB, 4 * KIB)
        assert store.read(0, 128 * KIB) == bytes(128 * KIB), "also what it has not grown to"


def test_nowhere_reads_as_zeros() -> None:
    store = DiscardingBacking(64 * KIB)
    store.write(0, b"z")
    assert store.read(0, 2) == b"\0\0"


def test_faults_say_which_requests_go_wrong_and_how_often() -> None:
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


def test_a_torn_write_leaves_its_beginning_and_the_same_seed_tears_the_same() -> None:
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


def test_a_probability_is_drawn_from_the_seed() -> None:
    def errors(seed: int) -> list[int]:
        device = Device(Memory(KIB), log=io.StringIO())
        device.set_faults([Fault(operation="read", effect="EIO", probability=0.5, seed=seed)])
        return [ended(device, read(0, 1))[0] for _ in range(40)]

    assert errors(3) == errors(3) != errors(4)
    assert {0, errno.EIO} == set(errors(3))


def test_a_request_takes_its_latency_and_not_less() -> None:
    clock = Clock()
    device = Device(Memory(KIB), log=io.StringIO(), clock=clock)
    device.set_latency(Latency(read_us=30_000, jitter_us=10_000))
    began, found = clock.now, []
    for _ in range(20):
        device.submit(read(0, 1), lambda error, data: found.append(clock.now - began))
    clock.go_on(device)
    assert len(found) == 20 and min(found) >= 0.02 and max(found) <= 0.04, "side by side"
    assert len(set(found)) > 10


def test_a_device_that_hangs_ends_nothing_until_it_recovers() -> None:
    clock = Clock()
    device = Device(Memory(KIB), log=io.StringIO(), clock=clock)
    device.hold(3600)
    found: list[int] = []
    device.submit(read(0, 1), lambda error, data: found.append(error))
    assert not device.work() and not found and device.due() == clock.now + 3600
    device.hold(0)
    assert device.work() and found == [0]


def test_requests_that_wait_can_be_hurried() -> None:
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


def test_a_device_without_power_ends_nothing_any_longer() -> None:
    device = Device(Memory(KIB), log=io.StringIO())
    device.power_off()
    device.submit(read(0, 1), lambda error, data: pytest.fail("it ended"))
    assert device.due() is None and not device.work()


def test_waits_that_end_late_end_sooner_but_not_much() -> None:
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


# The process --------------------------------------------------------------------------------------------------------------------------


class Process:
    """One that exports a file of 1 MiB, or none; `client`: the client's end."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        disk = folder / "disk"
        if not disk.exists():
            disk.write_bytes(bytes(1 << 20))
        own, self.client = socket.socketpair()
        with own, disk.open("r+b") as file:
            handed = {"wire": own.fileno(), "file": file.fileno(), "parent": os.getpid()}
            words = [
                sys.executable,
                "-m",
                "testbed.qemu.nbd_server",
                json.dumps(asdict(Settings(**{**handed, **settings}))),
            ]
            self.child = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                pass_fds=(own.fileno(), file.fileno()),
            )
        assert self.said() == {}

    def said(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        found: dict[str, Any] = json.loads(self.child.stdout.readline())
        return found

    def tell(self, **asked: Any) -> dict[str, Any]:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(asked) + "\n")
        self.child.stdin.flush()
        return self.said()

    def end(self) -> int:
        """What it ends with when its owner is gone."""
        self.client.close()
        _, errors = self.child.communicate(timeout=20)
        assert "Traceback" not in errors
        return self.child.returncode


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, cache_bytes=1 << 20, block_bytes=512, confined=True)
    yield process
    assert process.end() == 0


def qemu_io(client: socket.socket, *commands: str) -> str:
    image = f"driver=raw,file.driver=nbd,file.server.type=fd,file.server.str={client.fileno()}"
    words = ["qemu-io", "--image-opts", image, *(word for command in commands for word in ("-c", command))]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, pass_fds=(client.fileno(),))
    return done.stdout + done.stderr


def test_qemus_client_reads_and_writes_it(exported: Process, tmp_path: Path) -> None:
    said = qemu_io(
        exported.client,
        *(
            "write -P 90 0 64k",
            "read -P 90 0 64k",
            "discard 0 4k",
            "read -P 0 0 4k",
            "write -z 8k 4k",
            "write -f -P 7 512k 512",
        ),
        *("write -P 5 700 100", "read -P 5 700 100", "read -P 90 4k 4k", "read -P 0 8k 4k"),
    )
    assert "failed" not in said and said.count("wrote ") == 4 and said.count("read ") == 5, said
    assert (tmp_path / "disk").read_bytes()[512 * KIB] == 7


def test_qemus_client_meets_its_faults(exported: Process) -> None:
    assert exported.tell(verb="faults", faults=[{"operation": "write", "effect": "ENOSPC", "count": 1}]) == {
        "number": None
    }
    said = qemu_io(exported.client, "write 0 4k", "write -P 1 0 4k")
    assert "No space left on device" in said and said.count("wrote ") == 1


def test_a_power_cut_is_final(exported: Process, tmp_path: Path) -> None:
    before = (tmp_path / "disk").read_bytes()
    assert exported.tell(verb="lose", share=0.0, seed=1, end=True, number=7) == {"lost_blocks": 0, "number": 7}
    assert (tmp_path / "disk").read_bytes() == before


def test_what_it_is_told_wrongly_is_said_back(exported: Process) -> None:
    assert "unexpected keyword" in exported.tell(verb="latency", reed_us=1)["error"]
    assert "expected a verb" in exported.tell(verb="loose")["error"]
    assert exported.tell(verb="latency", read_us=1, number=3) == {"number": 3}


def test_a_large_trim_takes_no_room_and_is_lost_like_a_write() -> None:
    below = Sparse(1 << 42)
    cache = VolatileCache(below, room_bytes=64 * KIB, lies=False)
    cache.trim(2 * KIB, 1 << 40)
    # All but the last 16 blocks, which are in the cache and can be lost; the cut ones at both ends have taken the place of two.
    end = (1 << 40) // (4 * KIB)
    assert below.trimmed[0] == (4 * KIB, (end - 17) * 4 * KIB)
    cache.flush()
    numbers = sorted(offset // (4 * KIB) for offset, length in below.trimmed[1:] if length == 4 * KIB)
    assert numbers == list(range(end - 16, end))


def test_a_disk_that_ends_within_a_block_does_not_grow(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(5 * KIB))
    with (tmp_path / "disk").open("r+b") as file:
        cache = VolatileCache(FileBacking(file.fileno()), room_bytes=64 * KIB, lies=False)
        cache.write(4 * KIB, b"x" * KIB)
        cache.flush()
    assert (tmp_path / "disk").read_bytes() == bytes(4 * KIB) + b"x" * KIB


def test_a_log_of_faults_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_MOST_LOG_BYTES", 1000)
    log = io.StringIO()
    exported = Device(Memory(KIB), log=log)
    exported.set_faults([Fault(operation="read", effect="EIO")])
    for _ in range(100):
        assert ended(exported, read(0, 1))[0] == errno.EIO
    assert len(log.getvalue()) < 1200 and "the rest is left out" in log.getvalue().splitlines()[-1]


class Sparse(DiscardingBacking):
    """A store that remembers what was trimmed."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.trimmed: list[tuple[int, int]] = []

    def trim(self, offset: int, length: int) -> None:
        self.trimmed.append((offset, length))
