"""What a guest is launched with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.guest.deadlines import Deadlines
from testbed.guest.lifecycle import State
from testbed.host.facts import Host
from testbed.host.quota import Quota
from testbed.qemu.command_line import ANONYMOUS, BootFiles, Memory
from testbed.qemu.machine_id import MachineId
from testbed.qemu.netdev import NO_NETWORKS, NetworkSockets
from testbed.store.snapshot_files import Snapshot
from testbed.store.template_files import Template
from testbed.topology.model import GuestModel

SavedState = Template | Snapshot
# Awaits at most so many seconds, and no longer than the guest runs.
Wait = Callable[[Awaitable[Any], float], Awaitable[Any]]
# Called with each state that the guest reaches.
OnState = Callable[[State], None]


def ignore_state(state: State) -> None:
    """Ignore the state: the default callback."""
    del state


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """How to launch a guest.

    `sockets` and `scratch`: new folders of this guest alone. `logs`: the folder of its logs, which stays.

    `template`: the template to clone, or the snapshot to restore; None boots cold, with `host_key` (a private ed25519
    key) as the host key of the SSH server. `memory`: the file with the RAM of a template that is being made. `wiring`:
    the guest's ends of private networks. `surviving_disks`: a folder with the disks of another guest, which become this
    one's. `savable`: the guest may become a snapshot, so its writes to the root disk go to a named file. `on_state`:
    called with each state. `quota`: how much disk space its run may use.
    """

    name: str
    host: Host
    machine: MachineId
    files: BootFiles
    model: GuestModel
    deadlines: Deadlines
    sockets: Path
    scratch: Path
    logs: Path
    template: SavedState | None = None
    memory: Memory = ANONYMOUS
    host_key: bytes = b""
    wiring: NetworkSockets = NO_NETWORKS
    surviving_disks: Path | None = None
    savable: bool = False
    on_state: OnState = ignore_state
    quota: Quota

    @property
    def overlay(self) -> Path:
        """The overlay of the root disk of a guest that can be saved."""
        return self.scratch / "root.qcow2"

    @property
    def identity(self) -> bytes:
        """The private key of the guest's SSH server."""
        return self.template.host_key if self.template else self.host_key
