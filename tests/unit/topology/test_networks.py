"""Private networks of guests."""

import pytest

from testbed.topology.load import parse
from tests.support.topologies import errors

NETWORKS = """\
version: 1
guests:
  a: {networks: {lan: {}, other: {address: 192.168.7.1/24}}}
  b: {networks: {lan: {}, other: {address: 192.168.7.2/24}}}
"""


def test_guests_on_a_network_know_each_other() -> None:
    links = parse(NETWORKS, "n.yaml").links
    assert [(link.network, link.address, link.peers) for link in links["b"]] == [
        ("lan", "10.77.1.2/24", (("a", "10.77.1.1"),)),
        ("other", "192.168.7.2/24", (("a", "192.168.7.1"),)),
    ]
    assert len({link.mac for own in links.values() for link in own}) == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "  b: {networks: {lan: {}, other",
            "  b: {networks: {lam: {}, other",
            "guests.a.networks.lan: expected another guest on 'lan'",
        ),
        (
            "lan: {}, other",
            "lan: {}, lo",
            "guests.a.networks.lo: 'lo' is the name of an interface that every guest has",
        ),
        ("7.2/24", "7.1/24", "guests.b.networks.other.address: expected an address of its own, got that of 'a'"),
        (
            "7.2/24",
            "8.2/24",
            "guests.b.networks.other.address: expected an address in 192.168.7.0/24, as 'a' has, got 192.168.8.2/24",
        ),
        (
            "192.168.7.1/24",
            "10.0.2.7/24",
            "guests.a.networks.other: expected another network than 10.0.2.0/24, which is QEMU's own",
        ),
        (
            "192.168.7.1/24",
            "192.168.7.1",
            "guests.a.networks.other.address: expected an IPv4 address and its network's length",
        ),
    ],
)
def test_mistakes_about_networks(old: str, new: str, said: str) -> None:
    assert any(said in line for line in errors(NETWORKS.replace(old, new)))
