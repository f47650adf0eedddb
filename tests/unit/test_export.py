"""The exported device: its store and cache, how requests end, and the wire, spoken by QEMU's own client."""

import errno
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.export import device
from testbed.export.device import Device, Request
from testbed.export.store import File, Nowhere, VolatileCache
from testbed.hardware.faults import Fault
from testbed.hardware.latency import Latency

ROOT = Path(__file__).parents[2]
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


def ended(device: Device, request: Request) -> tuple[int, bytes]:
    found: list[tuple[int, bytes]] = []
    done = threading.Event()

    def reply(error: int, data: bytes) -> None:
        found.append((error, data))
        done.set()

    device.submit(request, reply)
    assert done.wait(20)
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
def test_the_first_write_after_a_flush_is_kept_where_nobody_says_which_must_be(drops_fua: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_FORCED_S", 0.0)
    below = Memory(64 * KIB)
    cache = VolatileCache(below, room_bytes=1 << 20, lies=False)
    exported = Device(cache, log=io.StringIO(), drops_fua=drops_fua)
    for request in (write(0, b"a" * 4 * KIB), Request(operation="flush"), write(4 * KIB, b"b" * 4 * KIB), write(8 * KIB, b"c" * 4 * KIB)):
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
    store = File(str(path), read_only=False)
    store.write(4 * KIB, b"y" * 4 * KIB)
    assert path.read_bytes()[4 * KIB : 8 * KIB] == b"y" * 4 * KIB
    store.trim(4 * KIB, 4 * KIB)
    assert store.read(0, 64 * KIB) == bytes(64 * KIB)


def test_nowhere_reads_as_zeros() -> None:
    store = Nowhere(64 * KIB)
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
    assert [json.loads(line)["effect"] for line in log.getvalue().splitlines()] == ["ENOSPC", "ENOSPC", "EIO", "lost", "ENOMEM"]


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
            assert data == b"t" * found[-1] + bytes(32 * KIB - found[-1]) and found[-1] % 512 == 0 and found[-1] < 32 * KIB
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
    device = Device(Memory(KIB), log=io.StringIO())
    device.set_latency(Latency(read_us=30_000, jitter_us=10_000))
    started = time.monotonic()
    assert ended(device, read(0, 1))[0] == 0
    assert time.monotonic() - started >= 0.02


def test_requests_wait_side_by_side() -> None:
    device = Device(Memory(KIB), log=io.StringIO())
    device.set_latency(Latency(read_us=200_000))
    left = threading.Semaphore(0)
    started = time.monotonic()
    for _ in range(20):
        device.submit(read(0, 1), lambda error, data: left.release())
    for _ in range(20):
        assert left.acquire(timeout=20)
    assert time.monotonic() - started < 20 * 0.2


def test_a_device_that_hangs_ends_nothing_until_it_recovers() -> None:
    device = Device(Memory(KIB), log=io.StringIO())
    device.hold(3600)
    done = threading.Event()
    device.submit(read(0, 1), lambda error, data: done.set())
    assert not done.wait(0.05)
    device.hold(0)
    assert done.wait(20)


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    settings = {"socket": str(tmp_path / "s"), "file": str(tmp_path / "disk"), "cache": {"room_bytes": 1 << 20, "lies": False}}
    words = [sys.executable, "-m", "testbed.export", json.dumps(settings)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "{}\n"
        yield f"nbd+unix:///?socket={tmp_path / 's'}", process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


def tell(process: "subprocess.Popen[str]", **asked: Any) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def qemu_io(url: str, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", "-f", "raw", url, *words], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_qemus_client_reads_and_writes_it(exported: tuple[str, "subprocess.Popen[str]"], tmp_path: Path) -> None:
    url, process = exported
    said = qemu_io(
        url, "write -P 90 0 64k", "read -P 90 0 64k", "discard 0 4k", "read -P 0 0 4k", "write -z 8k 4k", "write -f -P 7 512k 512"
    )
    assert "failed" not in said and said.count("wrote ") == 3
    assert (tmp_path / "disk").read_bytes()[512 * KIB] == 7
    assert tell(process, verb="faults", faults=[{"operation": "write", "effect": "ENOSPC", "count": 1}]) == {}
    assert "No space left on device" in qemu_io(url, "write 0 4k")
    assert "Input/output error" in qemu_io(url, "read 2M 4k") or "beyond" in qemu_io(url, "read 2M 4k")


def test_a_power_cut_is_final(exported: tuple[str, "subprocess.Popen[str]"], tmp_path: Path) -> None:
    _, process = exported
    before = (tmp_path / "disk").read_bytes()
    assert tell(process, verb="lose", share=0.0, seed=1, end=True) == {"lost_blocks": 0}
    assert (tmp_path / "disk").read_bytes() == before


def test_what_it_is_told_wrongly_is_said_back(exported: tuple[str, "subprocess.Popen[str]"]) -> None:
    _, process = exported
    assert "unexpected keyword" in tell(process, verb="latency", reed_us=1)["error"]
    assert "expected a verb" in tell(process, verb="loose")["error"]
    assert tell(process, verb="latency", read_us=1) == {}


def test_requests_that_wait_can_be_hurried() -> None:
    device = Device(Memory(KIB), log=io.StringIO())
    device.set_latency(Latency(read_us=600_000_000))
    left = threading.Semaphore(0)
    for _ in range(3):
        device.submit(read(0, 1), lambda error, data: left.release())
    device.hurry()
    for _ in range(3):
        assert left.acquire(timeout=20)


def test_a_device_without_power_ends_nothing_any_longer() -> None:
    device = Device(Memory(KIB), log=io.StringIO())
    with device.still(end=True):
        pass
    done = threading.Event()
    device.submit(read(0, 1), lambda error, data: done.set())
    assert not done.wait(0.2)
