"""Runs one program in namespaces of its own, where it sees nothing of this machine but what it is given. Run as a script.

What it is for: a kernel's Makefiles, Kconfig files and scripts are programs of whoever wrote the source or a patch, and building runs them.

Inside, the root is a new one: what is given to read or to write has its usual path, everything else is not there. There is no network, no
other process, no terminal, no key of the caller's session, and no file of the caller's that was open. The program has no capability and
gets none. It ends, with all that it has started, when this script does.

Root enters with the namespaces alone and becomes an account of its own; everybody else has a namespace of users first. The script runs with
`python -I -S`, and with no environment but the program's: a plain user's program may read that of this script's child, its process 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_PIDS, _NEW_NET, _NEW_USERS = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x20000000,
    0x40000000,
    0x10000000,
)
_APART = _NEW_MOUNTS | _NEW_UTS | _NEW_IPC | _NEW_PIDS | _NEW_NET
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
# Flags of a mount that a user who did not make it may not take away (mount_namespaces(7)), as statvfs(3) shows them.
_KEPT = {1: 1, 2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
_DETACH = 2
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _DROP_FROM_BOUNDS, _NO_NEW_PRIVS, _CAPABILITIES = 1, 4, 24, 38, 64
# pivot_root(2) and keyctl(2), which libc has no functions for.
_PIVOT_ROOT, _KEYCTL = {"x86_64": (155, 250)}.get(os.uname().machine, (41, 219))
_JOIN_SESSION = 1
_HERE = "/tmp"  # noqa: S108 - a mount of our own covers it
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/tmp", "/var/tmp"),  # noqa: S108 - of the new root
)
# The root holds links and empty folders alone.
_ROOT_OPTIONS = "size=4m,mode=755"
# A bomb of processes ends there. So does a file without end.
_MOST_PROCESSES, _MOST_FILE_BYTES = 8192, 16 << 30
# Between the signal to end and the end: make removes what it has made by half.
_GRACE_S = 5
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_CAPABILITY_VERSION = 0x20080522
_CANNOT = 125


def command_prefix(
    python: str,
    *,
    account: tuple[int, int] | None,
    users: bool,
    read: Iterable[tuple[str, str]],
    write: Iterable[tuple[str, str]],
    links: Iterable[tuple[str, str]],
    scratch: str,
    folder: str,
) -> tuple[str, ...]:
    """What to put before a program.

    `account`: the user and group that it becomes; `users`: enter by a namespace of users. `read`, `write`: what is given to it, pairs of a
    path without links and the path where it is seen; `links`: pairs of what a link says and where it is. `scratch`: what it sees as /tmp;
    `folder`: where it starts.
    """
    given = {
        "account": account,
        "users": users,
        "read": list(read),
        "write": list(write),
        "links": list(links),
        "scratch": scratch,
        "folder": folder,
    }
    return (python, "-I", "-S", os.path.abspath(__file__), json.dumps(given))


_libc = ctypes.CDLL(None, use_errno=True)


def _asked(what: str, result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(what: str, where: str, kind: str, flags: int, options: str = "") -> None:
    failed = _libc.mount(os.fsencode(what), os.fsencode(where), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _asked(f"mounting {kind or what} on {where}", failed)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _syscall(number: int, *words: Any) -> int:
    return int(_libc.syscall(ctypes.c_long(number), *words))


def _new_namespaces(*, of_users: bool) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _asked("unshare", _libc.unshare(_APART | (_NEW_USERS if of_users else 0)))
    if of_users:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        # None in it: they are a way to much of the kernel that no compiler needs.
        with contextlib.suppress(OSError):
            _write("/proc/sys/user/max_user_namespaces", "0")


def _bind(source: str, target: str, *, writable: bool) -> None:
    """Show `source`, a path in the old root, as `target`, a path in the new one."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.lexists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    _mount(source, target, "", _BIND | _RECURSIVE)
    shown = os.statvfs(target).f_flag
    flags = (
        sum(flag for as_shown, flag in _KEPT.items() if as_shown & shown) | _NO_SETUID | (0 if writable else _READ_ONLY)
    )
    device = stat.S_ISCHR(os.stat(target).st_mode)
    _mount("none", target, "", _REMOUNT | _BIND | flags | (0 if device else _NO_DEVICES))


