"""Verbs for guests that stay, once they are up: ps, top, ssh, ssh-config, cp, inventory, console, logs, down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.live import Live

from testbed.cli.app import Json, app, err, out, rows, run_async
from testbed.cli.console import attach
from testbed.errors import TestbedError, UsageError
from testbed.guest import session
from testbed.host import paths, process, registry
from testbed.host.control_client import ControlClient
from testbed.host.paths import Folders
from testbed.report import inventory, vm_tables
from testbed.text import printable

_LOGS = {
    "console": "console.log",
    "supervisor": "supervisor.log",
    "ssh": "ssh.log",
    "qmp": "qmp.jsonl",
    "qemu": "qemu.log",
    "argv": "argv.txt",
    "stages": "stages.jsonl",
    "timeline": "timeline.jsonl",
    "samples": "samples.jsonl",
    "cgroups": "cgroups.jsonl",
    "dmesg": "dmesg.txt",
}
_DOWN_S = 90.0
_CHUNK_BYTES, _FOLLOW_S = 1 << 20, 0.5


def _names(incomplete: str) -> list[str]:
    """For the shell's completion."""
    return [vm.record.name for vm in registry.list_vms(paths.folders()) if vm.record.name.startswith(incomplete)]


VmArgument = Annotated[str, typer.Argument(metavar="VM", help="A guest's name.", autocompletion=_names)]
# What follows belongs to another program, whatever it looks like.
_FOREIGN = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


@app.command()
def ps(as_json: Json = False) -> None:
    """The guests that stay: name, kernel, state, age, disks, memory."""
    folders = paths.folders()
    lost = _say_lost(folders)
    records = tuple(registry.refresh(vm.record) for vm in registry.list_vms(folders))
    if as_json:
        print(json.dumps([asdict(record) for record in records]))
    elif records:
        rows(vm_tables.guests_table(records))
    elif not lost:
        err.print("no guests; start some with: testbed up FILE", markup=False, highlight=False)


def _say_lost(folders: Folders) -> bool:
    """Remove what killed sessions left, and say which guests ended with one; whether there were any."""
    lost = session.reap(folders).guests
    for record in lost:
        err.print(registry.supervisor_killed_message(record), markup=False, highlight=False, soft_wrap=True)
    return bool(lost)


@app.command()
def top(
    every_s: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between two readings.")] = 2.0,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many readings.")] = None,
    as_json: Json = False,
) -> None:
    """What the disks of all guests do: requests, bandwidth, latency, limits, and the control groups' shares; on a terminal until Ctrl-C."""

    said: set[str] = set()

    async def reading(vm: registry.VmHandle) -> dict[str, Any] | None:
        try:
            return await ControlClient(vm).stats()
        except TestbedError as error:
            # It stands still, or has just gone: no reason to stop.
            if (why := str(error)) not in said:
                said.add(why)
                err.print(f"testbed: {why}", markup=False, highlight=False, soft_wrap=True)
            return None

    async def readings() -> dict[str, dict[str, Any]]:
        ready = [vm for vm in registry.list_vms(paths.folders()) if vm.record.state == registry.READY]
        found = await asyncio.gather(*(reading(vm) for vm in ready))
        return {vm.record.name: one for vm, one in zip(ready, found, strict=True) if one is not None}

    async def work() -> int:
        rounds = count or (None if out.is_terminal else 1)
        before, shown = await readings(), 0
        with contextlib.ExitStack() as stack:
            screen = (
                stack.enter_context(Live(console=out, auto_refresh=False)) if out.is_terminal and not as_json else None
            )
            while rounds is None or shown < rounds:
                await asyncio.sleep(every_s)
                after = await readings()
                found = tuple(
                    load
                    for name in after
                    if name in before
                    for load in vm_tables.disk_loads(name, before[name], after[name])
                )
                if as_json:
                    print(json.dumps([asdict(load) for load in found]), flush=True)
                elif screen is not None:
                    screen.update(vm_tables.loads_table(found), refresh=True)
                else:
                    rows(vm_tables.loads_table(found))
                before, shown = after, shown + 1
        return 0

    run_async(work())


@app.command(context_settings=_FOREIGN)
def ssh(context: typer.Context, vm: VmArgument) -> None:
    """Enter a guest with this machine's ssh, or run a command in it: `testbed ssh VM -- CMD`; the exit status is its own.

    Several words are a program and its arguments, as they are; a single one is for the guest's shell: `testbed ssh VM -- 'ls | wc -l'`.
    """
    found = _going_on(vm)
    words = context.args[1:] if context.args[:1] == ["--"] else context.args
    command = words if len(words) < 2 else [shlex.join(words)]
    become(["ssh", "-F", str(found.ssh_config), vm, *command])


@app.command("ssh-config")
def ssh_config(vm: VmArgument) -> None:
    """Print what ssh, scp, rsync or an IDE need to reach a guest."""
    print(_reachable(vm).ssh_config.read_text(encoding="utf-8"), end="")


@app.command(context_settings=_FOREIGN)
def cp(context: typer.Context) -> None:
    """Copy files with this machine's scp, whose options it takes: `testbed cp -r FILE... VM:PATH`, or `VM:PATH... FOLDER`.

    scp copies what links lead to, and fills holes with zeroes; `tar -cS . | testbed ssh VM -- tar -xS -C PATH` keeps both.
    """
    if len(context.args) < 2:
        raise UsageError("cp: expected what to copy, and where to, such as: testbed cp FILE VM:PATH")
    names = {word.partition(":")[0] for word in context.args if ":" in word and "/" not in word.partition(":")[0]}
    if len(names) != 1:
        raise UsageError(f"cp: expected one guest, as VM:PATH, got {', '.join(sorted(names)) or 'none'}")
    found = _going_on(names.pop())
    for changed in _changed_by_scp(word for word in context.args[:-1] if ":" not in word):
        err.print(
            f"testbed: {changed}; tar through `testbed ssh` keeps them", markup=False, highlight=False, soft_wrap=True
        )
    become(["scp", "-F", str(found.ssh_config), *context.args])


