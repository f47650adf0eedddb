"""One guest, as tests use it."""

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
    """A command of the test and its result; None if it did not end, because the guest was lost or the timeout was
    over."""

    command: str
    result: Result | None


class Vm:
    """A guest that is ready, with everything that its topology describes. Made by `Testbed.vm`.

    `kernel`: as it was requested; `release`: `uname -r`. `evidence`: the folder of its logs: console.log, qmp.jsonl,
    ssh.log and others. `qmp`: QEMU's monitor; `hardware`: changes how disks and machine behave.
    """

    def __init__(self, backend: GuestBackend, runner: LoopRunner, clock: PausableClock) -> None:
        self._backend, self._runner, self._clock = backend, runner, clock
        self.name, self.kernel, self.release, self.evidence = (
            backend.name,
            backend.kernel,
            backend.release,
            backend.logs,
        )
        self.qmp = Qmp(backend, runner, clock)
        self.hardware = Hardware(backend, runner)
        self._copier = Copier(self, backend, self._do)
        self.ready_at = time.monotonic()
        self.last: deque[CommandResult] = deque(maxlen=_REMEMBERED)
        self.failed: CommandResult | None = None
        # The counters of cgroups that were removed because of an error in the test.
        self.left_groups: dict[str, FileTexts] = {}

    def __repr__(self) -> str:
        return f"<guest {self.name}, {self.release}>"

    @property
    def model(self) -> GuestModel:
        """The guest's part of its topology."""
        return self._backend.model

    @property
    def disks(self) -> Named[Disk]:
        """Its disks and NVMe namespaces, by name; formatted as a string, each is its /dev path."""
        return Named("one of the topology's disks", self._backend.disks)

    @property
    def loops(self) -> Named[Loop]:
        """Its loop devices, by name; formatted as a string, each is its /dev path."""
        return Named("one of the topology's loops", self._backend.loops)

    @property
    def devices(self) -> Mapping[str, str]:
        """The /dev path of each device of its topology: disks, namespaces, partitions, loops, dm and md devices."""
        return Named("one of the topology's devices", dict(self._backend.devices))

    async def run(
        self,
        *command: str,
        check: bool = True,
        timeout_s: float | None = None,
        input: str | bytes = b"",
        cgroup: str | None = None,
    ) -> Result:
        """Run a command as root: several words are a program and its arguments, unquoted; a single one is a line for
        the guest's shell.

        `input`: its standard input, text as UTF-8. `cgroup`: a cgroup to run it in. `timeout_s`: by default a
        minute, or more on a slow host.

        :raise CommandFailed: its status is not 0 and `check` is set, or it did not end in time. :raise GuestLost:
        the guest has ended.
        """
        if not command or not all(command[0:1]):
            raise UsageError("run: expected a command, got nothing")
        line = command[0] if len(command) == 1 else shlex.join(command)
        text = line
        if cgroup is not None:
            text = f"{ENTER}enter {shlex.quote(cgroup)} || exit\n{text}"
        return await self._run(line, text, (), check, timeout_s, input.encode() if isinstance(input, str) else input)

    async def script(self, text: str, *arguments: str, check: bool = True, timeout_s: float | None = None) -> Result:
        """Run a script in the guest's shell with `arguments` as $1, $2, ... and empty standard input; raises as
        `run`."""
        return await self._run(text, text, arguments, check, timeout_s)

    async def _run(
        self,
        shown: str,
        text: str,
        arguments: tuple[str, ...],
        check: bool,
        timeout_s: float | None,
        stdin: bytes = b"",
    ) -> Result:
        limit_s = self._backend.command_s if timeout_s is None else timeout_s
        said = " ".join((shown.strip().splitlines() or [""])[:1])[:500]
        if shown.strip().count("\n"):
            said += " ..."
        try:
            result = await self._do(self._backend.run(text, *arguments, stdin=stdin), limit_s)
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
        """Run `work` with a timeout, which does not count the time in a debugger.

        :raise TimeoutError: it took longer.
        """
        return await self._runner.do(self._clock.within(work, limit_s))

    async def modprobe(self, module: str, *parameters: str) -> None:
        """Load a kernel module in the guest; raises as `run`."""
        await self.run("modprobe", module, *parameters)

    async def put(
        self, source: Path | str | bytes, target: str, *, mode: int | None = None, timeout_s: float = _COPY_S
    ) -> None:
        """Copy a file, a whole folder, or bytes from this machine to `target` in the guest; missing parent folders
        are made.

        If `target` is a folder, a file is copied into it under its own name, and the content of a folder is added to
        what is there. Modes, holes, hard links within a folder and all symbolic links are preserved; everything
        belongs to root.

        :raise UsageError: `source` does not exist. :raise HostError: a part of it cannot be read. :raise GuestError:
        the guest cannot store it. :raise CommandFailed: it takes too long.
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
        """Return the bytes of a file in the guest, up to 64 MiB. With `target`, copy a file of up to 16 GiB to a
        file or into a folder on this machine, or a folder's content to a folder; then no bytes are returned. Holes,
        links that stay within a folder, and the executable bit are preserved.

        `most_bytes`: the limit for the file, or for the folder's content, without holes. `leave_out`: no error for
        entries that cannot be copied to this machine: links that lead out of the folder, devices, pipes and sockets.

        :raise GuestError: there is no such file, or entries of a folder were left out, while the rest was copied.
        :raise HostError: `target` cannot be written. :raise CommandFailed: it takes too long.
        """
        return await self._copier.get(
            source, None if target is None else Path(target), leave_out, most_bytes, timeout_s
        )

    @contextlib.asynccontextmanager
    async def cgroup(
        self, name: str = "test", files: Mapping[str, str | int] = MappingProxyType({})
    ) -> AsyncIterator[Cgroup]:
        """Make a cgroup (`a/b`: one in another) and write its files; it is removed afterwards, and its processes are
        killed.

        async with vm.cgroup("a", {"memory.max": "64M", "io.max": "{data} rbps=2097152"}) as a:
            await a.run("dd", f"if={vm.disks['data']}", "of=/dev/null", "bs=1M", "count=8", "iflag=direct")
            assert (await a.counters()).of("data", "rbytes") == 8 << 20

        :raise CommandFailed: the kernel refuses a value.
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
                read = self._backend.run(cgroups.read_command(mark), name)
                taken = shell_functions.sections((await self._do(read, 10)).stdout, mark, self.name)[""]
                self.left_groups[name] = taken
            with contextlib.suppress(Exception):
                await self._do(self._backend.run(cgroups.REMOVE, name), 30)
            raise
        await self.script(cgroups.REMOVE, name)

    async def counters(self, cgroup: str) -> Counters:
        """Read the counters of any cgroup.

        :raise CommandFailed: there is none. :raise ReadingError: the kernel's counters are malformed.
        """
        devices = [word for name, path in self._backend.devices.items() for word in (name, path)]
        mark = shell_functions.new_separator()
        said = await self._run(f"counters of {cgroup}", cgroups.read_command(mark), (cgroup, *devices), True, None)
        return cgroups.parse(cgroup, said.stdout, mark, self.name)

    def numbered(self, value: str | int) -> str:
        """Replace `{data}` in the value for a cgroup file by the MAJ:MIN of that disk."""
        if isinstance(value, int) or "{" not in value:
            return str(value)
        try:
            return value.format(**{name: disk.number for name, disk in self._backend.disks.items()})
        except (KeyError, IndexError, ValueError) as error:
            there = ", ".join(self._backend.disks) or "none"
            raise UsageError(
                f"{value!r}: expected names of the topology's disks in braces, which are {there}; got {error}"
            ) from None

    def keep(self) -> str:
        """Keep the guest after its test, if possible, and return how to enter it; empty if the guest cannot stay."""
        if not isinstance(self._backend, SupervisedGuest) or not self._backend.lives:
            return ""
        self._backend.stays = True
        return (
            f"enter it: testbed ssh {self.name}; its console: testbed console {self.name};"
            f" end it: testbed down {self.name}"
        )

    async def ask(self, script: str, limit_s: float) -> str:
        """Return the output of a script that is not part of the test; empty if the guest does not answer."""
        with contextlib.suppress(TestbedError, TimeoutError):
            return (await self._do(self._backend.run(script), limit_s)).stdout
        return ""
