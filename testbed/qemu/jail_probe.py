"""Finds out how QEMU can be kept from this machine, by trying; answers are cached by what they depend on."""

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
# Where an administrator, or a distribution, lets plain users make namespaces or not.
_LIMITS = (
    *(f"user/max_{kind}_namespaces" for kind in ("mnt", "net", "user")),
    *("kernel/unprivileged_userns_clone", "kernel/apparmor_restrict_unprivileged_userns"),
)
# QEMU's account where the testbed runs as root: a number that nobody has (systemd's list of uids says that 60578 to 61183 are unused).
_ACCOUNT = Account(uid=61183, gid=61183)


async def find_account(cache: Path, qemu: Qemu) -> tuple[Account | None, str]:
    """Whom QEMU runs as, or why it runs as we do.

    :raise HostError: there is no such user, or it may not run QEMU.
    """
    if os.geteuid() != 0:
        return None, "the testbed does not run as root"
    named = os.environ.get("TESTBED_QEMU_USER", "")
    if named == "root":
        return None, "TESTBED_QEMU_USER says so"
    account = _of_name(named) if named else _ACCOUNT
    # What may change without QEMU: what this root is allowed to, as in a container.
    powers = [
        Path(f"/proc/self/{name}").read_text(encoding="utf-8") for name in ("uid_map", "gid_map")
    ] + _CAPABILITIES.findall(Path("/proc/self/status").read_text(encoding="utf-8"))
    remembered = cache / "probes" / f"account-{content_key(qemu.identity, account.uid, account.gid, powers)}.json"
    record = probe_cache.load_answer(remembered)
    if record is None:
        tried = {program: await _try_program(jail.command_prefix(account), program) for program in ("true", qemu.path)}
        record = {"drops": tried["true"], "runs": tried[qemu.path]}
        if not any(record.values()):
            probe_cache.save_answer(remembered, record)
    if record["drops"]:
        return None, f"this root cannot become uid {account.uid}: {record['drops']}"
    if record["runs"]:
        raise HostError(
            f"{qemu.path}: expected a program that uid {account.uid} may run, which QEMU runs as, got: {record['runs']}; "
            "put it where everybody may enter, or name another user with TESTBED_QEMU_USER"
        )
    return account, ""


def _of_name(user: str) -> Account:
    try:
        found = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        return Account(uid=found.pw_uid, gid=found.pw_gid)
    except KeyError:
        if user.isdecimal():
            return Account(uid=int(user), gid=int(user))
        raise HostError(f"TESTBED_QEMU_USER: expected a user of this machine, or a uid, got {user!r}") from None


async def find_jail_support(cache: Path, qemu: Qemu, account: Account | None) -> JailSupport:
    """How QEMU can be kept from this machine. Not where there is no libseccomp or where it lies with libraries in unknown places; not
    apart where nobody like us may mount, or where it lies in a folder that would be hidden; and not alone where nobody like us may make a
    network namespace.
    """
    landlock = jail_exec.landlock_abi()
    rules = jail.landlock_rules(qemu)
    script = Path(jail_exec.__file__)
    # All that may change what comes out, but QEMU itself, and what mends it.
    place = (
        str(script),
        script.read_text(encoding="utf-8"),
        sys.executable,
        rules,
        os.geteuid(),
        account and account.uid,
    )
    powers = (
        _CAPABILITIES.findall(Path("/proc/self/status").read_text(encoding="utf-8")),
        [_limit(name) for name in _LIMITS],
    )
    remembered = (
        cache / "probes" / f"confinement-{content_key(qemu.identity, os.uname().release, landlock, powers, place)}.json"
    )
    record = probe_cache.load_answer(remembered)
    if record is None:
        together = await _try_program(jail.command_prefix(account, mount_ns=()), qemu.path)
        unconfined = await _try_program(
            jail.command_prefix(account, mount_ns=None if together else (), rules=rules), qemu.path
        )
        record = {"together": together, "unconfined": unconfined, "not_alone": await _not_alone(account)}
        if not unconfined:  # what mends that is not seen in the key
            probe_cache.save_answer(remembered, record)
    return JailSupport(
        confined=not record["unconfined"],
        why_unconfined=record["unconfined"],
        landlock_abi=landlock,
        mount_ns=not record["together"],
        why_no_mount_ns=record["together"],
        net_ns=not record["not_alone"],
        why_no_net_ns=record["not_alone"],
    )


def _limit(name: str) -> str:
    try:
        return (Path("/proc/sys") / name).read_text(encoding="utf-8").strip()
    except OSError:  # this kernel has no such limit
        return ""


async def _not_alone(account: Account | None) -> str:
    """Why nothing can be given a network of its own, in which we make sockets; nothing where it can."""
    netns = NetworkNamespace()
    try:
        if said := await _try_program(jail.command_prefix(account, net_ns=netns.channel), "true", (netns.channel,)):
            return said
        netns.socket().close()
    except (HostError, OSError) as error:
        return str(error)
    finally:
        netns.close()
    return ""


async def _try_program(within: tuple[str, ...], program: str, pass_fds: tuple[int, ...] = ()) -> str:
    """What is said where a program cannot run within these words; nothing where it can."""
    tried = await process.run([*within, program, "--version"], check=False, pass_fds=pass_fds)
    return "" if tried.status == 0 else tried.stderr.strip()[-200:] or f"status {tried.status}"
