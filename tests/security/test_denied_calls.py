"""System calls that `jail_exec.py` denies: sockets, signals, other processes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pytest

from testbed.qemu import jail_exec
from tests.support.confined import PROGRAMS, TOOLS, since, tried


@since(jail_exec.PORTS_SINCE)
def test_tcp_listens_only_on_a_port_that_the_kernel_chooses_and_never_connects() -> None:
    listening = "with socket.create_server(('127.0.0.1', 0)) as listener:\n        "
    assert tried(listening + "assert listener.getsockname()[1]") == ("done", "done")
    assert tried(listening + "socket.create_connection(listener.getsockname())") == ("done", "PermissionError")
    fast = "caller = socket.socket(); caller.sendto(b'hello', socket.MSG_FASTOPEN, listener.getsockname())"
    assert tried(listening + fast) == ("done", "PermissionError")
    free = "port = socket.create_server(('127.0.0.1', 0)).getsockname()[1]; socket.socket().bind(('127.0.0.1', port))"
    assert tried(free) == ("done", "PermissionError")


@pytest.mark.parametrize(
    "words", ["AF_INET, SOCK_DGRAM", "AF_INET6, SOCK_STREAM", "AF_NETLINK, SOCK_RAW", "AF_INET, SOCK_STREAM, 262"]
)
def test_only_tcp_and_unix_sockets_can_be_made(words: str) -> None:
    named = ", ".join(f"socket.{word}" if word[0] in "AS" else word for word in words.split(", "))
    free, confined = tried(f"socket.socket({named})")
    assert confined == "PermissionError"
    assert free in ("done", "OSError"), "MPTCP and IPv6 are not on every machine"


def test_unix_sockets_can_be_made_but_not_connected() -> None:
    assert tried("socket.socketpair()") == ("done", "done")
    assert tried("socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)") == ("done", "done")
    assert tried("socket.socketpair(socket.AF_NETLINK, socket.SOCK_RAW)") == ("OSError", "PermissionError")
    for name in ("'\\0none'", "'/run/none'"):
        assert tried(f"socket.socket(socket.AF_UNIX).connect({name})")[1] == "PermissionError"


def test_memory_of_other_processes_cannot_be_shared() -> None:
    assert tried("asked(libc.shmget(0, 4096, 0o1600))")[1] == "PermissionError"


def test_io_uring_cannot_bypass_the_filter() -> None:
    free, confined = tried("asked(libc.syscall(425, 8, ctypes.create_string_buffer(120)))")
    assert free in ("done", "OSError", "PermissionError"), "machines may have no io_uring, or forbid it"
    assert confined == "PermissionError"


@pytest.mark.parametrize(
    "code",
    [
        "os.kill(parent, 0)",
        "os.kill(0, 0)",
        "os.kill(-1, 0)",
        "signal.pidfd_send_signal(os.pidfd_open(parent), 0)",
        "asked(libc.syscall(234, parent, parent, 0))",
        "fcntl.fcntl(socket.socketpair()[0], fcntl.F_SETOWN, parent)",
        "fcntl.fcntl(socket.socketpair()[0], 15, struct.pack('ii', 1, parent))",
        "fcntl.ioctl(socket.socketpair()[0], 0x8902, struct.pack('i', parent))",
        "fcntl.ioctl(socket.socketpair()[0], 0x8901, struct.pack('i', parent))",
    ],
)
def test_other_processes_cannot_be_signalled(code: str) -> None:
    """Seccomp refuses it, so this holds with any version of Landlock."""
    assert tried(f"import fcntl, signal, struct; {code}") == ("done", "PermissionError")
    assert tried(f"import fcntl, signal, struct; {code}".replace("parent", "os.getpid()"))[0] == "done"


def test_a_confined_program_can_signal_itself() -> None:
    assert tried("os.kill(os.getpid(), 0); asked(libc.syscall(234, os.getpid(), os.getpid(), 0))") == ("done", "done")


@since(jail_exec.SCOPES_SINCE)
def test_nothing_can_be_sent_to_abstract_sockets_of_other_processes() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others:
        others.bind("")  # a name that the kernel chooses
        code = f"socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'hello', {others.getsockname()!r})"
        assert tried(code) == ("done", "PermissionError")


# Numbers of system calls on x86-64. None of them is ever allowed; each is refused before its arguments are checked.
REFUSED = {
    "connect": 42, "io_uring_setup": 425, "inotify_add_watch": 254, "fanotify_init": 300, "symlink": 88,
    "symlinkat": 266, "link": 86, "linkat": 265, "mknod": 133, "mknodat": 259, "chmod": 90, "fchmod": 91,
    "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "truncate": 76,
    "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "file_setattr": 469, "setxattr": 188,
    "lsetxattr": 189, "fsetxattr": 190, "setxattrat": 463, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
    "removexattrat": 466, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "shmget": 29, "shmat": 30,
    "shmctl": 31, "msgget": 68, "semget": 64, "mq_open": 240, "mq_unlink": 241, "add_key": 248, "keyctl": 250,
    "request_key": 249, "ioprio_set": 251, "sched_setscheduler": 144, "sched_setattr": 314, "sched_setparam": 142,
    "sched_setaffinity": 203, "setpriority": 141, "tkill": 200, "pidfd_send_signal": 424, "pidfd_getfd": 438,
    "unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298,
}  # fmt: skip


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_each_denied_system_call_is_refused() -> None:
    code = (
        f"for name, number in {REFUSED}.items():\n"
        "    assert libc.syscall(number, -1, -1, -1, -1, -1, -1) < 0; print(name, ctypes.get_errno())"
    )
    words = jail_exec.command_prefix(sys.executable, PROGRAMS, mount_ns=None)
    done = subprocess.run(
        [*words, sys.executable, "-I", "-S", "-c", TOOLS + code], capture_output=True, text=True, check=True
    )
    errors = dict(line.split() for line in done.stdout.splitlines())
    assert errors == dict.fromkeys(REFUSED, str(errno.EPERM))


def test_limits_and_priorities_of_other_processes_cannot_be_changed() -> None:
    limits = "import resource; resource.prlimit({pid}, resource.RLIMIT_CPU, (1 << 40, resource.RLIM_INFINITY))"
    with subprocess.Popen(["sleep", "100"]) as other:
        try:
            assert tried(limits.format(pid=other.pid)) == ("done", "PermissionError")
            assert tried(f"asked(libc.syscall(251, 1, {other.pid}, 3 << 13))") == ("done", "PermissionError"), (
                "ioprio_set"
            )
            slow = f"os.sched_setscheduler({other.pid}, os.SCHED_IDLE, os.sched_param(0))"
            assert tried(slow) == ("done", "PermissionError")
        finally:
            other.kill()
    assert tried(limits.format(pid=0)) == ("done", "done")


@since(jail_exec.FILES_SINCE)
def test_other_processes_cannot_be_traced() -> None:
    """Processes of the same user, such as another guest's QEMU, cannot be traced either."""
    with subprocess.Popen(["sleep", "100"]) as other:
        try:
            found = tried(f"asked(libc.ptrace(16, {other.pid}, None, None))")
        finally:
            other.kill()
    if found[0] != "done":
        pytest.skip("this machine lets no program trace another one that it did not start (Yama)")
    assert found == ("done", "PermissionError")
