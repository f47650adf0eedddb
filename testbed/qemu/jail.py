"""How a QEMU is held: without privileges, kept from this machine (`confine.py`), and where the testbed runs as root under an account of its
own, which reaches nothing of this machine but what it is handed.

A guest that breaks out of its QEMU is then nobody in particular. What QEMU needs may lie where that account cannot go (root's cache, a
home), or be hidden from it, so it gets other names: images are /dev/fdset/N, start files /proc/self/fd/N, and folders mounts or the same.
"""

from __future__ import annotations

import json
import os
import resource
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from testbed.errors import HostError
from testbed.host import process
from testbed.host.facts import Account, Host, JailSupport, Qemu
from testbed.qemu import jail_exec
from testbed.qemu.netns import NetworkNamespace

_WITHOUT_CAPABILITIES = ("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all")
_CAP_SETPCAP = 8
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
_BUILT = ("pc-bios", "qemu-bundle")
_INSTALLED = ("lib/qemu", "libexec/qemu", "pc-bios", "share/qemu", "share/seabios", "share/ipxe")
_SETTINGS = (
    "/dev/random",
    "/dev/urandom",
    "/etc/gnutls",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/resolv.conf",
    "/etc/ssl/openssl.cnf",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys",
    "/sys/devices/system",
)
_DEVICES = ("/dev/null", "/dev/zero")
# What it gets of our environment, where there may be passwords.
ENVIRONMENT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TZ")
# Enough for the disks, sockets and event loops of the largest guest; fewer where we may have no more ourselves.
_OPEN_FILES = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def command_prefix(
    account: Account | None,
    groups: tuple[int, ...] = (),
    *,
    apart: Iterable[str] | None = None,
    rules: Iterable[tuple[str, str]] | None = None,
    network: int | None = None,
) -> tuple[str, ...]:
    """What to put before QEMU's argv: it gets no core dump and no privileges, and as `account` no capability and no group but `groups`.

    `apart`, `rules`, `network`: how it is kept from this machine; see `confine.words`.
    """
    limits = ("prlimit", "--core=0", f"--nofile={_OPEN_FILES}", "--")
    # Before it is another account, which can neither mount nor, perhaps, start our Python.
    free = apart is None and rules is None and network is None
    kept = () if free else jail_exec.command_prefix(sys.executable, rules, apart=apart, network=network)
    own: tuple[str, ...] = ("--no-new-privs",)
    if account is not None:
        wanted = (f"--groups={','.join(map(str, groups))}",) if groups else ("--clear-groups",)
        own = (f"--reuid={account.uid}", f"--regid={account.gid}", *wanted, *_WITHOUT_CAPABILITIES, *own)
    elif os.geteuid() == 0 and _may_drop_capabilities():
        own = (*_WITHOUT_CAPABILITIES, *own)
    # The parent-death signal comes last: changing the account would take it away (prctl(2)).
    return (*limits, *kept, str(process.find("setpriv")), *own, "--pdeathsig=KILL", "--", *process.unless_orphaned())


def _may_drop_capabilities() -> bool:
    effective = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("CapEff")
    )
    return bool(int(effective.split()[1], 16) & 1 << _CAP_SETPCAP)


def landlock_rules(qemu: Qemu) -> tuple[tuple[str, str], ...]:
    """What a QEMU needs of this machine whatever its guest is: programs, libraries, firmware, and a few devices."""
    program = Path(qemu.path).resolve()
    own, prefix = program.parent, program.parent.parent
    # One that was extracted or built somewhere has these beside it; the folders themselves may be somebody's home.
    beside = (program, *(own / name for name in _BUILT), *(prefix / name for name in _INSTALLED))
    libraries = (entry for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry.startswith("/"))
    places = (*_PROGRAMS, *map(str, beside), *libraries, *filter(None, [qemu.modules]))
    return (
        *((jail_exec.RUN, place) for place in dict.fromkeys(places)),
        *((jail_exec.READ, place) for place in _SETTINGS),
        *((jail_exec.WRITE, device) for device in _DEVICES),
    )


def unconfined_parts(found: JailSupport) -> tuple[str, ...]:
    """What QEMU may do all the same, as far as its user may; nothing, where all of it is held."""
    said = []
    if not found.confined:
        said.append(f"open files, connect to unix sockets and signal processes: {found.why_unconfined}")
    elif found.landlock < jail_exec.FILES_SINCE:
        said.append("open files: this kernel's Landlock is absent or switched off")
    if not found.alone:
        # A network of its own holds these two whatever Landlock can do.
        ports = not found.confined or found.landlock < jail_exec.PORTS_SINCE
        abstract = not found.confined or found.landlock < jail_exec.SCOPES_SINCE
        what = [*(["listen at any port"] if ports else []), *(["send to abstract sockets"] if abstract else [])]
        said += [f"{' and '.join(what)}: {found.why_not_alone}"] if what else []
    if not found.apart:
        said.append(f"look into /run and /tmp, and send to sockets there: {found.why_together}")
    return tuple(said)


def open_to_other_users(found: JailSupport) -> str:
    """What other users of this machine may do to guests, or nothing."""
    if found.alone:
        return ""
    return f"every user of this machine may connect to guests' SSH servers, and keep them from answering: {found.why_not_alone}"


