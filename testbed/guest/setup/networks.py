"""Plans the steps that configure a guest's interfaces on private networks, and what to read back. Pure."""

from __future__ import annotations

from testbed.guest.setup.readback import Expected
from testbed.guest.setup.steps import Step, sh
from testbed.topology.networks import Link

_HOSTS = "/etc/hosts"
# Finds the interface by its MAC address and renames it to the network's name. It was plugged in a moment ago.
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


def plan_links(ends: tuple[Link, ...]) -> tuple[tuple[Step, ...], tuple[Expected, ...]]:
    """Plan the name and the address of each interface, and the other guests' names in /etc/hosts."""
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
