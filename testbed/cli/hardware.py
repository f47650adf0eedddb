"""Verbs for what a running guest's disks do: throttle, delay, inject, hang, unplug, plug, resize, hardware; and profiles."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from testbed import paths, vms
from testbed.cli.app import Json, app, out, run_async
from testbed.cli.vms import VmArgument
from testbed.hardware.profiles import PROFILES
from testbed.report import guests
from testbed.report.hardware import profiles_markdown


def _disks(context: typer.Context, incomplete: str) -> list[str]:
    """For the shell's completion."""
    there = [vm for vm in vms.every(paths.folders()) if vm.record.name == context.params.get("vm")]
    return [disk for vm in there for disk in vm.record.disks if disk.startswith(incomplete)]


def _speeds(incomplete: str) -> list[str]:
    return [word for word in ("off", *PROFILES) if word.startswith(incomplete)]


DiskArgument = Annotated[str, typer.Argument(metavar="DISK", help="A disk or a namespace of its topology.", autocompletion=_disks)]


@app.command()
def throttle(
    vm: VmArgument,
    disk: DiskArgument,
    words: Annotated[
        list[str],
        typer.Argument(metavar="LIMIT", help="A profile, iops-total=100, bps-read=20M and the like, or off.", autocompletion=_speeds),
    ],
    scale: Annotated[float, typer.Option("--scale", min=0.000001, help="So many times as fast as that.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Give a disk other limits, at once."""
    _tell(vm, disk, "throttle", words, as_json, scale=scale)


@app.command()
def delay(
    vm: VmArgument,
    disk: DiskArgument,
    words: Annotated[
        list[str], typer.Argument(metavar="DELAY", help="5ms, or read=5ms, write=, flush=, jitter= and both=, a profile, or off.")
    ],
    as_json: Json = False,
) -> None:
    """Let each request of a disk take longer, from now on."""
    _tell(vm, disk, "delay", words, as_json)


@app.command()
def inject(
    vm: VmArgument,
    disk: DiskArgument,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FAULT",
            help="OPERATION=EFFECT[,count=N][,range=FROM-TO][,probability=P], or off. Operations: read, write, flush, discard. "
            "Effects: EIO, ENOSPC, ENOMEM, lost (acknowledged, never written), torn (only the beginning is written).",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Let requests of a disk go wrong: these, and no others than these."""
    _tell(vm, disk, "inject", words, as_json)


@app.command()
def hang(
    vm: VmArgument,
    disk: DiskArgument,
    duration: Annotated[str, typer.Argument(metavar="DURATION", help="Such as 30s; off lets it go.")],
    as_json: Json = False,
) -> None:
    """Let no request of a disk end for so long; then it goes on as if nothing had been."""
    _tell(vm, disk, "hang", [duration], as_json)


@app.command()
def unplug(vm: VmArgument, disk: DiskArgument, as_json: Json = False) -> None:
    """Take a disk out of a running guest, with whatever stands on it there; what it holds is kept."""
    _tell(vm, disk, "unplug", [], as_json)


@app.command()
def plug(vm: VmArgument, disk: DiskArgument, as_json: Json = False) -> None:
    """Put a disk in again that was taken out."""
    _tell(vm, disk, "plug", [], as_json)


@app.command()
def resize(
    vm: VmArgument, disk: DiskArgument, size: Annotated[str, typer.Argument(metavar="SIZE", help="Such as 2G.")], as_json: Json = False
) -> None:
    """Give a disk another size."""
    _tell(vm, disk, "resize", [size], as_json)


@app.command()
def profiles(
    markdown: Annotated[bool, typer.Option("--markdown", help="With their sources, as docs/hardware.md has it.")] = False,
) -> None:
    """The named devices that a disk can be like."""
    if markdown:
        print(profiles_markdown(), end="")
        return
    for name, profile in PROFILES.items():
        out.print(f"{name:16} {profile.title}", markup=False, highlight=False)


@app.command()
def hardware(vm: VmArgument, as_json: Json = False) -> None:
    """How a guest's disks behave now: limits, delays, faults."""

    async def work() -> int:
        _show(await vms.find(paths.folders(), vm).ask("hardware"), as_json)
        return 0

    run_async(work())


def _tell(vm: str, disk: str, what: str, words: list[str], as_json: bool, **more: Any) -> None:
    async def work() -> int:
        _show(await vms.find(paths.folders(), vm).ask("hardware", disk=disk, what=what, said=words, **more), as_json)
        return 0

    run_async(work())


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
    else:
        out.print(guests.hardware_table(found))
