"""Formats the plan of a guest: QEMU's argv, the QMP commands, and the steps inside. Nothing is run. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from testbed.bugs import Case, script_files
from testbed.guest.setup import block_stack, cgroups, networks
from testbed.host.facts import Host
from testbed.qemu import blockdev, command_line, netdev
from testbed.qemu.machine_id import machine_id
from testbed.qemu.netdev import NetworkSockets
from testbed.topology import schedule
from testbed.topology.graph import NamespaceOf, build_graph
from testbed.topology.model import GuestModel
from testbed.topology.networks import Link

_FILES = command_line.BootFiles(
    bzimage=Path("BZIMAGE"), initramfs=Path("INITRAMFS"), root=Path("ROOT.ext4"), modules_disk=Path("MODULES.ext4")
)


def describe_plan(host: Host, name: str, guest: GuestModel, ends: tuple[Link, ...] = ()) -> Iterator[str]:
    """Return the lines of `testbed plan` for one guest. `ends`: its network links. Words in capitals stand for values
    that are known only when it runs.

    :raise HostError: this host cannot run it.
    """
    machine = machine_id(host, guest, kernel="KERNEL", image="IMAGE", initramfs="INITRAMFS")
    disks = blockdev.plan_disks(
        guest,
        {disk_name: blockdev.plan_storage(disk_name, disk, Path("SCRATCH")) for disk_name, disk in guest.disks.items()},
    )
    how = "cold boot" if guest.boots_cold else "warm clone where QEMU can"
    yield f"# guest {name}: {guest.kernel or 'the kernel of the command line'}, {how}"
    if guest.qemu_args:
        yield f"# UNSAFE: qemu-args are not checked: {shlex.join(guest.qemu_args)}"
    options = command_line.argv(
        host, machine, _FILES, name=name, sockets=Path("SOCKETS"), memory=command_line.ANONYMOUS, cold=disks.cold
    )
    yield " \\\n    ".join(shlex.join(option) for option in options)
    yield "# QMP"
    wiring = NetworkSockets(folder=Path("NETWORKS"), guest=name, ends=ends)
    for command in (*disks.hot, *netdev.netdev_commands(wiring, len(guest.disks))):
        yield json.dumps({"execute": command.execute, "arguments": command.arguments})
    paths = {
        key.name: f"/dev/{key.name.upper()}"
        for key, node in build_graph(guest).nodes.items()
        if key.name in guest.disks or isinstance(node.model, NamespaceOf)
    }
    made = block_stack.plan_stack(guest, paths)
    steps = (*networks.plan_links(ends)[0], *made.steps, *cgroups.plan_cgroups(guest, made.devices)[0])
    yield "# in the guest"
    for step in steps:
        yield from (f"# {step.what}", *step.do)
    for act in guest.timeline:
        yield f"# {schedule.format_entry(act)}"
    yield "# and back"
    yield from (step.undo for step in reversed(steps) if step.undo is not None)


def describe_scripts(case: Case) -> Iterator[str]:
    """Return the lines of a bug's scripts in its plan, with the variables that the scripts get."""
    yield f"# its scripts, which find {', '.join(f'${name}' for name in script_files.environment_names(case.guest))}"
    for script in (case.bug.preparation, case.bug.main):
        if script is not None:
            yield shlex.join((*script.interpreter, script.path))
