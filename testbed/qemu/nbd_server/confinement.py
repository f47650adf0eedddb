"""Takes from this process what it has no use for, before it reads what a client says: its files and its client are open by then.

An export is held by the means that hold QEMU (`testbed.qemu.jail_exec`), but by itself and not by a program before it: it starts without one more
Python, and its account need not reach ours. What a process of Python needs for its loop is little, so the filter names the calls that are
left, and not those that are refused: no file is opened, no socket made, no program started and no process signalled, whatever Landlock
this kernel has.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

from testbed.qemu import jail_exec
from testbed.qemu.nbd_server.settings import Settings

# Memory, time, the descriptors that it has, and its end. Others fail with EPERM.
_CALLS = (
    *("read", "write", "readv", "writev", "pread64", "pwrite64", "fallocate", "lseek", "close"),
    *("recvfrom", "recvmsg", "sendto", "sendmsg", "shutdown"),
    *("select", "_newselect", "pselect6", "poll", "ppoll"),
    *("brk", "mmap", "munmap", "mremap", "mprotect", "madvise"),
    *("futex", "sched_yield", "getpid", "gettid", "getrandom"),
    *("clock_gettime", "clock_nanosleep", "gettimeofday", "restart_syscall"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"),
    *("exit", "exit_group"),
)
_OPEN_FILES = 32  # those that it has, each with a number below it
_SET_DEATH_SIGNAL, _NO_NEW_PRIVS = 1, 38
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def confine_process(settings: Settings) -> None:
    """Be held as the settings say.

    :raise OSError: this machine does not let it, as it let QEMU; or nobody is there any longer who started this process.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    if settings.mount_ns:
        jail_exec.hide_sockets()
    if settings.uid is not None and settings.gid is not None:
        os.setgroups([])
        os.setresgid(settings.gid, settings.gid, settings.gid)
        os.setresuid(settings.uid, settings.uid, settings.uid)
    # Those of root where it cannot become somebody else, and those in a namespace of its own.
    _asked("capset", _libc.capset(ctypes.byref(_Header(version=_CAPABILITY_VERSION_3)), (ctypes.c_uint32 * 6)()))
    _asked("no_new_privs", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    # After the account: changing that takes it away (prctl(2)).
    _asked("the parent-death signal", _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != settings.parent:
        raise ProcessLookupError("whoever started it has ended")
    if settings.confined:
        allow_no_others = jail_exec.seccomp_filter(_CALLS)
        jail_exec.restrict_by_landlock((), jail_exec.landlock_abi())
        allow_no_others()


def _asked(what: str, result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
