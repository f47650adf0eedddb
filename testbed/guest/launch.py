"""Launches a guest: from a launch spec to a machine that answers over SSH with the devices of its topology, and back to
nothing.

async with launch(spec, key) as guest:
    await guest.shell.run(["uname", "-r"])
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from testbed.errors import DeviceMismatch, GuestError, HostError, TemplateError
from testbed.guest import session
from testbed.guest.channels import ssh_login
from testbed.guest.channels.ssh_keys import SshKey
from testbed.guest.guest import Guest
from testbed.guest.launch_spec import LaunchSpec, SavedState
from testbed.guest.lifecycle import Event, Loss
from testbed.guest.liveness import wait_until_done
from testbed.host import logfile, process
from testbed.qemu import command_line, jail, migration
from testbed.qemu.command_line import Memory
from testbed.qemu.jail import Jail
from testbed.qemu.qmp_command import QmpCommand
from testbed.store.snapshot_files import Snapshot

# Losses that rebuilding the template would not fix.
_NOT_THE_TEMPLATE = (Loss.HOST, Loss.KILLED, Loss.MONITOR)


@contextlib.asynccontextmanager
async def launch(spec: LaunchSpec, key: SshKey) -> AsyncIterator[Guest]:
    """Launch a guest and yield it when it is ready; afterwards remove everything of it but its logs.

    :raise GuestLost: the guest did not get ready. :raise DeviceMismatch: its disks are not those of the topology.
    :raise TemplateError: the template to clone does not load. :raise HostError: QEMU does not start.
    """
    try:
        for folder in (spec.sockets, spec.scratch):
            folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise HostError(f"guest {spec.name}: {error.filename}: cannot be made: {error.strerror}") from error
    try:
        spec.logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"{spec.logs}: the guest's logs cannot go there: {error.strerror}") from error
    guest = Guest(spec)
    try:
        await _bring_up(guest, key)
        yield guest
        await guest.save_dmesg()
    finally:
        await wait_until_done(guest.tear_down())


async def _bring_up(guest: Guest, key: SshKey) -> None:
    """Bring a guest from nothing to ready."""
    template = guest.spec.template
    try:
        if template is None:
            await _boot_cold(guest, key)
        else:
            await _clone(guest, template, key)
    except OSError as error:
        where = error.filename or "this machine"
        raise HostError(f"guest {guest.name}: {guest.state.value}: {where}: {error.strerror}") from error


async def _boot_cold(guest: Guest, key: SshKey) -> None:
    hotplugs = await _start(guest)
    started = time.monotonic()
    await guest.resume()
    await guest.wait(guest.agent.expect("waiting"), guest.deadlines.boot_s)
    guest.boot_s = time.monotonic() - started
    guest.advance(Event.AGENT_WAITING)
    await _wake(guest, key, hotplugs)


async def _clone(guest: Guest, template: SavedState, key: SshKey) -> None:
    """Start a guest from a saved state.

    :raise TemplateError: the state does not load, or the guest that it is of does not go on.
    """
    try:
        hotplugs = await _start(guest)
    except HostError as error:
        if template.complete:
            raise
        raise TemplateError(f"{template.title} was removed meanwhile: {error}") from error
    await _restore(guest, template)
    try:
        await _wake(guest, key, hotplugs)
    except DeviceMismatch:
        raise
    except GuestError as error:
        if guest.loss in _NOT_THE_TEMPLATE:
            raise
        raise TemplateError(f"a clone of {template.title} does not wake up: {error}") from error


async def _start(guest: Guest) -> tuple[QmpCommand, ...]:
    """Start QEMU, paused, and connect to it; returns the commands that plug in disks and network devices."""
    spec = guest.spec
    snapshot = spec.template if isinstance(spec.template, Snapshot) else None
    memory = Memory(file=spec.template.memory) if spec.template else spec.memory
    disks = await guest.hotplug.prepare(spec.model, spec.wiring, snapshot)
    _grant_files(guest.jail, spec, memory)
    if spec.savable:
        await guest.hotplug.make_overlay(spec.overlay, spec.files.root, snapshot)
    options = command_line.argv(
        spec.host,
        spec.machine,
        spec.files if not spec.savable else replace(spec.files, overlay=spec.overlay),
        name=spec.name,
        sockets=spec.sockets,
        memory=memory,
        restore=spec.template is not None,
        cold=disks.cold,
    )
    logfile.write_log(spec.logs / "argv.txt", "".join(" ".join(option) + "\n" for option in options))
    guest.attach_process(
        await process.start(
            guest.jail.visible(command_line.flatten_options((*options, *guest.jail.options))),
            output=spec.logs / "qemu.log",
            env={
                **spec.host.qemu.environment,
                "TMPDIR": guest.jail.visible(str(spec.scratch)),
                session.OWNER_VARIABLE: f"{spec.sockets}/",
            },
            oom_first=True,
            prefix=guest.jail.prefix(spec.host),
            pass_fds=guest.jail.descriptors,
            inherit_env=jail.ENVIRONMENT,
        )
    )
    await guest.connect_channels()
    return disks.hot


def _grant_files(own: Jail, spec: LaunchSpec, memory: Memory) -> None:
    """Let the jail reach every file of this machine that its QEMU needs, and no other."""
    files, wiring = spec.files, spec.wiring
    own.grant_folders(spec.sockets, spec.scratch, *([wiring.own] if wiring.ends else []))
    own.grant_start_files(files.bzimage, files.initramfs)
    own.grant_images([path for path in (files.root, files.modules_disk) if path is not None])
    own.grant_images(Path(disk.image) for disk in spec.model.disks.values() if disk.image is not None)
    if memory.file is not None:
        own.grant_memory(memory.file, read_only=memory.only_read(spec.host))


async def _restore(guest: Guest, template: SavedState) -> None:
    """Load a saved state into a QEMU that waits for one."""
    try:
        await guest.wait(migration.load_state(guest.monitor, template.state), guest.deadlines.restore_s)
    except (GuestError, HostError, OSError) as error:
        if guest.loss in _NOT_THE_TEMPLATE:
            raise
        raise TemplateError(f"{template.title} does not load: {error}") from error
    guest.boot_s = template.boot_s
    guest.advance(Event.AGENT_WAITING)


async def _wake(guest: Guest, key: SshKey, hotplugs: tuple[QmpCommand, ...]) -> None:
    """Give the guest its randomness, clock, name, keys and disks, and connect to it over SSH; a clone's CPUs run from
    here on.

    A clone finds all of that when it wakes: its disks, its identity, and our connection in the backlog of its SSH
    server, which is stopped until the guest has been reseeded. It handles them at once, on all its cores.
    """
    is_clone = guest.spec.template is not None
    limit = guest.deadlines.ssh_s
    guest.send_identity(key, **({} if is_clone else {"hostkey": guest.host_key.dropbear.hex()}))
    await guest.hotplug.plug_prepared(hotplugs)
    await guest.hardware.apply_topology()
    guest.ssh_port.port = await guest.wait(guest.monitor.forwarded_port(), guest.deadlines.monitor_s)
    identified = asyncio.Event()
    connecting = asyncio.create_task(
        ssh_login.connect(guest.spec, guest.ssh_port, key, guest.host_key, identified, guest.log("ssh.log"))
    )
    try:
        if is_clone:
            await guest.resume()
        await guest.wait(guest.agent.expect("ready"), limit)
        identified.set()
        guest.advance(Event.IDENTIFIED)
        await guest.verify_disks()
        guest.advance(Event.DEVICES_VERIFIED)
        guest.attach_shell(await guest.wait(connecting, limit))
    finally:
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
