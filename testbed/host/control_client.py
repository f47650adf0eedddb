"""Asks a VM's supervisor over its control socket: a request is one line of JSON with a verb, and so is its reply."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from testbed.errors import HostError, from_code
from testbed.host import registry
from testbed.host.registry import VmHandle
from testbed.text import parse_json_object

_TIMEOUT_S = 60.0


class DisksReply(TypedDict):
    """`disks`: the fields of each disk and namespace in the guest, by name. `command_s`: the time limit of commands in
    the guest.
    """

    disks: dict[str, dict[str, Any]]
    command_s: float


class ControlClient:
    """Typed calls of the verbs that `testbed.vms` serves. Each raises as `ask`."""

    def __init__(self, vm: VmHandle) -> None:
        self._vm = vm

    async def ask(self, verb: str, *, timeout_s: float = _TIMEOUT_S, **arguments: Any) -> dict[str, Any]:
        """Send one request and return the reply.

        :raise HostError: the supervisor does not answer, or is stopped.
        :raise TestbedError: the supervisor answers with an error.
        """
        record = self._vm.record
        name, stopped = record.name, registry.stopped_process(record)
        # A supervisor can kill a stopped QEMU, but needs its answers for every other verb.
        if stopped is not None and (verb != "down" or stopped == record.supervisor):
            raise HostError(registry.stopped_message(registry.mark_stopped(record, stopped)))
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(
                    self._vm.folder / "control", limit=registry.LONGEST_LINE
                )
                with contextlib.closing(writer):
                    writer.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
                    line = await reader.readline()
            reply = parse_json_object(line)
        except TimeoutError:
            raise HostError(
                f"{name}: its supervisor (pid {record.supervisor}) does not answer `{verb}` within {timeout_s:.0f} s"
            ) from None
        except (OSError, ValueError) as error:
            raise HostError(f"{name}: its supervisor (pid {record.supervisor}) went away at `{verb}`") from error
        if "error" in reply:
            raise from_code(str(reply["error"]), reply.get("code", ""))
        return dict(reply)

    async def stats(self) -> dict[str, Any]:
        """Return the counters of all disks and cgroups, as `readings.read_all`."""
        return await self.ask("stats")

    async def shell(self, *, rows: int, columns: int) -> None:
        """Start a shell on the serial console, for a terminal of this size."""
        await self.ask("shell", rows=rows, columns=columns)

    async def disks(self) -> DisksReply:
        reply = await self.ask("disks")
        return DisksReply(disks=reply["disks"], command_s=reply["command_s"])

    async def hardware(self) -> dict[str, Any]:
        """Return how each disk and the machine behave now."""
        return await self.ask("hardware")

    async def change_hardware(self, words: Sequence[str]) -> dict[str, Any]:
        """Run a hardware command; returns how its disk or the machine behaves now, by its name."""
        return await self.ask("hardware", words=list(words))

    async def resume(self) -> None:
        """Resume a guest that is stopped at a disk error; QEMU retries the request."""
        await self.ask("resume")

    async def sample(self) -> dict[str, Any]:
        """Return one sample of the disks' counters."""
        return await self.ask("sample")

    async def qmp(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """Execute a QMP command, and return what QEMU returns."""
        return (await self.ask("qmp", execute=command, arguments=dict(arguments)))["return"]

    async def gdb(self, symbols: Path | None, *, timeout_s: float) -> dict[str, Any]:
        """Open the guest's gdb server; returns its socket and symbol file, as `gdb.open_gdb_server`."""
        return await self.ask("gdb", timeout_s=timeout_s, symbols=str(symbols.resolve()) if symbols else "")

    async def dump(self, path: Path, kind: str, *, timeout_s: float) -> int:
        """Write the guest's memory into a new file; returns its size in bytes."""
        reply = await self.ask("dump", timeout_s=timeout_s, path=str(path.resolve()), format=kind)
        return int(reply["bytes"])

    async def down(self) -> None:
        """Let the supervisor end its guest and itself; see `registry.wait_until_gone`."""
        await self.ask("down")

    async def snapshot(self, folder: Path, *, timeout_s: float) -> None:
        """Save the guest as a snapshot in a new folder."""
        await self.ask("snapshot", timeout_s=timeout_s, folder=str(folder))

    async def restore(self, folder: Path, *, timeout_s: float) -> None:
        """Replace the guest by the one of a snapshot."""
        await self.ask("restore", timeout_s=timeout_s, folder=str(folder))

    async def power_cut(self, *, share: float, seed: int, timeout_s: float) -> dict[str, int]:
        """Cut the guest's power and boot it again; returns how many 4K blocks each disk has lost."""
        reply = await self.ask("power-cut", timeout_s=timeout_s, share=share, seed=seed)
        lost: dict[str, int] = reply["lost_blocks"]
        return lost
