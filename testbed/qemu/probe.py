"""Finds out what this machine can do, by asking and by trying; answers are cached by what they depend on."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from testbed.errors import HostError
from testbed.hashing import content_key
from testbed.host import process, resources
from testbed.host.facts import NO_SANDBOX, Host, Kvm, Qemu
from testbed.progress import Progress, Silent
from testbed.qemu import jail, jail_probe, probe_cache
from testbed.store.cache import UNFINISHED, locked
from testbed.store.initramfs import cpio, directory, file
from testbed.store.kernels.files import KernelFiles
from testbed.text import parse_json

QEMU = "qemu-system-x86_64"
_TYPES = (
    "virtio-blk-pci",
    "nvme",
    "virtio-scsi-pci",
    "scsi-hd",
    "virtio-net-pci",
    "pcie-root-port",
    "isa-serial",
    "vmcoreinfo",
    "throttle-group",
)
# What the testbed asks of QMP; `blockdev-reopen` and `set-action` are younger than QEMU 5.2, and a build may leave others out.
_COMMANDS = (
    "balloon",
    "block-latency-histogram-set",
    "block_resize",
    "blockdev-add",
    "blockdev-del",
    "blockdev-reopen",
    "cont",
    "device_add",
    "device_del",
    "dump-guest-memory",
    "getfd",
    "human-monitor-command",
    "migrate",
    "migrate-incoming",
    "migrate-set-capabilities",
    "migrate_cancel",
    "netdev_add",
    "object-add",
    "object-del",
    "qom-get",
    "qom-list-types",
    "qom-set",
    "query-balloon",
    "query-blockstats",
    "query-chardev",
    "query-dump",
    "query-migrate",
    "query-status",
    "set-action",
    "stop",
)
# A guest that boots under KVM does so in one or two seconds; one that never gets past the decompressor needs no more to show it.
_KVM_LIMIT_S = 20
_EXIT_PORT = 0xF4
_SILENT = Silent()
_MEMORY = "memory-backend-file"
_PROBE_STATUS = 33  # isa-debug-exit ends QEMU with (value << 1) | 1, and the probe's init writes 16


async def probe(cache: Path, kernel: KernelFiles | None, progress: Progress = _SILENT) -> Host:
    """The host's facts. `kernel`: one to boot under KVM; without one, KVM is not proven and not used.

    :raise HostError: there is no QEMU that can run a guest.
    """
    found = await _qemu(cache)
    account, why_own_account = await jail_probe.find_account(cache, found)
    device = Path("/dev/kvm")
    host = Host(
        kernel=os.uname().release,
        cores=resources.cores(),
        memory_bytes=resources.memory_bytes(),
        memory_free_bytes=resources.free_bytes(),
        disk_free_bytes=shutil.disk_usage(cache).free,
        qemu=found,
        kvm=Kvm(works=False, why="it was not tried", proven=False),
        account=account,
        why_own_account=why_own_account,
        kvm_group=device.stat().st_gid if device.exists() else None,
        sandbox_waived=os.environ.get(NO_SANDBOX) == "1",
        confinement=await jail_probe.find_jail_support(cache, found, account),
    )
    return replace(host, kvm=await _kvm(cache, host, kernel, device, progress))


async def _qemu(cache: Path) -> Qemu:
    chosen = os.environ.get("TESTBED_QEMU")
    if chosen and shutil.which(chosen) is None:
        raise HostError(f"QEMU {chosen!r}: there is no such program; name one with --qemu or TESTBED_QEMU")
    path = process.find(chosen or QEMU).absolute()
    status = path.resolve().stat()
    identity = content_key(str(path.resolve()), status.st_size, status.st_mtime_ns)
    remembered = cache / "probes" / f"qemu-{content_key(identity, _TYPES, _COMMANDS, _MEMORY)}.json"
    record = probe_cache.load_answer(remembered)
    modules = _modules(path)
    if record is None:
        record = await _ask_qemu(path, modules)
        probe_cache.save_answer(remembered, record)
    missing = [name for name in _TYPES if name not in record["types"]]
    missing += [f"QMP command {name}" for name in _COMMANDS if name not in record["commands"]]
    if missing:
        raise HostError(
            f"{path}: QEMU {record['version']} has no {', '.join(missing)}; "
            "install qemu-system-x86, or name another with --qemu or TESTBED_QEMU"
        )
    warm = "x-ignore-shared" in record["capabilities"]
    return Qemu(
        path=str(path),
        version=record["version"],
        identity=identity,
        warm_clones=warm,
        why_not_warm="" if warm else "its migration has no capability x-ignore-shared",
        seccomp=record["seccomp"],
        networks="dgram" in record["netdevs"],
        devices=tuple(record["types"]),
        modules=modules,
        # Without `rom` (before QEMU 8.2) `readonly` makes the guest's memory read-only as well.
        reads_memory="rom" in record["memory"],
    )


def _modules(path: Path) -> str:
    """The folder of modules that came with a QEMU: PREFIX/lib/qemu, or Debian's PREFIX/lib/x86_64-linux-gnu/qemu."""
    prefix = path.resolve().parent.parent
    found = (
        folder for pattern in ("lib/qemu", "lib/*/qemu") for folder in prefix.glob(pattern) if any(folder.glob("*.so"))
    )
    return str(next(found, ""))


