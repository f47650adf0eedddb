"""Commands for running VMs: ps, top, ssh, ssh-config, cp, inventory, console, logs, down."""

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


def _complete_names(incomplete: str) -> list[str]:
    """Complete the names of VMs."""
    return [vm.record.name for vm in registry.list_vms(paths.folders()) if vm.record.name.startswith(incomplete)]


VmArgument = Annotated[str, typer.Argument(metavar="VM", help="A guest's name.", autocompletion=_complete_names)]
# Arguments that follow are for another program, even if they look like options of ours.
_FOREIGN_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


@app.command()
def ps(as_json: Json = False) -> None:
    """List running guests: name, kernel, state, age, disks, memory."""
    folders = paths.folders()
    lost = _report_lost(folders)
    records = tuple(registry.refresh(vm.record) for vm in registry.list_vms(folders))
    if as_json:
        print(json.dumps([asdict(record) for record in records]))
    elif records:
        rows(vm_tables.guests_table(records))
    elif not lost:
        err.print("no guests; start some with: testbed up FILE", markup=False, highlight=False)


def _report_lost(folders: Folders) -> bool:
    """Remove what killed sessions left, report which guests ended with them, and return whether there were any."""
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
    """Show the load of all guests' disks: requests, bandwidth, latency, limits, and shares of control groups. On a
    terminal until Ctrl-C.
    """
    rounds = count or (None if out.is_terminal else 1)
    run_async(_Load(as_json=as_json).show(every_s, rounds))


