"""Marks files whose `qemu-args` QEMU may get: trust."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from testbed import bugs
from testbed.bugs import bundle
from testbed.bugs.load import is_bug
from testbed.cli.app import app
from testbed.errors import UsageError
from testbed.topology import load_points, trust
from testbed.topology.trust import QemuArgs


@app.command("trust")
def trust_command(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE|SHA256]...", help="Topology or bug files, or hashes.", show_default=False),
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Stop trusting them.")] = False,
) -> None:
    """Trust the `qemu-args` of files and of what they include: QEMU gets them, and may do what you may. Without a file:
    list what is trusted.

    Files are trusted by their content: a changed file is not trusted any longer. A bundle is trusted by its hash only.
    """
    if forget and not what:
        raise UsageError("trust --forget: expected a file or a hash, got none; `testbed trust` lists them")
    if not what:
        for digest, name in trust.list_trusted().items():
            print(f"{digest}  {name}")
        return
    for sources in [_sources(word, forget=forget) for word in what]:  # read all files before any is trusted
        if forget:
            trust.forget_hashes(sources)
        else:
            trust.trust_sources(sources)


def _sources(what: str, *, forget: bool) -> dict[str, str]:
    """Return the hashes, with file names, that a command-line argument stands for.

    :raise UsageError: there is nothing to trust. :raise TopologyError: the file is wrong.
    """
    if trust.is_hash(what):
        return {what: ""}
    path = Path(what)
    if forget and (
        by_name := {digest: name for digest, name in trust.list_trusted().items() if name == str(path.absolute())}
    ):
        return by_name
    if bundle.is_bundle(path):
        raise UsageError(f"trust {what}: a bundle is trusted by the hash that `testbed repro {what}` names, got a file")
    guests = (
        {"": bugs.load(path).guest}
        if is_bug(path)
        else {
            f"{point}{': ' if point else ''}{name}: ": guest
            for point, topology in load_points(path).items()
            for name, guest in topology.guests.items()
        }
    )
    sources: dict[str, str] = {}
    for name, guest in guests.items():
        if isinstance(guest.qemu_args, QemuArgs) and guest.qemu_args:
            print(f"{path}: {name}{shlex.join(guest.qemu_args)}")
            sources |= guest.qemu_args.sources
    if not sources:
        raise UsageError(f"trust {what}: expected a file with qemu-args, got one without any, which needs no trust")
    return {digest: str(Path(name).absolute()) for digest, name in sources.items()}
