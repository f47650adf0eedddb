"""A guest's ends of private networks: to QEMU's devices, to the steps inside the guest, and what must be read back. Pure.

Each guest's QEMU sends its frames to a socket of ours (`GUEST/NETWORK.out`), which passes them on to the socket of every other guest
(`GUEST/NETWORK.in`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.guest.setup.block_stack import Step, sh
from testbed.guest.setup.readback import Expected
from testbed.qemu.blockdev import QmpCommand
from testbed.topology.networks import Link

_HOSTS = "/etc/hosts"
# Finds the interface by its address, calls it as the network, and gives it its own. It was plugged in a moment ago.
_FIND = """\
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    for nic in /sys/class/net/*; do
        read -r mac <$nic/address && [ "$mac" = {mac} ] && break 2
        nic=
    done
    sleep 0.25
done
[ -n "$nic" ] && ip link set "${{nic##*/}}" name {network}"""
_UP = """\
ip link set {network} up
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    read -r state </sys/class/net/{network}/operstate && [ "$state" = up ] && break
    sleep 0.1
done"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSockets:
    """`folder`: has a folder with the sockets of each guest that is on these networks; `guest`: this one's name in the file; `ends`: its
    ends.
    """

    folder: Path
    guest: str
    ends: tuple[Link, ...]

    @property
    def own(self) -> Path:
        """This guest's folder, which is all of them that its QEMU reaches."""
        return self.folder / self.guest

    def inlet(self, network: str, guest: str) -> Path:
        """The socket on which a guest's QEMU takes frames."""
        return self.folder / guest / f"{network}.in"

    def outlet(self, network: str) -> Path:
        """The socket to which this guest's QEMU sends them."""
        return self.own / f"{network}.out"


UNWIRED = NetworkSockets(folder=Path(), guest="", ends=())


def netdev_commands(wiring: NetworkSockets, first_port: int) -> tuple[QmpCommand, ...]:
    """The commands that put a guest's interfaces in, one in each root port from `first_port` on."""
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


def plan_links(ends: tuple[Link, ...]) -> tuple[tuple[Step, ...], tuple[Expected, ...]]:
    """Each interface under its network's name and with its address, and the other guests' names in /etc/hosts."""
    steps: list[Step] = []
    facts: list[Expected] = []
    for link in ends:
        name = link.network
        hosts = [f"echo {address} {peer} >>{_HOSTS}" for peer, address in link.peers]
        steps.append(
            Step(
                what=f"network {name}",
                do=(
                    _FIND.format(mac=link.mac, network=name),
                    sh("ip", "address", "add", link.address, "dev", name),
                    _UP.format(network=name),
                    *hosts,
                ),
                undo=" && ".join(
                    [
                        sh("ip", "link", "set", name, "down"),
                        sh("ip", "address", "flush", "dev", name),
                        *(sh("sed", "-i", f"/^{address} {peer}$/d", _HOSTS) for peer, address in link.peers),
                    ]
                ),
            )
        )
        facts.append(Expected(where=f"networks.{name}", file=f"/sys/class/net/{name}/address", expected=link.mac))
        facts.append(Expected(where=f"networks.{name}", file=f"/sys/class/net/{name}/operstate", expected="up"))
        own = link.address.partition("/")[0]
        facts.append(Expected(where=f"networks.{name}.address", file="/proc/net/fib_trie", line="|-- ", expected=own))
    return tuple(steps), tuple(facts)
