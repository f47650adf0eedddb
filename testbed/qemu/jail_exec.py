"""Keeps a program from this machine by the kernel's own means, before it starts. Run as a script, by whoever may be root still, before
privileges go.

Apart: in a mount namespace it sees nothing in the folders where programs of everybody make their sockets, but folders of its own there.

Alone: in a network namespace that has a loopback device and nothing else, where no other program can connect to what it listens on, and
what it listens on is no port of this machine. Whoever started it gets two sockets of that namespace (`netns.py`).

Confined: it opens no file but what it is given, connects to nothing, signals nobody else, and changes files by writing to them. Files,
ports and abstract sockets are held by Landlock (Documentation/userspace-api/landlock.rst), as far as this kernel's has come: files since
Linux 5.13, ports since 6.7, abstract sockets since 6.12. What Landlock has no rule for is refused by a filter that libseccomp makes:
QEMU's own `-sandbox`, which comes on top of it, leaves it.

The script runs with `python -I -S`, and imports as little as it can: this is a part of each guest's start (`json`, `pathlib`, `socket` and
`typing` took 17 of 29 ms).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# What a path may be given for. Each is of files, and of all that is below a folder.
RUN = "run"  # to read, and to start or map as a program
READ = "read"
WRITE = "write"  # to read and to write what is there
OWN = "own"  # to read and write it, and to make and remove files and sockets below it

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
_MAKE_FILE, _MAKE_SOCKET, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 8, 1 << 9, 1 << 13, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_EVERYTHING = (1 << 16) - 1
_RIGHTS = {
    RUN: _EXECUTE | _READ_FILE | _READ_DIR,
    READ: _READ_FILE | _READ_DIR,
    WRITE: _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV,
    # No links, pipes and devices: whoever started the program opens what it finds there.
    OWN: _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _REMOVE_FILE | _MAKE_FILE | _MAKE_SOCKET,
}
# The versions of Landlock (its ABI) from which it holds files, ports, and what goes to others' processes and abstract sockets.
FILES_SINCE, PORTS_SINCE, SCOPES_SINCE = 1, 4, 6
# The same of single rights.
_SINCE = {_REFER: 2, _TRUNCATE: 3, _IOCTL_DEV: 5}
_BIND_TCP, _CONNECT_TCP = 1, 2
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION, _PATH_BENEATH, _NET_PORT = 1, 1, 2
_NO_NEW_PRIVS = 38
_NEW_MOUNTS, _NEW_IPC, _NEW_USERS, _NEW_NETWORK = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_SET_FLAGS_OF_DEVICE, _DEVICE_IS_UP = 0x8914, 1  # SIOCSIFFLAGS, IFF_UP; see netdevice(7)
_SEND_DESCRIPTORS = 1  # SCM_RIGHTS
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_DROP_FROM_BOUNDS, _CAPABILITIES = 24, 64
_CONFINED, _APART, _END = "confined", "apart", "--"
_GIVEN = "/var/tmp"  # noqa: S108 - nobody else's, where it is used
_HIDDEN = ("/run", "/tmp", _GIVEN)  # noqa: S108 - nothing is made there
# An ephemeral port, which the kernel chooses: that is what QEMU asks for the forwarded one.
_ANY_PORT = 0

_UNKNOWN = -1
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_NOT, _EQUAL, _GREATER, _MASKED = 1, 4, 6, 7
_AF_UNIX, _AF_INET, _SOCK_STREAM, _IPPROTO_TCP = 1, 2, 1, 6
_TYPE_MASK, _MSG_FASTOPEN, _INT, _TYPE_AND_NUMBER = 0xF, 0x20000000, 0xFFFFFFFF, 0xFFFF
_NEVER = (
    # Its owner hands it what is connected, and Landlock has rules for opening only.
    *("connect", "io_uring_setup", "inotify_add_watch", "fanotify_init"),
    # What somebody else would open or start afterwards.
    *("symlink", "symlinkat", "link", "linkat", "mknod", "mknodat"),
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    # Landlock has no rule for these, or only since Linux 6.2.
    *("truncate", "utime", "utimes", "futimesat", "utimensat", "file_setattr"),
    *(
        "setxattr",
        "lsetxattr",
        "fsetxattr",
        "setxattrat",
        "removexattr",
        "lremovexattr",
        "fremovexattr",
        "removexattrat",
    ),
    # Other processes of its user: their memory, their keys, their time, and that ours would wait for it.
    *(
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "shmget",
        "shmat",
        "shmctl",
        "msgget",
        "semget",
        "mq_open",
        "mq_unlink",
    ),
    *("add_key", "keyctl", "request_key", "ioprio_set"),
    *("sched_setscheduler", "sched_setattr", "sched_setparam", "sched_setaffinity", "setpriority"),
    # Signals to what no process's id says, and files that others have open.
    *("tkill", "pidfd_send_signal", "pidfd_getfd"),
    # Another view of this machine, and programs in its kernel.
    *("unshare", "setns", "bpf", "perf_event_open"),
)
# Signals to a process that the first argument names: only to itself.
_SIGNALLING = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
# Whom the kernel signals when a file is ready.
_OWNER_OF_FILE, _OWNER_OF_SOCKET = (8, 15), (0x8901, 0x8902)  # F_SETOWN, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP
# What a file that may only be read can be made by its owner: FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_ENABLE_VERITY, by type and number.
_FLAGS_OF_FILE = (0x6602, 0x5820, 0x6685)
# Those that are younger than libseccomp 2.5.4, by their numbers, which are the same on every architecture.
_YOUNG = {"fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "file_setattr": 469}
_IPPROTO_IP, _IP_LOCAL_PORT_RANGE = 0, 51
_SET_DEATH_SIGNAL, _SIGKILL = 1, 9


def command_prefix(
    python: str, rules: Iterable[tuple[str, str]] | None, *, apart: Iterable[str] | None, network: int | None = None
) -> tuple[str, ...]:
    """What to put before a program.

    `rules`: confine it to these, pairs of a kind and a path; paths that are not there are left out. `apart`: keep it apart, with these
    folders, as `given` names them. `network`: give it a network of its own, of which two sockets are sent over the unix socket of this
    number, which the program inherits. None: do not.
    """
    confined = () if rules is None else (_CONFINED, *(word for rule in rules for word in rule))
    kept_apart = () if apart is None else (_APART, *apart)
    alone = () if network is None else (str(network),)
    return (python, "-I", "-S", os.path.abspath(__file__), *confined, _END, *kept_apart, _END, *alone, _END)


def mounted_name(number: int) -> str:
    """How a program that is kept apart names one of its folders, counted from 0."""
    return f"{_GIVEN}/{number}"


def landlock_abi() -> int:
    """How far this kernel's Landlock has come (its ABI); 0: it has none, or it is switched off."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))))


