"""A running guest: its QEMU, its channels and its disks. `launch` makes it; see launch.py.

Every wait ends early if the guest is lost: QEMU exits, QMP or the console reports a fatal event, or a deadline passes.
The error names the stage that the guest had reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import DeviceMismatch, GuestError, TestbedError
from testbed.guest import devices
from testbed.guest.channels import dmesg
from testbed.guest.channels.agent import Agent
from testbed.guest.channels.ssh_endpoint import ForwardedPort
from testbed.guest.channels.ssh_keys import SshKey
from testbed.guest.deadlines import Deadlines
from testbed.guest.devices import Device
from testbed.guest.disk_control import DiskControl
from testbed.guest.guest_monitor import GuestMonitor
from testbed.guest.hotplug import Hotplug
from testbed.guest.launch_spec import LaunchSpec
from testbed.guest.lifecycle import SHUTDOWNS, Event, Loss, State
from testbed.guest.liveness import LAST_WORDS_S, Liveness
from testbed.guest.marks import Marks
from testbed.host import logfile, process, quota
from testbed.qemu.blocking_monitor import BlockingMonitor
from testbed.qemu.jail import Jail
from testbed.qemu.monitor import Monitor
from testbed.topology.model import GuestModel

if TYPE_CHECKING:
    from testbed.guest.channels.ssh import Result, Shell

_KILLED = (-signal.SIGKILL, -signal.SIGTERM)


class Guest(Liveness):
    """A running guest, made by `launch`.

    `disks` maps names of the topology to the guest's devices, `disk_names` each MAJ:MIN to its name.

    `on_disks_changed` is called when a disk may have another path than before.
    """

    def __init__(self, spec: LaunchSpec) -> None:
        super().__init__(spec)
        self.disks: dict[str, Device] = {}
        self.disk_names: dict[str, str] = {}
        self.on_disks_changed: Callable[[], None] = lambda: None
        self.boot_s = 0.0
        self.host_key = SshKey(spec.identity)
        self.marks = Marks(self.console)
        self.agent = Agent(spec.name)
        # `qemu-args` of a topology may name any file; the user has marked that topology as trusted.
        self.jail = Jail.on(spec.host, trusted=bool(spec.machine.qemu_args))
        self.ssh_port = ForwardedPort(spec.name, self.jail.netns)
        self.monitor = Monitor(spec.name, self.log("qmp.jsonl"), self._on_event, self.jail.visible)
        self.qmp = GuestMonitor(self.monitor, self.wait, spec.deadlines.monitor_s)
        self.blocking_monitor = BlockingMonitor(spec.name, spec.sockets / "poll")
        self._authorized_key = ""
        self._shell: Shell | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._shutdown_reason = ""
        self._qemu_stays = False  # QEMU goes on running, paused, after the guest has ended
        self.hotplug = Hotplug(self.qmp, self.wait, spec, self.jail)
        self.hardware = DiskControl(self.qmp, spec, self.hotplug, self._on_trouble)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def shell(self) -> Shell:
        """The SSH connections to the guest."""
        assert self._shell is not None, "the guest is not reachable yet"
        return self._shell

    @property
    def model(self) -> GuestModel:
        """The guest as its topology describes it."""
        return self.spec.model

    @property
    def logs(self) -> Path:
        """The folder of the guest's logs."""
        return self.spec.logs

    @property
    def deadlines(self) -> Deadlines:
        """How long each wait for the guest may take."""
        return self.spec.deadlines

    # What can end a guest --------------------------------------------------------------------------------------------

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        """Handle an event of QMP."""
        if name == "DEVICE_DELETED":
            self.hotplug.on_deleted(str(data.get("device")))
        elif name in ("BLOCK_IO_ERROR", "STOP", "RESUME"):
            self.hardware.errors.on_event(name, data)
            # Injected errors are for the guest to handle; a full disk of the host ends it.
            if name == "BLOCK_IO_ERROR" and (full := quota.full_disk_message(self._written_folders)):
                self._lose(full, Loss.HOST)
        elif name == "GUEST_PANICKED":
            self._lose("QEMU reports a guest panic", Loss.PANIC)
        elif name == "SHUTDOWN":
            self._shutdown_reason = str(data.get("reason"))
            if self._qemu_stays:
                loss = SHUTDOWNS.get(self._shutdown_reason, Loss.QEMU)
                self._lose(f"the guest ended itself ({self._shutdown_reason})", loss)
        elif name in ("INTERNAL_ERROR", "WATCHDOG"):
            self._lose(f"QEMU reports {name} {data}", Loss.QEMU)

    async def _watch_process(self) -> None:
        """Wait until QEMU exits, and record why."""
        assert self._process is not None
        status = await self._process.wait()
        # What the console printed last says more than the exit status: read the rest of it first.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.console.wait_closed()
        output = logfile.tail(self.logs / "qemu.log")
        loss = Loss.KILLED if status in _KILLED else SHUTDOWNS.get(self._shutdown_reason, Loss.QEMU)
        if self.state is State.LAUNCHED and status > 0:
            why = f"QEMU does not start, and ended with status {status}: {output[-500:] or 'it printed nothing'}"
            self._lose(why, Loss.HOST)
        # SIGBUS: a page of the guest's memory could not be allocated in its file.
        if status < 0 and (full := quota.full_disk_message(self._written_folders)):
            self._lose(f"QEMU was killed by signal {-status}; {full}", Loss.HOST)
        ended_itself = loss in SHUTDOWNS.values()
        reason = f"the guest ended itself ({self._shutdown_reason})" if ended_itself else "QEMU was killed, or failed"
        self._lose(f"QEMU ended with status {status}" + (f": {output[-500:]}" if output else f"; {reason}"), loss)

    def _why_silent(self) -> str:
        stopped = self._process is not None and process.is_stopped(self.pid)
        return f": its QEMU (pid {self.pid}) is stopped by a signal" if stopped else self.ssh_port.why_silent()

    async def _watch_quota(self) -> None:
        self._lose(await self.spec.quota.exceeded((self.logs, self.spec.scratch)), Loss.HOST)

    @property
    def _written_folders(self) -> tuple[Path, ...]:
        """The folders that the guest's QEMU, and we for the guest, write to."""
        memory = self.spec.memory.file
        return (self.spec.scratch, self.logs, *([memory.parent] if memory else []))

    async def _watch_monitor(self) -> None:
        await self.monitor.closed()
        await asyncio.sleep(LAST_WORDS_S / 2)  # if QEMU exited, `_watch_process` reports that
        self._lose("QEMU closed its monitor", Loss.MONITOR)

    # Commands --------------------------------------------------------------------------------------------------------

    async def run(self, *command: str, check: bool = True, timeout_s: float | None = None) -> Result:
        """Run a program in the guest; see `Shell.run`. Ends at once when the guest is lost."""
        limit = self._command_limit(timeout_s)
        return await self.wait(self.shell.run(command, check=check, timeout_s=limit), limit + 5)

    async def script(
        self,
        text: str,
        *arguments: str,
        check: bool = True,
        timeout_s: float | None = None,
        interpreter: str = "sh",
        stdin: bytes = b"",
    ) -> Result:
        """Run a script in the guest; see `Shell.script`."""
        limit = self._command_limit(timeout_s)
        script = self.shell.script(text, *arguments, check=check, timeout_s=limit, interpreter=interpreter, stdin=stdin)
        return await self.wait(script, limit + 5)

    async def put(self, source: Path, target: str, *, timeout_s: float | None = None) -> None:
        """Copy a file into the guest; see `Shell.put`."""
        await self.wait(self.shell.put(source, target), self._command_limit(timeout_s))

    async def get(
        self, source: str, target: Path, *, most_bytes: int | None = None, timeout_s: float | None = None
    ) -> None:
        """Copy a file out of the guest; see `Shell.get`."""
        await self.wait(self.shell.get(source, target, most_bytes=most_bytes), self._command_limit(timeout_s))

    def _command_limit(self, timeout_s: float | None) -> float:
        return self.deadlines.command_s if timeout_s is None else timeout_s

    async def agent_answers(self, limit_s: float) -> bool:
        """Return whether process 1 of the guest answers; it does so even if the guest's network does not work."""
        try:
            await self.wait(self.agent.exchange("disks", "disks", count="0"), limit_s)
        except GuestError:
            return False
        return True

    # Steps of its start ----------------------------------------------------------------------------------------------

    def attach_process(self, qemu: asyncio.subprocess.Process) -> None:
        """Take over the QEMU process that was started for this guest, and watch it."""
        self._process = qemu
        self.jail.release()
        self.advance(Event.SPAWNED)
        self._watchers += [self._watch(self._watch_process()), self._watch(self._watch_quota())]

    async def connect_channels(self) -> None:
        """Connect to QEMU's monitor, the console and the agent."""
        sockets = self.spec.sockets
        await self.wait(self.monitor.connect(sockets / "qmp"), self.deadlines.monitor_s)
        self._watchers.append(self._watch(self._watch_monitor()))
        await self.console.connect(sockets / "console")
        await self.agent.connect(sockets / "agent")
        self.advance(Event.MONITOR_CONNECTED)

    async def resume(self) -> None:
        """Let the guest's CPUs run."""
        await self.qmp.execute("cont")

    def send_identity(self, key: SshKey, **more: str) -> None:
        """Tell the guest its identity, with the SSH key that may log in; its agent answers `ready`."""
        self._authorized_key = key.public.split()[1]
        self.agent.send("identity", **self._identity(**more))

    def _identity(self, **more: str) -> dict[str, str]:
        if not self.spec.memory.shared:
            more["writable"] = "1"
        return {
            "time_ns": str(time.time_ns()),
            "name": self.name,
            "seed": secrets.token_hex(32),
            "authorized": self._authorized_key,
            **more,
        }

    def attach_shell(self, shell: Shell) -> None:
        """Take over the SSH connection that was made to this guest."""
        self._shell = shell
        self.advance(Event.SSH_CONNECTED)

    # Its disks -------------------------------------------------------------------------------------------------------

    async def verify_disks(self) -> None:
        """Compare the guest's disks with the topology.

        :raise DeviceMismatch: they differ; the guest must not be used.
        """
        found = await self._list_disks()
        if differences := devices.differences(self.model.disks, found):
            raise DeviceMismatch(self.name, differences)
        self._set_disks(found)

    async def refresh_disks(self) -> None:
        """List the disks again: one that was plugged in again may have another path and number."""
        self._set_disks(await self._list_disks())
        self.on_disks_changed()

    def _set_disks(self, found: tuple[Device, ...]) -> None:
        self.disks = devices.by_name(self.model.disks, found)
        self.disk_names = devices.by_number(self.model.disks, found)

    async def _list_disks(self) -> tuple[Device, ...]:
        """List the guest's disks as soon as all that are plugged in have appeared."""
        own_disks = 1 + (self.spec.files.modules_disk is not None)
        plugged = {name: disk for name, disk in self.model.disks.items() if not self.hardware.is_unplugged(name)}
        query = devices.query_command(own_disks + devices.count_disks(plugged))
        answer = await self.wait(self.agent.exchange("disks", "disks", **query), self.deadlines.command_s)
        return devices.parse(answer)

    # Saving and ending it --------------------------------------------------------------------------------------------

    async def freeze(self) -> None:
        """Stop the guest's SSH server, so that the guest's state can be saved."""
        await self.wait(self.agent.exchange("freeze", "frozen"), self.deadlines.command_s)

    async def thaw(self) -> None:
        """Let a guest that was frozen and stopped go on, with its clock set to the current time."""
        await self.resume()
        await self.wait(self.agent.exchange("identity", "ready", **self._identity()), self.deadlines.ssh_s)

    async def keep_qemu_after_end(self) -> None:
        """Make QEMU pause and not exit when the guest panics, reboots or powers off, so that its memory can be read."""
        await self.monitor.execute("set-action", {"reboot": "shutdown", "shutdown": "pause"})
        self._qemu_stays = True

    async def cut_power(self, folder: Path, *, share: float, seed: int) -> dict[str, int]:
        """End the guest as a power failure would: volatile caches are lost, but for a random `share` of their blocks.

        Moves the disks into the new `folder`, for another guest's `surviving_disks`. Returns each disk's lost blocks.
        """
        lost = await self.hardware.cut_power(share, seed)
        folder.mkdir(mode=0o700, parents=True)
        await self.move_disks_to(folder)
        self._lose("its power was cut", Loss.QEMU)
        return lost

    async def move_disks_to(self, folder: Path) -> None:
        """Kill QEMU and move the guest's disks into a folder, before its end is noticed and its files are removed."""
        await self._kill()
        self.hotplug.move_disks_to(folder)

    async def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def save_dmesg(self) -> None:
        """Save the kernel's log. Reports that the console lacks are findings, and so is a log that cannot be read."""
        if self._shell is not None and not self._lost.done():
            try:
                printed = await self.run(*dmesg.COMMAND, timeout_s=10)
                self.console.dmesg = dmesg.parse(printed.stdout, cut=printed.truncated)
            except (TestbedError, OSError) as error:
                self.console.dmesg = dmesg.unreadable(error)
                return
            with contextlib.suppress(OSError):
                (self.logs / "dmesg.txt").write_text(self.console.dmesg.text, encoding="utf-8")

    async def tear_down(self) -> None:
        """Kill QEMU and remove everything of the guest but its logs. Cannot fail."""
        self._ending = True
        await self.console.wait_until_quiet()
        await self._kill()
        if self._shell is not None:
            await self._shell.close()
        self.blocking_monitor.close()
        self.agent.close()
        await self.console.close()
        await self.monitor.close()
        await self.hotplug.close()
        await self.hardware.close()
        self.jail.close()
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if not self._lost.done():
            self._lost.cancel()
        for folder in (self.spec.sockets, self.spec.scratch):
            shutil.rmtree(folder, ignore_errors=True)
        self.advance(Event.TORN_DOWN)
