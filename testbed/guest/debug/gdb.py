"""Opens a guest to gdb: QEMU's gdb stub on a unix socket, and the kernel's symbols at their addresses in this guest
(KASLR).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from testbed.errors import GuestError, HostError, UsageError
from testbed.guest.debug import kallsyms
from testbed.guest.guest import Guest

KALLSYMS, SYMBOLS = "kallsyms.txt", "symbols.elf"
_ANCHOR = "_text"
# A guest that does not answer can be debugged without symbols.
_READ_S = 30.0


async def read_symbols(guest: Guest) -> Path:
    """Write the guest's kallsyms into its log folder, once, and return the file.

    :raise GuestError: the guest does not answer.
    """
    path = guest.logs / KALLSYMS
    if not path.exists():
        printed = await guest.run("cat", "/proc/kallsyms", timeout_s=_READ_S)
        path.write_text(printed.stdout, encoding="utf-8")
    return path


async def open_gdb_server(guest: Guest, symbols: Path | None) -> dict[str, Any]:
    """Open QEMU's gdb stub, if it is not open, on a socket beside the guest's others.

    Returns what gdb needs, for `command`: `socket`, `symbols` (a file, or empty), their `offset`, and a `note`.

    `symbols`: a vmlinux, whose symbols gdb moves by `offset`, or a System.map; None reads the guest's kallsyms.

    :raise UsageError: `symbols` is neither, or another gdb is connected. :raise HostError: QEMU cannot open the stub.
    """
    socket = guest.spec.sockets / "gdb"
    if not socket.exists():
        command = f"gdbserver unix:{socket},server=on,wait=off"
        answer = str(await guest.monitor.execute("human-monitor-command", {"command-line": command}))
        if not socket.exists():
            raise HostError(f"guest {guest.name}: QEMU: expected a gdb stub on {socket}, got: {answer.strip()}")
    chardevs = {chardev["label"]: chardev["filename"] for chardev in await guest.monitor.execute("query-chardev")}
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
    if symbols is None:
        if not target.exists():
            target.write_bytes(await asyncio.to_thread(kallsyms.make_elf, own))
        return found | {"symbols": str(target)}
    return found | await asyncio.to_thread(_symbols_of_file, symbols, own, target)


def _symbols_of_file(path: Path, own: tuple[kallsyms.Symbol, ...], target: Path) -> dict[str, Any]:
    """Return `symbols` and `offset` for a vmlinux or a System.map. `own`: the guest's symbols."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--symbols {path}: cannot be read: {error.strerror}") from error
    is_elf = data.startswith(b"\x7fELF")
    try:
        theirs = tuple(kallsyms.read_elf(data) if is_elf else kallsyms.parse(data.decode(errors="replace")))
    except ValueError as error:
        raise UsageError(f"--symbols {path}: {error}") from error
    here, there = kallsyms.address_of(own, _ANCHOR), kallsyms.address_of(theirs, _ANCHOR)
    if here is None or there is None:
        raise UsageError(
            f"--symbols {path}: expected the vmlinux or System.map of the guest's kernel, with the symbol {_ANCHOR}"
        )
    if is_elf:
        return {"symbols": str(path), "offset": here - there}
    mapped = target.with_name("system-map.elf")
    mapped.write_bytes(kallsyms.make_elf(theirs, here - there))
    return {"symbols": str(mapped)}


def command(opened: dict[str, Any], more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the argv of gdb for the answer of `open_gdb_server`; `more`: further arguments of the user."""
    words = ["gdb", "-q", "-nx", "-iex", "set architecture i386:x86-64", "-ex", "set confirm off"]
    if opened["symbols"]:
        moved = f" -o {opened['offset']}" if opened["offset"] else ""
        words += ["-ex", f"symbol-file {opened['symbols']}{moved}"]
    return (*words, "-ex", f"target remote {opened['socket']}", *more)
