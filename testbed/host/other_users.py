"""Names other users' processes that hold a connection to a port of this machine, or a lock."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from testbed.text import printable

_LOOPBACK = f"{struct.unpack('=I', socket.inet_aton('127.0.0.1'))[0]:08X}"
# As in the kernel's tables: 32-bit words in this machine's byte order (proc_pid_net(5)).
_LOOPBACK_6 = f"{0:016X}{struct.unpack('=I', bytes((0, 0, 255, 255)))[0]:08X}{_LOOPBACK}"
_MOST_PIDS, _LONGEST_COMMAND = 3, 100
_START_TICKS = 19  # index of the start time after the name in /proc/PID/stat


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConnection:
    """One end of a connection: its user, and the inode of the socket, by which /proc/PID/fd names it."""

    uid: int
    inode: int


def parse_connections(table: Iterable[str], port: int) -> tuple[PeerConnection, ...]:
    """Return the ends that are connected to a port of 127.0.0.1, from the lines of /proc/net/tcp or tcp6. Pure."""
    ends = {f"{address}:{port:04X}" for address in (_LOOPBACK, _LOOPBACK_6)}
    rows = (line.split() for line in table)
    connections = (
        PeerConnection(uid=int(row[7]), inode=int(row[9])) for row in rows if len(row) > 9 and row[2] in ends
    )
    # The kernel keeps a closed connection for a while, without an inode and as user 0.
    return tuple(one for one in connections if one.inode)


def describe_connections(port: int) -> str:
    """Describe which other users are connected to a port of 127.0.0.1, for the end of a message; empty if none is."""
    connections: dict[int, list[int]] = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for one in parse_connections(Path(f"/proc/net/{name}").read_text(encoding="utf-8").splitlines(), port):
                if one.uid != os.geteuid():
                    connections.setdefault(one.uid, []).append(one.inode)
    descriptions = [
        f"{user_name(uid)} holds {len(inodes)} connection{'s' if len(inodes) > 1 else ''} to "
        f"127.0.0.1:{port}{_processes(inodes)}"
        for uid, inodes in sorted(connections.items())
    ]
    return "".join(f"; {one}" for one in descriptions)


def user_name(uid: int) -> str:
    """Return a user's number, and the name if this machine knows one."""
    try:
        return f"{printable(pwd.getpwuid(uid).pw_name)} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def describe_process(pid: int) -> str:
    """Describe a process: number, user, command and start time, as far as /proc shows them."""
    place = Path(f"/proc/{pid}")
    try:
        # A process may make its command line as long as its memory, holes included (PR_SET_MM_MAP of prctl(2)).
        with (place / "cmdline").open("rb", buffering=0) as file:
            words = file.read(4 * _LONGEST_COMMAND).replace(b"\0", b" ").decode(errors="replace").strip()
        command = words or f"[{(place / 'comm').read_text(encoding='utf-8', errors='replace').strip()}]"
        # The name before it may hold anything; see proc_pid_stat(5).
        ticks = int(
            (place / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[_START_TICKS]
        )
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        since = datetime.fromtimestamp(time.time() - age_s).astimezone()
        return (
            f"pid {pid} of {user_name(place.stat().st_uid)}, since {since:%Y-%m-%d %H:%M:%S}: "
            f"{printable(command)[:_LONGEST_COMMAND]}"
        )
    except OSError:
        return f"pid {pid}"


def lock_holder(path: Path) -> str:
    """Who holds a lock file (flock), by the kernel's table of locks; in words also where that does not say it."""
    try:
        at = path.stat()
        table = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        table = []
    pids: Sequence[int] = lock_holders(table, os.major(at.st_dev), os.minor(at.st_dev), at.st_ino) if table else ()
    # Who took the lock may have left it to a process that it started; and some filesystems have another number there
    # than files have.
    alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    pids = alive or [pid for pid in _pids() if _has_lock(pid, os.path.realpath(path))]
    if os.getpid() in pids:
        return "another part of this command"
    return describe_process(pids[0]) if pids else "a process that /proc does not show"


def lock_holders(table: Iterable[str], major: int, minor: int, inode: int) -> tuple[int, ...]:
    """Return the processes that hold a file by flock(2), from the lines of /proc/locks. Pure."""
    rows = (line.split() for line in table)
    place = f"{major:02x}:{minor:02x}:{inode}"
    return tuple(int(row[4]) for row in rows if len(row) > 5 and row[1] == "FLOCK" and row[5] == place)


def _processes(inodes: list[int]) -> str:
    """Name the processes that have these sockets open, as far as we may read their open files."""
    names = {f"socket:[{inode}]" for inode in inodes}
    connections = [pid for pid in _pids() if not names.isdisjoint(_open_files(pid))]
    return f" ({'; '.join(describe_process(pid) for pid in connections[:_MOST_PIDS])})" if connections else ""


def _pids() -> list[int]:
    return sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())


def _has_lock(pid: int, path: str) -> bool:
    """Tell whether a process has a file open that it has locked (proc_pid_fdinfo(5))."""
    place = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        for descriptor in (place / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) == path and "FLOCK" in (place / "fdinfo" / descriptor.name).read_text(
                    encoding="utf-8"
                ):
                    return True
    return False


def _open_files(pid: int) -> set[str]:
    """Return the targets of a process's open descriptors."""
    connections = set()
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                connections.add(str(descriptor.readlink()))
    return connections
