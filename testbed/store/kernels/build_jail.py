"""Runs what a kernel's source has build it: Makefiles, Kconfig files and scripts are whatever the author of the source or of a patch wrote.

It runs in an enclosure (`testbed/store/kernels/build_jail_exec.py`) that shows the system's programs, the tools that the user named and the source, and lets it
write into the output folders that are given. A machine that allows no enclosure builds what the user trusts, and nothing else.
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
# Where the testbed is root: a number that nobody has (systemd's list of uids says that 60578 to 61183 are unused); QEMU's is 61183.
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
# Where compilers find libraries that are not the system's.
_LIBRARIES = ("LD_LIBRARY_PATH", "PKG_CONFIG_PATH")
# What belongs to a program in a folder `bin`, and nothing else of what may be somebody's home.
_INSTALLED = ("include", "lib", "lib32", "lib64", "libexec", "share/bison")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJail:
    """How programs are enclosed here. `account`: whom they run as, None: as the user of the testbed; `users`: in a namespace of users."""

    account: Account | None
    users: bool


def is_trusted() -> bool:
    """Whether the user says that a source may do what the user may."""
    return os.environ.get(TRUST) == "1"


async def find_build_jail() -> tuple[BuildJail | None, str]:
    """How programs can be enclosed on this machine, found by trying, or None with the reason."""
    ways = [BuildJail(account=None, users=True)]
    if os.geteuid() == 0:
        ways = [BuildJail(account=_ACCOUNT, users=False), BuildJail(account=None, users=False), *ways]
    reasons = []
    for way in ways:
        try:
            tried = await run_in_jail(way, ["true"], folder=Path("/"), check=False)
        except HostError as error:  # as of a root that cannot become that account
            reasons.append(str(error))
            continue
        if tried.status == 0:
            return way, ""
        reasons.append(tried.stderr.strip() or f"it ended with status {tried.status}")
    return None, "; ".join(dict.fromkeys(reasons))


async def run_in_jail(
    enclosure: BuildJail | None,
    argv: Sequence[str | Path],
    *,
    folder: Path,
    read: Iterable[Path] = (),
    write: Iterable[Path] = (),
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60,
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
) -> process.Finished:
    """Run a program that starts in `folder`, and end it with all that it has started; `check` and `timeout_s` are as of `process.run`,
    `on_line` gets what it prints.

    `enclosure`: None: it sees and does what we may. `read`, `write`: what it sees besides the system's programs, by its usual path; `env`:
    its environment, to which come PATH, an empty HOME, and where the user has libraries.

    :raise HostError: as `process.run`. :raise UsageError: a path in `MORE_PATHS` is none.
    """
    words = (str(process.find(str(argv[0]))), *map(str, argv[1:]))
    with tempdirs.temporary() as scratch:
        if enclosure is None:
            before: tuple[str, ...] = process.GROUP_LEADER
            home = str(scratch)
        else:
            (scratch / "tmp").mkdir()
            give_ownership(enclosure, scratch / "tmp")
            before, home = _words(enclosure, folder, read, write, scratch / "tmp"), "/tmp"  # noqa: S108 - its own
        environment = {name: value if name in _LIBRARIES else None for name, value in os.environ.items()}
        environment |= {"HOME": home, "TMPDIR": home, **(env or {})}
        return await process.run(
            (*before, *words),
            folder=folder,
            env=environment,
            timeout_s=timeout_s,
            check=check,
            on_line=process.LineHandlers(stdout=on_line, stderr=on_line),
        )


def _words(
    enclosure: BuildJail, folder: Path, read: Iterable[Path], write: Iterable[Path], scratch: Path
) -> tuple[str, ...]:
    return build_jail_exec.command_prefix(
        sys.executable,
        account=None if enclosure.account is None else (enclosure.account.uid, enclosure.account.gid),
        users=enclosure.users,
        read=[
            _pair(path)
            for path in (*_PROGRAMS, *_SETTINGS, *_more_paths(), *read)
            if path.exists() and path not in _links()
        ],
        write=[_pair(path) for path in write],
        links=[(str(path.readlink()), str(path)) for path in _links()],
        scratch=os.path.realpath(scratch),
        folder=str(folder.absolute()),
    )


def _links() -> tuple[Path, ...]:
    """/bin and its like where they are links into /usr."""
    return tuple(path for path in _PROGRAMS if path.is_symlink())


def _pair(path: Path) -> tuple[str, str]:
    return os.path.realpath(path), str(path.absolute())


def _more_paths() -> tuple[Path, ...]:
    """:raise UsageError: one is no path from the root, or not there."""
    found = tuple(Path(one) for one in os.environ.get(MORE_PATHS, "").split(os.pathsep) if one)
    for path in found:
        if not path.is_absolute() or not path.exists():
            raise UsageError(
                f"{MORE_PATHS}: expected paths from the root, which builds may read, with : between them, got {str(path)!r}"
            )
    return found


def installations(programs: Iterable[str]) -> tuple[Path, ...]:
    """What a build must see of the machine so that these programs run: nothing of those of the system, which it sees anyway."""
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
    # A cross compiler's own: PREFIX/bin/TARGET-gcc has PREFIX/TARGET.
    target = program.name.rpartition("-")[0]
    yield from (
        path for name in (*_INSTALLED, *([target] if target else [])) if (path := program.parents[1] / name).is_dir()
    )


def give_ownership(enclosure: BuildJail | None, folder: Path) -> None:
    """Make whom programs run as the owner of a folder and of all that is in it. Blocks.

    :raise HostError: this root cannot.
    """
    if os.geteuid() != 0:
        return
    uid = 0 if enclosure is None or enclosure.account is None else enclosure.account.uid
    try:
        for path in (*untrusted_files.walk(folder), folder):
            if path.lstat().st_uid != uid:
                os.chown(path, uid, uid, follow_symlinks=False)
    except OSError as error:
        raise HostError(f"{folder}: cannot be given to uid {uid}, which builds run as: {error.strerror}") from error


def show(folder: Path) -> None:
    """Let everybody who gets to a source read it, as an account does that builds it. Blocks."""
    for path in (folder, *untrusted_files.walk(folder)):
        with contextlib.suppress(OSError):
            mode = path.lstat().st_mode
            wanted = stat.S_IMODE(mode) | 0o444 | (0o111 if mode & 0o100 else 0)
            if not stat.S_ISLNK(mode) and wanted != stat.S_IMODE(mode):
                path.chmod(wanted)
