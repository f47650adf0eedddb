"""Plans the network devices of a guest's QEMU on private networks. Pure.

Each guest's QEMU sends its frames to a socket of ours (`GUEST/NETWORK.out`), which passes them on to the socket of
every other guest (`GUEST/NETWORK.in`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.qemu.qmp_command import QmpCommand
from testbed.topology.networks import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSockets:
    """The sockets of one guest's networks. `folder`: holds a folder of sockets for each guest; `guest`: this guest's
    name in the topology; `ends`: its ends of the networks.
    """

    folder: Path
    guest: str
    ends: tuple[Link, ...]

    @property
    def own(self) -> Path:
        """This guest's folder, the only one that its QEMU can access."""
        return self.folder / self.guest

    def inlet(self, network: str, guest: str) -> Path:
        """The socket on which a guest's QEMU receives frames."""
        return self.folder / guest / f"{network}.in"

    def outlet(self, network: str) -> Path:
        """The socket to which this guest's QEMU sends frames."""
        return self.own / f"{network}.out"


NO_NETWORKS = NetworkSockets(folder=Path(), guest="", ends=())


def netdev_commands(wiring: NetworkSockets, first_port: int) -> tuple[QmpCommand, ...]:
    """Return the commands that add a guest's network devices, one in each root port from `first_port` on."""
    commands = []
    for port, link in enumerate(wiring.ends, start=first_port):
        local, remote = wiring.inlet(link.network, wiring.guest), wiring.outlet(link.network)
        ends = {end: {"type": "unix", "path": str(path)} for end, path in (("local", local), ("remote", remote))}
        commands.append(
            QmpCommand(execute="netdev_add", arguments={"type": "dgram", "id": f"net-{link.network}", **ends})
        )
        device = {
            "driver": "virtio-net-pci",
            "id": f"nic-{link.network}",
            "netdev": f"net-{link.network}",
            "mac": link.mac,
        }
        commands.append(QmpCommand(execute="device_add", arguments={**device, "bus": f"port{port}", "romfile": ""}))
    return tuple(commands)
