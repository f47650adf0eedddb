"""The registry of long-lived VMs: what the runtime folder has of each while its supervisor lives, and how other
commands talk to the supervisor.

RUNTIME/vms/NAME/   record.json   its identity, the folder of its logs, how to reach it
                    lock          held by its supervisor; when that has ended, it is free, and the folder is a leftover
                    control       socket: one JSON object a line, answered by another
                    console       socket: the guest's serial console, both ways
                    ssh           socket: passes a connection to the guest's SSH server to each client (`ssh_proxy.py`)
                    key, known_hosts, ssh_config
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import filelock
from pydantic import TypeAdapter

from testbed.errors import HostError, UsageError
from testbed.host import process
from testbed.host.paths import Folders
from testbed.host.tempdirs import lock_file
from testbed.text import parse_json

SSH = "ssh"
# A guest in the state ENDED is kept with its memory.
STARTING, READY, LOST, ENDED = "starting", "ready", "lost", "ended"
# The longest line of the control socket: a table of all cgroups of a guest fits.
LONGEST_LINE = 8 << 20
_CLAIM_TRIES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRecord:
    """What is recorded of a long-lived VM.

    `guest`: its name in the `topology` file. `since`: seconds since 1970. `why`: why it is lost, held, or stands still;
    in that case `resume_with` is the command that resumes it.

    `supervisor`, `qemu`: process ids. `devices`: the /dev path of each device of the topology, by its name there.
    """

    name: str
    state: str
    topology: str
    point: str
    guest: str
    kernel: str
    release: str
    memory_bytes: int
    cpus: int
    disks: tuple[str, ...]
    loops: tuple[str, ...]
    evidence: str
    supervisor: int
    since: float
    networks: str
    qemu: int = 0
    devices: dict[str, str] = field(default_factory=dict)
    why: str = ""
    resume_with: str = ""


_RECORD = TypeAdapter(VmRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmHandle:
    """A record, and the folder that it is in."""

    folder: Path
    record: VmRecord

    @property
    def ssh_config(self) -> Path:
        return self.folder / "ssh_config"


def refresh(record: VmRecord) -> VmRecord:
    """Update a record with what its supervisor cannot record: that a signal has stopped the supervisor or QEMU."""
    pid = stopped_process(record)
    return record if pid is None else mark_stopped(record, pid)


def mark_stopped(record: VmRecord, pid: int) -> VmRecord:
    whose = "supervisor" if pid == record.supervisor else "QEMU"
    return replace(record, why=f"its {whose} (pid {pid}) is stopped by a signal", resume_with=f"kill -CONT {pid}")


def stopped_message(record: VmRecord) -> str:
    """Return the message for a command that needs a guest which stands still."""
    return f"{record.name} stands still: {record.why}; let it go on with: {record.resume_with}"


def stopped_process(record: VmRecord) -> int | None:
    """Return the process id of the supervisor or of QEMU if a signal, such as that of Ctrl-Z, has stopped it."""
    return next((pid for pid in (record.supervisor, record.qemu) if pid and process.is_stopped(pid)), None)


def _root(folders: Folders) -> Path:
    return folders.runtime / "vms"


def write_record(folder: Path, record: VmRecord) -> None:
    """Write a record atomically."""
    unfinished = folder / "record.new"
    unfinished.write_text(json.dumps(asdict(record)), encoding="utf-8")
    unfinished.replace(folder / "record.json")


def read_record(folder: Path) -> VmRecord | None:
    """Read a record; None if there is none yet, or it is of another version."""
    try:
        return _RECORD.validate_python(parse_json((folder / "record.json").read_bytes()))
    except (OSError, ValueError):  # pydantic's error is one
        return None


def list_vms(folders: Folders) -> tuple[VmHandle, ...]:
    """List all long-lived VMs by age. Removes nothing: only `remove_dead` reports supervisors that were killed."""
    vms = []
    for folder in _root(folders).glob("*"):
        with _try_lock(folder) as gone:
            record = None if gone else read_record(folder)
        vms += [VmHandle(folder=folder, record=record)] if record is not None else []
    return tuple(sorted(vms, key=lambda vm: vm.record.since))


def remove_dead(folders: Folders, *, keep_records: bool = False) -> tuple[VmRecord, ...]:
    """Remove what killed supervisors have left, and networks that no VM uses; returns the VMs that ended that way.

    `keep_records`: leave VMs that have a record. Each is reported once, to who runs a command with this runtime folder,
    so a command with another one must not take it.
    """
    # List networks before records: a supervisor writes its record before it makes its networks' folder.
    networks = set(folders.runtime.glob("net-*"))
    dead = (_take_dead(folder, keep_record=keep_records) for folder in _root(folders).glob("*"))
    lost = tuple(record for record in dead if record is not None)
    for unused in networks - {Path(vm.record.networks) for vm in list_vms(folders)}:
        shutil.rmtree(unused, ignore_errors=True)
    return lost


def _take_dead(folder: Path, *, keep_record: bool = False) -> VmRecord | None:
    """Remove the folder of a VM whose supervisor is gone, and return its record; None if the supervisor lives, or has
    ended normally. `keep_record`: do nothing if there is a record.
    """
    with _try_lock(folder) as gone:
        record = read_record(folder) if gone else None
        if keep_record and record is not None:
            return None
        if gone:
            shutil.rmtree(folder, ignore_errors=True)
    return record


def find_vm(folders: Folders, name: str) -> VmHandle:
    """Return the VM of that name.

    :raise UsageError: there is none.
    """
    vms = list_vms(folders)
    for vm in vms:
        if vm.record.name == name:
            return vm
    for folder in _root(folders).glob("*"):
        if folder.name == name and (record := _take_dead(folder)) is not None:
            raise UsageError(supervisor_killed_message(record))
    names = ", ".join(vm.record.name for vm in vms)
    raise UsageError(
        f"{name}: there is no such guest; {f'there are {names}' if names else 'start one with: testbed up FILE'}"
    )


def supervisor_killed_message(record: VmRecord) -> str:
    """Return the message for a VM whose supervisor was killed."""
    return f"{record.name}: its supervisor was killed, and the guest ended with it; its logs: {record.evidence}"


@contextlib.contextmanager
def _try_lock(folder: Path) -> Iterator[bool]:
    lock = lock_file(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except (filelock.Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def claim_name(folders: Folders, name: str) -> Iterator[Path]:
    """Make the folder of a new VM, hold its lock, and remove it on leaving.

    :raise UsageError: the name is taken.
    """
    root = _root(folders)
    root.mkdir(mode=0o700, exist_ok=True)
    folder = root / name
    for _ in range(_CLAIM_TRIES):
        folder.mkdir(mode=0o700, exist_ok=True)
        with _try_lock(folder) as ours:
            # Another command may have removed it as a leftover just before it was locked.
            if ours and (folder / "lock").exists():
                # FileLock creates the folder again if it was just removed, readable for all users.
                folder.chmod(0o700)
                (folder / "record.json").unlink(missing_ok=True)
                try:
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                return
        if read_record(folder) is not None:
            raise name_taken(name)
        time.sleep(0.02)
    raise name_taken(name)


def name_taken(name: str) -> UsageError:
    return UsageError(
        f"{name}: a guest of this name is there already; end it with: testbed down {name}; or choose another name"
    )


async def wait_until_gone(vm: VmHandle, timeout_s: float) -> None:
    """Wait until a VM's supervisor has ended; one that does not end is killed, and its QEMU with it.

    :raise HostError: it does not end.
    """
    for limit_s, kill in ((timeout_s, False), (10.0, True)):
        if kill:
            with contextlib.suppress(ProcessLookupError):
                os.kill(vm.record.supervisor, signal.SIGKILL)
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if not vm.folder.exists():
                return
            with _try_lock(vm.folder) as free:
                if free:
                    shutil.rmtree(vm.folder, ignore_errors=True)
                    return
            await asyncio.sleep(0.02)
    raise HostError(f"{vm.record.name}: its supervisor (pid {vm.record.supervisor}) does not end")
