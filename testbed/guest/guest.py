"""A running guest: from a plan to a machine that answers over SSH with the devices of its topology, and back to nothing.

    async with launch(spec) as guest:
        await guest.shell.run(["uname", "-r"])

Every wait races the end of QEMU, what QMP and the console say, and a deadline; whichever wins, the error names the stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import DeviceMismatch, GuestError, HostError, TemplateError, TestbedError
from testbed.guest import devices, session
from testbed.guest.channels import dmesg, ssh_login
from testbed.guest.channels.agent import Agent
from testbed.guest.channels.ssh_endpoint import ForwardedPort
from testbed.guest.channels.ssh_keys import SshKey
from testbed.guest.devices import Device
from testbed.guest.disk_control import DiskControl
from testbed.guest.hotplug import Hotplug
from testbed.guest.launch_spec import LaunchSpec, Saved
from testbed.guest.lifecycle import SHUTDOWNS, Event, Loss, State
from testbed.guest.liveness import LAST_WORDS_S, Liveness, wait_until_done
from testbed.guest.marks import Marks
from testbed.host import logfile, process, quota
from testbed.qemu import command_line, jail, migration
from testbed.qemu.blockdev import DiskCommands
from testbed.qemu.blocking_monitor import BlockingMonitor
from testbed.qemu.command_line import Memory
from testbed.qemu.jail import Jail
from testbed.qemu.monitor import Monitor
from testbed.store.snapshot_files import Snapshot

if TYPE_CHECKING:
    from testbed.guest.channels.ssh import Result, Shell


# For which another template would be none the better.
_NOT_THE_TEMPLATE = (Loss.HOST, Loss.KILLED, Loss.MONITOR)
_KILLED = (-signal.SIGKILL, -signal.SIGTERM)


class Guest(Liveness):
    """A machine under our control. Made by `launch`; `disks` maps the topology's names to the guest's devices."""

    def __init__(self, spec: LaunchSpec) -> None:
        super().__init__(spec)
        self.disks: dict[str, Device] = {}
        self.numbers: dict[str, str] = {}  # what each MAJ:MIN is called
        self.on_disks: Callable[[], None] = lambda: None  # called when one of them may have another path
        self.boot_s = 0.0
        self.host_key = SshKey(spec.identity)
        self.marks = Marks(self.console)
        self.agent = Agent(spec.name)
        # Words of the caller's own may name any file, and who lets them has said so.
        self.jail = Jail.on(spec.host, trusted=bool(spec.machine.qemu_args))
        self.ssh_port = ForwardedPort(spec.name, self.jail.netns)
        self.monitor = Monitor(spec.name, self.log("qmp.jsonl"), self._on_event, self.jail.visible)
        self.poller = BlockingMonitor(spec.name, spec.sockets / "poll")
        self._disks = DiskCommands(cold=(), hot=())
        self._authorized = ""
        self._shell: Shell | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._shut_down = ""
        self._stays = False  # also after its end
        self.slots = Hotplug(self.monitor, self.wait, spec, self.jail)
        self.hardware = DiskControl(self.monitor, self.wait, spec, self.slots, self._on_trouble)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def shell(self) -> Shell:
        assert self._shell is not None, "the guest is not reachable yet"
        return self._shell

    # What can end a guest ------------------------------------------------------------------------------------------------------

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "DEVICE_DELETED":
            self.slots.on_deleted(str(data.get("device")))
        elif name in ("BLOCK_IO_ERROR", "STOP", "RESUME"):
            self.hardware.errors.hear(name, data)
            # An error that was injected is the guest's affair, a disk of this machine that is full is not.
            if name == "BLOCK_IO_ERROR" and (full := quota.full_disk_message(self._places)):
                self._lose(full, Loss.HOST)
        elif name == "GUEST_PANICKED":
            self._lose("QEMU reports a guest panic", Loss.PANIC)
        elif name == "SHUTDOWN":
            self._shut_down = str(data.get("reason"))
            if self._stays:
                self._lose(f"the guest ended itself ({self._shut_down})", SHUTDOWNS.get(self._shut_down, Loss.QEMU))
        elif name in ("INTERNAL_ERROR", "WATCHDOG"):
            self._lose(f"QEMU reports {name} {data}", Loss.QEMU)

    async def _watch_process(self) -> None:
        assert self._process is not None
        status = await self._process.wait()
        # The console's last words say more than the status, if they are already on the wire.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.console.ended()
        said = logfile.tail(self.spec.logs / "qemu.log")
        loss = Loss.KILLED if status in _KILLED else SHUTDOWNS.get(self._shut_down, Loss.QEMU)
        if self.state is State.LAUNCHED and status > 0:
            self._lose(
                f"QEMU does not start, and ended with status {status}: {said[-500:] or 'it said nothing'}", Loss.HOST
            )
        if status < 0 and (
            full := quota.full_disk_message(self._places)
        ):  # a page of its memory could not be had (SIGBUS)
            self._lose(f"QEMU was killed by signal {-status}; {full}", Loss.HOST)
        reason = (
            f"the guest ended itself ({self._shut_down})"
            if loss in SHUTDOWNS.values()
            else "QEMU was killed, or failed"
        )
        self._lose(f"QEMU ended with status {status}" + (f": {said[-500:]}" if said else f"; {reason}"), loss)

    def _why_silent(self) -> str:
        stopped = self._process is not None and process.is_stopped(self.pid)
        return f": its QEMU (pid {self.pid}) is stopped by a signal" if stopped else self.ssh_port.why_silent()

    async def _watch_room(self) -> None:
        self._lose(await self.spec.quota.exceeded((self.spec.logs, self.spec.scratch)), Loss.HOST)

    @property
    def _places(self) -> tuple[Path, ...]:
        """The folders that it, and we for it, write to."""
        memory = self.spec.memory.file
        return (self.spec.scratch, self.spec.logs, *([memory.parent] if memory else []))

    async def _watch_monitor(self) -> None:
        await self.monitor.closed()
        await asyncio.sleep(LAST_WORDS_S / 2)  # a QEMU that ended is reported as that
        self._lose("QEMU closed its monitor", Loss.MONITOR)

    # Commands ------------------------------------------------------------------------------------------------------------------

    async def run(self, *command: str, check: bool = True, timeout_s: float | None = None) -> Result:
        """Run a program in the guest; see `Shell.run`. Ends at once when the guest is lost."""
        limit = self.spec.deadlines.command_s if timeout_s is None else timeout_s
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
        limit = self.spec.deadlines.command_s if timeout_s is None else timeout_s
        script = self.shell.script(text, *arguments, check=check, timeout_s=limit, interpreter=interpreter, stdin=stdin)
        return await self.wait(script, limit + 5)

    async def keep_when_ended(self) -> None:
        """Let QEMU stay, standing still, when the guest panics, reboots or powers off: its memory can be read then."""
        await self.monitor.execute("set-action", {"reboot": "shutdown", "shutdown": "pause"})
        self._stays = True

    async def answers(self, limit_s: float) -> bool:
        """Whether process 1 of the guest still does, also where nothing answers on its network."""
        try:
            await self.wait(self.agent.exchange("disks", "disks", count="0"), limit_s)
        except GuestError:
            return False
        return True

    async def put(self, source: Path, target: str, *, timeout_s: float | None = None) -> None:
        """Copy a file into the guest; see `Shell.put`."""
        await self.wait(
            self.shell.put(source, target), self.spec.deadlines.command_s if timeout_s is None else timeout_s
        )

    async def get(
        self, source: str, target: Path, *, most_bytes: int | None = None, timeout_s: float | None = None
    ) -> None:
        """Copy a file out of the guest; see `Shell.get`."""
        await self.wait(
            self.shell.get(source, target, most_bytes=most_bytes),
            self.spec.deadlines.command_s if timeout_s is None else timeout_s,
        )

    # From nothing to ready -----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        spec = self.spec
        snapshot = spec.template if isinstance(spec.template, Snapshot) else None
        memory = Memory(file=spec.template.memory) if spec.template else spec.memory
        self._disks = await self.slots.prepare(spec.model, spec.wiring, snapshot)
        self._hand_over(memory)
        if spec.savable:
            await self.slots.overlay(spec.overlay, spec.files.root, snapshot)
        options = command_line.argv(
            spec.host,
            spec.machine,
            spec.files if not spec.savable else replace(spec.files, overlay=spec.overlay),
            name=spec.name,
            sockets=spec.sockets,
            memory=memory,
            restore=spec.template is not None,
            cold=self._disks.cold,
        )
        logfile.write_text(spec.logs / "argv.txt", "".join(" ".join(option) + "\n" for option in options))
        self._process = await process.start(
            self.jail.visible(command_line.flatten_options((*options, *self.jail.options))),
            output=spec.logs / "qemu.log",
            env={
                **spec.host.qemu.environment,
                "TMPDIR": self.jail.visible(str(spec.scratch)),
                session.OWNER: f"{spec.sockets}/",
            },
            oom_first=True,
            prefix=self.jail.prefix(spec.host),
            pass_fds=self.jail.descriptors,
            inherit_env=jail.ENVIRONMENT,
        )
        self.jail.release()
        self._advance(Event.SPAWNED)
        self._watchers += [self._watch(self._watch_process()), self._watch(self._watch_room())]
        await self.wait(self.monitor.connect(spec.sockets / "qmp"), spec.deadlines.monitor_s)
        self._watchers.append(self._watch(self._watch_monitor()))
        await self.console.connect(spec.sockets / "console")
        await self.agent.connect(spec.sockets / "agent")
        self._advance(Event.MONITOR_CONNECTED)

    def _hand_over(self, memory: Memory) -> None:
        """Everything of this machine that its QEMU may reach."""
        files, wiring, disks = self.spec.files, self.spec.wiring, self.spec.model.disks.values()
        self.jail.grant_folders(self.spec.sockets, self.spec.scratch, *([wiring.own] if wiring.ends else []))
        self.jail.grant_start_files(files.bzimage, files.initramfs)
        self.jail.grant_images([path for path in (files.root, files.modules_disk) if path is not None])
        self.jail.grant_images(Path(disk.image) for disk in disks if disk.image is not None)
        if memory.file is not None:
            self.jail.grant_memory(memory.file, read_only=memory.only_read(self.spec.host))

    async def _boot(self) -> None:
        started = time.monotonic()
        await self._go_on()
        await self.wait(self.agent.expect("waiting"), self.spec.deadlines.boot_s)
        self.boot_s = time.monotonic() - started
        self._advance(Event.AGENT_WAITING)

    async def _go_on(self) -> None:
        await self.wait(self.monitor.execute("cont"), self.spec.deadlines.monitor_s)

    async def _restore(self, template: Saved) -> None:
        try:
            await self.wait(migration.load_state(self.monitor, template.state), self.spec.deadlines.restore_s)
        except (GuestError, HostError, OSError) as error:
            if self.loss in _NOT_THE_TEMPLATE:
                raise
            raise TemplateError(f"{template.title} does not load: {error}") from error
        self.boot_s = template.boot_s
        self._advance(Event.AGENT_WAITING)

    async def _wake(self, key: SshKey) -> None:
        """Give the guest its randomness, clock, name, keys and disks, and connect to it; a clone runs from here on.

        For a clone all of that waits when it wakes: its disks, its identity, and the connection in the backlog of its SSH server, which
        is stopped until the guest has been reseeded. It does these at once, on all its cores.
        """
        clone = self.spec.template is not None
        limit = self.spec.deadlines.ssh_s
        self._authorized = key.public.split()[1]
        self.agent.say("identity", **self._identity(**({} if clone else {"hostkey": self.host_key.dropbear.hex()})))
        await self.slots.fill(self._disks.hot)
        await self.hardware.furnish()
        self.ssh_port.port = await self.wait(self.monitor.forwarded_port(), self.spec.deadlines.monitor_s)
        identified = asyncio.Event()
        connecting = asyncio.create_task(
            ssh_login.connect(self.spec, self.ssh_port, key, self.host_key, identified, self.log("ssh.log"))
        )
        try:
            if clone:
                await self._go_on()
            await self.wait(self.agent.expect("ready"), limit)
            identified.set()
            self._advance(Event.IDENTIFIED)
            await self.verify()
            self._advance(Event.DEVICES_VERIFIED)
            self._shell = await self.wait(connecting, limit)
            self._advance(Event.SSH_CONNECTED)
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)

    def _identity(self, **more: str) -> dict[str, str]:
        """What tells the guest who it is; it answers `ready`."""
        if not self.spec.memory.shared:
            more["writable"] = "1"
        return {
            "time_ns": str(time.time_ns()),
            "name": self.name,
            "seed": secrets.token_hex(32),
            "authorized": self._authorized,
            **more,
        }

    async def freeze(self) -> None:
        """Let its SSH server sleep, so that its state can be saved."""
        await self.wait(self.agent.exchange("freeze", "frozen"), self.spec.deadlines.command_s)

    async def thaw(self) -> None:
        """Let a guest go on that was frozen and stopped, with the time of now."""
        await self._go_on()
        await self.wait(self.agent.exchange("identity", "ready", **self._identity()), self.spec.deadlines.ssh_s)

    async def verify(self) -> None:
        """Compare the guest's disks with the topology.

        :raise DeviceMismatch: they differ; the guest must not be used.
        """
        found = await self._listed()
        if said := devices.differences(self.spec.model.disks, found):
            raise DeviceMismatch(self.name, said)
        self._know(found)

    async def look_again(self) -> None:
        """Find the disks that are plugged in: one that has come back may have another path and number now."""
        self._know(await self._listed())
        self.on_disks()

    def _know(self, found: tuple[Device, ...]) -> None:
        self.disks = devices.by_name(self.spec.model.disks, found)
        self.numbers = devices.by_number(self.spec.model.disks, found)

    async def _listed(self) -> tuple[Device, ...]:
        """The guest's disks, as soon as all that are plugged in are there."""
        own_disks = 1 + (self.spec.files.modules_disk is not None)
        there = {name: disk for name, disk in self.spec.model.disks.items() if not self.hardware.is_out(name)}
        query = devices.query_command(own_disks + devices.count_disks(there))
        return devices.parse(
            await self.wait(self.agent.exchange("disks", "disks", **query), self.spec.deadlines.command_s)
        )

    async def bring_up(self, key: SshKey) -> None:
        """Everything from nothing to ready."""
        try:
            await self._bring_up(key)
        except OSError as error:
            raise HostError(
                f"guest {self.name}: {self.state.value}: {error.filename or 'this machine'}: {error.strerror}"
            ) from error

    async def _bring_up(self, key: SshKey) -> None:
        template = self.spec.template
        if template is None:
            await self._start()
            await self._boot()
            await self._wake(key)
            return
        try:
            await self._start()
        except HostError as error:
            if template.complete:
                raise
            raise TemplateError(f"{template.title} was removed meanwhile: {error}") from error
        await self._restore(template)
        try:
            await self._wake(key)
        except DeviceMismatch:
            raise
        except GuestError as error:
            if self.loss in _NOT_THE_TEMPLATE:
                raise
            raise TemplateError(f"a clone of {template.title} does not wake up: {error}") from error

    async def cut_power(self, kept: Path, *, share: float, seed: int) -> dict[str, int]:
        """End the guest as a loss of power would: what its disks' volatile caches hold is lost, but for a `share` of the blocks by chance.

        Its disks are moved into the new folder `kept`, for another guest's `survivors`. Returns how many blocks each has lost.
        """
        lost = await self.hardware.cut_power(share, seed)
        kept.mkdir(mode=0o700, parents=True)
        await self.hand_over(kept)
        self._lose("its power was cut", Loss.QEMU)
        return lost

    async def hand_over(self, kept: Path) -> None:
        """End QEMU, and move the guest's disks into a folder before anybody hears of it and removes what is left."""
        await self._kill()
        self.slots.hand_over(kept)

    async def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    # And back ------------------------------------------------------------------------------------------------------------------

    async def save_dmesg(self) -> None:
        """Keep the log of a kernel that still runs; what it has beyond the console is a finding, and so is a log that was not read."""
        if self._shell is not None and not self._lost.done():
            try:
                printed = await self.run(*dmesg.COMMAND, timeout_s=10)
                self.console.dmesg = dmesg.parse(printed.stdout, cut=printed.truncated)
            except (TestbedError, OSError) as error:
                self.console.dmesg = dmesg.unreadable(error)
                return
            with contextlib.suppress(OSError):
                (self.spec.logs / "dmesg.txt").write_text(self.console.dmesg.text, encoding="utf-8")

    async def tear_down(self) -> None:
        """End QEMU and remove everything of the guest but its evidence. Cannot fail."""
        self._ending = True
        await self.console.last_words()
        await self._kill()
        if self._shell is not None:
            await self._shell.close()
        self.poller.close()
        self.agent.close()
        await self.console.close()
        await self.monitor.close()
        await self.slots.close()
        await self.hardware.close()
        self.jail.close()
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if not self._lost.done():
            self._lost.cancel()
        for folder in (self.spec.sockets, self.spec.scratch):
            shutil.rmtree(folder, ignore_errors=True)
        self._advance(Event.TORN_DOWN)


@contextlib.asynccontextmanager
async def launch(spec: LaunchSpec, key: SshKey) -> AsyncIterator[Guest]:
    """A guest that is ready; it and everything of it but its evidence is gone afterwards.

    :raise GuestLost: it did not get ready. :raise DeviceMismatch: it is not what the topology says.
    :raise TemplateError: the template to clone does not load. :raise HostError: QEMU does not start.
    """
    try:
        for folder in (spec.sockets, spec.scratch):
            folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise HostError(f"guest {spec.name}: {error.filename}: cannot be made: {error.strerror}") from error
    try:
        spec.logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"{spec.logs}: the guest's logs cannot go there: {error.strerror}") from error
    guest = Guest(spec)
    try:
        await guest.bring_up(key)
        yield guest
        await guest.save_dmesg()
    finally:
        await wait_until_done(guest.tear_down())
