"""Confines a program by means of the kernel, and then executes it.

Run as a script, while the process may still be root.

Mount namespace (`mount_ns`): the program sees its own folders instead of those where all users' programs make their
sockets.

Network namespace (`net_ns`): it has a loopback device and nothing else. No other program can connect to a port that it
listens on, and its ports are not ports of this machine. The process that started it gets two sockets of that namespace
(`netns.py`).

Confined (`rules`): it opens no file but those that the rules grant, connects to nothing, signals no other process, and
changes files only by writing to them. Landlock (Documentation/userspace-api/landlock.rst) restricts files, ports and
abstract sockets, as far as this kernel supports it: files since Linux 5.13, ports since 6.7, abstract sockets since
6.12. What Landlock has no rule for is denied by a filter that libseccomp makes; QEMU's own `-sandbox`, which is added
to it, allows these calls.

The script runs with `python -I -S`, and imports as little as possible, since every start of a guest waits for it
(`json`, `pathlib`, `socket` and `typing` took 17 of 29 ms).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# What a rule grants for a path: a file, or everything below a folder.
RUN = "run"  # read, and execute or map as a program
READ = "read"
WRITE = "write"  # read and write what exists
OWN = "own"  # read and write, and create and remove files and sockets below it

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
_MAKE_FILE, _MAKE_SOCKET, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 8, 1 << 9, 1 << 13, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_ALL_RIGHTS = (1 << 16) - 1
_RIGHTS = {
    RUN: _EXECUTE | _READ_FILE | _READ_DIR,
    READ: _READ_FILE | _READ_DIR,
    WRITE: _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV,
    # No links, pipes and devices: the testbed opens what the program leaves there.
    OWN: _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _REMOVE_FILE | _MAKE_FILE | _MAKE_SOCKET,
}
# The versions of Landlock's ABI from which it restricts files, ports, and signals and abstract sockets.
FILES_SINCE, PORTS_SINCE, SCOPES_SINCE = 1, 4, 6
# The versions that added single rights.
_SINCE = {_REFER: 2, _TRUNCATE: 3, _IOCTL_DEV: 5}
_BIND_TCP, _CONNECT_TCP = 1, 2
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION, _PATH_BENEATH, _NET_PORT = 1, 1, 2
_PR_SET_NO_NEW_PRIVS = 38
_NEW_MOUNT_NS, _NEW_IPC_NS, _NEW_USER_NS, _NEW_NET_NS = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # netdevice(7)
_SCM_RIGHTS = 1
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_PR_CAPBSET_DROP, _CAPABILITIES = 24, 64
_CONFINED, _MOUNT_NS, _END = "confined", "mount-ns", "--"
_FOLDERS = "/var/tmp"  # noqa: S108 - a tmpfs of its own, where it is used
_HIDDEN = ("/run", "/tmp", _FOLDERS)  # noqa: S108 - nothing is made there
# An ephemeral port, which the kernel chooses, is what QEMU requests for the forwarded port.
_ANY_PORT = 0

_UNKNOWN = -1
ALLOW, DENY = 0x7FFF0000, 0x00050000 | errno.EPERM
_NOT, _EQUAL, _GREATER, _MASKED = 1, 4, 6, 7
_AF_UNIX, _AF_INET, _SOCK_STREAM, _IPPROTO_TCP = 1, 2, 1, 6
_TYPE_MASK, _MSG_FASTOPEN, _INT, _TYPE_AND_NUMBER = 0xF, 0x20000000, 0xFFFFFFFF, 0xFFFF
_DENIED = (
    # The testbed passes it connected sockets; and Landlock has rules only for opening.
    *("connect", "io_uring_setup", "inotify_add_watch", "fanotify_init"),
    # What another process would open or execute later.
    *("symlink", "symlinkat", "link", "linkat", "mknod", "mknodat"),
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    # Landlock has no rule for these, or only since Linux 6.2.
    *("truncate", "utime", "utimes", "futimesat", "utimensat", "file_setattr"),
    *("setxattr", "lsetxattr", "fsetxattr", "setxattrat"),
    *("removexattr", "lremovexattr", "fremovexattr", "removexattrat"),
    # Memory, keys and CPU time of the user's other processes; and priorities at which ours would wait for it.
    *("ptrace", "process_vm_readv", "process_vm_writev", "shmget", "shmat", "shmctl", "msgget", "semget"),
    *("mq_open", "mq_unlink", "add_key", "keyctl", "request_key", "ioprio_set"),
    *("sched_setscheduler", "sched_setattr", "sched_setparam", "sched_setaffinity", "setpriority"),
    # Signals to a target that is not a process id in the arguments; and files that other processes have open.
    *("tkill", "pidfd_send_signal", "pidfd_getfd"),
    # Other namespaces of this machine, and programs in its kernel.
    *("unshare", "setns", "bpf", "perf_event_open"),
)
# Calls that signal the process in their first argument: allowed only for itself.
_SIGNAL_CALLS = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
# Requests that choose which process the kernel signals when a file is ready.
_FCNTL_SET_OWNER, _IOCTL_SET_OWNER = (8, 15), (0x8901, 0x8902)  # F_SETOWN, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP
# Changes that an owner can make to a file that is open for reading: FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR,
# FS_IOC_ENABLE_VERITY, by type and number.
_IOCTL_SET_FLAGS = (0x6602, 0x5820, 0x6685)
# Calls that libseccomp 2.5.4 does not know, by their numbers, which are the same on every architecture.
_NEW_CALLS = {"fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "file_setattr": 469}
_IPPROTO_IP, _IP_LOCAL_PORT_RANGE = 0, 51
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


def command_prefix(
    python: str, rules: Iterable[tuple[str, str]] | None, *, mount_ns: Iterable[str] | None, net_ns: int | None = None
) -> tuple[str, ...]:
    """Return the words to put before a program's argv. None leaves a restriction out.

    `rules`: confine the program to these pairs of a kind and a path; paths that do not exist are skipped. `mount_ns`:
    hide other folders, and mount these under the names that `mounted_name` returns. `net_ns`: make a network namespace,
    and send two sockets of it over the unix socket of this number, which the program inherits.
    """
    confined = () if rules is None else (_CONFINED, *(word for rule in rules for word in rule))
    mounts = () if mount_ns is None else (_MOUNT_NS, *mount_ns)
    network = () if net_ns is None else (str(net_ns),)
    return (python, "-I", "-S", os.path.abspath(__file__), *confined, _END, *mounts, _END, *network, _END)


def mounted_name(number: int) -> str:
    """Return the path under which a program in a mount namespace sees one of its folders, counted from 0."""
    return f"{_FOLDERS}/{number}"


def landlock_abi() -> int:
    """Return the version of this kernel's Landlock (its ABI); 0 if it is absent or switched off."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))))


