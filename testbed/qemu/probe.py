"""Finds out what this machine can do, by asking QEMU and by trying; answers are cached by what they depend on."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from testbed.errors import HostError
from testbed.hashing import content_key
from testbed.host import process, resources
from testbed.host.facts import NO_SANDBOX, Host, Kvm, Qemu
from testbed.progress import Progress, Silent
from testbed.qemu import jail_probe, kvm_probe, probe_cache
from testbed.store.kernels.kernel_files import KernelFiles
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
# The QMP commands that the testbed uses. QEMU 5.2 lacks `blockdev-reopen` and `set-action`, and a build may leave
# others out.
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
_SILENT = Silent()
_MEMORY = "memory-backend-file"


async def probe(cache: Path, kernel: KernelFiles | None, progress: Progress = _SILENT) -> Host:
    """Return the facts of this machine. `kernel`: one to boot under KVM; without one, KVM is not proven and not used.

    :raise HostError: there is no QEMU that can run a guest.
    """
    qemu = await _find_qemu(cache)
    account, why_own_account = await jail_probe.find_account(cache, qemu)
    device = Path("/dev/kvm")
    host = Host(
        kernel=os.uname().release,
        cores=resources.cores(),
        memory_bytes=resources.memory_bytes(),
        memory_free_bytes=resources.free_bytes(),
        disk_free_bytes=shutil.disk_usage(cache).free,
        qemu=qemu,
        kvm=Kvm(works=False, why="it was not tried", proven=False),
        account=account,
        why_own_account=why_own_account,
        kvm_group=device.stat().st_gid if device.exists() else None,
        sandbox_waived=os.environ.get(NO_SANDBOX) == "1",
        jail=await jail_probe.find_jail_support(cache, qemu, account),
    )
    return replace(host, kvm=await kvm_probe.find_kvm(cache, host, kernel, device, progress))


async def _find_qemu(cache: Path) -> Qemu:
    chosen = os.environ.get("TESTBED_QEMU")
    if chosen and shutil.which(chosen) is None:
        raise HostError(f"QEMU {chosen!r}: there is no such program; name one with --qemu or TESTBED_QEMU")
    path = process.find(chosen or QEMU).absolute()
    status = path.resolve().stat()
    identity = content_key(str(path.resolve()), status.st_size, status.st_mtime_ns)
    cached = cache / "probes" / f"qemu-{content_key(identity, _TYPES, _COMMANDS, _MEMORY)}.json"
    record = probe_cache.load_answer(cached)
    modules = _modules(path)
    if record is None:
        record = await _ask_qemu(path, modules)
        probe_cache.save_answer(cached, record)
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
    """Return the folder of modules that came with a QEMU: PREFIX/lib/qemu, or Debian's
    PREFIX/lib/x86_64-linux-gnu/qemu.
    """
    prefix = path.resolve().parent.parent
    folders = (
        folder for pattern in ("lib/qemu", "lib/*/qemu") for folder in prefix.glob(pattern) if any(folder.glob("*.so"))
    )
    return str(next(folders, ""))


async def _ask_qemu(path: Path, modules: str) -> dict[str, Any]:
    """Ask a QEMU without a machine for its version and abilities; returns the record to cache.

    It is asked for each type by its name. For a list of all types it would load every module, and exit at one of
    another QEMU.
    """
    queries = (
        "qmp_capabilities",
        "query-version",
        "query-migrate-capabilities",
        "query-command-line-options",
        "query-qmp-schema",
    )
    commands: list[dict[str, Any]] = [{"execute": query, "id": query} for query in queries]
    commands += [
        {"execute": "qom-list-properties", "id": name, "arguments": {"typename": name}} for name in (*_TYPES, _MEMORY)
    ]
    done = await process.run(
        [path, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"],
        stdin="".join(json.dumps(command) + "\n" for command in (*commands, {"execute": "quit"})),
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
        output = (done.stdout + done.stderr).strip()[-300:]
        got = repr(output) if output else "nothing"
        raise HostError(
            f"{path}: expected a QEMU, which answers on QMP, got {got}; name another with --qemu or TESTBED_QEMU"
        ) from error


def _netdevs(schema: dict[str, Any]) -> list[str]:
    """Return the types of network devices that `netdev_add` takes; in the schema only commands have names, types have
    numbers.
    """
    arguments = schema.get(schema.get("netdev_add", {}).get("arg-type"), {})
    kinds = [schema.get(member["type"], {}) for member in arguments.get("members", []) if member["name"] == "type"]
    return [value for kind in kinds for value in kind.get("values", [])]
