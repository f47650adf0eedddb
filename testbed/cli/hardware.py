"""Changes and shows the emulated hardware of running VMs: throttle, delay, inject and others. See docs/hardware.md."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import time
from typing import Annotated, Any

import typer

from testbed.cli.app import Json, app, out, rows, run_async
from testbed.cli.vms import VmArgument
from testbed.errors import UsageError
from testbed.hardware.commands import SURPRISE
from testbed.hardware.profiles import PROFILES
from testbed.host import paths, registry
from testbed.host.control_client import ControlClient
from testbed.report import vm_tables
from testbed.report.docs import profiles_markdown
from testbed.units import parse_duration


def _complete_disks(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the names of a VM's disks."""
    vms = [vm for vm in registry.list_vms(paths.folders()) if vm.record.name == context.params.get("vm")]
    return [disk for vm in vms for disk in vm.record.disks if disk.startswith(incomplete)]


def _complete_limits(incomplete: str) -> list[str]:
    return [word for word in ("off", *PROFILES) if word.startswith(incomplete)]


DiskArgument = Annotated[
    str, typer.Argument(metavar="DISK", help="A disk or a namespace of its topology.", autocompletion=_complete_disks)
]

_BOOT_S = 600.0


@app.command()
def throttle(
    vm: VmArgument,
    disk: DiskArgument,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="LIMIT",
            help="A profile, iops-total=100, bps-read=20M and the like, or off; scale=0.5.",
            autocompletion=_complete_limits,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Change the limits of a disk, at once."""
    _command(vm, as_json, "throttle", disk, *words)


@app.command()
def delay(
    vm: VmArgument,
    disk: DiskArgument,
    words: Annotated[
        list[str],
        typer.Argument(metavar="DELAY", help="5ms, or read=5ms, write=, flush=, jitter= and both=, a profile, or off."),
    ],
    as_json: Json = False,
) -> None:
    """Delay each request of a disk from now on."""
    _command(vm, as_json, "delay", disk, *words)


@app.command()
def inject(
    vm: VmArgument,
    disk: DiskArgument,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FAULT",
            help="OPERATION=EFFECT[,count=N][,range=FROM-TO][,probability=P][,seed=N], or off. "
            "Operations: read, write, flush, discard. "
            "Effects: EIO, ENOSPC, ENOMEM, lost (acknowledged, never written), torn (only the beginning is written). "
            "Or read-only: all writes fail.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Make requests of a disk fail; replaces all faults that were set before."""
    _command(vm, as_json, "inject", disk, *words)


@app.command()
def hang(
    vm: VmArgument,
    disk: DiskArgument,
    duration: Annotated[str, typer.Argument(metavar="DURATION", help="Such as 30s; off ends it.")],
    as_json: Json = False,
) -> None:
    """Hold all requests of a disk for a time; then they complete as usual."""
    _command(vm, as_json, "hang", disk, duration)


@app.command()
def unplug(
    vm: VmArgument,
    disk: DiskArgument,
    surprise: Annotated[bool, typer.Option("--surprise", help="The disk fails before the guest is notified.")] = False,
    as_json: Json = False,
) -> None:
    """Unplug a disk from a running guest, with everything that is built on it there; its content is kept."""
    _command(vm, as_json, "unplug", disk, *([SURPRISE] if surprise else []))


@app.command()
def plug(vm: VmArgument, disk: DiskArgument, as_json: Json = False) -> None:
    """Plug in a disk again that was unplugged."""
    _command(vm, as_json, "plug", disk)


@app.command()
def resize(
    vm: VmArgument,
    disk: DiskArgument,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Such as 2G.")],
    as_json: Json = False,
) -> None:
    """Resize a disk. If it becomes smaller, the data beyond its end is lost, even under a mounted filesystem."""
    _command(vm, as_json, "resize", disk, size)


@app.command()
def memory(
    vm: VmArgument,
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="How much the guest keeps, such as 128M; off returns all of it.")
    ],
    as_json: Json = False,
) -> None:
    """Take memory from a guest with a balloon."""
    _command(vm, as_json, "memory", size)


