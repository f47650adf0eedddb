"""Finds what is missing on this machine, and says how to fix it: doctor."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from testbed.cli.app import ERROR, Json, app, out, run_async
from testbed.errors import HostError, ToolMissing
from testbed.host import paths, process
from testbed.host.facts import NO_SANDBOX, Host, to_document
from testbed.qemu import jail, probe
from testbed.report import tables
from testbed.store import unshare
from testbed.store.kernels import build_jail, kernel_files
from testbed.store.kernels.table import shipped_table
from testbed.store.mirror import find_mirror
from testbed.units import GIB, format_size

_CONFINED_BY = "Linux 6.12 with Landlock, libseccomp, and user namespaces where the testbed is not root"
# Two guests with what QEMU needs beside their memory; and kernels, an image and two templates in the cache.
_NEEDED_MEMORY_BYTES = 2 * GIB
_NEEDED_DISK_BYTES = 4 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """One problem; `mend` is a command or another way to fix it. The testbed works despite problems that are not
    `fatal`.
    """

    what: str
    mend: str
    fatal: bool = True


@app.command("doctor")
def doctor_command(as_json: Json = False) -> None:
    """Show what this host can do, what is missing, and how to fix it."""
    run_async(_doctor(as_json=as_json))


async def _doctor(*, as_json: bool) -> int:
    folders = paths.folders()
    host: Host | None = None
    why = ""
    try:
        table = shipped_table()
        kernels = (kernel_files.cached_kernel(row, folders.cache) for row in table.rows.values())
        host = await probe.probe(folders.cache, next((kernel for kernel in kernels if kernel), None))
    except HostError as error:
        why = str(error)
    complaints = await find_complaints(host)
    if as_json:
        report = {
            "host": to_document(host) if host else None,
            "tools": process.find_all(),
            "problems": [asdict(complaint) for complaint in complaints],
            "error": why or None,
        }
        print(json.dumps(report))
    else:
        _show(host, why, complaints)
    return ERROR if host is None or any(complaint.fatal for complaint in complaints) else 0


def _show(host: Host | None, why: str, complaints: tuple[Complaint, ...]) -> None:
    if host is not None:
        out.print(tables.host_table(host, process.find_all()))
    else:
        out.print(why, markup=False, highlight=False)
    for complaint in complaints:
        kind = "problem" if complaint.fatal else "warning"
        text = f"{kind}: {complaint.what}\n    mend: {complaint.mend}"
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    if host is not None and not any(complaint.fatal for complaint in complaints):
        out.print("This machine can run the testbed.")


async def find_complaints(host: Host | None) -> tuple[Complaint, ...]:
    """Return everything that is wrong; `host` is None if there was no QEMU to ask."""
    complaints = [*_missing_tools(), *await _mirror(), *_subordinate_ids(), *await _namespaces(), *await _build_jail()]
    if host is not None:
        for check in _HOST_CHECKS:
            complaints += check(host)
    return tuple(complaints)


def _missing_tools() -> Iterator[Complaint]:
    for tool, where in process.find_all().items():
        if where == "missing" and not (tool == "newuidmap" and os.getuid() == 0):
            yield Complaint(what=f"{tool} is not installed", mend=f"apt-get install {process.PACKAGES[tool]}")


async def _mirror() -> list[Complaint]:
    try:
        await find_mirror()
    except ToolMissing:
        return []  # one of the missing tools
    except HostError as error:
        mend = "export TESTBED_DEBIAN_MIRROR=URL, or apt-get install debian-archive-keyring"
        return [Complaint(what=str(error), mend=mend)]
    return []


def _subordinate_ids() -> Iterator[Complaint]:
    if os.getuid() != 0 and not _has_subordinate_ids():
        user = pwd.getpwuid(os.getuid()).pw_name
        yield Complaint(
            what=f"{user} has no subordinate user ids, which building an image without root needs",
            mend=f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        )


async def _namespaces() -> list[Complaint]:
    why = await unshare.why_unavailable()
    if not why:
        return []
    return [
        Complaint(
            what=f"an image cannot be built: no namespaces of its own for mmdebstrap: {why}",
            mend="a user who may create user namespaces (sysctl user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone), or root",
        )
    ]


async def _build_jail() -> list[Complaint]:
    jail_program, why = await build_jail.find_build_jail()
    if jail_program is not None:
        return []
    return [
        Complaint(
            what=f"kernels are not built in a jail: commands of a source or a patch run as you: {why}",
            mend="root that may mount, a user who may create user namespaces, "
            f"or {build_jail.TRUST}=1 if you trust the source",
            fatal=False,
        )
    ]


def _free_memory(host: Host) -> Iterator[Complaint]:
    if host.memory_free_bytes < _NEEDED_MEMORY_BYTES:
        yield Complaint(
            what=f"{format_size(host.memory_free_bytes)} of memory is free, two guests need 2G",
            mend="free some memory: stop other programs or guests",
        )


def _free_disk(host: Host) -> Iterator[Complaint]:
    if host.disk_free_bytes < _NEEDED_DISK_BYTES:
        yield Complaint(
            what=f"{format_size(host.disk_free_bytes)} is free in the cache, 4G is needed",
            mend="set TESTBED_CACHE elsewhere",
        )


def _own_account(host: Host) -> Iterator[Complaint]:
    if host.account is None and os.getuid() == 0:
        yield Complaint(
            what=f"QEMU runs as root: {host.why_own_account}", mend="run QEMU as a user of its own", fatal=False
        )


def _confinement(host: Host) -> Iterator[Complaint]:
    for part in jail.unconfined_parts(host.jail):
        yield Complaint(what=f"a guest that takes QEMU over may {part}", mend=_CONFINED_BY, fatal=False)
    if open_to := jail.open_to_other_users(host.jail):
        yield Complaint(what=open_to, mend=_CONFINED_BY, fatal=False)


def _seccomp(host: Host) -> Iterator[Complaint]:
    if not host.qemu.seccomp:
        yield Complaint(
            what=f"{host.qemu.path} has no sandbox",
            mend=f"apt-get install qemu-system-x86; or {NO_SANDBOX}=1 if you trust what runs in your guests",
            fatal=not host.sandbox_waived,
        )


def _kvm(host: Host) -> Iterator[Complaint]:
    if not host.kvm.works:
        yield Complaint(
            what=f"guests run on TCG, several times slower than on KVM: {host.kvm.why}",
            mend="do what it says, or use a host with working KVM",
            fatal=False,
        )


def _warm_clones(host: Host) -> Iterator[Complaint]:
    if not host.qemu.warm_clones:
        yield Complaint(what=f"guests boot cold: {host.qemu.why_not_warm}", mend="QEMU 6.0 or later", fatal=False)


# Their complaints are printed in this order.
_HOST_CHECKS: tuple[Callable[[Host], Iterator[Complaint]], ...] = (
    _free_memory,
    _free_disk,
    _own_account,
    _confinement,
    _seccomp,
    _kvm,
    _warm_clones,
)


def _has_subordinate_ids() -> bool:
    user = pwd.getpwuid(os.getuid())
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        try:
            owners = {line.split(":")[0] for line in path.read_text(encoding="utf-8").splitlines()}
        except OSError:
            return False
        if not owners & {user.pw_name, str(user.pw_uid)}:
            return False
    return True