class Jail:
    """What one QEMU is handed: as descriptors, where it has an account or sees less than we do; otherwise by its names."""

    def __init__(
        self, account: Account | None, *, apart: bool = False, confined: bool = False, alone: bool = False
    ) -> None:
        self._account = account
        self.netns = NetworkNamespace() if alone else None
        self._apart, self._confined = apart, confined
        self._by_descriptor = account is not None or apart
        self._rules: list[tuple[str, str]] = []
        self._folders: list[str] = []
        self._seen: dict[str, str] = {}
        self._opened: tuple[int, ...] = ()
        self.options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def on(cls, host: Host, *, trusted: bool = False) -> Jail:
        """As this host can do it. `trusted`: it may open what it likes, as far as its user may."""
        found = host.confinement if not trusted else JailSupport()
        return cls(host.account, apart=found.apart, confined=found.confined, alone=found.alone)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What QEMU inherits."""
        return (*self._opened, *([self.netns.handed] if self.netns is not None else []))

    def folders(self, *paths: Path) -> None:
        """Give QEMU folders to make files and sockets in."""
        self.own(*paths)
        for path in paths:
            if self._apart:
                self._seen[str(path)] = jail_exec.mounted_name(len(self._folders))
                self._folders.append(str(path.absolute()))
            elif self._by_descriptor:
                self._name(path, self._open(path, os.O_PATH | os.O_DIRECTORY))
        self._grant(jail_exec.OWN, paths)

    def own(self, *paths: Path) -> None:
        """Make QEMU the owner of files, sockets or folders that are there.

        :raise HostError: it cannot be.
        """
        if self._account is None:
            return
        for path in paths:
            try:
                os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)
            except OSError as error:
                raise HostError(
                    f"{path}: cannot be given to uid {self._account.uid}, which QEMU runs as: {error.strerror}"
                ) from error

    def start_files(self, *paths: Path) -> None:
        """Let QEMU read files of ours, which are in folders that nobody else enters."""
        if self._by_descriptor:
            for path in paths:
                descriptor = self._open(path, os.O_RDONLY)
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
                if self._account is not None and not mode & stat.S_IROTH:
                    os.fchmod(descriptor, mode | stat.S_IROTH)
                self._name(path, descriptor)
        self._grant(jail_exec.READ, paths)

    def memory(self, path: Path, *, read_only: bool = False) -> None:
        """Let QEMU open a file of guest memory, a new one if it is not there.

        Its folder is private, and the file stays ours, so that no QEMU can set its times.
        """
        if not path.exists():
            path.touch(mode=0o600)
            if os.geteuid() == 0:
                path.chmod(
                    0o666
                )  # whoever QEMU is, now and for later clones: another mode then would look like a change
        if self._by_descriptor:
            self._name(path, self._open(path, os.O_PATH))
        self._grant(jail_exec.READ if read_only else jail_exec.WRITE, [path])

    def images(self, paths: Iterable[Path]) -> None:
        """Let QEMU's block layer read files, whoever else may."""
        wanted = tuple(dict.fromkeys(paths))
        if not self._by_descriptor:
            self._grant(jail_exec.READ, wanted)
        else:  # what is open already is not opened
            for path in wanted:
                descriptor = self._open(path, os.O_RDONLY)
                number = len(self.options) + 1
                self.options += (("-add-fd", f"fd={descriptor},set={number}"),)
                self._seen[str(path)] = f"/dev/fdset/{number}"

    def words(self, host: Host) -> tuple[str, ...]:
        """What to put before this QEMU's argv."""
        kvm = ((jail_exec.WRITE, "/dev/kvm"),) if host.kvm.works else ()
        rules = (*landlock_rules(host.qemu), *kvm, *self._rules) if self._confined else None
        network = self.netns.handed if self.netns is not None else None
        return command_prefix(
            self._account, host.groups, apart=self._folders if self._apart else None, rules=rules, network=network
        )

    def _grant(self, kind: str, paths: Iterable[Path]) -> None:
        # As QEMU names them: what we have may be hidden from it.
        self._rules += ((kind, self._seen.get(str(path), str(path.absolute()))) for path in paths)

    def _open(self, path: Path, flags: int) -> int:
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{path}: cannot be opened for QEMU: {error.strerror}") from error
        self._opened += (descriptor,)
        return descriptor

    def _name(self, path: Path, descriptor: int) -> None:
        self._seen[str(path)] = f"/proc/self/fd/{descriptor}"

    def seen(self, said: Any) -> Any:
        """A command's arguments, or words of a command line, with paths as QEMU reaches them."""
        if not self._seen:
            return said
        match said:
            case str():
                return self._renamed(said)
            case dict():
                return {key: self.seen(value) for key, value in said.items()}
            case list():
                return [self.seen(value) for value in said]
            case tuple():
                return tuple(self.seen(value) for value in said)
        return said

    def _renamed(self, text: str) -> str:
        # In an option's value QEMU reads a doubled comma as one, and an option may be JSON, where a path is a string.
        names = {
            form: name
            for path, name in self._seen.items()
            for form in (path, path.replace(",", ",,"), json.dumps(path)[1:-1])
        }
        for form in sorted(names, key=len, reverse=True):
            first, *others = text.split(form)
            # Another file's name may only begin as this one.
            text = first + "".join(
                (names[form] if not other or other[0] in '/,"' else form) + other for other in others
            )
        return text

    def release(self) -> None:
        """Close our descriptors of what QEMU was handed; one that has started has its own."""
        for descriptor in self._opened:
            os.close(descriptor)
        self._opened = ()

    def close(self) -> None:
        """Close all of ours, when QEMU has ended."""
        self.release()
        if self.netns is not None:
            self.netns.close()
