"""Finds out whether a guest boots under KVM, by booting one; the answer is cached by what it depends on."""

from __future__ import annotations

import asyncio
import os
import struct
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from testbed.hashing import content_key
from testbed.host import process
from testbed.host.facts import Host, Kvm
from testbed.progress import Progress
from testbed.qemu import jail, probe_cache
from testbed.store.cache import UNFINISHED, locked
from testbed.store.initramfs import cpio, directory, file
from testbed.store.kernels.kernel_files import KernelFiles

# A guest that boots under KVM does so in one or two seconds; one that never leaves the decompressor needs no longer to
# show it.
_LIMIT_S = 20
_EXIT_PORT = 0xF4
_EXIT_STATUS = 33  # isa-debug-exit ends QEMU with (value << 1) | 1, and the probe's init writes 16


async def find_kvm(cache: Path, host: Host, kernel: KernelFiles | None, device: Path, progress: Progress) -> Kvm:
    """Tell whether guests can use KVM through `device`. `kernel`: one to boot; without one, KVM counts as not proven.

    Only a boot to the first process proves it. On some machines the device opens, and even a virtual machine is made
    and runs its firmware, but no kernel gets past its decompressor.
    """
    if not device.exists():
        return Kvm(works=False, why="/dev/kvm does not exist", proven=True)
    if not os.access(device, os.R_OK | os.W_OK):
        return Kvm(works=False, why="/dev/kvm: no permission; join its group with: usermod -aG kvm USER", proven=True)
    status = device.stat()
    permitted = status.st_mode & 0o006 == 0o006 or (status.st_gid and status.st_mode & 0o060 == 0o060)
    if host.account is not None and not permitted:
        fix = "give it to a group with: chgrp kvm /dev/kvm; chmod g+rw /dev/kvm"
        return Kvm(
            works=False,
            why=f"/dev/kvm: no permission for uid {host.account.uid}, which QEMU runs as; {fix}",
            proven=True,
        )
    confined = (host.account and asdict(host.account), status.st_mode, status.st_gid, asdict(host.jail))
    cached = cache / "probes" / f"kvm-{content_key(host.kernel, host.qemu.identity, confined)}.json"
    record = probe_cache.load_answer(cached)
    if record is None:
        if kernel is None:
            return Kvm(
                works=False,
                why="/dev/kvm opens, but no kernel is here to boot on it; fetch one with: testbed kernel fetch",
                proven=False,
            )
        async with locked(cached.with_name("kvm.lock"), progress, "whether KVM works"):
            record = probe_cache.load_answer(cached) or await _boot(host, kernel, cached.parent)
            probe_cache.save_answer(cached, record)
    return Kvm(works=record["works"], why=record["why"], proven=True)


async def _boot(host: Host, kernel: KernelFiles, folder: Path) -> dict[str, Any]:
    """Boot a kernel to its first process under KVM, in the same jail as a guest's QEMU; returns the record to cache."""
    with tempfile.TemporaryDirectory(prefix=f"{UNFINISHED}kvm-", dir=folder) as scratch:
        output = Path(scratch) / "output"
        qemu = await _start(host, kernel, Path(scratch) / "initrd", output)
        try:
            async with asyncio.timeout(_LIMIT_S):
                status = await qemu.wait()
        except TimeoutError:
            return {
                "works": False,
                "why": f"/dev/kvm opens, but a {kernel.release} guest did not reach its first process in {_LIMIT_S} s",
            }
        finally:
            if qemu.returncode is None:
                qemu.kill()
                await qemu.wait()
        lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if status == _EXIT_STATUS:
        return {"works": True, "why": f"a {kernel.release} guest booted to its first process"}
    last = lines[-1] if lines else "it printed nothing"
    return {"works": False, "why": f"/dev/kvm opens, but QEMU ended with status {status}: {last}"}


async def _start(host: Host, kernel: KernelFiles, initrd: Path, output: Path) -> asyncio.subprocess.Process:
    initrd.write_bytes(cpio([directory("dev"), file("init", probe_init(), 0o755)]))
    own = jail.Jail.on(host)
    own.grant_start_files(kernel.bzimage, initrd)
    machine = "-nodefaults -no-user-config -display none -no-reboot -machine q35 -accel kvm -cpu host -m 256M"
    boot = ["-kernel", str(kernel.bzimage), "-initrd", str(initrd), "-append", "panic=-1 quiet", *host.qemu.sandbox]
    argv = [host.qemu.path, *machine.split(), *boot, "-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=4"]
    with_kvm = replace(host, kvm=Kvm(works=True, why="it is tried", proven=False))
    try:
        return await process.start(
            own.visible(argv),
            output=output,
            env=host.qemu.environment,
            prefix=own.prefix(with_kvm),
            pass_fds=own.descriptors,
            inherit_env=jail.ENVIRONMENT,
        )
    finally:
        own.close()


def probe_init() -> bytes:
    """Make a static x86-64 program of 146 bytes: iopl(3), then write 16 to the isa-debug-exit port."""
    code = bytes.fromhex("b8ac000000bf030000000f0566baf400b010eeebfe")
    base, header = 0x400000, 64 + 56
    entry, size = base + header, header + len(code)
    elf = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return elf + segment + code
