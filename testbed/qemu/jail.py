"""Confines one QEMU: drops privileges and grants access only to what it needs (`jail_exec.py`).

Where the testbed runs as root, QEMU runs under an account of its own, so that a guest that breaks out of it reaches
nothing of this machine but what was granted. Files that QEMU needs may lie where that account cannot go (root's cache,
a home), or be hidden from it, so they get other names: images are /dev/fdset/N, start files /proc/self/fd/N, and
folders are mounts or descriptors as well.
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
from testbed.host.facts import NO_SANDBOX, Account, Host, JailSupport, Qemu
from testbed.progress import Progress
from testbed.qemu import command_line, jail_exec
from testbed.qemu.netns import NetworkNamespace

_NO_CAPABILITIES = ("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all")
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
# The variables that QEMU inherits; others may contain passwords.
ENVIRONMENT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TZ")
# Enough for the disks, sockets and event loops of the largest guest; fewer if our own limit is lower.
_OPEN_FILES = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def command_prefix(
    account: Account | None,
    groups: tuple[int, ...] = (),
    *,
    mount_ns: Iterable[str] | None = None,
    rules: Iterable[tuple[str, str]] | None = None,
    net_ns: int | None = None,
) -> tuple[str, ...]:
    """Return the words to put before QEMU's argv: no core dump, no privileges, and with `account` no capability and no
    group but `groups`.

    `mount_ns`, `rules`, `net_ns`: see `jail_exec.command_prefix`.
    """
    limits = ("prlimit", "--core=0", f"--nofile={_OPEN_FILES}", "--")
    # Before setpriv changes the account: the new one can neither mount nor, perhaps, start our Python.
    isolated: tuple[str, ...] = ()
    if not (mount_ns is None and rules is None and net_ns is None):
        isolated = jail_exec.command_prefix(sys.executable, rules, mount_ns=mount_ns, net_ns=net_ns)
    privileges: tuple[str, ...] = ("--no-new-privs",)
    if account is not None:
        in_groups = (f"--groups={','.join(map(str, groups))}",) if groups else ("--clear-groups",)
        privileges = (
            f"--reuid={account.uid}",
            f"--regid={account.gid}",
            *in_groups,
            *_NO_CAPABILITIES,
            *privileges,
        )
    elif os.geteuid() == 0 and _may_drop_capabilities():
        privileges = (*_NO_CAPABILITIES, *privileges)
    setpriv = (str(process.find("setpriv")), *privileges)
    # The parent-death signal comes last: changing the account clears it (prctl(2)).
    return (*limits, *isolated, *setpriv, "--pdeathsig=KILL", "--", *process.unless_orphaned_prefix())


def _may_drop_capabilities() -> bool:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff"))
    return bool(int(effective.split()[1], 16) & 1 << _CAP_SETPCAP)


def landlock_rules(qemu: Qemu) -> tuple[tuple[str, str], ...]:
    """Return the rules that every QEMU needs, whatever its guest: programs, libraries, firmware, and a few devices."""
    program = Path(qemu.path).resolve()
    own, prefix = program.parent, program.parent.parent
    # A QEMU that was extracted or built somewhere has these beside it; the folders themselves may be somebody's home.
    beside = (program, *(own / name for name in _BUILT), *(prefix / name for name in _INSTALLED))
    libraries = (entry for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry.startswith("/"))
    places = (*_PROGRAMS, *map(str, beside), *libraries, *filter(None, [qemu.modules]))
    return (
        *((jail_exec.RUN, place) for place in dict.fromkeys(places)),
        *((jail_exec.READ, place) for place in _SETTINGS),
        *((jail_exec.WRITE, device) for device in _DEVICES),
    )


def unconfined_parts(support: JailSupport) -> tuple[str, ...]:
    """Return what this kernel cannot keep QEMU from doing; empty if it is fully confined."""
    parts = []
    if not support.confined:
        parts.append(f"open files, connect to unix sockets and signal processes: {support.why_unconfined}")
    elif support.landlock_abi < jail_exec.FILES_SINCE:
        parts.append("open files: this kernel's Landlock is absent or switched off")
    if not support.net_ns:
        # A network namespace prevents these two whatever Landlock supports.
        ports = not support.confined or support.landlock_abi < jail_exec.PORTS_SINCE
        abstract = not support.confined or support.landlock_abi < jail_exec.SCOPES_SINCE
        what = [*(["listen at any port"] if ports else []), *(["send to abstract sockets"] if abstract else [])]
        parts += [f"{' and '.join(what)}: {support.why_no_net_ns}"] if what else []
    if not support.mount_ns:
        parts.append(f"look into /run and /tmp, and send to sockets there: {support.why_no_mount_ns}")
    return tuple(parts)


def warn_if_unconfined(host: Host, progress: Progress) -> None:
    """Warn that QEMU runs without its seccomp sandbox, if the user has allowed that, and that it cannot be confined.

    :raise HostError: QEMU lacks seccomp and TESTBED_NO_SANDBOX is not set.
    """
    if not command_line.sandbox_options(host):
        progress.note(
            f"{host.qemu.path} has no sandbox, and {NO_SANDBOX}=1: a guest that takes it over may do what its user may"
        )
    if not host.jail.confined:
        allowed = "; ".join(unconfined_parts(host.jail))
        progress.note(f"{host.qemu.path} is not confined: a guest that takes it over may {allowed}")


def open_to_other_users(support: JailSupport) -> str:
    """Return what other users of this machine may do to guests, or an empty string."""
    if support.net_ns:
        return ""
    what = "every user of this machine may connect to guests' SSH servers, and keep them from answering"
    return f"{what}: {support.why_no_net_ns}"


class Jail:
    """Grants files and folders to one QEMU: as descriptors, where QEMU has an account or sees fewer folders than we do;
    else by their names.
    """

    def __init__(
        self, account: Account | None, *, mount_ns: bool = False, confined: bool = False, net_ns: bool = False
    ) -> None:
        self._account = account
        self.netns = NetworkNamespace() if net_ns else None
        self._mount_ns, self._confined = mount_ns, confined
        self._by_descriptor = account is not None or mount_ns
        self._rules: list[tuple[str, str]] = []
        self._folders: list[str] = []
        self._names: dict[str, str] = {}
        self._opened: tuple[int, ...] = ()
        self.options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def on(cls, host: Host, *, trusted: bool = False) -> Jail:
        """Make the tightest jail that this host supports. `trusted`: QEMU may open any file that its user may open."""
        support = host.jail if not trusted else JailSupport()
        return cls(host.account, mount_ns=support.mount_ns, confined=support.confined, net_ns=support.net_ns)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that QEMU inherits."""
        return (*self._opened, *([self.netns.channel] if self.netns is not None else []))

    def grant_folders(self, *paths: Path) -> None:
        """Let QEMU create files and sockets in folders."""
        self.chown(*paths)
        for path in paths:
            if self._mount_ns:
                self._names[str(path)] = jail_exec.mounted_name(len(self._folders))
                self._folders.append(str(path.absolute()))
            elif self._by_descriptor:
                self._name(path, self._open(path, os.O_PATH | os.O_DIRECTORY))
        self._grant(jail_exec.OWN, paths)

    def chown(self, *paths: Path) -> None:
        """Make QEMU the owner of existing files, sockets or folders.

        :raise HostError: this is not possible.
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

    def grant_start_files(self, *paths: Path) -> None:
        """Let QEMU read files of ours that lie in private folders."""
        if self._by_descriptor:
            for path in paths:
                descriptor = self._open(path, os.O_RDONLY)
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
                if self._account is not None and not mode & stat.S_IROTH:
                    os.fchmod(descriptor, mode | stat.S_IROTH)
                self._name(path, descriptor)
        self._grant(jail_exec.READ, paths)

    def grant_memory(self, path: Path, *, read_only: bool = False) -> None:
        """Let QEMU open a file of guest memory, which is created if it does not exist.

        Its folder is private, and the file stays ours, so that no QEMU can set its times.
        """
        if not path.exists():
            path.touch(mode=0o600)
            if os.geteuid() == 0:
                # For any account of QEMU, now and in later clones: a change of the mode then would look like a change
                # of the file.
                path.chmod(0o666)
        if self._by_descriptor:
            self._name(path, self._open(path, os.O_PATH))
        self._grant(jail_exec.READ if read_only else jail_exec.WRITE, [path])

    def grant_images(self, paths: Iterable[Path]) -> None:
        """Let QEMU's block layer read files, whoever else may read them."""
        images = tuple(dict.fromkeys(paths))
        if not self._by_descriptor:
            self._grant(jail_exec.READ, images)
        else:  # QEMU takes open descriptors, and opens nothing
            for path in images:
                descriptor = self._open(path, os.O_RDONLY)
                number = len(self.options) + 1
                self.options += (("-add-fd", f"fd={descriptor},set={number}"),)
                self._names[str(path)] = f"/dev/fdset/{number}"

    def prefix(self, host: Host) -> tuple[str, ...]:
        """Return the words to put before this QEMU's argv."""
        kvm = ((jail_exec.WRITE, "/dev/kvm"),) if host.kvm.works else ()
        rules = (*landlock_rules(host.qemu), *kvm, *self._rules) if self._confined else None
        return command_prefix(
            self._account,
            host.groups,
            mount_ns=self._folders if self._mount_ns else None,
            rules=rules,
            net_ns=self.netns.channel if self.netns is not None else None,
        )

    def _grant(self, kind: str, paths: Iterable[Path]) -> None:
        # By the names that QEMU uses: ours may be hidden from it.
        self._rules += ((kind, self._names.get(str(path), str(path.absolute()))) for path in paths)

    def _open(self, path: Path, flags: int) -> int:
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{path}: cannot be opened for QEMU: {error.strerror}") from error
        self._opened += (descriptor,)
        return descriptor

    def _name(self, path: Path, descriptor: int) -> None:
        self._names[str(path)] = f"/proc/self/fd/{descriptor}"

    def visible(self, value: Any) -> Any:
        """Replace the paths in a command's arguments, or in words of a command line, by the names under which QEMU
        reaches them.
        """
        if not self._names:
            return value
        match value:
            case str():
                return self._renamed(value)
            case dict():
                return {key: self.visible(item) for key, item in value.items()}
            case list():
                return [self.visible(item) for item in value]
            case tuple():
                return tuple(self.visible(item) for item in value)
        return value

    def _renamed(self, text: str) -> str:
        # In an option's value QEMU reads a doubled comma as one, and an option may be JSON, where a path is a string.
        names = {
            form: name
            for path, name in self._names.items()
            for form in (path, path.replace(",", ",,"), json.dumps(path)[1:-1])
        }
        for form in sorted(names, key=len, reverse=True):
            first, *others = text.split(form)
            # Another file's path may merely begin with this one.
            text = first + "".join(
                (names[form] if not other or other[0] in '/,"' else form) + other for other in others
            )
        return text

    def release(self) -> None:
        """Close our copies of the granted descriptors; a QEMU that has started has its own."""
        for descriptor in self._opened:
            os.close(descriptor)
        self._opened = ()

    def close(self) -> None:
        """Close all of our descriptors, once QEMU has ended."""
        self.release()
        if self.netns is not None:
            self.netns.close()