@app.command()
def cpus(
    vm: VmArgument,
    count: Annotated[str, typer.Argument(metavar="COUNT", help="How many stay online; off brings all online again.")],
    as_json: Json = False,
) -> None:
    """Take CPUs of a guest offline."""
    _command(vm, as_json, "cpus", count)


@app.command()
def power_cut(
    vm: VmArgument,
    keep: Annotated[
        float,
        typer.Option(
            "--keep", min=0, max=1, help="The probability that a block that was only in a disk's cache is kept."
        ),
    ] = 0.5,
    seed: Annotated[
        int | None, typer.Option("--seed", help="The same seed loses the same blocks; a new one by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Cut a guest's power, so that its disks' volatile caches are lost, and boot it again on those disks."""
    chosen = secrets.randbelow(1 << 32) if seed is None else seed

    async def work() -> int:
        client = ControlClient(registry.find_vm(paths.folders(), vm))
        lost = await client.power_cut(share=keep, seed=chosen, timeout_s=_BOOT_S)
        if as_json:
            print(json.dumps({"seed": chosen, "lost_blocks": lost}))
        else:
            losses = ", ".join(f"{disk} lost {blocks} blocks of 4K" for disk, blocks in lost.items())
            losses = losses or "no disk has a volatile cache"
            out.print(f"{vm} is up again; {losses} (seed {chosen})", markup=False, highlight=False)
        return 0

    run_async(work())


@app.command()
def sample(
    vm: VmArgument,
    every: Annotated[str, typer.Option(metavar="DURATION", help="The interval between samples.")] = "100ms",
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="The number of samples; without it until Ctrl-C.")
    ] = None,
) -> None:
    """Print the counters of a guest's disks at an interval, a line of JSON each: requests, bytes, latencies, limits."""
    try:
        every_s = parse_duration(every) / 1e6
    except ValueError as error:
        raise UsageError(f"--every: {error}") from None
    if every_s == 0:
        raise UsageError(f"--every: expected a duration of more than nothing, got {every!r}")

    async def work() -> int:
        client, due = ControlClient(registry.find_vm(paths.folders(), vm)), time.monotonic()
        for number in itertools.count(1):
            print(json.dumps(await client.sample()), flush=True)
            if number == count:
                break
            due = max(due + every_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
        return 0

    run_async(work())


@app.command()
def profiles(
    markdown: Annotated[bool, typer.Option("--markdown", help="With their sources, as in docs/hardware.md.")] = False,
) -> None:
    """List the profiles: named devices that a disk can imitate."""
    if markdown:
        print(profiles_markdown(), end="")
        return
    for name, profile in PROFILES.items():
        out.print(f"{name:16} {profile.title}", markup=False, highlight=False)


@app.command()
def hardware(vm: VmArgument, as_json: Json = False) -> None:
    """Show how a guest's disks behave now: limits, delays, faults, and past errors; and its memory and CPUs."""

    async def work() -> int:
        _show(await ControlClient(registry.find_vm(paths.folders(), vm)).hardware(), as_json)
        return 0

    run_async(work())


@app.command()
def resume(vm: VmArgument) -> None:
    """Resume a guest that was stopped by a disk error (`werror: stop`); the request is tried again."""

    async def work() -> int:
        await ControlClient(registry.find_vm(paths.folders(), vm)).resume()
        return 0

    run_async(work())


def _command(vm: str, as_json: bool, *words: str) -> None:
    async def work() -> int:
        _show(await ControlClient(registry.find_vm(paths.folders(), vm)).change_hardware(words), as_json)
        return 0

    run_async(work())


def _show(state: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(state))
    else:
        rows(vm_tables.hardware_table(state))