@app.command("inventory")
def inventory_command(
    everything: Annotated[bool, typer.Option("--list", help="All running guests.")] = False,
    host: Annotated[str | None, typer.Option("--host", help="The variables of one.")] = None,
) -> None:
    """The running guests as an inventory of Ansible; ansible/inventory is the script for `ansible -i`."""
    if everything == (host is not None):
        raise UsageError("inventory: expected --list, or --host VM")
    folders = paths.folders()
    found = (
        inventory.host_variables(_reachable(host))
        if host is not None
        else inventory.make_inventory(registry.list_vms(folders))
    )
    print(json.dumps(found))


@app.command()
def console(vm: VmArgument) -> None:
    """A shell on a guest's serial console, which also works where its network or SSH server do not. Ctrl-] leaves it."""
    run_async(attach(_going_on(vm)))


@app.command()
def logs(
    vm: VmArgument,
    what: Annotated[str, typer.Option("--what", help=f"One of {', '.join(_LOGS)}.")] = "console",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
) -> None:
    """Print what a guest said, or what was said to it."""
    if what not in _LOGS:
        raise UsageError(f"--what {what}: expected one of {', '.join(_LOGS)}")
    found = registry.find_vm(paths.folders(), vm)
    log = Path(found.record.evidence) / _LOGS[what]
    if not log.exists():
        raise UsageError(f"{vm}: it has no {what} log yet; what it has is in {found.record.evidence}")
    if what == "console" and not follow and log.stat().st_size == 0:
        err.print(
            f"{vm} has printed nothing since it was cloned; --what dmesg, supervisor or stages tell more",
            markup=False,
            highlight=False,
        )
    # Ctrl-C is how one stops following.
    with log.open("rb") as file, contextlib.suppress(KeyboardInterrupt):
        while True:
            if log.stat().st_size < file.tell():  # the guest began anew
                file.seek(0)
            # A guest has chosen these bytes: as they are for a file or a pipe, but not for a terminal.
            while said := file.read(_CHUNK_BYTES):
                sys.stdout.buffer.write(
                    printable(said.decode(errors="replace")).encode() if sys.stdout.isatty() else said
                )
            sys.stdout.buffer.flush()
            if not follow or not _lives(found.record.supervisor):
                return
            time.sleep(_FOLLOW_S)


@app.command()
def down(
    names: Annotated[list[str] | None, typer.Argument(metavar="VM...", help="Guests.", autocompletion=_names)] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All of this account's, whichever command started them.")
    ] = False,
) -> None:
    """End guests: their stacks are undone, and nothing of them stays but their logs."""
    folders = paths.folders()
    if every == bool(names):
        raise UsageError("down: expected names of guests, or --all" + (", got both" if every else ", got neither"))
    found = (
        registry.list_vms(folders)
        if every
        else tuple(registry.find_vm(folders, name) for name in dict.fromkeys(names or ()))
    )

    async def end(vm: registry.VmHandle) -> None:
        if vm.record.supervisor:
            await ControlClient(vm).down()
        await registry.wait_until_gone(vm, _DOWN_S)

    async def work() -> int:
        async with asyncio.TaskGroup() as group:
            for vm in found:
                group.create_task(end(vm))
        _say_lost(folders)  # and what the last one on a network leaves
        return 0

    run_async(work())


def _changed_by_scp(words: Iterable[str]) -> Iterator[str]:
    """What of this machine's files and folders scp copies otherwise than they are; of those in the guest nothing is known."""
    for source in (path for word in words if (path := Path(word)).exists()):
        inside = [Path(folder, name) for folder, folders, files in os.walk(source) for name in (*folders, *files)]
        links = sum(path.is_symlink() for path in inside)
        sizes = [path.stat() for path in (source, *inside) if path.is_file() and not path.is_symlink()]
        holes = sum(one.st_blocks * 512 < one.st_size for one in sizes)
        if links:
            yield f"{source}: scp copies what its {links} symbolic link{'s lead' if links > 1 else ' leads'} to"
        if holes:
            yield f"{source}: scp fills the holes of {holes} file{'s' if holes > 1 else ''} with zeroes"


def _reachable(name: str) -> registry.VmHandle:
    """A guest that is ready.

    :raise UsageError: there is none of that name, or it is not ready; says where its logs are.
    """
    found = registry.find_vm(paths.folders(), name)
    if found.record.state != registry.READY:
        why = f": {found.record.why}" if found.record.why else ""
        raise UsageError(
            f"{name}: expected a guest that is ready, this one is {found.record.state}{why}\n  its logs: {found.record.evidence}"
        )
    return found


def _going_on(name: str) -> registry.VmHandle:
    """One that is ready, and does not stand still.

    :raise UsageError: there is none of that name, or it is not ready, or stands still; says what helps.
    """
    found = _reachable(name)
    record = registry.refresh(found.record)
    if record.resume_with:
        raise UsageError(registry.stopped_message(record))
    return found


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def become(words: list[str]) -> NoReturn:
    """Go on as another program.

    :raise ToolMissing: it is not installed.
    """
    program = process.find(words[0])
    sys.stdout.flush()
    os.execv(program, words)  # noqa: S606 - no shell, and words of the user's own