_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Port(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _checked(what: str, result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _mount(what: str, where: str, kind: str, flags: int, options: str = "") -> None:
    failed = _libc.mount(what.encode(), where.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _checked(f"mounting {kind or what} on {where}", failed)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _enter_namespaces(kinds: int) -> None:
    """Move this process into new namespaces of these kinds.

    An unprivileged user can do so only in a user namespace; the uid is mapped to itself, and capabilities last until
    exec.
    """
    uid, gid = os.geteuid(), os.getegid()
    _checked("unshare", _libc.unshare(kinds | (_NEW_USER_NS if uid != 0 else 0)))
    if uid != 0:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        for capability in range(_CAPABILITIES):
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _open_network(channel: int) -> None:
    """Start the loopback device of this network namespace, and send a listening and an unconnected socket over the unix
    socket `channel`.

    Closes the channel.
    """
    import _socket  # `socket` takes 10 ms more

    listening, unconnected = _socket.socket(_AF_INET, _SOCK_STREAM), _socket.socket(_AF_INET, _SOCK_STREAM)
    device = b"lo".ljust(16, b"\0") + _IFF_UP.to_bytes(2, sys.byteorder) + bytes(22)  # struct ifreq
    _checked("starting lo", _libc.ioctl(listening.fileno(), ctypes.c_ulong(_SIOCSIFFLAGS), device))
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    descriptors = b"".join(one.fileno().to_bytes(4, sys.byteorder) for one in (listening, unconnected))
    sender = _socket.socket(fileno=channel)
    sender.sendmsg([b"+"], [(_socket.SOL_SOCKET, _SCM_RIGHTS, descriptors)])
    for one in (sender, listening, unconnected):
        one.close()


def _hide_folders(folders: Iterable[str]) -> None:
    """Hide the folders with all users' sockets from this process, and mount `folders` in one of them.

    Each is a mount of its own: the parent of a folder that was merely open would lead out of the namespace.
    """
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    opened = [os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for folder in folders]
    for hidden in _HIDDEN:
        _mount("none", hidden, "tmpfs", 0 if hidden == _FOLDERS else _READ_ONLY, "size=64k,mode=755")
    for number, descriptor in enumerate(opened):
        os.mkdir(mounted_name(number))
        _mount(f"/proc/self/fd/{descriptor}", mounted_name(number), "", _BIND)
        os.close(descriptor)
    _mount("none", _FOLDERS, "", _REMOUNT | _BIND | _READ_ONLY)
    os.chdir("/")


def hide_sockets() -> None:
    """Hide the folders with all users' sockets from this process, in a mount namespace."""
    _enter_namespaces(_NEW_MOUNT_NS | _NEW_IPC_NS)
    _hide_folders(())


def restrict_by_landlock(rules: Iterable[tuple[str, str]], abi: int) -> None:
    """Restrict this process to files by rules, and its ports and signals, as far as Landlock of version `abi` can."""
    if abi < FILES_SINCE:
        return
    known = _ALL_RIGHTS & ~sum(right for right, since in _SINCE.items() if since > abi)
    restricted = _Ruleset(files=known, net=_BIND_TCP | _CONNECT_TCP, scoped=_ABSTRACT_SOCKETS | _SIGNALS)
    size = 8 * (1 + (abi >= PORTS_SINCE) + (abi >= SCOPES_SINCE))
    ruleset = _checked(
        "landlock_create_ruleset", _libc.syscall(_CREATE_RULESET, ctypes.byref(restricted), ctypes.c_size_t(size), 0)
    )

    def add(kind: int, rule: ctypes.Structure) -> None:
        _checked("landlock_add_rule", _libc.syscall(_ADD_RULE, ruleset, kind, ctypes.byref(rule), 0))

    for kind, path in rules:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # a path that does not exist, or that we may not open, is not granted
        rights = _RIGHTS[kind] & known
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FILE_RIGHTS
        add(_PATH_BENEATH, _Beneath(allowed=rights, parent=descriptor))
        os.close(descriptor)
    if abi >= PORTS_SINCE:
        add(_NET_PORT, _Port(allowed=_BIND_TCP, port=_ANY_PORT))
    _checked("landlock_restrict_self", _libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _filter_calls() -> None:
    """Deny system calls for which Landlock has no rule. Allow unix and TCP sockets only, which cannot be connected."""
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ALLOW))

    def deny(call: str, *comparisons: tuple[int, int, int, int]) -> None:
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        if number == _UNKNOWN:
            number = _NEW_CALLS[call]
        array = (_Comparison * len(comparisons))(*(_Comparison(*one) for one in comparisons))
        failed = seccomp.seccomp_rule_add_array(context, DENY, number, len(comparisons), array)
        if failed:
            raise OSError(-failed, f"libseccomp: {call}: {os.strerror(-failed)}")

    for call in _DENIED:
        deny(call)
    inet = (0, _EQUAL, _AF_INET, 0)
    deny("socket", (0, _GREATER, _AF_INET, 0))
    for kind in range(_TYPE_MASK + 1):
        if kind != _SOCK_STREAM:
            deny("socket", inet, (1, _MASKED, _TYPE_MASK, kind))
    deny("socket", inet, (2, _GREATER, _IPPROTO_TCP, 0))  # MPTCP and SCTP are streams as well
    deny("socketpair", (0, _NOT, _AF_UNIX, 0))
    # TCP Fast Open connects by sending.
    for call, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        deny(call, (flags, _MASKED, _MSG_FASTOPEN, _MSG_FASTOPEN))
    # Setting the range of local ports is another way to choose a port.
    deny("setsockopt", (1, _MASKED, _INT, _IPPROTO_IP), (2, _MASKED, _INT, _IP_LOCAL_PORT_RANGE))
    # It must die with us.
    deny("prctl", (0, _MASKED, _INT, _PR_SET_PDEATHSIG), (1, _NOT, _SIGKILL, 0))
    # A limit of CPU time ends another process as a signal does.
    deny("prlimit64", (0, _NOT, 0, 0))
    for call in _SIGNAL_CALLS:
        deny(call, (0, _NOT, os.getpid(), 0))
    for request in _FCNTL_SET_OWNER:
        deny("fcntl", (1, _MASKED, _INT, request))
    for request in (*_IOCTL_SET_OWNER, *_IOCTL_SET_FLAGS):
        deny("ioctl", (1, _MASKED, _TYPE_AND_NUMBER, request))
    load_filter(seccomp, context)


def load_filter(seccomp: ctypes.CDLL, context: ctypes.c_void_p) -> None:
    """Apply a filter to this process, and free it."""
    failed = seccomp.seccomp_load(context)
    if failed:
        raise OSError(-failed, f"libseccomp: {os.strerror(-failed)}")
    seccomp.seccomp_release(context)


def main(words: list[str]) -> None:
    """Confine this process as the words of `command_prefix` say, and execute the program after them."""
    first = words.index(_END)
    second = words.index(_END, first + 1)
    third = words.index(_END, second + 1)
    confined, mounts, network = words[:first], words[first + 1 : second], words[second + 1 : third]
    program = words[third + 1 :]
    if mounts or network:
        _enter_namespaces((_NEW_MOUNT_NS | _NEW_IPC_NS if mounts else 0) | (_NEW_NET_NS if network else 0))
    if network:
        _open_network(int(network[0]))
    if mounts:
        _hide_folders(mounts[1:])
    if confined:
        _checked("no_new_privs", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        abi = landlock_abi()
        restrict_by_landlock(zip(confined[1::2], confined[2::2], strict=True), abi)
        _filter_calls()
    # By its full path: a search in PATH imports modules that the process may not read any longer.
    os.execv(program[0], program)  # noqa: S606 -- the words are ours; see jail.py


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as failure:
        raise SystemExit(f"cannot be kept from this machine: {failure}") from failure
