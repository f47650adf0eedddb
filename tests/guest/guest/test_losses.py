"""Guests that end in different ways: whoever waits gets the reason, and nothing of the guest is left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from testbed.errors import CommandFailed, GuestLost, UsageError
from testbed.guest.factory import GuestFactory
from testbed.guest.guest import Guest
from testbed.guest.lifecycle import State
from testbed.store.kernels.kernel_files import KernelFiles
from testbed.topology import GuestModel
from testbed.units import MIB


async def lose(factory: GuestFactory, kernel: KernelFiles, logs: Path, script: str) -> tuple[GuestLost, Guest, float]:
    """Run `script`, which ends the guest, during a ten-minute command; return the error, the guest and the seconds."""
    guest = None
    started = time.monotonic()
    with pytest.raises(GuestLost) as caught:
        async with factory.guest("g0", GuestModel(), kernel, logs) as guest:
            started = time.monotonic()
            await guest.script(f"({script}) & sleep 600", timeout_s=600)
    assert guest is not None and guest.state is State.STOPPED
    assert not Path(f"/proc/{guest.pid}").exists()
    assert not guest.spec.sockets.exists() and not guest.spec.scratch.exists()
    return caught.value, guest, time.monotonic() - started


async def test_a_panic_is_reported_with_the_console(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    lost, _, took_s = await lose(factory, kernel, logs, "echo c >/proc/sysrq-trigger")
    assert "Kernel panic - not syncing: sysrq triggered crash" in str(lost)
    assert lost.stage == State.READY.value
    assert any("sysrq" in line for line in lost.console_tail)
    assert took_s < 300


async def test_an_oops_ends_the_wait_too(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    # Text written to /dev/kmsg appears on the console like the kernel's own; a sound kernel cannot be made to oops.
    lost, _, _ = await lose(
        factory, kernel, logs, "echo '<1>BUG: unable to handle page fault for address: 0' >/dev/kmsg"
    )
    assert "oops on its console" in str(lost)


async def test_a_guest_that_powers_off_is_reported_as_such(
    factory: GuestFactory, kernel: KernelFiles, logs: Path
) -> None:
    lost, _, _ = await lose(factory, kernel, logs, "echo o >/proc/sysrq-trigger")
    assert "QEMU ended with status 0; the guest ended itself (guest-shutdown)" in str(lost)


async def test_a_killed_qemu_is_reported_as_killed(factory: GuestFactory, kernel: KernelFiles, logs: Path) -> None:
    with pytest.raises(GuestLost, match="QEMU ended with status -9"):
        async with factory.guest("g0", GuestModel(), kernel, logs) as guest:
            os.kill(guest.pid, signal.SIGKILL)
            await guest.run("sleep", "600", timeout_s=600)


async def test_a_silent_guest_is_given_up_at_the_deadline(
    factory: GuestFactory, kernel: KernelFiles, logs: Path
) -> None:
    started = time.monotonic()
    with pytest.raises((GuestLost, CommandFailed), match="within 2 s"):
        async with factory.guest("g0", GuestModel(), kernel, logs) as guest:
            os.kill(guest.pid, signal.SIGSTOP)
            with pytest.raises(
                GuestLost, match=rf"did not end within 1 s: its QEMU \(pid {guest.pid}\) is stopped by a signal"
            ):
                await guest.wait(guest.monitor.execute("query-status"), 1)
            started = time.monotonic()
            await guest.run("true", timeout_s=2)
    assert time.monotonic() - started < 60
    assert not Path(f"/proc/{guest.pid}").exists()


@pytest.mark.slow
async def test_a_failed_command_is_named_and_the_guest_goes_on(
    factory: GuestFactory, kernel: KernelFiles, logs: Path
) -> None:
    async with factory.guest("g0", GuestModel(), kernel, logs) as guest:
        with pytest.raises(
            CommandFailed, match=r"guest g0: `cat '/no such file'`: expected status 0, got 1: cat: .*No such file"
        ):
            await guest.run("cat", "/no such file")
        with pytest.raises(CommandFailed, match="got 137: Killed"):
            await guest.run("sh", "-c", "kill -9 $$")
        assert (await guest.run("sh", "-c", "exit 3", check=False)).status == 3
        # The output that is kept of a guest's command is limited.
        flood = await guest.run("sh", "-c", "head -c 20000000 /dev/zero")
        assert len(flood.stdout) == 8 << 20


# Prints the scores of the process itself, of a background job, and of the processes that serve the testbed.
SCORES = """cat /proc/self/oom_score_adj; sleep 60 & cat /proc/$!/oom_score_adj; kill $!
for pid in 1 $(pidof dropbear); do cat /proc/$pid/oom_score_adj; done
"""


@pytest.mark.slow
async def test_a_guest_without_free_memory_still_answers(
    factory: GuestFactory, kernel: KernelFiles, logs: Path
) -> None:
    async with factory.guest("g0", GuestModel(cpus=1, memory=256 * MIB), kernel, logs) as guest:
        for _ in range(5):
            # The input is one endless line, all of which `tail` keeps in memory.
            filled = await guest.run("tail", "/dev/zero", check=False, timeout_s=300)
            assert (filled.status, filled.signal) in ((137, ""), (-1, "KILL")), filled
            own, background, *exempt = (await guest.script(SCORES)).stdout.split()
            assert own == background == "0" and len(exempt) >= 3 and set(exempt) == {"-1000"}
        killed = (await guest.script("dmesg | grep 'Out of memory: Killed process'")).stdout.splitlines()
        assert len(killed) == 5 and all("(tail)" in line for line in killed)


@pytest.mark.slow
async def test_a_kernel_that_cannot_find_its_disk_is_reported(
    factory: GuestFactory, kernel: KernelFiles, logs: Path, tmp_path: Path
) -> None:
    # A Debian kernel without its modules has no driver for the root disk. It is refused if its configuration is known,
    # and booted otherwise.
    with pytest.raises(
        UsageError,
        match=r"no guest can boot it; its configuration .* lacks\n  CONFIG_VIRTIO_PCI=m without virtio_pci.ko",
    ):
        await factory.kernel(str(kernel.bzimage))
    bare = await factory.kernel(str(shutil.copy(kernel.bzimage, tmp_path / "bzImage")))
    factory.cold = True
    with pytest.raises(GuestLost, match="booting or restoring: panic on its console"):
        async with factory.guest("g0", GuestModel(), bare, logs):
            pass
    # Its first process prints this before it ends, but on a slow serial port the panic's message comes first.
    assert "testbed-initramfs: no disk with serial tb-root" in (logs / "console.log").read_text(errors="replace")
