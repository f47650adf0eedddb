"""Runs one program in namespaces of its own, where it sees only the paths that it is given. Run as a script.

Building a kernel runs its Makefiles, Kconfig files and scripts, which the author of the source or of a patch controls.

Inside there is a new root: the paths given to read or to write are where they usually are, and nothing else exists.
There is no network, no other process, no terminal, no key of the caller's session, and no open file of the caller. The
program has no capability and cannot gain one. It ends, with all that it has started, when this script ends.

Root needs only these namespaces and becomes another account; any other user enters a user namespace first. The script
runs with `python -I -S` and only with the program's environment: a plain user's program may be able to read the
environment of this script's child, which is process 1 of the program.
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
_NAMESPACES = _NEW_MOUNTS | _NEW_UTS | _NEW_IPC | _NEW_PIDS | _NEW_NET
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
# Flags of a mount that a user who did not make it cannot remove (mount_namespaces(7)), as statvfs(3) shows them, and as
# mount(2) takes them.
_KEPT = {1: 1, 2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
_DETACH = 2
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _DROP_FROM_BOUNDS, _NO_NEW_PRIVS, _CAPABILITIES = 1, 4, 24, 38, 64
# pivot_root(2) and keyctl(2), for which libc has no functions.
_PIVOT_ROOT, _KEYCTL = {"x86_64": (155, 250)}.get(os.uname().machine, (41, 219))
_JOIN_SESSION = 1
_HERE = "/tmp"  # noqa: S108 - our own mount covers it
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/tmp", "/var/tmp"),  # noqa: S108 - of the new root
)
# The root's own filesystem holds only links and empty folders.
_ROOT_OPTIONS = "size=4m,mode=755"
# They end a fork bomb, and a file that grows without end.
_MOST_PROCESSES, _MOST_FILE_BYTES = 8192, 16 << 30
# Between SIGTERM and SIGKILL: make removes half-written files.
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
    """Return what to put before a program's argv.

    `account`: the user and group that it becomes; `users`: enter a user namespace; `read`, `write`: pairs of a path
    without links and the path where the program sees it; `links`: pairs of a link's target and its path; `scratch`: the
    folder that it sees as /tmp; `folder`: where it starts.
    """
    options = {
        "account": account,
        "users": users,
        "read": list(read),
        "write": list(write),
        "links": list(links),
        "scratch": scratch,
        "folder": folder,
    }
    return (python, "-I", "-S", os.path.abspath(__file__), json.dumps(options))


_libc = ctypes.CDLL(None, use_errno=True)


def _check(what: str, result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(what: str, where: str, kind: str, flags: int, options: str = "") -> None:
    failed = _libc.mount(os.fsencode(what), os.fsencode(where), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(f"mounting {kind or what} on {where}", failed)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _syscall(number: int, *words: Any) -> int:
    return int(_libc.syscall(ctypes.c_long(number), *words))


def _new_namespaces(*, of_users: bool) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _check("unshare", _libc.unshare(_NAMESPACES | (_NEW_USERS if of_users else 0)))
    if of_users:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        # Allow no user namespaces inside: they give access to much of the kernel that no compiler needs.
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


def _new_root(options: dict[str, Any]) -> None:
    """Leave this machine's files for a root that has only the paths in `options`; see `command_prefix`."""
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    _mount("none", _HERE, "tmpfs", _NO_SETUID | _NO_DEVICES, _ROOT_OPTIONS)
    for name in ("old", "new"):
        os.mkdir(f"{_HERE}/{name}")
    os.chdir(_HERE)
    _check("pivot_root", _syscall(_PIVOT_ROOT, b".", b"old"))
    os.chdir("/")
    _mount("/new", "/new", "", _BIND)  # a root must be a mount
    _bind(f"/old{options['scratch']}", "/new/tmp", writable=True)
    for name in _DEVICES:
        _bind(f"/old/dev/{name}", f"/new/dev/{name}", writable=True)
    os.mkdir("/new/proc")
    # Read-only, because root without capabilities can still write to files in /proc that belong to root.
    _mount("proc", "/new/proc", "proc", _READ_ONLY | _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS)
    mounts = [(target, source, False) for source, target in options["read"]] + [
        (target, source, True) for source, target in options["write"]
    ]
    # Sorted, so that a folder comes before what is in it.
    for target, source, writable in sorted(mounts):
        _bind(f"/old{source}", f"/new{target}", writable=writable)
    for leads_to, target in (*options["links"], *_LINKS):
        os.makedirs(os.path.dirname(f"/new{target}"), exist_ok=True)
        os.symlink(leads_to, f"/new{target}")
    os.chdir("/new")
    _mount("none", ".", "", _REMOUNT | _BIND | _READ_ONLY | _NO_SETUID | _NO_DEVICES)
    _check("pivot_root", _syscall(_PIVOT_ROOT, b".", b"."))
    _check("umount", _libc.umount2(b".", _DETACH))
    os.chdir("/")


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def _drop_privileges(account: list[int] | None) -> None:
    """Become the account, or keep the user, without capabilities and without a way to gain one."""
    for which, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, _MOST_PROCESSES),
        (resource.RLIMIT_FSIZE, _MOST_FILE_BYTES),
    ):
        _limit(which, most)
    # Keys of the caller's session may include passwords. EPERM, ENOSYS: this machine gives nobody any keys.
    if _syscall(_KEYCTL, _JOIN_SESSION, None) < 0 and ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        _check("keyctl", -1)
    for capability in range(_CAPABILITIES):
        failed = _libc.prctl(_DROP_FROM_BOUNDS, capability, 0, 0, 0)
        if failed and ctypes.get_errno() != errno.EINVAL:  # EINVAL: this kernel has no capability of that number
            _check("dropping capabilities", failed)
    if account is not None:
        uid, gid = account
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    _check("capset", _libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()))
    _check("no_new_privs", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))


