"""What a running guest's machine itself does on command: memory that a balloon takes away, CPUs that go and come."""

from __future__ import annotations

import asyncio
import contextlib
import time

from testbed import cgroupfs
from testbed.errors import GuestError, HostError, UsageError
from testbed.guest.guest import Guest
from testbed.units import MIB, format_size, parse_whole

_BALLOON = {"driver": "virtio-balloon-pci", "id": "balloon"}
_ENOUGH_BYTES = MIB
_POLL_S = 0.1
# A guest gives memory back in steps of 1 MiB; one that has made no step in so long gives no more.
_PATIENCE_S = 5.0

# CPU 0 cannot go offline.
_CPUS = """\
cd /sys/devices/system/cpu || exit
for cpu in cpu[1-9]*; do
    [ -e "$cpu/online" ] || continue
    wanted=$((${cpu#cpu} < $1))
    [ "$(cat "$cpu/online")" = "$wanted" ] || echo "$wanted" >"$cpu/online" || exit
done
"""


async def set_memory(guest: Guest, wanted_bytes: int | None) -> None:
    """Take memory from a guest until it has so much left, or give all of it back (None). It is taken by a virtio balloon, which is
    plugged in when it is first wanted. A guest that does not give so much has what it had before.

    :raise UsageError: it cannot have so much, there is no slot for the balloon, or it is a clone.
    :raise GuestError: it does not give so much, or dies of it.
    """
    most = guest.spec.machine.memory_bytes
    target = most if wanted_bytes is None else wanted_bytes
    if not 0 < target <= most or target % MIB:
        raise UsageError(
            f"memory: expected whole MiB, at most the guest's {format_size(most)}, got {format_size(target)}"
        )
    left = await _left(guest)
    if left is None:
        if target == most:
            return
        _refuse_clone(guest)
        await _plug_balloon(guest)
        left = most
    before, moved = left, time.monotonic()
    await guest.monitor.execute("balloon", {"value": target})
    while abs(left - target) >= _ENOUGH_BYTES:
        if time.monotonic() > moved + _PATIENCE_S:
            await guest.monitor.execute("balloon", {"value": before})
            raise GuestError(
                f"memory: expected the guest to keep {format_size(target)}, got {format_size(left)}: it gives no more"
            )
        await guest.wait(asyncio.sleep(_POLL_S), _PATIENCE_S)
        now = await _left(guest) or most
        if now != left:
            left, moved = now, time.monotonic()


def _refuse_clone(guest: Guest) -> None:
    """QEMU gives what the balloon takes back to the host, which for memory that is mapped from a file, private or not, is a hole in the
    file (softmmu/physmem.c: ram_block_discard_range); that file is what all clones of a template start from.
    """
    if guest.spec.template is not None:
        raise UsageError(
            "memory: expected a guest that was booted, got a clone, whose memory others start from as well;"
            " start it with --cold, or with a memory act in its timeline"
        )


async def memory_state(guest: Guest) -> int:
    """How much memory a guest has now, in bytes."""
    return await _left(guest) or guest.spec.machine.memory_bytes


async def has_balloon(guest: Guest) -> bool:
    """Whether memory was ever taken from a guest."""
    return await _left(guest) is not None


async def _left(guest: Guest) -> int | None:
    """What the balloon leaves the guest; None where there is no balloon."""
    with contextlib.suppress(HostError):  # "No balloon device has been activated"
        return int((await guest.monitor.execute("query-balloon", log=False))["actual"])
    return None


async def _plug_balloon(guest: Guest) -> None:
    model, ports = guest.model, guest.spec.machine.ports
    port = len(model.disks) + len(model.networks)
    if port >= ports:
        raise UsageError(
            f"memory: expected a free slot for the balloon, got {port} disks and networks in {ports}; take one out of the topology"
        )
    await guest.monitor.execute("device_add", _BALLOON | {"bus": f"port{port}"})
    await guest.run("modprobe", "virtio_balloon")


async def set_cpus(guest: Guest, wanted: int | None) -> None:
    """Take CPUs of a guest offline until so many are left, or all of them online again (None).

    The kernel does what it does when a CPU is unplugged; the virtual CPU itself stays, because QEMU 7.2's TCG ends in glibc's
    `malloc(): unsorted double linked list corrupted` when one is plugged in again.

    :raise UsageError: it cannot have so many. :raise GuestError: the guest refuses.
    """
    most = guest.spec.machine.cpus
    count = most if wanted is None else wanted
    if not 1 <= count <= most:
        raise UsageError(f"cpus: expected 1 to the guest's {most}, got {count}")
    await guest.script(_CPUS, str(count))
    if (online := await cpu_state(guest)) != count:
        raise GuestError(f"cpus: expected {count} online in the guest, got {online}")


async def cpu_state(guest: Guest) -> int:
    """How many CPUs of a guest are online now."""
    file = "/sys/devices/system/cpu/online"
    return online_cpus((await guest.run("cat", file)).stdout, f"guest {guest.name}: {file}")


def online_cpus(text: str, where: str) -> int:
    """How many CPUs a list such as `0-2,5` names.

    :raise ReadingError: it is no such list.
    """
    count = 0
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        begin = parse_whole(first, where, below=1 << 16)
        end = parse_whole(last, where, below=1 << 16) if dash else begin
        count += cgroupfs.growth(begin, end, where) + 1
    return count
