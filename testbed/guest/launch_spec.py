"""What a guest is launched with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.guest.lifecycle import Deadlines, State
from testbed.host.facts import Host
from testbed.host.quota import Quota
from testbed.qemu.command_line import ANONYMOUS, BootFiles, MachineId, Memory
from testbed.qemu.netdev import NO_NETWORKS, NetworkSockets
from testbed.store.snapshot_files import Snapshot
from testbed.store.template_files import Template
from testbed.topology.model import GuestModel

SavedState = Template | Snapshot
# Waits no longer than that many seconds, nor longer than the guest lives.
Wait = Callable[[Awaitable[Any], float], Awaitable[Any]]
# Hears of each state that the guest comes into.
OnState = Callable[[State], None]


def ignore_state(state: State) -> None:
    """Hears it and does nothing."""
    del state


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What to launch. `sockets` and `scratch` are new folders of this guest alone; `logs` is where its logs stay.

    `template`: clone this one, or go on from this snapshot; None boots cold, with `host_key` (a private ed25519 key) as its SSH identity.
    `memory`: where a template that is being made keeps its RAM. `wiring`: its ends of private networks.
    `surviving_disks`: a folder of disks that outlived another guest, which become its own. `savable`: it may become a
    snapshot, so that what it writes to its root disk is a file with a name. `on_state`: hears how far it is. `quota`: what its run may take
    of this machine's disks.
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
        """Where a guest that can be saved keeps what it writes to its root disk."""
        return self.scratch / "root.qcow2"

    @property
    def identity(self) -> bytes:
        """The private key of the guest's SSH server."""
        return self.template.host_key if self.template else self.host_key