async def _ask_qemu(path: Path, modules: str) -> dict[str, Any]:
    """Version and abilities, from a QEMU without a machine.

    It is asked for each type by name: for a list of all it would load every module, and end at one that is not its own.
    """
    questions = (
        "qmp_capabilities",
        "query-version",
        "query-migrate-capabilities",
        "query-command-line-options",
        "query-qmp-schema",
    )
    commands: list[dict[str, Any]] = [{"execute": question, "id": question} for question in questions]
    commands += [
        {"execute": "qom-list-properties", "id": name, "arguments": {"typename": name}} for name in (*_TYPES, _MEMORY)
    ]
    asked = "".join(json.dumps(command) + "\n" for command in (*commands, {"execute": "quit"}))
    done = await process.run(
        [path, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"],
        stdin=asked,
        timeout_s=30,
        env={"QEMU_MODULE_DIR": modules} if modules else None,
        check=False,
    )
    answers: dict[str, Any] = {}
    try:
        for line in done.stdout.splitlines():
            message = parse_json(line)
            if "id" in message:
                answers[message["id"]] = message.get("return")
        version = answers["query-version"]["qemu"]
        schema = {entry["name"]: entry for entry in answers["query-qmp-schema"]}
        return {
            "version": f"{version['major']}.{version['minor']}.{version['micro']}",
            "capabilities": [entry["capability"] for entry in answers["query-migrate-capabilities"]],
            "seccomp": "sandbox" in [entry["option"] for entry in answers["query-command-line-options"]],
            "types": [name for name in _TYPES if answers.get(name) is not None],
            "commands": [name for name in _COMMANDS if schema.get(name, {}).get("meta-type") == "command"],
            "netdevs": _netdevs(schema),
            "memory": [entry["name"] for entry in answers[_MEMORY]],
        }
    except (KeyError, TypeError, ValueError) as error:
        said = (done.stdout + done.stderr).strip()[-300:]
        got = repr(said) if said else "nothing"
        raise HostError(
            f"{path}: expected a QEMU, which answers on QMP, got {got}; name another with --qemu or TESTBED_QEMU"
        ) from error


def _netdevs(schema: dict[str, Any]) -> list[str]:
    """The types of network devices that `netdev_add` takes; in the schema only commands have names, types have numbers."""
    arguments = schema.get(schema.get("netdev_add", {}).get("arg-type"), {})
    kinds = [schema.get(member["type"], {}) for member in arguments.get("members", []) if member["name"] == "type"]
    return [value for kind in kinds for value in kind.get("values", [])]


async def _kvm(cache: Path, host: Host, kernel: KernelFiles | None, device: Path, progress: Progress) -> Kvm:
    if not device.exists():
        return Kvm(works=False, why="/dev/kvm does not exist", proven=True)
    if not os.access(device, os.R_OK | os.W_OK):
        return Kvm(works=False, why="/dev/kvm: no permission; join its group with: usermod -aG kvm USER", proven=True)
    status = device.stat()
    given = status.st_mode & 0o006 == 0o006 or (status.st_gid and status.st_mode & 0o060 == 0o060)
    if host.account is not None and not given:
        mend = "give it to a group with: chgrp kvm /dev/kvm; chmod g+rw /dev/kvm"
        return Kvm(
            works=False,
            why=f"/dev/kvm: no permission for uid {host.account.uid}, which QEMU runs as; {mend}",
            proven=True,
        )
    held = (host.account and asdict(host.account), status.st_mode, status.st_gid, asdict(host.confinement))
    remembered = cache / "probes" / f"kvm-{content_key(host.kernel, host.qemu.identity, held)}.json"
    record = probe_cache.load_answer(remembered)
    if record is None:
        if kernel is None:
            return Kvm(
                works=False,
                why="/dev/kvm opens, but no kernel is here to boot on it; fetch one with: testbed kernel fetch",
                proven=False,
            )
        async with locked(remembered.with_name("kvm.lock"), progress, "whether KVM works"):
            record = probe_cache.load_answer(remembered) or await _boot_under_kvm(host, kernel, remembered.parent)
            probe_cache.save_answer(remembered, record)
    return Kvm(works=record["works"], why=record["why"], proven=True)


async def _boot_under_kvm(host: Host, kernel: KernelFiles, place: Path) -> dict[str, Any]:
    """Boot a kernel to its first process under KVM, held as a guest's QEMU is. Only that proves it: a device that opens, and even a virtual
    machine that is made and runs its firmware, has been seen where no kernel ever got past its decompressor.
    """
    trying = replace(host, kvm=Kvm(works=True, why="it is tried", proven=False))
    with tempfile.TemporaryDirectory(prefix=f"{UNFINISHED}kvm-", dir=place) as folder:
        initrd, said = Path(folder) / "initrd", Path(folder) / "said"
        initrd.write_bytes(cpio([directory("dev"), file("init", probe_init(), 0o755)]))
        held = jail.Jail.on(host)
        held.start_files(kernel.bzimage, initrd)
        machine = "-nodefaults -no-user-config -display none -no-reboot -machine q35 -accel kvm -cpu host -m 256M"
        boot = ["-kernel", str(kernel.bzimage), "-initrd", str(initrd), "-append", "panic=-1 quiet", *host.qemu.sandbox]
        words = [host.qemu.path, *machine.split(), *boot, "-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=4"]
        try:
            qemu = await process.start(
                held.seen(words),
                output=said,
                env=host.qemu.environment,
                within=held.words(trying),
                handed=held.descriptors,
                inherited=jail.ENVIRONMENT,
            )
        finally:
            held.close()
        try:
            async with asyncio.timeout(_KVM_LIMIT_S):
                status = await qemu.wait()
        except TimeoutError:
            return {
                "works": False,
                "why": f"/dev/kvm opens, but a {kernel.release} guest did not reach its first process in {_KVM_LIMIT_S} s",
            }
        finally:
            if qemu.returncode is None:
                qemu.kill()
                await qemu.wait()
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if status == _PROBE_STATUS:
        return {"works": True, "why": f"a {kernel.release} guest booted to its first process"}
    return {
        "works": False,
        "why": f"/dev/kvm opens, but QEMU ended with status {status}: {lines[-1] if lines else 'it said nothing'}",
    }


def probe_init() -> bytes:
    """A static x86-64 program of 146 bytes: iopl(3), then write 16 to the isa-debug-exit port."""
    code = bytes.fromhex("b8ac000000bf030000000f0566baf400b010eeebfe")
    base, header = 0x400000, 64 + 56
    entry, size = base + header, header + len(code)
    elf = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return elf + segment + code