class _Load:
    """Reads the counters of all ready guests, and shows what they did between two readings."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._reported: set[str] = set()

    async def show(self, every_s: float, rounds: int | None) -> int:
        """Print the load each `every_s`, `rounds` times; None: until cancelled."""
        before, shown = await self._read_all(), 0
        with contextlib.ExitStack() as stack:
            screen = None
            if out.is_terminal and not self._as_json:
                screen = stack.enter_context(Live(console=out, auto_refresh=False))
            while rounds is None or shown < rounds:
                await asyncio.sleep(every_s)
                after = await self._read_all()
                both = [name for name in after if name in before]
                loads = tuple(load for name in both for load in vm_tables.disk_loads(name, before[name], after[name]))
                if self._as_json:
                    print(json.dumps([asdict(load) for load in loads]), flush=True)
                elif screen is not None:
                    screen.update(vm_tables.loads_table(loads), refresh=True)
                else:
                    rows(vm_tables.loads_table(loads))
                before, shown = after, shown + 1
        return 0

    async def _read_all(self) -> dict[str, dict[str, Any]]:
        ready = [vm for vm in registry.list_vms(paths.folders()) if vm.record.state == registry.READY]
        stats = await asyncio.gather(*(self._read(vm) for vm in ready))
        return {vm.record.name: read for vm, read in zip(ready, stats, strict=True) if read is not None}

    async def _read(self, vm: registry.VmHandle) -> dict[str, Any] | None:
        try:
            return await ControlClient(vm).stats()
        except TestbedError as error:
            # The guest is stopped, or has just ended: the others are still shown.
            if (why := str(error)) not in self._reported:
                self._reported.add(why)
                err.print(f"testbed: {why}", markup=False, highlight=False, soft_wrap=True)
            return None


@app.command(context_settings=_FOREIGN_ARGUMENTS)
def ssh(context: typer.Context, vm: VmArgument) -> None:
    """Log in to a guest with this machine's ssh, or run a command in it: `testbed ssh VM -- CMD`, and exit with its
    status.

    Several words are passed as a program and its arguments; a single one goes to the guest's shell: `testbed ssh VM --
    'ls | wc -l'`.
    """
    handle = _running(vm)
    words = context.args[1:] if context.args[:1] == ["--"] else context.args
    command = words if len(words) < 2 else [shlex.join(words)]
    become(["ssh", "-F", str(handle.ssh_config), vm, *command])


@app.command("ssh-config")
def ssh_config(vm: VmArgument) -> None:
    """Print the SSH configuration with which ssh, scp, rsync or an IDE reach a guest."""
    print(_ready(vm).ssh_config.read_text(encoding="utf-8"), end="")


@app.command(context_settings=_FOREIGN_ARGUMENTS)
def cp(context: typer.Context) -> None:
    """Copy files with this machine's scp, and its options: `testbed cp -r FILE... VM:PATH`, or `VM:PATH... FOLDER`.

    scp follows symbolic links and fills holes with zeroes; `tar -cS . | testbed ssh VM -- tar -xS -C PATH` keeps both.
    """
    if len(context.args) < 2:
        raise UsageError("cp: expected what to copy, and where to, such as: testbed cp FILE VM:PATH")
    names = {word.partition(":")[0] for word in context.args if ":" in word and "/" not in word.partition(":")[0]}
    if len(names) != 1:
        raise UsageError(f"cp: expected one guest, as VM:PATH, got {', '.join(sorted(names)) or 'none'}")
    handle = _running(names.pop())
    for changed in _changed_by_scp(word for word in context.args[:-1] if ":" not in word):
        err.print(
            f"testbed: {changed}; tar through `testbed ssh` keeps them", markup=False, highlight=False, soft_wrap=True
        )
    become(["scp", "-F", str(handle.ssh_config), *context.args])


@app.command("inventory")
def inventory_command(
    everything: Annotated[bool, typer.Option("--list", help="All running guests.")] = False,
    host: Annotated[str | None, typer.Option("--host", help="The variables of one guest.")] = None,
) -> None:
    """Print the running guests as an Ansible inventory; ansible/inventory is the script for `ansible -i`."""
    if everything == (host is not None):
        raise UsageError("inventory: expected --list, or --host VM")
    folders = paths.folders()
    if host is not None:
        print(json.dumps(inventory.host_variables(_ready(host))))
    else:
        print(json.dumps(inventory.make_inventory(registry.list_vms(folders))))


@app.command()
def console(vm: VmArgument) -> None:
    """Open a shell on a guest's serial console, which works even if its network or SSH server do not. Ctrl-]
    leaves it.
    """
    run_async(attach(_running(vm)))


@app.command()
def logs(
    vm: VmArgument,
    what: Annotated[str, typer.Option("--what", help=f"One of {', '.join(_LOGS)}.")] = "console",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print what is added, until Ctrl-C.")] = False,
) -> None:
    """Print a log of a guest: its console, SSH, QMP and others."""
    if what not in _LOGS:
        raise UsageError(f"--what {what}: expected one of {', '.join(_LOGS)}")
    record = registry.find_vm(paths.folders(), vm).record
    log = Path(record.evidence) / _LOGS[what]
    if not log.exists():
        raise UsageError(f"{vm}: it has no {what} log yet; what it has is in {record.evidence}")
    if what == "console" and not follow and log.stat().st_size == 0:
        err.print(
            f"{vm} has printed nothing since it was cloned; --what dmesg, supervisor or stages tell more",
            markup=False,
            highlight=False,
        )
    # Ctrl-C is how one stops following.
    with log.open("rb") as file, contextlib.suppress(KeyboardInterrupt):
        while True:
            if log.stat().st_size < file.tell():  # the guest was restarted
                file.seek(0)
            # The guest has chosen these bytes: a file or a pipe gets them unchanged, a terminal does not.
            while chunk := file.read(_CHUNK_BYTES):
                if sys.stdout.isatty():
                    chunk = printable(chunk.decode(errors="replace")).encode()
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            if not follow or not _lives(record.supervisor):
                return
            time.sleep(_FOLLOW_S)


@app.command()
def down(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="VM...", help="Guests.", autocompletion=_complete_names)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All guests of this account.")] = False,
) -> None:
    """End guests: their stacks are dismantled, and only their logs are kept."""
    folders = paths.folders()
    if every == bool(names):
        raise UsageError("down: expected names of guests, or --all" + (", got both" if every else ", got neither"))
    vms = (
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
            for vm in vms:
                group.create_task(end(vm))
        _report_lost(folders)  # also removes what the last guest on a network has left
        return 0

    run_async(work())


def _changed_by_scp(words: Iterable[str]) -> Iterator[str]:
    """Yield which files and folders of this machine scp would change; files in the guest are not checked."""
    for source in (path for word in words if (path := Path(word)).exists()):
        inside = [Path(folder, name) for folder, folders, files in os.walk(source) for name in (*folders, *files)]
        links = sum(path.is_symlink() for path in inside)
        stats = [path.stat() for path in (source, *inside) if path.is_file() and not path.is_symlink()]
        holes = sum(stat.st_blocks * 512 < stat.st_size for stat in stats)
        if links:
            yield f"{source}: scp copies what its {links} symbolic link{'s lead' if links > 1 else ' leads'} to"
        if holes:
            yield f"{source}: scp fills the holes of {holes} file{'s' if holes > 1 else ''} with zeroes"


def _ready(name: str) -> registry.VmHandle:
    """Find a guest that is ready.

    :raise UsageError: there is none of that name, or it is not ready; the message has the place of its logs.
    """
    handle = registry.find_vm(paths.folders(), name)
    record = handle.record
    if record.state != registry.READY:
        why = f": {record.why}" if record.why else ""
        raise UsageError(
            f"{name}: expected a guest that is ready, this one is {record.state}{why}\n  its logs: {record.evidence}"
        )
    return handle


def _running(name: str) -> registry.VmHandle:
    """Find a guest that is ready and not stopped.

    :raise UsageError: there is none of that name, or it is not ready, or is stopped; the message says how to resume it.
    """
    handle = _ready(name)
    record = registry.refresh(handle.record)
    if record.resume_with:
        raise UsageError(registry.stopped_message(record))
    return handle


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def become(words: list[str]) -> NoReturn:
    """Replace this process with another program.

    :raise ToolMissing: it is not installed.
    """
    program = process.find(words[0])
    sys.stdout.flush()
    os.execv(program, words)  # noqa: S606 - no shell, and the user's own arguments