def _new_root(given: dict[str, Any]) -> None:
    """Leave this machine's files for a root that has what is `given`; see `words`."""
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    _mount("none", _HERE, "tmpfs", _NO_SETUID | _NO_DEVICES, _ROOT_OPTIONS)
    for name in ("old", "new"):
        os.mkdir(f"{_HERE}/{name}")
    os.chdir(_HERE)
    _asked("pivot_root", _syscall(_PIVOT_ROOT, b".", b"old"))
    os.chdir("/")
    _mount("/new", "/new", "", _BIND)  # a root must be a mount
    _bind(f"/old{given['scratch']}", "/new/tmp", writable=True)
    for name in _DEVICES:
        _bind(f"/old/dev/{name}", f"/new/dev/{name}", writable=True)
    os.mkdir("/new/proc")
    # Root without capabilities may still write to what belongs to root there.
    _mount("proc", "/new/proc", "proc", _READ_ONLY | _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS)
    shown = [(target, source, False) for source, target in given["read"]] + [
        (target, source, True) for source, target in given["write"]
    ]
    # Folders before what is in them.
    for target, source, writable in sorted(shown):
        _bind(f"/old{source}", f"/new{target}", writable=writable)
    for leads_to, target in (*given["links"], *_LINKS):
        os.makedirs(os.path.dirname(f"/new{target}"), exist_ok=True)
        os.symlink(leads_to, f"/new{target}")
    os.chdir("/new")
    _mount("none", ".", "", _REMOUNT | _BIND | _READ_ONLY | _NO_SETUID | _NO_DEVICES)
    _asked("pivot_root", _syscall(_PIVOT_ROOT, b".", b"."))
    _asked("umount", _libc.umount2(b".", _DETACH))
    os.chdir("/")


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def _drop_privileges(account: list[int] | None) -> None:
    """Become the account, or stay who we are, with no capability and no way to one."""
    for which, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, _MOST_PROCESSES),
        (resource.RLIMIT_FSIZE, _MOST_FILE_BYTES),
    ):
        _limit(which, most)
    # The caller's session may have passwords among its keys. Otherwise there are no keys for anybody here.
    if _syscall(_KEYCTL, _JOIN_SESSION, None) < 0 and ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        _asked("keyctl", -1)
    for capability in range(_CAPABILITIES):
        failed = _libc.prctl(_DROP_FROM_BOUNDS, capability, 0, 0, 0)
        if failed and ctypes.get_errno() != errno.EINVAL:  # EINVAL: this kernel has none of that number
            _asked("dropping capabilities", failed)
    if account is not None:
        uid, gid = account
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    _asked("capset", _libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()))
    _asked("no_new_privs", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))


def _first_process(given: dict[str, Any], program: list[str], alive: int) -> int:
    """Process 1 of the namespace: starts the program, and ends with its status; the kernel then ends all others.

    `alive`: a pipe that ends when the script does.
    """
    os.setsid()
    os.umask(0o022)
    _new_root(given)
    _asked("sethostname", _libc.sethostname(b"testbed", ctypes.c_size_t(7)))
    _drop_privileges(given["account"])
    # Now, since becoming somebody else takes it away (prctl(2)). What runs here may not look into this process either.
    _asked("prctl", _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    _asked("prctl", _libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0))
    os.set_blocking(alive, False)
    try:
        os.read(alive, 1)
        return _CANNOT  # the script has ended meanwhile
    except BlockingIOError:
        os.close(alive)
    os.chdir(given["folder"])
    child = os.fork()
    if child == 0:
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        # By its path: looking for it imports modules, which are not there any more.
        os.execv(program[0], program)  # noqa: S606 - what the enclosure is for

    def end(_number: int, _frame: object) -> None:
        signal.alarm(_GRACE_S)
        os.kill(-1, signal.SIGTERM)

    for number in _ENDING:
        signal.signal(number, end)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + signal.SIGKILL))
    while True:
        pid, status = os.wait()
        if pid == child:
            return _exit_code(status)


def _exit_code(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def main(asked: list[str]) -> int:
    """Run the program after `words`; returns its status."""
    given, program = json.loads(asked[0]), asked[1:]
    parent = os.getppid()
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    _new_namespaces(of_users=given["users"])
    # Once more: a namespace of users takes it away.
    _asked("prctl", _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0))
    if os.getppid() != parent:
        return _CANNOT
    first: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        if not first:
            os._exit(128 + number)
        os.kill(first[0], signal.SIGTERM)

    for number in _ENDING:
        signal.signal(number, pass_on)
    alive, ours = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _end_with(lambda: _first_process(given, program, alive))
    first.append(child)
    os.close(alive)
    return _exit_code(os.waitpid(child, 0)[1])


def _end_with(run: Callable[[], int]) -> None:
    """End this process with what `run` returns, and without a traceback."""
    code = _CANNOT
    try:
        code = run()
    except Exception as failure:  # whatever it is, this process ends with a line
        os.write(2, f"cannot be enclosed: {failure}\n".encode())
    finally:
        os._exit(code)


if __name__ == "__main__":
    _end_with(lambda: main(sys.argv[1:]))
