"""Private networks between the guests of a topology: their members and addresses. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from testbed.topology.base import Model

# Interfaces of every guest: loopback, and QEMU's user network, through which the host reaches the guest.
_TAKEN_NAMES = ("lo", "eth0")
_HOST_NETWORK = ipaddress.IPv4Network("10.0.2.0/24")


def _address(text: str) -> str:
    try:
        found = ipaddress.IPv4Interface(text)
    except ValueError:
        found = None
    if found is None or "/" not in text or not 8 <= found.network.prefixlen <= 30:
        raise ValueError("expected an IPv4 address and its network's length, such as 192.168.7.1/24")
    return text


# A network interface's name holds 15 characters.
NetworkName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,14}$")]
Address = Annotated[str, AfterValidator(_address)]


class Nic(Model):
    """A guest's interface on a private network; in the guest, the interface has the network's name.

    `address`: by default 10.77.NETWORK.GUEST/24, where both are numbers in the order of the file, from 1.
    """

    address: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One guest's end of a network.

    `address`: with the prefix length. `peers`: the names of the other guests, and their addresses without it.
    """

    network: str
    mac: str
    address: str
    peers: tuple[tuple[str, str], ...]


Nics = Mapping[str, Mapping[str, Nic]]
"""By guest and network, both in the order of the file."""


def build_links(nics: Nics) -> dict[str, tuple[Link, ...]]:
    """Return the ends of all networks, by guest."""
    networks = list(dict.fromkeys(network for own in nics.values() for network in own))
    addresses: dict[str, dict[str, str]] = {network: {} for network in networks}
    macs: dict[tuple[str, str], str] = {}
    for guest_number, (guest, own) in enumerate(nics.items(), start=1):
        for network, nic in own.items():
            number = networks.index(network) + 1
            addresses[network][guest] = nic.address or f"10.77.{number}.{guest_number}/24"
            macs[guest, network] = f"52:54:00:77:{number:02x}:{guest_number:02x}"
    return {
        guest: tuple(
            Link(
                network=network,
                mac=macs[guest, network],
                address=addresses[network][guest],
                peers=tuple(
                    (other, address.partition("/")[0])
                    for other, address in addresses[network].items()
                    if other != guest
                ),
            )
            for network in own
        )
        for guest, own in nics.items()
    }


def network_mistakes(nics: Nics) -> Iterator[tuple[tuple[str, ...], str]]:
    """Check the networks of all guests together; places are relative to `guests`."""
    ends = build_links(nics)
    members: dict[str, list[tuple[str, Link]]] = {}
    for guest, own in ends.items():
        for link in own:
            members.setdefault(link.network, []).append((guest, link))
    for network, found in members.items():
        first, first_link = found[0]
        if network in _TAKEN_NAMES:
            yield (
                (first, "networks", network),
                f"{network!r} is the name of an interface that every guest has; choose another",
            )
        if len(found) == 1:
            others = ", ".join(name for name in members if name != network)
            yield (
                (first, "networks", network),
                f"expected another guest on {network!r}, got this one alone"
                + (f" (there are the networks {others})" if others else ""),
            )
        whole = ipaddress.IPv4Interface(first_link.address).network
        if whole.overlaps(_HOST_NETWORK):
            yield (first, "networks", network), f"expected another network than {_HOST_NETWORK}, which is QEMU's own"
        for number, (guest, link) in enumerate(found):
            where = (guest, "networks", network, "address")
            if ipaddress.IPv4Interface(link.address).network != whole:
                yield where, f"expected an address in {whole}, as {first!r} has, got {link.address}"
            twin = next((other for other, its in found[:number] if its.address == link.address), None)
            if twin is not None:
                yield where, f"expected an address of its own, got that of {twin!r}"
