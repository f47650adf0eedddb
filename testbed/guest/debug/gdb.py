"""Lets gdb into a guest: QEMU's stub on a unix socket, and the kernel's symbols at the addresses that they have in this guest (KASLR)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from testbed.errors import GuestError, HostError, UsageError
from testbed.guest.debug import kallsyms
from testbed.guest.guest import Guest

KALLSYMS, SYMBOLS = "kallsyms.txt", "symbols.elf"
_ANCHOR = "_text"
# A guest that does not answer is no reason not to debug it.
_READ_S = 30.0


async def read_symbols(guest: Guest) -> Path:
    """The guest's kernel symbols in a file beside its logs; read once, while it answers.

    :raise GuestError: it does not.
    """
    path = guest.logs / KALLSYMS
    if not path.exists():
        said = await guest.run("cat", "/proc/kallsyms", timeout_s=_READ_S)
        path.write_text(said.stdout, encoding="utf-8")
    return path


async def open_gdb_server(guest: Guest, wanted: Path | None) -> dict[str, Any]:
    """Open the stub, if it is not, on a socket beside the guest's others.

    Returns what gdb is to be told: `socket`, `symbols` (a file, or empty), `offset` for it, and `note`.

    `wanted`: a vmlinux, whose symbols are moved by `offset`, or a System.map.

    :raise UsageError: `wanted` is neither, or another gdb has the guest. :raise HostError: QEMU has no such stub.
    """
    socket = guest.spec.sockets / "gdb"
    if not socket.exists():
        command = f"gdbserver unix:{socket},server=on,wait=off"
        said = str(await guest.monitor.execute("human-monitor-command", {"command-line": command}))
        if not socket.exists():
            raise HostError(f"guest {guest.name}: QEMU: expected a gdb stub on {socket}, got: {said.strip()}")
    chardevs = {one["label"]: one["filename"] for one in await guest.monitor.execute("query-chardev")}
    if not chardevs.get("gdb", "disconnected").startswith("disconnected"):
        raise UsageError(f"{guest.name}: a debugger has it already, and QEMU serves one at a time")
    found: dict[str, Any] = {"socket": str(socket), "symbols": "", "offset": 0, "note": ""}
    try:
        text = await asyncio.to_thread((await read_symbols(guest)).read_text)
    except GuestError as error:
        found["note"] = f"no symbols: the guest does not say where they are: {error}"
        return found
    own = tuple(kallsyms.parse(text))
    target = guest.logs / SYMBOLS
    if wanted is None:
        if not target.exists():
            target.write_bytes(await asyncio.to_thread(kallsyms.make_elf, own))
        return found | {"symbols": str(target)}
    return found | await asyncio.to_thread(_of_file, wanted, own, target)


def _of_file(wanted: Path, own: tuple[kallsyms.Symbol, ...], target: Path) -> dict[str, Any]:
    try:
        data = wanted.read_bytes()
    except OSError as error:
        raise UsageError(f"--symbols {wanted}: cannot be read: {error.strerror}") from error
    is_elf = data.startswith(b"\x7fELF")
    try:
        theirs = tuple(kallsyms.read_elf(data) if is_elf else kallsyms.parse(data.decode(errors="replace")))
    except ValueError as error:
        raise UsageError(f"--symbols {wanted}: {error}") from error
    here, there = kallsyms.address_of(own, _ANCHOR), kallsyms.address_of(theirs, _ANCHOR)
    if here is None or there is None:
        raise UsageError(
            f"--symbols {wanted}: expected the vmlinux or System.map of the guest's kernel, with the symbol {_ANCHOR}"
        )
    if is_elf:
        return {"symbols": str(wanted), "offset": here - there}
    mapped = target.with_name("system-map.elf")
    mapped.write_bytes(kallsyms.make_elf(theirs, here - there))
    return {"symbols": str(mapped)}


def command(opened: dict[str, Any], more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The argv of gdb for what `opened` has answered; `more`: the user's own words."""
    words = ["gdb", "-q", "-nx", "-iex", "set architecture i386:x86-64", "-ex", "set confirm off"]
    if opened["symbols"]:
        moved = f" -o {opened['offset']}" if opened["offset"] else ""
        words += ["-ex", f"symbol-file {opened['symbols']}{moved}"]
    return (*words, "-ex", f"target remote {opened['socket']}", *more)