def _first_process(options: dict[str, Any], program: list[str], alive: int) -> int:
    """Run as process 1 of the namespace: start the program, and return its status; the kernel then ends all others.

    `alive`: a pipe that is closed when the script ends.
    """
    os.setsid()
    os.umask(0o022)
    _new_root(options)
    _check("sethostname", _libc.sethostname(b"testbed", ctypes.c_size_t(7)))
    _drop_privileges(options["account"])
    # Set now, since changing the user clears it (prctl(2)). And the program must not look into this process.
    _check("prctl", _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    _check("prctl", _libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0))
    os.set_blocking(alive, False)
    try:
        os.read(alive, 1)
        return _CANNOT  # the script has ended
    except BlockingIOError:
        os.close(alive)
    os.chdir(options["folder"])
    child = os.fork()
    if child == 0:
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        # execv, since execvp imports modules, which this root does not have.
        os.execv(program[0], program)  # noqa: S606 - running a program is the purpose

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


def main(argv: list[str]) -> int:
    """Run the program that follows the words of `command_prefix`; returns its status."""
    options, program = json.loads(argv[0]), argv[1:]
    parent = os.getppid()
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    _new_namespaces(of_users=options["users"])
    # Set again: entering a user namespace clears it.
    _check("prctl", _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0))
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
        _end_with(lambda: _first_process(options, program, alive))
    first.append(child)
    os.close(alive)
    return _exit_code(os.waitpid(child, 0)[1])


def _end_with(run: Callable[[], int]) -> None:
    """End this process with the status that `run` returns, and without a traceback."""
    code = _CANNOT
    try:
        code = run()
    except Exception as failure:  # any error must end this process with one line
        os.write(2, f"cannot be enclosed: {failure}\n".encode())
    finally:
        os._exit(code)


if __name__ == "__main__":
    _end_with(lambda: main(sys.argv[1:]))
