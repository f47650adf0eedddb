"""Gives up everything that this process does not need, before it reads from its client: its files and the connection
are open by then.

The process is confined as QEMU is (`testbed.qemu.jail_exec`), but by itself and not by a script that starts it: that
saves one start of Python, and its account need not be able to read our files. The loop of a Python process needs few
system calls, so the filter lists those that are allowed, and not those that are denied: it opens no file, makes no
socket, starts no program and signals no process, whatever Landlock this kernel has.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable

from testbed.qemu import jail_exec
from testbed.qemu.nbd_server.settings import Settings

# For memory, time, the descriptors that it has, and its exit. Other calls fail with EPERM.
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
_OPEN_FILES = 32  # more than the highest descriptor that it has
_SET_DEATH_SIGNAL, _NO_NEW_PRIVS = 1, 38
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def confine_process(settings: Settings) -> None:
    """Confine this process as the settings say.

    :raise OSError: this machine does not permit it, though it did for QEMU; or the process that started this one has
        ended.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    if settings.mount_ns:
        jail_exec.hide_sockets()
    if settings.uid is not None and settings.gid is not None:
        os.setgroups([])
        os.setresgid(settings.gid, settings.gid, settings.gid)
        os.setresuid(settings.uid, settings.uid, settings.uid)
    # Root's, where the account cannot be changed, and those in a user namespace of its own.
    _checked("capset", _libc.capset(ctypes.byref(_Header(version=_CAPABILITY_VERSION_3)), (ctypes.c_uint32 * 6)()))
    _checked("no_new_privs", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    # After the change of the account, which clears it (prctl(2)).
    _checked("the parent-death signal", _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != settings.parent:
        raise ProcessLookupError("the process that started it has ended")
    if settings.confined:
        allow_only_these = _prepare_filter()
        jail_exec.restrict_by_landlock((), jail_exec.landlock_abi())
        allow_only_these()


def _prepare_filter() -> Callable[[], None]:
    """Prepare the filter of system calls; calling the result applies it.

    Calls that this architecture does not have are skipped. Preparing opens libseccomp, which Landlock may refuse later.
    """
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(jail_exec.DENY))
    for call in _CALLS:
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        failed = seccomp.seccomp_rule_add_array(context, jail_exec.ALLOW, number, 0, None) if number >= 0 else 0
        if failed:
            raise OSError(-failed, f"libseccomp: {call}: {os.strerror(-failed)}")
    return lambda: jail_exec.load_filter(seccomp, context)


def _checked(what: str, result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
