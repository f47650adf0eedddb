"""Runs programs of a kernel's source (Makefiles, Kconfig files, scripts), which its author or that of a patch controls.

They run in a jail (`build_jail_exec.py`) that shows the system's programs, the tools that the user named and the
source, and allows writing to the given output folders. A machine that cannot jail programs builds only sources that the
user trusts.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import HostError, UsageError
from testbed.host import process, tempdirs, untrusted_files
from testbed.host.facts import Account
from testbed.store.kernels import build_jail_exec

TRUST = "TESTBED_TRUST_SOURCES"
MORE_PATHS = "TESTBED_BUILD_PATHS"
# Used where the testbed runs as root: an unused number (systemd's list of uids has 60578 to 61183 as unused); QEMU's is
# 61183.
_ACCOUNT = Account(uid=61182, gid=61182)
_PROGRAMS = tuple(
    map(Path, ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store"))
)
_SETTINGS = tuple(
    Path("/etc", name)
    for name in (
        "alternatives",
        "crypto-policies",
        "ld.so.cache",
        "ld.so.conf",
        "ld.so.conf.d",
        "localtime",
        "ssl/openssl.cnf",
    )
)
# Variables that name libraries outside of the system's folders.
_LIBRARIES = ("LD_LIBRARY_PATH", "PKG_CONFIG_PATH")
# What belongs to a program in a folder `bin`; nothing else beside that folder, which may be in a home, is shown.
_INSTALLED = ("include", "lib", "lib32", "lib64", "libexec", "share/bison")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJail:
    """How this machine can jail programs.

    `account`: the account that they run as, None for the user of the testbed; `users`: in a user namespace.
    """

    account: Account | None
    users: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounts:
    """Paths that a program in the jail sees, besides the system's programs: to `read`, and to `write`."""

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()


def is_trusted() -> bool:
    """Whether the user allows sources to do whatever the user may do."""
    return os.environ.get(TRUST) == "1"


async def find_build_jail() -> tuple[BuildJail | None, str]:
    """Try how this machine can jail programs; returns None with the reason if it cannot."""
    ways = [BuildJail(account=None, users=True)]
    if os.geteuid() == 0:
        ways = [BuildJail(account=_ACCOUNT, users=False), BuildJail(account=None, users=False), *ways]
    reasons = []
    for way in ways:
        try:
            tried = await run_in_jail(way, ["true"], folder=Path("/"), check=False)
        except HostError as error:  # for example, root that cannot become that account
            reasons.append(str(error))
            continue
        if tried.status == 0:
            return way, ""
        reasons.append(tried.stderr.strip() or f"it ended with status {tried.status}")
    return None, "; ".join(dict.fromkeys(reasons))


async def run_in_jail(
    jail: BuildJail | None,
    argv: Sequence[str | Path],
    *,
    folder: Path,
    mounts: Mounts = Mounts(),
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60,
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
) -> process.Finished:
    """Run a program that starts in `folder`, and end it together with all that it has started.

    `jail`: None to run it with the user's rights; `env`: added to its environment, which has only PATH, an empty HOME
    and the user's library paths; `on_line` gets each line that it prints; `check` and `timeout_s` as in `process.run`.

    :raise HostError: as `process.run`. :raise UsageError: a path in `MORE_PATHS` is not valid.
    """
    words = (str(process.find(str(argv[0]))), *map(str, argv[1:]))
    with tempdirs.temporary() as scratch:
        if jail is None:
            prefix: tuple[str, ...] = process.GROUP_LEADER
            home = str(scratch)
        else:
            (scratch / "tmp").mkdir()
            give_ownership(jail, scratch / "tmp")
            prefix, home = _prefix(jail, folder, mounts, scratch / "tmp"), "/tmp"  # noqa: S108 - the jail's own
        environment = {name: value if name in _LIBRARIES else None for name, value in os.environ.items()}
        environment |= {"HOME": home, "TMPDIR": home, **(env or {})}
        return await process.run(
            (*prefix, *words),
            folder=folder,
            env=environment,
            timeout_s=timeout_s,
            check=check,
            on_line=process.LineHandlers(stdout=on_line, stderr=on_line),
        )


def _prefix(jail: BuildJail, folder: Path, mounts: Mounts, scratch: Path) -> tuple[str, ...]:
    return build_jail_exec.command_prefix(
        sys.executable,
        account=None if jail.account is None else (jail.account.uid, jail.account.gid),
        users=jail.users,
        read=[
            _pair(path)
            for path in (*_PROGRAMS, *_SETTINGS, *_more_paths(), *mounts.read)
            if path.exists() and path not in _links()
        ],
        write=[_pair(path) for path in mounts.write],
        links=[(str(path.readlink()), str(path)) for path in _links()],
        scratch=os.path.realpath(scratch),
        folder=str(folder.absolute()),
    )


def _links() -> tuple[Path, ...]:
    """Return /bin and the like where they are links into /usr."""
    return tuple(path for path in _PROGRAMS if path.is_symlink())


def _pair(path: Path) -> tuple[str, str]:
    return os.path.realpath(path), str(path.absolute())


def _more_paths() -> tuple[Path, ...]:
    """:raise UsageError: a path is not absolute, or does not exist."""
    found = tuple(Path(one) for one in os.environ.get(MORE_PATHS, "").split(os.pathsep) if one)
    for path in found:
        if not path.is_absolute() or not path.exists():
            raise UsageError(
                f"{MORE_PATHS}: expected absolute paths that builds may read, with : between them, got {str(path)!r}"
            )
    return found


def tool_folders(programs: Iterable[str]) -> tuple[Path, ...]:
    """Return what a build must see so that these programs run, without the system's folders, which it always sees."""
    found: dict[Path, None] = {}
    for program in programs:
        if (where := process.find_path(program)) is not None:
            for path in (where.absolute(), where.resolve()):
                found |= dict.fromkeys(_installation(path))
    return tuple(found)


def _installation(program: Path) -> Iterator[Path]:
    if any(program.is_relative_to(folder) for folder in _PROGRAMS):
        return
    if program.parent.name not in ("bin", "sbin"):
        yield program
        return
    yield program.parent
    # A cross compiler PREFIX/bin/TARGET-gcc also needs PREFIX/TARGET.
    target = program.name.rpartition("-")[0]
    yield from (
        path for name in (*_INSTALLED, *([target] if target else [])) if (path := program.parents[1] / name).is_dir()
    )


def give_ownership(jail: BuildJail | None, folder: Path) -> None:
    """Make the account that builds run as the owner of a folder and of all that is in it. Blocks.

    :raise HostError: this root user cannot change owners.
    """
    if os.geteuid() != 0:
        return
    uid = 0 if jail is None or jail.account is None else jail.account.uid
    try:
        for path in (*untrusted_files.walk(folder), folder):
            if path.lstat().st_uid != uid:
                os.chown(path, uid, uid, follow_symlinks=False)
    except OSError as error:
        raise HostError(f"{folder}: cannot be given to uid {uid}, which builds run as: {error.strerror}") from error


def make_readable(folder: Path) -> None:
    """Let every user read a source, since another account builds it. Blocks."""
    for path in (folder, *untrusted_files.walk(folder)):
        with contextlib.suppress(OSError):
            mode = path.lstat().st_mode
            wanted = stat.S_IMODE(mode) | 0o444 | (0o111 if mode & 0o100 else 0)
            if not stat.S_ISLNK(mode) and wanted != stat.S_IMODE(mode):
                path.chmod(wanted)