_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Port(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


class _Compared(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _asked(what: str, result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _mount(what: str, where: str, kind: str, flags: int, options: str = "") -> None:
    failed = _libc.mount(what.encode(), where.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _asked(f"mounting {kind or what} on {where}", failed)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _enter_namespaces(kinds: int) -> None:
    """Leave this machine's namespaces of these kinds for new ones.

    An unprivileged user can do so only in a user namespace; the uid is mapped to itself, and capabilities last until exec.
    """
    uid, gid = os.geteuid(), os.getegid()
    _asked("unshare", _libc.unshare(kinds | (_NEW_USERS if uid != 0 else 0)))
    if uid != 0:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        for capability in range(_CAPABILITIES):
            _libc.prctl(_DROP_FROM_BOUNDS, capability, 0, 0, 0)


def _open_network(channel: int) -> None:
    """Start the loopback device of this namespace, and send a socket that listens there and an unconnected one over the unix socket
    `channel`, which is closed.
    """
    import _socket  # `socket` takes 10 ms more

    listening, unconnected = _socket.socket(_AF_INET, _SOCK_STREAM), _socket.socket(_AF_INET, _SOCK_STREAM)
    device = b"lo".ljust(16, b"\0") + _DEVICE_IS_UP.to_bytes(2, sys.byteorder) + bytes(22)  # struct ifreq
    _asked("starting lo", _libc.ioctl(listening.fileno(), ctypes.c_ulong(_SET_FLAGS_OF_DEVICE), device))
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    descriptors = b"".join(one.fileno().to_bytes(4, sys.byteorder) for one in (listening, unconnected))
    wire = _socket.socket(fileno=channel)
    wire.sendmsg([b"+"], [(_socket.SOL_SOCKET, _SEND_DESCRIPTORS, descriptors)])
    for one in (wire, listening, unconnected):
        one.close()


def _hide_folders(folders: Iterable[str]) -> None:
    """Hide the folders of everybody's sockets from this process, and give it `folders` in one of them.

    They are mounts of their own there: a way up from an open folder would lead out of all this.
    """
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    opened = [os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for folder in folders]
    for hidden in _HIDDEN:
        _mount("none", hidden, "tmpfs", 0 if hidden == _GIVEN else _READ_ONLY, "size=64k,mode=755")
    for number, descriptor in enumerate(opened):
        os.mkdir(mounted_name(number))
        _mount(f"/proc/self/fd/{descriptor}", mounted_name(number), "", _BIND)
        os.close(descriptor)
    _mount("none", _GIVEN, "", _REMOUNT | _BIND | _READ_ONLY)
    os.chdir("/")


def unshare_all() -> None:
    """Hide the folders of everybody's sockets from this process."""
    _enter_namespaces(_NEW_MOUNTS | _NEW_IPC)
    _hide_folders(())


def restrict_by_landlock(rules: Iterable[tuple[str, str]], abi: int) -> None:
    """By Landlock, as far as it has come (`version`): files, and ports and signals as well."""
    if abi < FILES_SINCE:
        return
    known = _EVERYTHING & ~sum(right for right, since in _SINCE.items() if since > abi)
    wanted = _Ruleset(files=known, net=_BIND_TCP | _CONNECT_TCP, scoped=_ABSTRACT_SOCKETS | _SIGNALS)
    size = 8 * (1 + (abi >= PORTS_SINCE) + (abi >= SCOPES_SINCE))
    ruleset = _asked(
        "landlock_create_ruleset", _libc.syscall(_CREATE_RULESET, ctypes.byref(wanted), ctypes.c_size_t(size), 0)
    )

    def add(kind: int, rule: ctypes.Structure) -> None:
        _asked("landlock_add_rule", _libc.syscall(_ADD_RULE, ruleset, kind, ctypes.byref(rule), 0))

    for kind, path in rules:
        try:
            there = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there, or not for us, is not for the program either
        rights = _RIGHTS[kind] & known
        if not stat.S_ISDIR(os.fstat(there).st_mode):
            rights &= _OF_FILES
        add(_PATH_BENEATH, _Beneath(allowed=rights, parent=there))
        os.close(there)
    if abi >= PORTS_SINCE:
        add(_NET_PORT, _Port(allowed=_BIND_TCP, port=_ANY_PORT))
    _asked("landlock_restrict_self", _libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _filter_calls() -> None:
    """Sockets of this machine and TCP only, which are connected to nothing; and what else has no rule."""
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    filtered = ctypes.c_void_p(seccomp.seccomp_init(_ALLOW))

    def refuse(call: str, *compared: tuple[int, int, int, int]) -> None:
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        if number == _UNKNOWN:
            number = _YOUNG[call]
        array = (_Compared * len(compared))(*(_Compared(*one) for one in compared))
        failed = seccomp.seccomp_rule_add_array(filtered, _REFUSE, number, len(compared), array)
        if failed:
            raise OSError(-failed, f"libseccomp: {call}: {os.strerror(-failed)}")

    for call in _NEVER:
        refuse(call)
    inet = (0, _EQUAL, _AF_INET, 0)
    refuse("socket", (0, _GREATER, _AF_INET, 0))
    for kind in range(_TYPE_MASK + 1):
        if kind != _SOCK_STREAM:
            refuse("socket", inet, (1, _MASKED, _TYPE_MASK, kind))
    refuse("socket", inet, (2, _GREATER, _IPPROTO_TCP, 0))  # MPTCP and SCTP are streams as well
    refuse("socketpair", (0, _NOT, _AF_UNIX, 0))
    # TCP Fast Open connects by sending.
    for call, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        refuse(call, (flags, _MASKED, _MSG_FASTOPEN, _MSG_FASTOPEN))
    # A range of ports of its own is a choice of the port.
    refuse("setsockopt", (1, _MASKED, _INT, _IPPROTO_IP), (2, _MASKED, _INT, _IP_LOCAL_PORT_RANGE))
    # It dies with us.
    refuse("prctl", (0, _MASKED, _INT, _SET_DEATH_SIGNAL), (1, _NOT, _SIGKILL, 0))
    # A limit of time that is over ends another process as a signal does.
    refuse("prlimit64", (0, _NOT, 0, 0))
    for call in _SIGNALLING:
        refuse(call, (0, _NOT, os.getpid(), 0))
    for request in _OWNER_OF_FILE:
        refuse("fcntl", (1, _MASKED, _INT, request))
    for request in (*_OWNER_OF_SOCKET, *_FLAGS_OF_FILE):
        refuse("ioctl", (1, _MASKED, _TYPE_AND_NUMBER, request))
    _load(seccomp, filtered)


def seccomp_filter(calls: Iterable[str]) -> Callable[[], None]:
    """Prepares a filter: calling it refuses this process every system call but these; those that this architecture does not have are left
    out. Preparing opens libseccomp, which Landlock may refuse.
    """
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    filtered = ctypes.c_void_p(seccomp.seccomp_init(_REFUSE))
    for call in calls:
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        failed = seccomp.seccomp_rule_add_array(filtered, _ALLOW, number, 0, None) if number >= 0 else 0
        if failed:
            raise OSError(-failed, f"libseccomp: {call}: {os.strerror(-failed)}")
    return lambda: _load(seccomp, filtered)


def _load(seccomp: ctypes.CDLL, filtered: ctypes.c_void_p) -> None:
    failed = seccomp.seccomp_load(filtered)
    if failed:
        raise OSError(-failed, f"libseccomp: {os.strerror(-failed)}")
    seccomp.seccomp_release(filtered)


def main(asked: list[str]) -> None:
    """Keep this process from this machine as `words` say, and become the program after them."""
    first = asked.index(_END)
    second = asked.index(_END, first + 1)
    third = asked.index(_END, second + 1)
    confined, kept_apart, alone, program = (
        asked[:first],
        asked[first + 1 : second],
        asked[second + 1 : third],
        asked[third + 1 :],
    )
    if kept_apart or alone:
        _enter_namespaces((_NEW_MOUNTS | _NEW_IPC if kept_apart else 0) | (_NEW_NETWORK if alone else 0))
    if alone:
        _open_network(int(alone[0]))
    if kept_apart:
        _hide_folders(kept_apart[1:])
    if confined:
        _asked("no_new_privs", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
        abi = landlock_abi()
        restrict_by_landlock(zip(confined[1::2], confined[2::2], strict=True), abi)
        _filter_calls()
    # By its path, found before: looking for it imports modules, which lie where the program may not read.
    os.execv(program[0], program)  # noqa: S606 -- the words are ours; see custody.py


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as failure:
        raise SystemExit(f"cannot be kept from this machine: {failure}") from failure
