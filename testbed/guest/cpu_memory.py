"""Changes a running guest's machine: memory by a balloon, CPUs by taking them offline."""

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
# A guest gives memory back in steps of 1 MiB; after this long without a step, it gives no more.
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
    """Set how much memory a guest has; None gives it all of its memory back.

    A virtio balloon takes the memory; it is plugged in at the first use. If the guest does not give up enough, it gets
    back what it had.

    :raise UsageError: the size is out of range, there is no free slot for the balloon, or the guest is a clone.
    :raise GuestError: the guest does not give up that much memory, or ends.
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
    """Refuse to take memory from a clone.

    QEMU returns what the balloon takes to the host. If the memory is mapped from a file, privately or not, that punches
    a hole into the file (softmmu/physmem.c: ram_block_discard_range), and all clones of a template start from that
    file.
    """
    if guest.spec.template is not None:
        raise UsageError(
            "memory: expected a guest that was booted, got a clone, whose memory others start from as well;"
            " start it with --cold, or with a memory act in its timeline"
        )


async def memory_state(guest: Guest) -> int:
    """Return how much memory a guest has now, in bytes."""
    return await _left(guest) or guest.spec.machine.memory_bytes


async def has_balloon(guest: Guest) -> bool:
    """Return whether a balloon was plugged into the guest."""
    return await _left(guest) is not None


async def _left(guest: Guest) -> int | None:
    """Return how much memory the balloon leaves the guest; None without a balloon."""
    with contextlib.suppress(HostError):  # "No balloon device has been activated"
        return int((await guest.monitor.execute("query-balloon", log=False))["actual"])
    return None


async def _plug_balloon(guest: Guest) -> None:
    model, ports = guest.model, guest.spec.machine.ports
    port = len(model.disks) + len(model.networks)
    if port >= ports:
        raise UsageError(
            f"memory: expected a free slot for the balloon, got {port} disks and networks in {ports};"
            " take one out of the topology"
        )
    await guest.monitor.execute("device_add", _BALLOON | {"bus": f"port{port}"})
    await guest.run("modprobe", "virtio_balloon")


async def set_cpus(guest: Guest, wanted: int | None) -> None:
    """Set how many CPUs of a guest are online; None brings all of them online.

    The kernel does the same as if a CPU was unplugged. The virtual CPU itself stays, because QEMU 7.2's TCG crashes in
    glibc (`malloc(): unsorted double linked list corrupted`) when one is plugged in again.

    :raise UsageError: the guest does not have that many. :raise GuestError: its kernel refuses.
    """
    most = guest.spec.machine.cpus
    count = most if wanted is None else wanted
    if not 1 <= count <= most:
        raise UsageError(f"cpus: expected 1 to the guest's {most}, got {count}")
    await guest.script(_CPUS, str(count))
    if (online := await cpu_state(guest)) != count:
        raise GuestError(f"cpus: expected {count} online in the guest, got {online}")


async def cpu_state(guest: Guest) -> int:
    """Return how many CPUs of a guest are online."""
    file = "/sys/devices/system/cpu/online"
    return online_cpus((await guest.run("cat", file)).stdout, f"guest {guest.name}: {file}")


def online_cpus(text: str, where: str) -> int:
    """Return how many CPUs a list such as `0-2,5` has.

    :raise ReadingError: it is no such list.
    """
    count = 0
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        begin = parse_whole(first, where, below=1 << 16)
        end = parse_whole(last, where, below=1 << 16) if dash else begin
        count += cgroupfs.growth(begin, end, where) + 1
    return count
