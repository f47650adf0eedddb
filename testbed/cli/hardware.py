"""Verbs for what a running guest's disks do, are told to do, and have counted; and the named devices that they can be like."""

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


def _disks(context: typer.Context, incomplete: str) -> list[str]:
    """For the shell's completion."""
    there = [vm for vm in registry.list_vms(paths.folders()) if vm.record.name == context.params.get("vm")]
    return [disk for vm in there for disk in vm.record.disks if disk.startswith(incomplete)]


def _speeds(incomplete: str) -> list[str]:
    return [word for word in ("off", *PROFILES) if word.startswith(incomplete)]


DiskArgument = Annotated[
    str, typer.Argument(metavar="DISK", help="A disk or a namespace of its topology.", autocompletion=_disks)
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
            autocompletion=_speeds,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Give a disk other limits, at once."""
    _tell(vm, as_json, "throttle", disk, *words)


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
    """Let each request of a disk take longer, from now on."""
    _tell(vm, as_json, "delay", disk, *words)


@app.command()
def inject(
    vm: VmArgument,
    disk: DiskArgument,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FAULT",
            help="OPERATION=EFFECT[,count=N][,range=FROM-TO][,probability=P][,seed=N], or off. Operations: read, write, flush, discard. "
            "Effects: EIO, ENOSPC, ENOMEM, lost (acknowledged, never written), torn (only the beginning is written). "
            "Or read-only: what would write fails.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Let requests of a disk go wrong: these, and no others than these."""
    _tell(vm, as_json, "inject", disk, *words)


@app.command()
def hang(
    vm: VmArgument,
    disk: DiskArgument,
    duration: Annotated[str, typer.Argument(metavar="DURATION", help="Such as 30s; off lets it go.")],
    as_json: Json = False,
) -> None:
    """Let no request of a disk end for so long; then it goes on as if nothing had been."""
    _tell(vm, as_json, "hang", disk, duration)


@app.command()
def unplug(
    vm: VmArgument,
    disk: DiskArgument,
    surprise: Annotated[bool, typer.Option("--surprise", help="It is dead before the guest hears of it.")] = False,
    as_json: Json = False,
) -> None:
    """Take a disk out of a running guest, with whatever stands on it there; what it holds is kept."""
    _tell(vm, as_json, "unplug", disk, *([SURPRISE] if surprise else []))


@app.command()
def plug(vm: VmArgument, disk: DiskArgument, as_json: Json = False) -> None:
    """Put a disk in again that was taken out."""
    _tell(vm, as_json, "plug", disk)


@app.command()
def resize(
    vm: VmArgument,
    disk: DiskArgument,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Such as 2G.")],
    as_json: Json = False,
) -> None:
    """Give a disk another size. Of a smaller one what is beyond it is lost, also under a file system that is mounted."""
    _tell(vm, as_json, "resize", disk, size)


@app.command()
def memory(
    vm: VmArgument,
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="What the guest keeps, such as 128M; off gives it all back.")
    ],
    as_json: Json = False,
) -> None:
    """Take memory from a guest by a balloon."""
    _tell(vm, as_json, "memory", size)


@app.command()
def cpus(
    vm: VmArgument,
    count: Annotated[str, typer.Argument(metavar="COUNT", help="How many stay online; off puts all online again.")],
    as_json: Json = False,
) -> None:
    """Take CPUs of a guest offline."""
    _tell(vm, as_json, "cpus", count)


@app.command()
def power_cut(
    vm: VmArgument,
    keep: Annotated[
        float,
        typer.Option(
            "--keep", min=0, max=1, help="With this probability a block that was only in a disk's cache is not lost."
        ),
    ] = 0.5,
    seed: Annotated[
        int | None, typer.Option("--seed", help="The same one loses the same blocks; otherwise a new one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a guest lose its power, with what its disks' volatile caches hold, and boot it again on the disks as they are then."""
    chosen = secrets.randbelow(1 << 32) if seed is None else seed

    async def work() -> int:
        client = ControlClient(registry.find_vm(paths.folders(), vm))
        lost = await client.power_cut(share=keep, seed=chosen, timeout_s=_BOOT_S)
        if as_json:
            print(json.dumps({"seed": chosen, "lost_blocks": lost}))
        else:
            said = (
                ", ".join(f"{disk} lost {blocks} blocks of 4K" for disk, blocks in lost.items())
                or "no disk has a volatile cache"
            )
            out.print(f"{vm} is up again; {said} (seed {chosen})", markup=False, highlight=False)
        return 0

    run_async(work())


@app.command()
def sample(
    vm: VmArgument,
    every: Annotated[str, typer.Option(metavar="DURATION", help="From one sample to the next.")] = "100ms",
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="So many; otherwise until it is stopped.")
    ] = None,
) -> None:
    """What a guest's emulated disks have counted, again and again, a line of JSON each: requests, bytes, latencies, limits."""
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
    markdown: Annotated[
        bool, typer.Option("--markdown", help="With their sources, as docs/hardware.md has it.")
    ] = False,
) -> None:
    """The named devices that a disk can be like."""
    if markdown:
        print(profiles_markdown(), end="")
        return
    for name, profile in PROFILES.items():
        out.print(f"{name:16} {profile.title}", markup=False, highlight=False)


@app.command()
def hardware(vm: VmArgument, as_json: Json = False) -> None:
    """How a guest's disks behave now: limits, delays, faults, and the errors that there were; its memory and CPUs."""

    async def work() -> int:
        _show(await ControlClient(registry.find_vm(paths.folders(), vm)).hardware(), as_json)
        return 0

    run_async(work())


@app.command()
def resume(vm: VmArgument) -> None:
    """Let a guest go on that stands still at an error of a disk (`werror: stop`); the request is tried again."""

    async def work() -> int:
        await ControlClient(registry.find_vm(paths.folders(), vm)).resume()
        return 0

    run_async(work())


def _tell(vm: str, as_json: bool, *words: str) -> None:
    async def work() -> int:
        _show(await ControlClient(registry.find_vm(paths.folders(), vm)).change_hardware(words), as_json)
        return 0

    run_async(work())


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
    else:
        rows(vm_tables.hardware_table(found))
