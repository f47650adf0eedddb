"""The verb by which the caller trusts files that bring words for QEMU itself: trust."""

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
    forget: Annotated[bool, typer.Option("--forget", help="Trust them no longer.")] = False,
) -> None:
    """Trust the `qemu-args` of files, with all that these take in: QEMU gets them, and may do what you may. Without a file: list them.

    A file is trusted by its content: one that is changed is not trusted any longer. A bundle is trusted by its hash alone.
    """
    if forget and not what:
        raise UsageError("trust --forget: expected a file or a hash, got none; `testbed trust` lists them")
    if not what:
        for digest, name in trust.list_trusted().items():
            print(f"{digest}  {name}")
        return
    found = [_sources(one, forget=forget) for one in what]  # all of them, before any is trusted
    for sources in found:
        if forget:
            trust.forget_hashes(sources)
        else:
            trust.trust_sources(sources)


def _sources(what: str, *, forget: bool) -> dict[str, str]:
    """What a word of the command line means: the names of files by their hashes.

    :raise UsageError: there is nothing to trust. :raise TopologyError: the file is wrong.
    """
    if trust.is_hash(what):
        return {what: ""}
    path = Path(what)
    if forget and (
        by_name := {one: name for one, name in trust.list_trusted().items() if name == str(path.absolute())}
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
    return {one: str(Path(name).absolute()) for one, name in sources.items()}
