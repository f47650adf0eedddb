"""One guest, as tests have it."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from testbed.api import cgroup as cgroups
from testbed.api.cgroup import Cgroup, Counters
from testbed.api.devices import Disk, Loop, Named
from testbed.api.event_loops import LoopRunner
from testbed.api.files import Copier
from testbed.api.guest_backend import GuestBackend
from testbed.api.hardware import Hardware
from testbed.api.pausable_clock import PausableClock
from testbed.api.qmp import Qmp
from testbed.api.supervised_guest import SupervisedGuest
from testbed.errors import CommandFailed, TestbedError, UsageError
from testbed.guest import shell_functions
from testbed.guest.channels.kernel_log import clean
from testbed.guest.channels.ssh import Result
from testbed.guest.shell_functions import ENTER, FileTexts
from testbed.topology.model import GuestModel

__tracebackhide__ = True  # pytest shows no frames of this module

T = TypeVar("T")
_REMEMBERED = 5
_COPY_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """A command of the test, and how it ended; None: it did not, for the guest was lost or the time was up."""

    command: str
    result: Result | None


class Vm:
    """A guest that is ready, with everything of its topology. Made by `Testbed.vm`.

    `kernel`: as it was asked for; `release`: `uname -r`. `evidence`: the folder of its logs: console.log, qmp.jsonl, ssh.log and others.
    `qmp`: QEMU's monitor; `hardware`: what its disks are made to do.
    """

    def __init__(self, machine: GuestBackend, carrier: LoopRunner, patience: PausableClock) -> None:
        self._machine, self._carrier, self._patience = machine, carrier, patience
        self.name, self.kernel, self.release, self.evidence = (
            machine.name,
            machine.kernel,
            machine.release,
            machine.evidence,
        )
        self.qmp = Qmp(machine, carrier, patience)
        self.hardware = Hardware(machine, carrier)
        self._copier = Copier(self, machine, self._do)
        self.ready_at = time.monotonic()
        self.last: deque[CommandResult] = deque(maxlen=_REMEMBERED)
        self.failed: CommandResult | None = None
        # What control groups had counted when the test left them by an error: they are gone afterwards.
        self.left_groups: dict[str, FileTexts] = {}

    def __repr__(self) -> str:
        return f"<guest {self.name}, {self.release}>"

    @property
    def model(self) -> GuestModel:
        """What its topology says of it."""
        return self._machine.model

    @property
    def disks(self) -> Named[Disk]:
        """Its disks and namespaces, by name; in a string each is its /dev path."""
        return Named("one of the topology's disks", self._machine.disks)

    @property
    def loops(self) -> Named[Loop]:
        """Its loop devices, by name; in a string each is its /dev path."""
        return Named("one of the topology's loops", self._machine.loops)

    @property
    def devices(self) -> Mapping[str, str]:
        """/dev path of each device of its topology: disks, namespaces, partitions, loops, dm and md devices."""
        return Named("one of the topology's devices", dict(self._machine.devices))

    # Commands ------------------------------------------------------------------------------------------------------------------

    async def run(
        self,
        *command: str,
        check: bool = True,
        timeout_s: float | None = None,
        input: str | bytes = b"",
        cgroup: str | None = None,
    ) -> Result:
        """Run a command as root: several words are a program and its arguments as they are, a single one is a line for the guest's shell.

        `input`: what it reads, text as UTF-8. `cgroup`: a control group to run it in. `timeout_s`: a minute or more without it, by how slow
        the host is.

        :raise CommandFailed: it ended with another status than 0, while `check`, or not in time. :raise GuestLost: the guest is gone.
        """
        if not command or not all(command[0:1]):
            raise UsageError("run: expected a command, got nothing")
        line = command[0] if len(command) == 1 else shlex.join(command)
        text = line
        if cgroup is not None:
            text = f"{ENTER}enter {shlex.quote(cgroup)} || exit\n{text}"
        return await self._ran(line, text, (), check, timeout_s, input.encode() if isinstance(input, str) else input)

    async def script(self, text: str, *arguments: str, check: bool = True, timeout_s: float | None = None) -> Result:
        """Run a script of the guest's shell, which gets `arguments` as $1, $2, ... and reads nothing; raises as `run`."""
        return await self._ran(text, text, arguments, check, timeout_s)

    async def _ran(
        self,
        shown: str,
        text: str,
        arguments: tuple[str, ...],
        check: bool,
        timeout_s: float | None,
        stdin: bytes = b"",
    ) -> Result:
        limit_s = self._machine.command_s if timeout_s is None else timeout_s
        said = " ".join((shown.strip().splitlines() or [""])[:1])[:500]
        if shown.strip().count("\n"):
            said += " ..."
        try:
            result = await self._do(self._machine.run(text, *arguments, stdin=stdin), limit_s)
        except TimeoutError:
            self._remember(CommandResult(command=said, result=None), failed=True)
            raise CommandFailed(self.name, said, f"none within {limit_s:g} s", "timeout_s gives it longer") from None
        except BaseException:
            self._remember(CommandResult(command=said, result=None), failed=True)
            raise
        wrong = check and result.status != 0
        self._remember(CommandResult(command=said, result=result), failed=wrong)
        if wrong:
            status = f"{result.status} {result.signal}".strip()
            output = "\n".join(clean(line) for line in result.last_output().splitlines())
            raise CommandFailed(self.name, clean(said), status, output)
        return result

    def _remember(self, ran: CommandResult, *, failed: bool) -> None:
        self.last.append(ran)
        if failed:
            self.failed = ran

    async def _do(self, work: Coroutine[Any, Any, T], limit_s: float) -> T:
        """:raise TimeoutError: it took longer, the time that a debugger took not counted."""
        return await self._carrier.do(self._patience.within(work, limit_s))

    async def modprobe(self, module: str, *parameters: str) -> None:
        """Load a kernel module of the guest; raises as `run`."""
        await self.run("modprobe", module, *parameters)

    # Files ---------------------------------------------------------------------------------------------------------------------

    async def put(
        self, source: Path | str | bytes, target: str, *, mode: int | None = None, timeout_s: float = _COPY_S
    ) -> None:
        """Copy a file, a whole folder, or bytes of this machine to `target` in the guest; folders above it are made.

        A file goes into a `target` that is a folder, under its own name; what is in a folder goes into it, and what is there stays. Modes,
        holes, links within a folder (symbolic ones wherever they lead) stay what they are; everything belongs to root.

        :raise UsageError: there is no such `source`. :raise HostError: it cannot be read, all of it. :raise GuestError: the guest does not
            take it. :raise CommandFailed: nor in time.
        """
        await self._copier.put(source, target, mode, timeout_s)

    async def get(
        self,
        source: str,
        target: Path | str | None = None,
        *,
        leave_out: bool = False,
        most_bytes: int | None = None,
        timeout_s: float = _COPY_S,
    ) -> bytes:
        """The bytes of a file in the guest, up to 64 MiB. With `target`, a file of up to 16 GiB is written to a file here, or into a
        folder, or a folder's content to a folder; then no bytes are returned. Holes, links that stay within a folder, and whether a
        file may be executed stay what they are.

        `most_bytes`: of the file, or of all that is in the folder, without its holes. `leave_out`: what cannot be here (links that lead
        out of the folder, devices, pipes, sockets) is left out, without an error.

        :raise GuestError: there is no such file, or something of a folder is left out: the rest is there. :raise HostError: `target` cannot
            be written. :raise CommandFailed: not in time.
        """
        return await self._copier.get(
            source, None if target is None else Path(target), leave_out, most_bytes, timeout_s
        )

    # Control groups ------------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def cgroup(
        self, name: str = "test", files: Mapping[str, str | int] = MappingProxyType({})
    ) -> AsyncIterator[Cgroup]:
        """A new control group (or `a/b`, one in another), with what its files are to say; gone afterwards, with what runs in it.

        async with vm.cgroup("a", {"memory.max": "64M", "io.max": "{data} rbps=2097152"}) as a:
            await a.run("dd", f"if={vm.disks['data']}", "of=/dev/null", "bs=1M", "count=8", "iflag=direct")
            assert (await a.counters()).of("data", "rbytes") == 8 << 20

        :raise CommandFailed: the kernel does not take a value.
        """
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise UsageError(f"cgroup: expected a name such as a, or a/b, got {name!r}")
        pairs = [word for file, value in files.items() for word in (file, self.numbered(value))]
        await self.script(cgroups.MAKE, name, *pairs)
        try:
            yield Cgroup(name, self)
        except BaseException:
            with contextlib.suppress(Exception):
                mark = shell_functions.new_separator()
                read = self._machine.run(cgroups.read_command(mark), name)
                taken = shell_functions.sections((await self._do(read, 10)).stdout, mark, self.name)[""]
                self.left_groups[name] = taken
            with contextlib.suppress(Exception):
                await self._do(self._machine.run(cgroups.REMOVE, name), 30)
            raise
        await self.script(cgroups.REMOVE, name)

    async def counters(self, cgroup: str) -> Counters:
        """What a control group has been charged for until now, whoever made it.

        :raise CommandFailed: there is none. :raise ReadingError: the kernel's counters have another form than they must have.
        """
        devices = [word for name, path in self._machine.devices.items() for word in (name, path)]
        mark = shell_functions.new_separator()
        said = await self._ran(f"counters of {cgroup}", cgroups.read_command(mark), (cgroup, *devices), True, None)
        return cgroups.parse(cgroup, said.stdout, mark, self.name)

    def numbered(self, value: str | int) -> str:
        """A value for a file of a control group: `{data}` in it is the MAJ:MIN of that disk."""
        if isinstance(value, int) or "{" not in value:
            return str(value)
        try:
            return value.format(**{name: disk.number for name, disk in self._machine.disks.items()})
        except (KeyError, IndexError, ValueError) as error:
            there = ", ".join(self._machine.disks) or "none"
            raise UsageError(
                f"{value!r}: expected names of the topology's disks in braces, which are {there}; got {error}"
            ) from None

    def keep(self) -> str:
        """Let the guest stay after its test, if it can, and say how it is entered; empty where it does not stay."""
        if not isinstance(self._machine, SupervisedGuest) or not self._machine.lives:
            return ""
        self._machine.stays = True
        return f"enter it: testbed ssh {self.name}; its console: testbed console {self.name}; end it: testbed down {self.name}"

    # For reports ---------------------------------------------------------------------------------------------------------------

    async def ask(self, script: str, limit_s: float) -> str:
        """What a script prints, which is no command of the test; empty where the guest does not answer."""
        with contextlib.suppress(TestbedError, TimeoutError):
            return (await self._do(self._machine.run(script), limit_s)).stdout
        return ""
