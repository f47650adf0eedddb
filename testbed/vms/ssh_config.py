"""Writes the files that an SSH client needs to reach a VM: a key, the VM's host key, and an ssh_config that names
both."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from testbed.host import ssh_proxy
from testbed.host.registry import SSH


def write_ssh_files(folder: Path, name: str, private_key: str, host_key: str, *, connect_s: float) -> None:
    """Write `key`, `known_hosts` and `ssh_config` into a VM's folder.

    `connect_s`: how long an SSH client waits for the guest's SSH server.
    """
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_text(private_key, encoding="utf-8")
    (folder / "known_hosts").write_text(f"{name} {host_key}\n", encoding="utf-8")
    proxy = (
        sys.executable,
        "-I",
        "-S",
        str(Path(ssh_proxy.__file__).absolute()),
        str(folder / SSH),
        f"{connect_s:.0f}",
    )
    # Handshakes are expensive under emulation: the cheapest algorithms that both sides support.
    (folder / "ssh_config").write_text(
        f"""\
Host {name}
    ProxyCommand {shlex.join(proxy).replace("%", "%%")}
    ProxyUseFdpass yes
    User root
    IdentityFile "{key}"
    IdentitiesOnly yes
    IdentityAgent none
    HostKeyAlias {name}
    UserKnownHostsFile "{folder / "known_hosts"}"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    PasswordAuthentication no
    KexAlgorithms curve25519-sha256
    Ciphers chacha20-poly1305@openssh.com
    LogLevel ERROR
    ConnectTimeout {connect_s:.0f}
""",
        encoding="utf-8",
    )
