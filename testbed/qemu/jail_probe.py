"""Finds out how QEMU can be confined on this machine, by trying; answers are cached by what they depend on."""

from __future__ import annotations

import os
import pwd
import re
import sys
from pathlib import Path

from testbed.errors import HostError
from testbed.hashing import content_key
from testbed.host import process
from testbed.host.facts import Account, JailSupport, Qemu
from testbed.qemu import jail, jail_exec, probe_cache
from testbed.qemu.netns import NetworkNamespace

_CAPABILITIES = re.compile(r"^Cap(?:Eff|Bnd):\s+(\w+)$", re.MULTILINE)
# Settings with which an administrator or a distribution allows or forbids plain users to make namespaces.
_SYSCTLS = (
    *(f"user/max_{kind}_namespaces" for kind in ("mnt", "net", "user")),
    *("kernel/unprivileged_userns_clone", "kernel/apparmor_restrict_unprivileged_userns"),
)
# QEMU's account if the testbed runs as root: a uid that nobody has (systemd's list of uids says that 60578 to 61183 are
# unused).
_ACCOUNT = Account(uid=61183, gid=61183)


async def find_account(cache: Path, qemu: Qemu) -> tuple[Account | None, str]:
    """Return the account that QEMU runs under, or None and the reason why it runs as the user of the testbed.

    :raise HostError: there is no such user, or it may not run QEMU.
    """
    if os.geteuid() != 0:
        return None, "the testbed does not run as root"
    named = os.environ.get("TESTBED_QEMU_USER", "")
    if named == "root":
        return None, "TESTBED_QEMU_USER says so"
    account = _of_name(named) if named else _ACCOUNT
    # What may change while QEMU stays the same: the privileges of this root, as in a container.
    privileges = [
        Path(f"/proc/self/{name}").read_text(encoding="utf-8") for name in ("uid_map", "gid_map")
    ] + _CAPABILITIES.findall(Path("/proc/self/status").read_text(encoding="utf-8"))
    cached = cache / "probes" / f"account-{content_key(qemu.identity, account.uid, account.gid, privileges)}.json"
    record = probe_cache.load_answer(cached)
    if record is None:
        done = {program: await _try_program(jail.command_prefix(account), program) for program in ("true", qemu.path)}
        record = {"drops": done["true"], "runs": done[qemu.path]}
        if not any(record.values()):
            probe_cache.save_answer(cached, record)
    if record["drops"]:
        return None, f"this root cannot become uid {account.uid}: {record['drops']}"
    if record["runs"]:
        raise HostError(
            f"{qemu.path}: expected a program that uid {account.uid} may run, which QEMU runs as, got: "
            f"{record['runs']}; put it where everybody may enter, or name another user with TESTBED_QEMU_USER"
        )
    return account, ""


def _of_name(user: str) -> Account:
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        return Account(uid=entry.pw_uid, gid=entry.pw_gid)
    except KeyError:
        if user.isdecimal():
            return Account(uid=int(user), gid=int(user))
        raise HostError(f"TESTBED_QEMU_USER: expected a user of this machine, or a uid, got {user!r}") from None


async def find_jail_support(cache: Path, qemu: Qemu, account: Account | None) -> JailSupport:
    """Return how QEMU can be confined here.

    `confined` needs libseccomp, with its libraries in the usual places; `mount_ns` needs the right to mount, and a QEMU
    outside the folders that would be hidden; `net_ns` needs the right to make network namespaces.
    """
    landlock = jail_exec.landlock_abi()
    rules = jail.landlock_rules(qemu)
    script = Path(jail_exec.__file__)
    # Everything that the answer depends on, besides QEMU itself and what an administrator may repair.
    inputs = (
        str(script),
        script.read_text(encoding="utf-8"),
        sys.executable,
        rules,
        os.geteuid(),
        account and account.uid,
    )
    privileges = (
        _CAPABILITIES.findall(Path("/proc/self/status").read_text(encoding="utf-8")),
        [_sysctl(name) for name in _SYSCTLS],
    )
    cached = (
        cache
        / "probes"
        / f"confinement-{content_key(qemu.identity, os.uname().release, landlock, privileges, inputs)}.json"
    )
    record = probe_cache.load_answer(cached)
    if record is None:
        why_no_mount_ns = await _try_program(jail.command_prefix(account, mount_ns=()), qemu.path)
        why_unconfined = await _try_program(
            jail.command_prefix(account, mount_ns=None if why_no_mount_ns else (), rules=rules), qemu.path
        )
        record = {"together": why_no_mount_ns, "unconfined": why_unconfined, "not_alone": await _why_no_net_ns(account)}
        if not why_unconfined:  # a repair would not change the key
            probe_cache.save_answer(cached, record)
    return JailSupport(
        confined=not record["unconfined"],
        why_unconfined=record["unconfined"],
        landlock_abi=landlock,
        mount_ns=not record["together"],
        why_no_mount_ns=record["together"],
        net_ns=not record["not_alone"],
        why_no_net_ns=record["not_alone"],
    )


def _sysctl(name: str) -> str:
    """Read a sysctl; an empty string if this kernel does not have it."""
    try:
        return (Path("/proc/sys") / name).read_text(encoding="utf-8").strip()
    except OSError:  # this kernel does not have the setting
        return ""


async def _why_no_net_ns(account: Account | None) -> str:
    """Tell why a program cannot get a network namespace in which we make sockets; empty if it can."""
    netns = NetworkNamespace()
    try:
        if why := await _try_program(jail.command_prefix(account, net_ns=netns.channel), "true", (netns.channel,)):
            return why
        netns.socket().close()
    except (HostError, OSError) as error:
        return str(error)
    finally:
        netns.close()
    return ""


async def _try_program(prefix: tuple[str, ...], program: str, pass_fds: tuple[int, ...] = ()) -> str:
    """Run a program behind the words of `prefix`; returns why it cannot run, or an empty string."""
    done = await process.run([*prefix, program, "--version"], check=False, pass_fds=pass_fds)
    return "" if done.status == 0 else done.stderr.strip()[-200:] or f"status {done.status}"
