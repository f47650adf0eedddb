"""A guest's whole plan as text: the argv, the QMP commands, and the steps inside, before anything runs. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from testbed import drives, groups, plan, stack
from testbed.drives import QmpCommand
from testbed.host import Host
from testbed.topology.graph import NamespaceOf, graph
from testbed.topology.model import Guest

_FILES = plan.BootFiles(bzimage=Path("BZIMAGE"), initramfs=Path("INITRAMFS"), root=Path("ROOT.ext4"), modules_disk=Path("MODULES.ext4"))


def described(host: Host, name: str, guest: Guest) -> Iterator[str]:
    """The lines of `testbed plan` for one guest; words in capitals stand for what is known when it runs.

    :raise HostError: this host cannot run it.
    """
    machine = plan.machine(host, guest, kernel="KERNEL", image="IMAGE", initramfs="INITRAMFS")
    plugged = {port: _plug(disk_name, guest, port) for port, disk_name in enumerate(guest.disks)}
    shared = drives.groups(guest.throttle_groups)
    cold = tuple(command for port, disk in enumerate(guest.disks.values()) if disk.cold for command in plugged[port])
    yield f"# guest {name}: {guest.kernel or 'the kernel of the command line'}, {'cold boot' if cold else 'warm clone where QEMU can'}"
    if guest.qemu_args:
        yield f"# UNSAFE: nobody checks qemu-args: {shlex.join(guest.qemu_args)}"
    options = plan.argv(
        host, machine, _FILES, name=name, sockets=Path("SOCKETS"), memory=plan.ANONYMOUS, cold=(*shared, *cold) if cold else ()
    )
    yield " \\\n    ".join(shlex.join(option) for option in options)
    yield "# QMP"
    hot = [command for port, disk in enumerate(guest.disks.values()) if not disk.cold for command in plugged[port]]
    for command in (*(() if cold else shared), *hot):
        yield json.dumps({"execute": command.execute, "arguments": command.arguments})
    paths = {
        key.name: f"/dev/{key.name.upper()}"
        for key, node in graph(guest).nodes.items()
        if key.name in guest.disks or isinstance(node.thing, NamespaceOf)
    }
    made = stack.plan_stack(guest, paths)
    steps = (*made.steps, *groups.plan_groups(guest, made.devices)[0])
    yield "# in the guest"
    for step in steps:
        yield from (f"# {step.what}", *step.do)
    yield "# and back"
    yield from (step.undo for step in reversed(steps) if step.undo is not None)


def _plug(name: str, guest: Guest, port: int) -> tuple[QmpCommand, ...]:
    disk = guest.disks[name]
    return drives.plug(name, disk, port, drives.storage(name, disk, Path("SCRATCH")))
